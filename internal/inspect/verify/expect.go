// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package verify compares what every node must enforce with what its data path contains. The former
// follows from the declared graph, the admitted endpoints and the roster (fabric/desired); the
// latter was read back from maps and flows. The package is pure: it calls no server and no node.
package verify

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/wellknown"
)

// Endpoints returns the admissions that are valid at now and not revoked, as the nodes report them,
// ordered by endpoint.
func Endpoints(status api.Status, now time.Time) []fabric.Admission {
	list, _ := sortedOut(status, now)
	return list
}

// Revoked returns the admissions that are valid at now but for a revocation, and why each has no
// rights, by the endpoint.
func Revoked(status api.Status, now time.Time) (list []fabric.Admission, why map[string]string) {
	why = map[string]string{}
	_, list = sortedOut(status, now)
	for _, n := range status.Nodes {
		for _, e := range n.Endpoints {
			if e.Revoked != "" {
				why[e.Endpoint] = e.Revoked
			}
		}
	}
	return list, why
}

func sortedOut(status api.Status, now time.Time) (valid, revoked []fabric.Admission) {
	for _, n := range status.Nodes {
		for _, e := range n.Endpoints {
			list := &valid
			if e.Revoked != "" {
				list = &revoked
			}
			if e.Expires.IsZero() || now.Before(e.Expires) || e.Honoured {
				*list = append(*list, fabric.Admission{
					Endpoint: e.Endpoint, Zone: n.Zone, Node: n.Node, Service: e.Service, Roles: e.Roles,
					IPv4: e.IPv4, IPv6: e.IPv6, Checks: e.Checks, Origin: e.Origin, Expires: e.Expires,
				})
			}
		}
	}
	fabric.SortAdmissions(valid)
	fabric.SortAdmissions(revoked)
	return valid, revoked
}

// Enforcing returns the nodes of a status that have a data path. An engine without a switch has
// none.
func Enforcing(status api.Status) []api.NodeStatus {
	return slices.DeleteFunc(slices.Clone(status.Nodes), func(n api.NodeStatus) bool { return n.NoSwitch })
}

// Topology returns the topology of a fabric: its nodes, the links that its graph declares, and the
// states that its processors report.
func Topology(f Fabric) desired.Topology {
	nodes := Nodes(f.Status)
	return desired.NewTopology(nodes, desired.Tunnels(nodes, f.Graph.Links), states(f.Status))
}

// states returns the states of the processors. What a node reports in a form that nobody writes is
// left out.
func states(status api.Status) []desired.State {
	var list []desired.State
	for _, n := range status.Nodes {
		if n.State == nil {
			continue
		}
		s := desired.State{Processor: n.ID(), Number: n.State.Number, Ready: n.State.Ready, Draining: n.State.Draining}
		for _, text := range n.State.Silent {
			if hop, err := desired.ParseHop(text); err == nil {
				s.Silent = append(s.Silent, hop)
			}
		}
		for _, text := range n.State.Unreached {
			if id, err := fabric.ParseNodeID(text); err == nil {
				s.Unreached = append(s.Unreached, id)
			}
		}
		list = append(list, s)
	}
	return list
}

// Nodes returns the nodes in a status, with what a status tells of them.
func Nodes(status api.Status) []fabric.Node {
	nodes := make([]fabric.Node, 0, len(status.Nodes))
	for _, n := range status.Nodes {
		nodes = append(nodes, fabric.Node{Zone: n.Zone, Name: n.Node, Kind: n.Kind, NoSwitch: n.NoSwitch, Pool4: n.Pool4, Pool6: n.Pool6})
	}
	return nodes
}

// Documents returns the document of every service, without contracts that have expired at now.
func Documents(g *fabric.Graph, now time.Time) map[fabric.Ref]fabric.Document {
	docs := map[fabric.Ref]fabric.Document{}
	for _, d := range fabric.Documents(g) {
		docs[d.Service] = d.At(now)
	}
	return docs
}

// NextExpiry returns when the next contract expires after now, or zero if none does.
func NextExpiry(g *fabric.Graph, now time.Time) time.Time {
	docs := map[fabric.Ref]fabric.Document{}
	for _, d := range fabric.Documents(g) {
		docs[d.Service] = d
	}
	return fabric.NextExpiry(docs, now)
}

// Digests returns, for each node that follows the revision in force, the digest of what it must
// enforce: of a dump without differences.
func Digests(f Fabric) map[fabric.NodeID]string {
	docs, live, topology := Documents(f.Graph, f.Now), Endpoints(f.Status, f.Now), Topology(f)
	digests := map[fabric.NodeID]string{}
	for _, n := range Enforcing(f.Status) {
		if n.Sequence == f.Pointer.Sequence && n.Root == f.Pointer.Root {
			var outside fabric.Outside
			if n.Enforced != nil {
				outside = n.Enforced.Outside
			}
			digests[n.ID()] = expect(n, topology, live, docs, outside).dump().Digest()
		}
	}
	return digests
}

