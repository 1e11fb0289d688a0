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
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
)

// VerifyBy checks that chain (DER, leaf first) leads to roots now, that Read accepts the leaf, and
// that sig is the signature of its key over msg (ECDSA with SHA-256 in ASN.1, or Ed25519).
func VerifyBy(roots *x509.CertPool, trustDomain string, chain [][]byte, msg, sig []byte) (signer Subject, leaf *x509.Certificate, err error) {
	certs, err := parseChain(chain)
	if err != nil {
		return Subject{}, nil, err
	}
	if signer, err = verifyChain(roots, trustDomain, certs, clock.Now()); err != nil {
		return Subject{}, nil, err
	}
	leaf = certs[0]
	if err := verifySignature(leaf.PublicKey, msg, sig); err != nil {
		return Subject{}, nil, fmt.Errorf("signature by %s: %w", signer, err)
	}
	return signer, leaf, nil
}

// Peer returns who is at the other end of a TLS connection whose configuration came from ServerTLS
// or ClientTLS, which have verified the chain. It is an error if the peer showed no certificate, or
// if that has ended or was revoked since. Ask again for each request on a connection.
func (s *Source) Peer(state tls.ConnectionState) (Subject, *x509.Certificate, error) {
	if len(state.PeerCertificates) == 0 {
		return Subject{}, nil, errors.New("the peer showed no certificate")
	}
	leaf := state.PeerCertificates[0]
	peer, err := Read(leaf, s.config.TrustDomain)
	if err != nil {
		return Subject{}, nil, err
	}
	if !clock.Now().Before(leaf.NotAfter) && !s.honours(leaf) {
		return Subject{}, nil, fmt.Errorf("the certificate of %s ended at %s: connect again with a new one", peer, leaf.NotAfter.Format(time.RFC3339))
	}
	if err := s.revoked(peer, leaf); err != nil {
		return Subject{}, nil, err
	}
	return peer, leaf, nil
}

// SetRevoked has each handshake and each call of Peer ask revoked, which returns why a certificate
// that has not ended is not accepted any more, or nil.
func (s *Source) SetRevoked(revoked func(Subject, *x509.Certificate) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.isRevoked = revoked
}

// Review is to be called when what is revoked has changed: who waits for Changed judges his peers
// again, and Run replaces the certificate of this process if it is revoked.
func (s *Source) Review() {
	s.mu.Lock()
	close(s.reviewed)
	s.reviewed = make(chan struct{})
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Retry has Run try at once what has failed: it is known that Vault answers.
func (s *Source) Retry() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Changed returns a channel that is closed when Peer may judge otherwise than before. Ask for it
// before Peer.
func (s *Source) Changed() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.reviewed
}

// ErrReplaced is what the function of SetRevoked returns, wrapped, for a certificate that is itself
// revoked, whose holder is not: he gets another.
var ErrReplaced = errors.New("its holder gets another one from Vault")

// ownRevoked returns why the certificate of this process is to be replaced, or nil.
func (s *Source) ownRevoked(leaf *x509.Certificate, ask func(Subject, *x509.Certificate) error) error {
	subject, err := Read(leaf, s.config.TrustDomain)
	if err != nil || ask == nil {
		return nil
	}
	if err := ask(subject, leaf); errors.Is(err, ErrReplaced) {
		return fmt.Errorf("the certificate of this daemon is not accepted any more: %w", err)
	}
	return nil
}

// Serial returns the serial number of a certificate in the form in which Vault writes it.
func Serial(leaf *x509.Certificate) string { return fabric.FormatSerial(leaf.SerialNumber.Bytes()) }

// SerialOf is Serial of a certificate in DER. It neither parses nor checks the rest of it: that
// takes long if there are many.
func SerialOf(der []byte) (string, error) {
	var certificate struct {
		Signed struct { // what follows in both is ignored
			Version int `asn1:"optional,explicit,default:0,tag:0"`
			Serial  *big.Int
		}
	}
	if _, err := asn1.Unmarshal(der, &certificate); err != nil {
		return "", err
	}
	return fabric.FormatSerial(certificate.Signed.Serial.Bytes()), nil
}

