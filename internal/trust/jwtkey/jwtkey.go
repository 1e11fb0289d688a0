// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package jwtkey is the key of the trust domain that signs JWT-SVIDs, an ECDSA P-256 key of Vault's
// transit mount: which versions it has, which one signs, and how their public keys are kept on
// disk, so that a token can be judged while Vault is away. It does not know who gets a token.
package jwtkey

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	vaultapi "github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/internal/trust/transit"
)

// Algorithm is the algorithm of the signatures, as JWTs name it.
const Algorithm = string(jose.ES256)

// vaultType is the type of the key in Vault.
const vaultType = "ecdsa-p256"

// Version is a version of the key.
type Version struct {
	Number int
	ID     string // of the public key: its thumbprint (RFC 7638)
	Public *ecdsa.PublicKey
}

// Key is a transit key in Vault.
type Key struct {
	Vault func() *vaultapi.Client
	Mount string
	Name  string
}

func (k Key) String() string { return k.Mount + "/keys/" + k.Name }

// Versions reads the versions whose signatures are accepted, oldest first.
func (k Key) Versions(ctx context.Context) ([]Version, error) {
	list, _, err := k.read(ctx)
	return list, err
}

// read returns also the key as Vault has it.
func (k Key) read(ctx context.Context) ([]Version, transit.Key, error) {
	key, err := transit.Read(ctx, k.Vault(), k.String())
	if errors.Is(err, transit.ErrMissing) {
		return nil, key, fmt.Errorf("the key of JWT-SVIDs: %w; run \"sif setup\" again, which makes it", err)
	}
	if err != nil {
		return nil, key, fmt.Errorf("the key of JWT-SVIDs: %w", err)
	}
	list, err := VersionsOf(key)
	if err != nil {
		return nil, key, fmt.Errorf("the key of JWT-SVIDs %s: %w", k, err)
	}
	return list, key, nil
}

// VersionsOf returns the versions of a key that Vault has returned.
func VersionsOf(key transit.Key) ([]Version, error) {
	if key.Type != vaultType {
		return nil, fmt.Errorf("it is of type %v, expected %s", key.Type, vaultType)
	}
	var list []Version
	for _, v := range key.Versions {
		version, err := parseVersion(v)
		if err != nil {
			return nil, fmt.Errorf("version %d: %w", v.Number, err)
		}
		list = append(list, version)
	}
	return list, nil
}

func parseVersion(of transit.Version) (Version, error) {
	v := Version{Number: of.Number}
	block, _ := pem.Decode([]byte(of.Public))
	if block == nil {
		return v, errors.New("it has no public key in PEM")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return v, fmt.Errorf("parse the public key: %w", err)
	}
	public, ok := key.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return v, errors.New("its public key is not on the curve P-256")
	}
	v.Public = public
	thumbprint, err := (&jose.JSONWebKey{Key: public}).Thumbprint(crypto.SHA256)
	if err != nil {
		return v, fmt.Errorf("make the thumbprint of the public key: %w", err)
	}
	v.ID = base64.RawURLEncoding.EncodeToString(thumbprint)
	return v, nil
}

// Sign returns a JWT with these claims in the compact form, and the ID of the key that signed it.
func (k Key) Sign(ctx context.Context, claims any, now time.Time) (token, id string, err error) {
	v, err := k.signing(ctx, now)
	if err != nil {
		return "", "", err
	}
	if token, err = k.signWith(ctx, v, claims); err == nil {
		return token, v.ID, nil
	}
	// Another version may sign since that was read.
	next, rerr := k.signing(ctx, now)
	if rerr != nil || next.ID == v.ID {
		return "", "", err
	}
	token, err = k.signWith(ctx, next, claims)
	return token, next.ID, err
}

// signing returns the version that signs.
func (k Key) signing(ctx context.Context, now time.Time) (Version, error) {
	list, key, err := k.read(ctx)
	if err != nil {
		return Version{}, err
	}
	signs := key.Signs(now)
	i := slices.IndexFunc(list, func(v Version) bool { return v.Number == signs })
	if i < 0 {
		return Version{}, fmt.Errorf("the key of JWT-SVIDs %s: version %d signs, and does not count", k, signs)
	}
	return list[i], nil
}

// signWith returns a JWT that a version has signed.
func (k Key) signWith(ctx context.Context, v Version, claims any) (string, error) {
	header, err := json.Marshal(map[string]string{"alg": Algorithm, "typ": "JWT", "kid": v.ID})
	if err != nil {
		return "", fmt.Errorf("encode the header of a JWT-SVID: %w", err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("encode the claims of a JWT-SVID: %w", err)
	}
	input := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(payload)
	path := k.Mount + "/sign/" + k.Name
	secret, err := k.Vault().Logical().WriteWithContext(ctx, path, map[string]any{
		"input":                base64.StdEncoding.EncodeToString([]byte(input)),
		"key_version":          v.Number,
		"hash_algorithm":       "sha2-256",
		"marshaling_algorithm": "jws",
	})
	if err != nil {
		return "", fmt.Errorf("sign a JWT-SVID with %s: %w", path, err)
	}
	text, _ := secret.Data["signature"].(string)
	prefix := fmt.Sprintf("vault:v%d:", v.Number)
	if len(text) <= len(prefix) || text[:len(prefix)] != prefix {
		return "", fmt.Errorf("sign a JWT-SVID with %s: the answer is not a signature of version %d", path, v.Number)
	}
	return input + "." + text[len(prefix):], nil
}
