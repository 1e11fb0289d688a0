// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"fmt"
	"net/netip"
)

// Identities are numbers that the caller chooses. It must not reuse a number that is still in a map
// or in the connection table. 0 means none.

// Endpoint is a workload at the other end of a veth pair.
type Endpoint struct {
	Interface uint32 // index of the host side of the veth pair
	Identity  uint32
	IPv4      netip.Addr // invalid: none
	IPv6      netip.Addr
}

// Peer is the owner of an address in the fabric, on this node or another.
type Peer struct {
	Address   netip.Addr
	Identity  uint32
	Interface uint32 // the only one that may receive its packets; for a local endpoint, its own
}

// External is a prefix outside the fabric. An address belongs to the longest prefix that contains
// it.
type External struct {
	Prefix   netip.Prefix
	Identity uint32
	// Interface is where packets from the prefix arrive; 0 makes the prefix a destination. An
	// external that workloads call needs both entries: an answer passes only if it belongs to the
	// same identity at the interface where it arrives.
	Interface uint32
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
	value := endpointEndpoint{Ip4: toMap(e.IPv4), Ip6: toMap(e.IPv6), Identity: e.Identity}
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
	return d.forgetDrops(ifindex)
}

// Endpoints returns all endpoints.
func (d *Datapath) Endpoints() ([]Endpoint, error) {
	entries, err := dump[uint32, endpointEndpoint](d.objects.SifEndpoints, "sif_endpoints")
	var all []Endpoint
	for _, e := range entries {
		all = append(all, Endpoint{Interface: e.key, Identity: e.value.Identity,
			IPv4: fromMap(e.value.Ip4), IPv6: fromMap(e.value.Ip6)})
	}
	return all, err
}

// PutPeer adds or replaces the owner of an address.
func (d *Datapath) PutPeer(p Peer) error {
	if err := plain(p.Address); err != nil {
		return fmt.Errorf("peer: %w", err)
	}
	if p.Interface == 0 || p.Identity == 0 {
		return fmt.Errorf("peer %s: interface and identity must not be 0", p.Address)
	}
	value := endpointPeer{Identity: p.Identity, Ifindex: p.Interface}
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
		all = append(all, Peer{Address: fromMap(e.key), Identity: e.value.Identity, Interface: e.value.Ifindex})
	}
	return all, err
}

func (e External) key() (endpointExternalKey, error) {
	address, length, err := prefixToMap(e.Prefix)
	if err != nil {
		return endpointExternalKey{}, fmt.Errorf("external: %w", err)
	}
	return endpointExternalKey{PrefixLength: 32 + length, Ifindex: e.Interface, Address: address}, nil
}

// PutExternal adds or replaces the identity of a prefix at an interface. It always raises the
// generation, because a new prefix may take addresses from a shorter one: compare before calling
// it.
func (d *Datapath) PutExternal(e External) error {
	key, err := e.key()
	if err != nil {
		return err
	}
	if e.Identity == 0 {
		return fmt.Errorf("external %s: the identity must not be 0", e.Prefix)
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
		all = append(all, External{Prefix: prefixFromMap(e.key.Address, e.key.PrefixLength-32),
			Identity: e.value, Interface: e.key.Ifindex})
	}
	return all, err
}

func (c Check) key() endpointCheckKey {
	return endpointCheckKey{Ifindex: c.Interface, Port: c.Port, Protocol: c.Protocol}
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
