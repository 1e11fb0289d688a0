// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Identities are numbers that the caller chooses. It must not reuse a number that is still in a map
// or in the connection table. 0 means none.

// Endpoint is a workload at the other end of a veth pair.
type Endpoint struct {
	Interface uint32 // index of the host side of the veth pair
	Identity  uint32
	IPv4      netip.Addr // invalid: none
	IPv6      netip.Addr
	// Exit is the mark of its packets to externals by the zone's exit: routing rules lead the mark
	// to the exit. 0 means that there is none. A flow keeps the exit by which it began while
	// SetExits names that one.
	Exit uint32
	// Reject tells the workload of refusals that are certain: TCP by a reset, everything else by
	// ICMP. It is for a caller whose maps are complete.
	Reject bool
	// Number is half of what chooses the way of its packets to a peer with ways.
	Number uint8
}

// Peer is the owner of an address in the fabric, on this node or another.
type Peer struct {
	Address   netip.Addr
	Identity  uint32
	Interface uint32 // the only one that may receive its packets; for a local endpoint, its own
	// Ways means that packets to it leave by the ways of its group (SetWays), and that packets from
	// it arrive by any of the links (SetLinks). Such a peer has no interface.
	Ways   bool
	Group  uint16 // below 2^15
	Number uint8  // the other half of what chooses the way
	// Gone means that the address has no endpoint any more, by the word of its owner. Such a peer
	// has no interface, and needs no identity.
	Gone bool
}

// FromNode is the Interface of an External whose packets come from sockets of this node.
const FromNode = 0xfffffffe

// External is a prefix outside the fabric. An address belongs to the longest prefix that contains
// it.
type External struct {
	Prefix netip.Prefix
	// Identity 0 makes a hole in a shorter prefix: its addresses belong to nobody known.
	Identity uint32
	// Interface is where packets from the prefix arrive; 0 makes the prefix a destination, and
	// FromNode one of sockets of this node. An external that workloads call needs both 0 and an
	// interface: an answer passes only if it belongs to the same identity at the interface where it
	// arrives.
	Interface uint32
}

// Published is a port of this node behind which an endpoint's port is: whoever reaches it on this
// node is translated on its way. A workload's flow to From is judged as one to To.
type Published struct {
	Protocol uint8          // TCP, UDP or SCTP
	From     netip.AddrPort // the node's
	To       netip.AddrPort // the endpoint's
}

// Check is a port on which this node may call one of its endpoints.
type Check struct {
	Interface uint32 // the endpoint's
	Protocol  uint8
	Port      uint16 // for ICMP: the type
}

// PutEndpoint adds or replaces the endpoint of an interface. Other endpoints of the node can talk
// to it only after PutPeer for its addresses.
func (d *Datapath) PutEndpoint(e Endpoint) error {
	if e.Interface == 0 || e.Identity == 0 {
		return fmt.Errorf("endpoint %s: interface and identity must not be 0", e.IPv4)
	}
	if e.IPv4.IsValid() && (!e.IPv4.Is4() || plain(e.IPv4) != nil) {
		return fmt.Errorf("endpoint of interface %d: %q is not an IPv4 unicast address", e.Interface, e.IPv4)
	}
	if e.IPv6.IsValid() && (!e.IPv6.Is6() || plain(e.IPv6) != nil) {
		return fmt.Errorf("endpoint of interface %d: %q is not an IPv6 unicast address", e.Interface, e.IPv6)
	}
	value := endpointEndpoint{Ip4: toMap(e.IPv4), Ip6: toMap(e.IPv6), Identity: e.Identity, Exit: e.Exit, Number: uint32(e.Number)}
	if e.Reject {
		value.Flags = endpointEndpointFlagENDPOINT_REJECT
	}
	return d.change(func() (bool, error) {
		return replace(d.objects.SifEndpoints, "sif_endpoints", e.Interface, value)
	})
}

// DeleteEndpoint removes the endpoint of an interface, with its checks, connections and drop
// counters. No packet passes the interface afterwards.
func (d *Datapath) DeleteEndpoint(ifindex uint32) error {
	err := d.change(func() (bool, error) {
		return remove(d.objects.SifEndpoints, "sif_endpoints", ifindex)
	})
	if err != nil {
		return err
	}
	checks, err := d.Checks()
	if err != nil {
		return err
	}
	for _, c := range checks {
		if c.Interface != ifindex {
			continue
		}
		if err := d.DeleteCheck(c); err != nil {
			return err
		}
	}
	if err := d.forgetConnections(ifindex); err != nil {
		return err
	}
	if err := d.forgetRecords(ifindex); err != nil {
		return err
	}
	return d.forgetDrops(ifindex)
}

