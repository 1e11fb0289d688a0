// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package explain

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/inspect/verify"
)

var now = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// nodeID parses "zone/node".
func nodeID(s string) fabric.NodeID {
	id, err := fabric.ParseNodeID(s)
	if err != nil {
		panic(err)
	}
	return id
}

func ref(s string) fabric.Ref {
	r, err := fabric.ParseRef(s)
	if err != nil {
		panic(err)
	}
	return r
}

func ask(from, to string, protocol fabric.Protocol, port uint16) api.Question {
	return api.Question{From: from, To: to, Protocol: protocol, Port: port}
}

const webKey, dbKey = "shop/web >shop/sql", "shop/db <shop/sql"

// world has web in z1 and db in z2. bare is a web that requested nothing.
func world() View {
	contract := func(name string, from, to string, port uint16, line int) fabric.Contract {
		return fabric.Contract{Name: name, Originators: []fabric.Ref{ref(from)}, Responders: []fabric.Ref{ref(to)}, Pos: fabric.Position{File: "shop.sif.hcl", Line: line, Column: 3},
			Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: port, To: port}}}}}
	}
	off := contract("off", "shop/web", "shop/db", 1001, 20)
	off.Disabled = true
	old := contract("old", "shop/web", "shop/db", 1002, 30)
	old.Expires = now
	soon := contract("soon", "shop/api", "shop/db", 1003, 40)
	soon.Expires = now.Add(time.Hour)
	trial := contract("trial", "shop/api", "shop/db", 1004, 50)
	trial.Mode = fabric.ModeAudit
	sql := contract("sql", "shop/web", "shop/db", 5432, 10)
	g := &fabric.Graph{Domains: map[string]*fabric.Domain{
		"shop": {
			Name: "shop", Services: []fabric.Service{{Name: "web"}, {Name: "db"}, {Name: "api"}},
			Externals: []fabric.External{{Name: "users", Prefixes: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}, {Name: "bank", Prefixes: []netip.Prefix{netip.MustParsePrefix("198.51.100.7/32")}}},
			Contracts: []fabric.Contract{sql, off, old, soon, trial,
				contract("ads", "shop/web", "media/ads", 80, 60), contract("front", "shop/users", "shop/api", 443, 70), contract("pay", "shop/api", "shop/bank", 443, 80)},
		},
		"media": {Name: "media", Services: []fabric.Service{{Name: "ads"}}},
		"lab":   {Name: "lab", Mode: fabric.ModeAudit, Services: []fabric.Service{{Name: "a"}, {Name: "b"}}},
	}}
	endpoint := func(id, service string, n byte, roles fabric.Roles) api.EndpointStatus {
		return api.EndpointStatus{Endpoint: id, Service: ref(service), Roles: roles,
			IPv4: netip.AddrFrom4([4]byte{100, 64, 0, n}), IPv6: netip.AddrFrom16([16]byte{0xfd, 0x5f, 15: n})}
	}
	f := verify.Fabric{Graph: g, Now: now, Dumps: map[fabric.NodeID]api.Dump{}, Failed: map[fabric.NodeID]string{}, Status: api.Status{Nodes: []api.NodeStatus{
		{Zone: "z1", Node: "p1", Kind: fabric.KindProcessor}, {Zone: "z2", Node: "p1", Kind: fabric.KindProcessor},
		{Zone: "z1", Node: "w1", Kind: fabric.KindWorkload, Pool4: netip.MustParsePrefix("100.64.7.0/24"), Pool6: netip.MustParsePrefix("fd5f:7::/64"), Endpoints: []api.EndpointStatus{
			endpoint("web-1", "shop/web", 2, fabric.Roles{Originate: []fabric.Ref{ref("shop/sql")}}), endpoint("web-bare", "shop/web", 3, fabric.Roles{}),
		}},
		{Zone: "z2", Node: "w1", Kind: fabric.KindWorkload, Pool4: netip.MustParsePrefix("100.64.8.0/24"), Endpoints: []api.EndpointStatus{
			endpoint("db-1", "shop/db", 4, fabric.Roles{Respond: []fabric.Ref{ref("shop/sql")}}),
		}},
	}}}
	web, bare, db := f.Status.Nodes[2].Endpoints[0], f.Status.Nodes[2].Endpoints[1], f.Status.Nodes[3].Endpoints[0]
	peers := func(e api.EndpointStatus, key, via string) []api.DumpPeer {
		return []api.DumpPeer{{Address: e.IPv4, Identity: key, Via: via}, {Address: e.IPv6, Identity: key, Via: via}}
	}
	far := func(e api.EndpointStatus, zone string) string {
		return desired.ViaWays(desired.Group{Zone: zone}, desired.Number(e.Endpoint))
	}
	ways := func(from, to, by string) []api.DumpWay {
		var next [desired.Buckets]desired.Hop
		for bucket := range next {
			next[bucket] = desired.Hop{Processor: nodeID(by)}
		}
		return []api.DumpWay{{From: from, To: to, Next: desired.Shares(next)}}
	}
	guard := func(e api.EndpointStatus, key string) api.DumpEndpoint {
		return api.DumpEndpoint{IPv4: e.IPv4, IPv6: e.IPv6, Identity: key}
	}
	rules := func() []api.DumpRule {
		return []api.DumpRule{{From: webKey, To: dbKey, Protocol: fabric.TCP, Ports: fabric.PortRange{From: 5432, To: 5432}, Contract: "shop/sql"}}
	}
	f.Dumps[nodeID("z1/w1")] = api.Dump{Rules: rules(), Guarded: []api.DumpEndpoint{guard(web, webKey), guard(bare, "shop/web")},
		Peers: append(append(peers(web, webKey, desired.OwnInterface.String()), peers(bare, "shop/web", desired.OwnInterface.String())...), peers(db, dbKey, far(db, "z2"))...), Ways: ways("z1", "z2", "z1/p1")}
	f.Dumps[nodeID("z2/w1")] = api.Dump{Rules: rules(), Guarded: []api.DumpEndpoint{guard(db, dbKey)}, Peers: append(peers(db, dbKey, desired.OwnInterface.String()), peers(web, webKey, far(web, "z1"))...), Ways: ways("z2", "z1", "z2/p1")}
	boundary := func(webVia, bareVia, dbVia string) []api.DumpPeer {
		return append(append(peers(web, webKey, webVia), peers(bare, "shop/web", bareVia)...), peers(db, dbKey, dbVia)...)
	}
	own := desired.ZoneLink.String()
	f.Dumps[nodeID("z1/p1")] = api.Dump{Rules: rules(), Peers: boundary(own, own, far(db, "z2")), Ways: ways("z1", "z2", "z2/p1")}
	f.Dumps[nodeID("z2/p1")] = api.Dump{Rules: rules(), Peers: boundary(far(web, "z1"), far(bare, "z1"), own), Ways: ways("z2", "z1", "z1/p1")}
	return View{Fabric: f}
}

