// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"crypto/ed25519"
	"encoding/json"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func sign(t *testing.T, key ed25519.PrivateKey, version int, kind Kind, v any) Signed {
	t.Helper()
	payload, err := json.Marshal(v)
	must.NoError(t, err)
	return Signed{Kind: kind, Payload: payload, Version: version, Signature: ed25519.Sign(key, SigningInput(kind, payload))}
}

func TestVerify(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	must.NoError(t, err)
	_, stranger, err := ed25519.GenerateKey(nil)
	must.NoError(t, err)
	keys := KeySet{Keys: map[int]ed25519.PublicKey{1: public, 2: public}, Min: 2}
	for version, accepted := range []bool{false, false, true, false} {
		must.Eq(t, accepted, keys.Accepts(version), must.Sprint(version))
	}
	pointer := Pointer{Fabric: "f", Sequence: 7}
	good := sign(t, private, 2, KindPointer, pointer)
	cases := []struct {
		name    string
		signed  Signed
		kind    Kind
		problem string
	}{
		{"signed by the fabric", good, KindPointer, ""},
		{"signed by somebody else", sign(t, stranger, 2, KindPointer, pointer), KindPointer, "does not verify"},
		{"of another kind", good, KindAdmission, "expected a signed admission"},
		{"passed off as another kind", func() Signed { s := good; s.Kind = KindAdmission; return s }(), KindAdmission, "does not verify"},
		{"altered", func() Signed { s := good; s.Payload = append(slices.Clone(s.Payload), ' '); return s }(), KindPointer, "does not verify"},
		{"by a retired version", sign(t, private, 1, KindPointer, pointer), KindPointer, "the lowest accepted is 2"},
		{"by an unknown version", sign(t, private, 3, KindPointer, pointer), KindPointer, "unknown here"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var got Pointer
			err := keys.Verify(c.signed, c.kind, &got)
			if c.problem != "" {
				must.ErrorContains(t, err, c.problem)
				return
			}
			must.NoError(t, err)
			must.Eq(t, pointer, got)
		})
	}
}

func TestAdmissionIsBoundToItsNode(t *testing.T) {
	node := Node{Zone: "aws1", Name: "w1", Pool4: netip.MustParsePrefix("100.64.1.0/24"), Pool6: netip.MustParsePrefix("fd5f::/64")}
	good := Admission{Fabric: "f", Endpoint: "e", Zone: "aws1", Node: "w1", IPv4: netip.MustParseAddr("100.64.1.2"), IPv6: netip.MustParseAddr("fd5f::2"), Expires: time.Unix(100, 0)}
	must.NoError(t, good.PlacedOn(node))
	elsewhere := good
	elsewhere.Node = "w2"
	must.ErrorContains(t, elsewhere.PlacedOn(node), "was admitted on aws1/w2")
	foreign := good
	foreign.IPv4 = netip.MustParseAddr("100.64.2.2")
	must.ErrorContains(t, foreign.PlacedOn(node), "outside the pool")
	must.NoError(t, good.Current("f", time.Unix(99, 0)))
	must.ErrorContains(t, good.Current("f", time.Unix(100, 0)), "expired")
	must.ErrorContains(t, good.Current("g", time.Unix(99, 0)), "belongs to fabric")
}
