// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
)

// at is the time of the tests.
var at = time.Unix(1000, 0)

// world is a fabric as DESIGN.md describes it: a graph, nodes, endpoints. Everything below that is
// called naive is computed from it alone, one flow at a time, without documents, parties or grants.
type world struct {
	graph     *fabric.Graph
	nodes     []fabric.Node
	endpoints []fabric.Admission
	outside   fabric.Outside
}

// verdict is what becomes of a flow.
type verdict struct{ allowed, audited bool }

// naiveEnabled reports whether a contract takes part at all (DESIGN.md sections 2 and 3).
func (w world) naiveEnabled(d *fabric.Domain, c fabric.Contract) bool {
	if c.Disabled || !c.Expires.IsZero() && !c.Expires.After(at) {
		return false
	}
	for _, end := range append(slices.Clone(c.Originators), c.Responders...) {
		if end.Domain == d.Name {
			continue
		}
		accepted := false
		for _, a := range w.graph.Domains[end.Domain].Accepts {
			accepted = accepted || a.Contract == (fabric.Ref{Domain: d.Name, Name: c.Name}) &&
				(len(a.Services) == 0 || slices.Contains(a.Services, end.Name))
		}
		if !accepted {
			return false
		}
	}
	return true
}

// naiveFlow is the one rule of DESIGN.md section 2 for a flow between two endpoints.
func (w world) naiveFlow(src, dst fabric.Admission, protocol fabric.Protocol, port uint16) verdict {
	var v verdict
	for _, d := range w.graph.Domains {
		for _, c := range d.Contracts {
			name := fabric.Ref{Domain: d.Name, Name: c.Name}
			if !w.naiveEnabled(d, c) || !naiveOpens(c, protocol, port) ||
				!slices.Contains(c.Originators, src.Service) || !slices.Contains(c.Responders, dst.Service) ||
				!slices.Contains(src.Roles.Originate, name) || !slices.Contains(dst.Roles.Respond, name) {
				continue
			}
			v.add(c.Mode)
		}
	}
	if d := w.graph.Domains[src.Service.Domain]; d.Mode == fabric.ModeAudit && src.Service.Domain == dst.Service.Domain {
		v.add(fabric.ModeAudit)
	}
	return v
}

// naiveVisit is the same for a flow from an address outside the fabric.
func (w world) naiveVisit(src netip.Addr, dst fabric.Admission, protocol fabric.Protocol, port uint16) verdict {
	var v verdict
	if slices.ContainsFunc(w.outside.Ranges, func(r netip.Prefix) bool { return r.Contains(src) }) {
		return v // an address of the fabric is never an external's
	}
	for _, d := range w.graph.Domains {
		for _, c := range d.Contracts {
			if !w.naiveEnabled(d, c) || !naiveOpens(c, protocol, port) || !slices.Contains(c.Responders, dst.Service) ||
				!slices.Contains(dst.Roles.Respond, fabric.Ref{Domain: d.Name, Name: c.Name}) {
				continue
			}
			for _, x := range d.Externals {
				if !slices.Contains(c.Originators, fabric.Ref{Domain: d.Name, Name: x.Name}) {
					continue
				}
				for _, p := range x.Prefixes {
					if p.Contains(src) {
						v.add(c.Mode)
					}
				}
			}
		}
	}
	return v
}

// naiveTrip is the same for a flow to an address outside the fabric, and says by which exits it may
// leave.
func (w world) naiveTrip(src fabric.Admission, dst netip.Addr, protocol fabric.Protocol, port uint16) (v verdict, exits Exits) {
	for _, r := range w.outside.Ranges {
		if r.Contains(dst) {
			return v, exits
		}
	}
	for _, d := range w.graph.Domains {
		for _, c := range d.Contracts {
			name := fabric.Ref{Domain: d.Name, Name: c.Name}
			if !w.naiveEnabled(d, c) || !naiveOpens(c, protocol, port) || !slices.Contains(c.Originators, src.Service) ||
				!slices.Contains(src.Roles.Originate, name) {
				continue
			}
			for _, x := range d.Externals {
				if !slices.Contains(c.Responders, fabric.Ref{Domain: d.Name, Name: x.Name}) || !w.naiveHas(src.Service, x, dst) {
					continue
				}
				v.add(c.Mode)
				byNode := x.Exit == fabric.ExitNode || !slices.ContainsFunc(w.nodes, func(n fabric.Node) bool { return n.Zone == src.Zone && n.Kind == fabric.KindProcessor })
				exits.Node, exits.Zone = exits.Node || byNode, exits.Zone || !byNode
			}
		}
	}
	return v, exits
}

