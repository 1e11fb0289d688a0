// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

var reachNow = time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)

func TestCompare(t *testing.T) {
	at := Position{File: "a.sif.hcl", Line: 40, Column: 3}
	ref := func(n string) Ref { return Ref{"a", n} }
	contract := func(edit ...func(*Contract)) Contract {
		c := Contract{Name: "c", Originators: []Ref{ref("x")}, Responders: []Ref{ref("y")}, Rules: []Rule{{Protocol: TCP, Ports: []PortRange{{80, 90}}}}, Pos: at}
		for _, e := range edit {
			e(&c)
		}
		return c
	}
	graph := func(contracts ...Contract) *Graph {
		return &Graph{Domains: map[string]*Domain{"a": {Name: "a", Services: []Service{{Name: "x"}, {Name: "y"}}, Contracts: contracts}}}
	}
	none := graph()
	must.True(t, Compare(none, none, reachNow).Empty())
	must.True(t, Compare(graph(contract()), graph(contract(func(c *Contract) { c.Pos.Line++; c.Description = "text" })), reachNow).Empty())

	cause := []Cause{{ref("c"), at}}
	must.Eq(t, Delta{
		Reach:     []ReachChange{{From: ref("x"), To: ref("y"), Is: StandsAllowed, Rules: []Rule{{Protocol: TCP, Ports: []PortRange{{80, 90}}}}, Because: cause}},
		Contracts: []ContractChange{{Contract: ref("c"), Pos: at, Change: Added}},
	}, Compare(none, graph(contract()), reachNow))

	narrower := graph(contract(func(c *Contract) { c.Rules[0].Ports = []PortRange{{81, 81}, {82, 85}} }))
	d := Compare(graph(contract()), narrower, reachNow)
	must.Eq(t, []ReachChange{{From: ref("x"), To: ref("y"), Was: StandsAllowed, Rules: []Rule{{Protocol: TCP, Ports: []PortRange{{80, 80}, {86, 90}}}}, Because: cause}}, d.Reach)
	must.Eq(t, []ContractChange{{Contract: ref("c"), Pos: at, Change: Altered, What: []string{"rules"}}}, d.Contracts)

	d = Compare(graph(contract()), graph(contract(func(c *Contract) { c.Mode = ModeAudit })), reachNow)
	must.Eq(t, StandsAudit, d.Reach[0].Is)
	must.False(t, d.Reach[0].Gains())
	expired := graph(contract(func(c *Contract) { c.Expires = reachNow }))
	must.SliceEmpty(t, Compare(none, expired, reachNow).Reach)
	must.Eq(t, []string{"expires"}, Compare(graph(contract()), expired, reachNow).Contracts[0].What)

	// Consent of another domain, given and withdrawn.
	foreign := contract(func(c *Contract) { c.Responders = []Ref{{"b", "z"}} })
	waits, accepts := graph(foreign), graph(foreign)
	waits.Domains["b"] = &Domain{Name: "b", Services: []Service{{Name: "z"}}}
	accepts.Domains["b"] = &Domain{Name: "b", Services: []Service{{Name: "z"}}, Accepts: []Accept{{Contract: ref("c")}}}
	accepts.Domains["a"] = waits.Domains["a"]
	d = Compare(waits, accepts, reachNow)
	must.Eq(t, []Ref{ref("c")}, d.Accepted)
	must.Eq(t, Ref{"b", "z"}, d.Reach[0].To)
	d = Compare(accepts, waits, reachNow)
	must.Eq(t, []Waiting{{Contract: ref("c"), For: []Ref{{"b", "z"}}}}, d.Waiting)
	must.Eq(t, StandsDropped, d.Reach[0].Is)

	guarded := graph()
	guarded.Guardrails = []Guardrail{{Name: "g", Pos: at, Deny: []Denial{{}}}}
	must.Eq(t, []GuardrailChange{{Name: "g", Pos: at, Change: Added}}, Compare(none, guarded, reachNow).Guardrails)
	must.Eq(t, []GuardrailChange{{Name: "g", Pos: at, Change: Removed}}, Compare(guarded, none, reachNow).Guardrails)
}

