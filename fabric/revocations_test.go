// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

var removedAt = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func grave(name string, at time.Time) Tombstone {
	return Tombstone{
		Node: NodeID{"aws1", name}, Key: bytes.Repeat([]byte{name[1]}, 32), Removed: at, Reason: "stolen",
		Pool4: netip.MustParsePrefix("100.64.1.0/24"), Pool6: netip.MustParsePrefix("fd5f:0:0:1::/64"),
	}
}

// A tombstone ends one incarnation: what was issued until then, and what has its key. It does not
// end the name, and it does not end the key under another name.
func TestRevocationsEnd(t *testing.T) {
	r := Revocations{Fabric: "f"}.With(removedAt, Revocations{Tombstones: []Tombstone{grave("w1", removedAt)}})
	must.NoError(t, r.Check("f"))
	w1, w2 := NodeID{"aws1", "w1"}, NodeID{"aws1", "w2"}
	key, other := bytes.Repeat([]byte{'1'}, 32), bytes.Repeat([]byte{'x'}, 32)
	later := removedAt.Add(time.Millisecond)
	for _, tc := range []struct {
		node NodeID
		at   time.Time
		key  []byte
		want bool
	}{
		{w1, removedAt, other, true},
		{w1, removedAt.Add(-time.Hour), other, true},
		{w1, later, key, true},
		{w1, later, other, false},
		{w1, later, nil, false},
		{w2, removedAt, key, false},
	} {
		n := Node{Zone: tc.node.Zone, Name: tc.node.Name, Issued: tc.at}
		_, ended := r.EndsMember(n, Link{PublicKey: tc.key})
		must.Eq(t, tc.want, ended, must.Sprint(tc.node, tc.at, tc.key))
	}
}

func TestRevocationsCheck(t *testing.T) {
	good := Revocations{Fabric: "f"}.With(removedAt, Revocations{Tombstones: []Tombstone{grave("w1", removedAt), grave("w2", removedAt)}})
	must.NoError(t, good.Check("f"))
	for want, change := range map[string]func(*Revocations){
		"of fabric":        func(r *Revocations) { r.Fabric = "g" },
		"no sequence":      func(r *Revocations) { r.Sequence = 0 },
		"not in order":     func(r *Revocations) { slices.Reverse(r.Tombstones) },
		"twice":            func(r *Revocations) { r.Tombstones[1] = r.Tombstones[0] },
		`"issued"`:         func(r *Revocations) { r.Issued = time.Time{} },
		`"removed"`:        func(r *Revocations) { r.Tombstones[0].Removed = time.Time{} },
		"must not be":      func(r *Revocations) { r.Tombstones[0].Node = NodeID{} },
		"has 3 bytes":      func(r *Revocations) { r.Tombstones[0].Key = []byte("abc") },
		"200 characters":   func(r *Revocations) { r.Tombstones[0].Reason = strings.Repeat("x", MaxReason+1) },
		"IPv6 prefix":      func(r *Revocations) { r.Tombstones[0].Pool4 = r.Tombstones[0].Pool6 },
		"at most 1000 are": func(r *Revocations) { r.Tombstones = make([]Tombstone, MaxTombstones+1) },
	} {
		r := good
		r.Tombstones = slices.Clone(good.Tombstones)
		change(&r)
		must.ErrorContains(t, r.Check("f"), want)
	}
}

// The laws of the next list: it is newer than all that it is made of, it contains what they
// contain, except what is over, and it is valid.
func TestRevocationsWith(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.Custom(func(t *rapid.T) Revocations {
			r := Revocations{Fabric: "f", Sequence: rapid.Uint64Range(0, 9).Draw(t, "sequence")}
			for range rapid.IntRange(0, 4).Draw(t, "count") {
				at := removedAt.Add(time.Duration(rapid.IntRange(0, 400).Draw(t, "hours")) * time.Hour)
				r.Tombstones = append(r.Tombstones, grave(fmt.Sprint("w", rapid.IntRange(1, 3).Draw(t, "node")), at))
			}
			return r
		})
		a, b := list.Draw(t, "a"), list.Draw(t, "b")
		now := removedAt.Add(300 * time.Hour)
		next := a.With(now, b)
		must.NoError(t, next.Check("f"))
		must.Greater(t, max(a.Sequence, b.Sequence), next.Sequence)
		must.True(t, next.Covers(a, now))
		must.True(t, next.Covers(b, now))
		for _, g := range next.Tombstones {
			must.True(t, a.Has(g) || b.Has(g))
			must.False(t, g.Over(now))
		}
	})
}

// FuzzRevocations: a list that Check accepts is the same after it was encoded and decoded, and is
// accepted again.
func FuzzRevocations(f *testing.F) {
	good, err := json.Marshal(Revocations{Fabric: "f"}.With(removedAt, Revocations{Tombstones: []Tombstone{grave("w1", removedAt)}}))
	must.NoError(f, err)
	f.Add(good)
	for _, seed := range []string{
		`null`, `{}`, `{"fabric":"f","sequence":1,"issued":"2026-03-01T12:00:00Z","tombstones":null}`,
		`{"fabric":"f","sequence":1,"issued":"2026-03-01T12:00:00Z","tombstones":[null]}`,
		`{"fabric":"f","sequence":1,"issued":"2026-03-01T12:00:00Z","tombstones":[{"node":"aws1/w1","removed":"9999-12-31T23:59:59-23:59"}]}`,
		`{"fabric":"f","sequence":2,"issued":"2026-03-01T12:00:00Z","tombstones":null,"revoked":[{"service":"shop/web","revoked":"2026-03-01T12:00:00Z","reinstated":"2026-03-01T12:01:00Z"}]}`,
		`{"fabric":"f","sequence":2,"issued":"2026-03-01T12:00:00Z","tombstones":null,"revoked":[{"serial":"0a:1b","revoked":"2026-03-01T12:00:00Z"}]}`,
		`{"fabric":"f","sequence":18446744073709551615,"issued":"2026-03-01T12:00:00Z","tombstones":[{"node":"","key":"","pool4":"","reason":"\ud800"}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r Revocations
		if json.Unmarshal(data, &r) != nil || r.Check("f") != nil {
			return
		}
		text, err := json.Marshal(r)
		must.NoError(t, err)
		var again Revocations
		must.NoError(t, json.Unmarshal(text, &again))
		must.NoError(t, again.Check("f"))
		twice, err := json.Marshal(again)
		must.NoError(t, err)
		must.Eq(t, string(text), string(twice))
	})
}
