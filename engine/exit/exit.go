// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package exit connects the switch of a processor to what is outside the fabric: a veth pair
// between a port of the switch and the processor's own kernel, and there the routes to workloads
// and the nftables table "inet sif_exit", which translates their addresses to the processor's own.
//
// It knows interfaces, addresses and limits. It must not know who may reach what: the switch
// decides that, of each packet in both directions, before it gives the packet to this end.
//
// The table accepts only what comes from the switch and leaves by an interface to the outside, and
// the answers to it. It drops what the switch sends to the processor itself or to another interface
// of the machine, and what anybody sends to workloads by this machine without having been asked.
// Interfaces to the outside are that of the underlay, those of default routes, and those that the
// configuration names, if they have an address of the packet's family.
//
// All functions work in the network namespace of the calling thread, which is the switch's.
package exit

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/engine/port"
	"github.com/sif-project/sif/internal/node/host"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/wellknown"
)

// routeProtocol marks our routes (rtm_protocol).
const routeProtocol = 207

// Config describes the exit of a processor.
type Config struct {
	Underlay        string         // the interface towards other nodes
	UnderlayAddress netip.Addr     // by which the others know this node
	Ranges          []netip.Prefix // of the fabric's workloads
	MTU             int            // of the veth; see the function MTU
	// Address4 and Address6 are the addresses to which connections are translated. Zero: the
	// underlay address by the underlay's interface, and that of the interface by another one.
	Address4, Address6 netip.Addr
	Interfaces         []string // to the outside, besides the underlay's and those of default routes
	// PerEndpoint is the most connections that one workload may have, and NewPerSecond the most
	// that it may open in a second.
	PerEndpoint, NewPerSecond int
}

// MTU returns that of the exit, in bytes, for a switch with a datapath and the MTU of its other
// ports. In user space and with segmentation offload, Open vSwitch 3.1 does not keep the segments
// of TCP, but cuts them anew to the MTU of the output port, whatever the sender has learned of the
// path. So the exit has the smallest MTU that nearly every path carries, which IPv6 demands.
func MTU(datapath string, switchMTU int) int {
	if datapath == "netdev" {
		return min(switchMTU, smallestMTU)
	}
	return switchMTU
}

const smallestMTU = 1280 // RFC 8200, section 5

// Address is what the outside sees of connections that leave by an interface.
type Address struct {
	Interface string
	Addr      netip.Addr
}

// Exit manages the exit. It is safe for concurrent use.
type Exit struct {
	config Config

	mu        sync.Mutex
	first     map[key]netip.Addr // the address that each interface had first
	addresses []Address
	leads     bool // beyond the underlay
	findings  []string
	table     table
}

// key is an interface and a family.
type key struct {
	iface string
	ipv6  bool
}

// New returns the exit of a processor. It does not change the kernel.
func New(c Config) *Exit {
	return &Exit{config: c, first: map[key]netip.Addr{}}
}

// Ensure makes the exit, or repairs what of it is missing or wrong, and returns what it did. It can
// be called at any time. fresh says, with or without an error, that the veth pair is a new one: the
// caller must remove the old port wellknown.ExitSwitchInterface from the switch, if there was one,
// and add the new one.
func (x *Exit) Ensure() (changes []kernel.Change, fresh bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if changes, fresh, err = x.ensure(); err != nil {
		return changes, fresh, fmt.Errorf("the exit to the outside: %w", err)
	}
	return changes, fresh, nil
}

func (x *Exit) ensure() (changes []kernel.Change, fresh bool, err error) {
	s, err := lookAround(x.config)
	if err != nil {
		return nil, false, err
	}
	x.choose(s)
	// The rules come before the way that they guard.
	repaired, err := x.table.apply(x.config, x.addresses)
	if repaired {
		changes = append(changes, kernel.Change{Kind: "firewall", Subject: "the nftables table inet " + tableName, What: "put back"})
	}
	if err != nil {
		return changes, false, err
	}
	if fresh, err = ensureVeth(x.config.MTU); err != nil {
		return changes, fresh, err
	}
	if fresh {
		changes = append(changes, kernel.Change{Kind: kernel.KindInterface, Subject: wellknown.ExitInterface, What: "was missing or unpaired, made"})
	}
	made, err := kernel.Repair(x.state(s))
	changes = append(changes, made...)
	if err != nil {
		return changes, fresh, err
	}
	return changes, fresh, port.SplitDatagrams(wellknown.ExitInterface)
}

