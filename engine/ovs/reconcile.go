// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	of "github.com/sif-project/sif/engine/openflow"
)

// Replace makes state what is wanted and the switch like it, as one change that
// leaves alone what was right: counters and connections of that go on. It
// returns how the switch differed.
func (p *Pipeline) Replace(ctx context.Context, state State) (Diff, error) {
	next := NewPipeline(p.zone, nil)
	for _, port := range state.Ports {
		if err := port.check(); err != nil {
			return Diff{}, fmt.Errorf("replace state: %w", err)
		}
		if _, ok := next.ports[port.No]; ok {
			return Diff{}, fmt.Errorf("replace state: port %d is there twice", port.No)
		}
		next.ports[port.No] = port
	}
	for _, e := range state.Endpoints {
		if err := e.check(); err != nil {
			return Diff{}, fmt.Errorf("replace state: %w", err)
		}
		if _, ok := next.endpoints[e.ID]; ok {
			return Diff{}, fmt.Errorf("replace state: endpoint %d is there twice", e.ID)
		}
		if err := next.free(e); err != nil {
			return Diff{}, fmt.Errorf("replace state: %w", err)
		}
		next.keepEndpoint(e)
	}
	for _, e := range state.Entries {
		if err := e.check(); err != nil {
			return Diff{}, fmt.Errorf("replace state: %w", err)
		}
		if _, ok := next.entries[e.ID]; ok {
			return Diff{}, fmt.Errorf("replace state: entry %d is there twice", e.ID)
		}
		next.keepEntry(e)
	}
	p.mu.Lock()
	p.ports, p.endpoints, p.entries = next.ports, next.endpoints, next.entries
	p.prefixes, p.policy = next.prefixes, next.policy
	p.mu.Unlock()
	return p.Reconcile(ctx)
}

// Reconcile compares the switch with what is wanted and repairs it. It returns
// how the switch differed.
func (p *Pipeline) Reconcile(ctx context.Context) (Diff, error) {
	var diff Diff
	err := p.enforce(ctx, "repair the switch", func() (bool, error) {
		if p.conn == nil {
			return false, ErrDetached
		}
		have, err := p.conn.Flows(ctx, of.Filter{Table: of.AllTables})
		if err != nil {
			return false, err
		}
		var mods []of.FlowMod
		diff, mods = compare(have, p.wantedFlows())
		return len(diff.Changed)+len(diff.Removed) > 0, p.write(ctx, mods)
	})
	return diff, err
}

// compare lists how have differs from want and what makes it equal. It uses
// want up.
func compare(have []of.FlowStats, want map[of.Key]of.Flow) (diff Diff, mods []of.FlowMod) {
	for _, f := range have {
		wanted, ok := want[f.Key]
		switch {
		case !ok:
			diff.Removed = append(diff.Removed, f.Flow)
			mods = append(mods, of.DeleteStrict(f.Key))
		case wanted != f.Flow || f.Foreign:
			diff.Changed = append(diff.Changed, Change{f, wanted})
			mods = append(mods, of.Add(wanted))
		}
		delete(want, f.Key)
	}
	for _, f := range want {
		diff.Added = append(diff.Added, f)
		mods = append(mods, of.Add(f))
	}
	return diff, mods
}

func (p *Pipeline) wantedFlows() map[of.Key]of.Flow {
	want := make(map[of.Key]of.Flow, 32+4*len(p.endpoints)+3*len(p.entries)+len(p.policy))
	put := func(flows []of.Flow) {
		for _, f := range flows {
			want[f.Key] = f
		}
	}
	put(baseFlows(p.zone))
	if p.passAll {
		put(passAllFlows())
	}
	for _, port := range p.ports {
		put(port.flows())
	}
	for _, e := range p.endpoints {
		put(e.flows())
	}
	for _, e := range p.entries {
		put(e.stateFlows())
	}
	for key, wants := range p.policy {
		lowest := uint64(0)
		for id := range wants {
			if lowest == 0 || id < lowest {
				lowest = id
			}
		}
		want[key] = wants[lowest]
	}
	return want
}

// State is what is wanted, in order of numbers.
func (p *Pipeline) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return newState(p.ports, p.endpoints, p.entries)
}

// Drops counts the packets that the switch dropped, by reason, since it was
// started. The counters lag by up to a second.
func (p *Pipeline) Drops(ctx context.Context) (map[string]uint64, error) {
	flows, err := p.dump(ctx, of.Filter{
		Table: of.AllTables, Cookie: cookie(cookieDrop, 0), CookieMask: 0xff << cookieShift,
	})
	if err != nil {
		return nil, fmt.Errorf("count drops: %w", err)
	}
	drops := make(map[string]uint64, len(dropReasons))
	for _, reason := range dropReasons {
		drops[reason] = 0
	}
	for _, f := range flows {
		if n := f.Cookie & maxID; n >= 1 && n <= uint64(len(dropReasons)) {
			drops[dropReasons[n-1]] += f.Packets
		}
	}
	return drops, nil
}

// Dump reads back what the switch enforces, whoever wrote it: a process that
// starts learns the numbers in use by it. Flows that no state of ours would
// make are left out; Replace removes them. Of ports that two entries admit,
// only the lower-numbered entry shows them; an entry left without any has
// protocol 0.
func (p *Pipeline) Dump(ctx context.Context) (State, error) {
	flows, err := p.dump(ctx, of.Filter{Table: of.AllTables})
	if err != nil {
		return State{}, err
	}
	ports, endpoints, entries := read(flows)
	return newState(ports, endpoints, entries), nil
}

