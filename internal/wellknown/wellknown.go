// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package wellknown holds the addresses, ports, names and paths on which packages must agree that
// do not import one another: the agent gives interfaces the names by which the firewall recognises
// them, `sif link` listens where the daemons dial. It contains constants and what derives one name
// from another. It imports nothing of ours and does no I/O.
package wellknown

import (
	"net/netip"
	"strconv"
	"strings"
)

// LinkLocal4 and LinkLocal6 are the next hop of every workload and of every port of a switch. They
// are the same everywhere and are never on the wire: permanent neighbours stand in for ARP and
// neighbour discovery. On a workload node LinkLocal4 is also an address of the node itself, at
// which its DNS server listens.
var (
	LinkLocal4 = netip.AddrFrom4([4]byte{169, 254, 1, 1}) // RFC 3927
	LinkLocal6 = netip.AddrFrom16([16]byte{0xfe, 0x80, 15: 1})
)

// DNSPort is the UDP and TCP port of the node's DNS server and of the resolvers that it asks. The
// eBPF programs have it as DNS_PORT (bpf/headers/policy.h).
const DNSPort = 53

// TCP ports of the daemons, unless the configuration names others.
const (
	ControllerPort = "8440"
	EnginePort     = "8441"

	AgentMetricsPort  = "8445"
	EngineMetricsPort = "8446"
)

// ProbePort is the UDP port at which nodes exchange probes among their health addresses; both ports
// of each probe are this one.
const ProbePort = 8442

// AgentPort is the TCP port at which an agent listens for the agents of its zone, on the health
// address of its node, which is reached through the link to the nodes of the zone.
const AgentPort = 8442

// A packet to the outside carries the mark of its exit, which the eBPF programs of its workload
// set: ExitMarkNode for the node itself, ExitMark for a processor. Rules of priority ExitPriority
// lead the marks of processors to the routing tables of their links.
const (
	ExitMarkNode uint32 = 0x51f00001
	exitMark     uint32 = 0x51f00100
	exitTable           = 5100
	ExitPriority        = 5100
	// MaxExits is the number of slots that processors of a zone can have at a node.
	MaxExits = 256
)

// ExitMark returns the mark of packets that leave by the processor in a slot, from 0.
func ExitMark(slot int) uint32 { return exitMark + uint32(slot) }

// ExitTable returns the routing table of the processor in a slot.
func ExitTable(slot int) int { return exitTable + slot }

// FirstLinkPort to LastLinkPort are the UDP ports that a node's WireGuard devices may have, one
// each. Which ones a node uses is in its signed record. Links have the lowest that are free, their
// detours the highest.
const (
	FirstLinkPort = 51820
	LastLinkPort  = 51899
)

// Names of interfaces. A workload's interface is InterfacePrefix and eleven hexadecimal digits, so
// it never begins with ReservedPrefix, which all other interfaces of ours have.
const (
	InterfacePrefix = "sif"
	ReservedPrefix  = InterfacePrefix + "-"
	LinkPrefix      = ReservedPrefix + "l" // a WireGuard device; a number follows
	SwitchPrefix    = ReservedPrefix + "o" // the end of a veth pair that is a port of the switch; a number follows

	// ExitInterface is the end of a veth pair by which a processor hands packets to the outside to
	// its own kernel; ExitSwitchInterface is the other end, the switch's port.
	ExitInterface       = ReservedPrefix + "exit"
	ExitSwitchInterface = SwitchPrefix + "exit"
)

// ZoneLink is the WireGuard device to the nodes of the zone, which is always the first.
var ZoneLink = LinkInterface(0)

// LinkInterface returns the name of a WireGuard device by its number: "sif-l0" for the first.
func LinkInterface(number int) string { return LinkPrefix + strconv.Itoa(number) }

// DetourInterface returns the name of the WireGuard device that carries the packets of another one
// while that one's key is replaced: "sif-l0d" for the first.
func DetourInterface(number int) string { return LinkInterface(number) + "d" }

// SwitchInterface returns the name of the switch's port for a WireGuard device: "sif-o0" for
// "sif-l0".
func SwitchInterface(link string) string { return SwitchPrefix + strings.TrimPrefix(link, LinkPrefix) }

// LinkNamespace returns the name of the network namespace in which a processor's WireGuard device
// lives: "<prefix>-l0" for "sif-l0".
func LinkNamespace(prefix, link string) string {
	return prefix + "-" + strings.TrimPrefix(link, ReservedPrefix)
}

// CNINetwork is the name of the CNI network. Nomad calls it "cni/sif".
const CNINetwork = "sif"

// Directories, unless the configuration or an option names others. `sif link` has LinkDir of each
// for itself. The controller, which has a user of its own, shares no directory with the others; a
// node may have an agent, in DataDir, and an engine.
const (
	RunDir            = "/run/sif"
	DataDir           = "/var/lib/sif"
	ControllerDataDir = DataDir + "/controller"
	EngineDataDir     = DataDir + "/engine"
	LinkDir           = "link"
)

// LinkSocket is the name of the socket in the run directory of `sif link` over which it is told
// which devices to make. No interface can have this name, so no device's own socket can.
const LinkSocket = "link.sock"

// How workloads reach the SPIFFE Workload API: at the socket WorkloadAPISocket in WorkloadAPIDir,
// on the node and, where it is mounted, in a task. The directory is not in RunDir, which only the
// fabric's own daemons may enter, and is never made anew while the machine runs, because it is
// mounted.
const (
	WorkloadAPIDir    = "/run/sif-workload"
	WorkloadAPISocket = "api.sock"
	// WorkloadAPIVolume is the host volume of Nomad's clients by which tasks mount the directory.
	WorkloadAPIVolume = "sif-workload"
	// WorkloadAPIEnv is the environment variable by which applications find the socket (SPIFFE
	// Workload Endpoint).
	WorkloadAPIEnv = "SPIFFE_ENDPOINT_SOCKET"
)

// WorkloadAPIAddress is the value of WorkloadAPIEnv.
const WorkloadAPIAddress = "unix://" + WorkloadAPIDir + "/" + WorkloadAPISocket

// HostPrefixes returns the addresses at which workloads reach their own node, as prefixes.
func HostPrefixes() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(LinkLocal4, LinkLocal4.BitLen()), netip.PrefixFrom(LinkLocal6, LinkLocal6.BitLen())}
}
