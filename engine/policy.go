// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"fmt"
	"net/netip"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
)

// SwitchState is what the switch at the zone's boundary must contain: desired.Processor in numbers.
// Its size is endpoints + pairs of identities with a contract, never pairs of endpoints.
type SwitchState struct {
	Endpoints map[string]SwitchEndpoint        // by endpoint
	Probes    map[fabric.NodeID]SwitchEndpoint // the health addresses of workload nodes
	// Externals are the classes of prefixes outside the fabric; 0 if nobody has a prefix, although
	// a shorter one is somebody's.
	Externals map[netip.Prefix]uint32
	Entries   map[uint32]SwitchEntry // by number
	// Ways are those to endpoints of other zones, by the numbers of groups and classes. The classes
	// are those of desired.Class; a number 0 is no group, or no wish.
	Ways    []SwitchWays
	Groups  map[desired.Group]uint16
	Classes map[desired.Class]uint16
	// Sources are the tunnels by which packets of other zones may come.
	Sources map[string][]desired.Hop
}

// SwitchEndpoint is one endpoint as the switch sees it. Its packets come in by one port, and
// packets to it go out by the same port, unless its way is desired.ByWays.
type SwitchEndpoint struct {
	IPv4, IPv6 netip.Addr
	Class      uint32        // of its identity
	Way        desired.Way   // names the port
	Sources    []desired.Hop // by which its packets come in, if the way is desired.ByWays
	Group      uint16
	Number     uint8 // 0 without a group
}

// SwitchEntry lets one class of endpoints open flows to another over one protocol.
type SwitchEntry struct {
	Number   uint32 // labels every connection that the entry admits
	Src, Dst uint32 // classes
	Protocol fabric.Protocol
	Ports    []fabric.PortRange
	Class    uint16 // of the ways of its flows
}

// Switch is the boundary that the engine programs.
type Switch interface {
	// Program brings the switch to want. It writes only the difference to what was programmed
	// before.
	Program(want SwitchState) error
	// Reconcile compares the content of the switch with what was programmed, repairs it, and lists
	// what it repaired.
	Reconcile() (repaired []string, err error)
	// Drops returns the number of dropped packets by reason.
	Drops() (map[string]uint64, error)
}

// numbers assigns node-local numbers to keys.
type numbers interface {
	Of(key string) (uint32, error)
}

// numbered translates the desired state into numbers. What has no number, when none can be
// assigned, is left out, which is the error; the state has all the rest.
func numbered(p desired.Processor, num numbers) (state SwitchState, lacking error) {
	state = SwitchState{Endpoints: map[string]SwitchEndpoint{}, Probes: map[fabric.NodeID]SwitchEndpoint{}, Externals: map[netip.Prefix]uint32{}, Entries: map[uint32]SwitchEntry{}}
	state.ways(p)
	classes := map[desired.Party]uint32{}
	number := func(p desired.Party) uint32 {
		class, known := classes[p]
		if !known {
			var err error
			if class, err = num.Of(desired.PartyKey{Party: p}.String()); err != nil {
				lacking = fmt.Errorf("compute the flows of the switch: %w", err)
				return 0
			}
			classes[p] = class
		}
		return class
	}
	for _, e := range p.Endpoints {
		class := number(e.Party)
		if class == 0 {
			continue
		}
		state.Endpoints[e.Endpoint] = state.placed(SwitchEndpoint{IPv4: e.IPv4, IPv6: e.IPv6, Class: class, Way: e.Way}, e.Group, e.Number, p)
	}
	for _, n := range p.Probes {
		state.Probes[n.Node] = state.placed(SwitchEndpoint{IPv4: n.IPv4, IPv6: n.IPv6, Class: ovs.ProbeClass, Way: n.Way}, n.Group, n.Number, p)
	}
	for prefix, x := range p.Externals {
		state.Externals[prefix] = 0
		if x.Party != "" {
			state.Externals[prefix] = number(x.Party)
		}
	}
	for _, r := range p.Rules {
		src, dst := classes[r.From], classes[r.To]
		if src == 0 || dst == 0 {
			continue
		}
		for _, rule := range fabric.ByProtocol(r.Rules) {
			key := desired.EntryKey{Source: src, Destination: dst, Contract: r.Contract, Protocol: rule.Protocol, Ports: rule.PortsText()}
			n, err := num.Of(key.String())
			if err != nil {
				lacking = fmt.Errorf("compute the flows of the switch: %w", err)
				continue
			}
			state.Entries[n] = SwitchEntry{Number: n, Src: src, Dst: dst, Protocol: rule.Protocol, Ports: rule.Ports, Class: state.Classes[r.Class]}
		}
	}
	return state, lacking
}

// placed returns e with its place among the groups.
func (s *SwitchState) placed(e SwitchEndpoint, group desired.Group, number uint8, p desired.Processor) SwitchEndpoint {
	if e.Group = s.Groups[group]; e.Group != 0 {
		e.Number = number
	}
	if e.Way == desired.ByWays {
		e.Sources = p.Sources[group.Zone]
	}
	return e
}
