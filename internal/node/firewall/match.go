// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/wellknown"
)

// Expressions of the nftables virtual machine. Each function loads what it compares into register
// 1; the rule continues if it matches.

func rule(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

func equal(data ...byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}
}

// in and out are the input and output interfaces of a packet.
const in, out = expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME

func name(key expr.MetaKey, device string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, device)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, equal(padded...)}
}

func prefix(key expr.MetaKey, start string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, equal([]byte(start)...)}
}

// veth matches the interfaces of endpoints.
func veth(key expr.MetaKey) []expr.Any {
	return append(prefix(key, wellknown.InterfacePrefix), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte(wellknown.ReservedPrefix)})
}

func protocol(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal(p)}
}

func destinationPort(p fabric.Protocol, port uint16) []expr.Any {
	return append(protocol(byte(p)),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		equal(binary.BigEndian.AppendUint16(nil, port)...))
}

func sourcePort(p fabric.Protocol, port uint16) []expr.Any {
	return append(protocol(byte(p)),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
		equal(binary.BigEndian.AppendUint16(nil, port)...))
}

func icmp(p, kind byte) []expr.Any {
	return append(protocol(p),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1}, equal(kind))
}

// side is the position of an address in the IPv4 and the IPv6 header.
type side struct{ offset4, offset6 uint32 }

var source, destination = side{12, 8}, side{16, 24}

func within(s side, p netip.Prefix) []expr.Any {
	p = p.Masked()
	version, offset := byte(unix.NFPROTO_IPV4), s.offset4
	if p.Addr().Is6() {
		version, offset = unix.NFPROTO_IPV6, s.offset6
	}
	length := uint32(p.Addr().BitLen() / 8)
	mask := make([]byte, length)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal(version),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: mask, Xor: make([]byte, length)},
		equal(p.Addr().AsSlice()...),
	}
}

// ongoing matches packets of accepted connections.
func ongoing() []expr.Any { return conntrack(expr.CtKeySTATE, ctOngoing) }

// opening matches the first packet of a connection, which the kernel's table does not contain yet.
func opening() []expr.Any { return conntrack(expr.CtKeySTATE, expr.CtStateBitNEW) }

// faster matches packets beyond a number in a second.
func faster(perSecond int) []expr.Any {
	return []expr.Any{&expr.Limit{
		Type: expr.LimitTypePkts, Unit: expr.LimitTimeSecond, Over: true, Rate: uint64(perSecond), Burst: uint32(perSecond),
	}}
}

// related matches errors about connections that exist.
func related() []expr.Any { return conntrack(expr.CtKeySTATE, expr.CtStateBitRELATED) }

// untraceable matches packets that belong to no connection, and open none. They would leave as they
// are, without translation.
func untraceable() []expr.Any {
	return conntrack(expr.CtKeySTATE, expr.CtStateBitINVALID|expr.CtStateBitUNTRACKED)
}

// mapped matches packets of connections with a translated destination, hidden those of connections
// with a translated source.
func mapped() []expr.Any { return conntrack(expr.CtKeySTATUS, ctDNAT) }
func hidden() []expr.Any { return conntrack(expr.CtKeySTATUS, ctSNAT) }

func conntrack(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// toNodeItself matches packets to any address of the node, toOthers all others.
func toNodeItself() []expr.Any { return destinationType(expr.CmpOpEq, unix.RTN_LOCAL) }
func toOthers() []expr.Any     { return destinationType(expr.CmpOpNeq, unix.RTN_LOCAL) }

func destinationType(op expr.CmpOp, kind uint32) []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: op, Register: 1, Data: binaryutil.NativeEndian.PutUint32(kind)},
	}
}

// translate leads a packet to an address and port.
func translate(to netip.AddrPort) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if to.Addr().Is6() {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2},
	}
}

// marked matches packets whose mark is the given one in the bits of the mask.
func marked(mark, mask uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		equal(binaryutil.NativeEndian.PutUint32(mark)...),
	}
}

// mark gives the packet a mark.
func mark(m uint32) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(m)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}
}

// byNode matches packets that eBPF lets out with the node as exit.
func byNode() []expr.Any { return marked(wellknown.ExitMarkNode, ^uint32(0)) }

// remember marks the connection as one that leaves by the node.
func remember() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(wellknown.ExitMarkNode)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
	}
}

// answering matches packets that go against the direction of the first one.
func answering() []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, equal(1)} // IP_CT_DIR_REPLY
}

// masquerade gives a connection the address of the interface by which it leaves as its source.
func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// beyondPrefix matches packets of the prefix's family whose address is not within it.
func beyondPrefix(s side, p netip.Prefix) []expr.Any {
	exprs := within(s, p)
	last := *exprs[len(exprs)-1].(*expr.Cmp)
	last.Op = expr.CmpOpNeq
	exprs[len(exprs)-1] = &last
	return exprs
}

// jump goes on with the rules of another chain, and does not come back.
func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

// drop counts and drops the packet.
func drop(counter string) []expr.Any {
	return []expr.Any{
		&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

func newCounter() *expr.Counter { return &expr.Counter{} }

// counted returns the name and value of a counter.
func counted(o nftables.Obj) (name string, packets uint64, ok bool) {
	named, ok := o.(*nftables.NamedObj)
	if !ok {
		return "", 0, false
	}
	c, ok := named.Obj.(*expr.Counter)
	if !ok {
		return "", 0, false
	}
	return named.Name, c.Packets, true
}
