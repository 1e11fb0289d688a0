// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
)

// outsideWorld is world with an application that calls everything outside: by prefix, by name, by
// Consul and on its node. What its data paths contain follows from fabric/desired.
func outsideWorld(bindings ...fabric.Binding) View {
	v := world()
	prefixes := func(list ...string) (p []netip.Prefix) {
		for _, s := range list {
			p = append(p, netip.MustParsePrefix(s))
		}
		return p
	}
	contract := func(name, external string, port uint16, line int) fabric.Contract {
		return fabric.Contract{
			Name: name, Originators: []fabric.Ref{ref("app/web")}, Responders: []fabric.Ref{ref("app/" + external)}, Pos: fabric.Position{File: "app.sif.hcl", Line: line, Column: 3},
			Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: port, To: port}}}},
		}
	}
	v.Graph = &fabric.Graph{Bindings: bindings, Domains: map[string]*fabric.Domain{"app": {
		Name: "app", Services: []fabric.Service{{Name: "web"}},
		Externals: []fabric.External{
			{Name: "lan", Prefixes: prefixes("192.0.2.0/24", "169.254.0.0/16"), Exit: fabric.ExitNode},
			{Name: "payments", Names: []string{"api.example.com", "*.cdn.example.com"}},
			{Name: "postgres", Consul: &fabric.ConsulInstances{Service: "pg", Within: prefixes("10.20.0.0/16")}},
			{Name: "host", Node: true},
		},
		Contracts: []fabric.Contract{contract("lan", "lan", 25, 10), contract("pay", "payments", 443, 20), contract("sql", "postgres", 5432, 30), contract("stats", "host", 8125, 40)},
	}}}
	var docs desired.Documents = map[fabric.Ref]fabric.Document{}
	for _, d := range fabric.Documents(v.Graph) {
		docs[d.Service] = d
	}
	web := &v.Status.Nodes[2].Endpoints[0]
	web.Service, web.Roles = ref("app/web"), docs[ref("app/web")].Roles()
	v.Status.Nodes[2].Endpoints = v.Status.Nodes[2].Endpoints[:1]
	v.Status.Nodes[2].Exposed = []api.ExposedPort{{Protocol: fabric.TCP, Port: 8125, To: netip.MustParseAddrPort("127.0.0.1:8125")}}
	v.Status.Nodes[0].Exit = []api.ExitAddress{{Address: netip.MustParseAddr("203.0.113.1"), Interface: "eth0"}}
	known := fabric.Outside{
		Named:      []fabric.Named{{Service: ref("app/web"), Name: "api.example.com", Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")}}},
		Registered: []fabric.Registered{{Service: "pg", Addresses: []netip.Addr{netip.MustParseAddr("10.20.0.7")}}},
		Ranges:     prefixes("100.64.0.0/10"), Reserved: prefixes("192.0.2.9/32"),
	}
	party := desired.PartyOf(fabric.Identity{Service: web.Service, Roles: web.Roles}).String()
	rule := func(to string, port uint16, contract string) api.DumpRule {
		return api.DumpRule{From: party, To: to, Protocol: fabric.TCP, Ports: fabric.PortRange{From: port, To: port}, Contract: contract}
	}
	const lan, pay, sql, host = "external >app/lan", "external >app/payments@app/web", "external >app/postgres", "external >app/host"
	out := func(to string, list ...string) (externals []api.DumpExternal) {
		for _, p := range prefixes(list...) {
			externals = append(externals, api.DumpExternal{Prefix: p, Identity: to, Out: to != ""})
		}
		return externals
	}
	zone := append(out(pay, "198.51.100.1/32", "2001:db8::1/128"), out(sql, "10.20.0.7/32")...)
	zoneRules := []api.DumpRule{rule(pay, 443, "app/pay"), rule(sql, 5432, "app/sql")}
	peers := func(via string) []api.DumpPeer {
		return []api.DumpPeer{{Address: web.IPv4, Identity: party, Via: via}, {Address: web.IPv6, Identity: party, Via: via}}
	}
	node := append(append(out(lan, "192.0.2.0/24"), out("", "192.0.2.9/32")...), out(host, "169.254.1.1/32", "fe80::1/128")...)
	v.Dumps = map[fabric.NodeID]api.Dump{
		nodeID("z1/w1"): {Outside: known, Peers: peers(ownInterface), Guarded: []api.DumpEndpoint{{IPv4: web.IPv4, IPv6: web.IPv6, Identity: party}},
			External: append(node, zone...), Rules: append([]api.DumpRule{rule(lan, 25, "app/lan"), rule(host, 8125, "app/stats")}, zoneRules...)},
		nodeID("z1/p1"): {Outside: known, Peers: peers(zoneLink), External: zone, Rules: zoneRules},
	}
	return v
}

func TestOutward(t *testing.T) {
	for _, tc := range []struct {
		to      string
		port    uint16
		allowed bool
		places  []string // of the data paths
		why     []string
	}{
		{"192.0.2.7", 25, true, []string{"z1/w1 sender"}, []string{"contract app/lan (app.sif.hcl:10:3): allows it; the originator requested its role", "external app/lan has the prefix 192.0.2.0/24", "its flows leave by z1/w1"}},
		{"192.0.2.7", 26, false, []string{"z1/w1 sender", "z1/p1 exit"}, []string{"contract app/lan (app.sif.hcl:10:3): it allows tcp/25, not tcp/26"}},
		{"192.0.2.9", 25, false, []string{"z1/w1 sender", "z1/p1 exit"}, []string{"192.0.2.9 is reserved, as an address of a node or of a server of Consul, Vault or Nomad"}},
		{"169.254.169.254", 25, false, []string{"z1/w1 sender", "z1/p1 exit"}, []string{"169.254.169.254 is reserved in every fabric (169.254.0.0/16)", "or the address is reserved"}},
		{"100.64.9.9", 25, false, []string{"z1/w1 sender", "z1/p1 exit"}, []string{"100.64.9.9 is in the fabric's range 100.64.0.0/10"}},
		{"198.51.100.1", 443, true, []string{"z1/w1 sender", "z1/p1 exit"}, []string{"external app/payments has the address by the name api.example.com, which app/web resolved", "its flows leave by z1/p1, with the address 203.0.113.1"}},
		{"2001:db8::1", 443, true, []string{"z1/w1 sender", "z1/p1 exit"}, []string{"by the name api.example.com"}},
		{"198.51.100.2", 443, false, []string{"z1/w1 sender", "z1/p1 exit"}, []string{"no endpoint has address 198.51.100.2, and no external that a contract of app/web names"}},
		{"api.example.com", 443, true, []string{"z1/w1 sender", "z1/p1 exit"}, []string{"contract app/pay (app.sif.hcl:20:3): allows it"}},
		{"API.example.com.", 443, true, []string{"z1/w1 sender", "z1/p1 exit"}, []string{"contract app/pay"}},
		{"x.cdn.example.com", 443, true, nil, []string{`external app/payments names it as "*.cdn.example.com"`}},
		{"api.example.com", 80, false, []string{"z1/w1 sender", "z1/p1 exit"}, []string{"it allows tcp/443, not tcp/80"}},
		{"api.example.org", 443, false, nil, []string{"refused: no contract of app/web names api.example.org"}},
		{"10.20.0.7", 5432, true, []string{"z1/w1 sender", "z1/p1 exit"}, []string{"external app/postgres has the address as an instance of the Consul service pg"}},
		{"10.20.0.8", 5432, false, []string{"z1/w1 sender", "z1/p1 exit"}, []string{"contract app/sql (app.sif.hcl:30:3): bindings do not let the external have the address, or the address is reserved, or no instance"}},
		{"node", 8125, true, []string{"z1/w1 sender"}, []string{"contract app/stats (app.sif.hcl:40:3): allows it"}},
		{"169.254.1.1", 8125, true, []string{"z1/w1 sender"}, []string{"contract app/stats"}},
		{"node", 8500, false, []string{"z1/w1 sender"}, []string{"it allows tcp/8125, not tcp/8500"}},
		{"app/postgres", 5432, true, nil, []string{"contract app/sql"}},
		{"app/host", 8125, true, []string{"z1/w1 sender"}, []string{"contract app/stats"}},
	} {
		v, q := outsideWorld(), ask("web-1", tc.to, fabric.TCP, tc.port)
		a, err := Explain(v, q)
		must.NoError(t, err)
		must.Eq(t, tc.allowed, a.Allowed, must.Sprintf("%+v %+v", tc, a))
		must.True(t, a.Agree, must.Sprintf("%+v %+v", tc, a.Flows[0].Differs))
		var all, places []string
		for _, r := range a.Flows[0].Declared.Reasons {
			all = append(all, r.String())
		}
		for _, why := range tc.why {
			must.StrContains(t, strings.Join(all, "\n"), why)
		}
		asked, err := Nodes(v, q)
		must.NoError(t, err)
		for _, l := range a.Flows[0].Layers {
			must.Eq(t, tc.allowed, l.Allowed, must.Sprint(tc, l))
			must.SliceContains(t, asked, nodeID(l.Node))
			places = append(places, l.Node+" "+l.Place)
		}
		must.Eq(t, tc.places, places, must.Sprintf("%+v", tc))
	}
}

func TestOutwardDifferences(t *testing.T) {
	differs := func(change func(*View), to string, port uint16) string {
		v := outsideWorld()
		change(&v)
		a, err := Explain(v, ask("web-1", to, fabric.TCP, port))
		must.NoError(t, err)
		return strings.Join(a.Flows[0].Differs, "\n")
	}
	dump := func(node string, change func(*api.Dump)) func(*View) {
		return func(v *View) {
			d := v.Dumps[nodeID(node)]
			change(&d)
			v.Dumps[nodeID(node)] = d
		}
	}
	must.Eq(t, "declared, but z1/w1 does not expose port tcp/8125 to its workloads: its configuration needs a block expose for it",
		differs(func(v *View) { v.Status.Nodes[2].Exposed = nil }, "node", 8125))
	must.Eq(t, "declared, but the switch of z1/p1 drops it: to 198.51.100.1 no rule between the two identities",
		differs(dump("z1/p1", func(d *api.Dump) { d.Rules = nil }), "api.example.com", 443))
	must.Eq(t, "declared, but the switch of z1/p1 drops it: the destination address is unknown",
		differs(dump("z1/p1", func(d *api.Dump) { d.External = nil }), "198.51.100.1", 443))
	must.Eq(t, "not declared, but the ebpf of z1/w1 passes it: contract app/lan",
		differs(dump("z1/w1", func(d *api.Dump) { d.External[1].Identity, d.External[1].Out = "external >app/lan", true }), "192.0.2.9", 25))
	must.Eq(t, "what z1/p1 enforces is not known: not read", differs(func(v *View) { delete(v.Dumps, nodeID("z1/p1")) }, "10.20.0.7", 5432))
}

// What a binding withholds is told, and a reserved address that it lists is the external's.
func TestOutwardBindings(t *testing.T) {
	why := func(b fabric.Binding, to string, port uint16) (allowed bool, why string) {
		b.Domain = "app"
		v := outsideWorld(b)
		a, err := Explain(v, ask("web-1", to, fabric.TCP, port))
		must.NoError(t, err)
		for _, r := range a.Flows[0].Declared.Reasons {
			why += r.String() + "\n"
		}
		return a.Flows[0].Declared.Allowed, why
	}
	none := fabric.Binding{}
	listed := fabric.Binding{Outside: []fabric.OutsideGrants{{Prefixes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("169.254.169.254/32"), netip.MustParsePrefix("192.0.2.9/32")}}}}
	for _, tc := range []struct {
		binding fabric.Binding
		to      string
		port    uint16
		allowed bool
		why     string
	}{
		{none, "api.example.com", 443, false, "bindings do not let the external have the name"},
		{none, "api.example.com", 443, false, `name "api.example.com" of external "payments" of domain "app" lies beyond binding "app"`},
		{none, "node", 8125, false, "bindings do not let the domain reach the port of its nodes"},
		{none, "192.0.2.7", 25, false, `prefix 192.0.2.0/24 of external "lan" of domain "app" lies beyond binding "app"`},
		{listed, "169.254.169.254", 25, true, "external app/lan has the prefix 169.254.0.0/16"},
		{listed, "192.0.2.9", 25, true, "external app/lan has the prefix 192.0.2.0/24"},
		{listed, "169.254.169.253", 25, false, "is reserved in every fabric"},
	} {
		allowed, text := why(tc.binding, tc.to, tc.port)
		must.Eq(t, tc.allowed, allowed, must.Sprint(tc, text))
		must.StrContains(t, text, tc.why)
	}
}

