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

// Topology is which zones have processors with a switch, and by which ways the packets of other
// zones' endpoints go. It is not safe for concurrent use.
type Topology struct {
	boundary  map[string]bool // zones with a switch, live or not
	workloads []fabric.Node   // those whose pools are known
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
	t := Topology{boundary: map[string]bool{}, ways: newWays(newGraph(nodes, tunnels, newest))}
	for _, n := range nodes {
		t.boundary[n.Zone] = t.boundary[n.Zone] || n.Boundary()
		if n.Kind.Has(fabric.KindWorkload) && n.Pool4.IsValid() && n.Pool6.IsValid() {
			t.workloads = append(t.workloads, n)
		}
	}
	return t
}

// HasBoundary reports whether a zone has a processor with a switch, live or not.
func HasBoundary(nodes []fabric.Node, zone string) bool {
	return slices.ContainsFunc(nodes, func(n fabric.Node) bool { return n.Zone == zone && n.Boundary() })
}

// HasBoundary reports whether a zone has a processor with a switch, live or not.
func (t Topology) HasBoundary(zone string) bool { return t.boundary[zone] }

// ChooseExit returns the processor by which an endpoint's flows to the outside leave, among those
// that could carry them, and false if there are none. It uses rendezvous hashing: the choice
// depends on nothing else, and a processor that dies moves only the endpoints that it carried.
func ChooseExit(processors []fabric.NodeID, endpoint string) (chosen fabric.NodeID, ok bool) {
	best := uint64(0)
	for _, p := range processors {
		w := weight(p, endpoint)
		if !ok || w > best || w == best && fabric.CompareNodeIDs(p, chosen) < 0 {
			chosen, best, ok = p, w, true
		}
	}
	return chosen, ok
}

// weight is a hash of its arguments. Another text would move the endpoints of running fabrics.
func weight(processor fabric.NodeID, endpoint string) uint64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s 0  %d %s", processor, len(endpoint), endpoint))
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
