// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package identity is the identity of this process: its certificate, the authorities that it trusts
// and the public keys of the fabric. All of them come from Vault and are kept on disk, so that the
// process works while Vault is unavailable. The package does not know what identities are used for.
package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	vaultapi "github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/logkey"
)

// Config configures a Source.
type Config struct {
	VaultAddress string
	VaultCAFile  string // PEM; the system's authorities if empty
	Namespace    string // of Vault; may be empty
	AppRoleMount string // wellknown.AppRoleMount if empty
	RoleID       string // AppRole
	SecretIDFile string
	JWTMount     string // JWT instead of AppRole, if JWTFile is set
	JWTRole      string
	JWTFile      string // read for each login, because its writer replaces it
	PKIMount     string
	PKIRole      string
	TransitMount string
	TransitKey   string
	TrustDomain  string
	SPIFFEPath   string   // for example fabric.NodeID.SPIFFE
	IPs          []net.IP // only the controller's certificate has any
	DataDir      string   // the files are in its subdirectory "identity"

	// Outage returns when the present outage began, in which certificates that were in use then are
	// honoured beyond their end; zero if there is none. It may be nil.
	Outage func() time.Time
}

// Source is the identity, which Run renews. Its methods are safe for concurrent use.
type Source struct {
	config Config
	log    hclog.Logger
	vault  *vaultapi.Client
	store  store

	reading sync.Mutex // held while the fabric's keys are read

	mu          sync.RWMutex
	cert        *tls.Certificate
	authorities []*x509.Certificate
	roots       *x509.CertPool // the same, replaced and never modified
	current     string         // AuthorityID of who issues certificates now, as Vault says; empty: not known yet
	keys        fabric.KeySet
	signs       int               // the version of the fabric's key that signs, as Vault says; 0: not known yet
	degraded    map[string]string // error by name of the chore
	tokenTTL    time.Duration     // at the last login or renewal; zero without a token

	isRevoked func(Subject, *x509.Certificate) error // may be nil
	reviewed  chan struct{}                          // closed and replaced by Review
	wake      chan struct{}                          // Run is to look whether the own certificate is revoked

	met *met // certificates of others
}

// Open logs in to Vault and obtains what is not on disk or is due for renewal. If Vault cannot be
// reached, Open uses what is on disk, as long as the certificate is valid. If Vault refuses, Open
// fails.
func Open(ctx context.Context, c Config, log hclog.Logger) (*Source, error) {
	s := &Source{config: c, log: log, degraded: map[string]string{}, reviewed: make(chan struct{}), wake: make(chan struct{}, 1)}
	var err error
	if s.store, err = openStore(c.DataDir); err != nil {
		return nil, err
	}
	if s.vault, err = newVault(c); err != nil {
		return nil, err
	}
	s.met = openMet(s.store.path(metFile), log)
	if err := s.restore(); err != nil {
		return nil, err
	}
	for _, ch := range s.chores() {
		_, err := ch.run(ctx)
		if err == nil {
			continue
		}
		if refused(err) || s.Certificate() == nil || len(s.Keys().Keys) == 0 {
			return nil, fmt.Errorf("obtain the identity %s: %s: %w", c.SPIFFEPath, ch.name, err)
		}
		s.report(ch.name, err)
		break // Run does the rest when Vault is available again
	}
	return s, nil
}

