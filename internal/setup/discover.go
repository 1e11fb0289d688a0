// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	vaultapi "github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/internal/join"
)

// ErrNoSettings is the error of a Vault in which no fabric was set up.
var ErrNoSettings = errors.New("there are no settings of a fabric in Vault")

// Stored reads the settings that an earlier set-up left in Vault, in a mount.
func Stored(ctx context.Context, client *vaultapi.Client, mount string) (join.Settings, error) {
	var s join.Settings
	v := &vault{client: client}
	path := join.VaultSettings{SettingsMount: mount}.SettingsPath()
	data, err := v.read(ctx, path)
	if err != nil {
		return s, fmt.Errorf("read the fabric's settings: %w", err)
	}
	if data == nil {
		return s, fmt.Errorf("%w at %s: run \"sif setup\" first, or name its mount with -settings-mount", ErrNoSettings, path)
	}
	text, err := json.Marshal(data)
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		return s, fmt.Errorf("decode the fabric's settings at %s: %w", path, err)
	}
	return s, nil
}

// Discover completes given settings by those that an earlier set-up left, by what the servers say
// of themselves, and by defaults; those of a fabric that was never set up, by the environment. The
// warnings are for people. It writes nothing.
func Discover(ctx context.Context, c Clients, given, environment join.Settings) (s join.Settings, warnings []string, err error) {
	mount := Defaults(given).Vault.SettingsMount
	// Addresses of an operator's machine are not those of the nodes, so they do not replace stored
	// ones.
	stored, err := Stored(ctx, c.Vault, mount)
	if errors.Is(err, ErrNoSettings) {
		stored, err = environment, nil
	}
	if err != nil {
		return s, nil, err
	}
	if s, err = overlay(stored, given); err != nil {
		return s, nil, err
	}
	s.Consul.AuthMethod, s.Consul.TokenRole, s.Nomad.AuthMethod, s.Nomad.TokenRole = "", "", "", ""
	s = Defaults(s)
	if s.Vault.Issuer, err = issuer(ctx, c.Vault); err != nil {
		return s, nil, err
	}
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }
	if u, err := url.Parse(s.Vault.Address); err == nil && (u.Hostname() == "localhost" || strings.HasPrefix(u.Hostname(), "127.")) {
		warn("Vault's address %s means another machine on each node: name the one that all of them reach with -vault-address", s.Vault.Address)
	}
	health, err := c.Vault.Sys().HealthWithContext(ctx)
	if err != nil {
		return s, nil, fmt.Errorf("ask Vault at %s how it is: %w", c.Vault.Address(), err)
	}
	if err := atLeast("Vault", health.Version, OldestVault); err != nil {
		return s, nil, err
	}
	if c.Consul != nil {
		acls, err := consulACLs(ctx, c.Consul)
		if err != nil {
			return s, nil, err
		}
		if acls {
			s.Consul.AuthMethod, s.Consul.TokenRole = s.Prefix, named(s, consulSuffix)
		} else {
			warn("Consul has no ACLs: whoever reaches it can disturb the fabric, and operators need tokens of Vault, because it has none. Switch them on, and run this again")
		}
	}
	if c.Nomad != nil {
		acls, err := nomadACLs(ctx, c.Nomad)
		if err != nil {
			return s, nil, err
		}
		if acls {
			s.Nomad.AuthMethod, s.Nomad.TokenRole = s.Prefix, named(s, nomadSuffix)
		} else {
			warn("Nomad has no ACLs: whoever reaches it can run a job with the identity of any service. Switch them on, and run this again")
		}
	}
	return s, warnings, Check(s)
}

// overlay returns stored settings with those that are given in their place.
func overlay(stored, given join.Settings) (join.Settings, error) {
	text, err := json.Marshal(given)
	var values map[string]any
	if err == nil {
		err = json.Unmarshal(text, &values)
	}
	if err == nil {
		dropEmpty(values)
		text, err = json.Marshal(values)
	}
	if err == nil {
		err = json.Unmarshal(text, &stored)
	}
	if err != nil {
		return stored, fmt.Errorf("complete the settings: %w", err)
	}
	return stored, nil
}

func dropEmpty(values map[string]any) {
	for name, v := range values {
		switch v := v.(type) {
		case map[string]any:
			dropEmpty(v)
		case string:
			if v == "" {
				delete(values, name)
			}
		case float64:
			if v == 0 {
				delete(values, name)
			}
		}
	}
}

