// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	hcl2 "github.com/hashicorp/hcl/v2"

	"github.com/sif-project/sif/fabric"
)

func (d *decoder) guardrail(b *hcl2.Block) item {
	g := fabric.Guardrail{Name: b.Labels[0], Pos: position(labelRange(b))}
	where := subject{kind: "guardrail", label: g.Name}
	content := d.content(b.Body, guardrailBlock.schema, where)
	g.Description = d.description(content)
	for _, b := range content.Blocks {
		g.Deny = append(g.Deny, d.deny(b, where))
	}
	if len(content.Blocks) == 0 {
		d.report(errorAt(labelRange(b), "Add a block such as: deny { from = { env = \"dev\" } }.", "guardrail %q denies nothing", g.Name))
	}
	return item{kind: b.Type, name: g.Name, place: labelRange(b), value: g, diags: d.said()}
}

func (d *decoder) deny(b *hcl2.Block, where subject) fabric.Denial {
	deny := fabric.Denial{Pos: position(b.DefRange)}
	before := len(d.diags)
	content := d.content(b.Body, denyBlock.schema, where.of("a deny block"))
	side := func(name string) fabric.Labels {
		m, _ := d.stringMap(content, name)
		if attr := content.Attributes[name]; attr != nil && m != nil && len(m) == 0 {
			d.emptyList(attr, "Name at least one label, or remove the argument to match everything.", "argument %q has no labels", name)
		}
		return m
	}
	deny.From, deny.To = side("from"), side("to")
	names := map[string]hcl2.Range{}
	for _, b := range content.Blocks {
		r, _ := d.rule(b, where, names)
		deny.Rules = append(deny.Rules, r)
	}
	if len(content.Attributes)+len(content.Blocks) == 0 && len(d.diags) == before {
		d.report(errorAt(b.DefRange, "Set from or to, or add a rule.", "a deny block of %s would deny every contract", where))
	}
	return deny
}
