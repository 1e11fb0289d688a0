// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package probe

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/sif-project/sif/agent/wire"
	"github.com/sif-project/sif/fabric"
)

// magic is the start of a probe's payload, before the nonce. The observer's socket filter compares
// its first four bytes.
const magic = "SIFprobe"

const payloadLength = len(magic) + 8

const (
	ipv4Length = 20
	ipv6Length = 40
	udpLength  = 8
	tcpLength  = 20
	hopLimit   = 64
	flagSYN    = 0x02
)

// packet is a probe.
type packet struct {
	src, dst netip.AddrPort
	protocol fabric.Protocol
	nonce    uint64
}

// marshal returns the IP packet with the nonce as its payload: UDP or a TCP SYN.
func (p packet) marshal() []byte {
	header := udpLength
	if p.protocol == fabric.TCP {
		header = tcpLength
	}
	segment := make([]byte, header+payloadLength)
	binary.BigEndian.PutUint16(segment, p.src.Port())
	binary.BigEndian.PutUint16(segment[2:], p.dst.Port())
	checksumAt := 6
	if p.protocol == fabric.TCP {
		checksumAt = 16
		binary.BigEndian.PutUint32(segment[4:], uint32(p.nonce)) // any sequence number
		segment[12] = tcpLength / 4 << 4
		segment[13] = flagSYN
		binary.BigEndian.PutUint16(segment[14:], 65535)
	} else {
		binary.BigEndian.PutUint16(segment[4:], uint16(len(segment)))
	}
	copy(segment[header:], magic)
	binary.BigEndian.PutUint64(segment[header+len(magic):], p.nonce)

	sum := wire.Sum(wire.Sum(0, p.src.Addr().AsSlice()), p.dst.Addr().AsSlice())
	sum = wire.Sum(sum+uint32(p.protocol)+uint32(len(segment)), segment)
	c := ^uint16(sum)
	if c == 0 {
		c = 0xffff // in UDP 0 means "no checksum"
	}
	binary.BigEndian.PutUint16(segment[checksumAt:], c)
	return append(p.ipHeader(len(segment)), segment...)
}

func (p packet) ipHeader(payload int) []byte {
	if p.dst.Addr().Is6() {
		h := make([]byte, ipv6Length)
		h[0] = 6 << 4
		binary.BigEndian.PutUint16(h[4:], uint16(payload))
		h[6], h[7] = byte(p.protocol), hopLimit
		copy(h[8:], p.src.Addr().AsSlice())
		copy(h[24:], p.dst.Addr().AsSlice())
		return h
	}
	h := make([]byte, ipv4Length)
	h[0] = 4<<4 | ipv4Length/4
	binary.BigEndian.PutUint16(h[2:], uint16(ipv4Length+payload))
	h[8], h[9] = hopLimit, byte(p.protocol)
	copy(h[12:], p.src.Addr().AsSlice())
	copy(h[16:], p.dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(h[10:], ^uint16(wire.Sum(0, h)))
	return h
}

// parse parses an IP packet and reports whether it is a probe.
func parse(b []byte) (packet, bool) {
	var p packet
	var next []byte
	var from, to netip.Addr
	switch {
	case len(b) >= ipv4Length && b[0]>>4 == 4:
		length := int(b[0]&15) * 4
		if length < ipv4Length || len(b) < length {
			return p, false
		}
		p.protocol, next = fabric.Protocol(b[9]), b[length:]
		from, _ = netip.AddrFromSlice(b[12:16])
		to, _ = netip.AddrFromSlice(b[16:20])
	case len(b) >= ipv6Length && b[0]>>4 == 6:
		p.protocol, next = fabric.Protocol(b[6]), b[ipv6Length:]
		from, _ = netip.AddrFromSlice(b[8:24])
		to, _ = netip.AddrFromSlice(b[24:40])
	default:
		return p, false
	}
	header := udpLength
	switch p.protocol {
	case fabric.TCP:
		if len(next) < tcpLength {
			return p, false
		}
		header = int(next[12]>>4) * 4
	case fabric.UDP:
	default:
		return p, false
	}
	if header < udpLength || len(next) < header+payloadLength || string(next[header:header+len(magic)]) != magic {
		return p, false
	}
	p.src = netip.AddrPortFrom(from, binary.BigEndian.Uint16(next))
	p.dst = netip.AddrPortFrom(to, binary.BigEndian.Uint16(next[2:]))
	p.nonce = binary.BigEndian.Uint64(next[header+len(magic):])
	return p, true
}

// check returns an error if the packet cannot be sent.
func (p packet) check() error {
	a, b := p.src.Addr(), p.dst.Addr()
	if !a.IsValid() || !b.IsValid() || a.Is4() != b.Is4() || a.Is4In6() || b.Is4In6() {
		return fmt.Errorf("probe from %s to %s: the addresses must be of the same IP version", p.src, p.dst)
	}
	if p.protocol != fabric.TCP && p.protocol != fabric.UDP {
		return fmt.Errorf("probe from %s to %s: protocol %s must be tcp or udp", p.src, p.dst, p.protocol)
	}
	return nil
}
