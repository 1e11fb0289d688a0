// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package verify

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/trust/signature"
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

func refs(list ...string) (out []fabric.Ref) {
	for _, s := range list {
		out = append(out, ref(s))
	}
	return out
}

func tcp(ports ...uint16) []fabric.Rule {
	r := fabric.Rule{Protocol: fabric.TCP}
	for _, p := range ports {
		r.Ports = append(r.Ports, fabric.PortRange{From: p, To: p})
	}
	return []fabric.Rule{r}
}

// world is two zones: web and db in z1, on two nodes, and db in z2 as well. users reach web from
// outside; probe may be removed soon, old has expired.
func world() Fabric {
	g := &fabric.Graph{Domains: map[string]*fabric.Domain{"shop": {
		Name: "shop", Services: []fabric.Service{{Name: "web"}, {Name: "db"}},
		Externals: []fabric.External{{Name: "users", Prefixes: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}},
		Contracts: []fabric.Contract{
			{Name: "sql", Originators: refs("shop/web"), Responders: refs("shop/db"), Rules: tcp(5432)},
			{Name: "probe", Mode: fabric.ModeAudit, Originators: refs("shop/web"), Responders: refs("shop/db"), Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 5000, To: 6000}}}}},
			{Name: "old", Expires: now, Originators: refs("shop/db"), Responders: refs("shop/web"), Rules: tcp(80)},
			{Name: "front", Originators: refs("shop/users"), Responders: refs("shop/web"), Rules: tcp(443)},
		},
	}}}
	docs, root := Documents(g, now.Add(-time.Hour)), fabric.Compile(g).Root
	node := func(zone, name string, kind fabric.NodeKind, endpoints ...api.EndpointStatus) api.NodeStatus {
		return api.NodeStatus{Zone: zone, Node: name, Kind: kind, Sequence: 3, Root: root, Endpoints: endpoints}
	}
	endpoint := func(id, service string, net, host byte) api.EndpointStatus {
		return api.EndpointStatus{Endpoint: id, Service: ref(service), Roles: docs[ref(service)].Roles(), Expires: now.Add(time.Hour),
			IPv4: netip.AddrFrom4([4]byte{100, 64, net, host}), IPv6: netip.AddrFrom16([16]byte{0xfd, 0x5f, 13: net, 15: host})}
	}
	f := Fabric{
		Graph: g, Now: now, Pointer: fabric.Pointer{Sequence: 3, Root: root},
		Status: api.Status{Nodes: []api.NodeStatus{
			node("z1", "p1", fabric.KindProcessor), node("z2", "p1", fabric.KindProcessor),
			node("z1", "w1", fabric.KindWorkload, endpoint("web-1", "shop/web", 1, 2)),
			node("z1", "w2", fabric.KindWorkload, endpoint("db-1", "shop/db", 2, 2)),
			node("z2", "w1", fabric.KindWorkload, endpoint("db-2", "shop/db", 3, 2)),
		}},
		Dumps: map[fabric.NodeID]api.Dump{}, Failed: map[fabric.NodeID]string{},
	}
	web, db := "shop/web >shop/probe >shop/sql <shop/front <shop/old", "shop/db >shop/old <shop/probe <shop/sql"
	peers := func(list ...[2]string) (out []api.DumpPeer) { // by the endpoint's zone if the way is "ways"
		for _, p := range list {
			for _, n := range f.Status.Nodes {
				for _, e := range n.Endpoints {
					if e.Endpoint == p[0] {
						id := web
						if e.Service.Name == "db" {
							id = db
						}
						via := p[1]
						if via == "ways" {
							via = desired.ViaWays(desired.Group{Zone: n.Zone}, desired.Number(e.Endpoint))
						}
						out = append(out, api.DumpPeer{Address: e.IPv4, Identity: id, Via: via}, api.DumpPeer{Address: e.IPv6, Identity: id, Via: via})
					}
				}
			}
		}
		return out
	}
	rule := func(from, to string, first, last uint16, contract string, audit bool) api.DumpRule {
		return api.DumpRule{From: from, To: to, Protocol: fabric.TCP, Ports: fabric.PortRange{From: first, To: last}, Contract: "shop/" + contract, Audit: audit}
	}
	rules := []api.DumpRule{
		rule(web, db, 5000, 5431, "probe", true), rule(web, db, 5432, 5432, "sql", false), rule(web, db, 5433, 6000, "probe", true),
	}
	ways := func(from, to, by string) []api.DumpWay {
		var next [desired.Buckets]desired.Hop
		for bucket := range next {
			next[bucket] = desired.Hop{Processor: nodeID(by)}
		}
		return []api.DumpWay{{From: from, To: to, Next: desired.Shares(next)}}
	}
	guard := func(n int, id string) []api.DumpEndpoint {
		e := f.Status.Nodes[n].Endpoints[0]
		return []api.DumpEndpoint{{IPv4: e.IPv4, IPv6: e.IPv6, Identity: id}}
	}
	users := api.DumpExternal{Prefix: netip.MustParsePrefix("203.0.113.0/24"), Identity: "external shop/users", In: true}
	f.Dumps[nodeID("z1/w1")] = api.Dump{Layer: api.LayerEBPF, Sequence: 3, Root: root, Guarded: guard(2, web),
		Peers: peers([2]string{"web-1", "endpoint"}, [2]string{"db-1", "zone"}, [2]string{"db-2", "ways"}), Ways: ways("z1", "z2", "z1/p1"),
		External: []api.DumpExternal{users}, Rules: append(slices.Clone(rules), rule(users.Identity, web, 443, 443, "front", false))}
	f.Dumps[nodeID("z1/w2")] = api.Dump{Layer: api.LayerEBPF, Sequence: 3, Root: root, Guarded: guard(3, db), Peers: peers([2]string{"db-1", "endpoint"}, [2]string{"web-1", "zone"}), Rules: slices.Clone(rules)}
	f.Dumps[nodeID("z2/w1")] = api.Dump{Layer: api.LayerEBPF, Sequence: 3, Root: root, Guarded: guard(4, db), Peers: peers([2]string{"db-2", "endpoint"}, [2]string{"web-1", "ways"}), Ways: ways("z2", "z1", "z2/p1"), Rules: slices.Clone(rules)}
	// The switch has the wider entry first; it hides the other.
	sw := []api.DumpRule{rule(web, db, 5000, 6000, "probe", false), {From: web, To: db, Protocol: fabric.TCP, Contract: "shop/sql", Shadowed: true}}
	f.Dumps[nodeID("z1/p1")] = api.Dump{Layer: api.LayerSwitch, Sequence: 3, Root: root, Rules: slices.Clone(sw), Peers: peers([2]string{"web-1", "zone"}, [2]string{"db-1", "zone"}, [2]string{"db-2", "ways"}), Ways: ways("z1", "z2", "z2/p1")}
	f.Dumps[nodeID("z2/p1")] = api.Dump{Layer: api.LayerSwitch, Sequence: 3, Root: root, Rules: slices.Clone(sw), Peers: peers([2]string{"web-1", "ways"}, [2]string{"db-2", "zone"}), Ways: ways("z2", "z1", "z1/p1")} // nothing there leads to db-1
	return f
}

