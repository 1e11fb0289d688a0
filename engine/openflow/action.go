// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package openflow

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

const (
	actionOutput       = 0
	actionSetField     = 25
	actionExperimenter = 0xffff

	instructionGotoTable = 1
	instructionApply     = 4
	instructionMeter     = 6

	niciraVendor = 0x00002320
	niciraMove   = 6  // NXAST_REG_MOVE
	niciraCT     = 35 // NXAST_CT

	ctCommit  = 1 << 0
	ctForce   = 1 << 1
	ctNoTable = 0xff
)

// Action is what a flow does to a packet.
type Action interface {
	append(b []byte) []byte
	String() string
}

// Output sends the packet out of a port.
type Output struct{ Port uint32 }

// SetField sets a header field or a register. Value is in network byte order and has the field's
// length.
type SetField struct {
	Field Field
	Value []byte
}

// Load returns a SetField for a 32-bit field.
func Load(f Field, v uint32) SetField {
	return SetField{Field: f, Value: binary.BigEndian.AppendUint32(nil, v)}
}

// Move copies all bits of a field to another one of the same length, in bytes.
type Move struct {
	From, To Field
	Length   uint8
}

// Meter drops the packet if the meter finds that it came too fast. A flow has one at most, which
// comes first; see Metered.
type Meter struct{ ID uint32 }

// CT passes the packet through the connection tracker.
type CT struct {
	Zone uint16
	// Commit stores the connection. Exec changes the stored entry.
	Commit bool
	// Force makes the packet's direction the original one and replaces an entry with the other
	// direction.
	Force bool
	// Table, unless nil, is the table in which the packet continues with its connection state.
	Table *uint8
	// Exec sets CTMark or CTLabel, or moves a register there.
	Exec []Action
}

// Unknown is an action that this package cannot make, read back from a foreign flow. Wire is its
// whole wire form.
type Unknown struct{ Wire []byte }

func (a Output) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, actionOutput)
	b = binary.BigEndian.AppendUint16(b, 16)
	b = binary.BigEndian.AppendUint32(b, a.Port)
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0) // max_len is only for the controller port
}

func (a Output) String() string { return fmt.Sprintf("output:%d", a.Port) }

func (a SetField) append(b []byte) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint16(b, actionSetField)
	b = binary.BigEndian.AppendUint16(b, uint16(roundUp8(4+4+len(a.Value))))
	b = appendOXM(b, FieldMatch{Field: a.Field, Value: a.Value})
	return pad(b, start)
}

func (a SetField) String() string {
	return fmt.Sprintf("set_field:%s->%s", hex.EncodeToString(a.Value), a.Field)
}

func (a Move) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, actionExperimenter)
	b = binary.BigEndian.AppendUint16(b, 24)
	b = binary.BigEndian.AppendUint32(b, niciraVendor)
	b = binary.BigEndian.AppendUint16(b, niciraMove)
	b = binary.BigEndian.AppendUint16(b, 8*uint16(a.Length))
	b = append(b, 0, 0, 0, 0) // from the first bit to the first bit
	b = binary.BigEndian.AppendUint32(b, uint32(a.From)|uint32(a.Length))
	return binary.BigEndian.AppendUint32(b, uint32(a.To)|uint32(a.Length))
}

func (a Move) String() string { return fmt.Sprintf("move:%s->%s", a.From, a.To) }

// append appends an OFPIT_METER instruction: before OpenFlow 1.5 it is none of the actions.
func (a Meter) append(b []byte) []byte {
	b = append(b, 0, instructionMeter, 0, 8)
	return binary.BigEndian.AppendUint32(b, a.ID)
}

func (a Meter) String() string { return fmt.Sprintf("meter:%d", a.ID) }

func (a CT) append(b []byte) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint16(b, actionExperimenter)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint32(b, niciraVendor)
	b = binary.BigEndian.AppendUint16(b, niciraCT)
	var flags uint16
	if a.Commit {
		flags |= ctCommit
	}
	if a.Force {
		flags |= ctForce
	}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, 0) // the zone is a number, not a field
	b = binary.BigEndian.AppendUint16(b, a.Zone)
	table := uint8(ctNoTable)
	if a.Table != nil {
		table = *a.Table
	}
	b = append(b, table, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, 0) // no application layer gateway
	for _, nested := range a.Exec {
		b = nested.append(b)
	}
	binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start))
	return b
}

func (a CT) String() string {
	var parts []string
	if a.Commit {
		parts = append(parts, "commit")
	}
	if a.Force {
		parts = append(parts, "force")
	}
	if a.Table != nil {
		parts = append(parts, fmt.Sprintf("table=%d", *a.Table))
	}
	parts = append(parts, fmt.Sprintf("zone=%d", a.Zone))
	if len(a.Exec) > 0 {
		parts = append(parts, "exec("+joinActions(a.Exec)+")")
	}
	return "ct(" + strings.Join(parts, ",") + ")"
}

func (a Unknown) append(b []byte) []byte { return append(b, a.Wire...) }

func (a Unknown) String() string { return "unknown:" + hex.EncodeToString(a.Wire) }

func joinActions(actions []Action) string {
	parts := make([]string, len(actions))
	for i, a := range actions {
		parts[i] = a.String()
	}
	return strings.Join(parts, ",")
}

// Instructions are what a flow does with a packet, in wire form, so that equal instructions compare
// equal with ==. The zero value drops.
type Instructions struct{ wire string }

