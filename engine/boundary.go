// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
)

// conntrackZone is the connection tracking zone of the bridge.
const conntrackZone = 1

// switchTimeout bounds a change of the switch.
const switchTimeout = 10 * time.Second

// bridge is the Switch that is a bridge of Open vSwitch.
type bridge struct {
	log   hclog.Logger
	sw    *ovs.Switch
	pipe  *ovs.Pipeline
	names registry

	mu       sync.Mutex
	ports    map[fabric.NodeID]ovs.Port // by the peer that each leads to
	wanted   SwitchState                // as last asked for
	written  ovs.State                  // as last written
	attached bool                       // a connection to the switch is open
	asked    bool                       // Program was called: before that the switch keeps what it has
}

func newBridge(sw *ovs.Switch, names registry, log hclog.Logger) *bridge {
	return &bridge{log: log, sw: sw, names: names, pipe: ovs.NewPipeline(conntrackZone, sw.Revalidated), ports: map[fabric.NodeID]ovs.Port{}}
}

// setPort tells the bridge by which port a peer is reached.
func (b *bridge) setPort(peer fabric.NodeID, port ovs.Port) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ports[peer] == port {
		return nil
	}
	b.ports[peer] = port
	if !b.asked {
		return nil
	}
	return b.write()
}

// Program implements Switch.
func (b *bridge) Program(want SwitchState) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wanted, b.asked = want, true
	return b.write()
}

// attach opens the connection to the switch if there is none. After that, what
// the switch holds has to be compared with what it should hold.
func (b *bridge) attach(ctx context.Context) error {
	if b.attached {
		return nil
	}
	conn, err := b.sw.Dial(ctx)
	if err != nil {
		return err
	}
	b.pipe.Attach(conn)
	want := b.state()
	if _, err := b.pipe.Replace(ctx, want); err != nil {
		conn.Close() // only after a comparison it is known what to write
		return err
	}
	b.attached, b.written = true, want
	go func() {
		<-conn.Done()
		b.log.Warn("the connection to the switch was lost; it will be opened again")
		b.mu.Lock()
		b.attached = false
		b.mu.Unlock()
	}()
	return nil
}

// write brings the switch from what was written last to what is wanted.
func (b *bridge) write() error {
	ctx, cancel := context.WithTimeout(context.Background(), switchTimeout)
	defer cancel()
	if !b.attached {
		return b.attach(ctx)
	}
	want := b.state()
	if err := b.change(ctx, b.written, want); err != nil {
		// Which part was made is found out by comparing.
		if _, err := b.pipe.Replace(ctx, want); err != nil {
			return err
		}
	}
	grown := len(want.Entries) > len(b.written.Entries)
	b.written = want
	if grown {
		// Removals wait by themselves until the datapath follows. What was
		// refused until now may still be remembered as refused, too.
		return b.pipe.Settle(ctx)
	}
	return nil
}

// change writes the differences one by one, what is no longer allowed first.
func (b *bridge) change(ctx context.Context, have, want ovs.State) error {
	oldEntries, newEntries := byID(have.Entries, entryID), byID(want.Entries, entryID)
	oldEndpoints, newEndpoints := byID(have.Endpoints, endpointID), byID(want.Endpoints, endpointID)
	oldPorts, newPorts := byID(have.Ports, portID), byID(want.Ports, portID)
	for id := range oldEntries {
		if _, stays := newEntries[id]; !stays {
			if err := b.pipe.DeleteEntry(ctx, id); err != nil {
				return err
			}
		}
	}
	for id := range oldEndpoints {
		if _, stays := newEndpoints[id]; !stays {
			if err := b.pipe.DeleteEndpoint(ctx, id); err != nil {
				return err
			}
		}
	}
	for no := range oldPorts {
		if _, stays := newPorts[no]; !stays {
			if err := b.pipe.DeletePort(ctx, uint32(no)); err != nil {
				return err
			}
		}
	}
	for no, p := range newPorts {
		if oldPorts[no] != p {
			if err := b.pipe.SetPort(ctx, p); err != nil {
				return err
			}
		}
	}
	for id, e := range newEndpoints {
		if !reflect.DeepEqual(oldEndpoints[id], e) {
			if err := b.pipe.PutEndpoint(ctx, e); err != nil {
				return err
			}
		}
	}
	for id, e := range newEntries {
		if !reflect.DeepEqual(oldEntries[id], e) {
			if err := b.pipe.PutEntry(ctx, e); err != nil {
				return err
			}
		}
	}
	return nil
}

