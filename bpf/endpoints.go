// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"fmt"
	"net/netip"
)

// Identities are numbers of the caller's, fixed for as long as a map or a connection names
// them. 0 is nobody.

// Endpoint is a workload behind the host side of a veth pair.
type Endpoint struct {
	Interface uint32 // index of the host side
	Identity  uint32
	IPv4      netip.Addr // invalid: it has none
	IPv6      netip.Addr
}

// Peer is the owner of an address within the fabric: of this node or another one.
type Peer struct {
	Address   netip.Addr
	Identity  uint32
	Interface uint32 // the only one by which its packets arrive; a local endpoint's own
}

// External is a prefix outside the fabric. Of prefixes that contain an address, the
// longest counts.
type External struct {
	Prefix   netip.Prefix
	Identity uint32
	// Interface is where packets from the prefix arrive; 0 makes the prefix a destination.
	// Externals that are called need both: answers pass only if, by the interface by which
	// they arrive, they are of the same identity.
	Interface uint32
}

// Check is a port on which this node itself may call an endpoint of its own.
type Check struct {
	Interface uint32 // the endpoint's
	Protocol  uint8
	Port      uint16 // of ICMP: the type
}

// PutEndpoint adds or replaces the endpoint of an interface. Peers reach it, and it them,
// only once PutPeer named its addresses as well.
func (d *Datapath) PutEndpoint(e Endpoint) error {
	if e.Interface == 0 || e.Identity == 0 {
		return fmt.Errorf("endpoint %s: it has no interface or no identity", e.IPv4)
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

// DeleteEndpoint removes the endpoint of an interface, its checks, connections and drop
// counters. Nothing passes the interface any more.
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
		return fmt.Errorf("peer %s: it has no interface or no identity", p.Address)
	}
	value := endpointPeer{Identity: p.Identity, Ifindex: p.Interface}
	address := toMap(p.Address)
	return d.change(func() (bool, error) {
		altered, err := replace(d.objects.SifPeers, "sif_peers", address, value)
		// Outside the fabric's prefixes, it may have been an external until now.
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

// PutExternal adds or replaces the identity of a prefix at an interface. A new prefix may
// take addresses from a shorter one, so this raises the generation always: compare first.
func (d *Datapath) PutExternal(e External) error {
	key, err := e.key()
	if err != nil {
		return err
	}
	if e.Identity == 0 {
		return fmt.Errorf("external %s: it has no identity", e.Prefix)
	}
	return d.change(func() (bool, error) {
		return true, put(d.objects.SifExternals, "sif_externals", key, e.Identity)
	})
}

// DeleteExternal removes a prefix at an interface. The identity does not matter.
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

// PutCheck lets this node call an endpoint of its own on a port.
func (d *Datapath) PutCheck(c Check) error {
	return d.change(func() (bool, error) {
		return replace(d.objects.SifChecks, "sif_checks", c.key(), uint32(1))
	})
}

// DeleteCheck takes that back.
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
