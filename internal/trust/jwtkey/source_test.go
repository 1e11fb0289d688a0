// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package jwtkey

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/sif-project/sif/internal/testhost"
)

// Keys that could not be written to the disk are in use, and written at the next attempt: otherwise
// an agent that starts while Vault is away would have none.
func TestKeysAreKept(t *testing.T) {
	_, v := testhost.Vault(t)
	must.NoError(t, v.Sys().Mount("transit", &vaultapi.MountInput{Type: "transit"}))
	_, err := v.Logical().Write("transit/keys/jwt", map[string]any{"type": vaultType})
	must.NoError(t, err)
	key := Key{Vault: func() *vaultapi.Client { return v }, Mount: "transit", Name: "jwt"}
	td := spiffeid.RequireTrustDomainFromString("sif.test")
	path := filepath.Join(t.TempDir(), "jwks.json")
	reports := make(chan error, 100)
	s, err := Open(key, td, path, func(err error) { reports <- err })
	must.NoError(t, err)
	must.True(t, s.Bundle().Empty())
	must.NoError(t, os.Mkdir(path, 0o700)) // no file can take its place
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	must.ErrorContains(t, <-reports, "keep the public keys of JWT-SVIDs")
	must.False(t, s.Bundle().Empty())
	must.NoError(t, os.Remove(path))
	must.NoError(t, <-reports)
	kept, err := Open(key, td, path, nil)
	must.NoError(t, err)
	must.True(t, kept.Bundle().Equal(s.Bundle()))
	cancel()
	must.NoError(t, <-ended)
}
