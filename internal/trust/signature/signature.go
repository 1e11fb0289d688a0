// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package signature tells whether what a controller hands out is what the
// fabric signed. The public keys come from its caller, who must have them from
// elsewhere than that controller. It is pure: it asks nobody.
package signature

import (
	"errors"
	"fmt"

	"github.com/sif-project/sif/fabric"
)

// State is what is known of a signature.
type State string

// The states.
const (
	Verified  State = "verified"
	Unchecked State = "unchecked" // nobody here had keys to check it with
	Refused   State = "refused"   // it is missing, not the fabric's, or of something else
	Absent    State = "none"      // there is nothing to sign: no graph was ever applied
)

// Anchor is the fabric's public keys.
type Anchor struct {
	Keys   fabric.KeySet
	Source string // where they come from, for people
}

// Finding is what is known of the signature of a pointer.
type Finding struct {
	State  State  `json:"signature"`
	Source string `json:"signatureKeys,omitempty"` // of the keys by which it was checked
	Why    string `json:"signatureWhy,omitempty"`  // it is not verified
}

// Refuse returns f, but refused if err says why.
func (f Finding) Refuse(err error) Finding {
	if err != nil {
		f.State, f.Why = Refused, err.Error()
	}
	return f
}

// NoKeys is why a signature stays unchecked without an anchor.
const NoKeys = "no public keys of the fabric were given"

// Check says whether signed is the fabric's signature of the pointer. Without
// an anchor that stays unchecked.
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
		return errors.New("the controller handed out no signed pointer")
	}
	var vouched fabric.Pointer
	if err := a.Keys.Verify(signed, fabric.KindPointer, &vouched); err != nil {
		return err
	}
	if fabric.NewObject(vouched).Hash != fabric.NewObject(pointer).Hash {
		return fmt.Errorf("revision %d with root %s was signed, but the controller names revision %d with root %s", vouched.Sequence, vouched.Root, pointer.Sequence, pointer.Root)
	}
	return nil
}

// Graph says that a graph is not the one that a pointer leads to, or nil.
func Graph(pointer fabric.Pointer, g *fabric.Graph) error {
	return leadsTo(pointer.Sequence, pointer.Root, g)
}

// Past says that a graph is not that of a change of the history, or nil.
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

// History says which change, of the newest first, is not the one that the
// pointer, or the change after it, names; or nil.
func History(pointer fabric.Pointer, changes []fabric.Change) error {
	want := pointer.Change
	for i, c := range changes {
		if made := fabric.NewObject(c).Hash; made != want {
			named := fmt.Sprintf("the pointer of revision %d", pointer.Sequence)
			if i > 0 {
				named = fmt.Sprintf("the entry of revision %d", changes[i-1].Sequence)
			}
			return fmt.Errorf("the entry of revision %d in the history is not the one that %s names: it was altered, or one was left out", c.Sequence, named)
		}
		want = c.Previous
	}
	return nil
}