// naiveHas reports whether an external has an address for a service that asked for names.
func (w world) naiveHas(asker fabric.Ref, x fabric.External, a netip.Addr) bool {
	for _, r := range append(fabric.Reserved(), w.outside.Reserved...) {
		listed := false
		for _, b := range w.graph.Bindings {
			for _, o := range b.Outside {
				for _, l := range o.Prefixes {
					listed = listed || l.Contains(a) && r.Bits() <= l.Bits() && r.Contains(l.Addr())
				}
			}
		}
		if r.Contains(a) && !listed {
			return false
		}
	}
	for _, p := range x.Prefixes {
		if p.Contains(a) {
			return true
		}
	}
	for _, n := range w.outside.Named {
		for _, pattern := range x.Names {
			matches := pattern == n.Name || pattern == "*.example.com" && n.Name == "api.example.com"
			if matches && n.Service == asker && slices.Contains(n.Addresses, a) {
				return true
			}
		}
	}
	if x.Consul == nil {
		return false
	}
	for _, r := range w.outside.Registered {
		if r.Service == x.Consul.Service && r.Datacenter == x.Consul.Datacenter && slices.Contains(r.Addresses, a) {
			for _, p := range x.Consul.Within {
				if p.Contains(a) {
					return true
				}
			}
		}
	}
	return false
}

// add is one more reason to let a flow pass. One that enforces wins over audit mode.
func (v *verdict) add(m fabric.Mode) {
	audit := m == fabric.ModeAudit
	*v = verdict{true, audit && (!v.allowed || v.audited)}
}

func naiveOpens(c fabric.Contract, protocol fabric.Protocol, port uint16) bool {
	for _, r := range c.Rules {
		for _, p := range r.Ports {
			if r.Protocol == protocol && p.From <= port && port <= p.To {
				return true
			}
		}
	}
	return false
}

// naiveWay follows DESIGN.md section 5: straight on one node, by the zone's link within a zone,
// else by the processors of both zones, if both have one. Which of them is another test's.
func (w world) naiveWay(from fabric.NodeID, a fabric.Admission) string {
	switch {
	case a.Host() == from:
		return "endpoint"
	case a.Zone == from.Zone:
		return "zone"
	}
	bounded := func(zone string) bool {
		return slices.ContainsFunc(w.nodes, func(n fabric.Node) bool { return n.Kind == fabric.KindProcessor && n.Zone == zone })
	}
	if !bounded(from.Zone) || !bounded(a.Zone) {
		return ""
	}
	return ByWays.String()
}

func flows(do func(protocol fabric.Protocol, port uint16)) {
	for _, protocol := range []fabric.Protocol{fabric.TCP, fabric.UDP} {
		for port := uint16(1); port < 5; port++ {
			do(protocol, port)
		}
	}
}

// decide looks a flow up as a data path does: by parties, protocol and port.
func decide(rules []Rule, from, to Party, protocol fabric.Protocol, port uint16) verdict {
	var v verdict
	for _, r := range rules {
		if r.From != from || r.To != to {
			continue
		}
		for _, rule := range r.Rules {
			if !rule.Matches(protocol, port) {
				continue
			}
			v = verdict{true, r.Audit && (!v.allowed || v.audited)}
		}
	}
	return v
}

func byID(endpoints []Endpoint) map[string]Endpoint {
	m := map[string]Endpoint{}
	for _, e := range endpoints {
		m[e.Admission.Endpoint] = e
	}
	return m
}

func (w world) documents() Documents {
	docs := Documents{}
	for _, d := range fabric.Documents(w.graph) {
		docs[d.Service] = d.At(at)
	}
	return docs
}

func (w world) topology() Topology { return NewTopology(w.nodes, FullMesh(w.nodes), nil) }

func TestWorkloadAgreesWithTheDesign(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		for _, n := range w.nodes {
			if n.Kind == fabric.KindWorkload {
				w.checkWorkload(t, n.ID())
			}
		}
	})
}

