// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package guest

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/sif-project/sif/agent/wire"
)

const (
	etherIPv4      = 0x0800
	etherIPv6      = 0x86dd
	ethernetLength = 14
	ipv4Length     = 20
	ipv6Length     = 40
	udpLength      = 8
	protocolUDP    = 17
	protocolICMPv6 = 58
	solicitation   = 133

	dhcp4Server, dhcp4Client = 67, 68
	dhcp6Server, dhcp6Client = 547, 546
)

var (
	broadcastMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	broadcast4   = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	allNodesMAC  = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	allNodes     = netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 15: 1})
)

// packet is what is read of a frame.
type packet struct {
	sourceMAC           [6]byte
	source, destination netip.Addr
	solicits            bool // a router solicitation
	destinationPort     uint16
	payload             []byte // of UDP
}

// parseFrame reads a frame with a UDP packet or a router solicitation, and reports whether it is
// one. It does not look at checksums, which the guest may leave to its device.
func parseFrame(b []byte) (p packet, ok bool) {
	if len(b) < ethernetLength {
		return p, false
	}
	p.sourceMAC = [6]byte(b[6:12])
	kind, b := binary.BigEndian.Uint16(b[12:]), b[ethernetLength:]
	var protocol byte
	switch {
	case kind == etherIPv4 && len(b) >= ipv4Length && b[0]>>4 == 4:
		length, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if length < ipv4Length || total < length || len(b) < total || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
			return p, false
		}
		protocol = b[9]
		p.source, p.destination = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		b = b[length:total]
	case kind == etherIPv6 && len(b) >= ipv6Length && b[0]>>4 == 6:
		total := ipv6Length + int(binary.BigEndian.Uint16(b[4:]))
		if len(b) < total {
			return p, false
		}
		protocol = b[6]
		p.source, p.destination = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		if p.solicits = protocol == protocolICMPv6 && total > ipv6Length && b[ipv6Length] == solicitation; p.solicits {
			return p, b[7] == 255 // it comes from this link
		}
		b = b[ipv6Length:total]
	default:
		return p, false
	}
	if protocol != protocolUDP || len(b) < udpLength {
		return p, false
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length < udpLength || length > len(b) {
		return p, false
	}
	p.destinationPort, p.payload = binary.BigEndian.Uint16(b[2:]), b[udpLength:length]
	return p, true
}

// frame returns an IP packet from the node in an Ethernet frame.
func (c Config) frame(to net.HardwareAddr, packet []byte) []byte {
	kind := uint16(etherIPv4)
	if packet[0]>>4 == 6 {
		kind = etherIPv6
	}
	return slices.Concat(to, c.gatewayMAC(), binary.BigEndian.AppendUint16(nil, kind), packet)
}

// udpPacket returns an IP packet.
func udpPacket(from, to netip.AddrPort, payload []byte) []byte {
	b := make([]byte, udpLength, udpLength+len(payload))
	binary.BigEndian.PutUint16(b, from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(udpLength+len(payload)))
	b = append(b, payload...)
	sum := wire.Sum(wire.Sum(0, from.Addr().AsSlice()), to.Addr().AsSlice())
	checksum := ^uint16(wire.Sum(sum+protocolUDP+uint32(len(b)), b))
	if checksum == 0 {
		checksum = 0xffff // in UDP 0 means "no checksum"
	}
	binary.BigEndian.PutUint16(b[6:], checksum)
	return ipPacket(from.Addr(), to.Addr(), protocolUDP, 64, b)
}

func ipPacket(from, to netip.Addr, protocol, hops byte, payload []byte) []byte {
	if from.Is6() {
		h := []byte{6 << 4, 0, 0, 0, 0, 0, protocol, hops}
		binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
		return slices.Concat(h, from.AsSlice(), to.AsSlice(), payload)
	}
	h := []byte{4<<4 | ipv4Length/4, 0xc0, 0, 0, 0, 0, 0, 0, hops, protocol, 0, 0}
	binary.BigEndian.PutUint16(h[2:], uint16(ipv4Length+len(payload)))
	h = slices.Concat(h, from.AsSlice(), to.AsSlice())
	binary.BigEndian.PutUint16(h[10:], ^uint16(wire.Sum(0, h)))
	return append(h, payload...)
}
