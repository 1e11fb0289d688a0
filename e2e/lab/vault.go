// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/vault/api"
)

// VaultAddress is the address of Vault: HTTPS with the servers' CA.
func (l *Lab) VaultAddress() string {
	return "https://" + l.Topology.Orchestrator().Address + ":8200"
}

// FabricCA is the file with the root of the certificates of the fabric's daemons and workloads.
func (l *Lab) FabricCA() string { return l.varDir("tls", "fabric-ca.pem") }

// Vault returns a client of Vault that uses the given token, which may be empty.
func (l *Lab) Vault(token string) (*api.Client, error) {
	config := api.DefaultConfig()
	if config.Error != nil {
		return nil, config.Error
	}
	client, err := l.httpsClient(clientNS)
	if err != nil {
		return nil, err
	}
	config.Address = l.VaultAddress()
	config.HttpClient = client
	config.MaxRetries = 0
	vault, err := api.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("make a Vault client: %w", err)
	}
	vault.SetToken(token)
	return vault, nil
}

// httpsClient returns an HTTP client that connects from a node and trusts only the servers' CA.
func (l *Lab) httpsClient(node string) (*http.Client, error) {
	return l.httpsClientOf(node, l.ServersCA())
}

func (l *Lab) httpsClientOf(node, caFile string) (*http.Client, error) {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read the CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s contains no certificate", caFile)
	}
	return &http.Client{Transport: &http.Transport{
		DialContext:     l.Dial(node),
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
	}}, nil
}

// startVault starts Vault, initialises and unseals it.
func (l *Lab) startVault(ctx context.Context) error {
	node := l.Topology.Orchestrator()
	pair, err := l.ca.issue("vault", node.Address)
	if err != nil {
		return err
	}
	data := l.varDir(node.Name, "vault")
	file := l.varDir(node.Name, "vault.hcl")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	config := fmt.Sprintf(`storage "raft" {
  path                   = %q
  node_id                = %q
  performance_multiplier = 1
}
listener "tcp" {
  address       = "%s:8200"
  tls_cert_file = %q
  tls_key_file  = %q
}
api_addr      = "https://%s:8200"
cluster_addr  = "https://%s:8201"
disable_mlock = true
log_level     = "info"
`, data, node.Name, node.Address, pair.cert, pair.key, node.Address, node.Address)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return fmt.Errorf("write Vault's configuration: %w", err)
	}
	p := &Process{Node: node.Name, Name: "vault", Args: []string{l.servers["vault"], "server", "-config=" + file}}
	client, err := l.Vault("")
	if err != nil {
		return err
	}
	if err := l.launch(ctx, p, 30*time.Second, func(ctx context.Context) error {
		_, err := client.Sys().InitStatusWithContext(ctx)
		return err
	}); err != nil {
		return err
	}
	keys, err := client.Sys().InitWithContext(ctx, &api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		return fmt.Errorf("initialise Vault: %w", err)
	}
	l.Secrets.VaultRoot, l.Secrets.VaultUnseal = keys.RootToken, keys.KeysB64[0]
	if err := l.Unseal(ctx); err != nil {
		return err
	}
	l.progress.line("Vault")
	return nil
}

// Unseal unseals Vault, which every restart of Vault requires, and waits until it is active.
func (l *Lab) Unseal(ctx context.Context) error {
	client, err := l.Vault("")
	if err != nil {
		return err
	}
	p, err := l.Process(l.Topology.Orchestrator().Name, "vault")
	if err != nil {
		return err
	}
	return l.await(ctx, p, 30*time.Second, func(ctx context.Context) error {
		status, err := client.Sys().UnsealWithContext(ctx, l.Secrets.VaultUnseal)
		if err != nil {
			return fmt.Errorf("unseal Vault: %w", err)
		}
		if status.Sealed {
			return errors.New("Vault is sealed")
		}
		health, err := client.Sys().HealthWithContext(ctx)
		if err == nil && health.Standby {
			return errors.New("Vault is not active yet")
		}
		return err
	})
}

func mkdirs(dirs ...string) error {
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Clean(d), 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	return nil
}