func (w world) checkWorkload(t *rapid.T, self fabric.NodeID) {
	// A node reads the documents of its own services only.
	docs := w.documents()
	for service := range docs {
		if !slices.ContainsFunc(w.endpoints, func(a fabric.Admission) bool { return a.Host() == self && a.Service == service }) {
			delete(docs, service)
		}
	}
	got := ForWorkload(self, w.topology(), w.endpoints, docs, w.outside)
	have := byID(got.Endpoints)
	must.MapLen(t, len(got.Endpoints), have)
	present := map[Party]bool{}
	for _, a := range w.endpoints {
		way := w.naiveWay(self, a)
		known := a.Host() == self || way != "" && w.naiveCounterpart(func(own fabric.Admission) bool { return own.Host() == self }, a)
		e, is := have[a.Endpoint]
		must.Eq(t, known, is, must.Sprintf("%s on %s", a.Endpoint, self))
		if is {
			must.Eq(t, way, e.Way.String())
			present[e.Party] = true
		}
	}
	for _, own := range w.endpoints {
		if own.Host() != self {
			continue
		}
		for _, other := range w.endpoints {
			e, known := have[other.Endpoint]
			flows(func(protocol fabric.Protocol, port uint16) {
				out, in := w.naiveFlow(own, other, protocol, port), w.naiveFlow(other, own, protocol, port)
				if !known {
					if w.naiveWay(self, other) != "" {
						must.False(t, out.allowed || in.allowed)
					}
					return
				}
				must.Eq(t, out, decide(got.Rules, have[own.Endpoint].Party, e.Party, protocol, port))
				must.Eq(t, in, decide(got.Rules, e.Party, have[own.Endpoint].Party, protocol, port))
			})
		}
		for _, visitor := range visitors {
			external := longest(got.Externals, visitor)
			flows(func(protocol fabric.Protocol, port uint16) {
				visit := w.naiveVisit(visitor, own, protocol, port)
				must.Eq(t, visit, decide(got.Rules, external.Party, have[own.Endpoint].Party, protocol, port))
				must.True(t, !visit.allowed || external.From)
				trip, exits := w.naiveTrip(own, visitor, protocol, port)
				must.Eq(t, trip, decide(got.Rules, have[own.Endpoint].Party, external.Party, protocol, port), must.Sprint(visitor))
				must.Eq(t, exits, exitsOf(got.Rules, have[own.Endpoint].Party, external.Party, protocol, port))
				must.True(t, (!exits.Node || external.Exits.Node) && (!exits.Zone || external.Exits.Zone))
			})
		}
	}
	for _, x := range got.Externals {
		present[x.Party] = true
	}
	w.checkRules(t, got.Rules, present)
	checkNested(t, got)
}

// checkNested checks that a prefix has at least the rights of those around it, unless one that is
// withheld is between: a judge that knows just the withheld ones needs no longest match.
func checkNested(t *rapid.T, got Workload) {
	between := func(outer, inner netip.Prefix) bool {
		for p, x := range got.Externals {
			if x.Withheld && p != outer && fabric.Covers(outer, p) && fabric.Covers(p, inner) {
				return true
			}
		}
		return false
	}
	for outer, wide := range got.Externals {
		for inner, narrow := range got.Externals {
			if inner == outer || !fabric.Covers(outer, inner) || between(outer, inner) {
				continue
			}
			for _, e := range got.Endpoints {
				flows(func(protocol fabric.Protocol, port uint16) {
					must.True(t, !decide(got.Rules, e.Party, wide.Party, protocol, port).allowed || decide(got.Rules, e.Party, narrow.Party, protocol, port).allowed,
						must.Sprint(e.Party, outer, inner, protocol, port))
				})
			}
		}
	}
}

// exitsOf looks up by which exits a flow may leave.
func exitsOf(rules []Rule, from, to Party, protocol fabric.Protocol, port uint16) (exits Exits) {
	for _, r := range rules {
		if r.From == from && r.To == to && to.External() && slices.ContainsFunc(r.Rules, func(r fabric.Rule) bool { return r.Matches(protocol, port) }) {
			exits.Node, exits.Zone = exits.Node || r.Exit == fabric.ExitNode, exits.Zone || r.Exit == fabric.ExitZone
		}
	}
	return exits
}

