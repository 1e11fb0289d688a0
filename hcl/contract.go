// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"slices"
	"strings"
	"time"

	hcl2 "github.com/hashicorp/hcl/v2"

	"github.com/sif-project/sif/fabric"
)

// contractDecl is a contract with its source positions, and its originators and responders as
// written.
type contractDecl struct {
	fabric.Contract
	place                   hcl2.Range
	originators, responders []text
	rules                   []hcl2.Range // of the ports of each rule, or of the rule
	broken                  bool         // a name is invalid
}

// acceptDecl is an accept block with its source positions.
type acceptDecl struct {
	place    hcl2.Range
	contract fabric.Ref
	services []text
}

func (d *decoder) contract(domain string, b *hcl2.Block) *contractDecl {
	c := &contractDecl{place: labelRange(b)}
	c.Name, c.Pos = b.Labels[0], position(c.place)
	where := subject{kind: "contract", label: c.Name}
	content := d.content(b.Body, contractBlock.schema, where)
	c.Description, c.Labels = d.description(content), d.labels(content)
	c.Disabled = !d.boolAttr(content, "enabled", true)
	c.Mode = d.mode(content)
	c.Expires = d.expires(content, where)
	c.Originators, c.originators = d.refs(domain, c, content, "originators")
	c.Responders, c.responders = d.refs(domain, c, content, "responders")

	var path *hcl2.Block
	rules := 0
	names := map[string]hcl2.Range{}
	for _, b := range content.Blocks {
		switch {
		case b.Type == "rule":
			rules++
			r, place := d.rule(b, where, names)
			c.Rules, c.rules = append(c.Rules, r), append(c.rules, place)
		case path != nil:
			d.report(errorAt(b.DefRange, "Merge the two blocks.", "%s already has a path at %s", where, position(path.DefRange)))
		default:
			path = b
			content := d.content(b.Body, pathBlock.schema, where.of("path"))
			c.Path.Require = values(d.stringList(content, "require"))
			c.Path.Prefer = values(d.stringList(content, "prefer"))
			avoid := d.stringList(content, "avoid")
			for _, t := range avoid {
				if slices.Contains(c.Path.Require, t.value) {
					d.report(errorAt(t.rng, "Remove one of the two.", "%s requires and avoids label %q", where, t.value))
				}
			}
			c.Path.Avoid = values(avoid)
		}
	}
	if rules == 0 {
		d.report(errorAt(c.place, "Add a rule block with protocol and ports.", "%s has no rules, so it would allow nothing", where))
	}
	return c
}

func (d *decoder) expires(content *hcl2.BodyContent, where subject) time.Time {
	t, ok := d.stringAttr(content, "expires")
	if !ok {
		return time.Time{}
	}
	at, err := time.Parse(time.RFC3339Nano, t.value)
	if err != nil || at.IsZero() {
		d.report(errorAt(t.rng, `Write a date, a time and a zone: "2027-01-31T00:00:00Z" or "2027-01-31T00:00:00+01:00".`, "%q is not an RFC 3339 time", t.value))
		return time.Time{}
	}
	if !d.now.Before(at) {
		d.report(warningAt(t.rng, "It no longer allows anything. Remove it, or set a later time.", "%s has expired", where))
	}
	return at.UTC()
}

func values(list []text) []string {
	if len(list) == 0 {
		return nil
	}
	s := make([]string, len(list))
	for i, t := range list {
		s[i] = t.value
	}
	return s
}

// refs decodes one side of a contract. A name without a domain belongs to the domain of the
// contract. The names are resolved when all files have been decoded.
func (d *decoder) refs(domain string, c *contractDecl, content *hcl2.BodyContent, side string) ([]fabric.Ref, []text) {
	attr := content.Attributes[side]
	if attr == nil {
		return nil, nil
	}
	before := len(d.diags)
	list := d.stringList(content, side)
	refs, written := make([]fabric.Ref, 0, len(list)), make([]text, 0, len(list))
	for _, t := range list {
		r, err := parseRef(t.value, domain)
		if err != nil {
			d.report(errorAt(t.rng, `Write the name of a service, or "domain/service" for one of another domain.`, "%s", err))
			continue
		}
		if i := slices.Index(refs, r); i >= 0 {
			d.report(errorAt(t.rng, "Remove one of the two.", "%q is already listed at %s", t.value, position(written[i].rng)))
			continue
		}
		refs, written = append(refs, r), append(written, t)
	}
	if exprs, literal := members(attr.Expr); literal && len(list) < len(exprs) {
		c.broken = true
	}
	if list == nil || len(d.diags) > before {
		c.broken = true
	} else if len(refs) == 0 {
		d.report(errorAt(attr.Expr.Range(), "Name at least one service.", "contract %q has no %s", c.Name, side))
	}
	return refs, written
}

// parseRef parses "domain/name", or "name" in the given domain.
func parseRef(s, domain string) (fabric.Ref, error) {
	if strings.Contains(s, "/") {
		return fabric.ParseRef(s)
	}
	return fabric.Ref{Domain: domain, Name: s}, fabric.CheckName(s)
}

// accept decodes the body of an accept block.
func (d *decoder) accept(contract string, place hcl2.Range, content *hcl2.BodyContent) acceptDecl {
	a := acceptDecl{place: place, services: d.stringList(content, "services")}
	a.contract, _ = fabric.ParseRef(contract) // the assembly reports an invalid name
	if attr := content.Attributes["services"]; attr != nil && a.services != nil && len(a.services) == 0 {
		d.emptyList(attr, "Name at least one service, or remove the argument to accept any.", "the consent to contract %q names no service", contract)
	}
	return a
}
