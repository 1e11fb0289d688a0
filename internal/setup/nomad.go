// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"context"
	"slices"

	"github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/wellknown"
)

// nomadRules are the rules of the policies in Nomad, by suffix.
var nomadRules = []struct{ suffix, what, rules string }{
	{controllerSuffix, "controllers; which allocation is on which node, from which version of which job", `
namespace "*" {
  capabilities = ["list-jobs", "read-job", "parse-job"]
}
node {
  policy = "read"
}
`},
	{operatorSuffix, "operators; sif job run", `
namespace "*" {
  policy       = "write"
  capabilities = ["alloc-exec", "alloc-lifecycle", "read-logs", "read-fs"]
}
node {
  policy = "read"
}
agent {
  policy = "read"
}
host_volume "` + wellknown.WorkloadAPIVolume + `" {
  policy = "read"
}
`},
}

func nomadObjects(client *api.Client, s join.Settings, logins bool) []object {
	n := nomad{client, s}
	var list []object
	for _, p := range nomadRules {
		list = append(list, n.policy(named(s, p.suffix), p.what, p.rules))
	}
	if !logins {
		return list
	}
	return append(list, n.authMethod(), n.bindingRule(named(s, controllerSuffix), "controllers", "value."+metaController+` == "true"`))
}

type nomad struct {
	client   *api.Client
	settings join.Settings
}

func (n nomad) policy(name, what, rules string) object {
	description := owned(n.settings.Fabric, what)
	return object{
		server: Nomad, kind: "policy", name: name, option: "-prefix",
		want: fixed(fields{"description": description, "rules": rules}),
		read: func(ctx context.Context) (*found, error) {
			p, _, err := n.client.ACLPolicies().Info(name, (&api.QueryOptions{}).WithContext(ctx))
			if p == nil || missing(err) {
				return nil, present(err)
			}
			return &found{owner: ownerOf(p.Description), fields: fields{"description": p.Description, "rules": p.Rules}}, err
		},
		write: func(ctx context.Context, _ fields, _ *found) error {
			_, err := n.client.ACLPolicies().Upsert(&api.ACLPolicy{Name: name, Description: description, Rules: rules}, (&api.WriteOptions{}).WithContext(ctx))
			return err
		},
		remove: func(ctx context.Context, _ *found) error {
			_, err := n.client.ACLPolicies().Delete(name, (&api.WriteOptions{}).WithContext(ctx))
			return err
		},
	}
}

// owner returns whose an auth method with the fabric's audience is, which carries no description:
// that of the binding rules for it.
func (n nomad) owner(ctx context.Context, method string) (string, error) {
	rules, _, err := n.client.ACLBindingRules().List((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return "", err
	}
	for _, r := range rules {
		if other := ownerOf(r.Description); r.AuthMethod == method && other != "" {
			return other, nil
		}
	}
	return n.settings.Fabric, nil
}

// authMethod has Nomad accept Vault's identity tokens.
func (n nomad) authMethod() object {
	s := n.settings
	name := s.Nomad.AuthMethod
	config := &api.ACLAuthMethodConfig{
		JWKSURL: keysURL(s.Vault), JWKSCACert: s.Vault.CA, SigningAlgs: []string{signing},
		BoundIssuer: []string{s.Vault.Issuer}, BoundAudiences: []string{s.Nomad.TokenRole}, ClaimMappings: claimMappings(),
	}
	shown := func(typ, ttl string, c *api.ACLAuthMethodConfig) fields {
		return fields{
			"type": typ, "max_token_ttl": ttl, "jwks_url": c.JWKSURL, "jwks_ca": c.JWKSCACert, "signing_algs": c.SigningAlgs,
			"bound_issuer": c.BoundIssuer, "bound_audiences": c.BoundAudiences, "claim_mappings": c.ClaimMappings,
		}
	}
	return object{
		server: Nomad, kind: "auth method", name: name, option: "-prefix",
		want: fixed(shown(api.ACLAuthMethodTypeJWT, tokenTTL(s).String(), config)),
		read: func(ctx context.Context) (*found, error) {
			m, _, err := n.client.ACLAuthMethods().Get(name, (&api.QueryOptions{}).WithContext(ctx))
			if m == nil || missing(err) {
				return nil, present(err)
			}
			f := &found{}
			if m.Config == nil {
				m.Config = &api.ACLAuthMethodConfig{}
			}
			if slices.Equal(m.Config.BoundAudiences, config.BoundAudiences) {
				if f.owner, err = n.owner(ctx, name); err != nil {
					return nil, err
				}
			}
			f.fields = shown(m.Type, m.MaxTokenTTL.String(), m.Config)
			return f, err
		},
		write: func(ctx context.Context, _ fields, have *found) error {
			m := &api.ACLAuthMethod{Name: name, Type: api.ACLAuthMethodTypeJWT, TokenLocality: api.ACLAuthMethodTokenLocalityLocal, MaxTokenTTL: tokenTTL(s), Config: config}
			var err error
			if have != nil {
				_, _, err = n.client.ACLAuthMethods().Update(m, (&api.WriteOptions{}).WithContext(ctx))
			} else {
				_, _, err = n.client.ACLAuthMethods().Create(m, (&api.WriteOptions{}).WithContext(ctx))
			}
			return err
		},
		remove: func(ctx context.Context, _ *found) error {
			_, err := n.client.ACLAuthMethods().Delete(name, (&api.WriteOptions{}).WithContext(ctx))
			return err
		},
	}
}

func (n nomad) bindingRule(policy, what, selector string) object {
	method, description := n.settings.Nomad.AuthMethod, owned(n.settings.Fabric, what)
	return object{
		server: Nomad, kind: "binding rule", name: method + " to " + policy, option: "-prefix",
		want: fixed(fields{"description": description, "type": "policy", "selector": selector}),
		read: func(ctx context.Context) (*found, error) {
			rules, _, err := n.client.ACLBindingRules().List((&api.QueryOptions{}).WithContext(ctx))
			if err != nil {
				return nil, err
			}
			for _, stub := range rules {
				if stub.AuthMethod != method {
					continue
				}
				r, _, err := n.client.ACLBindingRules().Get(stub.ID, (&api.QueryOptions{}).WithContext(ctx))
				if err != nil {
					return nil, err
				}
				if r.BindName == policy {
					return &found{id: r.ID, owner: ownerOf(r.Description), fields: fields{
						"description": r.Description, "type": r.BindType, "selector": r.Selector,
					}}, nil
				}
			}
			return nil, nil
		},
		write: func(ctx context.Context, _ fields, have *found) error {
			r := &api.ACLBindingRule{AuthMethod: method, Description: description, Selector: selector, BindType: "policy", BindName: policy}
			var err error
			if have != nil {
				r.ID = have.id
				_, _, err = n.client.ACLBindingRules().Update(r, (&api.WriteOptions{}).WithContext(ctx))
			} else {
				_, _, err = n.client.ACLBindingRules().Create(r, (&api.WriteOptions{}).WithContext(ctx))
			}
			return err
		},
		remove: func(ctx context.Context, have *found) error {
			_, err := n.client.ACLBindingRules().Delete(have.id, (&api.WriteOptions{}).WithContext(ctx))
			return err
		},
	}
}
