// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package redeem

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/internal/join"
)

// ErrRefused says that Vault does not accept the credential of the machine any more.
var ErrRefused = errors.New("Vault refuses the credential of this machine")

func pemOf(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// Session is a machine that has logged in to Vault with its credential.
type Session struct {
	client *vaultapi.Client
	grant  join.Grant
}

// Login logs in with the credential of a grant.
func Login(ctx context.Context, g join.Grant) (*Session, error) {
	conf := vaultapi.DefaultConfig()
	if conf.Error != nil {
		return nil, fmt.Errorf("make a client of Vault: %w", conf.Error)
	}
	v := g.Settings.Vault
	conf.Address, conf.AgentAddress, conf.MaxRetries, conf.Timeout = v.Address, "", 1, timeout
	if t, ok := conf.HttpClient.Transport.(*http.Transport); ok { // VAULT_SKIP_VERIFY is not for the credential
		t.TLSClientConfig.InsecureSkipVerify = false
	}
	if v.CA != "" {
		if err := conf.ConfigureTLS(&vaultapi.TLSConfig{CACertBytes: []byte(v.CA)}); err != nil {
			return nil, fmt.Errorf("make a client of Vault: %w", err)
		}
	}
	client, err := vaultapi.NewClient(conf)
	if err != nil {
		return nil, fmt.Errorf("make a client of Vault: %w", err)
	}
	client.ClearToken() // the one in the environment is an operator's
	setNamespace(client, v.Namespace)
	secret, err := client.Logical().WriteWithContext(ctx, "auth/"+v.AppRoleMount+"/login", map[string]any{"role_id": g.RoleID, "secret_id": g.SecretID})
	var refused *vaultapi.ResponseError
	if errors.As(err, &refused) && (refused.StatusCode == http.StatusBadRequest || refused.StatusCode == http.StatusForbidden) {
		return nil, fmt.Errorf("%w: %v", ErrRefused, refused.Errors)
	}
	if err != nil {
		return nil, fmt.Errorf("log in to Vault: %w", err)
	}
	if secret == nil || secret.Auth == nil {
		return nil, errors.New("log in to Vault: the answer contains no token")
	}
	client.SetToken(secret.Auth.ClientToken)
	return &Session{client: client, grant: g}, nil
}

// FabricCA returns the certificate of the fabric's authority, PEM, by which the controller proves
// itself.
func (s *Session) FabricCA(ctx context.Context) (string, error) {
	path := s.grant.Settings.Vault.PKIMount + "/cert/ca"
	secret, err := s.client.Logical().ReadWithContext(ctx, path)
	if err != nil {
		return "", fmt.Errorf("read %s from Vault: %w", path, err)
	}
	if secret != nil {
		if text, _ := secret.Data["certificate"].(string); text != "" {
			return text + "\n", nil
		}
	}
	return "", fmt.Errorf("read %s from Vault: there is no certificate", path)
}

// Announce writes the address of this machine's controller where `sif node create` finds it.
func (s *Session) Announce(ctx context.Context, address string) error {
	path := s.grant.Settings.Vault.ControllerPath(s.grant.Node)
	if _, err := s.client.Logical().WriteWithContext(ctx, path, map[string]any{"address": address}); err != nil {
		return fmt.Errorf("write the controller's address to %s in Vault: %w", path, err)
	}
	return nil
}

// Retract takes the address of this machine's controller back.
func (s *Session) Retract(ctx context.Context) error {
	path := s.grant.Settings.Vault.ControllerPath(s.grant.Node)
	if _, err := s.client.Logical().DeleteWithContext(ctx, path); err != nil {
		return fmt.Errorf("delete %s from Vault: %w", path, err)
	}
	return nil
}

// End revokes the token of the session.
func (s *Session) End(ctx context.Context) error {
	if err := s.client.Auth().Token().RevokeSelfWithContext(ctx, ""); err != nil {
		return fmt.Errorf("revoke the token of Vault: %w", err)
	}
	return nil
}
