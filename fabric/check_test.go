// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

// CheckChange finds what Check finds, for any change to any graph that has passed Check.
func TestCheckChangeIsCheck(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := &Graph{Domains: map[string]*Domain{}}
		for range rapid.IntRange(8, 16).Draw(t, "changes") {
			next := drawChange(t, base)
			problems := next.Check(reachNow)
			must.Eq(t, problems, next.CheckChange(base, reachNow))
			if len(problems) == 0 {
				base = next
			}
		}
	})
}

// drawChange draws a graph that shares some or all domains with base.
func drawChange(t *rapid.T, base *Graph) *Graph {
	next := &Graph{Domains: maps.Clone(base.Domains), Guardrails: base.Guardrails, Bindings: base.Bindings}
	for name, d := range drawRichGraph(t, "next ").Domains {
		tier := rapid.SampledFrom([]string{"", "one", "two"})
		d.Labels = Labels{"tier": tier.Draw(t, "domain's tier")}
		for i := range d.Services {
			d.Services[i].Labels = Labels{"tier": tier.Draw(t, "tier")}
		}
		if name == "a" && rapid.Bool().Draw(t, "across") {
			d.Contracts = append(d.Contracts, Contract{
				Name: "across", Originators: []Ref{{"a", "s0"}},
				Responders: []Ref{{"b", rapid.SampledFrom([]string{"s0", "ext"}).Draw(t, "responder")}},
				Rules:      []Rule{{Protocol: TCP, Ports: []PortRange{{5, 9}}}},
			})
		}
		if rapid.Bool().Draw(t, "taken") {
			next.Domains[name] = d
		}
	}
	if rapid.IntRange(0, 4).Draw(t, "remove") == 0 {
		delete(next.Domains, rapid.SampledFrom([]string{"a", "b"}).Draw(t, "removed"))
	}
	if rapid.IntRange(0, 2).Draw(t, "guardrails") == 0 {
		next.Guardrails = slices.Repeat([]Guardrail{{Name: "g", Deny: []Denial{{
			From: Labels{"tier": "one"}, To: Labels{"tier": "two"},
			Rules: []Rule{{Protocol: TCP, Ports: []PortRange{{1, 5}}}},
		}}}}, rapid.IntRange(0, 2).Draw(t, "number"))
	}
	if rapid.IntRange(0, 2).Draw(t, "rebind") == 0 {
		next.Bindings = slices.Concat(drawBindings(t, ""), drawBindings(t, "more "))
	}
	return next
}

// Graph.Unenforced is what all of its documents report.
func TestUnenforcedIsThatOfTheDocuments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		for range 30 { // most graphs have little of it
			g := drawRichGraph(t, "")
			var want []string
			for _, d := range Documents(g) {
				want = append(want, d.Unenforced()...)
			}
			slices.Sort(want)
			must.Eq(t, want, g.Unenforced())
		}
	})
}

// Values that JSON can express and the graph language cannot are refused with their place, before
// anything is signed.
func TestCheckLimits(t *testing.T) {
	service := func(i int) string { return fmt.Sprintf("s%d", i) }
	for name, tc := range map[string]struct {
		most int
		add  func(d *Domain, i int)
		want string
	}{
		"services": {maxServices, func(d *Domain, i int) { d.Services = append(d.Services, Service{Name: service(i)}) }, `domain "a" has 10001 services; the most is 10000`},
		"externals": {maxExternals, func(d *Domain, i int) {
			prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, byte(i >> 8), byte(i), 0}), 24)
			d.Externals = append(d.Externals, External{Name: service(i), Prefixes: []netip.Prefix{prefix}})
		}, "1001 externals"},
		"contracts": {maxContracts, func(d *Domain, i int) {
			d.Services = []Service{{Name: "web"}, {Name: "db"}}
			d.Contracts = append(d.Contracts, Contract{
				Name: service(i), Originators: []Ref{{"a", "web"}}, Responders: []Ref{{"a", "db"}}, Rules: []Rule{{Protocol: TCP, Ports: []PortRange{{80, 80}}}},
			})
		}, "50001 contracts"},
		"prefixes": {maxPrefixes, func(d *Domain, i int) {
			if i == 0 {
				d.Externals = []External{{Name: "x"}}
			}
			x := &d.Externals[0]
			x.Prefixes = append(x.Prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, byte(i >> 8), byte(i), 0}), 24))
		}, `external "x" has 1001 prefixes`},
		"all prefixes": {maxOutside, func(d *Domain, i int) {
			if i%500 == 0 {
				d.Externals = append(d.Externals, External{Name: service(i)})
			}
			x := &d.Externals[len(d.Externals)-1]
			x.Prefixes = append(x.Prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, byte(i >> 8), byte(i), 0}), 24))
		}, `domain "a" has 4001 prefixes of externals; the most is 4000`},
		"names": {maxNames, func(d *Domain, i int) {
			if i == 0 {
				d.Externals = []External{{Name: "x"}}
			}
			x := &d.Externals[0]
			x.Names = append(x.Names, fmt.Sprintf("h%d.example.com", i))
		}, `external "x" has 101 names`},
		"all names": {maxOutsideNames, func(d *Domain, i int) {
			if i%50 == 0 {
				d.Externals = append(d.Externals, External{Name: service(i)})
			}
			x := &d.Externals[len(d.Externals)-1]
			x.Names = append(x.Names, fmt.Sprintf("h%d.example.com", i))
		}, `domain "a" has 1001 names of externals; the most is 1000`},
		"ranges": {maxRanges, func(d *Domain, i int) {
			d.Services = []Service{{Name: "web"}, {Name: "db"}}
			if i == 0 {
				d.Contracts = []Contract{{Name: "c", Originators: []Ref{{"a", "web"}}, Responders: []Ref{{"a", "db"}}, Rules: []Rule{{Protocol: TCP}, {Protocol: UDP}}}}
			}
			rule := &d.Contracts[0].Rules[i%2]
			rule.Ports = append(rule.Ports, PortRange{uint16(2*i + 1), uint16(2*i + 1)})
		}, `contract "c" lists 257 ports and ranges`},
	} {
		t.Run(name, func(t *testing.T) {
			d := &Domain{Name: "a"}
			g := &Graph{Domains: map[string]*Domain{"a": d}}
			for i := range tc.most {
				tc.add(d, i)
			}
			must.SliceEmpty(t, g.Check(reachNow))
			tc.add(d, tc.most)
			problems := g.Check(reachNow)
			must.Len(t, 1, problems)
			must.StrContains(t, problems[0].Summary, tc.want)
		})
	}
}

