// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	hcl2 "github.com/hashicorp/hcl/v2"

	"github.com/sif-project/sif/fabric"
)

// contractDecl is what a contract mentions, with places.
type contractDecl struct {
	name                    string
	place                   hcl2.Range
	originators, responders []refDecl
	broken                  bool // a name could not be read
}

// refDecl is a name that a contract mentions.
type refDecl struct {
	text
	ref fabric.Ref
}

// acceptDecl is a consent with places.
type acceptDecl struct {
	place    hcl2.Range
	contract fabric.Ref
	services []text
}

func (d *decoder) contract(decl *domainDecl, b *hcl2.Block) fabric.Contract {
	c := fabric.Contract{Name: b.Labels[0], Pos: position(labelRange(b))}
	where := subject{kind: "contract", label: c.Name}
	content := d.content(b.Body, contractBlock.schema, where)
	c.Description, c.Labels = d.description(content), d.labels(content)
	c.Disabled = !d.boolAttr(content, "enabled", true)
	c.Mode = d.mode(content)
	c.Expires = d.expires(content, where)
	cd := contractDecl{name: c.Name, place: labelRange(b)}
	c.Originators, cd.originators = d.refs(decl, &cd, content, "originators")
	c.Responders, cd.responders = d.refs(decl, &cd, content, "responders")
	decl.declared = append(decl.declared, cd)

	var path *hcl2.Block
	rules := 0
	names := map[string]hcl2.Range{}
	for _, b := range content.Blocks {
		switch {
		case b.Type == "rule":
			rules++
			c.Rules = append(c.Rules, d.rule(b, where, names))
		case path != nil:
			d.report(errorAt(b.DefRange, "Merge the two blocks.", "%s already has a path at %s", where, position(path.DefRange)))
		default:
			path = b
			content := d.content(b.Body, pathBlock.schema, where.of("path"))
			c.Path.Require = values(d.stringList(content, "require"))
			c.Path.Prefer = values(d.stringList(content, "prefer"))
		}
	}
	if rules == 0 {
		d.report(errorAt(labelRange(b), "Add a rule block with protocol and ports.", "%s has no rules, so it would allow nothing", where))
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
		d.report(errorAt(t.rng, `Write a date, a time and a zone: "2027-01-31T00:00:00Z" or "2027-01-31T00:00:00+01:00".`, "%q is not a time of RFC 3339", t.value))
		return time.Time{}
	}
	if !d.now.Before(at) {
		d.report(warningAt(t.rng, "It allows nothing any more. Remove it, or set a later time.", "%s has expired", where))
	}
	return at.UTC()
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
func (d *decoder) refs(decl *domainDecl, cd *contractDecl, content *hcl2.BodyContent, side string) ([]fabric.Ref, []refDecl) {
	attr := content.Attributes[side]
	if attr == nil {
		return nil, nil
	}
	before := len(d.diags)
	var refs []fabric.Ref
	var decls []refDecl
	list := d.stringList(content, side)
	for _, t := range list {
		r, err := parseRef(t.value, decl.domain.Name)
		if err != nil {
			d.report(errorAt(t.rng, `Write the name of a service, or "domain/service" for one of another domain.`, "%s", err))
			continue
		}
		if i := slices.Index(refs, r); i >= 0 {
			d.report(errorAt(t.rng, "Remove one of the two.", "%q is already listed at %s", t.value, position(decls[i].rng)))
			continue
		}
		refs = append(refs, r)
		decls = append(decls, refDecl{text: t, ref: r})
	}
	if exprs, literal := members(attr.Expr); literal && len(list) < len(exprs) {
		cd.broken = true
	}
	if list == nil || len(d.diags) > before {
		cd.broken = true
	} else if len(refs) == 0 {
		d.report(errorAt(attr.Expr.Range(), "Name at least one service.", "contract %q has no %s", cd.name, side))
	}
	return refs, decls
}

// parseRef parses "name", of the given domain, or "domain/name".
func parseRef(s, domain string) (fabric.Ref, error) {
	if strings.Contains(s, "/") {
		return fabric.ParseRef(s)
	}
	return fabric.Ref{Domain: domain, Name: s}, fabric.CheckName(s)
}

func (d *decoder) accept(decl *domainDecl, b *hcl2.Block) {
	place := labelRange(b)
	content := d.content(b.Body, acceptBlock.schema, subject{kind: "accept", label: b.Labels[0]})
	contract, err := fabric.ParseRef(b.Labels[0])
	if err != nil {
		d.report(errorAt(place, `Write the contract as "domain/contract".`, "%s", err))
		return
	}
	if contract.Domain == decl.domain.Name {
		d.report(errorAt(place, "Remove the block.", "contract %q is of this domain and needs no consent", contract))
		return
	}
	if first, dup := decl.accepted[contract.String()]; dup {
		d.report(errorAt(place, "Merge the two blocks.", "contract %q is already accepted at %s", contract, position(first)))
		return
	}
	decl.accepted[contract.String()] = place
	services := d.stringList(content, "services")
	if attr := content.Attributes["services"]; attr != nil && services != nil && len(services) == 0 {
		d.emptyList(attr, "Name services, or leave the argument out: then the contract may name any.", "the consent to contract %q names no service", contract)
	}
	decl.accepts = append(decl.accepts, acceptDecl{place: place, contract: contract, services: services})
	decl.domain.Accepts = append(decl.domain.Accepts, fabric.Accept{Contract: contract, Services: values(services), Pos: position(place)})
}

// resolve checks what the contracts and consents of a domain mention.
func (d *decoder) resolve(decl *domainDecl) {
	for _, c := range decl.declared {
		own := false
		external := func(side []refDecl) *refDecl {
			var found *refDecl
			for i, r := range side {
				d.resolveRef(decl, c, r)
				if r.ref.Domain == decl.domain.Name {
					own = true
					if decl.externals[r.ref.Name] && found == nil {
						found = &side[i]
					}
				}
			}
			return found
		}
		from, to := external(c.originators), external(c.responders)
		switch {
		case from != nil && to != nil:
			d.report(errorAt(to.rng, "The fabric is at neither end of flows between externals. Make two contracts of it.",
				"contract %q has externals on both sides: %q is an originator at %s", c.name, from.value, position(from.rng)))
		case to != nil:
			d.report(warningAt(to.rng, "The contract is part of the graph and of what plan and explain say of it.",
				"egress to externals is not enforced yet: flows to %q are dropped", to.value))
		}
		if !own && !c.broken && len(c.originators) > 0 && len(c.responders) > 0 {
			d.report(errorAt(c.place, "Declare it in a domain that takes part.", "contract %q names no service of its own domain %q", c.name, decl.domain.Name))
		}
	}
	for _, a := range decl.accepts {
		for _, t := range a.services {
			if _, known := decl.nodes[t.value]; !known || decl.externals[t.value] {
				d.report(errorAt(t.rng, fmt.Sprintf("Domain %q declares no service of that name. %s", decl.domain.Name, nearest(t.value, decl.services())),
					"unknown service %q", t.value))
			}
		}
		if other := d.domains[a.contract.Domain]; other != nil && other.contracts[a.contract.Name] == (hcl2.Range{}) {
			d.report(warningAt(a.place, fmt.Sprintf("Domain %q declares no contract of that name. %s", a.contract.Domain, nearest(a.contract.Name, slices.Collect(maps.Keys(other.contracts)))),
				"the consent to contract %q has no effect", a.contract))
		}
	}
}

// services are the names that a domain's consents may use.
func (decl *domainDecl) services() []string {
	return slices.DeleteFunc(slices.Collect(maps.Keys(decl.nodes)), func(n string) bool { return decl.externals[n] })
}

// nearest is didYouMean with other advice if nothing is near.
func nearest(name string, names []string) string {
	if s := didYouMean(name, names); s != "" {
		return s
	}
	return "Declare it, or correct the name."
}

func (d *decoder) resolveRef(decl *domainDecl, c contractDecl, r refDecl) {
	in := decl
	if r.ref.Domain != decl.domain.Name {
		if in = d.domains[r.ref.Domain]; in == nil {
			return // of a domain that these files do not declare
		}
	}
	_, known := in.nodes[r.ref.Name]
	switch {
	case !known && in == decl:
		d.report(errorAt(r.rng, fmt.Sprintf("Domain %q declares no service or external of that name. %s", in.domain.Name, nearest(r.ref.Name, slices.Collect(maps.Keys(in.nodes)))),
			"unknown service %q", r.value))
	case !known:
		d.report(warningAt(r.rng, fmt.Sprintf("Domain %q declares no service of that name. %s", in.domain.Name, nearest(r.ref.Name, in.services())),
			"contract %q waits for a service %q", c.name, r.value))
	case in != decl && in.externals[r.ref.Name]:
		d.report(errorAt(r.rng, fmt.Sprintf("Declare an external in domain %q.", decl.domain.Name), "external %q is of another domain", r.value))
	}
}

// warnOfWaiting says which contracts wait for the consent of a domain that is
// among the files. What waits for others, plan and show say.
func (d *decoder) warnOfWaiting(g *fabric.Graph) {
	for _, w := range g.Waiting() {
		missing := map[string][]string{}
		for _, r := range w.For {
			if decl := d.domains[r.Domain]; decl != nil {
				if _, known := decl.nodes[r.Name]; known {
					missing[r.Domain] = append(missing[r.Domain], r.Name)
				}
			}
		}
		for _, domain := range slices.Sorted(maps.Keys(missing)) {
			detail := fmt.Sprintf("Its flows are dropped until then. In domain %q, write: accept %q { services = [%s] }.", domain, w.Contract, quotedList(missing[domain]))
			if accepted, some := d.domains[domain].accepted[w.Contract.String()]; some {
				detail = fmt.Sprintf("Its flows are dropped until then. Add to the services that are accepted at %s: %s.", position(accepted), quotedList(missing[domain]))
			}
			d.report(warningAt(d.domains[w.Contract.Domain].contracts[w.Contract.Name], detail,
				"contract %q waits until domain %q accepts it", w.Contract.Name, domain))
		}
	}
}
