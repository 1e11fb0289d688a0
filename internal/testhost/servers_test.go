// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package testhost

import (
	"testing"

	consulapi "github.com/hashicorp/consul/api"
	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"
)

func TestServers(t *testing.T) {
	t.Run("consul", func(t *testing.T) {
		_, client := Consul(t)
		_, err := client.KV().Put(&consulapi.KVPair{Key: "a", Value: []byte("b")}, nil)
		must.NoError(t, err)
	})
	t.Run("vault", func(t *testing.T) {
		_, client := Vault(t)
		must.NoError(t, client.Sys().Mount("t", &vaultapi.MountInput{Type: "transit"}))
	})
	t.Run("nomad", func(t *testing.T) {
		_, client := Nomad(t)
		_, _, err := client.Jobs().List(nil)
		must.NoError(t, err)
	})
}
