// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"net/netip"
	"slices"
)

// Grant is one permission between two identities: endpoints of Originator may
// open flows to endpoints of Responder on Rules, because of Contract.
type Grant struct {
	Contract   Ref
	Originator Identity
	Responder  Identity
	Rules      []Rule
	Path       Path
}

// Grants applies the one rule to a pair of identities: it returns what
// endpoints of a may open towards endpoints of b. doc is the document of a's
// service. What b may open towards a is Grants(b, docOfB, a).
func Grants(a Identity, doc Document, b Identity) []Grant {
	var grants []Grant
	for _, e := range doc.Originates {
		named := slices.ContainsFunc(e.Peers, func(p Peer) bool { return p.Name == b.Service })
		if named && slices.Contains(a.Roles.Originate, e.Contract) && slices.Contains(b.Roles.Respond, e.Contract) {
			grants = append(grants, Grant{Contract: e.Contract, Originator: a, Responder: b, Rules: e.Rules, Path: e.Path})
		}
	}
	return grants
}

// GrantsTo is Grants seen from the responder: what endpoints of a may open
// towards endpoints of b, where doc is the document of b's service.
func GrantsTo(b Identity, doc Document, a Identity) []Grant {
	var grants []Grant
	for _, e := range doc.Responds {
		named := slices.ContainsFunc(e.Peers, func(p Peer) bool { return p.Name == a.Service })
		if named && slices.Contains(a.Roles.Originate, e.Contract) && slices.Contains(b.Roles.Respond, e.Contract) {
			grants = append(grants, Grant{Contract: e.Contract, Originator: a, Responder: b, Rules: e.Rules, Path: e.Path})
		}
	}
	return grants
}

// ExternalGrant is a permission that a contract gives to addresses outside
// the fabric.
type ExternalGrant struct {
	Contract  Ref
	External  Ref
	Prefixes  []netip.Prefix
	Responder Identity
	Rules     []Rule
}

// ExternalGrants returns what externals may open towards endpoints of b, where
// doc is the document of b's service. An external requests nothing: it holds
// every role that the graph gives it.
func ExternalGrants(b Identity, doc Document) []ExternalGrant {
	var grants []ExternalGrant
	for _, e := range doc.Responds {
		if !slices.Contains(b.Roles.Respond, e.Contract) {
			continue
		}
		for _, p := range e.Peers {
			if p.IsExternal() {
				grants = append(grants, ExternalGrant{Contract: e.Contract, External: p.Name, Prefixes: p.Prefixes, Responder: b, Rules: e.Rules})
			}
		}
	}
	return grants
}

// Allow is the one rule for a single flow: the contract under which an
// endpoint of a may open protocol/port towards an endpoint of b, if there is
// one. doc is the document of a's service.
func Allow(a Identity, doc Document, b Identity, protocol Protocol, port uint16) (Ref, bool) {
	for _, g := range Grants(a, doc, b) {
		if slices.ContainsFunc(g.Rules, func(r Rule) bool { return r.Matches(protocol, port) }) {
			return g.Contract, true
		}
	}
	return Ref{}, false
}

// Counterparts returns the services that may originate to or respond to
// endpoints of id, given the document of its service, in order.
func Counterparts(id Identity, doc Document) []Ref {
	var refs []Ref
	collect := func(edges []Edge, roles []Ref) {
		for _, e := range edges {
			if !slices.Contains(roles, e.Contract) {
				continue
			}
			for _, p := range e.Peers {
				if !p.IsExternal() {
					refs = append(refs, p.Name)
				}
			}
		}
	}
	collect(doc.Originates, id.Roles.Originate)
	collect(doc.Responds, id.Roles.Respond)
	slices.SortFunc(refs, CompareRefs)
	return slices.Compact(refs)
}

// GrantsAmong applies the one rule to every pair of identities of which at
// least one is local; docs holds the documents of the local identities'
// services. It costs as much as there are edges between identities that are
// present, not as there are pairs. The order of the result is not defined.
func GrantsAmong(local, all []Identity, docs map[Ref]Document) []Grant {
	type pair struct {
		contract              Ref
		originator, responder string
	}
	present := map[Ref][]Identity{}
	for _, id := range all {
		present[id.Service] = append(present[id.Service], id)
	}
	var grants []Grant
	seen := map[pair]bool{}
	add := func(gs []Grant) {
		for _, g := range gs {
			k := pair{g.Contract, g.Originator.Key(), g.Responder.Key()}
			if !seen[k] {
				seen[k] = true
				grants = append(grants, g)
			}
		}
	}
	for _, id := range local {
		doc, ok := docs[id.Service]
		if !ok {
			continue // no document, no rights
		}
		for _, service := range Counterparts(id, doc) {
			for _, other := range present[service] {
				add(Grants(id, doc, other))
				add(GrantsTo(id, doc, other))
			}
		}
	}
	return grants
}
