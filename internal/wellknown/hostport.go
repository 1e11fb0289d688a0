// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package wellknown

import (
	"net/netip"
	"strconv"
)

// A process in the network namespace of the node that has an endpoint has a slot of the node, and
// by it a veth pair between that namespace and the one of the endpoint, a mark, and a routing
// table. A rule of priority HostPriority leads the mark to the table.
const (
	// HostPrefix begins the name of the pair's end in the node's namespace; the slot follows.
	HostPrefix = ReservedPrefix + "h"
	// HostPeer is the name of the other end, in the endpoint's namespace.
	HostPeer = "host0"
	// MaxHosts is the number of slots.
	MaxHosts = 256

	hostMark  = uint32(0x51f00200)
	hostTable = 5400
	// HostPriority is that of the routing rules of these marks.
	HostPriority = 5098
	// HostMarks are the bits of a mark that do not tell the slot.
	HostMarks = ^uint32(MaxHosts - 1)
)

// The addresses of these pairs, which are in no packet outside the node: a link-local /24 of IPv4
// (RFC 3927), and of IPv6 a unique local /64 (RFC 4193), for each side.
var (
	HostNear4 = netip.MustParsePrefix("169.254.50.0/24") // in the node's namespace
	HostFar4  = netip.MustParsePrefix("169.254.51.0/24") // in those of endpoints
	HostNear6 = netip.MustParsePrefix("fd51:f0c9:7a13:50::/64")
	HostFar6  = netip.MustParsePrefix("fd51:f0c9:7a13:51::/64")
)

// HostInterface returns the name of a slot's interface in the node's namespace: "sif-h0" for the
// first.
func HostInterface(slot int) string { return HostPrefix + strconv.Itoa(slot) }

// HostMark returns the mark of what the process in a slot sends by its endpoint.
func HostMark(slot int) uint32 { return hostMark + uint32(slot) }

// HostTable returns the routing table of a slot.
func HostTable(slot int) int { return hostTable + slot }

// HostAddress returns the address of a slot in one of the prefixes of the pairs.
func HostAddress(within netip.Prefix, slot int) netip.Addr {
	b := within.Addr().AsSlice()
	b[len(b)-1] = byte(slot)
	a, _ := netip.AddrFromSlice(b)
	return a
}
