// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package identity is who this process is: its certificate, the authorities
// that it trusts and the fabric's public keys, all obtained from Vault and
// kept on disk, so that Vault may be away. It does not know what the
// identities are used for.
package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"
	vaultapi "github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/fabric"
)

// Config says where Vault is and which identity to ask for.
type Config struct {
	VaultAddress string
	VaultCAFile  string // PEM; empty: the system's authorities
	RoleID       string // AppRole
	SecretIDFile string
	PKIMount     string
	PKIRole      string
	TransitMount string
	TransitKey   string
	TrustDomain  string
	SPIFFEPath   string // for instance fabric.NodeSPIFFE(zone, node)
	IPs          []net.IP
	DataDir      string // certificate, key, authorities and public keys live below it
}

// Source holds the identity and keeps it fresh.
type Source struct{}

// Open obtains the identity.
func Open(ctx context.Context, c Config, log hclog.Logger) (*Source, error) { panic("todo") }

// Run keeps the identity fresh until ctx ends.
func (s *Source) Run(ctx context.Context) error { panic("todo") }

// Keys returns the fabric's public keys.
func (s *Source) Keys() fabric.KeySet { panic("todo") }

// Roots returns the authorities that certificates are verified against.
func (s *Source) Roots() *x509.CertPool { panic("todo") }

// Certificate returns the current certificate with its key.
func (s *Source) Certificate() *tls.Certificate { panic("todo") }

// Sign signs msg with the current certificate's key.
func (s *Source) Sign(msg []byte) (sig []byte, chain [][]byte, err error) { panic("todo") }

// ServerTLS is for servers.
func (s *Source) ServerTLS(clientAuth tls.ClientAuthType) *tls.Config { panic("todo") }

// ClientTLS is for clients; expect may be nil.
func (s *Source) ClientTLS(expect func(spiffePath string, leaf *x509.Certificate) error) *tls.Config {
	panic("todo")
}

// Expiry returns when the current certificate expires.
func (s *Source) Expiry() time.Time { panic("todo") }

// Degraded returns what is wrong, for people.
func (s *Source) Degraded() []string { panic("todo") }

// Vault returns the logged-in client.
func (s *Source) Vault() *vaultapi.Client { panic("todo") }

// VerifyBy checks that chain (DER, leaf first) leads to roots, that the leaf
// has exactly one SPIFFE ID, of that trust domain, and that sig is its
// signature over msg.
func VerifyBy(roots *x509.CertPool, trustDomain string, chain [][]byte, msg, sig []byte) (spiffePath string, leaf *x509.Certificate, err error) {
	panic("todo")
}

// Peer returns who is at the other end of a TLS connection.
func Peer(state tls.ConnectionState, trustDomain string) (spiffePath string, leaf *x509.Certificate, err error) {
	panic("todo")
}
