// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package verify compares what every node must enforce with what its data path
// really holds. What must be enforced follows from the declared graph, the
// endpoints that were admitted and the nodes there are, by the one rule; what
// is held was read back from maps and flows. It is pure: it asks nobody.
package verify

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// Endpoint is an admitted endpoint and where it lives.
type Endpoint struct {
	api.EndpointStatus
	Zone, Node string
}

// Identity is who it is to policy.
func (e Endpoint) Identity() fabric.Identity {
	return fabric.Identity{Service: e.Service, Roles: e.Roles}
}

// Host is the node that the endpoint runs on.
func (e Endpoint) Host() fabric.NodeID { return fabric.NodeID{Zone: e.Zone, Name: e.Node} }

// Endpoints lists the endpoints whose admission holds at now, by ID.
func Endpoints(status api.Status, now time.Time) []Endpoint {
	var list []Endpoint
	for _, n := range status.Nodes {
		for _, e := range n.Endpoints {
			if e.Expires.IsZero() || now.Before(e.Expires) {
				list = append(list, Endpoint{e, n.Zone, n.Node})
			}
		}
	}
	slices.SortFunc(list, func(a, b Endpoint) int { return strings.Compare(a.Endpoint, b.Endpoint) })
	return list
}

// Processor returns the processor by which a zone is reached and left: its
// first by name. It is zero if the zone has none.
func Processor(status api.Status, zone string) fabric.NodeID {
	var first fabric.NodeID
	for _, n := range status.Nodes {
		if n.Kind == fabric.KindProcessor && n.Zone == zone && (first.IsZero() || n.Node < first.Name) {
			first = n.ID()
		}
	}
	return first
}

// Documents returns every service's document as it holds at now.
func Documents(g *fabric.Graph, now time.Time) map[fabric.Ref]fabric.Document {
	docs := map[fabric.Ref]fabric.Document{}
	for _, d := range fabric.Documents(g) {
		docs[d.Service] = d.At(now)
	}
	return docs
}

// NextExpiry returns when the first contract expires after now; zero if none
// does.
func NextExpiry(g *fabric.Graph, now time.Time) time.Time {
	docs := map[fabric.Ref]fabric.Document{}
	for _, d := range fabric.Documents(g) {
		docs[d.Service] = d
	}
	return fabric.NextExpiry(docs, now)
}

// expected is what a data path should hold.
type expected struct {
	peers     map[netip.Addr]api.DumpPeer
	guarded   map[netip.Addr]api.DumpEndpoint // by IPv4 address
	externals map[netip.Prefix]string
	grants    map[pair][]grant
}

// pair is who may call whom, by keys of identities, over what.
type pair struct {
	from, to string
	protocol fabric.Protocol
}

type grant struct {
	ports    fabric.PortRange
	contract string
	audit    bool
}

func newExpected() expected {
	return expected{
		peers: map[netip.Addr]api.DumpPeer{}, guarded: map[netip.Addr]api.DumpEndpoint{},
		externals: map[netip.Prefix]string{}, grants: map[pair][]grant{},
	}
}

func (x *expected) peer(e Endpoint, via string) {
	for _, a := range []netip.Addr{e.IPv4, e.IPv6} {
		if a.IsValid() {
			x.peers[a] = api.DumpPeer{Address: a, Identity: e.Identity().Key(), Via: via}
		}
	}
}

func (x *expected) rules(from, to string, contract fabric.Ref, audit bool, rules []fabric.Rule) {
	for _, r := range rules {
		k := pair{from, to, r.Protocol}
		for _, p := range r.Ports {
			x.grants[k] = append(x.grants[k], grant{p, contract.String(), audit})
		}
	}
}

func (x *expected) among(local, all []Endpoint, docs map[fabric.Ref]fabric.Document) {
	for _, g := range fabric.GrantsAmong(identities(local), identities(all), docs) {
		x.rules(g.Originator.Key(), g.Responder.Key(), g.Contract, g.Audit, g.Rules)
	}
}

// workload is what a workload node should enforce: its own endpoints, the
// counterparts of those, and the externals that may call them.
func workload(self api.NodeStatus, status api.Status, live []Endpoint, docs map[fabric.Ref]fabric.Document) expected {
	x := newExpected()
	processor := Processor(status, self.Zone).String()
	var local, all []Endpoint
	for _, e := range live {
		if e.Host() == self.ID() {
			local = append(local, e)
			x.peer(e, api.ViaEndpoint)
			x.guarded[e.IPv4] = api.DumpEndpoint{IPv4: e.IPv4, IPv6: e.IPv6, Identity: e.Identity().Key(), Checks: e.Checks}
		}
	}
	all = slices.Clone(local)
	here := identities(local)
	for _, e := range live {
		id := e.Identity()
		concerns := slices.ContainsFunc(here, func(own fabric.Identity) bool {
			doc := docs[own.Service]
			return len(fabric.Grants(own, doc, id)) > 0 || len(fabric.GrantsTo(own, doc, id)) > 0
		})
		switch {
		case e.Host() == self.ID() || !concerns:
		case e.Zone == self.Zone:
			x.peer(e, api.ViaZone)
			all = append(all, e)
		case processor != "":
			x.peer(e, processor)
			all = append(all, e)
		}
	}
	x.among(local, all, docs)
	x.external(here, docs)
	return x
}

// external adds who may come from outside the fabric. An address that belongs
// to several externals has the rights of each.
func (x *expected) external(here []fabric.Identity, docs map[fabric.Ref]fabric.Document) {
	var grants []fabric.ExternalGrant
	for _, id := range here {
		grants = append(grants, fabric.ExternalGrants(id, docs[id.Service])...)
	}
	done := map[string]bool{}
	for _, g := range grants {
		for _, prefix := range g.Prefixes {
			prefix = prefix.Masked()
			if _, known := x.externals[prefix]; known {
				continue
			}
			covers := func(p netip.Prefix) bool { return p.Bits() <= prefix.Bits() && p.Contains(prefix.Addr()) }
			var names []string
			var entitled []fabric.ExternalGrant
			for _, other := range grants {
				if slices.ContainsFunc(other.Prefixes, covers) {
					names = append(names, other.External.String())
					entitled = append(entitled, other)
				}
			}
			slices.Sort(names)
			name := "external " + strings.Join(slices.Compact(names), " ")
			x.externals[prefix] = name
			if done[name] {
				continue
			}
			done[name] = true
			for _, e := range entitled {
				x.rules(name, e.Responder.Key(), e.Contract, e.Audit, e.Rules)
			}
		}
	}
}

// processor is what a switch at a zone's boundary should enforce: it knows
// every endpoint of the fabric, and who of the zone may call whom.
func processor(self api.NodeStatus, status api.Status, live []Endpoint, docs map[fabric.Ref]fabric.Document) expected {
	x := newExpected()
	var local, all []Endpoint
	for _, e := range live {
		via := api.ViaZone
		if e.Zone != self.Zone {
			via = Processor(status, e.Zone).String()
		}
		if via == "" {
			continue // nothing leads there
		}
		x.peer(e, via)
		all = append(all, e)
		if e.Zone == self.Zone {
			local = append(local, e)
		}
	}
	x.among(local, all, docs)
	return x
}

// identities returns the identities of endpoints without repetitions.
func identities(endpoints []Endpoint) []fabric.Identity {
	seen := map[string]bool{}
	var list []fabric.Identity
	for _, e := range endpoints {
		id := e.Identity()
		if key := id.Key(); !seen[key] {
			seen[key] = true
			list = append(list, id)
		}
	}
	return list
}