// Inspect is Dump, and how the switch differs from what a switch in that state
// holds, as Replace would report it: parts that are missing or altered, flows
// of somebody else, the policy switched off. It changes nothing.
func (p *Pipeline) Inspect(ctx context.Context) (State, Diff, error) {
	flows, err := p.dump(ctx, of.Filter{Table: of.AllTables})
	if err != nil {
		return State{}, Diff{}, fmt.Errorf("inspect the switch: %w", err)
	}
	like := NewPipeline(p.zone, nil)
	ports, endpoints, entries := read(flows)
	like.ports, like.endpoints = p.known(ports), endpoints
	for _, e := range entries {
		like.keepEntry(e)
	}
	diff, _ := compare(flows, like.wantedFlows())
	return newState(ports, endpoints, entries), diff, nil
}

// known completes ports of which the flow is gone that tells the addresses of
// their devices.
func (p *Pipeline) known(ports map[uint32]Port) map[uint32]Port {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := maps.Clone(ports)
	for no, port := range all {
		if wanted, ok := p.ports[no]; ok && port.MAC == (MAC{}) && port.Peer == (MAC{}) {
			port.MAC, port.Peer = wanted.MAC, wanted.Peer
			all[no] = port
		}
	}
	return all
}

func read(flows []of.FlowStats) (map[uint32]Port, map[uint64]Endpoint, map[uint64]Entry) {
	ports, endpoints, entries := map[uint32]Port{}, map[uint64]Endpoint{}, map[uint64]Entry{}
	for _, f := range flows {
		actions, _, err := f.Instructions.Decode()
		if err != nil {
			continue // not of our making
		}
		number := f.Cookie & maxID
		switch f.Cookie >> cookieShift {
		case cookiePort:
			no := uint32(number)
			ports[no] = ports[no].read(no, f.Flow, actions)
		case cookieEndpoint:
			endpoints[number] = endpoints[number].read(number, f.Flow, actions)
		case cookieEntry:
			entries[number] = entries[number].read(number, f.Flow)
		}
	}
	return ports, endpoints, entries
}

func (p *Pipeline) dump(ctx context.Context, filter of.Filter) ([]of.FlowStats, error) {
	p.mu.Lock()
	conn := p.conn
	p.mu.Unlock()
	if conn == nil {
		return nil, ErrDetached
	}
	return conn.Flows(ctx, filter)
}

func (p Port) read(no uint32, f of.Flow, actions []of.Action) Port {
	p.No = no
	p.Routers = p.Routers || f.Table == tableSource
	for _, a := range actions {
		if set, ok := a.(of.SetField); ok && len(set.Value) == len(p.MAC) {
			switch set.Field {
			case of.EthSrc:
				p.MAC = MAC(set.Value)
			case of.EthDst:
				p.Peer = MAC(set.Value)
			}
		}
	}
	return p
}

func (e Endpoint) read(id uint64, f of.Flow, actions []of.Action) Endpoint {
	e.ID = id
	for _, a := range actions {
		set, ok := a.(of.SetField)
		if !ok || len(set.Value) != 4 {
			continue
		}
		switch v := binary.BigEndian.Uint32(set.Value); set.Field {
		case regSource, regDestination:
			e.Class = v
		case regPort:
			e.OutPort = v
		}
	}
	for _, m := range f.Match.Fields() {
		switch m.Field {
		case of.InPort:
			if no := binary.BigEndian.Uint32(m.Value); !slices.Contains(e.SourcePorts, no) {
				e.SourcePorts = append(e.SourcePorts, no)
			}
		case of.IPv4Src, of.IPv4Dst, of.IPv6Src, of.IPv6Dst:
			addr, _ := netip.AddrFromSlice(m.Value)
			// The priority tells the length; a hand-made flow may lie.
			prefix, err := addr.Prefix(int(f.Priority) - priorityPrefix)
			if err == nil && !slices.Contains(e.Prefixes, prefix) {
				e.Prefixes = append(e.Prefixes, prefix)
			}
		}
	}
	return e
}

func (e Entry) read(id uint64, f of.Flow) Entry {
	e.ID = id
	number := func(field of.Field) uint32 {
		m, ok := f.Match.Get(field)
		if !ok || len(m.Value) != 4 {
			return 0
		}
		return binary.BigEndian.Uint32(m.Value)
	}
	switch f.Table {
	case tableState:
		state, ok := f.Match.Get(of.CTState)
		if !ok || len(state.Value) != 4 || len(state.Mask) != 4 {
			break
		}
		reply := binary.BigEndian.Uint32(state.Mask)&of.CTReply != 0
		if reply && binary.BigEndian.Uint32(state.Value)&of.CTReply == 0 {
			e.Src, e.Dst = number(regSource), number(regDestination)
		}
	case tablePolicy:
		if e.Src == 0 { // its connections cannot live, which is another matter
			e.Src, e.Dst = number(regSource), number(regDestination)
		}
		for protocol, field := range portFields {
			m, ok := f.Match.Get(field)
			if !ok {
				continue
			}
			mask := uint16(0xffff)
			if m.Mask != nil {
				mask = binary.BigEndian.Uint16(m.Mask)
			}
			e.Protocol = protocol
			e.Ports = append(e.Ports, maskedPort{binary.BigEndian.Uint16(m.Value), mask}.ports())
			return e
		}
		proto, ok := f.Match.Get(of.IPProto)
		if !ok || len(proto.Value) != 1 {
			break
		}
		e.Protocol = proto.Value[0]
		if m, ok := f.Match.Get(typeFields[e.Protocol].field); ok && len(m.Value) == 1 {
			e.Ports = append(e.Ports, PortRange{uint16(m.Value[0]), uint16(m.Value[0])})
		} else if _, types := typeFields[e.Protocol]; types {
			e.Ports = append(e.Ports, allTypes)
		} else {
			e.Ports = append(e.Ports, PortRange{0, 65535}) // the mask of all ports is no mask
		}
	}
	return e
}
