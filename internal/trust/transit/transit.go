// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package transit reads a key of Vault's transit mount: its versions, which of them count, and
// which one signs. It does not know what is signed.
package transit

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
)

// Settle is how long a new version waits before it signs, if nobody has chosen the one that does.
// By then every daemon has read its public key, which each does once a minute.
const Settle = 5 * time.Minute

// ErrMissing is the error of Read for a key that does not exist.
var ErrMissing = errors.New("the key does not exist")

// Key is a key as Vault has it.
type Key struct {
	Type     string
	Versions []Version // that count, oldest first; at least one
	Latest   int       // the number of the newest version
	Accepted int       // the lowest version that counts
	// Pinned is the version that signs: Vault's lowest one that may, which is set to the one that
	// does (`sif key`). 0: nobody has chosen.
	Pinned int
}

// Version is a version of a key.
type Version struct {
	Number  int
	Created time.Time
	Public  string // as Vault writes it, which depends on the type
}

// Read reads the key at a path, such as "sif-transit/keys/sif".
func Read(ctx context.Context, vault *vaultapi.Client, path string) (Key, error) {
	secret, err := vault.Logical().ReadWithContext(ctx, path)
	if err != nil {
		return Key{}, fmt.Errorf("read %s: %w", path, err)
	}
	if secret == nil {
		return Key{}, fmt.Errorf("read %s: %w", path, ErrMissing)
	}
	key, err := Parse(secret.Data)
	if err != nil {
		return Key{}, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// Parse reads a key from an answer of Vault.
func Parse(data map[string]any) (Key, error) {
	k := Key{}
	k.Type, _ = data["type"].(string)
	for name, field := range map[string]*int{"min_decryption_version": &k.Accepted, "min_encryption_version": &k.Pinned, "latest_version": &k.Latest} {
		number, ok := data[name].(json.Number)
		if !ok {
			continue
		}
		n, err := strconv.Atoi(number.String())
		if err != nil {
			return Key{}, fmt.Errorf("%s: %w", name, err)
		}
		*field = n
	}
	versions, _ := data["keys"].(map[string]any)
	for text, v := range versions {
		n, err := strconv.Atoi(text)
		if err != nil {
			return Key{}, fmt.Errorf("version %q: %w", text, err)
		}
		if n < k.Accepted {
			continue
		}
		fields, _ := v.(map[string]any)
		version := Version{Number: n}
		version.Public, _ = fields["public_key"].(string)
		created, _ := fields["creation_time"].(string)
		if version.Created, err = time.Parse(time.RFC3339Nano, created); err != nil {
			return Key{}, fmt.Errorf("version %d: parse the time of its creation: %w", n, err)
		}
		k.Versions = append(k.Versions, version)
	}
	if len(k.Versions) == 0 {
		return Key{}, errors.New("the key has no versions")
	}
	slices.SortFunc(k.Versions, func(a, b Version) int { return cmp.Compare(a.Number, b.Number) })
	k.Latest = max(k.Latest, k.Versions[len(k.Versions)-1].Number)
	return k, nil
}

// Signs returns the version that signs: the pinned one, else the newest one that everybody knows by
// now, else the oldest one.
func (k Key) Signs(now time.Time) int {
	if k.Pinned > 0 {
		return k.Pinned
	}
	signs := k.Versions[0].Number
	for _, v := range k.Versions {
		if now.Sub(v.Created) >= Settle {
			signs = v.Number
		}
	}
	return signs
}

// Version returns a version that counts.
func (k Key) Version(number int) (Version, bool) {
	i := slices.IndexFunc(k.Versions, func(v Version) bool { return v.Number == number })
	if i < 0 {
		return Version{}, false
	}
	return k.Versions[i], true
}
