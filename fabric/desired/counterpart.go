// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import (
	"maps"
	"slices"

	"github.com/sif-project/sif/fabric"
)

// Documents are those of the services that matter to a node, as they hold now: see
// fabric.DocumentsAt. A service without a document has no rights.
type Documents = map[fabric.Ref]fabric.Document

// CounterpartOf returns a function that reports whether a contract lets an identity open flows to
// any of the given identities, or answer flows of theirs.
func CounterpartOf(of []fabric.Identity, docs Documents) func(fabric.Identity) bool {
	return counterpartsOf(of, docs).has
}

// counterparts are those of some identities: for each service, what its endpoints must have
// requested to be counterparts. The cost of asking does not depend on how many identities there
// are.
type counterparts map[fabric.Ref]*asked

// asked is what an endpoint must have requested: any of the roles, or nothing.
type asked struct {
	originate, respond map[fabric.Ref]bool
	nothing            bool
}

func counterpartsOf(of []fabric.Identity, docs Documents) counterparts {
	c := counterparts{}
	seen := map[Party]bool{}
	for _, id := range of {
		if p := PartyOf(id); seen[p] {
			continue
		} else {
			seen[p] = true
		}
		doc := docs[id.Service]
		c.add(doc.Originates, id.Roles.Originate, func(a *asked) map[fabric.Ref]bool { return a.respond })
		c.add(doc.Responds, id.Roles.Respond, func(a *asked) map[fabric.Ref]bool { return a.originate })
	}
	return c
}

// add adds the peers of the edges that apply to an identity with these roles. other is the role of
// the peers.
func (c counterparts) add(edges []fabric.Edge, roles []fabric.Ref, other func(*asked) map[fabric.Ref]bool) {
	for _, e := range edges {
		if !e.Unrequested && !slices.Contains(roles, e.Contract) {
			continue
		}
		for _, p := range e.Peers {
			if p.IsExternal() {
				continue
			}
			a := c[p.Name]
			if a == nil {
				a = &asked{originate: map[fabric.Ref]bool{}, respond: map[fabric.Ref]bool{}}
				c[p.Name] = a
			}
			if e.Unrequested {
				a.nothing = true
			} else {
				other(a)[e.Contract] = true
			}
		}
	}
}

func (c counterparts) has(id fabric.Identity) bool {
	a := c[id.Service]
	if a == nil {
		return false
	}
	return a.nothing ||
		slices.ContainsFunc(id.Roles.Originate, func(r fabric.Ref) bool { return a.originate[r] }) ||
		slices.ContainsFunc(id.Roles.Respond, func(r fabric.Ref) bool { return a.respond[r] })
}

// Needed is which endpoints of other zones the processors of a zone must know.
type Needed struct {
	// Everything says that it is all: the ways of others can lead through the zone.
	Everything   bool
	counterparts counterparts
}

// Needed returns which endpoints of other zones a zone needs whose own ones have these identities.
// A switch contains no others, and engines send those of no others to each other.
func (t Topology) Needed(zone string, own []fabric.Identity, docs Documents) Needed {
	if t.CarriesOthers(zone) {
		return Needed{Everything: true}
	}
	return Needed{counterparts: counterpartsOf(own, docs)}
}

// Has reports whether the zone needs endpoints with an identity.
func (n Needed) Has(id fabric.Identity) bool { return n.Everything || n.counterparts.has(id) }

// Services returns the services that the zone needs endpoints of, in order; none if it needs
// everything.
func (n Needed) Services() []fabric.Ref {
	return slices.SortedFunc(maps.Keys(n.counterparts), fabric.CompareRefs)
}
