// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"
	"strings"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/sif-project/sif/fabric"
)

// rule decodes a rule. names are the names of the other rules of the block. place is that of the
// ports, or as near to them as there is something.
func (d *decoder) rule(b *hcl2.Block, where subject, names map[string]hcl2.Range) (r fabric.Rule, place hcl2.Range) {
	place = b.DefRange
	content := d.content(b.Body, ruleBlock.schema, where.of("a rule"))
	if t, ok := d.stringAttr(content, "name"); ok {
		if err := fabric.CheckName(t.value); err != nil {
			d.report(errorAt(t.rng, "Choose another name for the rule.", "%s", err))
		} else if first, dup := names[t.value]; dup {
			d.report(errorAt(t.rng, "Rename one of the two.", "rule %q is already declared at %s", t.value, position(first)))
		}
		r.Name, names[t.value] = t.value, t.rng
	}
	t, ok := d.stringAttr(content, "protocol")
	if !ok {
		return r, place
	}
	p, err := fabric.ParseProtocol(t.value)
	if err != nil {
		remedy := didYouMean(strings.ToLower(t.value), protocolNames())
		if remedy == "" {
			remedy = fmt.Sprintf("Write one of %s.", quotedList(protocolNames()))
		}
		d.report(errorAt(t.rng, remedy, "unknown protocol %q", t.value))
		return r, place
	}
	r.Protocol, place = p, t.rng
	name, other, example := "ports", "types", `8080 or "9000-9010"`
	if !p.HasPorts() {
		name, other, example = "types", "ports", `"echo-request"`
	}
	if wrong := content.Attributes[other]; wrong != nil {
		d.report(errorAt(wrong.NameRange, fmt.Sprintf("Write %s, such as %s.", name, example), "%s do not apply to a rule for %s", other, p))
		return r, place
	}
	attr := content.Attributes[name]
	if attr == nil {
		d.report(errorAt(t.rng, fmt.Sprintf("Add %s = [...], with members such as %s.", name, example), "a rule of %s has no %s", where, name))
		return r, place
	}
	if p.HasPorts() {
		place = attr.Expr.Range()
	}
	r.Ports = d.portList(attr, p, name, fmt.Sprintf("List %s, such as %s.", name, example), "a rule of "+where.String())
	return r, place
}

// portList decodes a list of ports or message types of a protocol, which must not be empty.
func (d *decoder) portList(attr *hcl2.Attribute, p fabric.Protocol, name, remedy, where string) []fabric.PortRange {
	var ports []fabric.PortRange
	seen := map[fabric.PortRange]hcl2.Range{}
	list := d.list(attr)
	for _, e := range list {
		pr, ok := d.ports(e, p)
		if !ok {
			continue
		}
		if first, dup := seen[pr]; dup {
			d.report(errorAt(e.rng, "Remove one of the two.", "%s %s is already listed at %s", strings.TrimSuffix(name, "s"), pr, position(first)))
			continue
		}
		seen[pr] = e.rng
		ports = append(ports, pr)
	}
	if list != nil && len(list) == 0 {
		d.emptyList(attr, remedy, "%s has no %s", where, name)
	}
	return ports
}

// ports decodes a port or an ICMP message type: a number, a range, or the name of a type.
func (d *decoder) ports(e element, p fabric.Protocol) (fabric.PortRange, bool) {
	what, bounds, parse := "port", fabric.AllPorts, fabric.ParsePortRange
	remedy := `Write a number from 1 to 65535, or a range such as "9000-9010".`
	if !p.HasPorts() {
		what, bounds, parse = "type", fabric.AllTypes, fabric.ParseTypeRange
		remedy = fmt.Sprintf("Write a number from 0 to 255, a range, or one of %s.", strings.Join(icmpTypeNames(p), ", "))
	}
	var (
		r   fabric.PortRange
		err error
	)
	switch {
	case e.value.IsNull() || (e.value.Type() != cty.String && e.value.Type() != cty.Number):
		err = fmt.Errorf("a %s must be a number or a string, not %s", what, kindOf(e.value))
	case e.value.Type() == cty.String:
		s := e.value.AsString()
		if n, named := icmpTypes[p][s]; named {
			return fabric.PortRange{From: n, To: n}, true
		}
		r, err = parse(s)
		if err != nil && !p.HasPorts() && (s == "" || s[0] < '0' || s[0] > '9') {
			err = fmt.Errorf("unknown type %q", s)
			if near := didYouMean(s, icmpTypeNames(p)); near != "" {
				remedy = near
			}
		}
	default:
		n := e.value.AsBigFloat()
		if !n.IsInt() {
			err = fmt.Errorf("%s %s is not a whole number", what, n.Text('g', 10))
		} else if i, _ := n.Int64(); i < int64(bounds.From) || i > int64(bounds.To) { // Int64 saturates
			err = fmt.Errorf("%s %s is outside %s", what, n.Text('g', 10), bounds)
		} else {
			return fabric.PortRange{From: uint16(i), To: uint16(i)}, true
		}
	}
	if err != nil {
		d.report(errorAt(e.rng, remedy, "%s", err))
		return fabric.PortRange{}, false
	}
	return r, true
}
