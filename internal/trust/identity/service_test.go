// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

func never(*x509.Certificate) bool { return false }

func TestServiceKeys(t *testing.T) {
	ca := identitytest.NewCA(t)
	dir := t.TempDir()
	k, err := identity.OpenServiceKeys(dir, identitytest.TrustDomain, never)
	must.NoError(t, err)
	web := fabric.Ref{Domain: "getaway-app", Name: "http-proxy"}
	must.True(t, k.NeedsRenewal(web))
	_, _, err = k.Sign(web, []byte("x"))
	must.ErrorContains(t, err, "no certificate here")

	// Two requests at once: each certificate finds its key.
	csr1, err := k.Key(web)
	must.NoError(t, err)
	csr2, err := k.Key(web)
	must.NoError(t, err)
	must.NoError(t, k.Put(web, ca.Certify(web.SPIFFE(), csr2, time.Hour)))
	must.NoError(t, k.Put(web, ca.Certify(web.SPIFFE(), csr1, time.Hour)))
	must.False(t, k.NeedsRenewal(web))
	sign := func() {
		t.Helper()
		sig, chain, err := k.Sign(web, []byte("x"))
		must.NoError(t, err)
		signer, _, err := identity.VerifyBy(ca.Roots(), identitytest.TrustDomain, chain, []byte("x"), sig)
		must.NoError(t, err)
		must.Eq(t, web.SPIFFE(), signer.SPIFFE())
	}
	sign()
	must.ErrorContains(t, k.Put(web, ca.Certify(web.SPIFFE(), csr1, time.Hour)), "none was asked for")

	// A certificate of another service, or for another key, is refused, and the old one stays.
	csr, err := k.Key(web)
	must.NoError(t, err)
	must.ErrorContains(t, k.Put(web, ca.Certify("/getaway-app/other", csr, time.Hour)), "is for /getaway-app/other")
	_, err = k.Key(web)
	must.NoError(t, err)
	must.ErrorContains(t, k.Put(web, ca.Issue(web.SPIFFE(), "").Certificate), "another key")
	sign()

	// A restart finds them; Drop removes them.
	k, err = identity.OpenServiceKeys(dir, identitytest.TrustDomain, never)
	must.NoError(t, err)
	must.Eq(t, []fabric.Ref{web}, k.Services())
	sign()
	must.NoError(t, k.Drop(web))
	must.NoError(t, k.Drop(web))
	must.SliceEmpty(t, k.Services())
	k, err = identity.OpenServiceKeys(dir, identitytest.TrustDomain, never)
	must.NoError(t, err)
	must.SliceEmpty(t, k.Services())

	// Renewal is due at two thirds.
	csr, err = k.Key(web)
	must.NoError(t, err)
	must.NoError(t, k.Put(web, ca.Certify(web.SPIFFE(), csr, 3*time.Second)))
	must.False(t, k.NeedsRenewal(web))
	time.Sleep(2200 * time.Millisecond)
	must.True(t, k.NeedsRenewal(web))
	must.False(t, k.Expiry(web).IsZero())
}