func TestCheckRefusesWhatTheLanguageCannotSay(t *testing.T) {
	const pos = `"pos":{"file":"a.hcl","line":7,"column":3}`
	domain := func(services, externals, contract, accepts string) string {
		return `{"domains":{"a":{"name":"a","services":[{"name":"web","selectors":[` + services + `],` + pos + `},{"name":"db","selectors":[]}],` +
			`"externals":[` + externals + `],"contracts":[` + contract + `],"accepts":[` + accepts + `]}}}`
	}
	binding := func(more string) string {
		return `{"bindings":[{"domain":"a",` + more + `,` + pos + `}]}`
	}
	contract := func(originators, rules, more string) string {
		return `{"name":"c","originators":` + originators + `,"responders":["a/db"],"rules":` + rules + `,` + more + pos + `}`
	}
	egress := func(rules string) string {
		return `{"name":"c","originators":["a/web"],"responders":["a/x"],"rules":` + rules + `,` + pos + `}`
	}
	const rules = `[{"protocol":"tcp","ports":["80"]}]`
	for name, tc := range map[string]struct{ graph, want string }{
		"null originator":     {domain("", "", contract(`[null,"a/web"]`, rules, ""), ""), `contract "c" has an invalid name among its originators`},
		"null prefix":         {domain("", `{"name":"x","prefixes":[null],`+pos+`}`, "", ""), `prefix 1 of external "x" is not an address prefix`},
		"mapped prefix":       {domain("", `{"name":"x","prefixes":["::ffff:192.0.2.0/120"],`+pos+`}`, "", ""), `IPv4-mapped`},
		"prefix with bits":    {domain("", `{"name":"x","prefixes":["192.0.2.1/24"],`+pos+`}`, "", ""), `bits set beyond its length`},
		"prefix twice":        {domain("", `{"name":"x","prefixes":["192.0.2.0/24","192.0.2.0/24"],`+pos+`}`, "", ""), `twice`},
		"no addresses":        {domain("", `{"name":"x",`+pos+`}`, "", ""), `external "x" has no addresses`},
		"null name":           {domain("", `{"name":"x","names":[null],`+pos+`}`, "", ""), `name "" of external "x" is empty`},
		"name twice":          {domain("", `{"name":"x","names":["a.example.com","a.example.com"],`+pos+`}`, "", ""), `lists name "a.example.com" twice`},
		"URL":                 {domain("", `{"name":"x","names":["https://a.example.com"],`+pos+`}`, "", ""), `has a scheme`},
		"null consul":         {domain("", `{"name":"x","consul":{"service":null,"within":["10.0.0.0/8"]},`+pos+`}`, "", ""), `a Consul service must have a name`},
		"within missing":      {domain("", `{"name":"x","consul":{"service":"pg"},`+pos+`}`, "", ""), `no prefixes within which`},
		"null within":         {domain("", `{"name":"x","consul":{"service":"pg","within":[null]},`+pos+`}`, "", ""), `is not an address prefix`},
		"within everything":   {domain("", `{"name":"x","consul":{"service":"pg","within":["0.0.0.0/0"]},`+pos+`}`, "", ""), `limits nothing`},
		"datacenter":          {domain("", `{"name":"x","consul":{"service":"pg","datacenter":"*","within":["10.0.0.0/8"]},`+pos+`}`, "", ""), `no name of a Consul datacenter`},
		"node and others":     {domain("", `{"name":"x","node":true,"names":["a.example.com"],`+pos+`}`, "", ""), `stands alone`},
		"exit of the node":    {domain("", `{"name":"x","node":true,"exit":"node",`+pos+`}`, "", ""), `has none`},
		"unknown exit":        {domain("", `{"name":"x","names":["a.example.com"],"exit":"zone",`+pos+`}`, "", ""), `unknown exit "zone"`},
		"name originates":     {domain("", `{"name":"x","names":["a.example.com"]}`, contract(`["a/x"]`, rules, ""), ""), `external "x" among the originators of contract "c" has names`},
		"node originates":     {domain("", `{"name":"x","node":true}`, contract(`["a/x"]`, rules, ""), ""), `is the workload's node, so it can only be a responder`},
		"consul originates":   {domain("", `{"name":"x","consul":{"service":"pg","within":["10.0.0.0/8"]}}`, contract(`["a/x"]`, rules, ""), ""), `is a Consul service`},
		"sctp to an external": {domain("", `{"name":"x","names":["a.example.com"]}`, egress(`[{"protocol":"sctp","ports":["80"]}]`), ""), `sctp cannot be translated`},
		"icmp to an external": {domain("", `{"name":"x","names":["a.example.com"]}`, egress(`[{"protocol":"icmp","ports":["8","13"]}]`), ""), `other than echo requests`},
		"icmp to the node":    {domain("", `{"name":"x","node":true}`, egress(`[{"protocol":"icmp","ports":["8"]}]`), ""), `icmp does not reach the workload's node`},
		"dns of the node":     {domain("", `{"name":"x","node":true}`, egress(`[{"protocol":"udp","ports":["50-60"]}]`), ""), `port 53 of the node is its DNS server`},
		"null rule":           {domain("", "", contract(`["a/web"]`, `[null]`, ""), ""), `a rule of contract "c" has no protocol`},
		"null protocol":       {domain("", "", contract(`["a/web"]`, `[{"protocol":null,"ports":["80"]}]`, ""), ""), `has no protocol`},
		"null port":           {domain("", "", contract(`["a/web"]`, `[{"protocol":"tcp","ports":[null]}]`, ""), ""), `only 1-65535 is allowed`},
		"far end":             {domain("", "", contract(`["a/web"]`, rules, `"expires":"9999-12-31T23:59:59-14:00",`), ""), `expires in the year 10000`},
		"accepts nothing":     {domain("", "", "", `{"contract":null,`+pos+`}`), `accepts a contract without a valid name`},
		"null selector":       {domain(`null`, "", "", ""), `unknown kind ""`},
		"any namespace":       {domain(`{"kind":"nomad","job":"web",`+pos+`}`, "", "", ""), `has no namespace`},
		"null consul service": {domain(`{"kind":"consul","service":"web",`+pos+`}`, "", "", ""), `has no namespace`},

		"null binding":        {`{"bindings":[null]}`, `name must not be empty`},
		"binding of nodes":    {`{"bindings":[{"domain":"node"}]}`, `reserved for node identities`},
		"binding twice":       {`{"bindings":[{"domain":"*"},{"domain":"*"}]}`, `domain "*" already has a binding`},
		"any bound namespace": {binding(`"nomad":[{"jobs":["x"]}]`), `a nomad block of binding "a" has no namespace`},
		"null job":            {binding(`"nomad":[{"namespace":"default","jobs":[null]}]`), `lists an empty name among its jobs`},
		"job twice":           {binding(`"nomad":[{"namespace":"default","jobs":["x","x"]}]`), `lists "x" twice among its jobs`},
		"null nomad block":    {binding(`"nomad":[null]`), `has no namespace`},
		"no consul service":   {binding(`"consul":[{"namespace":"default"}]`), `names no service`},
		"every node":          {binding(`"nodes":[null]`), `would cover every node`},
		"null outside":        {binding(`"outside":[null]`), `grants nothing`},
		"null bound prefix":   {binding(`"outside":[{"prefixes":[null]}]`), `prefix 1 of binding "a" is not an address prefix`},
		"null bound port":     {binding(`"outside":[{"ports":[null]}]`), `only 1-65535 is allowed`},
		"port range backward": {binding(`"outside":[{"ports":["1","1"]}]`), `lists port 1 twice`},
		"null granted name":   {binding(`"outside":[{"names":[null]}]`), `name "" of binding "a" is empty`},
		"granted name twice":  {binding(`"outside":[{"names":["*","*"]}]`), `lists name "*" twice`},
		"granted URL":         {binding(`"outside":[{"names":["https://a.example.com"]}]`), `has a scheme`},
		"null node port":      {binding(`"outside":[{"nodePorts":[null]}]`), `names node port 0; only 1-65535 is allowed`},
		"node port twice":     {binding(`"outside":[{"nodePorts":["1","1"]}]`), `lists node port 1 twice`},
		"DNS of the node":     {binding(`"outside":[{"nodePorts":["53"]}]`), `is its DNS server`},
		"bound domain label":  {binding(`"labels":{"domain":"x"}`), `cannot be set`},
		"null bound service":  {binding(`"services":[{"name":null,"labels":{"a":"b"}}]`), `name must not be empty`},
		"no bound label":      {binding(`"services":[{"name":"web"}]`), `sets no labels of service "web"`},
		"everybody's service": {`{"bindings":[{"domain":"*","services":[{"name":"web","labels":{"a":"b"}}]}]}`, `of no single domain`},
	} {
		t.Run(name, func(t *testing.T) {
			var g Graph
			must.NoError(t, json.Unmarshal([]byte(tc.graph), &g))
			problems := g.Check(time.Unix(0, 0))
			must.Len(t, 1, problems, must.Sprint(problems))
			must.StrContains(t, problems[0].Summary, tc.want)
			must.NotEq(t, "", problems[0].Remedy)
		})
	}
}

