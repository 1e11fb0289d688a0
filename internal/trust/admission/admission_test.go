// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package admission

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// A request that is revoked is refused, and one that was verified before is void: by its endpoint,
// its service, its node, or the certificate that signed it.
func TestRevokedRequest(t *testing.T) {
	ca := identitytest.NewCA(t)
	now := time.Now().UTC()
	web := fabric.Ref{Domain: "shop", Name: "web"}
	node := fabric.Node{Fabric: "f", Zone: "z", Name: "w", Kind: fabric.KindWorkload, Pool4: netip.MustParsePrefix("100.64.1.0/24"), Pool6: netip.MustParsePrefix("fd5f::/64")}
	adm := fabric.Admission{
		Fabric: "f", Endpoint: "00000000-0000-4000-8000-000000000001", Zone: "z", Node: "w", Service: web,
		IPv4: netip.MustParseAddr("100.64.1.10"), IPv6: netip.MustParseAddr("fd5f::a"), Issued: now.Add(-time.Minute), Expires: now.Add(time.Hour),
	}
	cert := ca.Issue(web.SPIFFE(), "")
	source := identity.Fixed(identitytest.TrustDomain, cert, ca.Roots(), ca.Keys())
	r := fabric.Request{Admission: ca.Sign(fabric.KindAdmission, adm)}
	var err error
	r.Signature, r.Certificate, err = source.Sign(fabric.RequestSigningInput(r.Admission.Payload))
	must.NoError(t, err)
	var list fabric.Revocations
	v := Verifier{
		Fabric: "f", TrustDomain: identitytest.TrustDomain, Keys: ca.Keys, Roots: ca.Roots,
		Node: func(fabric.NodeID) (fabric.Node, bool) { return node, true }, Removed: func() fabric.Revocations { return list },
	}
	_, err = v.Verify(r, now)
	must.NoError(t, err)
	must.NoError(t, v.Void(r, adm))
	for says, revoked := range map[string]fabric.Revocations{
		"endpoint 0":    {Revoked: []fabric.Revocation{{Endpoint: adm.Endpoint, Revoked: now}}},
		"service shop":  {Revoked: []fabric.Revocation{{Service: web, Revoked: now}}},
		"reinstated at": {Revoked: []fabric.Revocation{{Service: web, Revoked: now, Reinstated: now.Add(time.Second)}}},
		"certificate ":  {Revoked: []fabric.Revocation{{Serial: identity.Serial(cert.Leaf), Revoked: now}}},
		"node z/w was":  {Tombstones: []fabric.Tombstone{{Node: node.ID(), Removed: now}}},
	} {
		list = revoked
		_, err := v.Verify(r, now)
		must.ErrorContains(t, err, says)
		must.ErrorContains(t, v.Void(r, adm), says)
		must.Eq(t, says != "certificate ", v.Ended(adm))
	}
	list = fabric.Revocations{Revoked: []fabric.Revocation{
		{Serial: "0a", Revoked: now}, {Endpoint: "00000000-0000-4000-8000-000000000002", Revoked: now}, {Service: fabric.Ref{Domain: "shop", Name: "db"}, Revoked: now},
	}}
	_, err = v.Verify(r, now)
	must.NoError(t, err)
}

// A request whose admission an older version of the fabric's key signed has no rights when that is
// retired, whenever it was verified.
func TestRetiredKey(t *testing.T) {
	ca := identitytest.NewCA(t)
	adm := fabric.Admission{Fabric: "f", Endpoint: "00000000-0000-4000-8000-000000000001"}
	r := fabric.Request{Admission: ca.Sign(fabric.KindAdmission, adm)}
	v := Verifier{Fabric: "f", Keys: ca.Keys, Removed: func() fabric.Revocations { return fabric.Revocations{} }}
	ca.Rotate()
	must.NoError(t, v.Void(r, adm))
	ca.Retire()
	must.ErrorContains(t, v.Void(r, adm), "version 1 of the fabric's key, which was retired; the lowest accepted is 2")
	_, err := v.Verify(r, time.Now())
	must.ErrorContains(t, err, "the lowest accepted is 2")
	r.Admission = ca.SignAgain(r.Admission)
	must.NoError(t, v.Void(r, adm))
}

// BenchmarkVoid asks about one request with full lists, as an engine does for each of its endpoints
// whenever it programs the switch.
func BenchmarkVoid(b *testing.B) {
	ca := identitytest.NewCA(b)
	now := time.Now().UTC()
	adm := fabric.Admission{Endpoint: "00000000-0000-4000-8000-000000000001", Zone: "z", Node: "w", Service: fabric.Ref{Domain: "shop", Name: "web"}, Issued: now}
	r := fabric.Request{Certificate: ca.Issue(adm.Service.SPIFFE(), "").Certificate}
	var lists fabric.Revocations
	for i := range fabric.MaxTombstones {
		lists.Tombstones = append(lists.Tombstones, fabric.Tombstone{Node: fabric.NodeID{Zone: "z", Name: fmt.Sprint("n", i)}, Removed: now})
	}
	for i := range fabric.MaxRevoked / 2 {
		lists.Revoked = append(lists.Revoked, fabric.Revocation{Service: fabric.Ref{Domain: "shop", Name: fmt.Sprint("s", i)}, Revoked: now},
			fabric.Revocation{Serial: fabric.FormatSerial([]byte{byte(i >> 8), byte(i)}), Revoked: now})
	}
	lists = fabric.Revocations{}.With(now, lists)
	v := Verifier{Keys: ca.Keys, Removed: func() fabric.Revocations { return lists }}
	r.Admission.Version = 1
	for b.Loop() {
		if err := v.Void(r, adm); err != nil {
			b.Fatal(err)
		}
	}
}