// What a party declares beyond a binding is told, whether the flow passes still or not.
func TestBindings(t *testing.T) {
	v := world()
	shop := v.Graph.Domains["shop"]
	shop.Services[0].Selectors = []fabric.Selector{{Kind: fabric.SelectNode, Zone: "z1", Pos: fabric.Position{File: "shop.sif.hcl", Line: 5, Column: 1}}}
	reasons := func(from, to string, port uint16) (allowed bool, why string) {
		a, err := Explain(v, ask(from, to, fabric.TCP, port))
		must.NoError(t, err)
		for _, r := range a.Flows[0].Declared.Reasons {
			why += r.String() + "\n"
		}
		return a.Flows[0].Declared.Allowed, why
	}
	allowed, why := reasons("web-1", "shop/db", 5432)
	must.True(t, allowed)
	must.StrNotContains(t, why, "binding")
	allowed, _ = reasons("203.0.113.9", "shop/api", 443)
	must.True(t, allowed)

	v.Graph.Bindings = []fabric.Binding{{Domain: "shop", Nomad: []fabric.NomadScope{{Namespace: "default"}}}}
	allowed, why = reasons("web-1", "shop/db", 5432)
	must.True(t, allowed) // the endpoint was admitted before
	must.StrContains(t, why, `a selector of service "web" of domain "shop", node(zone=z1), selects beyond binding "shop" (shop.sif.hcl:5:1)`)
	allowed, why = reasons("203.0.113.9", "shop/api", 443)
	must.False(t, allowed)
	must.StrContains(t, why, "contract shop/front (shop.sif.hcl:70:3): bindings do not let the external have the address")
	must.StrContains(t, why, `prefix 203.0.113.0/24 of external "users" of domain "shop" lies beyond binding "shop"`)
	v.Graph.Bindings[0].Domain = "other"
	_, why = reasons("web-1", "shop/db", 5432)
	must.StrContains(t, why, `no binding covers domain "shop"`)
}

