// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"
	"net/netip"
	"strings"

	hcl2 "github.com/hashicorp/hcl/v2"

	"github.com/sif-project/sif/fabric"
)

func (d *decoder) external(b *hcl2.Block) fabric.External {
	e := fabric.External{Name: b.Labels[0], Pos: position(labelRange(b))}
	where := subject{kind: "external", label: e.Name}
	before := len(d.diags)
	content := d.content(b.Body, externalBlock.schema, where)
	e.Description, e.Labels = d.description(content), d.labels(content)
	if attr := content.Attributes["prefixes"]; attr != nil {
		e.Prefixes = d.prefixes(content, attr, where.String())
	}
	if attr := content.Attributes["names"]; attr != nil {
		e.Names = d.names(content, attr, fabric.NameFault, where.String())
	}
	if t, ok := d.stringAttr(content, "exit"); ok {
		if fault, remedy := fabric.ExitFault(fabric.Exit(t.value)); fault != "" || t.value == "" {
			if t.value == "" {
				fault, remedy = `argument "exit" is empty`, fmt.Sprintf("write %q, or remove it", fabric.ExitNode)
			}
			d.report(errorAt(t.rng, sentence(remedy), "%s", fault))
		} else {
			e.Exit = fabric.Exit(t.value)
		}
	}
	var consul, node *hcl2.Block
	for _, b := range content.Blocks {
		first := &consul
		if b.Type == "node" {
			first = &node
		}
		if *first != nil {
			d.report(errorAt(b.DefRange, "Merge the two blocks, or declare two externals.", "%s already has a %s block at %s", where, b.Type, position((*first).DefRange)))
			continue
		}
		*first = b
		switch b.Type {
		case "consul":
			e.Consul = d.consulInstances(b, where)
		case "node":
			d.content(b.Body, externalNodeBlock.schema, where.of("a node block"))
			e.Node = true
		}
	}
	place := labelRange(b)
	if node != nil {
		place = node.DefRange
	}
	if fault, remedy := e.Fault(); fault != "" && len(d.diags) == before {
		d.report(errorAt(place, sentence(remedy), "%s %s", where, fault))
	}
	return e
}

func (d *decoder) consulInstances(b *hcl2.Block, where subject) *fabric.ConsulInstances {
	c := &fabric.ConsulInstances{}
	content := d.content(b.Body, externalConsulBlock.schema, where.of("a consul block"))
	check := func(name string, fault func(string) (fault, remedy string)) string {
		t, ok := d.stringAttr(content, name)
		if !ok {
			return ""
		}
		wrong, remedy := fault(t.value)
		if wrong == "" && t.value == "" {
			wrong, remedy = fmt.Sprintf("argument %q is empty", name), "set a value, or remove it"
		}
		if wrong != "" {
			d.report(errorAt(t.rng, sentence(remedy), "%s", wrong))
		}
		return t.value
	}
	c.Service, c.Datacenter = check("service", fabric.ConsulServiceFault), check("datacenter", fabric.ConsulDatacenterFault)
	if attr := content.Attributes["within"]; attr != nil {
		c.Within = d.prefixes(content, attr, where.of("a consul block").String(), fabric.WithinFault)
	}
	return c
}

// names decodes a list of DNS names, which must not be empty.
func (d *decoder) names(content *hcl2.BodyContent, attr *hcl2.Attribute, fault func(string) (fault, remedy string), where string) []string {
	var names []string
	list := d.stringList(content, attr.Name)
	for _, t := range list {
		if wrong, remedy := fault(t.value); wrong != "" {
			d.report(errorAt(t.rng, sentence(remedy), "name %q %s", t.value, wrong))
			continue
		}
		names = append(names, t.value)
	}
	if list != nil && len(list) == 0 {
		d.emptyList(attr, `List at least one, such as "api.example.com".`, "%s has no names", where)
	}
	return names
}

// prefixes decodes a list of prefixes, which must not be empty. faults say what else is wrong with
// one.
func (d *decoder) prefixes(content *hcl2.BodyContent, attr *hcl2.Attribute, where string, faults ...func(netip.Prefix) (fault, remedy string)) []netip.Prefix {
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
		for _, check := range faults {
			if fault, remedy := check(p); fault != "" {
				d.report(errorAt(t.rng, sentence(remedy), "%s", fault))
			}
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