// drawRichGraph draws a small graph of two domains in which everything that matters to reachability
// happens.
func drawRichGraph(t *rapid.T, label string) *Graph {
	g := &Graph{Domains: map[string]*Domain{}}
	draw := func(n int, what string) int { return rapid.IntRange(0, n).Draw(t, label+what) }
	for _, name := range []string{"a", "b"}[:1+draw(1, "domains")] {
		d := &Domain{Name: name, Silent: draw(4, "silent") == 0}
		if draw(4, "audit") == 0 {
			d.Mode = ModeAudit
		}
		for i := range 1 + draw(2, "services") {
			d.Services = append(d.Services, Service{Name: fmt.Sprintf("s%d", i)})
		}
		if draw(2, "external") == 0 {
			d.Externals = []External{rapid.SampledFrom([]External{
				{Name: "ext", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
				{Name: "ext", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("169.254.169.254/32")}, Exit: ExitNode},
				{Name: "ext", Names: []string{"api.example.com", "*.example.org"}},
				{Name: "ext", Consul: &ConsulInstances{Service: "pg", Within: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}},
				{Name: "ext", Node: true},
			}).Draw(t, label+"external's kind")}
		}
		if draw(1, "accepts") == 0 {
			a := Accept{Contract: Ref{map[string]string{"a": "b", "b": "a"}[name], "c0"}}
			if draw(1, "some") == 0 {
				a.Services = []string{"s0"}
			}
			d.Accepts = []Accept{a}
		}
		refs := func(side string, i int) []Ref {
			var list []Ref
			for range 1 + draw(1, side) {
				domain := name
				if draw(4, "foreign") == 0 {
					domain = "b"
				}
				n := []string{"s0", "s1", "s2", "ext"}[draw(3, "name")]
				missing := n == "ext" && len(d.Externals) == 0 || n == "s1" && len(d.Services) < 2 || n == "s2" && len(d.Services) < 3
				if domain == name && missing || n == "ext" && (domain != name || side == "to" && i%2 == 0 || side == "from" && i%2 == 1) {
					n = "s0"
				}
				list = append(list, Ref{domain, n})
			}
			return list
		}
		for i := range draw(3, "contracts") {
			c := Contract{Name: fmt.Sprintf("c%d", i), Originators: refs("from", i), Responders: refs("to", i), Disabled: draw(5, "off") == 0}
			if draw(3, "mode") == 0 {
				c.Mode = ModeAudit
			}
			switch draw(5, "expires") {
			case 0:
				c.Expires = reachNow
			case 1:
				c.Expires = reachNow.Add(1)
			}
			for range 1 + draw(1, "rules") {
				r := Rule{Protocol: []Protocol{TCP, UDP, ICMP}[draw(2, "protocol")]}
				for range 1 + draw(1, "ranges") {
					from := 1 + draw(7, "port")
					r.Ports = append(r.Ports, PortRange{uint16(from), uint16(from + draw(3, "width"))})
				}
				c.Rules = append(c.Rules, r)
			}
			d.Contracts = append(d.Contracts, c)
		}
		g.Domains[name] = d
	}
	g.Bindings = drawBindings(t, label)
	return g
}

