// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"slices"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
)

// A workload node probes the nodes of other zones by the processor that carries the pair, with the
// mark of its link, and answers them by each processor of its zone.
func TestProbesFollowTheWays(t *testing.T) {
	members := tunnelSite(t)
	self := member(members, "a", "w1").Node
	l := newTunnelLinks(t, t.TempDir())
	_, err := l.assign(self, members, nil)
	must.NoError(t, err)
	l.spaces = map[desired.Hop]string{}
	for hop := range l.slots {
		l.spaces[hop] = ""
	}
	nodes := nodesOf(members)
	p1, p2 := fabric.NodeID{Zone: "a", Name: "p1"}, fabric.NodeID{Zone: "a", Name: "p2"}
	device := func(processor fabric.NodeID) string {
		name, there := l.Interface(desired.Hop{Processor: processor})
		must.True(t, there)
		return name
	}
	for _, dead := range []fabric.NodeID{p1, p2} {
		states := []desired.State{{Processor: dead, Number: 1}}
		v := ways(self, members, nil, desired.NewTopology(nodes, desired.FullMesh(nodes), states), l, 1420)
		must.MapLen(t, 2, v.Zones)
		other := p1
		if dead == p1 {
			other = p2
		}
		for _, zone := range []string{"b", "c"} {
			must.Len(t, 1, v.Zones[zone])
			must.Eq(t, device(other), v.Zones[zone][0].Interface)
			must.NotEq(t, 0, v.Marks[device(other)])
			known := slices.Sorted(slices.Values(v.Known[member(members, zone, "w1").Health4()]))
			must.Eq(t, slices.Sorted(slices.Values([]string{device(p1), device(p2)})), known)
		}
	}
}
