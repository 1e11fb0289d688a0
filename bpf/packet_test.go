// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// The packets of the tests. Checksums are zero, because the programs do not read them.

const (
	fin = 0x01
	syn = 0x02
	rst = 0x04
	ack = 0x10
)

func be16(v ...uint16) (b []byte) {
	for _, x := range v {
		b = binary.BigEndian.AppendUint16(b, x)
	}
	return b
}

func tcp(from, to uint16, flags byte) []byte {
	return append(be16(from, to, 0, 1, 0, 0), 0x50, flags, 0xff, 0xff, 0, 0, 0, 0)
}

func udp(from, to uint16) []byte { return append(be16(from, to, 12, 0), 1, 2, 3, 4) }

// sctp is a packet with an INIT chunk.
func sctp(from, to uint16) []byte {
	return append(be16(from, to, 0, 0, 0, 0), 1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1)
}

func icmp(kind, code byte, id uint16, data ...byte) []byte {
	return append(append([]byte{kind, code}, be16(0, id, 1)...), data...)
}

// ip returns an IP packet of the version of its addresses.
func ip(from, to string, protocol byte, payload []byte) []byte {
	src, dst := netip.MustParseAddr(from), netip.MustParseAddr(to)
	if src.Is4() {
		h := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0}
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
		return slices.Concat(h, src.AsSlice(), dst.AsSlice(), payload)
	}
	h := []byte{0x60, 0, 0, 0, 0, 0, protocol, 64}
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	return slices.Concat(h, src.AsSlice(), dst.AsSlice(), payload)
}

// ethernet adds an Ethernet header to an IP packet.
func ethernet(packet []byte) []byte {
	kind := uint16(0x0800)
	if packet[0]>>4 == 6 {
		kind = 0x86dd
	}
	return frame(kind, packet)
}

func frame(kind uint16, payload []byte) []byte {
	return slices.Concat([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}, be16(kind), payload)
}

// with returns a copy of a packet with bytes at an offset replaced.
func with(packet []byte, at int, b ...byte) []byte {
	c := slices.Clone(packet)
	copy(c[at:], b)
	return c
}
