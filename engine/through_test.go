// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"fmt"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
)

func TestPathsToEngines(t *testing.T) {
	id := func(zone string) fabric.NodeID { return fabric.NodeID{Zone: zone, Name: "p1"} }
	hop := func(zone, link string) desired.Hop { return desired.Hop{Processor: id(zone), Link: link} }
	tunnel := func(a, b, link string) desired.Tunnel { return desired.Tunnel{A: id(a), B: id(b), Link: link} }
	chain := []desired.Tunnel{tunnel("a", "b", "x"), tunnel("c", "b", "y"), tunnel("c", "d", "z")}
	for _, c := range []struct {
		name    string
		to      string
		tunnels []desired.Tunnel
		want    [][]desired.Hop
	}{
		{"no link", "b", nil, nil},
		{"directly", "b", []desired.Tunnel{tunnel("b", "a", "")}, [][]desired.Hop{{hop("b", "")}}},
		{"never through others without declared links", "c", []desired.Tunnel{tunnel("a", "b", ""), tunnel("b", "c", "")}, nil},
		{"through one", "c", chain, [][]desired.Hop{{hop("b", "x"), hop("c", "y")}}},
		{"through two", "d", chain, [][]desired.Hop{{hop("b", "x"), hop("c", "y"), hop("d", "z")}}},
		{"directly first, then through others", "b", append([]desired.Tunnel{tunnel("a", "c", "v")}, chain...),
			[][]desired.Hop{{hop("b", "x")}, {hop("c", "v"), hop("b", "y")}}},
		{"an island", "f", append([]desired.Tunnel{tunnel("e", "f", "w")}, chain...), nil},
	} {
		must.Eq(t, c.want, pathsTo(id("a"), id(c.to), c.tunnels, 0), must.Sprint(c.name))
	}
	must.Eq(t, map[string]bool{"b": true, "d": true}, linkedZones(id("c"), chain))
}

// Each path is one of tunnels that follow one another to the engine, and there is one for each
// tunnel that leads anywhere near it.
func TestPathsLead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []fabric.Node
		for z := range rapid.IntRange(2, 5).Draw(t, "zones") {
			for p := range rapid.IntRange(1, 2).Draw(t, "processors") {
				nodes = append(nodes, fabric.Node{Zone: fmt.Sprint("z", z), Name: fmt.Sprint("p", p), Kind: fabric.KindProcessor})
			}
		}
		var tunnels []desired.Tunnel
		for _, tunnel := range desired.FullMesh(nodes) {
			if rapid.Bool().Draw(t, "linked") {
				tunnel.Link = "l"
				tunnels = append(tunnels, tunnel)
			}
		}
		self, to := nodes[0].ID(), rapid.SampledFrom(nodes).Draw(t, "to").ID()
		if to.Zone == self.Zone {
			return
		}
		joined := func(a, b fabric.NodeID) bool {
			return slices.ContainsFunc(tunnels, func(t desired.Tunnel) bool { return t.A == a && t.B == b || t.A == b && t.B == a })
		}
		paths := pathsTo(self, to, tunnels, rapid.IntRange(0, 9).Draw(t, "turn"))
		for i, path := range paths {
			at := self
			for _, hop := range path {
				must.True(t, joined(at, hop.Processor) && hop.Processor.Zone != self.Zone)
				at = hop.Processor
			}
			must.Eq(t, to, at)
			must.True(t, i == 0 || len(paths[i-1]) <= len(path))
		}
		reached := map[fabric.NodeID]bool{} // from the engine, without the own zone
		var spread func(at fabric.NodeID)
		spread = func(at fabric.NodeID) {
			reached[at] = true
			for _, n := range nodes {
				if n.Zone != self.Zone && !reached[n.ID()] && joined(at, n.ID()) {
					spread(n.ID())
				}
			}
		}
		spread(to)
		want := 0
		for id := range reached {
			if joined(self, id) {
				want++
			}
		}
		must.Len(t, want, paths)
	})
}
