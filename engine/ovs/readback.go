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

// Drops counts the packets that the switch dropped, by reason, since it was started. The counters
// lag by up to a second. Of meters that are gone it counts what it had seen before.
func (p *Pipeline) Drops(ctx context.Context) (map[string]uint64, error) {
	drops := make(map[string]uint64, len(dropReasons))
	for _, reason := range dropReasons {
		drops[reason] = 0
	}
	for _, kind := range []uint64{cookieDrop, cookieHole} {
		flows, err := p.flows(ctx, of.Filter{Table: of.AllTables, Cookie: cookie(kind, 0), CookieMask: 0xff << cookieShift})
		if err != nil {
			return nil, fmt.Errorf("count dropped packets: %w", err)
		}
		for _, f := range flows {
			if reason := dropReason(f.Flow); reason != "" {
				drops[reason] += f.Packets
			}
		}
	}
	conn, err := p.connection()
	if err != nil {
		return nil, err
	}
	byMeter, err := conn.MeterDrops(ctx)
	if err != nil {
		return nil, fmt.Errorf("count dropped packets: %w", err)
	}
	drops[DropTooFast] = p.floods.note(byMeter)
	return drops, nil
}

// dropReason returns why a flow drops packets, or "" if no flow of ours drops by that cookie.
func dropReason(f of.Flow) string {
	n := f.Cookie & maxID
	switch kind := f.Cookie >> cookieShift; {
	case kind == cookieHole && f.Table == tableSource:
		return DropUnknownSource
	case kind == cookieHole:
		return DropUnknownDestination
	case kind == cookieDrop && n >= 1 && n <= uint64(len(dropReasons)):
		return dropReasons[n-1]
	}
	return ""
}

// Dump reads back what the switch enforces, whichever process wrote it. It leaves out flows that
// are part of no State; Reconcile removes them. Of ports that two entries admit, only the entry
// with the lower number shows them; an entry left without ports has protocol 0. How fast
// connections may open is not in flows: there are no Rates.
func (p *Pipeline) Dump(ctx context.Context) (State, error) {
	flows, err := p.flows(ctx, of.Filter{Table: of.AllTables})
	if err != nil {
		return State{}, fmt.Errorf("read back the switch: %w", err)
	}
	return read(flows).tidy(), nil
}

// Inspect is Dump, and how the switch differs from one with just that state, as Reconcile would
// report it: parts that are missing or altered, foreign flows, a policy that is switched off. It
// changes nothing.
func (p *Pipeline) Inspect(ctx context.Context) (State, Diff, error) {
	flows, err := p.flows(ctx, of.Filter{Table: of.AllTables})
	if err != nil {
		return State{}, Diff{}, fmt.Errorf("inspect the switch: %w", err)
	}
	most, haveMeters, err := p.meters(ctx)
	if err != nil {
		return State{}, Diff{}, fmt.Errorf("inspect the switch: %w", err)
	}
	state := read(flows)
	whole := p.completed(state)
	like := newWanted(p.wanted.zone)
	like.apply(change{after: whole, next: whole})
	like.offer(most)
	diff := compare(flows, like.flows())
	diff.Meters = compareMeters(haveMeters, like.meters())
	return state.tidy(), diff, nil
}

// completed adds what a switch cannot say of itself: the MAC addresses of ports whose flow is
// missing, and what is limited.
func (p *Pipeline) completed(s State) State {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Ports = slices.Clone(s.Ports)
	for i, port := range s.Ports {
		for _, wanted := range p.wanted.state.Ports {
			if wanted.No == port.No && port.MAC == (MAC{}) && port.Peer == (MAC{}) {
				s.Ports[i].MAC, s.Ports[i].Peer = wanted.MAC, wanted.Peer
			}
		}
	}
	s.Gates, s.Rates = p.wanted.state.Gates, p.wanted.state.Rates
	s.Endpoints = slices.Clone(s.Endpoints)
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		n, found := slices.BinarySearchFunc(p.wanted.state.Endpoints, *e, byEndpoint)
		e.Limited = e.Limited && !found || found && p.wanted.state.Endpoints[n].Limited
	}
	return s
}