// Processors of a zone share its endpoints as exits, as the nodes choose; one without an address to
// the outside is none.
func TestExitsOfAZone(t *testing.T) {
	outside := []api.ExitAddress{{Address: netip.MustParseAddr("203.0.113.1"), Interface: "eth0"}}
	status := api.Status{Nodes: []api.NodeStatus{
		{Zone: "z1", Node: "p1", Kind: fabric.KindProcessor, Exit: outside}, {Zone: "z1", Node: "p2", Kind: fabric.KindProcessor, Exit: outside},
		{Zone: "z1", Node: "p0", Kind: fabric.KindProcessor},
	}}
	chosen := map[fabric.NodeID]bool{}
	for i := range 100 {
		from := api.Party{Zone: "z1", Endpoint: fmt.Sprint("endpoint-", i)}
		got, byZone := exitOf(status, from, fabric.ExitZone)
		want, _ := desired.ChooseExit([]fabric.NodeID{nodeID("z1/p1"), nodeID("z1/p2")}, from.Endpoint)
		must.True(t, byZone)
		must.Eq(t, want, got)
		chosen[got] = true
	}
	must.MapLen(t, 2, chosen)
	// New flows leave by one that is drained only if all are.
	of := func(draining ...bool) (names []string) {
		for i, is := range draining {
			status.Nodes[i].State = &api.ProcessorState{Draining: is}
		}
		for i := range 100 {
			got, _ := exitOf(status, api.Party{Zone: "z1", Endpoint: fmt.Sprint("endpoint-", i)}, fabric.ExitZone)
			names = append(names, got.Name)
		}
		slices.Sort(names)
		return slices.Compact(names)
	}
	must.Eq(t, []string{"p2"}, of(true, false))
	must.Eq(t, []string{"p1", "p2"}, of(true, true))
	_, byZone := exitOf(status, api.Party{Zone: "z1"}, fabric.ExitNode)
	must.False(t, byZone)
}
