// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

func TestCheckName(t *testing.T) {
	for _, ok := range []string{"a", "getaway-app", "x1", "0", strings.Repeat("a", MaxNameLength)} {
		must.NoError(t, CheckName(ok))
	}
	for bad, why := range map[string]string{
		"": "must not be empty", "A": "only lower-case", "a_b": "only lower-case", "a--b": "separates domain and service",
		"-a": "start and end", "a-": "start and end", strings.Repeat("a", MaxNameLength+1): "at most 28",
	} {
		must.ErrorContains(t, CheckName(bad), why)
	}
}

func TestPortRangeText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.Uint16Range(1, 65535).Draw(t, "from")
		r := PortRange{from, rapid.Uint16Range(from, 65535).Draw(t, "to")}
		got, err := ParsePortRange(r.String())
		must.NoError(t, err)
		must.Eq(t, r, got)
	})
	for bad, why := range map[string]string{
		"70000": "outside 1-65535", "0": "outside 1-65535", "x": "not a port", "9-8": "backwards", "1-": "not a port", "99999999999999999999999": "outside",
	} {
		_, err := ParsePortRange(bad)
		must.ErrorContains(t, err, why)
	}
}

func FuzzParseRef(f *testing.F) {
	f.Add("getaway-app/http-proxy")
	f.Add("a/b/c")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err == nil && r.String() != s {
			t.Fatalf("%q parsed to %q", s, r)
		}
	})
}

func TestCheckNamesThingAndRemedy(t *testing.T) {
	at := func(line int) Position { return Position{File: "g.sif.hcl", Line: line, Column: 1} }
	web, api := Ref{"d", "web"}, Ref{"d", "api"}
	http := []PortRange{{80, 80}}
	rules := []Rule{{Protocol: TCP, Ports: http}}
	sound := func(but func(*Contract)) Contract {
		c := Contract{Name: "c", Originators: []Ref{web}, Responders: []Ref{api}, Rules: rules, Pos: at(9)}
		but(&c)
		return c
	}
	domain := func(contracts ...Contract) *Graph {
		return &Graph{Domains: map[string]*Domain{"d": {Name: "d", Services: []Service{{Name: "web", Pos: at(1)}, {Name: "api", Pos: at(2)}}, Contracts: contracts}}}
	}
	cases := []struct {
		name string
		g    *Graph
		want []string
	}{
		{"sound", domain(Contract{Name: "c", Originators: []Ref{web}, Responders: []Ref{api}, Rules: rules}), nil},
		{"unknown service", domain(Contract{Name: "c", Originators: []Ref{{"d", "webb"}}, Responders: []Ref{api}, Rules: rules, Pos: at(9)}),
			[]string{`g.sif.hcl:9:1: contract "c" names an unknown service "webb" among its originators; did you mean "web"?`}},
		{"no rules", domain(Contract{Name: "c", Originators: []Ref{web}, Responders: []Ref{api}, Pos: at(9)}),
			[]string{`g.sif.hcl:9:1: contract "c" has no rules, so it would allow nothing; add a rule block`}},
		{"duplicate", domain(Contract{Name: "c", Originators: []Ref{web}, Responders: []Ref{api}, Rules: rules, Pos: at(8)}, Contract{Name: "c", Originators: []Ref{web}, Responders: []Ref{api}, Rules: rules, Pos: at(9)}),
			[]string{`g.sif.hcl:9:1: contract "c": the name is already taken at g.sif.hcl:8:1; rename one of the two`}},
		{"reserved domain", &Graph{Domains: map[string]*Domain{"node": {Name: "node", Pos: at(1)}}},
			[]string{`g.sif.hcl:1:1: domain "node" is reserved for node identities; choose another name`}},
		{"rules", domain(sound(func(c *Contract) {
			c.Rules = []Rule{{Name: "No", Protocol: TCP, Ports: http}, {Name: "a", Protocol: TCP, Ports: http}, {Name: "a", Protocol: ICMP, Ports: []PortRange{{0, 256}}}, {Protocol: UDP}}
		})), []string{
			`g.sif.hcl:9:1: a rule of contract "c": name "No" contains 'N'; only lower-case letters, digits and '-' are allowed; choose another name for the rule`,
			`g.sif.hcl:9:1: contract "c" has two rules named "a"; rename one of the two`,
			`g.sif.hcl:9:1: a rule of contract "c" names icmp 0-256; only 0-255 is allowed; correct the numbers`,
			`g.sif.hcl:9:1: a rule of contract "c" has no ports; list at least one port`,
		}},
		{"labels of a contract", domain(sound(func(c *Contract) { c.Labels = Labels{"": "x", "y": "", "z": "1", "name": "c"} })), []string{
			`g.sif.hcl:9:1: label "" of contract "c" has an empty key or value; set both or remove the label`,
			`g.sif.hcl:9:1: label "y" of contract "c" has an empty key or value; set both or remove the label`,
			`g.sif.hcl:9:1: label "name" of contract "c" cannot be set: the fabric sets it; choose another key`,
		}},
		{"labels of others", &Graph{Domains: map[string]*Domain{"d": {Name: "d", Pos: at(1), Labels: Labels{"domain": "e"},
			Services:  []Service{{Name: "web", Pos: at(2), Labels: Labels{"name": "x"}}},
			Externals: []External{{Name: "net", Pos: at(3), Labels: Labels{"env": ""}, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}}}}}, []string{
			`g.sif.hcl:1:1: label "domain" of domain "d" cannot be set: the fabric sets it; choose another key`,
			`g.sif.hcl:2:1: label "name" of service "web" cannot be set: the fabric sets it; choose another key`,
			`g.sif.hcl:3:1: label "env" of external "net" has an empty key or value; set both or remove the label`,
		}},
		{"denials", &Graph{Guardrails: []Guardrail{{Name: "g", Deny: []Denial{
			{From: Labels{"domain": "d", "env": ""}, Pos: at(1)},
			{To: Labels{"": "x"}, Pos: at(2)},
			{Rules: []Rule{{Name: "-", Protocol: TCP, Ports: http}}, Pos: at(3)},
			{Pos: at(4)},
		}}}}, []string{
			`g.sif.hcl:1:1: label "env" of guardrail "g" has an empty key or value; set both or remove the label`,
			`g.sif.hcl:2:1: label "" of guardrail "g" has an empty key or value; set both or remove the label`,
			`g.sif.hcl:3:1: a rule of guardrail "g": name "-" must start and end with a letter or digit; choose another name for the rule`,
			`g.sif.hcl:4:1: a deny block of guardrail "g" would deny every contract; set from or to, or add a rule`,
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, p := range c.g.Check(time.Now()) {
				got = append(got, p.String())
			}
			must.Eq(t, c.want, got)
		})
	}
}

