// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired_test

import (
	"fmt"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/fabric/desired/desiredtest"
)

// BenchmarkScale computes what nodes of a fabric of 100 zones and 1,000 nodes must enforce: where
// every two processors of different zones are linked, and where each zone is linked to the hub of
// its region only. A hub carries what others exchange.
func BenchmarkScale(b *testing.B) {
	for _, c := range []struct {
		name  string
		links bool
		node  fabric.NodeID
	}{
		{"mesh/processor", false, desiredtest.Node(30, "p", 0)},
		{"mesh/workload", false, desiredtest.Node(30, "w", 0)},
		{"hubs/processor", true, desiredtest.Node(30, "p", 0)},
		{"hubs/hub", true, desiredtest.Node(25, "p", 0)},
		{"hubs/workload", true, desiredtest.Node(30, "w", 0)},
	} {
		f := desiredtest.Size{Zones: 100, Processors: 2, Workloads: 8, Endpoints: 20, Services: 1000, Links: c.links}.Build()
		compute := func(t desired.Topology) (endpoints, rules int, ways []desired.Spread) {
			if c.node.Name[0] == 'p' {
				p := desired.ForProcessor(c.node, t, f.Endpoints, f.Docs, fabric.Outside{})
				return len(p.Endpoints), len(p.Rules), p.Ways
			}
			w := desired.ForWorkload(c.node, t, f.Endpoints, f.Docs, fabric.Outside{})
			return len(w.Endpoints), len(w.Rules), w.Ways
		}
		report := func(b *testing.B, t desired.Topology) {
			endpoints, rules, ways := compute(t)
			b.ReportMetric(float64(endpoints), "endpoints")
			b.ReportMetric(float64(rules), "rules")
			b.ReportMetric(float64(len(ways)), "ways")
		}
		b.Run(c.name+"/state", func(b *testing.B) { // of a processor has changed
			b.ReportAllocs()
			for b.Loop() {
				compute(desired.NewTopology(f.Nodes, f.Tunnels, nil))
			}
			report(b, desired.NewTopology(f.Nodes, f.Tunnels, nil))
		})
		b.Run(c.name+"/endpoint", func(b *testing.B) { // has come or gone
			t := desired.NewTopology(f.Nodes, f.Tunnels, nil)
			compute(t)
			b.ReportAllocs()
			for b.Loop() {
				compute(t)
			}
			report(b, t)
		})
	}
}

// The fabrics of the benchmark are what it says they are.
func TestFabricsOfAnySize(t *testing.T) {
	for _, links := range []bool{false, true} {
		f := desiredtest.Size{Zones: 100, Processors: 2, Workloads: 8, Endpoints: 20, Services: 1000, Links: links}.Build()
		must.Len(t, 1000, f.Nodes)
		must.Len(t, 16000, f.Endpoints)
		must.MapLen(t, 1000, f.Docs)
		addresses, zones := map[string]bool{}, map[string]bool{}
		for _, e := range f.Endpoints {
			addresses[fmt.Sprint(e.IPv4)], addresses[fmt.Sprint(e.IPv6)], zones[e.Zone] = true, true, true
		}
		must.MapLen(t, 32000, addresses)
		must.MapLen(t, 100, zones)
		topology := desired.NewTopology(f.Nodes, f.Tunnels, nil)
		for _, to := range []int{0, 26, 25, 99} {
			route, ok := topology.Route(desired.Group{Zone: "z30"}, desired.Group{Zone: fmt.Sprint("z", to)}, "", 7)
			must.True(t, ok)
			if hops := len(route.Links); !links {
				must.Eq(t, 1, hops)
			} else {
				must.Between(t, 1, hops, 3)
			}
		}
	}
}
