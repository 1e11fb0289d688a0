// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"net/netip"
	"slices"
)

// Grant is a permission between two identities: endpoints of Originator may open flows to endpoints
// of Responder on Rules, because of Contract.
type Grant struct {
	Contract   Ref
	Originator Identity
	Responder  Identity
	Rules      []Rule
	Path       Path
	Audit      bool // flows pass and are reported
}

// applies reports whether the edge applies to a pair of identities whose services it names: both
// must have requested their role.
func (e Edge) applies(originator, responder Identity) bool {
	return e.Unrequested ||
		slices.Contains(originator.Roles.Originate, e.Contract) && slices.Contains(responder.Roles.Respond, e.Contract)
}

func (e Edge) names(service Ref) bool {
	return slices.ContainsFunc(e.Peers, func(p Peer) bool { return p.Name == service })
}

func (e Edge) grant(originator, responder Identity) Grant {
	return Grant{Contract: e.Contract, Originator: originator, Responder: responder, Rules: e.Rules, Path: e.Path, Audit: e.Audit}
}

// Grants applies the one rule to a pair of identities: it returns what endpoints of a may open to
// endpoints of b. doc is the document of a's service. For the other direction call Grants(b,
// docOfB, a).
func Grants(a Identity, doc Document, b Identity) []Grant {
	var grants []Grant
	for _, e := range doc.Originates {
		if e.names(b.Service) && e.applies(a, b) {
			grants = append(grants, e.grant(a, b))
		}
	}
	return grants
}

// GrantsTo is Grants from the responder's side: it returns what endpoints of a may open to
// endpoints of b, where doc is the document of b's service.
func GrantsTo(b Identity, doc Document, a Identity) []Grant {
	var grants []Grant
	for _, e := range doc.Responds {
		if e.names(a.Service) && e.applies(a, b) {
			grants = append(grants, e.grant(a, b))
		}
	}
	return grants
}

// ExternalGrant is a permission of addresses outside the fabric to open flows to endpoints of
// Responder.
type ExternalGrant struct {
	Contract  Ref
	External  Ref
	Prefixes  []netip.Prefix
	Responder Identity
	Rules     []Rule
	Audit     bool
}

// ExternalGrants returns what externals may open to endpoints of b, where doc is the document of
// b's service. An external requests nothing: it has every role that the graph gives it.
func ExternalGrants(b Identity, doc Document) []ExternalGrant {
	var grants []ExternalGrant
	for _, e := range doc.Responds {
		if !slices.Contains(b.Roles.Respond, e.Contract) {
			continue
		}
		for _, p := range e.Peers {
			if len(p.Prefixes) > 0 {
				grants = append(grants, ExternalGrant{Contract: e.Contract, External: p.Name, Prefixes: p.Prefixes, Responder: b, Rules: e.Rules, Audit: e.Audit})
			}
		}
	}
	return grants
}

// Verdict is the result of the one rule for a single flow.
type Verdict struct {
	Allowed  bool
	Contract Ref  // that allows it
	Audit    bool // it passes only because of audit mode
}

// Decide applies the one rule to a single flow: may an endpoint of a open protocol and port to an
// endpoint of b? doc is the document of a's service as of now; see Document.At. A contract that
// enforces takes precedence over one in audit mode.
func Decide(a Identity, doc Document, b Identity, protocol Protocol, port uint16) Verdict {
	var v Verdict
	for _, g := range Grants(a, doc, b) {
		matches := slices.ContainsFunc(g.Rules, func(r Rule) bool { return r.Matches(protocol, port) })
		if matches && (!v.Allowed || v.Audit && !g.Audit) {
			v = Verdict{Allowed: true, Contract: g.Contract, Audit: g.Audit}
		}
	}
	return v
}

// Allow is Decide for callers that do not need to know about audit mode.
func Allow(a Identity, doc Document, b Identity, protocol Protocol, port uint16) (Ref, bool) {
	v := Decide(a, doc, b, protocol, port)
	return v.Contract, v.Allowed
}

// Counterparts returns the services that endpoints of id may open flows to or accept flows from,
// given the document of its service, in order.
func Counterparts(id Identity, doc Document) []Ref {
	var refs []Ref
	collect := func(edges []Edge, roles []Ref) {
		for _, e := range edges {
			if !e.Unrequested && !slices.Contains(roles, e.Contract) {
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

// GrantsAmong applies the one rule to every pair of identities of which at least one is local. docs
// are the documents of the services of local. The cost is proportional to the edges between
// identities that are present, not to the number of pairs. The result is not ordered.
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
			continue // without a document it has no rights
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
