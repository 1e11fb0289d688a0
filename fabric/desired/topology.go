// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/sif-project/sif/fabric"
)

// Topology is where the processors of each zone are that have a switch, which of them live, and by
// which ways the packets of other zones' endpoints go. It is not safe for concurrent use.
type Topology struct {
	live      map[string][]fabric.NodeID // by zone, ordered
	boundary  map[string]bool            // zones with a switch, live or not
	workloads []fabric.Node              // those whose pools are known
	ways      *ways
}

// NewTopology returns the topology of the nodes, with the tunnels among processors of different
// zones. A processor without a state counts as live.
func NewTopology(nodes []fabric.Node, tunnels []Tunnel, states []State) Topology {
	newest := map[fabric.NodeID]State{}
	for _, s := range states {
		if have, ok := newest[s.Processor]; !ok || s.Number > have.Number {
			newest[s.Processor] = s
		}
	}
	g := newGraph(nodes, tunnels, newest)
	t := Topology{live: map[string][]fabric.NodeID{}, boundary: map[string]bool{}, ways: newWays(g)}
	for _, n := range nodes {
		t.boundary[n.Zone] = t.boundary[n.Zone] || n.Boundary()
		if n.Kind.Has(fabric.KindWorkload) && n.Pool4.IsValid() && n.Pool6.IsValid() {
			t.workloads = append(t.workloads, n)
		}
		if n.Boundary() && g.lives(g.index[n.ID()]) {
			t.live[n.Zone] = append(t.live[n.Zone], n.ID())
		}
	}
	for _, list := range t.live {
		slices.SortFunc(list, fabric.CompareNodeIDs)
	}
	return t
}

// Live reports whether a processor is live.
func (t Topology) Live(processor fabric.NodeID) bool {
	return slices.Contains(t.live[processor.Zone], processor)
}

// HasBoundary reports whether a zone has a processor with a switch, live or not.
func HasBoundary(nodes []fabric.Node, zone string) bool {
	return slices.ContainsFunc(nodes, func(n fabric.Node) bool { return n.Zone == zone && n.Boundary() })
}

// HasBoundary reports whether a zone has a processor with a switch, live or not.
func (t Topology) HasBoundary(zone string) bool { return t.boundary[zone] }

// Pair is two endpoints of different zones, by their IDs. Their order does not matter.
type Pair struct{ A, B string }

// Processor returns the live processor of a zone that carries the packets of a pair of endpoints,
// and false if the zone has none. It uses rendezvous hashing: the choice is the same at every hop
// and in both directions, and a processor that dies moves only the pairs that it carried.
func (t Topology) Processor(zone string, pair Pair) (fabric.NodeID, bool) {
	if pair.B < pair.A {
		pair.A, pair.B = pair.B, pair.A
	}
	live := t.live[zone]
	switch len(live) {
	case 0:
		return fabric.NodeID{}, false
	case 1:
		return live[0], true
	}
	chosen, best := live[0], uint64(0)
	for _, processor := range live {
		// live is ordered, so equal weights are decided alike everywhere.
		if w := weight(processor, pair); w > best {
			chosen, best = processor, w
		}
	}
	return chosen, true
}

// weight is a hash of its arguments. The lengths keep ("ab", "c") apart from ("a", "bc").
func weight(processor fabric.NodeID, pair Pair) uint64 {
	text := fmt.Sprintf("%s %d %s %d %s", processor, len(pair.A), pair.A, len(pair.B), pair.B)
	sum := sha256.Sum256([]byte(text))
	return binary.BigEndian.Uint64(sum[:])
}

// probed returns the workload nodes to which something leads from the processor of a zone.
func (t Topology) probed(zone string) []Probed {
	var list []Probed
	for _, n := range t.workloads {
		if way, ok := t.way(zone, n.Zone); ok {
			list = append(list, Probed{Node: n.ID(), IPv4: n.Health4(), IPv6: n.Health6(), Way: way, Group: t.GroupOf(n.ID()), Number: Number(n.ID().String())})
		}
	}
	return list
}

// way returns how the endpoints of a zone are reached from a node of another one or the same, and
// false if nothing leads there.
func (t Topology) way(from, to string) (Way, bool) {
	if from == to {
		return ZoneLink, true
	}
	return ByWays, t.boundary[from] && t.boundary[to]
}

// GroupOf returns the group of a node.
func (t Topology) GroupOf(node fabric.NodeID) Group { return t.ways.groupOf(node) }

// Route returns the way of a bucket from the nodes of one group to those of another, which is of
// another zone. It is false if no way fits the class.
func (t Topology) Route(from, to Group, class Class, bucket uint8) (Route, bool) {
	routes := t.ways.between(from, to, class)
	if routes == nil {
		return Route{}, false
	}
	return routes.route(bucket), true
}

// Sources returns the tunnels by which packets of a zone's endpoints may come to a processor, in
// order. Without declared links, that are those to the zone's own processors.
func (t Topology) Sources(at fabric.NodeID, zone string) []Hop { return t.ways.sources(at, zone) }
