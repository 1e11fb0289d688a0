// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/trust/identity"
)

// Authority is an issuer of the fabric's PKI mount.
type Authority struct {
	ID      string    `json:"id"`     // identity.AuthorityID
	Issuer  string    `json:"issuer"` // Vault's ID of it
	Name    string    `json:"name,omitempty"`
	Subject string    `json:"subject"`
	From    time.Time `json:"from"`
	Until   time.Time `json:"until"`
	Outside bool      `json:"outside,omitempty"` // signed by an authority outside Vault
	Current bool      `json:"current,omitempty"` // it issues new certificates
	Ended   bool      `json:"ended,omitempty"`   // it is revoked: nobody trusts it
	Signs   bool      `json:"signs,omitempty"`   // Vault has its key
	PEM     string    `json:"pem"`
}

// AuthoritySet is the authorities of a fabric, in the order of their beginnings.
type AuthoritySet []Authority

// Current returns who issues new certificates.
func (s AuthoritySet) Current() (Authority, bool) {
	i := slices.IndexFunc(s, func(a Authority) bool { return a.Current })
	if i < 0 {
		return Authority{}, false
	}
	return s[i], true
}

// Next returns the newest authority that could take the place of the current one.
func (s AuthoritySet) Next() (Authority, bool) {
	for _, a := range slices.Backward(s) {
		if a.Current {
			break
		}
		if !a.Ended && a.Signs {
			return a, true
		}
	}
	return Authority{}, false
}

// Old returns those before the current one that are not ended yet.
func (s AuthoritySet) Old() []Authority {
	var list []Authority
	for _, a := range s {
		if a.Current {
			break
		}
		if !a.Ended && a.Signs {
			list = append(list, a)
		}
	}
	return list
}

// Bundle returns the certificates of those that are trusted, in PEM.
func (s AuthoritySet) Bundle() []byte {
	var b strings.Builder
	for _, a := range s {
		if !a.Ended {
			b.WriteString(a.PEM)
		}
	}
	return []byte(b.String())
}

// PKI is the fabric's PKI mount, with an administrator's token. All of a rotation's state is in
// Vault: which issuers there are, which one is the default, and which are revoked.
type PKI struct{ v *vault }

// OpenPKI returns the PKI of a fabric.
func OpenPKI(client *api.Client, s join.Settings) PKI {
	return PKI{&vault{client: client, settings: s}}
}

func (p PKI) path(path string) string { return p.v.settings.Vault.PKIMount + "/" + path }

// Authorities returns the issuers.
func (p PKI) Authorities(ctx context.Context) (AuthoritySet, error) {
	ids, err := p.v.list(ctx, p.path("issuers"))
	if err != nil {
		return nil, fmt.Errorf("list the authorities: %w", err)
	}
	config, err := p.v.read(ctx, p.path("config/issuers"))
	if err != nil {
		return nil, fmt.Errorf("read which authority is in use: %w", err)
	}
	var set AuthoritySet
	for _, id := range ids {
		data, err := p.v.read(ctx, p.path("issuer/"+id))
		if err != nil {
			return nil, fmt.Errorf("read authority %s: %w", id, err)
		}
		if data == nil {
			continue // it was just deleted
		}
		a, err := authorityOf(id, data)
		if err != nil {
			return nil, fmt.Errorf("read authority %s: %w", id, err)
		}
		a.Current = id == config["default"]
		set = append(set, a)
	}
	slices.SortFunc(set, func(a, b Authority) int { return cmp.Or(a.From.Compare(b.From), cmp.Compare(a.Name, b.Name)) })
	if _, ok := set.Current(); !ok {
		return set, fmt.Errorf("%s has no default issuer, so nothing can be issued: choose one of its issuers with `vault write %s default=<issuer>`", p.v.settings.Vault.PKIMount, p.path("config/issuers"))
	}
	return set, nil
}

