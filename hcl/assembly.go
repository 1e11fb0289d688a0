// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"
	"maps"
	"slices"

	hcl2 "github.com/hashicorp/hcl/v2"

	"github.com/sif-project/sif/fabric"
)

// assembly joins what the files of a graph declare, in their order, and checks what depends on
// several blocks: duplicate names, and names that refer to nothing.
type assembly struct {
	*decoder
	graph      *fabric.Graph
	domains    map[string]*domainDecl
	guardrails map[string]hcl2.Range
	bindings   map[string]hcl2.Range
	links      map[string]hcl2.Range
}

// domainDecl is a domain, with the source positions of its declarations.
type domainDecl struct {
	domain    fabric.Domain
	places    []hcl2.Range          // of its blocks
	set       map[string]hcl2.Range // arguments of the domain itself
	nodes     map[string]hcl2.Range // services and externals
	externals map[string]*fabric.External
	contracts map[string]hcl2.Range
	accepted  map[string]hcl2.Range
	declared  []*contractDecl
	accepts   []acceptDecl
}

func assemble(d *decoder, files []declarations) *assembly {
	g := &fabric.Graph{Domains: map[string]*fabric.Domain{}}
	a := &assembly{
		decoder: d, graph: g, domains: map[string]*domainDecl{},
		guardrails: map[string]hcl2.Range{}, bindings: map[string]hcl2.Range{}, links: map[string]hcl2.Range{},
	}
	for _, f := range files {
		a.report(f.diags...)
	}
	for _, f := range files {
		for _, p := range f.domains {
			a.domain(p)
		}
		for _, it := range f.guardrails {
			if a.declares(it, a.guardrails) {
				a.report(it.diags...)
				g.Guardrails = append(g.Guardrails, it.value.(fabric.Guardrail))
			}
		}
		for _, it := range f.bindings {
			if a.declares(it, a.bindings) {
				a.report(it.diags...)
				g.Bindings = append(g.Bindings, it.value.(fabric.Binding))
			}
		}
		for _, it := range f.links {
			if a.declares(it, a.links) {
				a.report(it.diags...)
				g.Links = append(g.Links, it.value.(fabric.LinkRule))
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.domains)) {
		decl := a.domains[name]
		a.resolve(decl)
		g.Domains[name] = &decl.domain
	}
	return a
}

func (a *assembly) domain(p domainPart) {
	if err := fabric.CheckName(p.name); err != nil {
		a.report(errorAt(p.place, "Choose another name for the domain.", "%s", err))
		return
	}
	if p.name == fabric.ReservedDomain {
		a.report(errorAt(p.place, "Choose another name for the domain.", "domain %q is reserved for node identities", p.name))
		return
	}
	decl := a.domains[p.name]
	if decl == nil {
		decl = &domainDecl{
			domain:    fabric.Domain{Name: p.name, Pos: position(p.place)},
			set:       map[string]hcl2.Range{},
			nodes:     map[string]hcl2.Range{},
			externals: map[string]*fabric.External{},
			contracts: map[string]hcl2.Range{},
			accepted:  map[string]hcl2.Range{},
		}
		a.domains[p.name] = decl
	}
	for _, place := range decl.places {
		if place.Filename == p.place.Filename {
			a.report(errorAt(p.place, "Merge the two blocks. A domain may be spread over several files, with one block in each.",
				"domain %q is already declared in this file at %s", p.name, position(place)))
			break
		}
	}
	decl.places = append(decl.places, p.place)
	decl.domain.Contracts = slices.Grow(decl.domain.Contracts, p.contracts)
	a.report(p.diags...)
	for _, it := range p.items {
		a.item(decl, it)
	}
}

// item adds an item to its domain. If the item cannot be added, the problems inside it are not
// reported.
func (a *assembly) item(decl *domainDecl, it item) {
	if !a.fits(decl, it) {
		return
	}
	a.report(it.diags...)
	d := &decl.domain
	switch v := it.value.(type) {
	case string:
		d.Description = v
	case fabric.Labels:
		d.Labels = v
	case fabric.Mode:
		d.Mode = v
	case silent:
		d.Silent = bool(v)
	case fabric.Service:
		d.Services = append(d.Services, v)
	case fabric.External:
		decl.externals[v.Name] = &v
		d.Externals = append(d.Externals, v)
	case *contractDecl:
		decl.declared = append(decl.declared, v)
		d.Contracts = append(d.Contracts, v.Contract)
	case acceptDecl:
		decl.accepts = append(decl.accepts, v)
		d.Accepts = append(d.Accepts, fabric.Accept{Contract: v.contract, Services: values(v.services), Pos: position(v.place)})
	}
}

// fits records the name of an item, and reports whether the item can be added.
func (a *assembly) fits(decl *domainDecl, it item) bool {
	switch it.kind {
	case "argument":
		if first, dup := decl.set[it.name]; dup {
			a.report(errorAt(it.place, "Keep one of the two.", "argument %q of domain %q is already set at %s", it.name, decl.domain.Name, position(first)))
			return false
		}
		decl.set[it.name] = it.place
		return true
	case "accept":
		return a.consents(decl, it)
	case "contract":
		return a.declares(it, decl.contracts)
	}
	return a.declares(it, decl.nodes)
}

func (a *assembly) declares(it item, names map[string]hcl2.Range) bool {
	if err := fabric.CheckName(it.name); err != nil && (it.kind != "binding" || it.name != fabric.EveryDomain) {
		remedy := fmt.Sprintf("Choose another name for the %s.", it.kind)
		if it.kind == "binding" {
			remedy = `Name a domain, or "*" for all that have no binding of their own.`
		}
		a.report(errorAt(it.place, remedy, "%s", err))
		return false
	}
	if it.kind == "binding" && it.name == fabric.ReservedDomain {
		a.report(errorAt(it.place, "Name another domain.", "domain %q is reserved for node identities", it.name))
		return false
	}
	if it.kind == "contract" && it.name == fabric.AuditContract {
		a.report(errorAt(it.place, "Choose another name for the contract.", "contract name %q is reserved for domains in audit mode", it.name))
		return false
	}
	if first, dup := names[it.name]; dup {
		what := "Rename one of the two."
		switch it.kind {
		case "service", "external":
			what = "Services and externals of a domain share one namespace. Rename one of the two."
		case "binding":
			what = "Merge the two blocks."
		}
		a.report(errorAt(it.place, what, "%s %q: the name is already taken at %s", it.kind, it.name, position(first)))
		return false
	}
	names[it.name] = it.place
	return true
}

func (a *assembly) consents(decl *domainDecl, it item) bool {
	contract, err := fabric.ParseRef(it.name)
	if err != nil {
		a.report(errorAt(it.place, `Write the contract as "domain/contract".`, "%s", err))
		return false
	}
	if contract.Domain == decl.domain.Name {
		a.report(errorAt(it.place, "Remove the block.", "contract %q belongs to this domain and needs no consent", contract))
		return false
	}
	if first, dup := decl.accepted[it.name]; dup {
		a.report(errorAt(it.place, "Merge the two blocks.", "contract %q is already accepted at %s", contract, position(first)))
		return false
	}
	decl.accepted[it.name] = it.place
	return true
}

// resolve checks the names in the contracts and accept blocks of a domain.
func (a *assembly) resolve(decl *domainDecl) {
	for _, c := range decl.declared {
		own := false
		external := func(refs []fabric.Ref, written []text) *text {
			var found *text
			for i, r := range refs {
				a.resolveRef(decl, c, r, written[i])
				if r.Domain == decl.domain.Name {
					own = true
					if decl.externals[r.Name] != nil && found == nil {
						found = &written[i]
					}
				}
			}
			return found
		}
		from, to := external(c.Originators, c.originators), external(c.Responders, c.responders)
		if from != nil && to != nil {
			a.report(errorAt(to.rng, "The fabric controls neither end of a flow between externals. Name a service on one of the sides.",
				"contract %q has externals on both sides: %q is an originator at %s", c.Name, from.value, position(from.rng)))
		} else {
			a.resolveExternals(decl, c)
		}
		if !own && !c.broken && len(c.Originators) > 0 && len(c.Responders) > 0 {
			a.report(errorAt(c.place, "Declare it in the domain of one of its services.", "contract %q names no service of its own domain %q", c.Name, decl.domain.Name))
		}
	}
	for _, k := range decl.accepts {
		for _, t := range k.services {
			if _, known := decl.nodes[t.value]; !known || decl.externals[t.value] != nil {
				a.report(errorAt(t.rng, fmt.Sprintf("Domain %q declares no service of that name. %s", decl.domain.Name, nearest(t.value, decl.services())),
					"unknown service %q", t.value))
			}
		}
		if other := a.domains[k.contract.Domain]; other != nil && other.contracts[k.contract.Name] == (hcl2.Range{}) {
			a.report(warningAt(k.place, fmt.Sprintf("Domain %q declares no contract of that name. %s", k.contract.Domain, nearest(k.contract.Name, slices.Collect(maps.Keys(other.contracts)))),
				"the consent to contract %q has no effect", k.contract))
		}
	}
}

// resolveExternals checks whether the externals in a contract can have their roles in it.
func (a *assembly) resolveExternals(decl *domainDecl, c *contractDecl) {
	for i, r := range c.Originators {
		e := decl.externals[r.Name]
		if e == nil || r.Domain != decl.domain.Name {
			continue
		}
		if fault, remedy := e.OriginatorFault(); fault != "" {
			a.report(errorAt(c.originators[i].rng, sentence(remedy), "external %q, declared at %s, %s", e.Name, e.Pos, fault))
		}
	}
	for _, r := range c.Responders {
		e := decl.externals[r.Name]
		if e == nil || r.Domain != decl.domain.Name {
			continue
		}
		for i, rule := range c.Rules {
			if fault, remedy := e.RuleFault(rule); fault != "" {
				a.report(errorAt(c.rules[i], sentence(remedy), "the rule opens what external %q cannot have: %s", e.Name, fault))
			}
		}
	}
}

// services returns the names that accept blocks of the domain may use.
func (decl *domainDecl) services() []string {
	return slices.DeleteFunc(slices.Collect(maps.Keys(decl.nodes)), func(n string) bool { return decl.externals[n] != nil })
}

// nearest is didYouMean with other advice if no name is near.
func nearest(name string, names []string) string {
	if s := didYouMean(name, names); s != "" {
		return s
	}
	return "Declare it, or correct the name."
}

func (a *assembly) resolveRef(decl *domainDecl, c *contractDecl, r fabric.Ref, t text) {
	in := decl
	if r.Domain != decl.domain.Name {
		if in = a.domains[r.Domain]; in == nil {
			return // these files do not declare the domain
		}
	}
	_, known := in.nodes[r.Name]
	switch {
	case !known && in == decl:
		a.report(errorAt(t.rng, fmt.Sprintf("Domain %q declares no service or external of that name. %s", in.domain.Name, nearest(r.Name, slices.Collect(maps.Keys(in.nodes)))),
			"unknown service %q", t.value))
	case !known:
		a.report(warningAt(t.rng, fmt.Sprintf("Domain %q declares no service of that name. %s", in.domain.Name, nearest(r.Name, in.services())),
			"contract %q waits for service %q, which is not declared", c.Name, t.value))
	case in != decl && in.externals[r.Name] != nil:
		a.report(errorAt(t.rng, fmt.Sprintf("Declare an external in domain %q.", decl.domain.Name), "external %q belongs to another domain", t.value))
	}
}

// warnOfWaiting warns of contracts that wait for the consent of a domain in these files. Plan and
// show report the others.
func (a *assembly) warnOfWaiting() {
	for _, w := range a.graph.Waiting() {
		missing := map[string][]string{}
		for _, r := range w.For {
			if decl := a.domains[r.Domain]; decl != nil {
				if _, known := decl.nodes[r.Name]; known {
					missing[r.Domain] = append(missing[r.Domain], r.Name)
				}
			}
		}
		for _, domain := range slices.Sorted(maps.Keys(missing)) {
			detail := fmt.Sprintf("Its flows are dropped until then. In domain %q, write: accept %q { services = [%s] }.", domain, w.Contract, quotedList(missing[domain]))
			if accepted, some := a.domains[domain].accepted[w.Contract.String()]; some {
				detail = fmt.Sprintf("Its flows are dropped until then. Add to the services that are accepted at %s: %s.", position(accepted), quotedList(missing[domain]))
			}
			a.report(warningAt(a.domains[w.Contract.Domain].contracts[w.Contract.Name], detail,
				"contract %q waits until domain %q accepts it", w.Contract.Name, domain))
		}
	}
}

// withBindings returns the domains of the graph that have a binding of their own in these files,
// and the bindings. The graph in force may have bindings of the others.
func (a *assembly) withBindings() *fabric.Graph {
	g := &fabric.Graph{Domains: map[string]*fabric.Domain{}, Bindings: a.graph.Bindings}
	for _, b := range g.Bindings {
		if d := a.graph.Domains[b.Domain]; d != nil {
			g.Domains[b.Domain] = d
		}
	}
	return g
}
