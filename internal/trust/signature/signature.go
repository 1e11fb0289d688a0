// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package signature checks whether the fabric signed what a controller returns. The caller supplies
// the public keys, which must not come from that controller. The package does no I/O.
package signature

import (
	"errors"
	"fmt"

	"github.com/sif-project/sif/fabric"
)

// State is the result of checking a signature.
type State string

// The states.
const (
	Verified  State = "verified"
	Unchecked State = "unchecked" // there are no keys to check it with
	Refused   State = "refused"   // it is missing, or it is not the fabric's signature of this pointer
	Absent    State = "none"      // no graph has been applied yet
)

// Anchor is the trusted public keys of the fabric.
type Anchor struct {
	Keys   fabric.KeySet
	Source string // where they were read from, for messages
}

// Finding is the result of checking the signature of a pointer.
type Finding struct {
	State  State  `json:"signature"`
	Source string `json:"signatureKeys,omitempty"` // of the keys that it was checked with
	Why    string `json:"signatureWhy,omitempty"`  // it is not verified
}

// Refuse returns f, with the state Refused if err is not nil.
func (f Finding) Refuse(err error) Finding {
	if err != nil {
		f.State, f.Why = Refused, err.Error()
	}
	return f
}

// NoKeys is the reason why a signature stays unchecked without an anchor.
const NoKeys = "no public keys of the fabric were given"

// Check checks whether signed is the fabric's signature of the pointer. Without an anchor the state
// is Unchecked.
func Check(anchor *Anchor, signed fabric.Signed, pointer fabric.Pointer) Finding {
	switch {
	case pointer.Sequence == 0 && len(signed.Payload) == 0:
		return Finding{State: Absent}
	case anchor == nil:
		return Finding{State: Unchecked, Why: NoKeys}
	}
	return Finding{State: Verified, Source: anchor.Source}.Refuse(anchor.check(signed, pointer))
}

func (a *Anchor) check(signed fabric.Signed, pointer fabric.Pointer) error {
	if len(signed.Payload) == 0 {
		return errors.New("the controller returned no signed pointer")
	}
	var vouched fabric.Pointer
	if err := a.Keys.Verify(signed, fabric.KindPointer, &vouched); err != nil {
		return err
	}
	if fabric.NewObject(vouched).Hash != fabric.NewObject(pointer).Hash {
		return fmt.Errorf("the signed pointer is of revision %d with root %s, but the controller returned revision %d with root %s", vouched.Sequence, vouched.Root, pointer.Sequence, pointer.Root)
	}
	return nil
}

// Graph returns an error if the graph is not that of the pointer.
func Graph(pointer fabric.Pointer, g *fabric.Graph) error {
	return leadsTo(pointer.Sequence, pointer.Root, g)
}

// Past returns an error if the graph is not that of a change in the history.
func Past(change fabric.Change, g *fabric.Graph) error {
	return leadsTo(change.Sequence, change.Root, g)
}

func leadsTo(sequence uint64, root fabric.Hash, g *fabric.Graph) error {
	if sequence == 0 {
		return nil
	}
	if made := fabric.Compile(g).Root; made != root {
		return fmt.Errorf("the graph compiles to root %s, but revision %d has root %s", made, sequence, root)
	}
	return nil
}

// History returns an error if a change (newest first) is not the one that the pointer, or the
// change after it, refers to.
func History(pointer fabric.Pointer, changes []fabric.Change) error {
	want := pointer.Change
	for i, c := range changes {
		if made := fabric.NewObject(c).Hash; made != want {
			named := fmt.Sprintf("the pointer of revision %d", pointer.Sequence)
			if i > 0 {
				named = fmt.Sprintf("the entry of revision %d", changes[i-1].Sequence)
			}
			return fmt.Errorf("the entry of revision %d in the history is not the one that %s refers to: an entry was altered or removed", c.Sequence, named)
		}
		want = c.Previous
	}
	return nil
}