func entryID(e ovs.Entry) uint64       { return e.ID }
func endpointID(e ovs.Endpoint) uint64 { return e.ID }
func portID(p ovs.Port) uint64         { return uint64(p.No) }

func byID[T any](list []T, id func(T) uint64) map[uint64]T {
	m := make(map[uint64]T, len(list))
	for _, v := range list {
		m[id(v)] = v
	}
	return m
}

// state is what is wanted in the terms of the pipeline. Endpoints beyond ports
// that do not exist yet are left out.
func (b *bridge) state() ovs.State {
	var s ovs.State
	for _, peer := range slices.SortedFunc(maps.Keys(b.ports), fabric.CompareNodeIDs) {
		s.Ports = append(s.Ports, b.ports[peer])
	}
	for name, ep := range b.wanted.Endpoints {
		peer, _ := ep.Way.Processor() // none: the zone's own nodes
		port, ok := b.ports[peer]
		if !ok {
			continue
		}
		s.Endpoints = append(s.Endpoints, ovs.Endpoint{
			ID: endpointNumber(name), Class: ep.Class, OutPort: port.No, SourcePorts: []uint32{port.No},
			Prefixes: []netip.Prefix{netip.PrefixFrom(ep.IPv4, 32), netip.PrefixFrom(ep.IPv6, 128)},
		})
	}
	for _, e := range b.wanted.Entries {
		s.Entries = append(s.Entries, e.flows()...)
	}
	return s
}

// flows returns the entry in the terms of the pipeline, which wants one entry
// a protocol: all of them are parts of the same number.
func (e SwitchEntry) flows() []ovs.Entry {
	var list []ovs.Entry
	for _, r := range e.Rules {
		id := uint64(NewEntryID(e.Number, r.Protocol))
		i := slices.IndexFunc(list, func(o ovs.Entry) bool { return o.ID == id })
		if i < 0 {
			i = len(list)
			list = append(list, ovs.Entry{ID: id, Src: e.Src, Dst: e.Dst, Protocol: uint8(r.Protocol)})
		}
		for _, p := range r.Ports {
			list[i].Ports = append(list[i].Ports, ovs.PortRange{First: p.From, Last: p.To})
		}
	}
	return list
}

// endpointNumber maps an endpoint's name to the number that the pipeline wants:
// 55 bits of its hash, so that nothing has to be remembered.
func endpointNumber(name string) uint64 {
	sum := sha256.Sum256([]byte(name))
	return binary.BigEndian.Uint64(sum[:])>>9 | 1
}

// Reconcile implements Switch.
func (b *bridge) Reconcile() (repaired []string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), switchTimeout)
	defer cancel()
	switch {
	case !b.asked:
		return nil, nil
	case !b.attached:
		return nil, b.attach(ctx)
	}
	diff, err := b.pipe.Replace(ctx, b.state())
	repaired = diff.Describe(newSwitchNames(b.ports, b.names))
	if len(repaired) > 0 {
		b.log.Warn("the switch differed from the declared state and was repaired", logkey.Repaired, repaired)
	}
	return repaired, err
}

// Drops implements Switch.
func (b *bridge) Drops() (map[string]uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), switchTimeout)
	defer cancel()
	drops, err := b.pipe.Drops(ctx)
	if err != nil {
		b.log.Debug("drop counters not read", logkey.Error, err)
	}
	return drops, err
}

// portCount returns how many peers can be reached through the switch.
func (b *bridge) portCount() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.ports)
}
