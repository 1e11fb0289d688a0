// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package openflow

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Field identifies a header field, a register or packet metadata: the class and number in its OXM
// header, without length and mask bit.
type Field uint32

func basic(n uint32) Field  { return Field(0x8000<<16 | n<<9) }
func nicira(n uint32) Field { return Field(0x0001<<16 | n<<9) }

// onf is the number of the Open Networking Foundation among experimenters.
const onf = 0x4f4e4600

// The fields that this package has names for. Values are in network byte order.
var (
	InPort     = basic(0)
	EthDst     = basic(3)
	EthSrc     = basic(4)
	EthType    = basic(5)
	IPProto    = basic(10)
	IPv4Src    = basic(11)
	IPv4Dst    = basic(12)
	TCPSrc     = basic(13)
	TCPDst     = basic(14)
	UDPSrc     = basic(15)
	UDPDst     = basic(16)
	SCTPSrc    = basic(17)
	SCTPDst    = basic(18)
	ICMPv4Type = basic(19)
	ICMPv4Code = basic(20)
	IPFrag     = nicira(26) // FragAny, FragLater
	IPv6Src    = basic(26)
	IPv6Dst    = basic(27)
	ICMPv6Type = basic(29)
	ICMPv6Code = basic(30)
	TCPFlags   = Field(experimenterClass<<16 | 42<<9) // of the ONF; TCPSyn
	CTState    = nicira(105)
	CTMark     = nicira(107)
	CTLabel    = nicira(108)

	// Of the first packet of the connection. They can be matched only with a state that says that
	// the connection is valid.
	CTProto = nicira(119)
	CTSrc   = nicira(124) // port, or ICMP type
)

// Reg returns the 32-bit register n, 0 to 15, which a packet has while it is in the pipeline.
func Reg(n int) Field { return nicira(uint32(n)) }

// LongReg returns the 128-bit register n, 0 to 3, which is the 32-bit registers from 4n on.
func LongReg(n int) Field { return nicira(uint32(111 + n)) }

// Bits of IPFrag, from ovs-fields(7).
const (
	FragAny   = 0x01 // a fragment
	FragLater = 0x02 // not the first one, so without ports
)

// TCPSyn is the bit of TCPFlags that a segment has which opens a connection.
const TCPSyn = 0x002

// Bits of CTState, from ovs-fields(7).
const (
	CTNew         = 0x01
	CTEstablished = 0x02
	CTRelated     = 0x04
	CTReply       = 0x08
	CTInvalid     = 0x10
	CTTracked     = 0x20
)

var fieldNames = map[Field]string{
	InPort: "in_port", EthDst: "eth_dst", EthSrc: "eth_src", EthType: "eth_type", IPProto: "ip_proto",
	IPv4Src: "ipv4_src", IPv4Dst: "ipv4_dst", TCPFlags: "tcp_flags", TCPDst: "tcp_dst", UDPDst: "udp_dst", SCTPDst: "sctp_dst",
	TCPSrc: "tcp_src", UDPSrc: "udp_src", SCTPSrc: "sctp_src",
	ICMPv4Type: "icmpv4_type", ICMPv4Code: "icmpv4_code", IPv6Src: "ipv6_src", IPv6Dst: "ipv6_dst",
	ICMPv6Type: "icmpv6_type", ICMPv6Code: "icmpv6_code",
	CTState: "ct_state", CTMark: "ct_mark", CTLabel: "ct_label",
	CTProto: "ct_nw_proto", CTSrc: "ct_tp_src", IPFrag: "ip_frag",
}

func (f Field) String() string {
	if name, ok := fieldNames[f]; ok {
		return name
	}
	if f>>16 == 0x0001 && f>>9&0x7f < 16 {
		return fmt.Sprintf("reg%d", f>>9&0x7f)
	}
	if n := f >> 9 & 0x7f; f>>16 == 0x0001 && n >= 111 && n < 115 {
		return fmt.Sprintf("xxreg%d", n-111)
	}
	return fmt.Sprintf("field(%#x,%d)", uint32(f)>>16, f>>9&0x7f)
}

