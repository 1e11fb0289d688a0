// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import (
	"fmt"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
)

func processorsOf(zone string, n int) []fabric.Node {
	var nodes []fabric.Node
	for i := range n {
		nodes = append(nodes, fabric.Node{Zone: zone, Name: fmt.Sprintf("p%d", i), Kind: fabric.KindProcessor})
	}
	return nodes
}

// A pair has the same processor in both directions and whatever the order of the roster, and a
// processor that dies moves only the pairs that it carried.
func TestProcessorOfAPair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := processorsOf("z1", rapid.IntRange(0, 6).Draw(t, "processors"))
		shuffled := rapid.Permutation(nodes).Draw(t, "roster")
		pair := Pair{rapid.String().Draw(t, "a"), rapid.String().Draw(t, "b")}
		topology := NewTopology(nodes, nil, nil)
		chosen, ok := topology.Processor("z1", pair)
		must.Eq(t, len(nodes) > 0, ok)
		for _, other := range []Topology{topology, NewTopology(shuffled, nil, nil)} {
			back, _ := other.Processor("z1", Pair{pair.B, pair.A})
			must.Eq(t, chosen, back)
		}
		if !ok {
			return
		}
		must.True(t, topology.Live(chosen))
		dead := rapid.SampledFrom(nodes).Draw(t, "dead").ID()
		without, ok := NewTopology(nodes, nil, []State{{Processor: dead, Number: 1}}).Processor("z1", pair)
		must.Eq(t, len(nodes) > 1, ok)
		must.NotEq(t, dead, without)
		if chosen != dead {
			must.Eq(t, chosen, without)
		}
	})
}

func TestPairsSpreadEvenly(t *testing.T) {
	topology := NewTopology(processorsOf("z1", 4), nil, nil)
	count := map[fabric.NodeID]int{}
	const pairs = 20000
	for i := range pairs {
		p, _ := topology.Processor("z1", Pair{fmt.Sprintf("web-%d", i%200), fmt.Sprintf("db-%d", i/200)})
		count[p]++
	}
	must.MapLen(t, 4, count)
	for p, n := range count {
		must.Between(t, pairs/4*9/10, n, pairs/4*11/10, must.Sprint(p))
	}
}

func TestTheHigherNumberHolds(t *testing.T) {
	nodes := processorsOf("z1", 2)
	first := nodes[0].ID()
	states := []State{{Processor: first, Number: 3}, {Processor: first, Number: 4, Ready: true}, {Processor: first, Number: 2}}
	must.True(t, NewTopology(nodes, nil, states).Live(first))
	slices.Reverse(states)
	must.True(t, NewTopology(nodes, nil, states).Live(first))
	must.False(t, NewTopology(nodes, nil, append(states, State{Processor: first, Number: 5})).Live(first))
	must.True(t, NewTopology(nodes, nil, []State{{Processor: first, Number: 5}}).Live(nodes[1].ID())) // it has no state
}