// An attached workload is named as its node named it, and what binds it is told.
func TestAttached(t *testing.T) {
	v := world()
	db := &v.Status.Nodes[3].Endpoints[0]
	db.Origin = fabric.Origin{Consul: "postgres", Attached: "pg.main"}
	web := v.Status.Nodes[2].Endpoints
	web[0].Origin, web[1].Origin = fabric.Origin{Consul: "nginx", Attached: "front"}, fabric.Origin{Consul: "nginx", Attached: "front"}
	scope := func(services, node, class string) []fabric.AttachScope {
		return []fabric.AttachScope{{Services: []string{services}, Node: node, NodeClass: class}}
	}
	for name, want := range map[string]int{"front": 2, "z1/w1/front": 2, "z2/w1/pg.main": 1} {
		parties, err := resolve(v, name, true)
		must.NoError(t, err)
		must.Len(t, want, parties, must.Sprint(name))
	}
	parties, err := resolve(v, "pg.main", true) // nobody takes the place of an outside name
	must.NoError(t, err)
	must.Eq(t, []api.Party{{DNSName: "pg.main"}}, parties)
	for _, name := range []string{"z1/w1/pg.main", "fron"} {
		_, err := resolve(v, name, true)
		must.Error(t, err, must.Sprint(name))
	}
	for _, tc := range []struct {
		name   string
		attach []fabric.AttachScope
		may    bool
	}{
		{"bound", scope("post*", "w*", ""), true},
		{"by a class, which the graph does not tell", scope("postgres", "", "data"), true},
		{"another node", scope("postgres", "w2", ""), false},
		{"another service", scope("mysql", "w1", ""), false},
		{"no attach block", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v.Graph.Bindings = []fabric.Binding{{Domain: "shop", Attach: append(tc.attach, scope("nginx", "w1", "")...)}}
			a, err := Explain(v, ask("web-1", "z2/w1/pg.main", fabric.TCP, 5432))
			must.NoError(t, err)
			flow := a.Flows[0]
			must.True(t, flow.Declared.Allowed)
			must.Eq(t, "shop/db (endpoint db-1 on z2/w1, attached as pg.main, Consul service postgres)", flow.To.String())
			ends := slices.ContainsFunc(flow.Declared.Reasons, func(r api.Reason) bool {
				return r.Why == `domain "shop" has no binding any more with an attach block that names Consul service "postgres" and node z2/w1: pg.main ends when its admission would be renewed`
			})
			must.Eq(t, tc.may, !ends)
		})
	}
	v.Reads = func(domain string) bool { return domain == "media" }
	_, err = resolve(v, "front", true)
	must.ErrorContains(t, err, "neither a service")
}