// What Check forgets, CheckObjects still finds: no object may change its meaning when it is read.
func TestObjectsAreReadBack(t *testing.T) {
	g := &Graph{Domains: map[string]*Domain{"a": {Name: "a", Services: []Service{{Name: "web"}},
		Contracts: []Contract{{Name: "c", Originators: []Ref{{}}, Responders: []Ref{{"a", "web"}}, Rules: []Rule{{Protocol: TCP, Ports: []PortRange{{80, 80}}}}}}}}}
	var none *Compiled
	c, fresh, _ := none.Next(g)
	err := c.CheckObjects(fresh)
	must.ErrorContains(t, err, `domain "a"`)
	rapid.Check(t, func(t *rapid.T) {
		c, fresh, _ := none.Next(drawGraph(t))
		must.NoError(t, c.CheckObjects(fresh))
	})
}

// A guardrail denies contracts with externals by their labels, in both directions.
func TestGuardrailsCoverExternals(t *testing.T) {
	web, mail := Ref{"a", "web"}, Ref{"a", "mail"}
	graph := func(from, to Ref, deny Denial, b ...Binding) *Graph {
		return &Graph{
			Domains: map[string]*Domain{"a": {
				Name: "a", Services: []Service{{Name: "web", Labels: Labels{"env": "dev"}}},
				Externals: []External{{Name: "mail", Labels: Labels{"kind": "saas"}, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}},
				Contracts: []Contract{{Name: "c", Originators: []Ref{from}, Responders: []Ref{to}, Rules: []Rule{{Protocol: TCP, Ports: []PortRange{{25, 25}}}}}},
			}},
			Guardrails: []Guardrail{{Name: "g", Deny: []Denial{deny}}}, Bindings: b,
		}
	}
	egress, ingress := Denial{From: Labels{"env": "dev"}, To: Labels{"kind": "saas"}}, Denial{From: Labels{"kind": "saas"}}
	for _, c := range []struct {
		from, to Ref
		deny     Denial
		breaks   bool
	}{
		{web, mail, egress, true},
		{mail, web, egress, false},
		{mail, web, ingress, true},
		{web, mail, ingress, false},
		{web, mail, Denial{To: Labels{"name": "mail"}, Rules: []Rule{{Protocol: TCP, Ports: []PortRange{{20, 30}}}}}, true},
		{web, mail, Denial{To: Labels{"name": "mail"}, Rules: []Rule{{Protocol: UDP, Ports: []PortRange{{20, 30}}}}}, false},
	} {
		problems := graph(c.from, c.to, c.deny).Check(reachNow)
		must.Eq(t, c.breaks, len(problems) == 1, must.Sprint(problems))
		if c.breaks {
			must.StrContains(t, problems[0].Summary, "lets "+c.from.String()+" reach "+c.to.String())
		}
	}
	// With bindings, the label is the operators'.
	bound := graph(web, mail, Denial{To: Labels{"kind": "saas"}}, Binding{Domain: "a", Services: []BoundService{{Name: "mail", Labels: Labels{"kind": "saas"}}}})
	bound.Domains["a"].Externals[0].Labels = nil
	must.Len(t, 1, bound.Check(reachNow))
}