// Endpoints returns all endpoints.
func (d *Datapath) Endpoints() ([]Endpoint, error) {
	entries, err := dump[uint32, endpointEndpoint](d.objects.SifEndpoints, "sif_endpoints")
	var all []Endpoint
	for _, e := range entries {
		all = append(all, Endpoint{Interface: e.key, Identity: e.value.Identity,
			IPv4: fromMap(e.value.Ip4), IPv6: fromMap(e.value.Ip6), Exit: e.value.Exit,
			Reject: e.value.Flags&endpointEndpointFlagENDPOINT_REJECT != 0, Number: uint8(e.value.Number)})
	}
	return all, err
}

// peerGone and peerWays are PEER_GONE and PEER_WAYS in headers/maps.h.
const (
	peerGone = 0xffffffff
	peerWays = 1 << 31
)

// PutPeer adds or replaces the owner of an address.
func (d *Datapath) PutPeer(p Peer) error {
	if err := plain(p.Address); err != nil {
		return fmt.Errorf("peer: %w", err)
	}
	value := endpointPeer{Identity: p.Identity, Ifindex: p.Interface}
	switch {
	case p.Gone && (p.Interface != 0 || p.Ways || p.Group != 0 || p.Number != 0):
		return fmt.Errorf("peer %s: it is gone, so its interface must be 0, and it has no ways", p.Address)
	case p.Gone:
		value.Ifindex = peerGone
	case p.Ways && (p.Interface != 0 || p.Identity == 0 || p.Group >= 1<<15):
		return fmt.Errorf("peer %s: it is reached by ways, so its interface must be 0, its identity must not be 0, and its group is below 2^15", p.Address)
	case p.Ways:
		value.Ifindex = peerWays | uint32(p.Group)<<8 | uint32(p.Number)
	case p.Interface >= peerWays || p.Group != 0 || p.Number != 0:
		return fmt.Errorf("peer %s: its interface must be below 2^31, and without ways it has no group and no number", p.Address)
	case p.Interface == 0 || p.Identity == 0:
		return fmt.Errorf("peer %s: interface and identity must not be 0", p.Address)
	}
	address := toMap(p.Address)
	return d.change(func() (bool, error) {
		altered, err := replace(d.objects.SifPeers, "sif_peers", address, value)
		// An address outside the fabric's prefixes may have been an external until now.
		var one uint32
		outside := d.objects.SifFabric.Lookup(endpointFabricKey{PrefixLength: 128, Address: address}, &one) != nil
		return altered || outside, err
	})
}

// DeletePeer removes the owner of an address.
func (d *Datapath) DeletePeer(address netip.Addr) error {
	return d.change(func() (bool, error) {
		return remove(d.objects.SifPeers, "sif_peers", toMap(address))
	})
}

// Peers returns all peers.
func (d *Datapath) Peers() ([]Peer, error) {
	entries, err := dump[endpointAddr, endpointPeer](d.objects.SifPeers, "sif_peers")
	var all []Peer
	for _, e := range entries {
		p := Peer{Address: fromMap(e.key), Identity: e.value.Identity, Interface: e.value.Ifindex}
		switch ways := p.Interface; {
		case ways == peerGone:
			p.Interface, p.Gone = 0, true
		case ways&peerWays != 0:
			p.Interface, p.Ways, p.Group, p.Number = 0, true, uint16(ways>>8)&(1<<15-1), uint8(ways)
		}
		all = append(all, p)
	}
	return all, err
}

func (e External) key() (endpointExternalKey, error) {
	address, length, err := prefixToMap(e.Prefix)
	if err != nil {
		return endpointExternalKey{}, fmt.Errorf("external: %w", err)
	}
	return externalKey(address, length, e.Interface), nil
}

// externalIPv4 is EXTERNAL_IPV4 in headers/maps.h.
const externalIPv4 = 1 << 31

func externalKey(address endpointAddr, length, ifindex uint32) endpointExternalKey {
	if fromMap(address).Is4() {
		ifindex ^= externalIPv4
	}
	return endpointExternalKey{PrefixLength: 32 + length, Ifindex: ifindex, Address: address}
}

// destinationKey finds the external that an address belongs to as a destination.
func destinationKey(address endpointAddr) endpointExternalKey { return externalKey(address, 128, 0) }

// PutExternal adds or replaces the identity of a prefix at an interface. It always raises the
// generation, because a new prefix may take addresses from a shorter one: compare before calling
// it.
func (d *Datapath) PutExternal(e External) error {
	key, err := e.key()
	if err != nil {
		return err
	}
	return d.change(func() (bool, error) {
		return true, put(d.objects.SifExternals, "sif_externals", key, e.Identity)
	})
}

