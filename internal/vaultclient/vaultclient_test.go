// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package vaultclient

import (
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

func TestTokensOfOthersAreNotUsed(t *testing.T) {
	t.Setenv("VAULT_ADDR", "https://vault.example:8200")
	t.Setenv("VAULT_TOKEN", "an operator's")
	c, err := New("http://127.0.0.1:8200", "")
	must.NoError(t, err)
	must.Eq(t, "http://127.0.0.1:8200", c.Address())
	must.Eq(t, "", c.Token())
	c, err = FromEnvironment()
	must.NoError(t, err)
	must.Eq(t, "https://vault.example:8200", c.Address())
	must.Eq(t, "an operator's", c.Token())
}

func TestWrongSettings(t *testing.T) {
	_, err := New("http://127.0.0.1:8200", filepath.Join(t.TempDir(), "missing.pem"))
	must.ErrorContains(t, err, "make a client of Vault")
	t.Setenv("VAULT_RATE_LIMIT", "x")
	_, err = FromEnvironment()
	must.ErrorContains(t, err, "make a client of Vault")
}
