// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/node/states"
)

// newStates returns the set of the processors' states of a node that has joined.
func (n *Node) newStates() *states.Set {
	return states.New(states.Verifier{VerifyBy: n.Identity.VerifyBy, Node: n.member, Removed: n.Removals.List})
}

// Tunnels returns the tunnels among the fabric's processors of different zones.
func (n *Node) Tunnels() []desired.Tunnel { return desired.Tunnels(n.Nodes(), n.linkRules()) }

// Topology returns where the processors are, and which of them live as far as this node knows.
func (n *Node) Topology() desired.Topology {
	var known []desired.State
	if n.States != nil {
		known = n.States.States()
	}
	return desired.NewTopology(n.Nodes(), n.Tunnels(), known)
}

// Live says which of the nodes that this one pulses answer, by the tunnels to them; it has none of
// which that is not known.
func (n *Node) Live() map[desired.Hop]bool { return n.prober.Live() }

// OnLive has f called when one of those has begun or ceased to answer. It must be called before
// Run.
func (n *Node) OnLive(f func()) { n.prober.OnLife(f) }