// naiveCounterpart reports whether any flow between a and one of certain endpoints is allowed.
func (w world) naiveCounterpart(of func(fabric.Admission) bool, a fabric.Admission) bool {
	is := false
	for _, own := range w.endpoints {
		if of(own) {
			flows(func(protocol fabric.Protocol, port uint16) {
				is = is || w.naiveFlow(own, a, protocol, port).allowed || w.naiveFlow(a, own, protocol, port).allowed
			})
		}
	}
	return is
}

// checkRules checks that nothing stands in the rules that cannot be of use: rules of parties that
// are not there, and the same rule twice.
func (w world) checkRules(t *rapid.T, rules []Rule, present map[Party]bool) {
	seen := map[string]bool{}
	for _, r := range rules {
		must.True(t, present[r.From] && present[r.To], must.Sprintf("%+v", r))
		key := fmt.Sprint(r.From, "|", r.To, "|", r.Contract, "|", r.Exit)
		must.False(t, seen[key], must.Sprint(key))
		seen[key] = true
	}
}

func TestProcessorAgreesWithTheDesign(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		for _, n := range w.nodes {
			if n.Kind == fabric.KindProcessor {
				w.checkProcessor(t, n)
			}
		}
	})
}

func (w world) checkProcessor(t *rapid.T, self fabric.Node) {
	got := ForProcessor(self.ID(), w.topology(), w.endpoints, w.documents(), w.outside)
	have := byID(got.Endpoints)
	must.MapLen(t, len(got.Endpoints), have)
	present := map[Party]bool{}
	for _, a := range w.endpoints {
		way := w.naiveWay(self.ID(), a)
		needed := a.Zone == self.Zone || w.naiveCounterpart(func(own fabric.Admission) bool { return own.Zone == self.Zone }, a)
		e, is := have[a.Endpoint]
		must.Eq(t, needed && way != "", is)
		if is {
			must.Eq(t, way, e.Way.String())
			present[e.Party] = true
		}
	}
	probes := map[fabric.NodeID]Probed{}
	for _, p := range got.Probes {
		probes[p.Node] = p
	}
	must.MapLen(t, len(got.Probes), probes)
	for _, n := range w.nodes {
		want := ""
		if n.Kind == fabric.KindWorkload {
			want = w.naiveWay(self.ID(), fabric.Admission{Zone: n.Zone, Node: n.Name})
		}
		p, is := probes[n.ID()]
		must.Eq(t, want != "", is, must.Sprint(n.ID()))
		if is {
			must.Eq(t, want, p.Way.String())
			must.Eq(t, []netip.Addr{n.Health4(), n.Health6()}, []netip.Addr{p.IPv4, p.IPv6})
		}
	}
	// A processor is asked about every flow that crosses its switch; one between two other zones
	// does not, and an identity that is at home elsewhere too is judged at its own boundary as
	// well.
	local := map[Party]bool{}
	for _, a := range w.endpoints {
		if a.Zone == self.Zone {
			local[have[a.Endpoint].Party] = true
		}
	}
	for _, a := range w.endpoints {
		for _, b := range w.endpoints {
			from, ok1 := have[a.Endpoint]
			to, ok2 := have[b.Endpoint]
			if !ok1 || !ok2 {
				continue
			}
			flows(func(protocol fabric.Protocol, port uint16) {
				want := verdict{}
				if local[from.Party] || local[to.Party] {
					want = w.naiveFlow(a, b, protocol, port)
				}
				must.Eq(t, want, decide(got.Rules, from.Party, to.Party, protocol, port))
			})
		}
	}
	for _, own := range w.endpoints {
		for _, visitor := range visitors {
			external := longest(got.Externals, visitor)
			flows(func(protocol fabric.Protocol, port uint16) {
				want := verdict{}
				if own.Zone == self.Zone {
					// Only what leaves here; an external of the nodes allows nothing here.
					for _, d := range w.graph.Domains {
						for i := range d.Externals {
							keep := d.Externals[i]
							if keep.Exit == fabric.ExitNode {
								d.Externals[i].Prefixes, d.Externals[i].Names, d.Externals[i].Consul = nil, nil, nil
							}
							defer func() { d.Externals[i] = keep }()
						}
					}
					want, _ = w.naiveTrip(own, visitor, protocol, port)
				}
				e, known := have[own.Endpoint]
				if known && own.Zone == self.Zone {
					must.Eq(t, want, decide(got.Rules, e.Party, external.Party, protocol, port), must.Sprint(visitor))
				}
				must.Eq(t, verdict{}, decide(got.Rules, external.Party, e.Party, protocol, port))
			})
		}
	}
	for _, x := range got.Externals {
		present[x.Party] = true
	}
	w.checkRules(t, got.Rules, present)
}

