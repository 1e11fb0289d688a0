// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package join_test

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/join"
)

func TestToken(t *testing.T) {
	want := join.Token{Vault: "https://vault.example:8200", Namespace: "ops", Digest: "00ff", Wrapping: "hvs.x"}
	got, err := join.ParseToken(" " + want.String() + "\n")
	must.NoError(t, err)
	must.Eq(t, want, got)
}

func FuzzParseToken(f *testing.F) {
	whole := join.Token{Vault: "https://vault.example:8200", Wrapping: "hvs.x"}.String()
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add("hvs.x")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := join.ParseToken(s)
		if err != nil {
			return
		}
		again, err := join.ParseToken(token.String())
		must.NoError(t, err)
		must.Eq(t, token, again)
	})
}