func TestDeclared(t *testing.T) {
	for _, tc := range []struct {
		from, to string
		protocol fabric.Protocol
		port     uint16
		allowed  bool
		why      string
	}{
		{"web-1", "db-1", fabric.TCP, 5432, true, "contract shop/sql (shop.sif.hcl:10:3): allows it; originator and responder requested their roles"},
		{"web-1", "shop/db", fabric.TCP, 5433, false, "contract shop/sql (shop.sif.hcl:10:3): it allows tcp/5432, not tcp/5433"},
		{"web-1", "shop/db", fabric.UDP, 5432, false, "it allows tcp/5432, not udp/5432"},
		{"web-bare", "100.64.0.4", fabric.TCP, 5432, false, "endpoint web-bare did not request to originate it"},
		{"shop/db", "web-1", fabric.TCP, 5432, false, "it allows the opposite direction only"},
		{"web-1", "shop/db", fabric.TCP, 1001, false, "contract shop/off (shop.sif.hcl:20:3): it is disabled"},
		{"web-1", "shop/db", fabric.TCP, 1002, false, "contract shop/old (shop.sif.hcl:30:3): it expired at 2026-11-01T00:00:00Z"},
		{"shop/api", "shop/db", fabric.TCP, 1003, false, "endpoint db-1 did not request to respond to it"},
		{"web-1", "media/ads", fabric.TCP, 80, false, "it waits for domain media to accept it for media/ads"},
		{"web-1", "lab/a", fabric.TCP, 80, false, "no contract has shop/web as originator and lab/a as responder"},
		{"lab/a", "lab/b", fabric.UDP, 9, true, "domain lab is in audit mode"},
		{"203.0.113.9", "shop/api", fabric.TCP, 443, true, "contract shop/front"},
		{"203.0.113.9", "shop/api", fabric.TCP, 80, false, "it allows tcp/443, not tcp/80"},
		{"192.0.2.1", "shop/api", fabric.TCP, 443, false, "no endpoint or external has address 192.0.2.1"},
		{"shop/api", "192.0.2.1", fabric.TCP, 443, false, "no endpoint has address 192.0.2.1, and no external that a contract of shop/api names"},
		{"shop/api", "shop/bank", fabric.TCP, 443, true, "contract shop/pay (shop.sif.hcl:80:3): allows it; the originator requested its role"},
		{"shop/api", "198.51.100.7", fabric.TCP, 443, true, "external shop/bank has the prefix 198.51.100.7/32"},
		{"shop/api", "198.51.100.7", fabric.TCP, 80, false, "contract shop/pay (shop.sif.hcl:80:3): it allows tcp/443, not tcp/80"},
		{"web-1", "198.51.100.7", fabric.TCP, 443, false, "no external that a contract of shop/web names"},
		{"shop/users", "shop/bank", fabric.TCP, 443, false, "both ends are outside"},
		{"shop/users", "example.com", fabric.TCP, 443, false, "both ends are outside"},
		{"web-1", "169.254.169.254", fabric.TCP, 80, false, "169.254.169.254 is reserved in every fabric (169.254.0.0/16): an external has it only where the binding of its domain lists it exactly"},
		{"shop/api", "api.example.com", fabric.TCP, 443, false, "refused: no contract of shop/api names api.example.com, so it cannot resolve the name"},
		{"shop/api", "node", fabric.TCP, 8500, false, "refused: no contract lets shop/api reach its node"},
		{"100.64.7.1", "100.64.8.1", fabric.UDP, 8442, true, "nodes exchange probes among their health addresses"},
		{"100.64.7.1", "100.64.8.1", fabric.TCP, 8442, false, "nothing but probes: UDP port 8442; and what the agents of one zone"},
		{"web-1", "fd5f:7::1", fabric.UDP, 8442, false, "fd5f:7::1 is the health address of node z1/w1"},
		{"100.64.8.1", "shop/db", fabric.UDP, 8442, false, "100.64.8.1 is the health address of node z2/w1"},
	} {
		a, err := Explain(world(), ask(tc.from, tc.to, tc.protocol, tc.port))
		must.NoError(t, err)
		must.Eq(t, tc.allowed, a.Allowed, must.Sprintf("%+v", tc))
		var all []string
		for _, r := range a.Flows[0].Declared.Reasons {
			all = append(all, r.String())
		}
		must.StrContains(t, strings.Join(all, "\n"), tc.why)
	}
}