// issuer returns the name that Vault gives itself in identity tokens.
func issuer(ctx context.Context, client *vaultapi.Client) (string, error) {
	const path = "identity/oidc/.well-known/openid-configuration"
	resp, err := client.Logical().ReadRawWithContext(ctx, path)
	if err != nil {
		return "", fmt.Errorf("ask Vault at %s for the issuer of its identity tokens: %w", client.Address(), err)
	}
	defer resp.Body.Close()
	var c struct {
		Issuer string `json:"issuer"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil || c.Issuer == "" {
		return "", fmt.Errorf("the Vault at %s does not say who issues its identity tokens: set its api_addr", client.Address())
	}
	return c.Issuer, nil
}

func consulACLs(ctx context.Context, client *consulapi.Client) (bool, error) {
	self, err := client.Agent().Self()
	if err == nil {
		version, _ := self["Config"]["Version"].(string)
		if err := atLeast("Consul", version, OldestConsul); err != nil {
			return false, err
		}
		_, _, err = client.ACL().PolicyList((&consulapi.QueryOptions{}).WithContext(ctx))
	}
	switch {
	case err == nil:
		return true, nil
	case strings.Contains(err.Error(), "ACL support disabled"):
		return false, nil
	case strings.Contains(err.Error(), "403"):
		return false, fmt.Errorf("the token is refused by Consul: set CONSUL_HTTP_TOKEN to one with acl = \"write\": %w", err)
	}
	return false, fmt.Errorf("reach Consul: correct CONSUL_HTTP_ADDR, CONSUL_CACERT and the like: %w", err)
}

func nomadACLs(ctx context.Context, client *nomadapi.Client) (bool, error) {
	query := (&nomadapi.QueryOptions{}).WithContext(ctx)
	_, _, err := client.ACLPolicies().List(query)
	acls := err == nil
	if err != nil && !strings.Contains(err.Error(), "ACL support disabled") && !strings.Contains(err.Error(), "403") {
		return false, fmt.Errorf("reach Nomad: correct NOMAD_ADDR, NOMAD_CACERT and the like: %w", err)
	}
	if acls {
		if token, _, err := client.ACLTokens().Self(query); err != nil || token.Type != "management" {
			return false, errors.New("the token is refused by Nomad: set NOMAD_TOKEN to a management token")
		}
	}
	self, err := client.Agent().Self()
	if err != nil {
		return false, fmt.Errorf("ask Nomad for its version: %w", err)
	}
	version, _ := self.Config["Version"].(map[string]any)
	number, _ := version["Version"].(string)
	return acls, atLeast("Nomad", number, OldestNomad)
}

// atLeast returns an error if a server is too old. A version that it cannot read is accepted.
func atLeast(server, version, oldest string) error {
	have, ok := numbers(version)
	if want, _ := numbers(oldest); ok && have.before(want) {
		return fmt.Errorf("%s is version %s, and a fabric needs %s or newer: upgrade it", server, version, oldest)
	}
	return nil
}

type versionNumbers [3]int

func (n versionNumbers) before(o versionNumbers) bool {
	for i := range n {
		if n[i] != o[i] {
			return n[i] < o[i]
		}
	}
	return false
}

// numbers reads a version such as "1.21.0+ent" or "v1.5.4-beta.1".
func numbers(version string) (n versionNumbers, ok bool) {
	core, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), "+")
	core, _, _ = strings.Cut(core, "-")
	parts := strings.Split(core, ".")
	if len(parts) != len(n) {
		return n, false
	}
	for i, p := range parts {
		var err error
		if n[i], err = strconv.Atoi(p); err != nil {
			return n, false
		}
	}
	return n, true
}

// checkKeys checks that Consul's and Nomad's servers reach the keys of Vault: they are shown a
// token that nobody signed, and must say so.
func (s *Setup) checkKeys(ctx context.Context) error {
	set := s.settings
	if s.clients.Consul != nil && set.Consul.AuthMethod != "" {
		_, _, err := s.clients.Consul.ACL().Login(&consulapi.ACLLoginParams{
			AuthMethod: set.Consul.AuthMethod, BearerToken: unsigned(set.Vault.Issuer, set.Consul.TokenRole),
		}, (&consulapi.WriteOptions{}).WithContext(ctx))
		if err := judge("Consul", keysURL(set.Vault), err); err != nil {
			return err
		}
	}
	if s.clients.Nomad != nil && set.Nomad.AuthMethod != "" {
		_, _, err := s.clients.Nomad.ACLAuth().Login(&nomadapi.ACLLoginRequest{
			AuthMethodName: set.Nomad.AuthMethod, LoginToken: unsigned(set.Vault.Issuer, set.Nomad.TokenRole),
		}, (&nomadapi.WriteOptions{}).WithContext(ctx))
		if err := judge("Nomad", keysURL(set.Vault), err); err != nil {
			return err
		}
	}
	return nil
}

func judge(server, url string, err error) error {
	switch {
	case err == nil:
		return fmt.Errorf("%s accepted an identity token that nobody signed: do not use it", server)
	case strings.Contains(err.Error(), "fetching keys"), strings.Contains(err.Error(), "JWKS"):
		return unreachableKeys(server, url, err)
	case strings.Contains(err.Error(), "verify"):
		return nil // it compared the signature with the keys
	}
	return fmt.Errorf("ask %s whether it reads the keys of Vault: %w", server, err)
}

// unsigned is an identity token with a signature of zeros.
func unsigned(issuer, audience string) string {
	part := func(v map[string]any) string {
		text, err := json.Marshal(v)
		if err != nil {
			panic(err) // strings and numbers only
		}
		return base64.RawURLEncoding.EncodeToString(text)
	}
	now := time.Now()
	return part(map[string]any{"alg": signing, "typ": "JWT", "kid": "none"}) + "." +
		part(map[string]any{"iss": issuer, "aud": audience, "iat": now.Unix(), "exp": now.Add(time.Minute).Unix(), "sub": "check"}) + "." +
		base64.RawURLEncoding.EncodeToString(make([]byte, 64))
}