func (s *Source) revoked(subject Subject, leaf *x509.Certificate) error {
	s.mu.RLock()
	ask := s.isRevoked
	s.mu.RUnlock()
	if ask == nil {
		return nil
	}
	if err := ask(subject, leaf); err != nil {
		return fmt.Errorf("the certificate of %s is revoked: %w", subject, err)
	}
	return nil
}

// verifyPeer verifies the chain (leaf first) of a new connection.
func (s *Source) verifyPeer(chain []*x509.Certificate) (Subject, error) {
	peer, err := s.judge(chain)
	if err == nil {
		err = s.revoked(peer, chain[0])
	}
	return peer, err
}

// VerifyBy is the function VerifyBy with the authorities of this process, and honours in an outage
// what was met before it.
func (s *Source) VerifyBy(chain [][]byte, msg, sig []byte) (signer Subject, leaf *x509.Certificate, err error) {
	certs, err := parseChain(chain)
	if err != nil {
		return Subject{}, nil, err
	}
	if signer, err = s.judge(certs); err != nil {
		return Subject{}, nil, err
	}
	leaf = certs[0]
	if err := verifySignature(leaf.PublicKey, msg, sig); err != nil {
		return Subject{}, nil, fmt.Errorf("signature by %s: %w", signer, err)
	}
	return signer, leaf, nil
}

// judge verifies a chain (leaf first) by the time that counts for its leaf.
func (s *Source) judge(chain []*x509.Certificate) (Subject, error) {
	now := clock.Now()
	if len(chain) > 0 && !now.Before(chain[0].NotAfter) && s.honours(chain[0]) {
		return verifyChain(s.Roots(), s.config.TrustDomain, chain, s.outage())
	}
	subject, err := verifyChain(s.Roots(), s.config.TrustDomain, chain, now)
	if err == nil {
		s.met.note(chain[0], subject, now, s.outage())
	}
	return subject, err
}

func parseChain(chain [][]byte) ([]*x509.Certificate, error) {
	certs := make([]*x509.Certificate, len(chain))
	for i, der := range chain {
		var err error
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("parse certificate %d of the chain: %w", i, err)
		}
	}
	return certs, nil
}

// verifyChain verifies certs (leaf first) against roots at a time and returns whom the leaf was
// issued to.
func verifyChain(roots *x509.CertPool, trustDomain string, certs []*x509.Certificate, now time.Time) (Subject, error) {
	if len(certs) == 0 {
		return Subject{}, errors.New("there is no certificate")
	}
	if roots == nil { // x509 would use the system's authorities
		return Subject{}, errors.New("there is no authority to verify the certificate with")
	}
	leaf := certs[0]
	subject, err := Read(leaf, trustDomain)
	if err != nil {
		return Subject{}, err
	}
	intermediates := x509.NewCertPool()
	for _, c := range certs[1:] {
		intermediates.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		CurrentTime:   judgedAt(leaf, now),
		Roots:         roots,
		Intermediates: intermediates,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return Subject{}, fmt.Errorf("certificate of %s: %w", subject, err)
	}
	return subject, nil
}

// early is how long before its beginning a certificate is accepted. It is of no use to anybody who
// has it too early, and the clock of this machine can be behind that of the authority.
const early = 25 * time.Hour

// judgedAt returns the time by which a certificate is judged: now, or its beginning if that is not
// long after now.
func judgedAt(leaf *x509.Certificate, now time.Time) time.Time {
	if begin := leaf.NotBefore; now.Before(begin) && begin.Sub(now) < early {
		return begin
	}
	return now
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

// sign makes a signature for verifySignature.
func sign(key *ecdsa.PrivateKey, msg []byte) ([]byte, error) {
	digest := sha256.Sum256(msg)
	return ecdsa.SignASN1(rand.Reader, key, digest[:])
}
