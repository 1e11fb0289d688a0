// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
)

type fixedNames map[uint32]string

func (f fixedNames) Name(n uint32) string { return f[n] }

func TestDumpOf(t *testing.T) {
	names := fixedNames{16: "identity shop/web >shop/sql", 17: "identity shop/db <shop/sql", 18: "entry 16 17 shop/sql tcp/5432", 19: "entry 16 17 shop/too tcp/5432"}
	ports := map[desired.Hop]ovs.Port{zoneHop: {No: 1}, {Processor: beyond}: {No: 2, Routers: true}}
	web, db := netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("100.64.1.2")
	endpoint := func(id uint64, a netip.Addr, class, port uint32) ovs.Endpoint {
		return ovs.Endpoint{ID: id, Class: class, OutPort: port, SourcePorts: []uint32{port}, Prefixes: []netip.Prefix{netip.PrefixFrom(a, 32)}}
	}
	state := ovs.State{
		Ports:     []ovs.Port{ports[zoneHop], ports[desired.Hop{Processor: beyond}]},
		Endpoints: []ovs.Endpoint{endpoint(1, web, 16, 1), endpoint(2, db, 17, 2)},
		Entries: []ovs.Entry{
			{ID: 18, Src: 16, Dst: 17, Protocol: 6, Ports: []ovs.PortRange{{First: 5432, Last: 5432}}},
			{ID: 19, Src: 16, Dst: 17},
		},
	}
	rule := api.DumpRule{From: "shop/web >shop/sql", To: "shop/db <shop/sql", Protocol: fabric.TCP, Ports: fabric.PortRange{From: 5432, To: 5432}, Contract: "shop/sql"}
	shadowed := api.DumpRule{From: rule.From, To: rule.To, Protocol: fabric.TCP, Contract: "shop/too", Shadowed: true}
	must.Eq(t, api.Dump{
		Layer: api.LayerSwitch,
		Peers: []api.DumpPeer{{Address: web, Identity: rule.From, Via: desired.ZoneLink.String()}, {Address: db, Identity: rule.To, Via: "gcp1/p1"}},
		Rules: []api.DumpRule{rule, shadowed},
	}, dumpOf(state, ports, newSwitchNames(ports, names)))

	state.Ports = state.Ports[:1]
	state.Endpoints[0].SourcePorts = []uint32{1, 2}
	state.Entries[0].Dst = 16
	state.Entries[1].ID = 77
	must.Eq(t, []string{
		"packets from 100.64.0.2 may come in by the port to the zone's nodes and the port to gcp1/p1, but packets to it go out by the port to the zone's nodes",
		`the entry of contract shop/sql over tcp/5432 is from "shop/web >shop/sql" to "shop/web >shop/sql", but was made for other identities`,
		"the port to gcp1/p1 is missing or altered",
		"the switch contains entry 77, which this engine never assigned",
	}, dumpOf(state, ports, newSwitchNames(ports, names)).Problems)
	n := newSwitchNames(ports, names)
	must.Eq(t, "unassigned class 99", n.Class(99))
	must.Eq(t, "unknown port 9", n.Port(9))
	must.Eq(t, "unknown entry 99", n.Entry(99))
}

// An expired contract leaves the switch when the engine looks again.
func TestContractExpires(t *testing.T) {
	w := newWorld(t)
	e, sw, docs := w.engine("aws1")
	now := time.Unix(2000, 0)
	e.now = func() time.Time { return now }
	g := graph()
	g.Domains["app"].Contracts[0].Expires = now.Add(time.Minute)
	docs.docs = documents(g)
	_, err := w.connect(e, "w1", w.request(1, "aws1", "w1", web))
	must.NoError(t, err)
	_, err = w.connect(e, "w2", w.request(2, "aws1", "w2", svc))
	must.NoError(t, err)
	must.MapLen(t, 1, sw.last.Entries)
	now = now.Add(time.Minute)
	must.NoError(t, e.Refresh(t.Context()))
	must.MapLen(t, 0, sw.last.Entries)
	must.MapLen(t, 2, sw.last.Endpoints)
}