// longest looks an address up as the data path does.
func longest(externals map[netip.Prefix]External, a netip.Addr) (found External) {
	bits := -1
	for p, x := range externals {
		if p.Contains(a) && p.Bits() > bits {
			bits, found = p.Bits(), x
		}
	}
	return found
}

var visitors = []netip.Addr{
	netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("198.51.100.7"),
	netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("169.254.169.254"),
	netip.MustParseAddr("169.254.7.7"), netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("100.64.1.1"), netip.MustParseAddr("fe80::9"),
}

var prefixes = []netip.Prefix{
	netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("203.0.113.9/29"), netip.MustParsePrefix("203.0.113.9/32"),
	netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("0.0.0.0/0"),
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("169.254.169.254/32"), netip.MustParsePrefix("10.0.0.0/29"),
}

// drawWorld draws a small fabric in which services meet often: two domains, three zones with none
// to two processors, endpoints with some of the roles that exist, whether the graph gives them to
// their service or not.
func drawWorld(t *rapid.T) world {
	w := world{graph: &fabric.Graph{Domains: map[string]*fabric.Domain{}}, outside: fabric.Outside{
		Ranges: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}, Reserved: []netip.Prefix{netip.MustParsePrefix("10.0.0.5/32")},
	}}
	services := []fabric.Ref{ref("a/s0"), ref("a/s1"), ref("a/s2"), ref("b/s0")}
	drawDomain(t, w.graph, "a", services)
	drawDomain(t, w.graph, "b", services)
	if rapid.Bool().Draw(t, "bound") {
		listed := rapid.SliceOfN(rapid.SampledFrom([]netip.Prefix{
			netip.MustParsePrefix("169.254.169.254/32"), netip.MustParsePrefix("169.254.7.0/24"), netip.MustParsePrefix("10.0.0.5/32"), netip.MustParsePrefix("10.0.0.4/30"),
		}), 0, 3).Draw(t, "listed")
		all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
		w.graph.Bindings = []fabric.Binding{{Domain: fabric.EveryDomain, Outside: []fabric.OutsideGrants{{Prefixes: append(all, listed...)}}}}
	}
	for range rapid.IntRange(0, 4).Draw(t, "named") {
		w.outside.Named = append(w.outside.Named, fabric.Named{
			Service:   rapid.SampledFrom(services).Draw(t, "asker"),
			Name:      rapid.SampledFrom([]string{"example.com", "api.example.com", "other.example.net"}).Draw(t, "name"),
			Addresses: rapid.SliceOfN(rapid.SampledFrom(visitors), 1, 3).Draw(t, "addresses"),
		})
	}
	for _, dc := range []string{"", "dc1"} {
		w.outside.Registered = append(w.outside.Registered, fabric.Registered{
			Service: "sql", Datacenter: dc, Addresses: rapid.SliceOfN(rapid.SampledFrom(visitors), 0, 3).Draw(t, "registered"),
		})
	}
	for _, zone := range []string{"z1", "z2", "z3"} {
		for i := range rapid.IntRange(0, 2).Draw(t, "processors") {
			w.nodes = append(w.nodes, fabric.Node{Zone: zone, Name: fmt.Sprintf("p%d", 2-i), Kind: fabric.KindProcessor})
		}
	}
	hosts := []fabric.NodeID{{Zone: "z1", Name: "w1"}, {Zone: "z1", Name: "w2"}, {Zone: "z2", Name: "w1"}, {Zone: "z3", Name: "w1"}}
	for _, h := range hosts {
		n := fabric.Node{Zone: h.Zone, Name: h.Name, Kind: fabric.KindWorkload}
		n.Pool4, n.Pool6 = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(len(w.nodes))}), 24), netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 7: byte(len(w.nodes))}), 64)
		w.nodes = append(w.nodes, n)
	}
	var contracts []fabric.Ref
	for _, name := range []string{"a", "b"} {
		for _, c := range w.graph.Domains[name].Contracts {
			contracts = append(contracts, fabric.Ref{Domain: name, Name: c.Name})
		}
	}
	some := func(label string) (list []fabric.Ref) {
		for _, c := range contracts {
			if rapid.IntRange(0, 3).Draw(t, label) > 0 {
				list = append(list, c)
			}
		}
		return list
	}
	for i := range rapid.IntRange(0, 6).Draw(t, "endpoints") {
		host := rapid.SampledFrom(hosts).Draw(t, "host")
		w.endpoints = append(w.endpoints, fabric.Admission{
			Endpoint: fmt.Sprintf("e%d", i), Zone: host.Zone, Node: host.Name,
			Service: rapid.SampledFrom(services).Draw(t, "service"),
			Roles:   fabric.Roles{Originate: some("originates"), Respond: some("responds")},
		})
	}
	return w
}

