// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package redeem exchanges a join token for its grant at Vault. It trusts only the Vault that the
// token names, by the digest of its certificate. It does not know what a machine does with a grant.
package redeem

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/join"
)

var (
	// ErrUsed says that Vault does not know the wrapping token any more.
	ErrUsed = errors.New("the join token was used already, or has expired")
	// ErrDigest says that another server than the token's answers.
	ErrDigest = errors.New("this is not the Vault for which the join token was made")
)

// MaxSkew is how far the clock of a machine may be from Vault's. Certificates begin a minute before
// they are issued.
const MaxSkew = 30 * time.Second

const timeout = 15 * time.Second

// Vault is the Vault that a token names, after it has proved to be that one.
type Vault struct {
	Skew time.Duration // how far the machine's clock is ahead of Vault's
	CA   string        // the certificate of the token's digest, PEM; empty without TLS

	client   *vaultapi.Client
	token    join.Token
	untimely error // the certificate is not valid by the clock of the machine
}

// Connect reaches the Vault of a token. The token is not used up.
func Connect(ctx context.Context, t join.Token) (*Vault, error) {
	u, err := url.Parse(t.Vault)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("the join token names Vault as %q, which is no URL: make another token", t.Vault)
	}
	v := &Vault{token: t}
	transport := &http.Transport{DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}
	switch {
	case t.Digest != "" && u.Scheme != "https":
		return nil, fmt.Errorf("the join token has the digest of a certificate, but its Vault %s has none: make another token", t.Vault)
	case t.Digest == "" && u.Scheme != "http":
		return nil, fmt.Errorf("the join token lacks the digest of the certificate of its Vault %s: make another token", t.Vault)
	}
	transport.TLSClientConfig = &tls.Config{
		MinVersion: tls.VersionTLS12,
		// The machine has no authorities yet: verify checks the whole chain by the digest.
		InsecureSkipVerify: true,
		VerifyConnection:   func(s tls.ConnectionState) error { return v.verify(s, u.Hostname()) },
	}
	conf := vaultapi.DefaultConfig()
	if conf.Error != nil {
		return nil, fmt.Errorf("make a client of Vault: %w", conf.Error)
	}
	conf.Address, conf.AgentAddress, conf.HttpClient, conf.MaxRetries, conf.Timeout = t.Vault, "", &http.Client{Transport: transport}, 1, timeout
	if v.client, err = vaultapi.NewClient(conf); err != nil {
		return nil, fmt.Errorf("make a client of Vault: %w", err)
	}
	v.client.SetToken(t.Wrapping)
	setNamespace(v.client, t.Namespace)
	return v, v.greet(ctx, u)
}

// greet checks that Vault can answer, and compares the clocks.
func (v *Vault) greet(ctx context.Context, u *url.URL) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.JoinPath("v1/sys/seal-status").String(), nil)
	if err != nil {
		return fmt.Errorf("reach Vault at %s: %w", v.token.Vault, err)
	}
	begin := time.Now()
	response, err := v.client.CloneConfig().HttpClient.Do(request)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		if errors.Is(err, ErrDigest) {
			return fmt.Errorf("reach Vault at %s: %w", v.token.Vault, err)
		}
		return fmt.Errorf("reach Vault at %s: %w; this machine needs a way to it, and its firewalls must let it pass", v.token.Vault, err)
	}
	defer response.Body.Close()
	now := begin.Add(time.Since(begin) / 2)
	if date, err := http.ParseTime(response.Header.Get("Date")); err == nil {
		v.Skew = now.Sub(date.Add(500 * time.Millisecond)) // Date has whole seconds
	}
	var status struct{ Sealed bool }
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("it answered %s", response.Status)
	}
	if err == nil {
		err = json.Unmarshal(body, &status)
	}
	switch {
	case err != nil:
		return fmt.Errorf("reach Vault at %s: %w", v.token.Vault, err)
	case v.Skew > MaxSkew || v.Skew < -MaxSkew:
		word := "ahead of"
		if v.Skew < 0 {
			word = "behind"
		}
		return fmt.Errorf("the clock of this machine is %s %s Vault's: set one of them right (timedatectl set-ntp true), and join again; the token was not used",
			v.Skew.Abs().Round(time.Second), word)
	case v.untimely != nil: // it is not the clock
		return fmt.Errorf("the certificate of Vault at %s: %w: replace it, and join again; the token was not used", v.token.Vault, v.untimely)
	case status.Sealed:
		return fmt.Errorf("Vault at %s is sealed: unseal it, and join again; the token was not used", v.token.Vault)
	}
	return nil
}

