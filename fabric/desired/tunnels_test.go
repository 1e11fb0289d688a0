// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

func TestTunnels(t *testing.T) {
	node := func(zone, name string, kind fabric.NodeKind) fabric.Node {
		return fabric.Node{Zone: zone, Name: name, Kind: kind}
	}
	nodes := []fabric.Node{
		node("a", "p1", fabric.KindProcessor), node("a", "p2", fabric.KindProcessor), node("a", "w1", fabric.KindWorkload),
		node("b", "p1", fabric.KindProcessor), node("c", "p1", fabric.KindProcessor),
	}
	must.Eq(t, FullMesh(nodes), Tunnels(nodes, nil))
	fast := fabric.LinkRule{Name: "fast", Between: [2]fabric.LinkEnd{{Zone: "b"}, {Zone: "a", Node: "p2"}}, Labels: []string{"z", "y"}, Cost: 7}
	every := fabric.LinkRule{Name: "every", Between: [2]fabric.LinkEnd{{Zone: "*"}, {Zone: "c"}}, Cost: 100}
	off := fabric.LinkRule{Name: "off", Between: [2]fabric.LinkEnd{{Zone: "*"}, {Zone: "*"}}, Disabled: true}
	must.Eq(t, []Tunnel{
		{A: nodes[0].ID(), B: nodes[4].ID(), Link: "every", Cost: 100},
		{A: nodes[1].ID(), B: nodes[4].ID(), Link: "every", Cost: 100},
		{A: nodes[3].ID(), B: nodes[4].ID(), Link: "every", Cost: 100},
		{A: nodes[1].ID(), B: nodes[3].ID(), Link: "fast", Labels: []string{"y", "z"}, Cost: 7},
	}, Tunnels(nodes, []fabric.LinkRule{fast, every, off}))
	must.SliceEmpty(t, Tunnels(nodes, []fabric.LinkRule{off}))
}
