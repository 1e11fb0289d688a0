// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
)

// PortMapping maps a port of the node to an endpoint.
type PortMapping struct {
	Protocol fabric.Protocol
	From     netip.AddrPort // of the node; an unspecified address is every address of its family
	To       netip.AddrPort // of the endpoint, of the same family
}

func (p PortMapping) String() string {
	return fmt.Sprintf("%s port %s of the node to %s", p.Protocol, p.From, p.To)
}

// Check returns an error if the mapping can never be made.
func (p PortMapping) Check() error {
	var err error
	switch {
	case p.Protocol != fabric.TCP && p.Protocol != fabric.UDP:
		err = errors.New("only TCP and UDP ports can be mapped")
	case !p.From.IsValid() || !p.To.IsValid() || p.From.Addr().Is4() != p.To.Addr().Is4() || p.From.Addr().Is4In6() || p.To.Addr().Is4In6():
		err = errors.New("both addresses must be of one family")
	case p.From.Port() == 0 || p.To.Port() == 0:
		err = errors.New("a port is missing")
	case p.To.Addr().IsUnspecified():
		err = errors.New("it leads to no endpoint")
	default:
		return nil
	}
	return fmt.Errorf("map %s: %w", p, err)
}

// Overlaps reports whether both mappings would apply to some packet.
func (p PortMapping) Overlaps(o PortMapping) bool {
	a, b := p.From.Addr(), o.From.Addr()
	return p.Protocol == o.Protocol && p.From.Port() == o.From.Port() && a.Is4() == b.Is4() &&
		(a == b || a.IsUnspecified() || b.IsUnspecified())
}

// portMap is the kernel's map from ports of the node to endpoints of one family. There are two for
// each family: one with an address of the node in the key, and one for all of its addresses.
type portMap struct {
	*nftables.Set
	ipv6, addressed bool
}

// elementsPerMessage limits a message to the 64 KiB of a netlink attribute.
const elementsPerMessage = 256

func newPortMaps(table *nftables.Table) []portMap {
	one := func(name string, ipv6, addressed bool) portMap {
		address := nftables.TypeIPAddr
		if ipv6 {
			address = nftables.TypeIP6Addr
		}
		key := []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService}
		if addressed {
			key = append([]nftables.SetDatatype{address}, key...)
		}
		return portMap{ipv6: ipv6, addressed: addressed, Set: &nftables.Set{
			Table: table, Name: name, IsMap: true, Concatenation: true,
			KeyType:  nftables.MustConcatSetType(key...),
			DataType: nftables.MustConcatSetType(address, nftables.TypeInetService),
		}}
	}
	return []portMap{
		one("ports_of_address", false, true), one("ports", false, false),
		one("ports_of_address6", true, true), one("ports6", true, false),
	}
}

// has reports whether the mapping belongs into the map.
func (m portMap) has(p PortMapping) bool {
	return p.From.Addr().Is6() == m.ipv6 && p.From.Addr().IsUnspecified() != m.addressed
}

// fill replaces the content of the map.
func (m portMap) fill(conn *nftables.Conn, ports []PortMapping) error {
	var elements []nftables.SetElement
	for _, p := range ports {
		if !m.has(p) {
			continue
		}
		key := append(word(byte(p.Protocol)), port(p.From.Port())...)
		if m.addressed {
			key = append(p.From.Addr().AsSlice(), key...)
		}
		elements = append(elements, nftables.SetElement{Key: key, Val: append(p.To.Addr().AsSlice(), port(p.To.Port())...)})
	}
	conn.FlushSet(m.Set)
	for len(elements) > 0 {
		n := min(len(elements), elementsPerMessage)
		if err := conn.SetAddElements(m.Set, elements[:n]); err != nil {
			return fmt.Errorf("map ports of the node: %w", err)
		}
		elements = elements[n:]
	}
	return nil
}

// Each part of a key and of a value fills 32-bit registers.

func word(b byte) []byte { return []byte{b, 0, 0, 0} }

func port(p uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, p), 0, 0) }

// match loads the packet's destination into registers, to be looked up.
func (m portMap) match() []expr.Any {
	version, offset, length := byte(unix.NFPROTO_IPV4), destination.offset4, uint32(4)
	if m.ipv6 {
		version, offset, length = unix.NFPROTO_IPV6, destination.offset6, 16
	}
	next := uint32(unix.NFT_REG32_00)
	exprs := []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal(version)}
	if m.addressed {
		exprs = append(exprs, &expr.Payload{DestRegister: next, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length})
		next += length / 4
	}
	return append(exprs,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
		&expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: unix.NFT_REG32_00, DestRegister: unix.NFT_REG32_00, IsDestRegSet: true, SetName: m.Name, SetID: m.ID})
}

// free returns the first register that match leaves alone.
func (m portMap) free() uint32 {
	if m.ipv6 {
		return unix.NFT_REG32_00 + 6
	}
	return unix.NFT_REG32_00 + 3
}

// lead changes the packet's destination to the address and port that match found.
func (m portMap) lead() []expr.Any {
	family, length := uint32(unix.NFPROTO_IPV4), uint32(4)
	if m.ipv6 {
		family, length = unix.NFPROTO_IPV6, 16
	}
	const first = unix.NFT_REG32_00
	return []expr.Any{&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: first, RegProtoMin: first + length/4}}
}