// drawBindings draws bindings that grant what "ext" has, or that do not.
func drawBindings(t *rapid.T, label string) []Binding {
	return rapid.SampledFrom([][]Binding{
		nil, nil,
		{{Domain: "a", Outside: []OutsideGrants{{Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.0.0/16")}}}}},
		{{Domain: "a", Outside: []OutsideGrants{{Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}, Names: []string{"*.example.com"}, NodePorts: []PortRange{{3, 5}}}}}},
		{{Domain: EveryDomain, Outside: []OutsideGrants{{Prefixes: []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32")}, Names: []string{"*.com"}, NodePorts: []PortRange{{4, 9}}}}}},
		{{Domain: EveryDomain, Labels: Labels{"tier": "one"}}},
		{{Domain: EveryDomain}, {Domain: "b", Labels: Labels{"tier": "two"}, Services: []BoundService{{Name: "s0", Labels: Labels{"tier": "one"}}}}},
	}).Draw(t, label+"bindings")
}

// oracle asks the one rule about single flows, for endpoints that hold every role.
type oracle struct {
	docs map[Ref]Document
	all  Roles
}

func newOracle(g *Graph) oracle {
	o := oracle{docs: map[Ref]Document{}}
	for _, d := range Documents(g) {
		o.docs[d.Service] = d.At(reachNow)
	}
	for _, d := range g.Domains {
		for _, c := range d.Contracts {
			o.all.Originate = append(o.all.Originate, Ref{d.Name, c.Name})
		}
	}
	o.all.Respond = o.all.Originate
	return o
}

func (o oracle) standing(from, to Ref, protocol Protocol, port uint16) Standing {
	a, b := Identity{from, o.all}, Identity{to, o.all}
	if _, service := o.docs[to]; !service { // it is an external: it has no document
		s := StandsDropped
		for _, grant := range EgressGrants(a, o.docs[from]) {
			if grant.External.Name == to && slices.ContainsFunc(grant.Rules, func(r Rule) bool { return r.Matches(protocol, port) }) {
				if !grant.Audit {
					return StandsAllowed
				}
				s = StandsAudit
			}
		}
		return s
	}
	if doc, ok := o.docs[from]; ok {
		v := Decide(a, doc, b, protocol, port)
		switch {
		case !v.Allowed:
			return StandsDropped
		case v.Audit:
			return StandsAudit
		}
		return StandsAllowed
	}
	s := StandsDropped
	for _, grant := range GrantsTo(b, o.docs[to], a) { // from is an external: it has no document
		if slices.ContainsFunc(grant.Rules, func(r Rule) bool { return r.Matches(protocol, port) }) {
			if !grant.Audit {
				return StandsAllowed
			}
			s = StandsAudit
		}
	}
	return s
}

// TestCompareAgreesWithDecide: what Compare says of every flow is what the one rule says before and
// after.
func TestCompareAgreesWithDecide(t *testing.T) {
	var nodes []Ref
	for _, d := range []string{"a", "b"} {
		for _, n := range []string{"s0", "s1", "s2", "ext"} {
			nodes = append(nodes, Ref{d, n})
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		before, after := drawRichGraph(t, "before "), drawRichGraph(t, "after ")
		if rapid.Bool().Draw(t, "shared") && before.Domains["b"] != nil {
			after.Domains["b"] = before.Domains["b"]
		}
		delta := Compare(before, after, reachNow)
		old, now := newOracle(before), newOracle(after)
		said := map[pairOfRefs][]ReachChange{}
		for _, c := range delta.Reach {
			said[pairOfRefs{c.From, c.To}] = append(said[pairOfRefs{c.From, c.To}], c)
			if len(c.Because) == 0 || len(c.Rules) == 0 {
				t.Fatalf("%+v has no cause or no rules", c)
			}
		}
		for _, from := range nodes {
			for _, to := range nodes {
				for _, protocol := range []Protocol{TCP, UDP, ICMP, SCTP} {
					for port := uint16(1); port <= 12; port++ {
						was, is := old.standing(from, to, protocol, port), now.standing(from, to, protocol, port)
						n := 0
						for _, c := range said[pairOfRefs{from, to}] {
							if slices.ContainsFunc(c.Rules, func(r Rule) bool { return r.Matches(protocol, port) }) {
								n++
								if c.Was != was || c.Is != is {
									t.Fatalf("%s to %s on %s/%d: %q to %q, but the rule says %q to %q", from, to, protocol, port, c.Was, c.Is, was, is)
								}
							}
						}
						if want := map[bool]int{true: 1}[was != is]; n != want {
							t.Fatalf("%s to %s on %s/%d: %q to %q is told %d times", from, to, protocol, port, was, is, n)
						}
					}
				}
			}
		}
		must.True(t, Compare(after, after, reachNow).Empty())
	})
}

// manyContracts is a graph of services*5 contracts in domains of 20 services.
func manyContracts(domains int) *Graph {
	g := &Graph{Domains: map[string]*Domain{}}
	for i := range domains {
		d := &Domain{Name: fmt.Sprintf("d%d", i)}
		for j := range 20 {
			d.Services = append(d.Services, Service{Name: fmt.Sprintf("s%d", j), Selectors: []Selector{{Kind: SelectNomad, Namespace: "default", Job: fmt.Sprintf("j%d-%d", i, j)}}})
		}
		for j := range 100 {
			d.Contracts = append(d.Contracts, Contract{
				Name: fmt.Sprintf("c%d", j), Originators: []Ref{{d.Name, fmt.Sprintf("s%d", j%20)}}, Responders: []Ref{{d.Name, fmt.Sprintf("s%d", (j*7+1)%20)}},
				Rules: []Rule{{Protocol: TCP, Ports: []PortRange{{uint16(1000 + j), uint16(1000 + j)}}}},
			})
		}
		g.Domains[d.Name] = d
	}
	return g
}

// clone copies a graph so that no domain is the same object.
func clone(g *Graph) *Graph {
	next := &Graph{Domains: map[string]*Domain{}}
	for name, d := range g.Domains {
		c := *d
		c.Contracts = slices.Clone(d.Contracts)
		next.Domains[name] = &c
	}
	return next
}

// BenchmarkCompare is a plan of a one-contract change among 50,000: with the other domains shared,
// and with all of them read anew.
func BenchmarkCompare(b *testing.B) {
	before := manyContracts(500)
	all := clone(before)
	all.Domains["d7"].Contracts[3].Rules = []Rule{{Protocol: UDP, Ports: []PortRange{{53, 53}}}}
	one := &Graph{Domains: maps.Clone(before.Domains)}
	one.Domains["d7"] = all.Domains["d7"]
	for name, after := range map[string]*Graph{"one domain": one, "all domains": all} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if d := Compare(before, after, reachNow); len(d.Reach) != 2 {
					b.Fatal(d)
				}
			}
		})
	}
}