func drawDomain(t *rapid.T, g *fabric.Graph, name string, services []fabric.Ref) {
	d := &fabric.Domain{Name: name}
	if rapid.IntRange(0, 4).Draw(t, "domain in audit mode") == 0 {
		d.Mode = fabric.ModeAudit
	}
	for _, s := range services {
		if s.Domain == name {
			d.Services = append(d.Services, fabric.Service{Name: s.Name})
		}
	}
	var outside []fabric.Ref
	for i := range rapid.IntRange(0, 2).Draw(t, "externals") {
		x := fabric.External{Name: fmt.Sprintf("x%d", i), Prefixes: rapid.SliceOfN(rapid.SampledFrom(prefixes), 1, 2).Draw(t, "prefixes")}
		x.Exit = rapid.SampledFrom([]fabric.Exit{fabric.ExitZone, fabric.ExitNode}).Draw(t, "exit")
		if rapid.Bool().Draw(t, "by name") {
			x.Names = []string{rapid.SampledFrom([]string{"example.com", "api.example.com", "*.example.com"}).Draw(t, "pattern")}
		}
		if rapid.Bool().Draw(t, "by consul") {
			x.Consul = &fabric.ConsulInstances{Service: "sql", Datacenter: rapid.SampledFrom([]string{"", "dc1"}).Draw(t, "dc"), Within: []netip.Prefix{rapid.SampledFrom(prefixes).Draw(t, "within")}}
		}
		d.Externals = append(d.Externals, x)
		outside = append(outside, fabric.Ref{Domain: name, Name: x.Name})
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "contracts") {
		c := fabric.Contract{
			Name:        fmt.Sprintf("c%d", i),
			Originators: rapid.SliceOfN(rapid.SampledFrom(append(slices.Clone(services), outside...)), 1, 3).Draw(t, "originators"),
			Responders:  rapid.SliceOfN(rapid.SampledFrom(append(slices.Clone(services), outside...)), 1, 2).Draw(t, "responders"),
			Disabled:    rapid.IntRange(0, 5).Draw(t, "disabled") == 0,
			Expires:     rapid.SampledFrom([]time.Time{{}, {}, at.Add(-1), at, at.Add(1)}).Draw(t, "expires"),
			Mode:        rapid.SampledFrom([]fabric.Mode{fabric.ModeEnforce, fabric.ModeEnforce, fabric.ModeAudit}).Draw(t, "mode"),
		}
		for range rapid.IntRange(1, 2).Draw(t, "rules") {
			from := rapid.Uint16Range(1, 3).Draw(t, "from")
			c.Rules = append(c.Rules, fabric.Rule{
				Protocol: rapid.SampledFrom([]fabric.Protocol{fabric.TCP, fabric.UDP}).Draw(t, "protocol"),
				Ports:    []fabric.PortRange{{From: from, To: from + rapid.Uint16Range(0, 1).Draw(t, "width")}},
			})
		}
		d.Contracts = append(d.Contracts, c)
	}
	for i := range 3 {
		if rapid.Bool().Draw(t, "accepts") {
			a := fabric.Accept{Contract: fabric.Ref{Domain: map[string]string{"a": "b", "b": "a"}[name], Name: fmt.Sprintf("c%d", i)}}
			if rapid.Bool().Draw(t, "in part") {
				a.Services = []string{"s0"}
			}
			d.Accepts = append(d.Accepts, a)
		}
	}
	g.Domains[name] = d
}
