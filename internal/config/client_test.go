// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package config

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/setup/setuptest"
	"github.com/sif-project/sif/internal/testhost"
)

const management = "8e3b2a61-2f6c-4b26-9d3c-0d1f6f2a7f10"

func eventually(t *testing.T, try func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// guarded are servers with ACLs that are set up, and a machine's configuration.
type guarded struct {
	vaultServer *testhost.Server
	vault       *vaultapi.Client
	consul      *consulapi.Client
	nomad       *nomadapi.Client
	settings    join.Settings
	config      *Config
}

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{settings: setuptest.Settings("test", "sif.test")}
	g.vaultServer, g.vault = testhost.Vault(t)
	consul, _ := testhost.Consul(t, fmt.Sprintf("acl {\n  enabled = true\n  default_policy = \"deny\"\n  tokens {\n    initial_management = %q\n    agent = %q\n  }\n}", management, management))
	nomad, _ := testhost.Nomad(t, "acl {\n  enabled = true\n}")
	var err error
	g.consul, err = consulapi.NewClient(&consulapi.Config{Address: consul.Address, Token: management})
	must.NoError(t, err)
	g.nomad, err = nomadapi.NewClient(&nomadapi.Config{Address: "http://" + nomad.Address, SecretID: management})
	must.NoError(t, err)
	eventually(t, func() error {
		_, _, err := g.nomad.ACLTokens().BootstrapOpts(management, nil)
		return err
	})
	setuptest.LogIns(t, setup.Clients{Vault: g.vault, Consul: g.consul, Nomad: g.nomad}, g.settings, "http://"+g.vaultServer.Address)
	g.config, err = parse(fmt.Appendf(nil, `
consul {
  address     = %q
  auth_method = "sif"
  token_role  = "sif-consul"
}
nomad {
  address     = "http://%s"
  auth_method = "sif"
  token_role  = "sif-nomad"
}
`, consul.Address, nomad.Address), "x.hcl", RoleController, none)
	must.NoError(t, err)
	return g
}

// as shows identity tokens as a machine.
func (g *guarded) as(t *testing.T, kinds ...join.Kind) ShowJWT {
	t.Helper()
	m := setuptest.Machine(t, g.vault, g.settings, fabric.NodeID{Zone: "aws1", Name: "m" + fmt.Sprint(len(kinds)) + string(kinds[0])}, kinds...)
	client, err := g.vault.Clone()
	must.NoError(t, err)
	secret, err := client.Logical().Write("auth/sif-approle/login", map[string]any{"role_id": m.RoleID, "secret_id": m.SecretID})
	must.NoError(t, err)
	client.SetToken(secret.Auth.ClientToken)
	return func(ctx context.Context, role string) (string, error) {
		secret, err := client.Logical().ReadWithContext(ctx, "identity/oidc/token/"+role)
		if err != nil {
			return "", err
		}
		return secret.Data["token"].(string), nil
	}
}

// loggedIn returns the accessors of Consul's tokens of log-ins.
func (g *guarded) loggedIn(t *testing.T) (list []string) {
	t.Helper()
	tokens, _, err := g.consul.ACL().TokenListFiltered(consulapi.ACLTokenFilterOptions{AuthMethod: "sif"}, nil)
	must.NoError(t, err)
	for _, token := range tokens {
		list = append(list, token.AccessorID)
	}
	return list
}

func (g *guarded) deleteConsulTokens(t *testing.T) {
	t.Helper()
	tokens := g.loggedIn(t)
	must.SliceNotEmpty(t, tokens)
	for _, accessor := range tokens {
		_, err := g.consul.ACL().TokenDelete(accessor, nil)
		must.NoError(t, err)
	}
}

