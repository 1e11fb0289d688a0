// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hostport

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/wellknown"
)

// family is an address family.
type family struct {
	ipv6                bool
	name                string
	version             byte
	source, destination uint32 // offsets of the addresses in the header
	size                uint32 // of an address
	headers             uint16 // bytes of those of IP and TCP without options
	address             nftables.SetDatatype
	loopback            netip.Addr
}

var families = []family{
	{false, "4", unix.NFPROTO_IPV4, 12, 16, 4, 40, nftables.TypeIPAddr, netip.AddrFrom4([4]byte{127, 0, 0, 1})},
	{true, "6", unix.NFPROTO_IPV6, 8, 24, 16, 60, nftables.TypeIP6Addr, netip.IPv6Loopback()},
}

// Expressions of the nftables virtual machine. Each function loads what it compares into register
// 1; the rule continues if it matches.

func rule(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

func compare(op expr.CmpOp, data ...byte) *expr.Cmp {
	return &expr.Cmp{Op: op, Register: 1, Data: data}
}

const is, isNot = expr.CmpOpEq, expr.CmpOpNeq

// from and to match packets by the interface by which they come or leave; any interface of a
// process of the node, with the whole prefix.
func from(op expr.CmpOp, device string) []expr.Any { return name(expr.MetaKeyIIFNAME, op, device) }
func to(op expr.CmpOp, device string) []expr.Any   { return name(expr.MetaKeyOIFNAME, op, device) }

func name(key expr.MetaKey, op expr.CmpOp, device string) []expr.Any {
	data := []byte(device)
	if device != wellknown.HostPrefix {
		data = make([]byte, unix.IFNAMSIZ)
		copy(data, device)
	}
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, compare(op, data...)}
}

// of matches packets of the family.
func (f family) of() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, compare(is, f.version)}
}

// by and at match the source and the destination of packets of the family.
func (f family) by(op expr.CmpOp, p netip.Prefix) []expr.Any { return f.within(f.source, op, p) }
func (f family) at(op expr.CmpOp, p netip.Prefix) []expr.Any { return f.within(f.destination, op, p) }

func (f family) within(offset uint32, op expr.CmpOp, p netip.Prefix) []expr.Any {
	mask := make([]byte, f.size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(f.of(),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.size, Mask: mask, Xor: make([]byte, f.size)},
		compare(op, p.Masked().Addr().AsSlice()...))
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// in matches packets of the family whose destination is in a set.
func (f family) in(set string, invert bool) []expr.Any {
	return append(f.of(),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.destination, Len: f.size},
		&expr.Lookup{SourceRegister: 1, SetName: set, Invert: invert})
}

// toPort and fromPort match by protocol and port.
func toPort(p Port) []expr.Any   { return port(p, 2) }
func fromPort(p Port) []expr.Any { return port(p, 0) }

func port(p Port, offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, compare(is, byte(p.Protocol)),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		compare(is, binary.BigEndian.AppendUint16(nil, p.Number)...),
	}
}

func tcp() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, compare(is, unix.IPPROTO_TCP)}
}

// received matches packets for which there is a socket at the packet's own destination. There are
// two forms, of which one matches: the socket is bound to any address, or to this one.
func received() [][]expr.Any {
	var forms [][]expr.Any
	for _, wildcard := range []byte{0, 1} {
		forms = append(forms, []expr.Any{&expr.Socket{Key: expr.SocketKeyWildcard, Register: 1}, compare(is, wildcard)})
	}
	return forms
}

// sentBy matches packets of a cgroup, or of one below it.
func sentBy(level uint32, number uint64) []expr.Any {
	return []expr.Any{
		&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: level, Register: 1},
		compare(is, binary.NativeEndian.AppendUint64(nil, number)...),
	}
}

func unicast() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}, compare(is, binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST)...),
	}
}

// Bits of the state and of the status of a connection.
const (
	stateEstablished = expr.CtStateBitESTABLISHED
	stateRelated     = expr.CtStateBitRELATED
	stateNew         = expr.CtStateBitNEW
	stateUntracked   = expr.CtStateBitUNTRACKED
	statusDNAT       = 1 << 5 // IPS_DST_NAT
)

func state(bits uint32) []expr.Any { return conntrack(expr.CtKeySTATE, bits) }
func led() []expr.Any              { return conntrack(expr.CtKeySTATUS, statusDNAT) }

func conntrack(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		compare(isNot, make([]byte, 4)...),
	}
}

// asking matches packets in the direction of the first one of their connection, answering the
// others.
func asking() []expr.Any    { return direction(0) }
func answering() []expr.Any { return direction(1) }

func direction(d byte) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, compare(is, d)}
}

// ours matches packets of connections that go by endpoints of processes of the node, slot those of
// one.
func ours() []expr.Any { return connectionMark(wellknown.HostMarks, wellknown.HostMark(0)) }
func (a Attachment) ours() []expr.Any {
	return connectionMark(^uint32(0), wellknown.HostMark(a.Slot))
}

func connectionMark(mask, mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		compare(is, binaryutil.NativeEndian.PutUint32(mark)...),
	}
}

// mark gives the packet the mark of the slot, remember gives it to the connection, and recall gives
// that of the connection to the packet.
func (a Attachment) mark() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(wellknown.HostMark(a.Slot))},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}
}

func (a Attachment) remember() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(wellknown.HostMark(a.Slot))},
		&expr.Ct{Key: expr.CtKeyMARK, SourceRegister: true, Register: 1},
	}
}

func recall() []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1}}
}

// leadTo translates the destination, and appearAs the source.
func (f family) leadTo(a netip.Addr) []expr.Any   { return f.translate(expr.NATTypeDestNAT, a) }
func (f family) appearAs(a netip.Addr) []expr.Any { return f.translate(expr.NATTypeSourceNAT, a) }

func (f family) translate(kind expr.NATType, a netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: a.AsSlice()},
		&expr.NAT{Type: kind, Family: uint32(f.version), RegAddrMin: 1},
	}
}

// segmentsUpTo lowers the size of segments that a TCP packet asks for.
func segmentsUpTo(size uint16) []expr.Any {
	const (
		flags, syn, reset = 13, 0x02, 0x04
		maxSegment        = 2 // the option, RFC 9293
	)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, compare(is, unix.IPPROTO_TCP),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: flags, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn | reset}, Xor: []byte{0}}, compare(is, syn),
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, size)},
		&expr.Exthdr{SourceRegister: 1, Type: maxSegment, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	}
}

func untracked() []expr.Any { return []expr.Any{&expr.Notrack{}} }

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

// drop counts and drops the packet.
func drop(counter string) []expr.Any {
	return []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter}, &expr.Verdict{Kind: expr.VerdictDrop}}
}
