// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"net/netip"
	"slices"
	"time"
)

// wireguardState is what WireGuard says of a device.
type wireguardState struct {
	privateKey PrivateKey
	listenPort uint16
	peers      []PeerStatus // sorted by key; their allowed addresses are sorted
}

// change is what must be written to a WireGuard device. It does not name what stays, so that
// sessions with peers that do not change continue.
type change struct {
	privateKey *PrivateKey
	listenPort *uint16
	peers      []peerChange
}

// peerChange is the change of one peer, or a new peer.
type peerChange struct {
	key          Key
	isNew        bool
	remove       bool
	endpoint     netip.AddrPort // invalid: it stays
	keepalive    *time.Duration
	gained, lost []netip.Prefix // allowed addresses
}

// altered reports whether more than endpoints changes, which WireGuard itself changes.
func (c change) altered() bool {
	return c.privateKey != nil || c.listenPort != nil || slices.ContainsFunc(c.peers, func(p peerChange) bool {
		return p.remove || p.isNew || p.keepalive != nil || len(p.gained)+len(p.lost) > 0
	})
}

// sessionAlive is how long after a handshake WireGuard uses the session (its REJECT_AFTER_TIME).
const sessionAlive = 180 * time.Second

// difference returns the change from state to want. declared has the endpoints that were wanted
// last time.
//
// When a peer moves, WireGuard learns its new endpoint, which then differs from the declared one.
// So a different endpoint is set only if the declaration changed or the session is dead.
func difference(state wireguardState, want Device, declared map[Key]netip.AddrPort, now time.Time) change {
	var c change
	if state.privateKey != want.PrivateKey {
		c.privateKey = &want.PrivateKey
	}
	if state.listenPort != want.ListenPort {
		c.listenPort = &want.ListenPort
	}
	wanted := make(map[Key]bool, len(want.Peers))
	for _, p := range want.Peers {
		wanted[p.PublicKey] = true
	}
	have := make(map[Key]PeerStatus, len(state.peers))
	for _, p := range state.peers {
		have[p.PublicKey] = p
		if !wanted[p.PublicKey] {
			c.peers = append(c.peers, peerChange{key: p.PublicKey, remove: true})
		}
	}
	for _, p := range want.Peers {
		old, exists := have[p.PublicKey]
		x := peerChange{key: p.PublicKey, isNew: !exists}
		if p.Endpoint.IsValid() && old.Endpoint != p.Endpoint {
			last, known := declared[p.PublicKey]
			if known && last != p.Endpoint || now.Sub(old.LastHandshake) > sessionAlive {
				x.endpoint = p.Endpoint
			}
		}
		if old.PersistentKeepalive != p.PersistentKeepalive {
			x.keepalive = &p.PersistentKeepalive
		}
		x.gained, x.lost = without(p.AllowedIPs, old.AllowedIPs), without(old.AllowedIPs, p.AllowedIPs)
		if x.isNew || x.endpoint.IsValid() || x.keepalive != nil || len(x.gained)+len(x.lost) > 0 {
			c.peers = append(c.peers, x)
		}
	}
	return c
}

// without returns the prefixes that are not among others.
func without(prefixes, others []netip.Prefix) (list []netip.Prefix) {
	for _, p := range prefixes {
		if !slices.Contains(others, p) {
			list = append(list, p)
		}
	}
	return list
}

// endpoints returns the declared endpoints of a device's peers.
func (d Device) endpoints() map[Key]netip.AddrPort {
	declared := make(map[Key]netip.AddrPort, len(d.Peers))
	for _, p := range d.Peers {
		declared[p.PublicKey] = p.Endpoint
	}
	return declared
}
