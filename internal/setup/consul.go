// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/kvkey"
)

// tokenTTL is the life of the tokens of Consul and Nomad: that of certificates, so that an outage
// of Vault is bridged as long by both, but at least an hour. Daemons replace them after a quarter
// of it.
func tokenTTL(s join.Settings) time.Duration { return min(max(s.CertTTL, time.Hour), 24*time.Hour) }

// consulRules are the rules of the policies in Consul, by suffix. The controller reads ACLs because
// it needs to know which policies the roles of operators' tokens have. A machine may have the
// policies of controllers and of nodes: of two rules the one with the longer prefix holds, so the
// controller's names the nodes' prefix, too.
var consulRules = []struct{ suffix, what, rules string }{
	{controllerSuffix, "controllers", `
key_prefix "sif/" {
  policy = "write"
}
key_prefix "` + kvkey.Root + `" {
  policy = "write"
}
session_prefix "" {
  policy = "write"
}
service_prefix "" {
  policy = "read"
}
node_prefix "" {
  policy = "read"
}
agent_prefix "" {
  policy = "read"
}
acl = "read"
`},
	{nodeSuffix, "engines and agents", `
key_prefix "` + kvkey.Root + `" {
  policy = "read"
}
service_prefix "" {
  policy = "read"
}
service_prefix "sif-" {
  policy = "write"
}
node_prefix "" {
  policy = "read"
}
agent_prefix "" {
  policy = "read"
}
`},
	{operatorSuffix, "operators", `
key_prefix "sif/" {
  policy = "read"
}
service_prefix "" {
  policy = "read"
}
node_prefix "" {
  policy = "read"
}
agent_prefix "" {
  policy = "read"
}
`},
	{readSuffix, "readers; only its name matters", ""},
}

func consulObjects(client *api.Client, s join.Settings, logins bool) []object {
	c := consul{client.ACL(), s}
	var list []object
	for _, p := range consulRules {
		list = append(list, c.policy(named(s, p.suffix), p.what, p.rules))
	}
	list = append(list,
		c.role(named(s, controllerSuffix), "controllers"),
		c.role(named(s, nodeSuffix), "engines and agents"),
	)
	if !logins {
		return list
	}
	return append(list,
		c.authMethod(),
		c.bindingRule(named(s, controllerSuffix), "controllers", "value."+metaController+` == "true"`),
		c.bindingRule(named(s, nodeSuffix), "engines and agents", "value."+metaMember+` == "true"`),
	)
}

type consul struct {
	acl      *api.ACL
	settings join.Settings
}

func (c consul) policy(name, what, rules string) object {
	description := owned(c.settings.Fabric, what)
	return object{
		server: Consul, kind: "policy", name: name, option: "-prefix",
		want: fixed(fields{"description": description, "rules": rules}),
		read: func(ctx context.Context) (*found, error) {
			p, _, err := c.acl.PolicyReadByName(name, (&api.QueryOptions{}).WithContext(ctx))
			if p == nil || missing(err) {
				return nil, present(err)
			}
			return &found{id: p.ID, owner: ownerOf(p.Description), fields: fields{"description": p.Description, "rules": p.Rules}}, err
		},
		write: func(ctx context.Context, _ fields, have *found) error {
			p := &api.ACLPolicy{Name: name, Description: description, Rules: rules}
			var err error
			if have != nil {
				p.ID = have.id
				_, _, err = c.acl.PolicyUpdate(p, (&api.WriteOptions{}).WithContext(ctx))
			} else {
				_, _, err = c.acl.PolicyCreate(p, (&api.WriteOptions{}).WithContext(ctx))
			}
			return err
		},
		remove: func(ctx context.Context, have *found) error {
			_, err := c.acl.PolicyDelete(have.id, (&api.WriteOptions{}).WithContext(ctx))
			return err
		},
	}
}

func (c consul) role(name, what string) object {
	description := owned(c.settings.Fabric, what)
	return object{
		server: Consul, kind: "role", name: name, option: "-prefix",
		want: fixed(fields{"description": description, "policies": []string{name}}),
		read: func(ctx context.Context) (*found, error) {
			r, _, err := c.acl.RoleReadByName(name, (&api.QueryOptions{}).WithContext(ctx))
			if r == nil || missing(err) {
				return nil, present(err)
			}
			var policies []string
			for _, p := range r.Policies {
				policies = append(policies, p.Name)
			}
			return &found{id: r.ID, owner: ownerOf(r.Description), fields: fields{"description": r.Description, "policies": policies}}, err
		},
		write: func(ctx context.Context, _ fields, have *found) error {
			r := &api.ACLRole{Name: name, Description: description, Policies: []*api.ACLRolePolicyLink{{Name: name}}}
			var err error
			if have != nil {
				r.ID = have.id
				_, _, err = c.acl.RoleUpdate(r, (&api.WriteOptions{}).WithContext(ctx))
			} else {
				_, _, err = c.acl.RoleCreate(r, (&api.WriteOptions{}).WithContext(ctx))
			}
			return err
		},
		remove: func(ctx context.Context, have *found) error {
			_, err := c.acl.RoleDelete(have.id, (&api.WriteOptions{}).WithContext(ctx))
			return err
		},
	}
}

