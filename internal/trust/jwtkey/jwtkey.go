// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package jwtkey is the key of the trust domain that signs JWT-SVIDs, an ECDSA P-256 key of Vault's
// transit mount: which versions it has, which one signs, and how their public keys are kept on
// disk, so that a token can be judged while Vault is away. It does not know who gets a token.
package jwtkey

import (
	"cmp"
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
	"strconv"
	"time"

	"github.com/go-jose/go-jose/v4"
	vaultapi "github.com/hashicorp/vault/api"
)

// Algorithm is the algorithm of the signatures, as JWTs name it.
const Algorithm = string(jose.ES256)

// vaultType is the type of the key in Vault.
const vaultType = "ecdsa-p256"

// settle is how long a new version of the key waits before it signs. By then every node has read
// its public key (RefreshInterval), and has handed it to the workloads that follow the bundle.
const settle = 5 * RefreshInterval

// Version is a version of the key.
type Version struct {
	Number  int
	ID      string // of the public key: its thumbprint (RFC 7638)
	Created time.Time
	Public  *ecdsa.PublicKey
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

// read returns also the lowest version that may sign.
func (k Key) read(ctx context.Context) (list []Version, lowest int, err error) {
	secret, err := k.Vault().Logical().ReadWithContext(ctx, k.String())
	if err != nil {
		return nil, 0, fmt.Errorf("read the key of JWT-SVIDs %s: %w", k, err)
	}
	if secret == nil {
		return nil, 0, fmt.Errorf("read the key of JWT-SVIDs %s: it does not exist; run \"sif setup\" again, which makes it", k)
	}
	list, lowest, err = parse(secret.Data)
	if err != nil {
		return nil, 0, fmt.Errorf("the key of JWT-SVIDs %s: %w", k, err)
	}
	return list, lowest, nil
}

func parse(data map[string]any) (list []Version, lowest int, err error) {
	if t := data["type"]; t != vaultType {
		return nil, 0, fmt.Errorf("it is of type %v, expected %s", t, vaultType)
	}
	number := func(name string) int {
		n, _ := data[name].(json.Number)
		i, _ := n.Int64()
		return int(i)
	}
	accepted := number("min_decryption_version")
	lowest = max(accepted, number("min_encryption_version"))
	versions, _ := data["keys"].(map[string]any)
	for text, v := range versions {
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, 0, fmt.Errorf("version %q: %w", text, err)
		}
		if n < accepted {
			continue
		}
		fields, _ := v.(map[string]any)
		version, err := parseVersion(n, fields)
		if err != nil {
			return nil, 0, fmt.Errorf("version %d: %w", n, err)
		}
		list = append(list, version)
	}
	if len(list) == 0 {
		return nil, 0, errors.New("it has no versions")
	}
	slices.SortFunc(list, func(a, b Version) int { return cmp.Compare(a.Number, b.Number) })
	return list, lowest, nil
}

func parseVersion(n int, fields map[string]any) (Version, error) {
	v := Version{Number: n}
	text, _ := fields["public_key"].(string)
	block, _ := pem.Decode([]byte(text))
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
	created, _ := fields["creation_time"].(string)
	if v.Created, err = time.Parse(time.RFC3339Nano, created); err != nil {
		return v, fmt.Errorf("parse the time of its creation: %w", err)
	}
	thumbprint, err := (&jose.JSONWebKey{Key: public}).Thumbprint(crypto.SHA256)
	if err != nil {
		return v, fmt.Errorf("make the thumbprint of the public key: %w", err)
	}
	v.ID = base64.RawURLEncoding.EncodeToString(thumbprint)
	return v, nil
}

// signing returns the version that signs: the newest one that everybody knows by now, or the oldest
// one that may sign if there is none.
func signing(list []Version, lowest int, now time.Time) (Version, error) {
	var chosen Version
	for _, v := range list {
		if v.Number >= lowest && (chosen.Public == nil || now.Sub(v.Created) >= settle) {
			chosen = v
		}
	}
	if chosen.Public == nil {
		return chosen, fmt.Errorf("no version from %d on may sign", lowest)
	}
	return chosen, nil
}

// Sign returns a JWT with these claims in the compact form.
func (k Key) Sign(ctx context.Context, claims any, now time.Time) (string, error) {
	list, lowest, err := k.read(ctx)
	if err != nil {
		return "", err
	}
	v, err := signing(list, lowest, now)
	if err != nil {
		return "", fmt.Errorf("the key of JWT-SVIDs %s: %w", k, err)
	}
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
