// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"slices"
)

// Unenforced says what of the document no data path can do yet: flows to
// externals are dropped, whatever contract allows them. A sentence each.
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

// Unenforced says what of the graph no data path can do yet, a sentence each.
func (g *Graph) Unenforced() []string {
	var list []string
	x := newIndex(g)
	for _, d := range g.Domains {
		// A contract names externals of its own domain only.
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
