// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	hcl2 "github.com/hashicorp/hcl/v2"

	"github.com/sif-project/sif/fabric"
)

func (d *decoder) service(b *hcl2.Block) fabric.Service {
	s := fabric.Service{Name: b.Labels[0], Pos: position(labelRange(b))}
	content := d.content(b.Body, serviceBlock.schema, subject{kind: "service", label: s.Name})
	s.Description, s.Labels = d.description(content), d.labels(content)
	for _, b := range content.Blocks {
		if sel, ok := d.selector(b); ok {
			s.Selectors = append(s.Selectors, sel)
		}
	}
	if len(content.Blocks) == 0 {
		d.report(warningAt(labelRange(b), `Add a block such as: selector "nomad" { job = "..." }.`,
			"service %q has no selector, so no workload can be an instance of it", s.Name))
	}
	return s
}

func (d *decoder) selector(b *hcl2.Block) (fabric.Selector, bool) {
	kind := b.Labels[0]
	i := slices.IndexFunc(selectorBlocks, func(def *definition) bool { return def.is == kind })
	if i < 0 {
		var kinds []string
		for _, def := range selectorBlocks {
			kinds = append(kinds, def.is)
		}
		slices.Sort(kinds)
		detail := strings.TrimSpace(fmt.Sprintf("The kinds are %s. %s", quotedList(kinds), didYouMean(kind, kinds)))
		d.report(errorAt(labelRange(b), detail, "unknown kind of selector %q", kind))
		return fabric.Selector{}, false
	}
	where := subject{kind: "selector", label: kind}
	content := d.content(b.Body, selectorBlocks[i].schema, where)
	s := fabric.Selector{
		Kind:       fabric.SelectorKind(kind),
		Namespace:  d.nameAttr(content, "namespace"),
		Region:     d.nameAttr(content, "region"),
		Job:        d.nameAttr(content, "job"),
		Group:      d.nameAttr(content, "group"),
		Datacenter: d.nameAttr(content, "datacenter"),
		NodeClass:  d.nameAttr(content, "node_class"),
		NodePool:   d.nameAttr(content, "node_pool"),
		Service:    d.nameAttr(content, "service"),
		Tags:       values(d.stringList(content, "tags")),
		Zone:       d.nameAttr(content, "zone"),
		Node:       d.nameAttr(content, "node"),
		Pos:        position(labelRange(b)),
	}
	s.Meta, _ = d.stringMap(content, "meta")
	switch {
	case s.Kind == fabric.SelectNode:
		if len(content.Attributes) == 0 {
			d.report(errorAt(labelRange(b), expected(selectorBlocks[i].schema, where), "the selector names no property, so it would match nothing"))
		}
	case s.Namespace == "":
		s.Namespace = fabric.DefaultNamespace
	}
	return s, true
}

func quotedList(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = fmt.Sprintf("%q", n)
	}
	return strings.Join(quoted, ", ")
}

func (d *decoder) external(b *hcl2.Block) fabric.External {
	e := fabric.External{Name: b.Labels[0], Pos: position(labelRange(b))}
	content := d.content(b.Body, externalBlock.schema, subject{kind: "external", label: e.Name})
	e.Description, e.Labels = d.description(content), d.labels(content)
	if attr := content.Attributes["prefixes"]; attr != nil {
		e.Prefixes = d.prefixes(content, attr, fmt.Sprintf("external %q", e.Name))
	}
	return e
}

// prefixes decodes a list of prefixes, which must not be empty.
func (d *decoder) prefixes(content *hcl2.BodyContent, attr *hcl2.Attribute, where string) []netip.Prefix {
	var prefixes []netip.Prefix
	seen := map[netip.Prefix]hcl2.Range{}
	list := d.stringList(content, attr.Name)
	for _, t := range list {
		p, ok := d.prefix(t)
		if !ok {
			continue
		}
		if first, dup := seen[p]; dup {
			d.report(errorAt(t.rng, "Remove one of the two.", "prefix %s is already listed at %s", p, position(first)))
			continue
		}
		seen[p] = t.rng
		prefixes = append(prefixes, p)
	}
	if list != nil && len(list) == 0 {
		d.emptyList(attr, `List at least one, such as "192.0.2.0/24".`, "%s has no prefixes", where)
	}
	return prefixes
}

// emptyList reports that a list is empty, unless its elements were invalid.
func (d *decoder) emptyList(attr *hcl2.Attribute, detail, format string, args ...any) {
	rng := attr.Expr.Range()
	for _, diag := range d.diags {
		if s := diag.Subject; s != nil && s.Filename == rng.Filename && s.Start.Byte >= rng.Start.Byte && s.End.Byte <= rng.End.Byte {
			return
		}
	}
	d.report(errorAt(rng, detail, format, args...))
}

// prefix decodes a prefix or a single address.
func (d *decoder) prefix(t text) (netip.Prefix, bool) {
	var p netip.Prefix
	var err error
	if strings.Contains(t.value, "/") {
		p, err = netip.ParsePrefix(t.value)
	} else {
		var a netip.Addr
		if a, err = netip.ParseAddr(t.value); err == nil && a.Zone() != "" {
			err = fmt.Errorf("an address must not have a zone")
		}
		if err == nil {
			p = netip.PrefixFrom(a, a.BitLen())
		}
	}
	if err != nil {
		d.report(errorAt(t.rng, `Write an address and a length, such as "192.0.2.0/24", or an address.`, "%q is not an address prefix", t.value))
		return p, false
	}
	if p.Addr().Is4In6() {
		d.report(errorAt(t.rng, "Write the IPv4 prefix.", "prefix %q is an IPv4-mapped IPv6 prefix", t.value))
		return p, false
	}
	if m := p.Masked(); m != p {
		d.report(errorAt(t.rng, fmt.Sprintf("Write %q, or %q for the single address.", m, p.Addr()),
			"prefix %q has bits set beyond its length", t.value))
		return p, false
	}
	return p, true
}
