// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"fmt"
	"net/netip"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/lease"
)

// SwitchState is what the switch at the zone's boundary should hold. Its size
// is endpoints + pairs of identities with a contract, never pairs of endpoints.
type SwitchState struct {
	Endpoints map[string]SwitchEndpoint // by endpoint
	Entries   map[uint32]SwitchEntry    // by ID
}

// SwitchEndpoint is one endpoint as the switch sees it: its packets come in,
// and go out to it, by one port only.
type SwitchEndpoint struct {
	IPv4, IPv6 netip.Addr
	Class      uint32        // of its identity
	Port       fabric.NodeID // the peer that the port leads to; zonePort for the own zone
}

// SwitchEntry lets one class of endpoints open flows to another. Its ID is the
// label of every connection that it admits.
type SwitchEntry struct {
	ID       uint32
	Src, Dst uint32 // classes
	Rules    []fabric.Rule
}

// zonePort names the port towards the workload nodes of the own zone. Any
// other port is named after the remote processor.
var zonePort fabric.NodeID

// Switch is the boundary that the engine programs.
type Switch interface {
	// Program makes the switch hold want, writing only what differs from what
	// was programmed before.
	Program(want SwitchState) error
	// Reconcile compares what the switch really holds with what was
	// programmed, repairs it, and says what it found.
	Reconcile() (repaired []string, err error)
	// Drops returns the dropped packets by reason.
	Drops() (map[string]uint64, error)
}

// numbers gives identities and entries their node-local numbers.
type numbers interface {
	Of(name string) (uint32, error)
}

// boundary computes what the switch should hold. portOf names the port towards
// an endpoint's node and reports false while there is none.
func boundary(zone string, live []lease.Lease, docs map[fabric.Ref]fabric.Document, portOf func(fabric.Admission) (fabric.NodeID, bool), num numbers) (SwitchState, error) {
	state := SwitchState{Endpoints: map[string]SwitchEndpoint{}, Entries: map[uint32]SwitchEntry{}}
	classes := map[string]uint32{}
	var local, all []fabric.Identity
	here := map[string]bool{}
	for _, le := range live {
		a := le.Admission
		port, ok := portOf(a)
		if !ok {
			continue
		}
		id := a.Identity()
		key := id.Key()
		class, known := classes[key]
		if !known {
			var err error
			if class, err = num.Of("identity " + key); err != nil {
				return state, err
			}
			classes[key] = class
			all = append(all, id)
		}
		if a.Zone == zone && !here[key] {
			here[key] = true
			local = append(local, id)
		}
		state.Endpoints[a.Endpoint] = SwitchEndpoint{IPv4: a.IPv4, IPv6: a.IPv6, Class: class, Port: port}
	}
	for _, g := range fabric.GrantsAmong(local, all, docs) {
		src, dst := classes[g.Originator.Key()], classes[g.Responder.Key()]
		id, err := num.Of(fmt.Sprintf("entry %d %d %s", src, dst, g.Contract))
		if err != nil {
			return state, err
		}
		state.Entries[id] = SwitchEntry{ID: id, Src: src, Dst: dst, Rules: g.Rules}
	}
	return state, nil
}