// read finds the parts of a state to which flows belong by their cookies.
func read(flows []of.FlowStats) State {
	ports, endpoints, entries := map[uint32]Port{}, map[uint64]Endpoint{}, map[uint64]Entry{}
	var ways []Way
	var moved []Course
	var gates []Gate
	for _, f := range flows {
		actions, _, err := f.Instructions.Decode()
		if err != nil {
			continue // a foreign flow
		}
		number := f.Cookie & maxID
		switch f.Cookie >> cookieShift {
		case cookiePort:
			no := uint32(number)
			ports[no] = ports[no].read(no, f.Flow, actions)
		case cookieEndpoint, cookieHole:
			endpoints[number] = endpoints[number].read(number, f.Flow, actions)
		case cookieEntry:
			entries[number] = entries[number].read(number, f.Flow, actions)
		case cookieWay:
			if course, ok := readCourse(f.Flow, tableWay); ok {
				ways = append(ways, Way{course, loaded(actions)[regPort]})
			}
		case cookieGate:
			if g := (Gate{Group: uint16(number >> 16), Zone: uint16(number)}); f.Table == tableZone && g.Zone != 0 {
				gates = append(gates, g)
			}
		case cookieMoved:
			if course, ok := readCourse(f.Flow, tableMoved); ok {
				moved = append(moved, course)
			}
		}
	}
	return State{
		Ports: slices.Collect(maps.Values(ports)), Endpoints: slices.Collect(maps.Values(endpoints)), Entries: slices.Collect(maps.Values(entries)),
		Ways: ways, Moved: moved, Gates: gates,
	}
}

// readCourse returns the course whose packets a flow of a table matches.
func readCourse(f of.Flow, table uint8) (c Course, ok bool) {
	values := map[of.Field]uint32{}
	for _, m := range f.Match.Fields() {
		if m.Mask == nil && len(m.Value) == 4 {
			values[m.Field] = binary.BigEndian.Uint32(m.Value)
		}
	}
	c = Course{From: uint16(values[regFrom]), To: uint16(values[regTo]), Class: uint16(values[regClass]), Bucket: AllBuckets}
	if low, has := values[regLow]; has {
		c.Bucket = Bucket(low&0xf | values[regHigh]&0xf0)
	}
	return c, f.Table == table && f.Key == flow(table, c.priority(), 0, of.Drop, c.match()...).Key
}

// loaded returns the values that actions load into fields of four bytes.
func loaded(actions []of.Action) map[of.Field]uint32 {
	values := map[of.Field]uint32{}
	for _, a := range actions {
		if set, ok := a.(of.SetField); ok && len(set.Value) == 4 {
			values[set.Field] = binary.BigEndian.Uint32(set.Value)
		}
	}
	return values
}

func (p Port) read(no uint32, f of.Flow, actions []of.Action) Port {
	p.No = no
	if kind, is := f.Match.Get(of.ICMPv4Type); is && len(kind.Value) == 1 {
		_, coded := f.Match.Get(of.ICMPv4Code)
		p.Routers = p.Routers || kind.Value[0] == 3 && coded
		p.Outside = p.Outside || kind.Value[0] == 3 && !coded
	}
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
	e.ID, e.Hole = id, f.Cookie>>cookieShift == cookieHole
	e.Limited = e.Limited || f.Table == tableEndpoint
	for field, v := range loaded(actions) {
		switch field {
		case regSource, regDestination:
			e.Class = v
		case regPort:
			e.OutPort = v
		case regFrom, regTo:
			e.Group = uint16(v)
		case regNumberFrom, regNumberTo:
			e.Number = uint8(v)
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
			// The priority is the length of the prefix, but not always in a flow that was written
			// by hand.
			prefix, err := addr.Prefix(int(f.Priority) - priorityPrefix)
			if err == nil && !slices.Contains(e.Prefixes, prefix) {
				e.Prefixes = append(e.Prefixes, prefix)
			}
		}
	}
	return e
}

func (e Entry) read(id uint64, f of.Flow, actions []of.Action) Entry {
	e.ID = id
	if class := loaded(actions)[regClass]; class != 0 {
		e.Class = uint16(class)
	}
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
		if _, more := f.Match.Get(of.CTState); more {
			break // it follows from the flow for the first packet
		}
		if e.Src == 0 { // unless the state flows say it
			e.Src, e.Dst = number(regSource), number(regDestination)
		}
		for protocol, fields := range portFields {
			m, ok := f.Match.Get(fields.dst)
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
			e.Ports = append(e.Ports, PortRange{0, 65535}) // a match of all ports has no port field
		}
	}
	return e
}