// DeleteExternal removes a prefix at an interface. It ignores the identity.
func (d *Datapath) DeleteExternal(e External) error {
	key, err := e.key()
	if err != nil {
		return err
	}
	return d.change(func() (bool, error) {
		return remove(d.objects.SifExternals, "sif_externals", key)
	})
}

// Externals returns all external prefixes.
func (d *Datapath) Externals() ([]External, error) {
	entries, err := dump[endpointExternalKey, uint32](d.objects.SifExternals, "sif_externals")
	var all []External
	for _, e := range entries {
		x := External{Prefix: prefixFromMap(e.key.Address, e.key.PrefixLength-32), Identity: e.value, Interface: e.key.Ifindex}
		if x.Prefix.Addr().Is4() {
			x.Interface ^= externalIPv4
		}
		all = append(all, x)
	}
	return all, err
}

func (c Check) key() endpointCheckKey {
	return endpointCheckKey{Ifindex: c.Interface, Port: c.Port, Protocol: c.Protocol}
}

func (p Published) entry() (key endpointPublishedKey, value endpointPublished, err error) {
	if p.Protocol != unix.IPPROTO_TCP && p.Protocol != unix.IPPROTO_UDP && p.Protocol != unix.IPPROTO_SCTP {
		return key, value, fmt.Errorf("published port %s: IP protocol %d has no ports", p.From, p.Protocol)
	}
	for _, a := range []netip.AddrPort{p.From, p.To} {
		if err := plain(a.Addr()); err != nil {
			return key, value, fmt.Errorf("published port %s: %w", p.From, err)
		}
		if a.Port() == 0 || a.Addr().Is4() != p.From.Addr().Is4() {
			return key, value, fmt.Errorf("published port %s: %s is no port of an address of the same family", p.From, a)
		}
	}
	key = endpointPublishedKey{Address: toMap(p.From.Addr()), Port: p.From.Port(), Protocol: p.Protocol}
	return key, endpointPublished{Address: toMap(p.To.Addr()), Port: p.To.Port()}, nil
}

// PutPublished adds or replaces the endpoint's port behind a port of this node.
func (d *Datapath) PutPublished(p Published) error {
	key, value, err := p.entry()
	if err != nil {
		return err
	}
	return d.change(func() (bool, error) {
		altered, err := replace(d.objects.SifPublished, "sif_published", key, value)
		// Until now the address may have been an external.
		return altered || d.objects.SifExternals.Lookup(destinationKey(key.Address), new(uint32)) == nil, err
	})
}

// DeletePublished removes a port of this node. It ignores the endpoint's port.
func (d *Datapath) DeletePublished(p Published) error {
	return d.change(func() (bool, error) {
		key := endpointPublishedKey{Address: toMap(p.From.Addr()), Port: p.From.Port(), Protocol: p.Protocol}
		return remove(d.objects.SifPublished, "sif_published", key)
	})
}

// Published returns all published ports.
func (d *Datapath) Published() ([]Published, error) {
	entries, err := dump[endpointPublishedKey, endpointPublished](d.objects.SifPublished, "sif_published")
	var all []Published
	for _, e := range entries {
		all = append(all, Published{Protocol: e.key.Protocol, From: netip.AddrPortFrom(fromMap(e.key.Address), e.key.Port),
			To: netip.AddrPortFrom(fromMap(e.value.Address), e.value.Port)})
	}
	return all, err
}

// SetExits replaces the marks of exits that live. A flow by an exit that is not among them ends, or
// goes on by its endpoint's exit if it has no state there.
func (d *Datapath) SetExits(marks []uint32) error {
	wanted := map[uint32]uint32{}
	for _, mark := range marks {
		wanted[mark] = 1
	}
	return d.change(func() (bool, error) { return become(d.objects.SifExits, "sif_exits", wanted) })
}

// Exits returns the marks of exits that live, sorted.
func (d *Datapath) Exits() ([]uint32, error) {
	return keys(d.objects.SifExits, "sif_exits")
}

// PutCheck allows this node to call an endpoint on a port.
func (d *Datapath) PutCheck(c Check) error {
	return d.change(func() (bool, error) {
		return replace(d.objects.SifChecks, "sif_checks", c.key(), uint32(1))
	})
}

// DeleteCheck removes a check.
func (d *Datapath) DeleteCheck(c Check) error {
	return d.change(func() (bool, error) {
		return remove(d.objects.SifChecks, "sif_checks", c.key())
	})
}

// Checks returns all checks.
func (d *Datapath) Checks() ([]Check, error) {
	entries, err := dump[endpointCheckKey, uint32](d.objects.SifChecks, "sif_checks")
	var all []Check
	for _, e := range entries {
		all = append(all, Check{Interface: e.key.Ifindex, Protocol: e.key.Protocol, Port: e.key.Port})
	}
	return all, err
}
