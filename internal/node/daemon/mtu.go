// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

// Open vSwitch 3.1 cuts TCP anew to the MTU of the port that it leaves by, less headers without options, which may take
// 40 bytes, and less the 14 of Ethernet.
const (
	ethernet     = 14
	mostOptions  = 40
	usualOptions = 12 // timestamps
)

// SwitchMTU is the MTU of the switch's ports, in bytes, where the links carry linkMTU: the largest by which what the
// switch has cut fits the links, and which they carry well.
func SwitchMTU(linkMTU int) int {
	largest := linkMTU - (mostOptions - ethernet)
	for mtu := largest; mtu > largest-200 && mtu > 200; mtu-- {
		if fillsTrains(WorkloadMTU(mtu)) {
			return mtu
		}
	}
	return largest
}

// WorkloadMTU is the MTU of workloads, in bytes, where that of the switch's ports is switchMTU. A segment of such a
// workload is just what the switch would cut, so that none is cut into a whole one and a rest of two bytes.
func WorkloadMTU(switchMTU int) int { return switchMTU - (ethernet - usualOptions) }

// fillsTrains says that the userspace WireGuard device sends packets of this size well. It hands the kernel trains of as
// many equal datagrams as the length field of one datagram allows. With its headers a train may then be longer than the
// 65535 bytes that interfaces take, and the kernel cuts it into single datagrams on the processor: half the throughput.
func fillsTrains(packet int) bool {
	const (
		padding     = 16 // WireGuard pads packets to a multiple of it
		transport   = 32 // WireGuard's header and authenticator
		udp         = 8
		longest     = 65535 // of a datagram, and of what an interface takes by default
		ipv4Header  = 20
		ipv6Header  = 40
		ipv4Payload = longest - ipv4Header - udp
		ipv6Payload = longest - udp
	)
	datagram := (packet+padding-1)/padding*padding + transport
	fits := func(payload, header int) bool {
		return payload/datagram*datagram+udp+header+ethernet <= longest
	}
	return fits(ipv4Payload, ipv4Header) && fits(ipv6Payload, ipv6Header)
}
