// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/setup/setuptest"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/trust/identity"
)

// An authority follows another: made in Vault, or signed outside it. Certificates are from the one
// in use, and one that is ended issues nothing. Set-up takes each of them as it is.
func TestAuthoritiesFollow(t *testing.T) {
	_, root := testhost.Vault(t)
	ctx := t.Context()
	node := setuptest.Node{NodeID: fabric.NodeID{Zone: "aws1", Name: "w1"}, Kind: fabric.KindWorkload}
	settings := setuptest.Settings("test", trustDomain)
	made := setuptest.Vault(t, root, settings, node)
	pki := setup.OpenPKI(root, settings)
	read := func() setup.AuthoritySet {
		t.Helper()
		set, err := pki.Authorities(ctx)
		must.NoError(t, err)
		return set
	}
	issuer := func() string {
		t.Helper()
		secret, err := login(t, root, made.Nodes[node.NodeID]).Logical().Write("sif-pki/sign/node-aws1--w1", map[string]any{"csr": request(t, nil, "spiffe://"+trustDomain+node.SPIFFE())})
		must.NoError(t, err)
		chain, err := identity.SignedChain(secret)
		must.NoError(t, err)
		leaf, err := x509.ParseCertificate(chain[0])
		must.NoError(t, err)
		return identity.IssuedBy(leaf)
	}
	set := read()
	must.Len(t, 1, set)
	first, _ := set.Current()
	must.Eq(t, first.ID, issuer())
	_, hasNext := set.Next()
	must.False(t, hasNext)
	must.SliceEmpty(t, set.Old())

	// Made in Vault.
	time.Sleep(1100 * time.Millisecond) // certificates begin at whole seconds
	must.NoError(t, pki.Create(ctx, time.Now()))
	set = read()
	second, hasNext := set.Next()
	must.True(t, hasNext)
	must.Eq(t, first.ID, issuer())
	must.NoError(t, pki.Use(ctx, second))
	set = read()
	must.Eq(t, second.ID, issuer())
	must.Len(t, 1, set.Old())
	must.Eq(t, first.ID, set.Old()[0].ID)
	must.NoError(t, pki.End(ctx, first))
	set = read()
	must.SliceEmpty(t, set.Old())
	must.Eq(t, second.PEM, string(set.Bundle()))

	// Signed outside.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	now := time.Now().Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "offline"}, NotBefore: now, NotAfter: now.Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	sign := func(csr []byte, change func(*x509.Certificate)) []byte {
		t.Helper()
		block, _ := pem.Decode(csr)
		asked, err := x509.ParseCertificateRequest(block.Bytes)
		must.NoError(t, err)
		c := *template
		c.SerialNumber, c.Subject, c.URIs, c.NotBefore = big.NewInt(2), asked.Subject, asked.URIs, now.Add(2*time.Second)
		c.SubjectKeyId = []byte{1, 2, 3, 4}
		change(&c)
		der, err := x509.CreateCertificate(rand.Reader, &c, template, asked.PublicKey, key)
		must.NoError(t, err)
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	csr, err := pki.Request(ctx)
	must.NoError(t, err)
	must.Len(t, 2, read())
	later := now.Add(time.Minute)
	for want, text := range map[string][]byte{
		"contains no certificate":           []byte("x"),
		"is not that of an authority":       sign(csr, func(c *x509.Certificate) { c.IsCA = false }),
		"is valid from":                     sign(csr, func(c *x509.Certificate) { c.NotAfter = now.Add(time.Second) }),
		"must outlive the certificates":     sign(csr, func(c *x509.Certificate) { c.NotAfter = now.Add(9 * time.Hour) }),
		"is for a key that is not in Vault": foreign(t, template, key),
	} {
		must.ErrorContains(t, pki.Signed(ctx, text, later), want)
		must.Len(t, 2, read(), must.Sprint(want))
	}
	must.NoError(t, pki.Signed(ctx, sign(csr, func(*x509.Certificate) {}), later))
	third, hasNext := read().Next()
	must.True(t, hasNext)
	must.True(t, third.Outside)
	must.NoError(t, pki.Use(ctx, third))
	must.Eq(t, third.ID, issuer())
	report, err := setup.New(setup.Clients{Vault: root}, settings).Check(ctx)
	must.NoError(t, err)
	must.Zero(t, report.Count(setup.Create, setup.Change, setup.Foreign))
}

// foreign is the certificate of an authority whose key Vault has not made.
func foreign(t *testing.T, signer *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	c := *signer
	c.SerialNumber, c.SubjectKeyId = big.NewInt(3), []byte{9}
	der, err := x509.CreateCertificate(rand.Reader, &c, signer, other.Public(), key)
	must.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