// FieldMatch matches packets whose Field equals Value in the bits of Mask.
type FieldMatch struct {
	Field Field
	Value []byte
	Mask  []byte // nil: all bits

	// Experimenter is the number of the organisation that defined a field of the experimenter
	// class.
	Experimenter uint32
}

// experimenterClass is the class of fields whose value begins with the number of an organisation.
const experimenterClass = 0xffff

func (m FieldMatch) String() string {
	if m.Mask == nil {
		return fmt.Sprintf("%s=%s", m.Field, hex.EncodeToString(m.Value))
	}
	return fmt.Sprintf("%s=%s/%s", m.Field, hex.EncodeToString(m.Value), hex.EncodeToString(m.Mask))
}

// Is8 matches all bits of an 8-bit field.
func Is8(f Field, v uint8) FieldMatch { return FieldMatch{Field: f, Value: []byte{v}} }

// Is16 matches all bits of a 16-bit field.
func Is16(f Field, v uint16) FieldMatch {
	return FieldMatch{Field: f, Value: binary.BigEndian.AppendUint16(nil, v)}
}

// Is32 matches all bits of a 32-bit field.
func Is32(f Field, v uint32) FieldMatch {
	return FieldMatch{Field: f, Value: binary.BigEndian.AppendUint32(nil, v)}
}

// Masked16 matches the bits of a 16-bit field that are set in mask.
func Masked16(f Field, v, mask uint16) FieldMatch {
	m := Is16(f, v)
	m.Mask = binary.BigEndian.AppendUint16(nil, mask)
	return m
}

// Masked32 matches the bits of a 32-bit field that are set in mask.
func Masked32(f Field, v, mask uint32) FieldMatch {
	m := Is32(f, v)
	m.Mask = binary.BigEndian.AppendUint32(nil, mask)
	return m
}

// WithoutFlags matches segments of TCP that have none of the flags.
func WithoutFlags(flags uint16) FieldMatch {
	m := Masked16(TCPFlags, 0, flags)
	m.Experimenter = onf
	return m
}

// State matches connections that have all of the state bits in set and none of those in clear.
func State(set, clear uint32) FieldMatch {
	m := Is32(CTState, set)
	m.Mask = binary.BigEndian.AppendUint32(nil, set|clear)
	return m
}

// Label matches connections with the label v.
func Label(v uint64) FieldMatch { return FieldMatch{Field: CTLabel, Value: LabelBytes(v)} }

// LabelBytes returns the 128-bit connection label v.
func LabelBytes(v uint64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 8, 16), v)
}