// authMethod has Consul accept Vault's identity tokens.
func (c consul) authMethod() object {
	s := c.settings
	name, description := s.Consul.AuthMethod, owned(s.Fabric, "identity tokens of Vault")
	config := map[string]any{
		"JWKSURL": keysURL(s.Vault), "JWTSupportedAlgs": []string{signing},
		"BoundIssuer": s.Vault.Issuer, "BoundAudiences": []string{s.Consul.TokenRole}, "ClaimMappings": claimMappings(),
	}
	if s.Vault.CA != "" {
		config["JWKSCACert"] = s.Vault.CA
	}
	want := fields{"type": "jwt", "description": description, "max_token_ttl": tokenTTL(s).String(), "config": config}
	return object{
		server: Consul, kind: "auth method", name: name, option: "-prefix",
		want: fixed(want),
		read: func(ctx context.Context) (*found, error) {
			m, _, err := c.acl.AuthMethodRead(name, (&api.QueryOptions{}).WithContext(ctx))
			if m == nil || missing(err) {
				return nil, present(err)
			}
			return &found{owner: ownerOf(m.Description), fields: fields{
				"type": m.Type, "description": m.Description, "max_token_ttl": m.MaxTokenTTL.String(), "config": m.Config,
			}}, err
		},
		write: func(ctx context.Context, _ fields, have *found) error {
			m := &api.ACLAuthMethod{Name: name, Type: "jwt", Description: description, MaxTokenTTL: tokenTTL(s), Config: config}
			var err error
			if have != nil {
				_, _, err = c.acl.AuthMethodUpdate(m, (&api.WriteOptions{}).WithContext(ctx))
			} else {
				_, _, err = c.acl.AuthMethodCreate(m, (&api.WriteOptions{}).WithContext(ctx))
			}
			if err != nil && strings.Contains(err.Error(), "JWKSURL") {
				return unreachableKeys("Consul", keysURL(s.Vault), err)
			}
			return err
		},
		remove: func(ctx context.Context, _ *found) error {
			_, err := c.acl.AuthMethodDelete(name, (&api.WriteOptions{}).WithContext(ctx))
			return err
		},
	}
}

func (c consul) bindingRule(role, what, selector string) object {
	method, description := c.settings.Consul.AuthMethod, owned(c.settings.Fabric, what)
	return object{
		server: Consul, kind: "binding rule", name: method + " to " + role, option: "-prefix",
		want: fixed(fields{"description": description, "type": "role", "selector": selector}),
		read: func(ctx context.Context) (*found, error) {
			rules, _, err := c.acl.BindingRuleList(method, (&api.QueryOptions{}).WithContext(ctx))
			if err != nil {
				return nil, present(err)
			}
			for _, r := range rules {
				if r.BindName == role {
					return &found{id: r.ID, owner: ownerOf(r.Description), fields: fields{
						"description": r.Description, "type": r.BindType, "selector": r.Selector,
					}}, nil
				}
			}
			return nil, nil
		},
		write: func(ctx context.Context, _ fields, have *found) error {
			r := &api.ACLBindingRule{AuthMethod: method, Description: description, Selector: selector, BindType: api.BindingRuleBindTypeRole, BindName: role}
			var err error
			if have != nil {
				r.ID = have.id
				_, _, err = c.acl.BindingRuleUpdate(r, (&api.WriteOptions{}).WithContext(ctx))
			} else {
				_, _, err = c.acl.BindingRuleCreate(r, (&api.WriteOptions{}).WithContext(ctx))
			}
			return err
		},
		remove: func(ctx context.Context, have *found) error {
			_, err := c.acl.BindingRuleDelete(have.id, (&api.WriteOptions{}).WithContext(ctx))
			return err
		},
	}
}

// claimMappings say which parts of an identity token selectors can name.
func claimMappings() map[string]string {
	m := map[string]string{}
	for _, name := range claimNames {
		m["/sif/"+name] = name
	}
	return m
}

// keysURL is where Vault has the public keys of its identity tokens.
func keysURL(v join.VaultSettings) string {
	path := "/v1/"
	if v.Namespace != "" {
		path += strings.Trim(v.Namespace, "/") + "/"
	}
	return strings.TrimSuffix(v.Address, "/") + path + "identity/oidc/.well-known/keys"
}

// missing reports whether an error says that there is no such object.
func missing(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "404") || strings.Contains(strings.ToLower(err.Error()), "not found"))
}

// present returns an error unless it says that there is no such object.
func present(err error) error {
	if missing(err) {
		return nil
	}
	return err
}

func unreachableKeys(server, url string, err error) error {
	return fmt.Errorf("%s's servers cannot read the keys of Vault at %s: they must reach that address and trust its certificate; "+
		"name another one with -vault-address, or another CA with -vault-ca: %w", server, url, err)
}