// verify accepts a chain that the certificate of the token's digest ends, and that is for the host.
func (v *Vault) verify(s tls.ConnectionState, host string) error {
	chain := s.PeerCertificates
	last := chain[len(chain)-1]
	sum := sha256.Sum256(last.Raw)
	if hex.EncodeToString(sum[:]) != v.token.Digest {
		return fmt.Errorf("%w: the SHA-256 of the certificate that ends its chain (%s) is %x, not %s; "+
			"if Vault's certificate was replaced, make another token, otherwise find out who answers at this address",
			ErrDigest, last.Subject, sum, v.token.Digest)
	}
	leaf, roots, between := chain[0], x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(last)
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	// The machine's clock may be wrong, which greet says better than the certificate.
	at := time.Now()
	for _, c := range chain {
		if at.Before(c.NotBefore) {
			at = c.NotBefore
		}
	}
	if !slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return time.Now().Before(c.NotBefore) }) {
		for _, c := range chain {
			if at.After(c.NotAfter) {
				at = c.NotAfter
			}
		}
	}
	if net.ParseIP(host) != nil {
		if addr, err := netip.ParseAddr(host); err == nil {
			host = addr.String()
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: between, CurrentTime: at}); err != nil {
		return fmt.Errorf("the certificate of Vault: %w", err)
	}
	v.CA, v.untimely = pemOf(last), nil
	for _, c := range chain {
		if now := time.Now(); now.Before(c.NotBefore) || now.After(c.NotAfter) {
			v.untimely = fmt.Errorf("%s is valid from %s to %s", c.Subject, c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
		}
	}
	return nil
}

// setNamespace has a client use a namespace of Vault, and not that of the environment.
func setNamespace(c *vaultapi.Client, namespace string) {
	if namespace == "" {
		c.ClearNamespace()
		return
	}
	c.SetNamespace(namespace)
}

// Unwrap uses the token up and returns its grant.
func (v *Vault) Unwrap(ctx context.Context) (join.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var g join.Grant
	secret, err := v.client.Logical().UnwrapWithContext(ctx, "")
	var refused *vaultapi.ResponseError
	if errors.As(err, &refused) && (refused.StatusCode == http.StatusBadRequest || refused.StatusCode == http.StatusForbidden) {
		return g, fmt.Errorf("%w: %v", ErrUsed, refused.Errors)
	}
	if err != nil {
		return g, fmt.Errorf("unwrap the join token at Vault: %w", err)
	}
	if secret == nil || secret.Data == nil {
		return g, errors.New("unwrap the join token at Vault: the answer is empty; make another token")
	}
	text, err := json.Marshal(secret.Data)
	if err == nil {
		err = json.Unmarshal(text, &g)
	}
	if err == nil {
		err = check(g)
	}
	if err != nil {
		return g, fmt.Errorf("the join token contains no usable grant: %w; make another one with a sif of the same version", err)
	}
	return g, nil
}

func check(g join.Grant) error {
	if err := fabric.CheckName(g.Settings.Fabric); err != nil {
		return fmt.Errorf("fabric: %w", err)
	}
	if _, err := fabric.ParseNodeID(g.Node.String()); err != nil {
		return err
	}
	if len(g.Kinds) == 0 {
		return errors.New("it names no kind of node")
	}
	for _, k := range g.Kinds {
		if k != join.Controller && k != join.Processor && k != join.Workload {
			return fmt.Errorf("%q is not a kind of node that this version knows", k)
		}
	}
	for name, text := range map[string]string{
		"trust_domain": g.Settings.TrustDomain, "role_id": g.RoleID, "secret_id": g.SecretID, "vault.address": g.Settings.Vault.Address,
		"vault.approle_mount": g.Settings.Vault.AppRoleMount, "vault.pki_mount": g.Settings.Vault.PKIMount, "vault.transit_mount": g.Settings.Vault.TransitMount,
	} {
		if text == "" {
			return fmt.Errorf("it lacks %s", name)
		}
	}
	if !g.Is(join.Controller) && len(g.Controllers) == 0 {
		return errors.New("it names no controller, so none had joined when the token was made: let a controller join first")
	}
	return nil
}
