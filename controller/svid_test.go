// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"crypto/x509"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/jwtkey"
	"github.com/sif-project/sif/internal/wellknown"
)

// What an application holds is signed for endpoints of the calling node, and says nothing else than
// which service they are.
func testSVIDs(t *testing.T, w *world) {
	scheduler := &fakeScheduler{placed: map[string]Placement{allocation(1): placed("app", "g")}}
	c, ctx := w.fresh(t, scheduler), t.Context()
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	w1.register(t, "10.0.0.1")
	w2.register(t, "10.0.0.2")
	const id = "spiffe://" + trustDomain + "/app/svc"
	own := csr(t, id)
	svid, token := api.SVIDRequest{Endpoint: allocation(1), CSR: own}, api.JWTSVIDRequest{Endpoint: allocation(1), Audience: []string{"store", "other"}}
	refused := func(n *testNode) {
		t.Helper()
		_, err := n.SVID(ctx, svid)
		code(t, api.CodeForbidden, err)
		_, err = n.JWTSVID(ctx, token)
		code(t, api.CodeForbidden, err)
	}
	refused(w1)
	_, err = w1.Admit(ctx, request4(1, 10))
	must.NoError(t, err)
	refused(w2)

	chain, err := w1.SVID(ctx, svid)
	must.NoError(t, err)
	leaf, err := x509.ParseCertificate(chain[0])
	must.NoError(t, err)
	is, err := identity.Read(leaf, trustDomain)
	must.NoError(t, err)
	must.Eq(t, identity.Subject{Service: fabric.Ref{Domain: "app", Name: "svc"}}, is)
	must.Eq(t, []string{fabric.UnitApplication}, leaf.Subject.OrganizationalUnit)
	must.LessEq(t, fabric.MaxSVIDLife+svidSkew, leaf.NotAfter.Sub(leaf.NotBefore))
	_, err = leaf.Verify(x509.VerifyOptions{Roots: w1.source.Roots(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	must.NoError(t, err)
	for _, other := range []string{"/app/proxy", "/node/aws1/w1", "/controller"} {
		_, err = w1.SVID(ctx, api.SVIDRequest{Endpoint: allocation(1), CSR: csr(t, "spiffe://"+trustDomain+other)})
		must.Error(t, err, must.Sprint(other))
	}

	text, err := w1.JWTSVID(ctx, token)
	must.NoError(t, err)
	td := spiffeid.RequireTrustDomainFromString(trustDomain)
	key := jwtkey.Key{Vault: w1.source.Vault, Mount: wellknown.TransitMount, Name: wellknown.JWTKey(wellknown.TransitKey)}
	bundle := func() *jwtbundle.Bundle { // as nodes read it
		versions, err := key.Versions(ctx)
		must.NoError(t, err)
		b := jwtbundle.New(td)
		for _, v := range versions {
			must.NoError(t, b.AddJWTAuthority(v.ID, v.Public))
		}
		return b
	}
	old := bundle()
	for _, audience := range token.Audience {
		claims, err := jwtsvid.ParseAndValidate(text, old, []string{audience})
		must.NoError(t, err)
		must.Eq(t, id, claims.ID.String())
		must.Between(t, fabric.JWTSVIDLife-time.Minute, time.Until(claims.Expiry), fabric.JWTSVIDLife)
	}
	_, err = jwtsvid.ParseAndValidate(text, old, []string{"stranger"})
	must.Error(t, err)
	_, err = w1.JWTSVID(ctx, api.JWTSVIDRequest{Endpoint: allocation(1)})
	code(t, api.CodeInvalid, err)

	// A new version of the key does not sign before everybody knows it.
	rotate := wellknown.TransitMount + "/keys/" + wellknown.JWTKey(wellknown.TransitKey)
	_, err = w.vaultRoot.Logical().Write(rotate+"/rotate", nil)
	must.NoError(t, err)
	text, err = w1.JWTSVID(ctx, token)
	must.NoError(t, err)
	_, err = jwtsvid.ParseAndValidate(text, old, []string{"store"})
	must.NoError(t, err)
	root := jwtkey.Key{Vault: func() *vaultapi.Client { return w.vaultRoot }, Mount: key.Mount, Name: key.Name}
	signed, by, err := root.Sign(ctx, jwtClaims{Subject: id, Audience: []string{"store"}, Expires: time.Now().Add(time.Minute).Unix()}, time.Now().Add(time.Hour))
	must.NoError(t, err)
	must.MapNotContainsKey(t, old.JWTAuthorities(), by)
	_, err = jwtsvid.ParseAndValidate(signed, old, []string{"store"})
	must.Error(t, err)
	_, err = jwtsvid.ParseAndValidate(signed, bundle(), []string{"store"})
	must.NoError(t, err)
	// One that is retired is not accepted any more.
	_, err = w.vaultRoot.Logical().Write(rotate+"/config", map[string]any{"min_decryption_version": 2, "min_encryption_version": 2})
	must.NoError(t, err)
	_, err = jwtsvid.ParseAndValidate(text, bundle(), []string{"store"})
	must.Error(t, err)

	// A fabric that an earlier version set up says what to do.
	_, err = w.vaultRoot.Logical().Delete(wellknown.PKIMount + "/roles/" + setup.RoleApplication)
	must.NoError(t, err)
	_, err = w1.SVID(ctx, svid)
	must.ErrorContains(t, err, "sif setup")
	must.NoError(t, w1.Release(ctx, allocation(1)))
	refused(w1)
}
