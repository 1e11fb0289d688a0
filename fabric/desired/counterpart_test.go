// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
)

// A processor that knows just the endpoints of its zone and those of the services that the zone
// needs enforces the same as one that knows all of the fabric, and verify, which does. What it
// enforces has every endpoint that a flow of the zone, or through it, needs: see
// TestProcessorAgreesWithTheDesign and TestEveryFlowHasItsWays.
func TestWhatAZoneDoesNotNeedMakesNoDifference(t *testing.T) {
	// The order of rules means nothing, and differs from one computation to the next.
	ordered := func(p Processor) Processor {
		slices.SortFunc(p.Rules, func(a, b Rule) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		return p
	}
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		tunnels := FullMesh(w.nodes)
		if rapid.Bool().Draw(t, "declared") {
			for i := range tunnels {
				tunnels[i].Link = "l"
			}
			tunnels = slices.DeleteFunc(tunnels, func(Tunnel) bool { return rapid.IntRange(0, 3).Draw(t, "not linked") == 0 })
		}
		for _, topology := range []Topology{w.topology(), NewTopology(w.nodes, tunnels, nil)} {
			for _, n := range w.nodes {
				if !n.Boundary() {
					continue
				}
				var own []fabric.Identity
				for _, a := range w.endpoints {
					if a.Zone == n.Zone {
						own = append(own, a.Identity())
					}
				}
				needed := topology.Needed(n.Zone, own, w.documents())
				must.Eq(t, topology.CarriesOthers(n.Zone), needed.Everything)
				services := needed.Services()
				known := slices.DeleteFunc(slices.Clone(w.endpoints), func(a fabric.Admission) bool {
					sent := needed.Everything || slices.Contains(services, a.Service)
					must.True(t, sent || !needed.Has(a.Identity()))
					return a.Zone != n.Zone && !sent
				})
				must.Eq(t, ordered(ForProcessor(n.ID(), topology, w.endpoints, w.documents(), w.outside)), ordered(ForProcessor(n.ID(), topology, known, w.documents(), w.outside)))
			}
		}
	})
}

// A zone through which ways of others can lead needs everything; one at the edge does not.
func TestATransitZoneNeedsEverything(t *testing.T) {
	node := func(zone string) fabric.Node {
		return fabric.Node{Zone: zone, Name: "p1", Kind: fabric.KindProcessor}
	}
	nodes := []fabric.Node{node("a"), node("b"), node("c")}
	links := []Tunnel{{A: nodes[0].ID(), B: nodes[1].ID(), Link: "l"}, {A: nodes[1].ID(), B: nodes[2].ID(), Link: "l"}}
	stranger := fabric.Identity{Service: fabric.Ref{Domain: "app", Name: "web"}}
	for zone, everything := range map[string]bool{"a": false, "b": true, "c": false} {
		needed := NewTopology(nodes, links, nil).Needed(zone, nil, nil)
		must.Eq(t, everything, needed.Everything, must.Sprint(zone))
		must.Eq(t, everything, needed.Has(stranger))
		must.False(t, NewTopology(nodes, FullMesh(nodes), nil).Needed(zone, nil, nil).Everything)
	}
}
