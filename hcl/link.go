// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"
	"math"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/sif-project/sif/fabric"
)

func (d *decoder) link(b *hcl2.Block) item {
	l := fabric.LinkRule{Name: b.Labels[0], Cost: fabric.DefaultLinkCost, Pos: position(labelRange(b))}
	where := subject{kind: "link", label: l.Name}
	content := d.content(b.Body, linkBlock.schema, where)
	l.Description = d.description(content)
	l.Between = d.linkEnds(content, where)
	l.Labels = values(d.stringList(content, "labels"))
	if cost, ok := d.wholeNumber(content, "cost", 0, math.MaxUint16, "Links with lower costs are preferred; the default is 100."); ok {
		l.Cost = uint16(cost)
	}
	if mtu, ok := d.wholeNumber(content, "mtu", fabric.MinLinkMTU, fabric.MaxLinkMTU, "Remove it for the MTU of the processors."); ok {
		l.MTU = mtu
	}
	if t, ok := d.stringAttr(content, "endpoints"); ok {
		if err := fabric.CheckName(t.value); err != nil {
			d.report(errorAt(t.rng, `Write the name that the processors' configurations give to the addresses, such as "private".`, "%s", err))
		} else if t.value != fabric.DefaultEndpoints {
			l.Endpoints = t.value
		}
	}
	l.Disabled = !d.boolAttr(content, "enabled", true)
	return item{kind: b.Type, name: l.Name, place: labelRange(b), value: l, diags: d.said()}
}

// linkEnds decodes the two ends of a link.
func (d *decoder) linkEnds(content *hcl2.BodyContent, where subject) (ends [2]fabric.LinkEnd) {
	attr := content.Attributes["between"]
	if attr == nil {
		return ends
	}
	before := len(d.diags)
	elements := d.list(attr)
	for i, e := range elements {
		t, ok := d.stringValue(e.value, e.rng, "an element of %q", "between")
		if !ok {
			continue
		}
		end, err := fabric.ParseLinkEnd(t.value)
		if err != nil {
			d.report(errorAt(t.rng, `Write a zone, a processor as "zone/node", or "*" for every zone.`, "%s", err))
			continue
		}
		if i < len(ends) {
			ends[i] = end
		}
	}
	if elements == nil || len(d.diags) > before {
		return ends
	}
	place := attr.Expr.Range()
	if len(elements) != len(ends) {
		d.report(errorAt(place, `Name two: zones, or processors as "zone/node". Write a block for each further link.`, "%s has %d ends, not two", where, len(elements)))
	} else if fault, remedy := fabric.EndsFault(ends[0], ends[1]); fault != "" {
		d.report(errorAt(place, sentence(remedy), "%s %s", where, fault))
	}
	return ends
}

// wholeNumber returns the value of an attribute, if it is set and a whole number within the bounds.
func (d *decoder) wholeNumber(content *hcl2.BodyContent, name string, least, most int, remedy string) (int, bool) {
	attr := content.Attributes[name]
	if attr == nil {
		return 0, false
	}
	v, ok := d.value(attr.Expr)
	if !ok {
		return 0, false
	}
	remedy = fmt.Sprintf("Write a whole number from %d to %d. %s", least, most, remedy)
	if v.IsNull() || v.Type() != cty.Number {
		d.report(errorAt(attr.Expr.Range(), remedy, "argument %q must be a number, not %s", name, kindOf(v)))
		return 0, false
	}
	n := v.AsBigFloat()
	if i, _ := n.Int64(); !n.IsInt() || i < int64(least) || i > int64(most) { // Int64 saturates
		d.report(errorAt(attr.Expr.Range(), remedy, "%s %s is not a whole number from %d to %d", name, n.Text('g', 10), least, most))
		return 0, false
	}
	whole, _ := n.Int64()
	return int(whole), true
}
