// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package openflow

import (
	"encoding/binary"
	"fmt"
)

// Key identifies a flow in the switch.
type Key struct {
	Table    uint8
	Priority uint16
	Match    Match
}

// Flow is a flow as a controller writes it. Flows compare with ==.
type Flow struct {
	Key
	// Cookie is the caller's mark. It means nothing to the switch.
	Cookie       uint64
	Instructions Instructions
}

func (f Flow) String() string {
	return fmt.Sprintf("table=%d,priority=%d,cookie=%#x,%s actions=%s", f.Table, f.Priority, f.Cookie, f.Match, f.Instructions)
}

// FlowStats is a flow as the switch lists it.
type FlowStats struct {
	Flow
	Packets, Bytes uint64
	// Foreign says that the flow has timeouts or flags, which this package never sets.
	Foreign bool
}

// FlowMod is a change of a flow table.
type FlowMod struct {
	command uint8
	flow    Flow
}

const (
	commandAdd          = 0
	commandDeleteStrict = 4
)

// Add inserts f in place of a flow with the same Key, whose counters are lost.
func Add(f Flow) FlowMod { return FlowMod{command: commandAdd, flow: f} }

// DeleteStrict removes the flow with key k, if it exists.
func DeleteStrict(k Key) FlowMod { return FlowMod{command: commandDeleteStrict, flow: Flow{Key: k}} }

func (m FlowMod) String() string {
	if m.command == commandAdd {
		return "add " + m.flow.String()
	}
	return "delete " + m.flow.String()
}

func (m FlowMod) size() int {
	return headerLen + 40 + 8 + len(m.flow.Match.oxm) + 8 + len(m.flow.Instructions.wire)
}

// append appends an OFPT_FLOW_MOD message.
func (m FlowMod) append(b []byte, xid uint32) ([]byte, error) {
	start := len(b)
	b = beginMessage(b, typeFlowMod, xid)
	b = binary.BigEndian.AppendUint64(b, m.flow.Cookie)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)              // no cookie mask
	b = append(b, m.flow.Table, m.command, 0, 0, 0, 0) // no timeouts
	b = binary.BigEndian.AppendUint16(b, m.flow.Priority)
	b = binary.BigEndian.AppendUint32(b, noBuffer)
	b = binary.BigEndian.AppendUint32(b, anyPort)
	b = binary.BigEndian.AppendUint32(b, anyPort)
	b = append(b, 0, 0, 0, 0) // flags, importance
	b = m.flow.Match.append(b)
	b = append(b, m.flow.Instructions.wire...)
	return endMessage(b, start)
}

const flowStatsLen = 48

// parseFlowStats reads the body of one OFPMP_FLOW reply.
func parseFlowStats(b []byte) ([]FlowStats, error) {
	var flows []FlowStats
	for len(b) > 0 {
		if len(b) < flowStatsLen {
			return nil, fmt.Errorf("flow statistics are cut off at %d bytes", len(b))
		}
		n := int(binary.BigEndian.Uint16(b))
		if n < flowStatsLen || n > len(b) {
			return nil, fmt.Errorf("flow statistics of %d bytes do not fit into %d", n, len(b))
		}
		match, rest, err := parseMatch(b[flowStatsLen:n])
		if err != nil {
			return nil, err
		}
		f := FlowStats{
			Flow: Flow{
				Key:          Key{Table: b[2], Priority: binary.BigEndian.Uint16(b[12:]), Match: match},
				Cookie:       binary.BigEndian.Uint64(b[24:]),
				Instructions: Instructions{string(rest)},
			},
			// idle and hard timeout, flags, importance
			Foreign: binary.BigEndian.Uint64(b[14:]) != 0,
			Packets: binary.BigEndian.Uint64(b[32:]),
			Bytes:   binary.BigEndian.Uint64(b[40:]),
		}
		flows = append(flows, f)
		b = b[n:]
	}
	return flows, nil
}

// Filter selects flows to list.
type Filter struct {
	// Table is the table, or AllTables.
	Table uint8
	// Cookie is compared with the flows' in the bits of CookieMask.
	Cookie, CookieMask uint64
}

// AllTables selects flows of every table.
const AllTables = anyTable

func (f Filter) append(b []byte) []byte {
	b = append(b, f.Table, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, anyPort)
	b = binary.BigEndian.AppendUint32(b, anyPort)
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, f.Cookie)
	b = binary.BigEndian.AppendUint64(b, f.CookieMask)
	return Match{}.append(b)
}

// Port is a port of the bridge.
type Port struct {
	// No is its OpenFlow number. That of the bridge's own device is LocalPort.
	No   uint32
	Name string
}

// LocalPort is the number of the bridge's own device.
const LocalPort = 0xfffffffe

// parsePorts reads the body of one OFPMP_PORT_DESC reply.
func parsePorts(b []byte) ([]Port, error) {
	var ports []Port
	for len(b) > 0 {
		if len(b) < 40 {
			return nil, fmt.Errorf("port description is cut off at %d bytes", len(b))
		}
		n := int(binary.BigEndian.Uint16(b[4:]))
		if n < 40 || n > len(b) {
			return nil, fmt.Errorf("port description of %d bytes does not fit into %d", n, len(b))
		}
		name := b[16:32]
		for i, c := range name {
			if c == 0 {
				name = name[:i]
				break
			}
		}
		ports = append(ports, Port{No: binary.BigEndian.Uint32(b), Name: string(name)})
		b = b[n:]
	}
	return ports, nil
}
