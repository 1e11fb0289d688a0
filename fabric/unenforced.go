// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"net/netip"
	"slices"
)

// reservedFor returns the reserved prefix in which all of p lies, and whether there is one of which
// the external reaches nothing in p, because the binding of its domain does not list it.
func (p Peer) reservedFor(prefix netip.Prefix) (reserved netip.Prefix, closed bool) {
	for _, r := range Reserved() {
		if Covers(r, prefix) {
			open := slices.ContainsFunc(p.Listed, func(l netip.Prefix) bool { return Covers(r, l) && l.Overlaps(prefix) })
			return r, !open
		}
	}
	return netip.Prefix{}, false
}

// Unenforced lists, one sentence each, what the document declares without effect: prefixes of
// externals that are reserved and that no binding lists.
func (d Document) Unenforced() []string {
	var list []string
	for _, e := range d.Originates {
		for _, p := range e.Peers {
			for _, prefix := range p.Prefixes {
				if reserved, closed := p.reservedFor(prefix); closed {
					list = append(list, fmt.Sprintf("contract %s: %s reaches nothing in %s of external %s: %s is reserved, and no binding lists it",
						e.Contract, d.Service, prefixText(prefix), p.Name, reserved))
				}
			}
		}
	}
	return list
}

// Unenforced lists, one sentence each, what the graph declares without effect.
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

// ReservedPrefixes returns a problem for each prefix of an external that is reserved and that no
// binding lists, so that the external reaches nothing in it as a responder. Such a graph can be
// applied all the same.
func (g *Graph) ReservedPrefixes() []Problem {
	var list []Problem
	x := newIndex(g)
	for _, d := range g.sortedDomains() {
		responds := map[string]bool{}
		for i := range d.Contracts {
			for _, r := range d.Contracts[i].Responders {
				responds[r.Name] = responds[r.Name] || r.Domain == d.Name
			}
		}
		for i := range d.Externals {
			e := &d.Externals[i]
			if !responds[e.Name] {
				continue
			}
			admitted := x.external(Ref{d.Name, e.Name}, e)
			for _, prefix := range e.within() {
				if reserved, closed := admitted.reservedFor(prefix); closed {
					list = append(list, Problem{
						Pos:     e.Pos,
						Summary: fmt.Sprintf("external %q reaches nothing in %s: %s is reserved", e.Name, prefixText(prefix), reserved),
						Remedy:  fmt.Sprintf("remove it, unless the operators of the fabric list %q in binding %q", prefixText(prefix), d.Name),
					})
				}
			}
		}
	}
	return list
}
