// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import (
	"net/netip"
	"slices"

	"github.com/sif-project/sif/fabric"
)

// addExternals adds who may come from outside the fabric. Prefixes may overlap: a data path looks
// up the longest prefix that contains an address, so the party of a prefix is the set of all
// externals with a prefix that contains it, and has the rights of each.
func (w *Workload) addExternals(own []fabric.Identity, docs Documents) {
	w.Externals = map[netip.Prefix]Party{}
	var grants []fabric.ExternalGrant
	for _, id := range own {
		grants = append(grants, fabric.ExternalGrants(id, docs[id.Service])...)
	}
	type edge struct {
		from, to Party
		contract fabric.Ref
	}
	added := map[edge]bool{}
	for _, prefix := range prefixesOf(grants) {
		var names []fabric.Ref
		var holders []fabric.ExternalGrant
		for _, g := range grants {
			if slices.ContainsFunc(g.Prefixes, func(p netip.Prefix) bool { return contains(p, prefix) }) {
				names = append(names, g.External)
				holders = append(holders, g)
			}
		}
		from := PartyOfExternals(names)
		w.Externals[prefix] = from
		for _, g := range holders {
			to := PartyOf(g.Responder)
			// The same externals may have several prefixes, and be of one contract twice.
			if e := (edge{from, to, g.Contract}); !added[e] {
				added[e] = true
				w.Rules = append(w.Rules, Rule{From: from, To: to, Contract: g.Contract, Rules: g.Rules, Audit: g.Audit})
			}
		}
	}
}

// prefixesOf returns the prefixes that grants name, in their shortest form.
func prefixesOf(grants []fabric.ExternalGrant) []netip.Prefix {
	var list []netip.Prefix
	for _, g := range grants {
		for _, p := range g.Prefixes {
			list = append(list, p.Masked())
		}
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list)
}

// contains reports whether every address of inner is one of outer.
func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}
