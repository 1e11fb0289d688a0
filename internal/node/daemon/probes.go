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
			n.prober.Follow(ways(n.Self, n.Roster.Members(), n.linkRules(), n.Topology(), n.Links, n.Config.Link.MTU))
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
// a workload node, workload nodes of other zones. It probes each of those by the way of the two
// nodes, and answers them by any processor of its zone: theirs may know another choice already.
func ways(self fabric.Node, members []roster.Member, rules []fabric.LinkRule, topology desired.Topology, links *Links, mtu int) health.View {
	v := health.View{Known: map[netip.Addr][]string{}, Zones: map[string][]health.Target{}, Marks: links.marks()}
	spaces := links.namespaces()
	across := leastMTU(mtu, rules) // of links between zones
	workload := self.Kind.Has(fabric.KindWorkload)
	if workload {
		v.Spaces = []string{""}
	} else {
		v.Spaces = slices.Sorted(maps.Values(spaces))
	}
	number, group := desired.Number(self.ID().String()), topology.GroupOf(self.ID())
	exits := processors(self, members)
	// target is a node behind a tunnel, which is answered there.
	target := func(m roster.Member, by desired.Hop, full int) (t health.Target, there bool) {
		name, assigned := links.Interface(by)
		space, there := spaces[by]
		if !assigned || !there {
			return t, false
		}
		for _, addr := range []netip.Addr{m.Health4(), m.Health6()} {
			v.Known[addr] = append(v.Known[addr], name)
		}
		return health.Target{Node: m.ID(), IPv4: m.Health4(), IPv6: m.Health6(), Space: space, Interface: name, Full: full}, len(m.Link.PublicKey) > 0
	}
	for _, m := range members {
		if m.Zone == self.Zone && m.Kind.Has(fabric.KindWorkload) && workload {
			v.Crew++
		}
		switch {
		case m.ID() == self.ID() || !m.Kind.Has(fabric.KindWorkload):
		case m.Zone == self.Zone:
			if t, there := target(m, ZonePeer, mtu); there {
				v.Others = append(v.Others, t)
			}
		case workload:
			bucket := desired.Bucket(number, desired.Number(m.ID().String()))
			way, leads := topology.Route(group, topology.GroupOf(m.ID()), "", bucket)
			for _, p := range exits {
				t, there := target(m, desired.Hop{Processor: p.ID()}, SwitchMTU(across))
				if there && leads && way.Processors[0] == p.ID() {
					v.Zones[m.Zone] = append(v.Zones[m.Zone], t)
				}
			}
		}
	}
	for _, tunnel := range tunnels(self, members, rules) {
		full := mtu
		if tunnel.rule.MTU > 0 {
			full = tunnel.rule.MTU
		}
		if t, there := target(tunnel.to, tunnel.Hop, full); there {
			t.Link = tunnel.Link
			v.Processors = append(v.Processors, t)
		}
	}
	// Workload nodes must know which processors live, as exits; processors, by which tunnels the
	// others are reached, and which workload nodes of their zone are.
	v.Pulsed = v.Processors
	if self.Boundary() {
		v.Pulsed, v.Whole = slices.Concat(v.Processors, v.Others), true
	}
	return v
}
