// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package config

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/internal/servercalls"
	"github.com/sif-project/sif/internal/servertoken"
	"github.com/sif-project/sif/internal/trust/identity"
)

// ShowJWT returns an identity token of this machine, made by a role of Vault, for a log-in.
type ShowJWT func(ctx context.Context, role string) (string, error)

// ConsulClient returns a client of the Consul agent that the file names. It logs in with what show
// returns, by itself and as often as needed; with nil, it has no token.
func (c *Config) ConsulClient(show ShowJWT) (*consulapi.Client, error) {
	make := func() (*consulapi.Client, *consulapi.Config, error) {
		conf := consulapi.DefaultConfig()
		conf.Address = WithScheme(c.Consul.Address, c.Consul.CAFile)
		conf.Token, conf.TokenFile = servertoken.Placeholder, ""
		conf.Datacenter = c.Consul.Datacenter
		conf.TLSConfig.CAFile = c.Consul.CAFile
		conf.TLSConfig.CertFile = c.Consul.CertFile
		conf.TLSConfig.KeyFile = c.Consul.KeyFile
		// Compression of the answers took two thirds of the CPU time of a Consul agent that a
		// thousand nodes watch. Large objects of the fabric are already compressed.
		conf.Transport.DisableCompression = true
		client, err := consulapi.NewClient(conf)
		if err != nil {
			return nil, nil, fmt.Errorf("create a client of Consul at %s: %w", conf.Address, err)
		}
		return client, conf, nil
	}
	const header = "X-Consul-Token"
	anonymous, conf, err := make()
	if err != nil {
		return nil, err
	}
	conf.HttpClient.Transport = servertoken.New(servercalls.Count("consul", conf.HttpClient.Transport), header, nil)
	if c.Consul.AuthMethod == "" || show == nil {
		return anonymous, nil
	}
	client, conf, err := make()
	if err != nil {
		return nil, err
	}
	jwt := jwtOf(show, c.Consul.TokenRole, c.Consul.JWTFile)
	// The client shares conf.HttpClient.
	conf.HttpClient.Transport = servertoken.New(servercalls.Count("consul", conf.HttpClient.Transport), header, &servertoken.Login{New: func(ctx context.Context) (servertoken.Token, error) {
		text, err := jwt(ctx)
		if err != nil {
			return servertoken.Token{}, fmt.Errorf("Consul: %w", err)
		}
		token, _, err := anonymous.ACL().Login(&consulapi.ACLLoginParams{AuthMethod: c.Consul.AuthMethod, BearerToken: text}, (&consulapi.WriteOptions{}).WithContext(ctx))
		if err != nil {
			return servertoken.Token{}, fmt.Errorf("log in to Consul by auth method %q: %w", c.Consul.AuthMethod, err)
		}
		t := servertoken.Token{Secret: token.SecretID}
		if token.ExpirationTime != nil {
			t.Expires = *token.ExpirationTime
		}
		return t, nil
	}})
	return client, nil
}

// NomadClient returns a client of the Nomad agent that the file names. It logs in with what show
// returns, by itself and as often as needed; with nil, it has no token.
func (c *Config) NomadClient(show ShowJWT) (*nomadapi.Client, error) {
	make := func(login *servertoken.Login) (*nomadapi.Client, error) {
		conf := nomadapi.DefaultConfig()
		conf.Address = WithScheme(c.Nomad.Address, c.Nomad.CAFile)
		conf.SecretID = servertoken.Placeholder
		conf.TLSConfig.CACert = c.Nomad.CAFile
		conf.HttpClient = &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}
		err := nomadapi.ConfigureTLS(conf.HttpClient, conf.TLSConfig)
		var client *nomadapi.Client
		if err == nil {
			conf.TLSConfig = &nomadapi.TLSConfig{} // it is refused beside an HTTP client
			conf.HttpClient.Transport = servertoken.New(servercalls.Count("nomad", conf.HttpClient.Transport), "X-Nomad-Token", login)
			client, err = nomadapi.NewClient(conf)
		}
		if err != nil {
			return nil, fmt.Errorf("create a client of Nomad at %s: %w", conf.Address, err)
		}
		return client, nil
	}
	anonymous, err := make(nil)
	if err != nil || c.Nomad.AuthMethod == "" || show == nil {
		return anonymous, err
	}
	jwt := jwtOf(show, c.Nomad.TokenRole, c.Nomad.JWTFile)
	login := func(ctx context.Context) (servertoken.Token, error) {
		text, err := jwt(ctx)
		if err != nil {
			return servertoken.Token{}, fmt.Errorf("Nomad: %w", err)
		}
		token, _, err := anonymous.ACLAuth().Login(&nomadapi.ACLLoginRequest{AuthMethodName: c.Nomad.AuthMethod, LoginToken: text}, (&nomadapi.WriteOptions{}).WithContext(ctx))
		if err != nil {
			return servertoken.Token{}, fmt.Errorf("log in to Nomad by auth method %q: %w", c.Nomad.AuthMethod, err)
		}
		t := servertoken.Token{Secret: token.SecretID}
		if token.ExpirationTime != nil {
			t.Expires = *token.ExpirationTime
		}
		return t, nil
	}
	known := func(ctx context.Context, secret string) bool {
		_, _, err := anonymous.ACLTokens().Self((&nomadapi.QueryOptions{AuthToken: secret}).WithContext(ctx))
		var refused nomadapi.UnexpectedResponseError
		return !errors.As(err, &refused) || refused.StatusCode() != http.StatusForbidden && refused.StatusCode() != http.StatusNotFound
	}
	return make(&servertoken.Login{New: login, Known: known})
}

// jwtOf returns how a JWT is got.
func jwtOf(show ShowJWT, role, file string) func(context.Context) (string, error) {
	if file == "" {
		return func(ctx context.Context) (string, error) { return show(ctx, role) }
	}
	return func(context.Context) (string, error) {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("read the JWT: %w", err)
		}
		return strings.TrimSpace(string(text)), nil
	}
}

// Identity returns how this process obtains its identity.
func (c *Config) Identity() identity.Config {
	return identity.Config{
		VaultAddress: WithScheme(c.Vault.Address, c.Vault.CAFile),
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

// WithScheme turns host:port into a URL: with https if there is a CA file, otherwise with http.
func WithScheme(address, caFile string) string {
	switch {
	case address == "" || strings.Contains(address, "://"):
		return address
	case caFile != "":
		return "https://" + address
	}
	return "http://" + address
}
