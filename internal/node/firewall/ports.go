// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
)

// portMaps are the maps from ports of the node to endpoints: one with an address of the node in the
// key, and one for all of its addresses.
type portMaps struct{ addressed, plain *nftables.Set }

// elementsPerMessage limits a message to the 64 KiB of a netlink attribute.
const elementsPerMessage = 256

func newPortMaps(table *nftables.Table) portMaps {
	set := func(name string, key ...nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{
			Table: table, Name: name, IsMap: true, Concatenation: true,
			KeyType:  nftables.MustConcatSetType(key...),
			DataType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService),
		}
	}
	return portMaps{
		addressed: set("ports_of_address", nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService),
		plain:     set("ports", nftables.TypeInetProto, nftables.TypeInetService),
	}
}

func (m portMaps) sets() []*nftables.Set { return []*nftables.Set{m.addressed, m.plain} }

// fill replaces the content of the maps.
func (m portMaps) fill(conn *nftables.Conn, ports []PortMapping) error {
	var addressed, plain []nftables.SetElement
	for _, p := range ports {
		key := append(word(byte(p.Protocol)), port(p.HostPort)...)
		e := nftables.SetElement{Key: key, Val: append(p.To.Addr().AsSlice(), port(p.To.Port())...)}
		if everyAddress(p) {
			plain = append(plain, e)
			continue
		}
		e.Key = append(p.HostIP.AsSlice(), key...)
		addressed = append(addressed, e)
	}
	for _, s := range []struct {
		set      *nftables.Set
		elements []nftables.SetElement
	}{{m.addressed, addressed}, {m.plain, plain}} {
		conn.FlushSet(s.set)
		for len(s.elements) > 0 {
			n := min(len(s.elements), elementsPerMessage)
			if err := conn.SetAddElements(s.set, s.elements[:n]); err != nil {
				return fmt.Errorf("map ports of the node: %w", err)
			}
			s.elements = s.elements[n:]
		}
	}
	return nil
}

// Each part of a key and of a value fills a 32-bit register.

func word(b byte) []byte { return []byte{b, 0, 0, 0} }

func port(p uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, p), 0, 0) }

func everyAddress(p PortMapping) bool { return !p.HostIP.IsValid() || p.HostIP.IsUnspecified() }

// checkPorts returns an error if a mapping is invalid or conflicts with another one.
func checkPorts(ports []PortMapping) error {
	type key struct {
		address  string
		protocol fabric.Protocol
		port     uint16
	}
	seen := map[key]PortMapping{}
	for _, p := range ports {
		if !p.To.Addr().Is4() || (!everyAddress(p) && !p.HostIP.Is4()) || p.HostPort == 0 || p.To.Port() == 0 {
			return fmt.Errorf("map port %d of %v to %v: both must be IPv4 addresses with a port", p.HostPort, p.HostIP, p.To)
		}
		k := key{"", p.Protocol, p.HostPort}
		if !everyAddress(p) {
			k.address = p.HostIP.String()
		}
		if other, ok := seen[k]; ok {
			return fmt.Errorf("map %s port %d of the node to %v: it is already mapped to %v", p.Protocol, p.HostPort, p.To, other.To)
		}
		seen[k] = p
	}
	return nil
}

// 32-bit registers in the numbering of nftables; the first four are the 128-bit register 1.
const reg0, reg1, reg2 = unix.NFT_REG32_00, unix.NFT_REG32_01, unix.NFT_REG32_02

func (m portMaps) lookUp() []expr.Any {
	return append(onlyIPv4(),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: m.plain.Name, SetID: m.plain.ID},
		translate())
}

func (m portMaps) lookUpWithAddress() []expr.Any {
	return append(onlyIPv4(),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: destination.offset4, Len: 4},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		&expr.Payload{DestRegister: reg2, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: m.addressed.Name, SetID: m.addressed.ID},
		translate())
}

func onlyIPv4() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal(unix.NFPROTO_IPV4)}
}

// translate changes the destination to the address and port from the look-up.
func translate() *expr.NAT {
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg0, RegProtoMin: reg1}
}