func TestAuditAndExpiryAreTold(t *testing.T) {
	f := world()
	f.Status.Nodes[3].Endpoints = nil // the service itself then
	a, err := Explain(f, ask("shop/api", "shop/db", fabric.TCP, 1003))
	must.NoError(t, err)
	must.True(t, a.Allowed)
	must.StrContains(t, a.Flows[0].Declared.Reasons[0].String(), "it expires at 2026-11-01T01:00:00Z")
	a, err = Explain(f, ask("shop/api", "shop/db", fabric.TCP, 1004))
	must.NoError(t, err)
	must.True(t, a.Allowed && a.Flows[0].Declared.Audit)
	f.Graph.Domains["media"].Accepts = []fabric.Accept{{Contract: ref("shop/ads")}}
	a, err = Explain(f, ask("shop/web", "media/ads", fabric.TCP, 80))
	must.NoError(t, err)
	must.False(t, a.Allowed) // the live endpoints of web requested no such role
	must.StrContains(t, a.Flows[0].Declared.Reasons[0].Why, "endpoint web-1 did not request to originate it")
}

func TestLayers(t *testing.T) {
	f := world()
	q := ask("web-1", "shop/db", fabric.TCP, 5432)
	nodes, err := Nodes(f, q)
	must.NoError(t, err)
	must.Eq(t, []fabric.NodeID{nodeID("z1/p1"), nodeID("z1/w1"), nodeID("z2/p1"), nodeID("z2/w1")}, nodes)
	a, err := Explain(f, q)
	must.NoError(t, err)
	must.True(t, a.Agree, must.Sprintf("%+v", a))
	var places []string
	for _, l := range a.Flows[0].Layers {
		must.True(t, l.Allowed, must.Sprint(l))
		must.Eq(t, "shop/sql", l.Contract)
		places = append(places, l.Node+" "+l.Place)
	}
	must.Eq(t, []string{"z1/w1 sender", "z1/p1 boundary", "z2/p1 boundary", "z2/w1 receiver"}, places)

	// What is not declared is dropped in every layer.
	for _, q := range []api.Question{ask("web-1", "db-1", fabric.TCP, 5433), ask("web-bare", "db-1", fabric.TCP, 5432), ask("db-1", "web-1", fabric.TCP, 5432)} {
		a, err := Explain(f, q)
		must.NoError(t, err)
		must.True(t, a.Agree && !a.Allowed)
		must.Len(t, 4, a.Flows[0].Layers)
		for _, l := range a.Flows[0].Layers {
			must.False(t, l.Allowed, must.Sprint(l))
		}
	}

	for name, tc := range map[string]struct {
		node   string
		change func(*api.Dump)
		want   string
	}{
		"rule gone":         {"z2/w1", func(d *api.Dump) { d.Rules = nil }, "declared, but the ebpf of z2/w1 drops it: no rule between"},
		"other port":        {"z1/p1", func(d *api.Dump) { d.Rules[0].Ports = fabric.PortRange{From: 1, To: 9} }, "declared, but the switch of z1/p1 drops it: the rules between the two identities allow only tcp/1-9"},
		"peer gone":         {"z1/w1", func(d *api.Dump) { d.Peers = d.Peers[:4] }, "the destination address is unknown"},
		"wrong way":         {"z2/w1", func(d *api.Dump) { d.Peers[2].Via = "zone" }, "over IPv4 the source address is expected by way of zone, not the ways of z1, number 196; over IPv6 contract shop/sql"},
		"not guarded":       {"z1/w1", func(d *api.Dump) { d.Guarded = nil }, "no endpoint is guarded with the source address"},
		"everything passes": {"z2/p1", func(d *api.Dump) { d.Problems = []string{"everything passes"} }, "the switch of z2/p1: everything passes"},
	} {
		f := world()
		d := f.Dumps[nodeID(tc.node)]
		tc.change(&d)
		f.Dumps[nodeID(tc.node)] = d
		a, err := Explain(f, q)
		must.NoError(t, err)
		must.True(t, a.Allowed)
		must.False(t, a.Agree, must.Sprint(name))
		must.StrContains(t, strings.Join(a.Flows[0].Differs, "\n"), tc.want)
	}

	delete(f.Dumps, nodeID("z1/p1"))
	f.Failed[nodeID("z1/p1")] = "it did not answer"
	a, err = Explain(f, q)
	must.NoError(t, err)
	must.Eq(t, []string{"what z1/p1 enforces is not known: it did not answer"}, a.Flows[0].Differs)
}

