// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package config

import (
	"fmt"
	"os"
	"strings"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/internal/trust/identity"
)

// ConsulClient returns a client of the Consul agent that the file names.
func (c *Config) ConsulClient() (*consulapi.Client, error) {
	token, err := secret(c.Consul.Token, c.Consul.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("read the token of Consul: %w", err)
	}
	conf := consulapi.DefaultConfig()
	conf.Address = withScheme(c.Consul.Address, c.Consul.CAFile)
	conf.Token, conf.TokenFile = token, ""
	conf.Datacenter = c.Consul.Datacenter
	conf.TLSConfig.CAFile = c.Consul.CAFile
	conf.TLSConfig.CertFile = c.Consul.CertFile
	conf.TLSConfig.KeyFile = c.Consul.KeyFile
	// Compression of the answers took two thirds of the CPU time of a Consul agent that a thousand
	// nodes watch. Large objects of the fabric are already compressed.
	conf.Transport.DisableCompression = true
	client, err := consulapi.NewClient(conf)
	if err != nil {
		return nil, fmt.Errorf("create a client of Consul at %s: %w", conf.Address, err)
	}
	return client, nil
}

// NomadClient returns a client of the Nomad servers that the file names.
func (c *Config) NomadClient() (*nomadapi.Client, error) {
	token, err := secret(c.Nomad.Token, c.Nomad.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("read the token of Nomad: %w", err)
	}
	conf := nomadapi.DefaultConfig()
	conf.Address = withScheme(c.Nomad.Address, c.Nomad.CAFile)
	conf.SecretID = token
	conf.TLSConfig.CACert = c.Nomad.CAFile
	client, err := nomadapi.NewClient(conf)
	if err != nil {
		return nil, fmt.Errorf("create a client of Nomad at %s: %w", conf.Address, err)
	}
	return client, nil
}

// Identity returns how this process obtains its identity.
func (c *Config) Identity() identity.Config {
	return identity.Config{
		VaultAddress: withScheme(c.Vault.Address, c.Vault.CAFile),
		VaultCAFile:  c.Vault.CAFile,
		Namespace:    c.Vault.Namespace,
		AppRoleMount: c.Vault.AppRoleMount,
		RoleID:       c.Vault.RoleID,
		SecretIDFile: c.Vault.SecretIDFile,
		JWTMount:     c.Vault.JWTMount,
		JWTRole:      c.Vault.JWTRole,
		JWTFile:      c.Vault.JWTFile,
		PKIMount:     c.Vault.PKIMount,
		PKIRole:      c.Vault.PKIRole,
		TransitMount: c.Vault.TransitMount,
		TransitKey:   c.Vault.TransitKey,
		TrustDomain:  c.TrustDomain,
		SPIFFEPath:   c.SPIFFEPath(),
		DataDir:      c.DataDir,
	}
}

// secret returns value, or the content of file if value is empty.
func secret(value, file string) (string, error) {
	if value != "" || file == "" {
		return value, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), nil
}

// withScheme turns host:port into a URL: with https if there is a CA file, otherwise with http.
func withScheme(address, caFile string) string {
	switch {
	case address == "" || strings.Contains(address, "://"):
		return address
	case caFile != "":
		return "https://" + address
	}
	return "http://" + address
}
