// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/vaultclient"
	"github.com/sif-project/sif/internal/wellknown"
)

func newVault(c Config) (*vaultapi.Client, error) {
	client, err := vaultclient.New(c.VaultAddress, c.VaultCAFile)
	if err != nil {
		return nil, err
	}
	if c.Namespace != "" {
		client.SetNamespace(c.Namespace)
	}
	client.SetClientTimeout(10 * time.Second)
	client.SetMaxRetries(1) // Run retries anyway
	return client, nil
}

// LogIn logs in as a Source with this configuration does, and returns a client with the token,
// which the caller revokes. Nothing is kept.
func LogIn(ctx context.Context, c Config) (*vaultapi.Client, error) {
	client, err := newVault(c)
	if err != nil {
		return nil, err
	}
	s := &Source{config: c, vault: client}
	if _, err := s.login(ctx); err != nil {
		return nil, err
	}
	return client, nil
}

// login obtains a token, for the AppRole or with the JWT.
func (s *Source) login(ctx context.Context) (time.Duration, error) {
	if s.config.JWTFile != "" {
		return s.loginJWT(ctx)
	}
	secret, err := os.ReadFile(s.config.SecretIDFile)
	if err != nil {
		return 0, fmt.Errorf("read the secret ID: %w: %w", errRefused, err)
	}
	resp, err := s.vault.Logical().WriteWithContext(ctx, "auth/"+cmp.Or(s.config.AppRoleMount, wellknown.AppRoleMount)+"/login", map[string]any{
		"role_id":   s.config.RoleID,
		"secret_id": strings.TrimSpace(string(secret)),
	})
	if err != nil {
		return 0, fmt.Errorf("log in to Vault: %w", err)
	}
	return s.loggedIn(resp)
}

// loginJWT obtains a token with the JWT in the file, such as Nomad's workload identity.
func (s *Source) loginJWT(ctx context.Context) (time.Duration, error) {
	jwt, err := os.ReadFile(s.config.JWTFile)
	if err != nil {
		return 0, fmt.Errorf("read the JWT: %w: %w", errRefused, err)
	}
	path := "auth/" + s.config.JWTMount + "/login"
	resp, err := s.vault.Logical().WriteWithContext(ctx, path, map[string]any{
		"role": s.config.JWTRole,
		"jwt":  strings.TrimSpace(string(jwt)),
	})
	if err != nil {
		return 0, fmt.Errorf("log in to Vault at %s with the JWT in %s: %w", path, s.config.JWTFile, err)
	}
	return s.loggedIn(resp)
}

// loggedIn takes the token of a login and returns how long it lives.
func (s *Source) loggedIn(resp *vaultapi.Secret) (time.Duration, error) {
	if resp == nil || resp.Auth == nil {
		return 0, errors.New("log in to Vault: the answer contains no token")
	}
	s.vault.SetToken(resp.Auth.ClientToken)
	return time.Duration(resp.Auth.LeaseDuration) * time.Second, nil
}

// renew renews the token, or logs in again if that is not possible, or if the token is near its
// maximum life.
func (s *Source) renew(ctx context.Context) (time.Duration, error) {
	if s.vault.Token() == "" {
		return s.login(ctx)
	}
	resp, err := s.vault.Auth().Token().RenewSelfWithContext(ctx, 0)
	if err != nil && !refused(err) {
		return 0, fmt.Errorf("renew the token: %w", err)
	}
	if err == nil && resp != nil && resp.Auth != nil {
		ttl := time.Duration(resp.Auth.LeaseDuration) * time.Second
		s.mu.RLock()
		before := s.tokenTTL
		s.mu.RUnlock()
		if ttl > before/3 {
			return ttl, nil
		}
	}
	return s.login(ctx)
}

// pin compares fetched keys with the pinned ones. A version never changes its key, and the lowest
// accepted version never decreases. A version that Vault does not list any more stays pinned: it
// may come back, and must then have the same key; and what this process has kept on its disk can be
// signed with it (fabric.KeySet.Kept).
func pin(pinned, fetched fabric.KeySet) (fabric.KeySet, error) {
	for n, key := range fetched.Keys {
		if was, ok := pinned.Keys[n]; ok && !was.Equal(key) {
			return pinned, fmt.Errorf("version %d of the fabric's key differs from the pinned one, which stays in use", n)
		}
	}
	keys := fabric.KeySet{Keys: map[int]ed25519.PublicKey{}, Min: max(fetched.Min, pinned.Min)}
	maps.Copy(keys.Keys, pinned.Keys)
	maps.Copy(keys.Keys, fetched.Keys)
	return keys, nil
}

func sameKeys(a, b fabric.KeySet) bool {
	return a.Min == b.Min && maps.EqualFunc(a.Keys, b.Keys, func(x, y ed25519.PublicKey) bool { return x.Equal(y) })
}

// Request generates a key and a signing request for a SPIFFE ID.
func Request(trustDomain, path string, ips []net.IP) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{},
		URIs:        []*url.URL{{Scheme: "spiffe", Host: trustDomain, Path: path}},
		IPAddresses: ips,
	}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("create a signing request for %s: %w", path, err)
	}
	return key, csr, nil
}

// issue generates a key and has Vault sign its certificate.
func (s *Source) issue(ctx context.Context) (*ecdsa.PrivateKey, [][]byte, error) {
	key, csr, err := Request(s.config.TrustDomain, s.config.SPIFFEPath, s.config.IPs)
	if err != nil {
		return nil, nil, err
	}
	ips := make([]string, len(s.config.IPs))
	for i, ip := range s.config.IPs {
		ips[i] = ip.String()
	}
	path := s.config.PKIMount + "/sign/" + s.config.PKIRole
	resp, err := s.vault.Logical().WriteWithContext(ctx, path, map[string]any{
		"csr":      string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		"uri_sans": "spiffe://" + s.config.TrustDomain + s.config.SPIFFEPath,
		"ip_sans":  strings.Join(ips, ","),
	})
	if err != nil {
		return nil, nil, fmt.Errorf("sign the certificate with %s: %w", path, err)
	}
	chain, err := SignedChain(resp)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, chain, nil
}

// SignedChain returns the chain (DER, leaf first, without self-signed authorities) in an answer of
// Vault's pki/sign.
func SignedChain(resp *vaultapi.Secret) ([][]byte, error) {
	if resp == nil {
		return nil, errors.New("the answer is empty")
	}
	leaf, _ := resp.Data["certificate"].(string)
	text := []string{leaf}
	authorities, _ := resp.Data["ca_chain"].([]any)
	for _, c := range authorities {
		s, _ := c.(string)
		text = append(text, s)
	}
	var chain [][]byte
	for i, t := range text {
		block, _ := pem.Decode([]byte(t))
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("the answer contains no certificate")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse the signed certificate: %w", err)
		}
		if i > 0 && c.CheckSignatureFrom(c) == nil {
			continue
		}
		chain = append(chain, block.Bytes)
	}
	return chain, nil
}