// Drop drops the packet.
var Drop = Instructions{}

// Apply returns instructions that do actions in order.
func Apply(actions ...Action) Instructions {
	if len(actions) == 0 {
		return Drop
	}
	b := binary.BigEndian.AppendUint16(nil, instructionApply)
	b = append(b, 0, 0, 0, 0, 0, 0)
	for _, a := range actions {
		b = a.append(b)
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return Instructions{string(b)}
}

// Goto returns in with a jump to a later table at its end.
func (in Instructions) Goto(table uint8) Instructions {
	return Instructions{in.wire + string([]byte{0, instructionGotoTable, 0, 8, table, 0, 0, 0})}
}

// Metered returns in with a meter before everything else.
func (in Instructions) Metered(id uint32) Instructions {
	return Instructions{string(Meter{id}.append(nil)) + in.wire}
}

// Decode returns the actions and the table in which the packet continues, or -1. Instructions that
// this package cannot make are an error.
func (in Instructions) Decode() (actions []Action, next int, err error) {
	next = -1
	b := []byte(in.wire)
	for len(b) > 0 {
		kind, n, err := tlv(b, "instruction")
		if err != nil {
			return nil, -1, err
		}
		switch {
		case kind == instructionApply && n >= 8:
			more, err := parseActions(b[8:n])
			if err != nil {
				return nil, -1, err
			}
			actions = append(actions, more...)
		case kind == instructionMeter && n == 8:
			actions = append(actions, Meter{binary.BigEndian.Uint32(b[4:])})
		case kind == instructionGotoTable && n == 8:
			next = int(b[4])
		default:
			return nil, -1, fmt.Errorf("instruction type %d of %d bytes is not supported", kind, n)
		}
		b = b[n:]
	}
	return actions, next, nil
}

func (in Instructions) String() string {
	actions, next, err := in.Decode()
	if err != nil {
		return "raw:" + hex.EncodeToString([]byte(in.wire))
	}
	s := joinActions(actions)
	switch {
	case next >= 0 && s != "":
		return fmt.Sprintf("%s,goto_table:%d", s, next)
	case next >= 0:
		return fmt.Sprintf("goto_table:%d", next)
	case s == "":
		return "drop"
	}
	return s
}

// tlv reads the type and the length at the beginning of an action or instruction.
func tlv(b []byte, what string) (kind, n int, err error) {
	if len(b) < 8 {
		return 0, 0, fmt.Errorf("%s is cut off at %d bytes", what, len(b))
	}
	kind, n = int(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))
	if n < 8 || n%8 != 0 || n > len(b) {
		return 0, 0, fmt.Errorf("%s type %d has length %d in %d bytes", what, kind, n, len(b))
	}
	return kind, n, nil
}

func parseActions(b []byte) ([]Action, error) {
	var actions []Action
	for len(b) > 0 {
		kind, n, err := tlv(b, "action")
		if err != nil {
			return nil, err
		}
		a, err := parseAction(kind, b[:n])
		if err != nil {
			return nil, err
		}
		actions = append(actions, a)
		b = b[n:]
	}
	return actions, nil
}

func parseAction(kind int, b []byte) (Action, error) {
	switch {
	case kind == actionOutput && len(b) == 16:
		return Output{Port: binary.BigEndian.Uint32(b[4:])}, nil
	case kind == actionSetField:
		header := binary.BigEndian.Uint32(b[4:])
		n := int(header & 0xff)
		if 8+n > len(b) {
			return nil, fmt.Errorf("set_field value of %d bytes does not fit into an action of %d", n, len(b))
		}
		if header&0x100 == 0 {
			return SetField{Field: Field(header &^ 0x1ff), Value: bytes.Clone(b[8 : 8+n])}, nil
		}
	case kind == actionExperimenter && len(b) == 24 && binary.BigEndian.Uint32(b[4:]) == niciraVendor &&
		binary.BigEndian.Uint16(b[8:]) == niciraMove:
		return parseMove(b), nil
	case kind == actionExperimenter && len(b) >= 24 && binary.BigEndian.Uint32(b[4:]) == niciraVendor &&
		binary.BigEndian.Uint16(b[8:]) == niciraCT:
		return parseCT(b)
	}
	return Unknown{Wire: bytes.Clone(b)}, nil
}

func parseMove(b []byte) Action {
	from, to := binary.BigEndian.Uint32(b[16:]), binary.BigEndian.Uint32(b[20:])
	a := Move{From: Field(from &^ 0x1ff), To: Field(to &^ 0x1ff), Length: uint8(from)}
	if !bytes.Equal(a.append(nil), b) {
		return Unknown{Wire: bytes.Clone(b)}
	}
	return a
}

func parseCT(b []byte) (Action, error) {
	flags := binary.BigEndian.Uint16(b[10:])
	if flags&^(ctCommit|ctForce) != 0 || binary.BigEndian.Uint32(b[12:]) != 0 || binary.BigEndian.Uint16(b[22:]) != 0 {
		return Unknown{Wire: bytes.Clone(b)}, nil
	}
	a := CT{
		Zone:   binary.BigEndian.Uint16(b[16:]),
		Commit: flags&ctCommit != 0,
		Force:  flags&ctForce != 0,
	}
	if b[18] != ctNoTable {
		table := b[18]
		a.Table = &table
	}
	var err error
	a.Exec, err = parseActions(b[24:])
	return a, err
}
