// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/trust/transit"
)

// VaultKeys reads the public keys of all versions of the fabric's key, an ed25519 key of a transit
// mount.
func VaultKeys(ctx context.Context, vault *vaultapi.Client, mount, key string) (fabric.KeySet, error) {
	set, _, err := vaultKeys(ctx, vault, mount, key)
	return set, err
}

// vaultKeys returns also the version that signs.
func vaultKeys(ctx context.Context, vault *vaultapi.Client, mount, key string) (fabric.KeySet, int, error) {
	path := mount + "/keys/" + key
	k, err := transit.Read(ctx, vault, path)
	if err != nil {
		return fabric.KeySet{}, 0, err
	}
	if k.Type != "ed25519" {
		return fabric.KeySet{}, 0, fmt.Errorf("%s is a key of type %v, expected ed25519", path, k.Type)
	}
	set := fabric.KeySet{Keys: map[int]ed25519.PublicKey{}, Min: k.Accepted}
	for _, v := range k.Versions {
		if set.Keys[v.Number], err = base64.StdEncoding.DecodeString(v.Public); err != nil {
			return fabric.KeySet{}, 0, fmt.Errorf("%s: version %d: %w", path, v.Number, err)
		}
	}
	if err := checkKeys(set); err != nil {
		return fabric.KeySet{}, 0, fmt.Errorf("%s: %w", path, err)
	}
	return set, k.Signs(clock.Now()), nil
}

// ReadKeys reads public keys from a file such as the "fabric-keys.json" of a daemon's identity,
// which contains the keys that it has pinned.
func ReadKeys(path string) (fabric.KeySet, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return fabric.KeySet{}, fmt.Errorf("read the fabric's public keys: %w", err)
	}
	set, err := decodeKeys(data)
	if err != nil {
		return fabric.KeySet{}, fmt.Errorf("read the fabric's public keys: %s: %w", path, err)
	}
	return set, nil
}

func decodeKeys(data []byte) (fabric.KeySet, error) {
	var set fabric.KeySet
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&set); err != nil {
		return fabric.KeySet{}, err
	}
	if d.More() {
		return fabric.KeySet{}, errors.New("unexpected data after the JSON value")
	}
	return set, checkKeys(set)
}

// checkKeys reports why signatures cannot be verified with the keys.
func checkKeys(set fabric.KeySet) error {
	for n, key := range set.Keys {
		if len(key) != ed25519.PublicKeySize {
			return fmt.Errorf("version %d is not an ed25519 public key", n)
		}
	}
	if len(set.Keys) == 0 {
		return errors.New("the key has no versions")
	}
	return nil
}