func TestSelect(t *testing.T) {
	g := &Graph{Domains: map[string]*Domain{"d": {Name: "d", Services: []Service{
		{Name: "group", Selectors: []Selector{{Kind: SelectNomad, Namespace: "default", Job: "web", Group: "proxy"}}},
		{Name: "job", Selectors: []Selector{{Kind: SelectNomad, Namespace: "default", Job: "batch"}}},
		{Name: "registered", Selectors: []Selector{{Kind: SelectConsul, Service: "news"}}},
	}}}}
	cases := []struct {
		name string
		w    Workload
		want []Ref
	}{
		{"job and group", Workload{Namespace: "default", Job: "web", Group: "proxy"}, []Ref{{"d", "group"}}},
		{"another group", Workload{Namespace: "default", Job: "web", Group: "x"}, nil},
		{"the same job in another namespace", Workload{Namespace: "other", Job: "web", Group: "proxy"}, nil},
		{"any group", Workload{Namespace: "default", Job: "batch", Group: "x"}, []Ref{{"d", "job"}}},
		{"by Consul service, and by job", Workload{Namespace: "default", Job: "batch", Services: []WorkloadService{{Name: "news"}}}, []Ref{{"d", "job"}, {"d", "registered"}}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			services, barred := g.Select(c.w)
			must.Eq(t, c.want, services)
			must.SliceEmpty(t, barred)
		})
	}
}

func TestPortRangeArithmetic(t *testing.T) {
	genRange := rapid.Custom(func(t *rapid.T) PortRange {
		from := rapid.Uint16Range(0, 20).Draw(t, "from")
		return PortRange{from, rapid.SampledFrom([]uint16{from, from + 3, 65535}).Draw(t, "to")}
	})
	rapid.Check(t, func(t *rapid.T) {
		ranges := rapid.SliceOfN(genRange, 2, 4).Draw(t, "ranges")
		a, b := ranges[0], ranges[1]
		common, overlap := a.Overlap(b)
		joined, adjacent := a.Join(b)
		pieces := SplitPorts(ranges)
		met := false
		for port := range uint16(30) {
			both := a.Contains(port) && b.Contains(port)
			met = met || both
			must.Eq(t, both, overlap && common.Contains(port))
			if adjacent {
				must.Eq(t, a.Contains(port) || b.Contains(port), joined.Contains(port))
			}
			in := slices.DeleteFunc(slices.Clone(pieces), func(p PortRange) bool { return !p.Contains(port) })
			must.LessEq(t, 1, len(in))
			for _, r := range ranges {
				if r.Contains(port) {
					must.Len(t, 1, in)
					must.True(t, r.From <= in[0].From && in[0].To <= r.To)
				}
			}
		}
		must.Eq(t, met, overlap)
		must.Eq(t, int(a.To)+1 == int(b.From), adjacent)
	})
}

func TestNearest(t *testing.T) {
	names := []string{"frontend", "front-end-v2", "api", "x"}
	for name, want := range map[string]string{
		"frontent": "frontend", "forntend": "frontend", "apj": "api", "front-endv2": "front-end-v2", "back": "", "y": "", "frontend": "frontend",
	} {
		must.Eq(t, want, Nearest(name, names), must.Sprint(name))
	}
}
