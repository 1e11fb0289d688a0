// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Kind is the kind of a signed statement. It is part of what is signed, so that a statement of one
// kind cannot be presented as another.
type Kind string

// The kinds of statements that the key of the fabric signs.
const (
	KindPointer     Kind = "pointer"     // a Pointer
	KindAdmission   Kind = "admission"   // an Admission
	KindNode        Kind = "node"        // a Node
	KindPool        Kind = "pool"        // a Pool
	KindRevocations Kind = "revocations" // a Revocations
	KindNomadNode   Kind = "nomad-node"  // a NomadNode
	KindAudit       Kind = "audit"       // the last record of an audit log (api.AuditHead)
)

// Signed is a statement, signed with one version of the fabric's Ed25519 key, which never leaves
// Vault.
type Signed struct {
	Kind      Kind   `json:"kind"`
	Payload   []byte `json:"payload"` // JSON
	Version   int    `json:"version"` // of the transit key
	Signature []byte `json:"signature"`
}

// SigningInput returns the bytes that the fabric signs for a statement.
func SigningInput(kind Kind, payload []byte) []byte {
	return append([]byte("sif/v1/"+string(kind)+"\n"), payload...)
}

// KeySet are the fabric's public keys by version, as pinned by a node. Versions below Min are not
// accepted.
type KeySet struct {
	Keys map[int]ed25519.PublicKey `json:"keys"`
	Min  int                       `json:"min"`
}

// Accepts reports whether statements count that were signed with a version of the key.
func (k KeySet) Accepts(version int) bool {
	_, known := k.Keys[version]
	return known && version >= k.Min
}

// Accepted returns the versions whose signatures count, in order.
func (k KeySet) Accepted() []int {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(k.Keys)), func(n int) bool { return n < k.Min })
}

// Kept returns the keys for what a process has verified before and has kept on its own disk: that
// the version of the key was retired since does not make it wrong. It counts until the process
// learns of something newer.
func (k KeySet) Kept() KeySet {
	k.Min = 0
	return k
}

// Verify checks that s is a statement of the kind that was signed by the fabric, and decodes its
// payload into v.
func (k KeySet) Verify(s Signed, kind Kind, v any) error {
	if s.Kind != kind {
		return fmt.Errorf("expected a signed %s, not a %q", kind, s.Kind)
	}
	if s.Version < k.Min {
		return fmt.Errorf("the %s is signed with version %d of the fabric's key; the lowest accepted is %d", kind, s.Version, k.Min)
	}
	key, ok := k.Keys[s.Version]
	if !ok {
		return fmt.Errorf("the %s is signed with version %d of the fabric's key, which is unknown here", kind, s.Version)
	}
	if !ed25519.Verify(key, SigningInput(kind, s.Payload), s.Signature) {
		return fmt.Errorf("the signature of the %s does not verify", kind)
	}
	if err := json.Unmarshal(s.Payload, v); err != nil {
		return fmt.Errorf("decode the signed %s: %w", kind, err)
	}
	return nil
}

// Pointer names the revision in force. Its sequence only grows: a rollback is a new pointer to an
// old root.
type Pointer struct {
	Fabric   string    `json:"fabric"`
	Sequence uint64    `json:"sequence"`
	Root     Hash      `json:"root"`
	Previous Hash      `json:"previous"` // the previous root; zero for the first
	Time     time.Time `json:"time"`
	Change   Hash      `json:"change,omitzero"` // the Change that led here

	// Touched are the services whose document differs from that of Previous, if they are few and
	// the links are the same. A node that has Previous and hosts none of them needs to read nothing
	// else. Empty means unknown.
	Touched []Ref `json:"touched,omitempty"`
}

// MaxTouched limits how many services a pointer lists, because every node reads it.
const MaxTouched = 64

// SetTouched sets Touched, unless there are too many services.
func (p *Pointer) SetTouched(services []Ref) {
	if p.Touched = nil; len(services) <= MaxTouched {
		p.Touched = services
	}
}

// Change is an entry in the history of revisions. The signed pointer names the newest entry and
// each entry names the one before, so none can be altered or left out.
type Change struct {
	Sequence uint64    `json:"sequence"`
	Root     Hash      `json:"root"`
	Time     time.Time `json:"time"`
	Author   string    `json:"author,omitempty"`   // from the token
	Message  string    `json:"message,omitempty"`  // the reason, as given by the author
	Files    Hash      `json:"files,omitzero"`     // digest of the source files
	Rollback uint64    `json:"rollback,omitempty"` // for a rollback: the sequence whose root it restored
	Previous Hash      `json:"previous,omitzero"`  // the previous Change
	Request  string    `json:"request,omitempty"`  // the ID of the call that made it, which may come again
}
