// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/node/health"
	"github.com/sif-project/sif/internal/trust/roster"
)

// followInterval is how often the prober is told which ways there are.
const followInterval = time.Second

// keepProbing measures the ways of this node and answers the probes of others until ctx ends.
func (n *Node) keepProbing(ctx context.Context) error {
	if n.Links == nil {
		return nil // no probe reaches it
	}
	following := make(chan struct{})
	go func() {
		defer close(following)
		tick := time.NewTicker(followInterval)
		defer tick.Stop()
		for {
			n.prober.Follow(ways(n.Self, n.Roster.Members(), n.Links.namespaces(), n.Config.Link.MTU))
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	err := n.prober.Run(ctx)
	<-following
	return err
}

// ways returns what a node probes and whom it answers: its processors, nodes of its zone, and, from
// a workload node, by its processor, workload nodes of other zones. spaces are the namespaces of
// the links, by peer.
func ways(self fabric.Node, members []roster.Member, spaces map[fabric.NodeID]string, mtu int) health.View {
	v := health.View{Known: map[netip.Addr]bool{}, Zones: map[string][]health.Target{}}
	if self.Kind.Has(fabric.KindWorkload) {
		v.Spaces = []string{""}
	} else {
		v.Spaces = slices.Sorted(maps.Values(spaces))
	}
	topology := desired.SingleProcessor(nodesOf(members))
	_, leaves := topology.Processor(self.Zone, desired.Pair{})
	for _, m := range members {
		v.Known[m.Health4()], v.Known[m.Health6()] = true, true
		if m.Zone == self.Zone && m.Kind.Has(fabric.KindWorkload) && self.Kind.Has(fabric.KindWorkload) {
			v.Crew++
		}
		if len(m.Link.PublicKey) == 0 || m.ID() == self.ID() {
			continue // it has no links yet
		}
		target := func(peer fabric.NodeID, full int) (t health.Target, there bool) {
			space, there := spaces[peer]
			return health.Target{Node: m.ID(), IPv4: m.Health4(), IPv6: m.Health6(), Space: space, Full: full}, there
		}
		switch {
		case m.Zone == self.Zone && m.Kind.Has(fabric.KindWorkload):
			if t, there := target(ZonePeer, mtu); there {
				v.Others = append(v.Others, t)
			}
		case m.Kind.Has(fabric.KindWorkload) && self.Kind.Has(fabric.KindWorkload):
			if _, enters := topology.Processor(m.Zone, desired.Pair{}); leaves && enters {
				t, _ := target(ZonePeer, SwitchMTU(mtu))
				v.Zones[m.Zone] = append(v.Zones[m.Zone], t)
			}
		}
	}
	for _, p := range processors(self, members) {
		if space, there := spaces[p.ID()]; there && len(p.Link.PublicKey) > 0 {
			v.Processors = append(v.Processors, health.Target{Node: p.ID(), IPv4: p.Health4(), IPv6: p.Health6(), Space: space, Full: mtu})
		}
	}
	return v
}
