// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import (
	"net/netip"
	"slices"

	"github.com/sif-project/sif/fabric"
)

// Endpoint is an endpoint that a data path knows, and the one way by which its packets may come.
type Endpoint struct {
	fabric.Admission
	Party Party
	Way   Way
	// Group and Number say which way its pairs go; see Topology.Route.
	Group  Group
	Number uint8
}

// Spread is by which tunnels the packets from nodes of one group to those of another go.
type Spread struct {
	From, To Group
	Class    Class
	// Next are the hops, by bucket: from a workload node the first processor, from a processor the
	// next one; zero where nothing leads, and all of them if To is of the processor's own zone.
	Next [Buckets]Hop
	// Carried says which buckets the processor carries by the choice that holds. Packets of others
	// come to it only while not everybody knows that choice.
	Carried [Buckets]bool
}

// Rule lets one party open flows to another.
type Rule struct {
	From, To Party
	Contract fabric.Ref
	Rules    []fabric.Rule
	Audit    bool        // flows pass and are reported
	Exit     fabric.Exit // of flows to externals
	Class    Class       // what the flows wish of their ways; of one flow all rules say the same
}

// Workload is what the maps of a workload node must contain.
type Workload struct {
	// Endpoints are those of the node and their counterparts elsewhere.
	Endpoints []Endpoint
	// Externals are the prefixes outside the fabric that the node's endpoints exchange flows with.
	Externals map[netip.Prefix]External
	// Host is the party of the node itself, as its endpoints may call it. It is empty if none may.
	Host  Party
	Rules []Rule
	// Ways are those to the groups and of the classes of the above.
	Ways []Spread
}

// Processor is what the switch at the boundary of a zone must contain.
type Processor struct {
	// Endpoints are those of the zone, and of others those that it needs and something leads to.
	Endpoints []Endpoint
	// Probes are the workload nodes that something leads to: the switch carries probes among their
	// health addresses, and nothing else to or from those.
	Probes []Probed
	// Externals are the prefixes outside the fabric to which flows leave here.
	Externals map[netip.Prefix]External
	Rules     []Rule
	// Ways are those among the groups and of the classes of the above.
	Ways []Spread
	// Sources are the tunnels by which the packets of each other zone's endpoints may come.
	Sources map[string][]Hop
}

// Probed is a node by its health addresses, and the one way by which its probes may come.
type Probed struct {
	Node       fabric.NodeID
	IPv4, IPv6 netip.Addr
	Way        Way
	Group      Group // as of an Endpoint
	Number     uint8
}

// ForWorkload computes what a workload node must enforce. endpoints are the admissions in force
// that the node may know of, its own among them; of the others, those that are no counterparts do
// not appear in the result, nor do those that nothing leads to.
func ForWorkload(self fabric.NodeID, topology Topology, endpoints []fabric.Admission, docs Documents, known fabric.Outside) Workload {
	var own parties
	for _, a := range endpoints {
		if a.Host() == self {
			own.add(a.Identity())
		}
	}
	isCounterpart := CounterpartOf(own.identities, docs)
	var w Workload
	var all parties
	for _, a := range endpoints {
		way, ok := OwnInterface, true
		if a.Host() != self {
			if way, ok = topology.way(self.Zone, a.Zone); !ok || !isCounterpart(a.Identity()) {
				continue
			}
		}
		w.Endpoints = append(w.Endpoints, topology.endpoint(a, all.add(a.Identity()), way))
	}
	w.Rules = rulesAmong(own.identities, all.identities, docs)
	w.Ways = topology.waysOfWorkload(self, w.Endpoints, w.Rules)
	out := newOutside(known)
	for _, id := range own.identities {
		out.addIngress(id, docs[id.Service])
		out.addEgress(id, docs[id.Service])
	}
	externals, rules := out.resolve(topology.HasBoundary(self.Zone))
	host, toHost := out.toNode()
	w.Externals, w.Host, w.Rules = externals, host, slices.Concat(w.Rules, rules, toHost)
	return w
}

// ForProcessor computes what the switch of a processor must enforce: about the endpoints of its
// zone and, of the others that a link leads to, those that the zone needs; see Topology.Needed. It
// knows who of its zone may open flows to whom; if ways of others can lead through the zone, who of
// any zone. Whether endpoints that the zone does not need are among the given ones makes no
// difference.
func ForProcessor(self fabric.NodeID, topology Topology, endpoints []fabric.Admission, docs Documents, known fabric.Outside) Processor {
	p := Processor{Endpoints: make([]Endpoint, 0, len(endpoints))}
	zone := self.Zone
	var own, all parties
	for _, a := range endpoints {
		if a.Zone == zone {
			own.add(a.Identity())
		}
	}
	needed := topology.Needed(zone, own.identities, docs)
	for _, a := range endpoints {
		if a.Zone != zone && !needed.Has(a.Identity()) {
			continue
		}
		way, ok := topology.way(zone, a.Zone)
		if !ok {
			continue
		}
		p.Endpoints = append(p.Endpoints, topology.endpoint(a, all.add(a.Identity()), way))
	}
	p.Probes = topology.probed(zone)
	out := newOutside(known)
	for _, id := range own.identities {
		out.addEgress(id, byZone(docs[id.Service]))
	}
	externals, rules := out.resolve(true)
	judged := own.identities
	if needed.Everything {
		judged = all.identities
	}
	p.Externals, p.Rules = externals, append(rulesAmong(judged, all.identities, docs), rules...)
	p.Ways, p.Sources = topology.waysOfProcessor(self, p)
	return p
}

// parties collects identities without repetitions.
type parties struct {
	seen       map[Party]bool
	identities []fabric.Identity
}

func (s *parties) add(id fabric.Identity) Party {
	p := PartyOf(id)
	if s.seen == nil {
		s.seen = map[Party]bool{}
	}
	if !s.seen[p] {
		s.seen[p] = true
		s.identities = append(s.identities, id)
	}
	return p
}

// rulesAmong applies the one rule to all pairs of identities of which at least one is own.
func rulesAmong(own, all []fabric.Identity, docs Documents) []Rule {
	var rules []Rule
	for _, g := range fabric.GrantsAmong(own, all, docs) {
		rules = append(rules, Rule{
			From: PartyOf(g.Originator), To: PartyOf(g.Responder),
			Contract: g.Contract, Rules: g.Rules, Audit: g.Audit, Class: ClassOf(g.Path),
		})
	}
	return oneClassEach(rules)
}
