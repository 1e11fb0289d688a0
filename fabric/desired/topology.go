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

// LinkState is what engines publish about a processor. Of two states of one processor the one with
// the higher number holds, so all hops that know the newest state choose alike.
type LinkState struct {
	Processor fabric.NodeID
	Number    uint64
	Live      bool
}

// Topology is where the processors of each zone are that have a switch, and which of them are live.
type Topology struct {
	live      map[string][]fabric.NodeID // by zone, ordered
	boundary  map[string]bool            // zones with a switch, live or not
	workloads []fabric.Node              // those whose pools are known
}

// NewTopology returns the topology of the nodes. A processor without a state counts as live.
func NewTopology(nodes []fabric.Node, states []LinkState) Topology {
	newest := map[fabric.NodeID]LinkState{}
	for _, s := range states {
		if have, ok := newest[s.Processor]; !ok || s.Number > have.Number {
			newest[s.Processor] = s
		}
	}
	t := Topology{live: map[string][]fabric.NodeID{}, boundary: map[string]bool{}}
	for _, n := range nodes {
		t.boundary[n.Zone] = t.boundary[n.Zone] || n.Boundary()
		if n.Kind.Has(fabric.KindWorkload) && n.Pool4.IsValid() && n.Pool6.IsValid() {
			t.workloads = append(t.workloads, n)
		}
		if s, ok := newest[n.ID()]; !n.Boundary() || ok && !s.Live {
			continue
		}
		t.live[n.Zone] = append(t.live[n.Zone], n.ID())
	}
	for _, list := range t.live {
		slices.SortFunc(list, fabric.CompareNodeIDs)
	}
	return t
}

// SingleProcessor returns the topology in which only the first processor of each zone, by name, is
// live. Engines do not publish link states yet, and maps and flow tables keep one way for each
// address; until both change, all nodes use this topology.
func SingleProcessor(nodes []fabric.Node) Topology {
	first := map[string]fabric.NodeID{}
	for _, n := range nodes {
		if have, ok := first[n.Zone]; n.Boundary() && (!ok || n.Name < have.Name) {
			first[n.Zone] = n.ID()
		}
	}
	var states []LinkState
	for _, n := range nodes {
		if n.Boundary() {
			states = append(states, LinkState{Processor: n.ID(), Live: n.ID() == first[n.Zone]})
		}
	}
	return NewTopology(nodes, states)
}

// Live reports whether a processor is live.
func (t Topology) Live(processor fabric.NodeID) bool {
	return slices.Contains(t.live[processor.Zone], processor)
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
		if way, ok := t.way(zone, fabric.Admission{Endpoint: n.ID().String(), Zone: n.Zone}, n.Zone); ok {
			list = append(list, Probed{Node: n.ID(), IPv4: n.Health4(), IPv6: n.Health6(), Way: way})
		}
	}
	return list
}

// way returns how an endpoint is reached from a node of zone, and false if nothing leads there. The
// packets of other zones' endpoints come by a processor of the zone via. A data path keeps one way
// for each address, so the choice cannot depend on the other end of the pair: see SingleProcessor.
func (t Topology) way(zone string, a fabric.Admission, via string) (Way, bool) {
	if a.Zone == zone {
		return ZoneLink, true
	}
	processor, ok := t.Processor(via, Pair{A: a.Endpoint})
	return Through(processor), ok
}