// A daemon logs in to Consul and Nomad by itself. When its tokens are deleted there, or the rights
// are made anew, it goes on, a query that waits included. Tokens of the environment and of its
// callers are left alone.
func TestClientsLogIn(t *testing.T) {
	t.Setenv("CONSUL_HTTP_TOKEN", management)
	t.Setenv("NOMAD_TOKEN", management)
	g := newGuarded(t)
	controller := g.as(t, join.Controller)
	consul, err := g.config.ConsulClient(controller)
	must.NoError(t, err)
	nomad, err := g.config.NomadClient(controller)
	must.NoError(t, err)
	must.SliceEmpty(t, g.loggedIn(t))

	put := func(c *consulapi.Client, key string) error {
		_, err := c.KV().Put(&consulapi.KVPair{Key: key, Value: []byte(time.Now().String())}, nil)
		return err
	}
	must.NoError(t, put(consul, "sif/v1/test"))
	must.ErrorContains(t, put(consul, "other"), "Permission denied")
	must.Len(t, 1, g.loggedIn(t))
	_, _, err = nomad.Jobs().List(nil)
	must.NoError(t, err)

	// A query waits for a change while the tokens are deleted.
	_, meta, err := consul.KV().Get("sif/v1/test", nil)
	must.NoError(t, err)
	type answer struct {
		pair *consulapi.KVPair
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		pair, _, err := consul.KV().Get("sif/v1/test", &consulapi.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: time.Minute})
		answers <- answer{pair, err}
	}()
	time.Sleep(200 * time.Millisecond)
	g.deleteConsulTokens(t)
	must.NoError(t, put(g.consul, "sif/v1/test"))
	a := <-answers
	must.NoError(t, a.err)
	must.NotNil(t, a.pair)
	must.NoError(t, put(consul, "sif/v1/test"))
	must.Len(t, 1, g.loggedIn(t))
	g.deleteConsulTokens(t)
	must.NoError(t, put(consul, "sif/v1/test"), must.Sprint("a request with a body is repeated"))

	tokens, _, err := g.nomad.ACLTokens().List(nil)
	must.NoError(t, err)
	for _, token := range tokens {
		if token.Type == "client" {
			_, err := g.nomad.ACLTokens().Delete(token.AccessorID, nil)
			must.NoError(t, err)
		}
	}
	_, _, err = nomad.Nodes().List(nil)
	must.NoError(t, err)

	// A caller's token is not replaced.
	_, _, err = consul.ACL().TokenReadSelf(&consulapi.QueryOptions{Token: "11111111-2222-3333-4444-555555555555"})
	must.ErrorContains(t, err, "ACL not found")
	// Without a log-in there is no token.
	anonymous, err := g.config.ConsulClient(nil)
	must.NoError(t, err)
	must.ErrorContains(t, put(anonymous, "sif/v1/test"), "403")

	// A node may write nothing of the fabric's, and nothing in Nomad.
	node := g.as(t, join.Workload)
	atNode, err := g.config.ConsulClient(node)
	must.NoError(t, err)
	_, _, err = atNode.KV().Get("sif/v1/test", nil)
	must.NoError(t, err)
	must.ErrorContains(t, put(atNode, "sif/v1/test"), "Permission denied")
	nodeAtNomad, err := g.config.NomadClient(node)
	must.NoError(t, err)
	_, _, err = nodeAtNomad.Jobs().List(nil)
	must.ErrorContains(t, err, "permission denied")
}

// A token is replaced long before its end, and goes on when nobody can log in.
func TestTokensAreRenewed(t *testing.T) {
	g := newGuarded(t)
	method, _, err := g.consul.ACL().AuthMethodRead("sif", nil)
	must.NoError(t, err)
	method.MaxTokenTTL = time.Minute // the least
	_, _, err = g.consul.ACL().AuthMethodUpdate(method, nil)
	must.NoError(t, err)
	failing := false
	show := g.as(t, join.Workload)
	client, err := g.config.ConsulClient(func(ctx context.Context, role string) (string, error) {
		if failing {
			return "", errors.New("Vault is away")
		}
		return show(ctx, role)
	})
	must.NoError(t, err)
	self := func() string {
		t.Helper()
		token, _, err := client.ACL().TokenReadSelf(nil)
		must.NoError(t, err)
		return token.AccessorID
	}
	first := self()
	must.Eq(t, first, self())
	failing = true
	time.Sleep(16 * time.Second)
	must.Eq(t, first, self())
	failing = false
	time.Sleep(1100 * time.Millisecond)
	must.NotEq(t, first, self())
}
