// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"
	"strings"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
)

// Transit signs with an ed25519 key of a Vault transit mount.
type Transit struct {
	Vault func() *vaultapi.Client
	Mount string
	Key   string
	// Version returns the version of the key that signs: another one than refused, if Vault has
	// refused that and another one signs since. 0: it has refused none.
	Version func(ctx context.Context, refused int) (int, error)
}

// Sign implements Signer.
func (t Transit) Sign(ctx context.Context, kind fabric.Kind, payload []byte) (fabric.Signed, error) {
	s, err := t.sign(ctx, kind, payload)
	if err != nil {
		return s, fmt.Errorf("sign the %s with Vault key %s/%s: %w", kind, t.Mount, t.Key, err)
	}
	return s, nil
}

func (t Transit) sign(ctx context.Context, kind fabric.Kind, payload []byte) (fabric.Signed, error) {
	version, err := t.Version(ctx, 0)
	if err != nil {
		return fabric.Signed{}, fmt.Errorf("find out which version signs: %w", err)
	}
	s, err := t.signWith(ctx, version, kind, payload)
	var refused *vaultapi.ResponseError
	if !errors.As(err, &refused) {
		return s, err
	}
	// Vault refuses a version as soon as a later one signs.
	next, reading := t.Version(ctx, version)
	if reading != nil || next == version {
		return s, err
	}
	return t.signWith(ctx, next, kind, payload)
}

func (t Transit) signWith(ctx context.Context, version int, kind fabric.Kind, payload []byte) (fabric.Signed, error) {
	s := fabric.Signed{Kind: kind, Payload: payload}
	secret, err := t.Vault().Logical().WriteWithContext(ctx, t.Mount+"/sign/"+t.Key, map[string]any{
		"input":       base64.StdEncoding.EncodeToString(fabric.SigningInput(kind, payload)),
		"key_version": version,
	})
	if err != nil {
		return s, err
	}
	text, _ := secret.Data["signature"].(string)
	s.Version, s.Signature, err = parseSignature(text)
	return s, err
}

// parseSignature parses a signature of Vault: "vault:v<version>:<base64>".
func parseSignature(text string) (version int, signature []byte, err error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 || parts[0] != "vault" || !strings.HasPrefix(parts[1], "v") {
		return 0, nil, fmt.Errorf("signature %q is not of the form vault:v<version>:<base64>", text)
	}
	if version, err = strconv.Atoi(parts[1][1:]); err != nil || version < 1 {
		return 0, nil, fmt.Errorf("signature %q must have a key version of at least 1", text)
	}
	if signature, err = base64.StdEncoding.DecodeString(parts[2]); err != nil {
		return 0, nil, fmt.Errorf("signature %q: %w", text, err)
	}
	return version, signature, nil
}

// RevokeCertificate implements Authority.
func (p PKI) RevokeCertificate(ctx context.Context, serial string, der []byte) error {
	data := map[string]any{"serial_number": serial}
	if len(der) > 0 {
		data = map[string]any{"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
	}
	if _, err := p.Vault().Logical().WriteWithContext(ctx, p.Mount+"/revoke", data); err != nil {
		if len(der) == 0 {
			return fmt.Errorf("revoke it with %s/revoke, which knows only certificates that it keeps, and keeps none of the fabric's; give the certificate itself instead of its serial number: %w", p.Mount, err)
		}
		return fmt.Errorf("revoke it with %s/revoke: %w", p.Mount, err)
	}
	return nil
}

// PKI issues workload certificates with a role of a Vault PKI mount.
type PKI struct {
	Vault       func() *vaultapi.Client
	Mount       string
	Role        string
	TrustDomain string
}

// SignWorkload implements Authority. It uses only the key of the request. Whatever the role
// permits, the certificate must contain the service's SPIFFE ID and no other name.
func (p PKI) SignWorkload(ctx context.Context, csr []byte, service fabric.Ref) ([][]byte, error) {
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("decode the signing request for %s: %w", service, err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("verify the signing request for %s: %w", service, err)
	}
	id := "spiffe://" + p.TrustDomain + service.SPIFFE()
	secret, err := p.Vault().Logical().WriteWithContext(ctx, p.Mount+"/sign/"+p.Role, map[string]any{
		"csr":                  string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		"uri_sans":             id,
		"exclude_cn_from_sans": true,
	})
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %s with Vault PKI role %s/%s: %w", service, p.Mount, p.Role, err)
	}
	chain, err := identity.SignedChain(secret)
	if err != nil {
		return nil, fmt.Errorf("certificate for %s from Vault PKI role %s/%s: %w", service, p.Mount, p.Role, err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("certificate for %s from Vault PKI role %s/%s: %w", service, p.Mount, p.Role, err)
	}
	issued, err := identity.Read(leaf, p.TrustDomain)
	if err == nil && (issued != (identity.Subject{Service: service}) || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0) {
		err = fmt.Errorf("it contains other names than %s", id)
	}
	if err != nil {
		return nil, fmt.Errorf("certificate for %s from Vault PKI role %s/%s: %w; set use_csr_sans=false in the role", service, p.Mount, p.Role, err)
	}
	return chain, nil
}
