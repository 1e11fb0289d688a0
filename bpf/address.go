// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// toMap converts an address to its form in maps: 16 bytes in network byte order, IPv4 as
// ::ffff:a.b.c.d. The invalid address becomes zero.
func toMap(a netip.Addr) (m endpointAddr) {
	if !a.IsValid() {
		return m
	}
	b := a.As16()
	for i := range m.Word {
		m.Word[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return m
}

func fromMap(m endpointAddr) netip.Addr {
	if m == (endpointAddr{}) {
		return netip.Addr{}
	}
	var b [16]byte
	for i, w := range m.Word {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b).Unmap()
}

// prefixToMap returns a prefix's address and its length, counted in 128 bits.
func prefixToMap(p netip.Prefix) (endpointAddr, uint32, error) {
	if !p.IsValid() {
		return endpointAddr{}, 0, fmt.Errorf("prefix %q is not valid", p)
	}
	p = p.Masked()
	length := p.Bits()
	if p.Addr().Is4() {
		length += 96
	}
	return toMap(p.Addr()), uint32(length), nil
}

func prefixFromMap(m endpointAddr, length uint32) netip.Prefix {
	a := fromMap(m)
	if !a.IsValid() {
		a = netip.IPv6Unspecified()
	}
	if a.Is4() {
		return netip.PrefixFrom(a, int(length)-96)
	}
	return netip.PrefixFrom(a, int(length))
}

// plain returns an error for an address that no endpoint, peer or resolver can have.
func plain(a netip.Addr) error {
	if !a.IsValid() || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() {
		return fmt.Errorf("address %q is not a unicast address without a zone", a)
	}
	return nil
}