// dump returns a dump that has just what is expected.
func (x expected) dump() api.Dump {
	var d api.Dump
	for _, p := range x.peers {
		d.Peers = append(d.Peers, p)
	}
	for _, e := range x.guarded {
		d.Guarded = append(d.Guarded, e)
	}
	for _, e := range x.externals {
		d.External = append(d.External, e)
	}
	for k, grants := range x.grants {
		for _, g := range grants {
			d.Rules = append(d.Rules, api.DumpRule{From: k.from, To: k.to, Protocol: k.protocol, Ports: g.ports, Exit: g.exit})
		}
	}
	return d
}

// expected is what a data path must contain, in the words of a dump.
type expected struct {
	peers     map[netip.Addr]api.DumpPeer
	guarded   map[netip.Addr]api.DumpEndpoint // by IPv4 address
	externals map[netip.Prefix]api.DumpExternal
	grants    map[pair][]grant
	ways      map[relation]string
}

// relation is who the ways of a dump lead from and to, and for contracts with which path.
type relation struct{ from, to, path string }

func (r relation) String() string {
	if r.path == "" {
		return r.from + " -> " + r.to
	}
	return fmt.Sprintf("%s -> %s (%s)", r.from, r.to, r.path)
}

// sharesText describes the buckets of hops.
func sharesText(shares map[string]string) string {
	var parts []string
	for _, hop := range slices.Sorted(maps.Keys(shares)) {
		parts = append(parts, hop+" "+shares[hop])
	}
	return strings.Join(parts, ", ")
}

// pair is two parties and a protocol.
type pair struct {
	from, to string
	protocol fabric.Protocol
}

type grant struct {
	ports    fabric.PortRange
	contract string
	audit    bool
	exit     fabric.Exit // of eBPF only
	path     string
}

// expect computes what a node must enforce that knows this of the outside.
func expect(n api.NodeStatus, topology desired.Topology, live []fabric.Admission, docs desired.Documents, outside fabric.Outside) expected {
	if n.Kind == fabric.KindProcessor {
		p := desired.ForProcessor(n.ID(), topology, live, docs, outside)
		for i := range p.Rules {
			p.Rules[i].Exit = fabric.ExitZone // a switch carries no others
		}
		x := inWordsOfDumps(p.Endpoints, p.Externals, p.Rules, p.Ways)
		for _, n := range p.Probes {
			for _, a := range []netip.Addr{n.IPv4, n.IPv6} {
				x.peers[a] = api.DumpPeer{Address: a, Identity: desired.Health.String(), Via: n.Via()}
			}
		}
		return x
	}
	w := desired.ForWorkload(n.ID(), topology, live, docs, outside)
	x := inWordsOfDumps(w.Endpoints, w.Externals, w.Rules, w.Ways)
	if w.Host != "" {
		for _, p := range wellknown.HostPrefixes() {
			x.externals[p] = api.DumpExternal{Prefix: p, Identity: w.Host.String(), Out: true}
		}
	}
	return x
}

func inWordsOfDumps(endpoints []desired.Endpoint, externals map[netip.Prefix]desired.External, rules []desired.Rule, ways []desired.Spread) expected {
	x := expected{
		peers: map[netip.Addr]api.DumpPeer{}, guarded: map[netip.Addr]api.DumpEndpoint{},
		externals: map[netip.Prefix]api.DumpExternal{}, grants: map[pair][]grant{}, ways: map[relation]string{},
	}
	for _, s := range ways {
		if shares := desired.Shares(s.Next); len(shares) > 0 {
			x.ways[relation{s.From.String(), s.To.String(), string(s.Class)}] = sharesText(shares)
		}
	}
	for _, e := range endpoints {
		for _, a := range []netip.Addr{e.IPv4, e.IPv6} {
			if a.IsValid() {
				x.peers[a] = api.DumpPeer{Address: a, Identity: e.Party.String(), Via: e.Via()}
			}
		}
		if e.Way == desired.OwnInterface {
			x.guarded[e.IPv4] = api.DumpEndpoint{IPv4: e.IPv4, IPv6: e.IPv6, Identity: e.Party.String(), Checks: e.Checks}
		}
	}
	for prefix, e := range externals {
		x.externals[prefix] = api.DumpExternal{Prefix: prefix, Identity: e.Party.String(), In: e.From, Out: e.Exits != (desired.Exits{})}
	}
	for _, r := range rules {
		for _, rule := range r.Rules {
			k := pair{r.From.String(), r.To.String(), rule.Protocol}
			for _, ports := range rule.Ports {
				x.grants[k] = append(x.grants[k], grant{ports, r.Contract.String(), r.Audit, r.Exit, string(r.Class)})
			}
		}
	}
	return x
}
