// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// VerifyBy checks that chain (DER, leaf first) leads to roots now, that the
// leaf has exactly one SPIFFE ID, of that trust domain, and that sig is its
// key's signature over msg (ECDSA with SHA-256 in ASN.1, or Ed25519).
func VerifyBy(roots *x509.CertPool, trustDomain string, chain [][]byte, msg, sig []byte) (spiffePath string, leaf *x509.Certificate, err error) {
	certs := make([]*x509.Certificate, len(chain))
	for i, der := range chain {
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return "", nil, fmt.Errorf("certificate %d of the chain: %w", i, err)
		}
	}
	path, err := verifyChain(roots, trustDomain, certs)
	if err != nil {
		return "", nil, err
	}
	leaf = certs[0]
	if err := verifySignature(leaf.PublicKey, msg, sig); err != nil {
		return "", nil, fmt.Errorf("signature by %s: %w", path, err)
	}
	return path, leaf, nil
}

// Peer returns who is at the other end of a TLS connection whose
// configuration came from ServerTLS or ClientTLS: these have verified the
// chain. A peer that showed no certificate is an error.
func Peer(state tls.ConnectionState, trustDomain string) (spiffePath string, leaf *x509.Certificate, err error) {
	if len(state.PeerCertificates) == 0 {
		return "", nil, errors.New("the peer showed no certificate")
	}
	leaf = state.PeerCertificates[0]
	path, err := spiffePathOf(leaf, trustDomain)
	if err != nil {
		return "", nil, err
	}
	return path, leaf, nil
}

// verifyChain verifies certs (leaf first) against roots and returns the path
// of the leaf's SPIFFE ID.
func verifyChain(roots *x509.CertPool, trustDomain string, certs []*x509.Certificate) (string, error) {
	if len(certs) == 0 {
		return "", errors.New("there is no certificate")
	}
	if roots == nil { // x509 would take the system's authorities
		return "", errors.New("there is no authority to verify a certificate with")
	}
	leaf := certs[0]
	path, err := spiffePathOf(leaf, trustDomain)
	if err != nil {
		return "", err
	}
	intermediates := x509.NewCertPool()
	for _, c := range certs[1:] {
		intermediates.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return "", fmt.Errorf("certificate of %s: %w", path, err)
	}
	return path, nil
}

// spiffePathOf returns the path of the leaf's only SPIFFE ID. By the X.509
// SVID standard a leaf must not be able to sign certificates.
func spiffePathOf(leaf *x509.Certificate, trustDomain string) (string, error) {
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return "", fmt.Errorf("certificate: %w", err)
	}
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return "", err
	}
	switch {
	case !id.MemberOf(td):
		return "", fmt.Errorf("certificate of %s: it is not of trust domain %s", id, td)
	case leaf.IsCA, leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return "", fmt.Errorf("certificate of %s: it is an authority's, not a node's or service's", id)
	}
	return id.Path(), nil
}

func verifySignature(key crypto.PublicKey, msg, sig []byte) error {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		digest := sha256.Sum256(msg)
		if ecdsa.VerifyASN1(key, digest[:], sig) {
			return nil
		}
	case ed25519.PublicKey:
		if ed25519.Verify(key, msg, sig) {
			return nil
		}
	default:
		return fmt.Errorf("keys of type %T are not supported", key)
	}
	return errors.New("it does not verify")
}

// sign is the counterpart of verifySignature.
func sign(key *ecdsa.PrivateKey, msg []byte) ([]byte, error) {
	digest := sha256.Sum256(msg)
	return ecdsa.SignASN1(rand.Reader, key, digest[:])
}