// From outside the fabric only the receiver decides.
func TestFromOutside(t *testing.T) {
	f := world()
	front := &f.Graph.Domains["shop"].Contracts[6]
	front.Responders = []fabric.Ref{ref("shop/db")}
	f.Status.Nodes[3].Endpoints[0].Roles.Respond = []fabric.Ref{ref("shop/front"), ref("shop/sql")}
	d := f.Dumps[nodeID("z2/w1")]
	d.External = []api.DumpExternal{{Prefix: netip.MustParsePrefix("203.0.113.0/24"), Identity: "external shop/users"}}
	d.Rules = append(d.Rules, api.DumpRule{From: "external shop/users", To: dbKey, Protocol: fabric.TCP, Ports: fabric.PortRange{From: 443, To: 443}, Contract: "shop/front"})
	f.Dumps[nodeID("z2/w1")] = d
	for _, from := range []string{"203.0.113.9", "shop/users"} {
		a, err := Explain(f, ask(from, "db-1", fabric.TCP, 443))
		must.NoError(t, err)
		must.True(t, a.Allowed && a.Agree, must.Sprintf("%+v", a))
		must.Len(t, 1, a.Flows[0].Layers)
	}
	a, err := Explain(f, ask("203.0.113.9", "db-1", fabric.TCP, 80))
	must.NoError(t, err)
	must.True(t, !a.Allowed && a.Agree)
	d.External = nil
	f.Dumps[nodeID("z2/w1")] = d
	a, err = Explain(f, ask("203.0.113.9", "db-1", fabric.TCP, 443))
	must.NoError(t, err)
	must.Eq(t, []string{"declared, but the ebpf of z2/w1 drops it: the source address is unknown"}, a.Flows[0].Differs)
}

// A rule that nothing declares is a difference, too.
func TestExtraRule(t *testing.T) {
	f := world()
	d := f.Dumps[nodeID("z1/w1")]
	d.Rules[0].Ports.To = 6000
	a, err := Explain(f, ask("web-1", "db-1", fabric.TCP, 5500))
	must.NoError(t, err)
	must.False(t, a.Allowed || a.Agree)
	must.Eq(t, []string{"not declared, but the ebpf of z1/w1 passes it: contract shop/sql"}, a.Flows[0].Differs)
}

func TestResolve(t *testing.T) {
	f := world()
	for text, want := range map[string]int{"shop/web": 2, "shop/db": 1, "db": 1, "web-1": 1, "100.64.0.2": 1, "fd5f::2": 1, "::ffff:100.64.0.2": 1, "shop/users": 1, "8.8.8.8": 1} {
		parties, err := resolve(f, text, false)
		must.NoError(t, err)
		must.Len(t, want, parties, must.Sprint(text))
	}
	for text, want := range map[string]string{"node": "neither a service", "api.example.com": "a name outside the fabric", "web.shop.sif": "is a name of the fabric", "web": "several endpoints: web-1, web-bare", "shop/webb": "no service or external shop/webb", "nothing": "neither a service"} {
		_, err := resolve(f, text, false)
		must.ErrorContains(t, err, want)
	}
	_, err := Explain(f, ask("web-1", "100.64.0.2", fabric.TCP, 80))
	must.ErrorContains(t, err, "the same single endpoint")
}

