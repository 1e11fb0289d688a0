// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"
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
