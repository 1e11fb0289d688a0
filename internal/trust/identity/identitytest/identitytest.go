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
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
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

	mu     sync.Mutex
	sign   []ed25519.PrivateKey // the versions of the fabric's key, from 1
	lowest int                  // version that counts
}

// NewCA makes an authority.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca := &CA{t: t}
	var err error
	if ca.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	ca.Rotate()
	ca.Retire()
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

// PEM returns the authority's certificate as a file has it.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
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

// Rotate makes a new version of the fabric's key, which signs from then on.
func (ca *CA) Rotate() {
	ca.t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.sign = append(ca.sign, key)
}

// Retire ends the versions of the fabric's key before the newest one.
func (ca *CA) Retire() {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.lowest = len(ca.sign)
}

// Keys returns the public part of all versions of the fabric's key, as a daemon pins them.
func (ca *CA) Keys() fabric.KeySet {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	set := fabric.KeySet{Keys: map[int]ed25519.PublicKey{}, Min: ca.lowest}
	for i, key := range ca.sign {
		set.Keys[i+1] = key.Public().(ed25519.PublicKey)
	}
	return set
}

// Sign signs v as the fabric.
func (ca *CA) Sign(kind fabric.Kind, v any) fabric.Signed {
	ca.t.Helper()
	payload, err := json.Marshal(v)
	if err != nil {
		ca.t.Fatal(err)
	}
	return ca.SignAgain(fabric.Signed{Kind: kind, Payload: payload})
}

// SignAgain signs a statement with the newest version of the fabric's key.
func (ca *CA) SignAgain(s fabric.Signed) fabric.Signed {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	s.Version = len(ca.sign)
	s.Signature = ed25519.Sign(ca.sign[s.Version-1], fabric.SigningInput(s.Kind, s.Payload))
	return s
}
