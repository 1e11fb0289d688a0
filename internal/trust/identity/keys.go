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
	"strconv"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/fabric"
)

// VaultKeys reads the public keys of all versions of the fabric's key, an ed25519 key of a transit
// mount.
func VaultKeys(ctx context.Context, vault *vaultapi.Client, mount, key string) (fabric.KeySet, error) {
	path := mount + "/keys/" + key
	resp, err := vault.Logical().ReadWithContext(ctx, path)
	if err != nil {
		return fabric.KeySet{}, fmt.Errorf("read %s: %w", path, err)
	}
	if resp == nil {
		return fabric.KeySet{}, fmt.Errorf("read %s: the key does not exist", path)
	}
	if t := resp.Data["type"]; t != "ed25519" {
		return fabric.KeySet{}, fmt.Errorf("%s is a key of type %v, expected ed25519", path, t)
	}
	set := fabric.KeySet{Keys: map[int]ed25519.PublicKey{}}
	versions, _ := resp.Data["keys"].(map[string]any)
	for v, data := range versions {
		n, err := strconv.Atoi(v)
		if err != nil {
			return fabric.KeySet{}, fmt.Errorf("%s: version %q: %w", path, v, err)
		}
		fields, _ := data.(map[string]any)
		text, _ := fields["public_key"].(string)
		if set.Keys[n], err = base64.StdEncoding.DecodeString(text); err != nil {
			return fabric.KeySet{}, fmt.Errorf("%s: version %d: %w", path, n, err)
		}
	}
	if m, ok := resp.Data["min_decryption_version"].(json.Number); ok {
		n, err := m.Int64()
		if err != nil {
			return fabric.KeySet{}, fmt.Errorf("%s: min_decryption_version: %w", path, err)
		}
		set.Min = int(n)
	}
	if err := checkKeys(set); err != nil {
		return fabric.KeySet{}, fmt.Errorf("%s: %w", path, err)
	}
	return set, nil
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