// Addresses returns what the outside sees, as of the last Ensure.
func (x *Exit) Addresses() []Address {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.addresses)
}

// Leads reports whether, as of the last Ensure, a packet has a way to the outside: an interface
// with an address that a default route of its family names, or the configuration.
func (x *Exit) Leads() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.leads
}

// Findings returns what of the machine stands against the exit, as of the last Ensure: a sentence
// each, with the remedy.
func (x *Exit) Findings() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.findings)
}

// Counters returns the number of dropped packets by reason, since the table was made.
func (x *Exit) Counters() (map[string]uint64, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return counters()
}

// Port returns the Ethernet addresses of the switch's port: the source and the destination of what
// the switch sends by it.
func Port() (own, peer [6]byte) { return port.MACs(wellknown.ExitSwitchInterface) }

// state is what must be of the veth, its routes, and the machine as a router.
func (x *Exit) state(s surroundings) kernel.State {
	own, peer := Port()
	inner := kernel.Interface{
		Name: wellknown.ExitInterface, MTU: x.config.MTU, MAC: peer[:],
		IPv4: []kernel.Sysctl{{Name: "forwarding", Value: "1"}, {Name: "send_redirects", Value: "0"}, {Name: "accept_redirects", Value: "0"}},
		IPv6: []kernel.Sysctl{
			{Name: "disable_ipv6", Value: "0"}, {Name: "forwarding", Value: "1"}, {Name: "accept_ra", Value: "0"}, {Name: "accept_redirects", Value: "0"},
			{Name: "addr_gen_mode", Value: "1"}, // no link-local address, so no noise
		},
		OnlyAddresses: true, OnlyRoutes: []int{unix.RT_TABLE_MAIN}, Alone: true,
	}
	for _, gateway := range []netip.Addr{wellknown.LinkLocal4, wellknown.LinkLocal6} {
		inner.Neighbours = append(inner.Neighbours, kernel.Neighbour{Addr: gateway, MAC: own[:]})
		for _, r := range x.config.Ranges {
			if r.Addr().Is4() == gateway.Is4() {
				inner.Routes = append(inner.Routes, kernel.Route{Prefix: r, Gateway: gateway})
			}
		}
	}
	outer := kernel.Interface{
		Name: wellknown.ExitSwitchInterface, Master: true, MTU: x.config.MTU, IPv6: []kernel.Sysctl{{Name: "disable_ipv6", Value: "1"}},
	}
	return kernel.State{
		Protocol: routeProtocol, Sysctls: append(slices.Clone(host.Forwarding), s.forwarding()...), Interfaces: []kernel.Interface{outer, inner},
	}
}

// ensureVeth makes the pair unless it is there.
func ensureVeth(mtu int) (fresh bool, err error) {
	ends := [2]netlink.Link{}
	for i, name := range []string{wellknown.ExitSwitchInterface, wellknown.ExitInterface} {
		if ends[i], err = findLink(name); err != nil {
			return false, err
		}
	}
	if ends[0] != nil && ends[1] != nil &&
		ends[0].Attrs().ParentIndex == ends[1].Attrs().Index && ends[1].Attrs().ParentIndex == ends[0].Attrs().Index {
		return false, nil
	}
	// One end without the other, or ends of two pairs, cannot be repaired. Deleting one end of a
	// pair deletes the other, so each is looked up just before.
	for _, name := range []string{wellknown.ExitSwitchInterface, wellknown.ExitInterface} {
		old, err := findLink(name)
		if err != nil {
			return true, err
		}
		if old == nil {
			continue
		}
		if err := netlink.LinkDel(old); err != nil {
			return true, fmt.Errorf("delete the remaining end of the old veth: %w", err)
		}
	}
	if err := netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: wellknown.ExitSwitchInterface, MTU: mtu}, PeerName: wellknown.ExitInterface,
	}); err != nil {
		return true, fmt.Errorf("make the veth: %w", err)
	}
	return true, nil
}

// findLink returns nil if there is no such interface.
func findLink(name string) (netlink.Link, error) {
	links, err := netlinksafe.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == name })
	if i < 0 {
		return nil, nil
	}
	return links[i], nil
}