// follow makes another root the one in force, which every node follows.
func (f *Fabric) follow(root fabric.Hash) {
	f.Pointer.Root = root
	for name, d := range f.Dumps {
		d.Root = root
		f.Dumps[name] = d
	}
}

func TestAgreement(t *testing.T) {
	r := Compare(world())
	must.SliceEmpty(t, r.Differences)
	must.True(t, r.Agrees())
	must.Eq(t, 5, r.Nodes)
	must.Greater(t, 20, r.Entries)
	must.Eq(t, signature.Unchecked, r.State)
}

func TestDifferences(t *testing.T) {
	change := func(node string, do func(*api.Dump)) func(*Fabric) {
		return func(f *Fabric) {
			d := f.Dumps[nodeID(node)]
			do(&d)
			f.Dumps[nodeID(node)] = d
		}
	}
	for _, tc := range []struct {
		name   string
		change func(*Fabric)
		want   []string // the beginning of each, in order
	}{
		{"rule missing", change("z1/w2", func(d *api.Dump) { d.Rules = slices.Delete(d.Rules, 1, 2) }),
			[]string{`z1/w2 ebpf: missing rule "shop/web >shop/probe >shop/sql <shop/front <shop/old" -> "shop/db >shop/old <shop/probe <shop/sql" tcp/5432: must be contract shop/sql`}},
		{"rule too narrow", change("z1/w2", func(d *api.Dump) { d.Rules[0].Ports.From = 5100 }), []string{"z1/w2 ebpf: missing rule"}},
		{"rule too wide", change("z1/w2", func(d *api.Dump) { d.Rules[2].Ports.To = 65535 }), []string{"z1/w2 ebpf: extra rule"}},
		{"audit lost", change("z1/w2", func(d *api.Dump) { d.Rules[0].Audit = false }), []string{"z1/w2 ebpf: altered rule"}},
		{"audit where it is enforced", change("z1/w2", func(d *api.Dump) { d.Rules[1].Contract, d.Rules[1].Audit = "shop/probe", true }), []string{"z1/w2 ebpf: altered rule"}},
		{"rules back to front", change("z1/w2", func(d *api.Dump) { d.Rules[1].From, d.Rules[1].To = d.Rules[1].To, d.Rules[1].From }),
			[]string{"z1/w2 ebpf: extra rule", "z1/w2 ebpf: missing rule"}},
		{"an expired contract stays", change("z1/w1", func(d *api.Dump) {
			d.Rules = append(d.Rules, api.DumpRule{From: d.Rules[0].To, To: d.Rules[0].From, Protocol: fabric.TCP, Ports: fabric.PortRange{From: 80, To: 80}, Contract: "shop/old"})
		}), []string{"z1/w1 ebpf: extra rule"}},
		{"a contract expires", func(f *Fabric) {
			f.Graph.Domains["shop"].Contracts[0].Expires = now
			f.follow(fabric.Compile(f.Graph).Root)
		},
			[]string{"z1/p1 switch: extra entry", "z2/p1 switch: extra entry", "z1/w1 ebpf: altered rule", "z1/w2 ebpf: altered rule", "z2/w1 ebpf: altered rule"}},
		{"peer by another way", change("z1/w1", func(d *api.Dump) { d.Peers[2].Via = "z1/p1" }), []string{"z1/w1 ebpf: altered address 100.64.2.2"}},
		{"peer is somebody else", change("z1/p1", func(d *api.Dump) { d.Peers[2].Identity = d.Peers[0].Identity }), []string{"z1/p1 switch: altered address 100.64.2.2"}},
		{"peer missing", change("z1/p1", func(d *api.Dump) { d.Peers = d.Peers[1:] }), []string{"z1/p1 switch: missing address 100.64.1.2"}},
		{"peer of nobody", change("z1/w1", func(d *api.Dump) {
			d.Peers = append(d.Peers, api.DumpPeer{Address: netip.MustParseAddr("100.64.9.9"), Identity: "shop/web", Via: "zone"})
		}), []string{"z1/w1 ebpf: extra address 100.64.9.9"}},
		{"endpoint not guarded", change("z1/w1", func(d *api.Dump) { d.Guarded = nil }), []string{"z1/w1 ebpf: missing endpoint 100.64.1.2"}},
		{"a check of nobody", change("z1/w1", func(d *api.Dump) { d.Guarded[0].Checks = []fabric.Check{{Protocol: fabric.TCP, Port: 22}} }), []string{"z1/w1 ebpf: altered endpoint 100.64.1.2"}},
		{"external missing", change("z1/w1", func(d *api.Dump) { d.External = nil }), []string{"z1/w1 ebpf: missing external 203.0.113.0/24"}},
		{"switch: entry in nobody's name", change("z1/p1", func(d *api.Dump) { d.Rules[0].Contract = "shop/other" }),
			[]string{"z1/p1 switch: extra entry", "z1/p1 switch: missing entry", "z1/p1 switch: altered rule", "z1/p1 switch: altered rule", "z1/p1 switch: altered rule"}},
		{"switch: hidden entry missing", change("z1/p1", func(d *api.Dump) { d.Rules = d.Rules[:1] }), []string{"z1/p1 switch: missing entry"}},
		{"test override", change("z1/p1", func(d *api.Dump) { d.Problems = []string{"everything passes"} }), []string{"z1/p1 switch: broken data path: everything passes"}},
		{"revision behind", change("z1/p1", func(d *api.Dump) { d.Sequence = 2 }), []string{"z1/p1 switch: altered revision: must be 3, is 2"}},
		{"revision ahead", change("z1/w2", func(d *api.Dump) { d.Sequence = 4 }), []string{"z1/w2 ebpf: altered revision: must be 3, is 4"}},
		{"another root", change("z1/p1", func(d *api.Dump) { d.Root[0]++ }), []string{"z1/p1 switch: altered revision: must be 3 with root "}},
		{"behind, and a rule of before", change("z2/w1", func(d *api.Dump) { d.Sequence = 2; d.Rules[2].Ports.To = 65535 }),
			[]string{"z2/w1 ebpf: altered revision: must be 3, is 2", "z2/w1 ebpf: extra rule"}},
		{"two behind", func(f *Fabric) {
			change("z1/p1", func(d *api.Dump) { d.Problems = []string{"everything passes"} })(f)
			change("z2/w1", func(d *api.Dump) { d.Sequence = 1 })(f)
			change("z1/w1", func(d *api.Dump) { d.Sequence = 2 })(f)
		}, []string{"z1/w1 ebpf: altered revision: must be 3, is 2", "z2/w1 ebpf: altered revision: must be 3, is 1", "z1/p1 switch: broken data path: everything passes"}},
		{"no dump of one behind", func(f *Fabric) {
			delete(f.Dumps, nodeID("z2/w1"))
			f.Failed[nodeID("z2/w1")] = "it did not answer"
			f.Status.Nodes[4].Sequence = 2
		}, []string{"z2/w1 ebpf: altered revision: must be 3, is 2", "z2/w1 ebpf: broken data path: it did not answer"}},
		{"a report that is older than the dump", func(f *Fabric) { f.Status.Nodes[4].Sequence = 2; f.Dumps[nodeID("z2/w1")].Rules[2].Ports.To++ }, []string{"z2/w1 ebpf: extra rule"}},
		{"no dump", func(f *Fabric) { delete(f.Dumps, nodeID("z2/w1")); f.Failed[nodeID("z2/w1")] = "it did not answer" }, []string{"z2/w1 ebpf: broken data path: it did not answer"}},
		{"another graph", func(f *Fabric) { root := f.Pointer.Root; root[0]++; f.follow(root) }, []string{"controller: altered graph: the graph compiles to root "}},
		{"no signature", func(f *Fabric) { f.Anchor = &signature.Anchor{Source: "a file"} }, []string{"controller: broken signature of the revision: the controller returned no signed pointer"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := world()
			tc.change(&f)
			r := Compare(f)
			must.False(t, r.Agrees())
			var all []string
			for _, d := range r.Differences {
				all = append(all, d.String())
			}
			text := strings.Join(all, "\n")
			must.Len(t, len(tc.want), all, must.Sprint(text))
			for i, want := range tc.want {
				must.StrHasPrefix(t, want, all[i])
			}
		})
	}
}

// An endpoint that is no longer admitted has to go from everywhere.
func TestEndpointGone(t *testing.T) {
	f := world()
	f.Status.Nodes[4].Endpoints[0].Expires = now
	extra := map[string]int{}
	for _, d := range Compare(f).Differences {
		must.Eq(t, Extra, d.Kind)
		extra[d.Node]++
	}
	// On its own node everything goes; elsewhere its two addresses, and at its boundary all that
	// led to it, what only it needed of the other zone among that; everywhere the ways between the
	// zones.
	must.Eq(t, map[string]int{"z1/p1": 3, "z2/p1": 8, "z1/w1": 3, "z2/w1": 9}, extra)
}
