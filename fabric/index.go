// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import "slices"

// index finds by name what a graph declares. It is made for one walk over the
// graph, because the graph may change afterwards.
type index struct {
	graph   *Graph
	nodes   map[Ref]node
	accepts map[consent][]Accept
}

// node is a service or an external.
type node struct {
	service  *Service
	external *External
}

// consent is a contract as one domain may accept it.
type consent struct {
	domain   string
	contract Ref
}

func newIndex(g *Graph) *index {
	x := &index{graph: g, nodes: map[Ref]node{}, accepts: map[consent][]Accept{}}
	for name, d := range g.Domains {
		// Of several things with one name, which Check reports, the first counts.
		for i := range d.Services {
			x.add(Ref{name, d.Services[i].Name}, node{service: &d.Services[i]})
		}
		for i := range d.Externals {
			x.add(Ref{name, d.Externals[i].Name}, node{external: &d.Externals[i]})
		}
		for _, a := range d.Accepts {
			k := consent{name, a.Contract}
			x.accepts[k] = append(x.accepts[k], a)
		}
	}
	return x
}

func (x *index) add(r Ref, n node) {
	if _, taken := x.nodes[r]; !taken {
		x.nodes[r] = n
	}
}

// hasLabels reports whether LabelsOf(r) has all of want.
func (x *index) hasLabels(r Ref, want Labels) bool {
	if len(want) == 0 {
		return true
	}
	var own, domain Labels
	if d := x.graph.Domains[r.Domain]; d != nil {
		domain = d.Labels
	}
	switch n := x.nodes[r]; {
	case n.service != nil:
		own = n.service.Labels
	case n.external != nil:
		own = n.external.Labels
	}
	for k, v := range want {
		have, ok := own[k]
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

// missingConsent returns the services of other domains that a contract names
// without their domain's consent.
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
	return x.nodes[service].service != nil &&
		slices.ContainsFunc(x.accepts[consent{service.Domain, contract}], func(a Accept) bool {
			return len(a.Services) == 0 || slices.Contains(a.Services, service.Name)
		})
}
