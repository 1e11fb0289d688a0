// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package signature

import (
	"crypto/ed25519"
	"encoding/json"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
)

// key is a version of a fabric's key.
type key struct {
	version int
	private ed25519.PrivateKey
}

func newKey(version int) key {
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = byte(version)
	return key{version, ed25519.NewKeyFromSeed(seed)}
}

func (k key) sign(t must.T, kind fabric.Kind, v any) fabric.Signed {
	payload, err := json.Marshal(v)
	must.NoError(t, err)
	return fabric.Signed{Kind: kind, Payload: payload, Version: k.version, Signature: ed25519.Sign(k.private, fabric.SigningInput(kind, payload))}
}

func anchorOf(least int, keys ...key) *Anchor {
	a := &Anchor{Keys: fabric.KeySet{Keys: map[int]ed25519.PublicKey{}, Min: least}, Source: "a test"}
	for _, k := range keys {
		a.Keys.Keys[k.version] = k.private.Public().(ed25519.PublicKey)
	}
	return a
}

func TestCheck(t *testing.T) {
	one, two, stranger := newKey(1), newKey(2), newKey(3)
	pointer := fabric.Pointer{Fabric: "f", Sequence: 4, Root: fabric.HashOf([]byte("root")), Time: time.Date(2026, 11, 1, 0, 0, 0, 1e6, time.UTC), Touched: []fabric.Ref{{Domain: "a", Name: "b"}}}
	older := pointer
	older.Sequence--
	good := two.sign(t, fabric.KindPointer, pointer)
	altered := good
	altered.Payload = append([]byte(nil), good.Payload...)
	altered.Payload[12] ^= 1
	for name, tc := range map[string]struct {
		anchor  *Anchor
		signed  fabric.Signed
		pointer fabric.Pointer
		state   State
		why     string
	}{
		"signed":                  {anchorOf(2, one, two), good, pointer, Verified, ""},
		"no keys":                 {nil, good, pointer, Unchecked, NoKeys},
		"nothing applied yet":     {anchorOf(1, one), fabric.Signed{}, fabric.Pointer{}, Absent, ""},
		"no signature":            {anchorOf(1, one), fabric.Signed{}, pointer, Refused, "returned no signed pointer"},
		"a stranger's":            {anchorOf(1, one, two), stranger.sign(t, fabric.KindPointer, pointer), pointer, Refused, "version 3 of the fabric's key, which is unknown here"},
		"in the fabric's name":    {anchorOf(1, one, two), key{2, stranger.private}.sign(t, fabric.KindPointer, pointer), pointer, Refused, "does not verify"},
		"altered":                 {anchorOf(1, one, two), altered, pointer, Refused, "does not verify"},
		"by a key that has ended": {anchorOf(2, one, two), one.sign(t, fabric.KindPointer, pointer), pointer, Refused, "the lowest accepted is 2"},
		"another statement":       {anchorOf(1, one, two), two.sign(t, fabric.KindNode, pointer), pointer, Refused, "expected a signed pointer"},
		"of an older pointer":     {anchorOf(1, one, two), two.sign(t, fabric.KindPointer, older), pointer, Refused, "revision 3 with root"},
		"signed before the first": {anchorOf(1, one, two), good, fabric.Pointer{}, Refused, "returned revision 0"},
	} {
		f := Check(tc.anchor, tc.signed, tc.pointer)
		must.Eq(t, tc.state, f.State, must.Sprint(name, f))
		must.StrContains(t, f.Why, tc.why, must.Sprint(name))
		must.Eq(t, tc.state == Verified || tc.state == Absent, f.Why == "", must.Sprint(name))
		must.Eq(t, tc.state == Verified || tc.state == Refused, f.Source != "", must.Sprint(name))
	}
}

func TestGraph(t *testing.T) {
	g := &fabric.Graph{Domains: map[string]*fabric.Domain{"a": {Name: "a", Services: []fabric.Service{{Name: "s"}}}}}
	root := fabric.Compile(g).Root
	must.NoError(t, Graph(fabric.Pointer{Sequence: 1, Root: root}, g))
	must.NoError(t, Graph(fabric.Pointer{}, &fabric.Graph{}))
	must.NoError(t, Past(fabric.Change{Sequence: 1, Root: root}, g))
	g.Domains["a"].Services[0].Name = "t"
	must.ErrorContains(t, Graph(fabric.Pointer{Sequence: 1, Root: root}, g), "but revision 1 has root "+root.String())
	must.ErrorContains(t, Past(fabric.Change{Sequence: 1, Root: root}, g), "but revision 1 has root")
}

// A history holds only as it was written: nothing of it can be altered, left out, added, or put in
// another order.
func TestHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var changes []fabric.Change // the newest first
		pointer := fabric.Pointer{}
		for n := range rapid.IntRange(1, 8).Draw(t, "changes") {
			c := fabric.Change{Sequence: uint64(n + 1), Root: fabric.HashOf([]byte{byte(n)}), Previous: pointer.Change,
				Author: rapid.StringMatching(`[a-z]{0,3}`).Draw(t, "author"), Time: time.Unix(int64(n), 0).UTC()}
			pointer = fabric.Pointer{Sequence: c.Sequence, Root: c.Root, Change: fabric.NewObject(c).Hash}
			changes = append([]fabric.Change{c}, changes...)
		}
		must.NoError(t, History(pointer, changes))
		must.NoError(t, History(pointer, changes[:rapid.IntRange(0, len(changes)).Draw(t, "kept")])) // the oldest are collected

		i := rapid.IntRange(0, len(changes)-1).Draw(t, "which")
		forged := append([]fabric.Change(nil), changes...)
		switch rapid.IntRange(0, 2).Draw(t, "how") {
		case 0:
			forged[i].Message += "!"
		case 1:
			forged = append(forged[:i], forged[i+1:]...)
			if i == len(forged) {
				return // the oldest: as if it were collected
			}
		case 2:
			forged = append(forged, forged[i])
		}
		must.ErrorContains(t, History(pointer, forged), "an entry was altered or removed")
	})
}