// Whoever may not read a domain learns nothing of it, but for what is between it and a domain that
// he may read both.
func TestReaders(t *testing.T) {
	f := world()
	f.Status.Nodes[3].Endpoints = append(f.Status.Nodes[3].Endpoints, api.EndpointStatus{Endpoint: "web-ads", Service: ref("media/ads"), IPv4: netip.MustParseAddr("100.64.0.9")})
	d := f.Dumps[nodeID("z1/w1")]
	d.Problems = []string{"endpoint of lab/a is not guarded"}
	f.Dumps[nodeID("z1/w1")] = d
	reads := func(domains ...string) func(string) bool {
		return func(d string) bool { return slices.Contains(domains, d) }
	}
	for _, tc := range []struct {
		reads    []string
		from, to string
		domain   string // that is refused; empty: none
	}{
		{[]string{"shop"}, "shop/web", "shop/db", ""},
		{[]string{"shop"}, "web-1", "100.64.0.4", ""},
		{[]string{"shop"}, "203.0.113.9", "shop/web", ""},
		{[]string{"shop"}, "8.8.8.8", "shop/web", ""},
		{[]string{"lab"}, "203.0.113.9", "lab/a", "shop"},
		{[]string{"shop"}, "shop/web", "media/ads", "media"},
		{[]string{"media"}, "shop/web", "media/ads", "shop"},
		{[]string{"media"}, "shop/nobody", "media/ads", "shop"}, // not told that there is none
		{[]string{"media"}, "web-1", "media/ads", "shop"},
		{[]string{"media"}, "100.64.0.2", "media/ads", "shop"},
		{[]string{"media", "shop"}, "shop/web", "media/ads", ""},
		{nil, "lab/a", "lab/b", "lab"},
	} {
		f.Reads = reads(tc.reads...)
		for _, do := range []func() error{
			func() error { _, err := Nodes(f, ask(tc.from, tc.to, fabric.TCP, 80)); return err },
			func() error { _, err := Explain(f, ask(tc.from, tc.to, fabric.TCP, 80)); return err },
		} {
			err := do()
			if tc.domain == "" {
				must.NoError(t, err, must.Sprintf("%+v", tc))
				continue
			}
			var refused *UnreadableError
			must.True(t, errors.As(err, &refused), must.Sprintf("%+v: %v", tc, err))
			must.Eq(t, tc.domain, refused.Domain)
		}
	}
	// The beginning of an ID only stands for what may be read.
	f.Reads = reads("media")
	parties, err := resolve(f, "web-", false)
	must.NoError(t, err)
	must.Eq(t, "web-ads", parties[0].Endpoint)
	f.Reads = nil
	_, err = resolve(f, "web-", false)
	must.ErrorContains(t, err, "several endpoints: web-1, web-ads, web-bare")

	// What is wrong with a data path may be about anybody.
	a, err := Explain(f, ask("web-1", "db-1", fabric.TCP, 5432))
	must.NoError(t, err)
	must.Eq(t, []string{"the ebpf of z1/w1: endpoint of lab/a is not guarded"}, a.Flows[0].Differs)
	f.Reads = reads("shop")
	a, err = Explain(f, ask("web-1", "db-1", fabric.TCP, 5432))
	must.NoError(t, err)
	must.Eq(t, []string{"the ebpf of z1/w1: it differs from the desired state; run sif verify with a token that may read all domains"}, a.Flows[0].Differs)
	must.True(t, a.Flows[0].Layers[0].Broken)
}

func TestNodeThatFollowsAnotherRevision(t *testing.T) {
	f := world()
	f.Pointer.Sequence = 4
	for name, d := range f.Dumps {
		d.Sequence = 4
		f.Dumps[name] = d
	}
	behind := f.Dumps[nodeID("z1/p1")]
	behind.Sequence = 3
	f.Dumps[nodeID("z1/p1")] = behind
	a, err := Explain(f, ask("web-1", "db-1", fabric.TCP, 5432))
	must.NoError(t, err)
	must.True(t, a.Agree) // it does what it must all the same
	must.Nil(t, a.Flows[0].Layers[0].Follows)
	must.Eq(t, "z1/p1 switch at the boundary: passes: contract shop/sql (the node follows revision 3)", a.Flows[0].Layers[1].String())
}

// What DNS does not answer with is told, for the destination alone. Packets do not depend on it.
func TestWithheld(t *testing.T) {
	v := world()
	for i := range v.Status.Nodes {
		for j := range v.Status.Nodes[i].Endpoints {
			if e := &v.Status.Nodes[i].Endpoints[j]; e.Endpoint == "db-1" {
				e.Withheld = "it waits for its start"
			}
		}
	}
	a, err := Explain(v, ask("web-1", "shop/db", fabric.TCP, 5432))
	must.NoError(t, err)
	must.True(t, a.Allowed && a.Agree)
	must.Eq(t, "it waits for its start", a.Flows[0].Withheld)
	a, err = Explain(v, ask("db-1", "web-1", fabric.TCP, 5432))
	must.NoError(t, err)
	must.Eq(t, "", a.Flows[0].Withheld)
}
