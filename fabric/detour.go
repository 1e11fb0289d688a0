// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"bytes"
	"errors"
	"fmt"
)

// Detour is what a node publishes of the second device that each of its links has while the key of
// the first one is replaced. It has a key of its own.
//
// A node that replaces its key first says LeaveLinks: both ends of each of its links set up their
// detours, and send by them. Then it has the new key and says ReturnToLinks: as soon as the two
// first devices have shaken hands with it, both ends send by these again. In the end it says
// nothing. Whatever comes by either device counts all the time.
type Detour struct {
	PublicKey []byte            `json:"publicKey"`         // Curve25519, 32 bytes
	Ports     map[NodeID]uint16 `json:"ports"`             // as Link.Ports
	Tunnels   map[string]uint16 `json:"tunnels,omitempty"` // as Link.Tunnels
	Phase     KeyPhase          `json:"phase,omitempty"`
}

// KeyPhase is what a node that replaces the key of its links wants of the other ends.
type KeyPhase string

// The phases. The empty one says that no key is being replaced.
const (
	LeaveLinks    KeyPhase = "leave"
	ReturnToLinks KeyPhase = "return"
)

// KeyPhase returns the phase in which the node is.
func (l Link) KeyPhase() KeyPhase {
	if l.Detour == nil {
		return ""
	}
	return l.Detour.Phase
}

// Tunnel returns the UDP port on which the node's detour listens for a peer at the other end of a
// link, as Link.Tunnel does; 0 if it has not published one.
func (d *Detour) Tunnel(peer NodeID, link string) uint16 {
	return Link{Ports: d.Ports, Tunnels: d.Tunnels}.Tunnel(peer, link)
}

// Key returns the public key.
func (d *Detour) Key() [publicKeySize]byte { return publicKey(d.PublicKey) }

// check returns an error if the detour cannot be used beside the device with the key other.
func (d *Detour) check(other []byte) error {
	if err := checkPublicKey(d.PublicKey); err != nil {
		return err
	}
	if bytes.Equal(d.PublicKey, other) {
		return errors.New("its public key is that of the links")
	}
	return nil
}

// SharesKey reports whether two nodes have published the same key. It is asked of each two nodes of
// a fabric.
func (l Link) SharesKey(other Link) bool {
	return l.has(other.PublicKey) || other.Detour != nil && l.has(other.Detour.PublicKey)
}

// has reports whether one of the node's devices has a public key.
func (l Link) has(key []byte) bool {
	return len(key) > 0 && (bytes.Equal(l.PublicKey, key) || l.Detour != nil && bytes.Equal(l.Detour.PublicKey, key))
}

// publicKeySize is the size of a Curve25519 public key in bytes.
const publicKeySize = 32

func publicKey(b []byte) (key [publicKeySize]byte) {
	if len(b) == len(key) {
		copy(key[:], b)
	}
	return key
}

func checkPublicKey(key []byte) error {
	switch {
	case len(key) != publicKeySize:
		return fmt.Errorf("its public key has %d bytes, expected %d", len(key), publicKeySize)
	case bytes.Equal(key, make([]byte, publicKeySize)):
		return errors.New("its public key is zero")
	}
	return nil
}
