// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"slices"
)

// Unenforced lists, one sentence each, what the document declares and no data path can enforce yet:
// flows to externals are dropped, even if a contract allows them.
func (d Document) Unenforced() []string {
	var list []string
	for _, e := range d.Originates {
		for _, p := range e.Peers {
			if p.IsExternal() {
				list = append(list, fmt.Sprintf("contract %s: flows of %s to external %s are not carried yet, so they are dropped", e.Contract, d.Service, p.Name))
			}
		}
	}
	return list
}

// Unenforced lists, one sentence each, what the graph declares and no data path can enforce yet.
func (g *Graph) Unenforced() []string {
	var list []string
	x := newIndex(g)
	for _, d := range g.Domains {
		// A contract may name externals of its own domain only.
		if len(d.Externals) == 0 {
			continue
		}
		external := func(r Ref) bool { return r.Domain == d.Name && x.node(r).external != nil }
		for i := range d.Contracts {
			c := &d.Contracts[i]
			if c.Disabled || !slices.ContainsFunc(c.Responders, external) || len(x.missingConsent(d.Name, c)) > 0 {
				continue
			}
			edge := Edge{Contract: Ref{d.Name, c.Name}, Peers: x.peers(c.Responders)}
			for _, from := range x.peers(c.Originators) {
				if x.node(from.Name).service != nil {
					list = append(list, Document{Service: from.Name, Originates: []Edge{edge}}.Unenforced()...)
				}
			}
		}
	}
	slices.Sort(list)
	return list
}
