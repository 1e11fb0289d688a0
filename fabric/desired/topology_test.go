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

func idsOf(nodes []fabric.Node) (ids []fabric.NodeID) {
	for _, n := range nodes {
		ids = append(ids, n.ID())
	}
	return ids
}

// An endpoint has the same exit whatever the order of the roster, and an exit that dies moves only
// the endpoints that it carried.
func TestExitOfAnEndpoint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		exits := idsOf(processorsOf("z1", rapid.IntRange(0, 6).Draw(t, "processors")))
		endpoint := rapid.String().Draw(t, "endpoint")
		chosen, ok := ChooseExit(exits, endpoint)
		must.Eq(t, len(exits) > 0, ok)
		again, _ := ChooseExit(rapid.Permutation(exits).Draw(t, "roster"), endpoint)
		must.Eq(t, chosen, again)
		if !ok {
			return
		}
		must.SliceContains(t, exits, chosen)
		dead := rapid.SampledFrom(exits).Draw(t, "dead")
		without, ok := ChooseExit(slices.DeleteFunc(slices.Clone(exits), func(p fabric.NodeID) bool { return p == dead }), endpoint)
		must.Eq(t, len(exits) > 1, ok)
		must.NotEq(t, dead, without)
		if chosen != dead {
			must.Eq(t, chosen, without)
		}
	})
}

func TestEndpointsSpreadEvenly(t *testing.T) {
	exits := idsOf(processorsOf("z1", 4))
	count := map[fabric.NodeID]int{}
	const endpoints = 20000
	for i := range endpoints {
		p, _ := ChooseExit(exits, fmt.Sprintf("web-%d", i))
		count[p]++
	}
	must.MapLen(t, 4, count)
	for p, n := range count {
		must.Between(t, endpoints/4*9/10, n, endpoints/4*11/10, must.Sprint(p))
	}
}

// An agent that is upgraded goes on to use the exits that the one before chose.
func TestExitStaysOverUpgrades(t *testing.T) {
	exits := idsOf(processorsOf("z1", 4))
	for endpoint, want := range map[string]string{
		"00000000-0000-4000-8000-000000000000": "p0", "00000000-0000-4000-8000-000000000001": "p3", "00000000-0000-4000-8000-000000000002": "p0",
		"00000000-0000-4000-8000-000000000003": "p3", "00000000-0000-4000-8000-000000000004": "p3", "00000000-0000-4000-8000-000000000005": "p2",
	} {
		chosen, _ := ChooseExit(exits, endpoint)
		must.Eq(t, want, chosen.Name)
	}
}

func TestTheHigherNumberHolds(t *testing.T) {
	nodes := processorsOf("z1", 2)
	first := nodes[0].ID()
	live := func(processor fabric.NodeID, states []State) bool {
		w := NewTopology(nodes, nil, states).ways
		return w.live[w.index[processor]]
	}
	states := []State{{Processor: first, Number: 3}, {Processor: first, Number: 4, Ready: true}, {Processor: first, Number: 2}}
	must.True(t, live(first, states))
	slices.Reverse(states)
	must.True(t, live(first, states))
	must.False(t, live(first, append(states, State{Processor: first, Number: 5})))
	must.True(t, live(nodes[1].ID(), []State{{Processor: first, Number: 5}})) // it has no state
}