// Within matches an address field by a prefix of the same address family.
func Within(f Field, p netip.Prefix) FieldMatch {
	p = p.Masked()
	m := FieldMatch{Field: f, Value: p.Addr().AsSlice()}
	if p.IsSingleIP() {
		return m
	}
	m.Mask = make([]byte, len(m.Value))
	for i := range p.Bits() {
		m.Mask[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

// Match is a set of field matches in canonical wire form, so that equal sets compare equal with ==.
type Match struct{ oxm string }

// NewMatch puts fields into canonical form: a field comes after its prerequisites, a mask of all
// bits is dropped, a field with a mask of no bits is left out.
func NewMatch(fields ...FieldMatch) Match {
	order := func(a, b FieldMatch) int { return compareFields(a.Field, b.Field) }
	if !slices.IsSortedFunc(fields, order) {
		fields = slices.Clone(fields)
		slices.SortFunc(fields, order)
	}
	b := make([]byte, 0, 128)
	for _, f := range fields {
		b = appendOXM(b, f)
	}
	return Match{string(b)}
}

// compareFields orders the basic class before extensions, and fields of a class by number: Open
// vSwitch refuses a field that precedes its prerequisite.
func compareFields(a, b Field) int {
	if ab, bb := a>>16 == 0x8000, b>>16 == 0x8000; ab != bb {
		if ab {
			return -1
		}
		return 1
	}
	return int(int64(a) - int64(b))
}

func appendOXM(b []byte, f FieldMatch) []byte {
	full, empty := true, true
	for _, m := range f.Mask {
		full = full && m == 0xff
		empty = empty && m == 0
	}
	begin := func(flags uint32, n int) []byte {
		if uint32(f.Field)>>16 != experimenterClass {
			return binary.BigEndian.AppendUint32(b, uint32(f.Field)|flags|uint32(n))
		}
		b = binary.BigEndian.AppendUint32(b, uint32(f.Field)|flags|uint32(4+n))
		return binary.BigEndian.AppendUint32(b, f.Experimenter)
	}
	switch {
	case f.Mask == nil || full:
		b = begin(0, len(f.Value))
		return append(b, f.Value...)
	case empty:
		return b
	}
	b = begin(0x100, len(f.Value)+len(f.Mask))
	for i := range f.Value {
		b = append(b, f.Value[i]&f.Mask[i])
	}
	return append(b, f.Mask...)
}

// Fields returns the field matches in canonical order.
func (m Match) Fields() []FieldMatch {
	fields, err := parseOXMs([]byte(m.oxm))
	if err != nil {
		// Only NewMatch and parseMatch make a Match, and both write what parseOXMs reads.
		panic("openflow: corrupt match: " + err.Error())
	}
	return fields
}

// Get returns the match of field f, if there is one.
func (m Match) Get(f Field) (FieldMatch, bool) {
	for _, have := range m.Fields() {
		if have.Field == f {
			return have, true
		}
	}
	return FieldMatch{}, false
}

func (m Match) String() string {
	var parts []string
	for _, f := range m.Fields() {
		parts = append(parts, f.String())
	}
	return strings.Join(parts, ",")
}

func parseOXMs(b []byte) ([]FieldMatch, error) {
	var fields []FieldMatch
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, fmt.Errorf("match field header is cut off at %d bytes", len(b))
		}
		header := binary.BigEndian.Uint32(b)
		n := int(header & 0xff)
		if len(b) < 4+n {
			return nil, fmt.Errorf("match field of %d bytes is cut off at %d", n, len(b)-4)
		}
		f := FieldMatch{Field: Field(header &^ 0x1ff), Value: bytes.Clone(b[4 : 4+n])}
		b = b[4+n:]
		if header>>16 == experimenterClass {
			if n < 4 {
				return nil, fmt.Errorf("match field of an experimenter has %d bytes, fewer than its number", n)
			}
			n -= 4
			f.Experimenter, f.Value = binary.BigEndian.Uint32(f.Value), f.Value[4:]
		}
		if header&0x100 != 0 {
			if n%2 != 0 {
				return nil, fmt.Errorf("masked match field has the odd length %d", n)
			}
			f.Value, f.Mask = f.Value[:n/2:n/2], f.Value[n/2:]
		}
		fields = append(fields, f)
	}
	return fields, nil
}

// append appends an ofp_match and its padding.
func (m Match) append(b []byte) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint16(b, 1) // OFPMT_OXM
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(m.oxm)))
	b = append(b, m.oxm...)
	return pad(b, start)
}

// parseMatch reads an ofp_match and returns the bytes after its padding.
func parseMatch(b []byte) (Match, []byte, error) {
	if len(b) < 4 {
		return Match{}, nil, fmt.Errorf("match header is cut off at %d bytes", len(b))
	}
	if t := binary.BigEndian.Uint16(b); t != 1 {
		return Match{}, nil, fmt.Errorf("match type %d is not OXM", t)
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	if n < 4 || roundUp8(n) > len(b) {
		return Match{}, nil, fmt.Errorf("match of %d bytes does not fit into %d", n, len(b))
	}
	fields, err := parseOXMs(b[4:n])
	if err != nil {
		return Match{}, nil, err
	}
	return NewMatch(fields...), b[roundUp8(n):], nil
}