func authorityOf(id string, data map[string]any) (Authority, error) {
	field := func(name string) string { s, _ := data[name].(string); return s }
	block, _ := pem.Decode([]byte(field("certificate")))
	if block == nil {
		return Authority{}, errors.New("it has no certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Authority{}, err
	}
	ended, _ := data["revoked"].(bool)
	return Authority{
		ID: identity.AuthorityID(cert), Issuer: id, Name: field("issuer_name"), Subject: cert.Subject.String(), From: cert.NotBefore, Until: cert.NotAfter,
		Outside: cert.CheckSignatureFrom(cert) != nil, Ended: ended, Signs: field("key_id") != "", PEM: string(pem.EncodeToMemory(block)),
	}, nil
}

// request is what a new authority is asked for with.
func (p PKI) request() fields {
	return fields{
		"common_name": "SIF " + p.v.settings.TrustDomain, "uri_sans": p.v.spiffeID(""),
		"key_type": "ec", "key_bits": 256,
	}
}

// issuerName is the name of the next issuer.
func (p PKI) issuerName(now time.Time) string { return "sif-" + now.UTC().Format("20060102-150405") }

// Create makes a new root in Vault. It issues nothing until Use.
func (p PKI) Create(ctx context.Context, now time.Time) error {
	data := p.request()
	data["ttl"] = fmt.Sprintf("%.0fs", rootTTL.Seconds())
	data["issuer_name"] = p.issuerName(now)
	if _, err := p.v.put(ctx, p.path("root/rotate/internal"), data); err != nil {
		return fmt.Errorf("make a new authority: %w", err)
	}
	return nil
}

// Request makes a key in Vault, and returns the request (PEM) for its certificate, which an
// authority outside Vault signs.
func (p PKI) Request(ctx context.Context) ([]byte, error) {
	secret, err := p.v.put(ctx, p.path("intermediate/generate/internal"), p.request())
	if err != nil {
		return nil, fmt.Errorf("make the request for a new authority: %w", err)
	}
	csr := text(secret, "csr")
	if csr == "" {
		return nil, errors.New("make the request for a new authority: the answer of Vault has none")
	}
	return []byte(strings.TrimSpace(csr) + "\n"), nil
}

// Signed gives Vault the certificate that was signed for a Request. It issues nothing until Use.
// Only the first certificate is given: nodes trust the authority itself, and not all that its
// signer signs.
func (p PKI) Signed(ctx context.Context, certificate []byte, now time.Time) error {
	block, _ := pem.Decode(certificate)
	if block == nil || block.Type != "CERTIFICATE" {
		return errors.New("the file contains no certificate in PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	switch {
	case err != nil:
		return fmt.Errorf("the certificate cannot be read: %w", err)
	case !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("the certificate of %s is not that of an authority: have it signed with CA:TRUE and the key usage keyCertSign", cert.Subject)
	case len(cert.SubjectKeyId) == 0:
		return fmt.Errorf("the certificate of %s has no subject key identifier: have it signed with one", cert.Subject)
	case !now.Before(cert.NotAfter) || now.Before(cert.NotBefore):
		return fmt.Errorf("the certificate of %s is valid from %s to %s", cert.Subject, cert.NotBefore.Format(time.RFC3339), cert.NotAfter.Format(time.RFC3339))
	}
	if life := p.v.settings.CertTTL; cert.NotAfter.Sub(now) < 2*life {
		return fmt.Errorf("the certificate of %s ends at %s: an authority must outlive the certificates that it issues (%s), have it signed for years", cert.Subject, cert.NotAfter.Format(time.RFC3339), life)
	}
	keys, err := p.keys(ctx)
	if err != nil {
		return err
	}
	secret, err := p.v.put(ctx, p.path("intermediate/set-signed"), fields{"certificate": string(pem.EncodeToMemory(block))})
	if err != nil {
		return fmt.Errorf("give Vault the certificate: %w", err)
	}
	mapping, _ := secret.Data["mapping"].(map[string]any)
	for id, key := range mapping {
		if !keys[fmt.Sprint(key)] {
			_ = p.v.drop(ctx, p.path("issuer/"+id)) // it could issue nothing, but would be trusted
			return fmt.Errorf("the certificate of %s is for a key that is not in Vault: have the request of `sif ca rotate -csr` signed", cert.Subject)
		}
		// Only the name: Vault would otherwise set usages that the certificate need not have.
		path := p.path("issuer/" + id)
		if _, err := p.v.client.Logical().JSONMergePatch(ctx, path, fields{"issuer_name": p.issuerName(now)}); err != nil {
			return fmt.Errorf("name the new authority: %w", p.v.explain(ctx, err, path, "patch"))
		}
	}
	return nil
}

// keys returns Vault's IDs of the keys of the mount.
func (p PKI) keys(ctx context.Context) (map[string]bool, error) {
	ids, err := p.v.list(ctx, p.path("keys"))
	if err != nil {
		return nil, fmt.Errorf("list the keys: %w", err)
	}
	set := map[string]bool{}
	for _, id := range ids {
		set[id] = true
	}
	return set, nil
}

// Use has an authority issue all new certificates.
func (p PKI) Use(ctx context.Context, a Authority) error {
	if _, err := p.v.put(ctx, p.path("config/issuers"), fields{"default": a.Issuer, "default_follows_latest_issuer": false}); err != nil {
		return fmt.Errorf("use authority %s: %w", a.ID, err)
	}
	return nil
}

// End revokes an authority: within a minute no node trusts it. It stays listed in Vault, so that
// nodes that are away now learn of it.
func (p PKI) End(ctx context.Context, a Authority) error {
	if _, err := p.v.put(ctx, p.path("issuer/"+a.Issuer+"/revoke"), nil); err != nil {
		return fmt.Errorf("end authority %s: %w", a.ID, err)
	}
	return nil
}