// Fixed returns a Source that never changes and does not use Vault, for processes whose certificate
// comes from elsewhere. Its Run only waits.
func Fixed(trustDomain string, cert *tls.Certificate, roots *x509.CertPool, keys fabric.KeySet) *Source {
	return &Source{config: Config{TrustDomain: trustDomain}, cert: cert, roots: roots, keys: keys, signs: keys.Min, reviewed: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// restore loads what is on disk and still valid.
func (s *Source) restore() error {
	roots, err := s.store.roots()
	if err != nil {
		return err
	}
	keys, err := s.store.keys()
	if err != nil {
		return err
	}
	if len(roots) > 0 {
		s.trust(roots)
	}
	s.keys = keys
	cert, err := s.store.certificate()
	if err != nil || cert == nil {
		return err
	}
	if err := s.suits(cert); err != nil {
		s.log.Warn("cannot use the certificate on disk, requesting another", logkey.Error, fmt.Errorf("%s: %w", s.store.path(certificateFile), err))
		return nil
	}
	s.cert = cert
	return nil
}

// Discard deletes the certificate on disk, so that the next start of this process obtains another.
// It is for a certificate that the fabric does not accept any more.
func (s *Source) Discard() error {
	if err := os.Remove(s.store.path(certificateFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete the certificate: %w", err)
	}
	return nil
}

// suits reports why this process cannot use cert.
func (s *Source) suits(cert *tls.Certificate) error {
	chain, err := parseChain(cert.Certificate)
	if err != nil {
		return err
	}
	now := clock.Now()
	if s.Stands(chain[0]) && !now.Before(chain[0].NotAfter) {
		now = s.outage()
	}
	subject, err := verifyChain(s.Roots(), s.config.TrustDomain, chain, now)
	if err != nil {
		return err
	}
	if path := subject.SPIFFE(); path != s.config.SPIFFEPath {
		return fmt.Errorf("the certificate is for %s, expected %s", path, s.config.SPIFFEPath)
	}
	for _, ip := range s.config.IPs {
		if !slices.ContainsFunc(chain[0].IPAddresses, ip.Equal) {
			return fmt.Errorf("the certificate does not contain the address %s", ip)
		}
	}
	return nil
}

// Keys returns the fabric's public keys.
func (s *Source) Keys() fabric.KeySet {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.keys
}

// Roots returns the authorities that certificates are verified with. The pool is replaced, never
// modified.
func (s *Source) Roots() *x509.CertPool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.roots
}

// Certificate returns the current certificate with its key.
func (s *Source) Certificate() *tls.Certificate {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.cert
}

// Expiry returns when the current certificate expires.
func (s *Source) Expiry() time.Time { return s.Certificate().Leaf.NotAfter }

// Vault returns the logged-in client; nil for a Fixed source.
func (s *Source) Vault() *vaultapi.Client { return s.vault }

// JWT returns an identity token that Vault makes by a role, and that says who this process is.
func (s *Source) JWT(ctx context.Context, role string) (string, error) {
	return JWT(ctx, s.vault, role)
}

// JWT returns an identity token of the holder of a client's token, made by a role.
func JWT(ctx context.Context, client *vaultapi.Client, role string) (string, error) {
	path := "identity/oidc/token/" + role
	secret, err := client.Logical().ReadWithContext(ctx, path)
	if err != nil {
		return "", fmt.Errorf("get an identity token of Vault: %w", err)
	}
	if secret != nil {
		if token, _ := secret.Data["token"].(string); token != "" {
			return token, nil
		}
	}
	return "", fmt.Errorf("get an identity token of Vault: %s has none", path)
}

// Sign signs msg with the current certificate's key and returns the chain (DER, leaf first) to
// verify it with; see VerifyBy.
func (s *Source) Sign(msg []byte) (sig []byte, chain [][]byte, err error) {
	cert := s.Certificate()
	return signWith(cert, msg, s.Stands(cert.Leaf))
}

func signWith(cert *tls.Certificate, msg []byte, stands bool) (sig []byte, chain [][]byte, err error) {
	if !stands {
		return nil, nil, fmt.Errorf("sign: the certificate expired at %s", cert.Leaf.NotAfter.Format(time.RFC3339))
	}
	key, ok := cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("sign: keys of type %T are not supported", cert.PrivateKey)
	}
	sig, err = sign(key, msg)
	if err != nil {
		return nil, nil, fmt.Errorf("sign: %w", err)
	}
	return sig, cert.Certificate, nil
}

// Degraded describes what is wrong, for people.
func (s *Source) Degraded() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var list []string
	for name, err := range s.degraded {
		list = append(list, name+": "+err)
	}
	slices.Sort(list)
	if end := s.cert.Leaf.NotAfter; !clock.Now().Before(end) {
		list = append(list, "the certificate expired at "+end.Format(time.RFC3339))
	}
	if why := s.ownRevoked(s.cert.Leaf, s.isRevoked); why != nil {
		list = append(list, why.Error())
	}
	return list
}

// report records the outcome of a chore.
func (s *Source) report(chore string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, bad := s.degraded[chore]
	switch {
	case err == nil && bad:
		delete(s.degraded, chore)
		s.log.Info("recovered", logkey.Subject, chore)
	case err != nil:
		text := strings.Join(strings.Fields(err.Error()), " ") // Vault's have several lines
		s.degraded[chore] = text
		if was != text {
			s.log.Warn("cannot renew, using what is there", logkey.Subject, chore, logkey.Error, err)
		}
	}
}

// refused reports whether Vault refused, or the configuration is wrong, as opposed to Vault being
// unavailable.
func refused(err error) bool {
	var r *vaultapi.ResponseError
	if errors.As(err, &r) {
		return r.StatusCode < 500 && r.StatusCode != 429 && r.StatusCode/10 != 47
	}
	return errors.Is(err, errRefused)
}

// errRefused marks errors that do not go away by waiting.
var errRefused = errors.New("refused")
