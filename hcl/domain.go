// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"
	"strings"

	hcl2 "github.com/hashicorp/hcl/v2"

	"github.com/sif-project/sif/fabric"
)

// domainPart is a decoded domain block: what one file declares in the domain.
type domainPart struct {
	name      string
	place     hcl2.Range
	items     []item
	contracts int              // how many of the items are contracts
	diags     hcl2.Diagnostics // about the block outside its items
}

// silent is the opposite of the argument "reject" of a domain.
type silent bool

func (d *decoder) domain(b *hcl2.Block) domainPart {
	p := domainPart{name: b.Labels[0], place: labelRange(b)}
	content := d.content(b.Body, domainBlock.schema, subject{kind: "domain", label: p.name})
	p.diags = d.said()
	p.items = make([]item, 0, len(content.Attributes)+len(content.Blocks))
	for _, a := range sortedAttributes(content.Attributes) {
		it := item{kind: "argument", name: a.Name, place: a.NameRange}
		switch a.Name {
		case "description":
			it.value = d.description(content)
		case "labels":
			it.value = d.labels(content)
		case "mode":
			it.value = d.mode(content)
		case "reject":
			it.value = silent(!d.boolAttr(content, "reject", true))
		}
		it.diags = d.said()
		p.items = append(p.items, it)
	}
	for _, b := range content.Blocks {
		it := item{kind: b.Type, name: b.Labels[0], place: labelRange(b)}
		switch b.Type {
		case "service":
			it.value = d.service(b)
		case "external":
			it.value = d.external(b)
		case "contract":
			it.value = d.contract(p.name, b)
			p.contracts++
		case "accept":
			content := d.content(b.Body, acceptBlock.schema, subject{kind: "accept", label: it.name})
			p.diags = append(p.diags, d.said()...)
			it.value = d.accept(it.name, it.place, content)
		}
		it.diags = d.said()
		p.items = append(p.items, it)
	}
	return p
}

func (d *decoder) description(content *hcl2.BodyContent) string {
	t, _ := d.stringAttr(content, "description")
	return t.value
}

// labels decodes the labels of a block.
func (d *decoder) labels(content *hcl2.BodyContent) fabric.Labels {
	m, places := d.stringMap(content, "labels")
	for _, taken := range []string{"domain", "name"} {
		if place, set := places[taken]; set {
			d.report(errorAt(place, "Choose another key.", "label %q cannot be set: it is always the name of the %s", taken, map[string]string{"domain": "domain", "name": "block"}[taken]))
		}
	}
	return m
}

func (d *decoder) mode(content *hcl2.BodyContent) fabric.Mode {
	t, ok := d.stringAttr(content, "mode")
	if !ok || t.value == modeEnforce {
		return fabric.ModeEnforce
	}
	if t.value != string(fabric.ModeAudit) {
		d.report(errorAt(t.rng, strings.TrimSpace(fmt.Sprintf("Write %q or %q. %s", fabric.ModeAudit, modeEnforce, didYouMean(t.value, modes))), "unknown mode %q", t.value))
	}
	return fabric.Mode(t.value)
}

// labelRange returns the range of a block's first label. In JSON, unlike the range of the block
// type, it is different for each block.
func labelRange(b *hcl2.Block) hcl2.Range { return b.LabelRanges[0] }
