// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import "slices"

// index finds declarations of a graph by name. It is made for a single pass over the graph, because
// the graph may change afterwards. A domain is indexed on first use, because most passes need few
// of them.
type index struct {
	graph    *Graph
	domains  map[string]*members
	bindings map[string]*Binding // by domain; nil: not used yet
	admitted map[Ref]Peer        // externals as bindings admit them; filled on first use
}

// members are the declarations of a domain that others may name.
type members struct {
	nodes   map[string]node
	accepts map[Ref][]Accept // by contract
}

// node is a service or an external.
type node struct {
	service  *Service
	external *External
}

func newIndex(g *Graph) *index {
	return &index{graph: g, domains: map[string]*members{}, admitted: map[Ref]Peer{}}
}

// in returns the members of a domain, or empty members if there is no such domain.
func (x *index) in(domain string) *members {
	m := x.domains[domain]
	if m != nil {
		return m
	}
	m = &members{}
	x.domains[domain] = m
	d := x.graph.Domains[domain]
	if d == nil {
		return m
	}
	m.nodes, m.accepts = make(map[string]node, len(d.Services)+len(d.Externals)), make(map[Ref][]Accept, len(d.Accepts))
	add := func(name string, n node) {
		if _, taken := m.nodes[name]; !taken { // Check reports duplicates
			m.nodes[name] = n
		}
	}
	for i := range d.Services {
		add(d.Services[i].Name, node{service: &d.Services[i]})
	}
	for i := range d.Externals {
		add(d.Externals[i].Name, node{external: &d.Externals[i]})
	}
	for _, a := range d.Accepts {
		m.accepts[a.Contract] = append(m.accepts[a.Contract], a)
	}
	return m
}

// node returns the service or external that r names.
func (x *index) node(r Ref) node { return x.in(r.Domain).nodes[r.Name] }

// external returns what bindings admit of the external that r names.
func (x *index) external(r Ref, e *External) Peer {
	p, known := x.admitted[r]
	if !known {
		p = x.binding(r.Domain).external(r, e)
		x.admitted[r] = p
	}
	return p
}

// hasLabels reports whether LabelsOf(r) contains all of want.
func (x *index) hasLabels(r Ref, want Labels) bool {
	if len(want) == 0 {
		return true
	}
	var own, domain Labels
	if d := x.graph.Domains[r.Domain]; d != nil {
		domain = d.Labels
	}
	switch n := x.node(r); {
	case n.service != nil:
		own = n.service.Labels
	case n.external != nil:
		own = n.external.Labels
	}
	b := x.binding(r.Domain)
	for k, v := range want {
		have, ok := b.label(r.Name, k)
		if !ok {
			have, ok = own[k]
		}
		if !ok {
			have = domain[k]
		}
		switch k {
		case "domain":
			have = r.Domain
		case "name":
			have = r.Name
		}
		if have != v {
			return false
		}
	}
	return true
}

// missingConsent returns the services of other domains that a contract names and whose domain has
// not consented.
func (x *index) missingConsent(domain string, c *Contract) []Ref {
	var missing []Ref
	for _, refs := range [][]Ref{c.Originators, c.Responders} {
		for _, r := range refs {
			if r.Domain != domain && !x.consents(r, Ref{domain, c.Name}) {
				missing = append(missing, r)
			}
		}
	}
	slices.SortFunc(missing, CompareRefs)
	return slices.Compact(missing)
}

func (x *index) consents(service, contract Ref) bool {
	return x.node(service).service != nil &&
		slices.ContainsFunc(x.in(service.Domain).accepts[contract], func(a Accept) bool {
			return len(a.Services) == 0 || slices.Contains(a.Services, service.Name)
		})
}
