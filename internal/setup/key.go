// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"context"
	"fmt"

	"github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/trust/transit"
	"github.com/sif-project/sif/internal/wellknown"
)

// TransitKey is a key of the fabric in Vault, with an administrator's token. All of a rotation's
// state is in Vault: which versions there are, which one signs, and which count.
type TransitKey struct {
	v    *vault
	path string
}

// OpenSigningKey returns the key that signs what the fabric says.
func OpenSigningKey(client *api.Client, s join.Settings) TransitKey {
	return openKey(client, s, s.Vault.TransitKey)
}

// OpenTokenKey returns the key that signs tokens of applications.
func OpenTokenKey(client *api.Client, s join.Settings) TransitKey {
	return openKey(client, s, wellknown.JWTKey(s.Vault.TransitKey))
}

func openKey(client *api.Client, s join.Settings, name string) TransitKey {
	return TransitKey{&vault{client: client, settings: s}, s.Vault.TransitMount + "/keys/" + name}
}

// String returns the path of the key.
func (k TransitKey) String() string { return k.path }

// Read reads the key.
func (k TransitKey) Read(ctx context.Context) (transit.Key, error) {
	data, err := k.v.read(ctx, k.path)
	if err == nil && data == nil {
		err = fmt.Errorf("%w; \"sif setup\" makes it", transit.ErrMissing)
	}
	if err != nil {
		return transit.Key{}, fmt.Errorf("read the key %s: %w", k, err)
	}
	key, err := transit.Parse(data)
	if err != nil {
		return key, fmt.Errorf("read the key %s: %w", k, err)
	}
	return key, nil
}

// Rotate makes a new version. It signs nothing if another one is pinned.
func (k TransitKey) Rotate(ctx context.Context) error {
	if _, err := k.v.put(ctx, k.path+"/rotate", nil); err != nil {
		return fmt.Errorf("make a new version of %s: %w", k, err)
	}
	return nil
}

// Pin has one version sign, and Vault refuse to sign with older ones.
func (k TransitKey) Pin(ctx context.Context, version int) error {
	if _, err := k.v.put(ctx, k.path+"/config", fields{"min_encryption_version": version}); err != nil {
		return fmt.Errorf("have version %d of %s sign: %w", version, k, err)
	}
	return nil
}

// Retire has the versions below one count no more. It cannot be undone: daemons do not go back.
func (k TransitKey) Retire(ctx context.Context, below int) error {
	if _, err := k.v.put(ctx, k.path+"/config", fields{"min_decryption_version": below}); err != nil {
		return fmt.Errorf("retire the versions of %s below %d: %w", k, below, err)
	}
	return nil
}
