// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package vaultclient makes clients of Vault. It does not know what they are used for.
package vaultclient

import (
	"fmt"

	"github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/servercalls"
)

// New returns a client of the Vault at address, without a token. Its answers confirm the clock of
// the process. caFile has the authorities of its
// certificate in PEM; the system's are used if it is empty. Whatever else matters comes from the
// environment, such as VAULT_NAMESPACE.
func New(address, caFile string) (*api.Client, error) {
	client, err := newClient(func(c *api.Config) error {
		c.Address = address
		if caFile != "" {
			if err := c.ConfigureTLS(&api.TLSConfig{CACert: caFile}); err != nil {
				return err
			}
		}
		c.HttpClient.Transport = servercalls.Count("vault", clock.ConfirmBy("Vault", c.HttpClient.Transport))
		return nil
	})
	if err != nil {
		return nil, err
	}
	client.ClearToken() // the one in the environment is an operator's
	return client, nil
}

// FromEnvironment returns a client of the Vault that VAULT_ADDR names, with the token of
// VAULT_TOKEN.
func FromEnvironment() (*api.Client, error) {
	return newClient(func(*api.Config) error { return nil })
}

func newClient(configure func(*api.Config) error) (*api.Client, error) {
	c := api.DefaultConfig()
	err := c.Error
	if err == nil {
		err = configure(c)
	}
	var client *api.Client
	if err == nil {
		client, err = api.NewClient(c)
	}
	if err != nil {
		return nil, fmt.Errorf("make a client of Vault: %w", err)
	}
	return client, nil
}
