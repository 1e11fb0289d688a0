// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/sif-project/sif/fabric"
)

var (
	contractSchema = &hcl2.BodySchema{
		Attributes: []hcl2.AttributeSchema{
			{Name: "enabled"}, {Name: "originators", Required: true}, {Name: "responders", Required: true},
		},
		Blocks: []hcl2.BlockHeaderSchema{{Type: "rule"}, {Type: "path"}},
	}
	ruleSchema = &hcl2.BodySchema{Attributes: []hcl2.AttributeSchema{
		{Name: "protocol", Required: true}, {Name: "ports", Required: true},
	}}
	pathSchema = &hcl2.BodySchema{Attributes: []hcl2.AttributeSchema{{Name: "require"}, {Name: "prefer"}}}
)

func (d *decoder) contract(decl *domainDecl, b *hcl2.Block) fabric.Contract {
	c := fabric.Contract{Name: b.Labels[0], Pos: position(labelRange(b))}
	where := fmt.Sprintf("contract %q", c.Name)
	content := d.content(b.Body, contractSchema, where)
	if attr := content.Attributes["enabled"]; attr != nil {
		if v, ok := d.value(attr.Expr); ok {
			if v.IsNull() || v.Type() != cty.Bool {
				d.report(errorAt(attr.Expr.Range(), "Write true or false.", `argument "enabled" must be true or false, not %s`, kindOf(v)))
			} else {
				c.Disabled = v.False()
			}
		}
	}
	c.Originators = d.refs(decl, content, c.Name, "originators")
	c.Responders = d.refs(decl, content, c.Name, "responders")

	var path *hcl2.Block
	rules := 0
	for _, b := range content.Blocks {
		switch {
		case b.Type == "rule":
			rules++
			c.Rules = append(c.Rules, d.rule(b, where))
		case path != nil:
			d.report(errorAt(b.DefRange, "Merge the two blocks.", "%s already has a path at %s", where, position(path.DefRange)))
		default:
			path = b
			content := d.content(b.Body, pathSchema, "path")
			c.Path.Require = values(d.stringList(content, "require"))
			c.Path.Prefer = values(d.stringList(content, "prefer"))
		}
	}
	if rules == 0 {
		d.report(errorAt(labelRange(b), "Add a rule block with protocol and ports.", "%s has no rules, so it would allow nothing", where))
	}
	return c
}

func values(list []text) []string {
	var s []string
	for _, t := range list {
		s = append(s, t.value)
	}
	return s
}

// refs decodes one side of a contract. Names without a domain are of the
// contract's own. What they lead to is looked up when all files are read.
func (d *decoder) refs(decl *domainDecl, content *hcl2.BodyContent, contract, side string) []fabric.Ref {
	attr := content.Attributes[side]
	if attr == nil {
		return nil
	}
	if isEmptyList(attr) {
		d.report(errorAt(attr.Expr.Range(), "Name at least one service.", "contract %q has no %s", contract, side))
		return nil
	}
	var refs []fabric.Ref
	for _, t := range d.stringList(content, side) {
		r := fabric.Ref{Domain: decl.domain.Name, Name: t.value}
		var err error
		if strings.Contains(t.value, "/") {
			r, err = fabric.ParseRef(t.value)
		} else {
			err = fabric.CheckName(t.value)
		}
		if err != nil {
			d.report(errorAt(t.rng, `Write the name of a service, or "domain/service" for one of another domain.`, "%s", err))
			continue
		}
		refs = append(refs, r)
		decl.refs = append(decl.refs, refDecl{text: t, ref: r, responder: side == "responders"})
	}
	return refs
}

// resolve checks what the contracts of a domain mention.
func (d *decoder) resolve(decl *domainDecl) {
	name := decl.domain.Name
	for _, r := range decl.refs {
		if r.ref.Domain != name {
			d.report(errorAt(r.rng, fmt.Sprintf("Name services of domain %q only.", name),
				"%q is of another domain, which this version does not support", r.value))
			continue
		}
		if _, known := decl.nodes[r.ref.Name]; !known {
			names := slices.Sorted(maps.Keys(decl.nodes))
			remedy := didYouMean(r.ref.Name, names)
			if remedy == "" {
				remedy = "Declare it, or correct the name."
			}
			d.report(errorAt(r.rng, fmt.Sprintf("Domain %q declares no service or external of that name. %s", name, remedy),
				"unknown service %q", r.value))
			continue
		}
		if r.responder && decl.externals[r.ref.Name] {
			d.report(errorAt(r.rng, "In this version an external can only originate.", "external %q cannot be a responder", r.value))
		}
	}
}

func (d *decoder) rule(b *hcl2.Block, where string) fabric.Rule {
	var r fabric.Rule
	content := d.content(b.Body, ruleSchema, "a rule of "+where)
	if t, ok := d.stringAttr(content, "protocol"); ok {
		p, err := fabric.ParseProtocol(t.value)
		if err != nil {
			remedy := didYouMean(strings.ToLower(t.value), []string{"tcp", "udp"})
			if remedy == "" {
				remedy = `Write "tcp" or "udp".`
			}
			d.report(errorAt(t.rng, remedy, "%s", err))
		}
		r.Protocol = p
	}
	attr := content.Attributes["ports"]
	if attr == nil {
		return r
	}
	if isEmptyList(attr) {
		d.report(errorAt(attr.Expr.Range(), `List ports, such as 8080 or "9000-9010".`, "a rule of %s names no ports", where))
	}
	seen := map[fabric.PortRange]hcl2.Range{}
	for _, e := range d.list(attr) {
		p, ok := d.ports(e)
		if !ok {
			continue
		}
		if first, dup := seen[p]; dup {
			d.report(errorAt(e.rng, "Remove one of the two.", "port %s is already listed at %s", p, position(first)))
			continue
		}
		seen[p] = e.rng
		r.Ports = append(r.Ports, p)
	}
	return r
}

// ports decodes a port, written as a number or a string, or a range of ports.
func (d *decoder) ports(e element) (fabric.PortRange, bool) {
	var (
		p   fabric.PortRange
		err error
	)
	switch {
	case e.value.IsNull() || (e.value.Type() != cty.String && e.value.Type() != cty.Number):
		err = fmt.Errorf("a port must be a number or a string, not %s", kindOf(e.value))
	case e.value.Type() == cty.String:
		p, err = fabric.ParsePortRange(e.value.AsString())
	default:
		switch n := e.value.AsBigFloat(); {
		case !n.IsInt():
			err = fmt.Errorf("port %s is not a whole number", n.Text('g', 10))
		case n.Sign() < 0 || n.Cmp(big.NewFloat(65535)) > 0:
			err = fmt.Errorf("port %s is outside 1-65535", n.Text('g', 10))
		default:
			p, err = fabric.ParsePortRange(n.Text('f', 0))
		}
	}
	if err != nil {
		d.report(errorAt(e.rng, `Write a number from 1 to 65535, or a range such as "9000-9010".`, "%s", err))
		return fabric.PortRange{}, false
	}
	return p, true
}
