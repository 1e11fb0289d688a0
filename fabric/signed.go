// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"time"
)

// Kind says what a signed statement is about. It is part of what is signed,
// so that no statement can be passed off as one of another kind.
type Kind string

// The kinds of statements that the fabric's key signs.
const (
	KindPointer   Kind = "pointer"   // a Pointer
	KindAdmission Kind = "admission" // an Admission
	KindNode      Kind = "node"      // a Node
)

// Signed is a statement with a signature by one version of the fabric's
// ed25519 key, which never leaves Vault.
type Signed struct {
	Kind      Kind   `json:"kind"`
	Payload   []byte `json:"payload"` // JSON
	Version   int    `json:"version"` // of the transit key
	Signature []byte `json:"signature"`
}

// SigningInput returns the bytes that are signed for a statement.
func SigningInput(kind Kind, payload []byte) []byte {
	return append([]byte("sif/v1/"+string(kind)+"\n"), payload...)
}

// KeySet is the public part of the fabric's key by version, as a node pinned
// it. Versions below Min no longer verify.
type KeySet struct {
	Keys map[int]ed25519.PublicKey `json:"keys"`
	Min  int                       `json:"min"`
}

// Verify checks that s is a statement of that kind, signed by the fabric, and
// decodes its payload into v.
func (k KeySet) Verify(s Signed, kind Kind, v any) error {
	if s.Kind != kind {
		return fmt.Errorf("a signed %s was expected, not a %q", kind, s.Kind)
	}
	if s.Version < k.Min {
		return fmt.Errorf("the %s was signed by version %d of the fabric's key; the lowest accepted is %d", kind, s.Version, k.Min)
	}
	key, ok := k.Keys[s.Version]
	if !ok {
		return fmt.Errorf("the %s was signed by version %d of the fabric's key, which is unknown here", kind, s.Version)
	}
	if !ed25519.Verify(key, SigningInput(kind, s.Payload), s.Signature) {
		return fmt.Errorf("the signature of the %s does not verify", kind)
	}
	if err := json.Unmarshal(s.Payload, v); err != nil {
		return fmt.Errorf("decode the signed %s: %w", kind, err)
	}
	return nil
}

// Pointer names the revision in force. Its sequence only grows: rolling back
// is a new pointer to an old root.
type Pointer struct {
	Fabric   string    `json:"fabric"`
	Sequence uint64    `json:"sequence"`
	Root     Hash      `json:"root"`
	Previous Hash      `json:"previous"` // the root before; zero for the first
	Time     time.Time `json:"time"`
	Change   Hash      `json:"change,omitzero"` // the Change that led here

	// Touched are the services whose document is another than at Previous, if
	// they are few: a node that comes from there and hosts none of them need
	// read nothing else. Empty: not known.
	Touched []Ref `json:"touched,omitempty"`
}

// MaxTouched is how many services a pointer lists at most, since every node
// reads it.
const MaxTouched = 64

// SetTouched lists the services that the step from Previous touches, unless
// they are too many.
func (p *Pointer) SetTouched(services []Ref) {
	if p.Touched = nil; len(services) <= MaxTouched {
		p.Touched = services
	}
}

// Change is an entry of the history of revisions. The signed pointer names the
// newest; each names the one before, so none can be altered or left out.
type Change struct {
	Sequence uint64    `json:"sequence"`
	Root     Hash      `json:"root"`
	Time     time.Time `json:"time"`
	Author   string    `json:"author,omitempty"`   // whose token it was
	Message  string    `json:"message,omitempty"`  // why
	Files    Hash      `json:"files,omitzero"`     // digest of the files it came from
	Rollback uint64    `json:"rollback,omitempty"` // the sequence whose root it took up again
	Previous Hash      `json:"previous,omitzero"`  // the Change before
}
