// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package identitytest is a certificate authority in memory, for tests of what uses identities.
// Only tests may import it.
package identitytest

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
)

// TrustDomain is the trust domain of the authority.
const TrustDomain = "sif.test"

// CA is an authority of certificates, and holds the fabric's key.
type CA struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	sign ed25519.PrivateKey
}

// NewCA makes an authority.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca := &CA{t: t}
	var err error
	if ca.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if _, ca.sign, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, ca.key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return ca
}

// Roots returns the pool with the authority.
func (ca *CA) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// Issue issues a certificate for an hour, or as change says.
func (ca *CA) Issue(spiffePath string, unit string, change ...func(*x509.Certificate)) *tls.Certificate {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		ca.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		URIs:         []*url.URL{{Scheme: "spiffe", Host: TrustDomain, Path: spiffePath}},
		NotBefore:    time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if unit != "" {
		template.Subject.OrganizationalUnit = []string{unit}
	}
	for _, f := range change {
		f(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// Certify issues a certificate for a signing request (DER), without looking at what it asks for.
func (ca *CA) Certify(spiffePath string, csr []byte, life time.Duration) [][]byte {
	ca.t.Helper()
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		ca.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		URIs:         []*url.URL{{Scheme: "spiffe", Host: TrustDomain, Path: spiffePath}},
		NotBefore:    time.Now(), NotAfter: time.Now().Add(life), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, req.PublicKey, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	return [][]byte{der}
}

// Node returns the Source of a node.
func (ca *CA) Node(zone, node string, kind fabric.NodeKind) *identity.Source {
	ca.t.Helper()
	cert := ca.Issue(fabric.NodeID{Zone: zone, Name: node}.SPIFFE(), "", func(c *x509.Certificate) {
		c.Subject.OrganizationalUnit = kind.Units()
	})
	return identity.Fixed(TrustDomain, cert, ca.Roots(), ca.Keys())
}

// Controller starts a server that shows a certificate of the controller for 127.0.0.1. The caller
// closes it.
func (ca *CA) Controller(h http.Handler) *httptest.Server {
	ca.t.Helper()
	cert := ca.Issue(fabric.ControllerSPIFFE, "controller", At(net.IPv4(127, 0, 0, 1)))
	server := httptest.NewUnstartedServer(h)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	return server
}

// At is a change for Issue: the certificate is for an address as well.
func At(ip net.IP) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.IPAddresses = append(c.IPAddresses, ip) }
}

// Keys returns the public part of the fabric's key, version 1.
func (ca *CA) Keys() fabric.KeySet {
	return fabric.KeySet{Keys: map[int]ed25519.PublicKey{1: ca.sign.Public().(ed25519.PublicKey)}, Min: 1}
}

// Sign signs v as the fabric.
func (ca *CA) Sign(kind fabric.Kind, v any) fabric.Signed {
	ca.t.Helper()
	payload, err := json.Marshal(v)
	if err != nil {
		ca.t.Fatal(err)
	}
	return fabric.Signed{Kind: kind, Payload: payload, Version: 1, Signature: ed25519.Sign(ca.sign, fabric.SigningInput(kind, payload))}
}
