// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/inspect/verify"
	"github.com/sif-project/sif/internal/node/lease"
)

// Name makes counter a registry that can be asked both ways.
func (c counter) Name(n uint32) string {
	for name, have := range c {
		if have == n {
			return name
		}
	}
	return ""
}

// What the engine has its switch hold is what `sif verify` expects there.
func TestWhatIsProgrammedVerifies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := graph()
		domain := g.Domains["app"]
		domain.Mode = rapid.SampledFrom([]fabric.Mode{fabric.ModeEnforce, fabric.ModeAudit}).Draw(t, "domain")
		domain.Contracts[1].Mode = rapid.SampledFrom([]fabric.Mode{fabric.ModeEnforce, fabric.ModeAudit}).Draw(t, "contract")
		domain.Contracts[0].Rules = append(domain.Contracts[0].Rules, fabric.Rule{Protocol: fabric.ICMP, Ports: []fabric.PortRange{{From: 8, To: 8}}})
		now := time.Unix(2000, 0)
		f := verify.Fabric{Graph: g, Now: now, Pointer: fabric.Pointer{Sequence: 1, Root: fabric.Compile(g).Root}}
		f.Status.Nodes = []api.NodeStatus{
			{Zone: "aws1", Node: "p1", Kind: fabric.KindProcessor}, {Zone: "gcp1", Node: "p1", Kind: fabric.KindProcessor},
		}
		for _, n := range probed() {
			f.Status.Nodes = append(f.Status.Nodes, api.NodeStatus{Zone: n.Zone, Node: n.Name, Kind: n.Kind, Pool4: n.Pool4, Pool6: n.Pool6})
		}
		var live []lease.Lease
		for i := range rapid.IntRange(0, 12).Draw(t, "endpoints") {
			at := rapid.SampledFrom([]int{2, 4}).Draw(t, "node") // aws1/w1 or gcp1/w1
			a := instance(i, f.Status.Nodes[at].Zone, "w1", rapid.SampledFrom([]fabric.Ref{web, svc, news}).Draw(t, "service"))
			live = append(live, lease.Lease{Admission: a})
			f.Status.Nodes[at].Endpoints = append(f.Status.Nodes[at].Endpoints, api.EndpointStatus{Endpoint: a.Endpoint, Service: a.Service, Roles: a.Roles, IPv4: a.IPv4, IPv6: a.IPv6, Expires: a.Expires})
		}
		num := counter{}
		wanted, err := boundary(live, fabric.DocumentsAt(documents(g), now), num)
		must.NoError(t, err)
		ports := map[desired.Hop]ovs.Port{zoneHop: {No: 1}, {Processor: beyond}: {No: 2}}
		b := &bridge{ports: ports, names: num, wanted: wanted, now: time.Now}
		differences := func(s ovs.State) (list []verify.Difference) {
			d := dumpOf(s, ports, b.describes())
			d.Node, d.Sequence, d.Root = fabric.NodeID{Zone: "aws1", Name: "p1"}, 1, f.Pointer.Root
			f.Dumps = map[fabric.NodeID]api.Dump{d.Node: d}
			for _, d := range verify.Compare(f).Differences {
				if d.Node == "aws1/p1" {
					list = append(list, d)
				}
			}
			return list
		}
		self := fabric.NodeID{Zone: "aws1", Name: "p1"}
		for i := range f.Status.Nodes {
			f.Status.Nodes[i].Sequence, f.Status.Nodes[i].Root = f.Pointer.Sequence, f.Pointer.Root
		}
		digest := verify.Digests(f)[self]
		state := b.state()
		must.SliceEmpty(t, differences(state))
		must.Eq(t, digest, f.Dumps[self].Digest())
		if len(state.Entries) > 0 {
			state.Entries = state.Entries[1:]
			must.SliceNotEmpty(t, differences(state))
		}
		state = b.state()
		state.Endpoints = state.Endpoints[1:]
		must.SliceNotEmpty(t, differences(state))
		must.NotEq(t, digest, f.Dumps[self].Digest())
	})
}
