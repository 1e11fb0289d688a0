// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

// In user space, Open vSwitch 3.1 resegments TCP to the MTU of the output port, minus headers
// without options, which may take 40 bytes, and minus the 14 bytes of Ethernet.
const (
	ethernet     = 14
	mostOptions  = 40
	usualOptions = 12 // timestamps
)

// SwitchMTU returns the MTU of the switch's ports, in bytes, for links with linkMTU. It is the
// largest one with which resegmented packets fit into the links, and which the links carry
// efficiently. The kernel's datapath keeps segments and would need no reduction, but no node knows
// of which kind the switches and links of other zones are.
func SwitchMTU(linkMTU int) int {
	largest := linkMTU - (mostOptions - ethernet)
	for mtu := largest; mtu > largest-200 && mtu > 200; mtu-- {
		if fillsTrains(WorkloadMTU(mtu)) {
			return mtu
		}
	}
	return largest
}

// WorkloadMTU returns the MTU of workloads, in bytes, for switch ports with switchMTU. The segments
// of such a workload have the size of resegmented ones, so that none is split into a full segment
// and one of two bytes.
func WorkloadMTU(switchMTU int) int { return switchMTU - (ethernet - usualOptions) }

// fillsTrains reports whether the userspace WireGuard device sends packets of this size
// efficiently. It passes trains of equal datagrams to the kernel, as many as fit into the length
// field of one datagram. With headers, a train may then exceed the 65535 bytes that interfaces
// accept, and the kernel splits it into single datagrams in software, which halves the throughput.
func fillsTrains(packet int) bool {
	const (
		padding     = 16 // WireGuard pads packets to a multiple of it
		transport   = 32 // WireGuard's header and authentication tag
		udp         = 8
		longest     = 65535 // of a datagram, and of what an interface accepts by default
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
