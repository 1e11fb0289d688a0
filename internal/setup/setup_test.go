// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/testhost"
)

const management = "8e3b2a61-2f6c-4b26-9d3c-0d1f6f2a7f10"

const consulWithACLs = `
acl {
  enabled        = true
  default_policy = "deny"
  tokens {
    initial_management = "` + management + `"
    agent              = "` + management + `"
  }
}`

// cluster is a Vault, a Consul and a Nomad with ACLs, and administrators' clients.
type cluster struct {
	setup.Clients
	vault, consul, nomad string // addresses
}

func newCluster(t *testing.T) cluster {
	t.Helper()
	var c cluster
	vault, vaultClient := testhost.Vault(t)
	consul, _ := testhost.Consul(t, consulWithACLs)
	nomad, _ := testhost.Nomad(t, "acl {\n  enabled = true\n}")
	c.vault, c.consul, c.nomad = "http://"+vault.Address, consul.Address, "http://"+nomad.Address
	c.Vault, c.Consul, c.Nomad = vaultClient, c.consulClient(t, management), c.nomadClient(t, management)
	eventually(t, func() error {
		_, _, err := c.Nomad.ACLTokens().BootstrapOpts(management, nil)
		return err
	})
	eventually(t, func() error {
		_, _, err := c.Consul.ACL().TokenReadSelf(nil)
		return err
	})
	return c
}

func (c cluster) consulClient(t *testing.T, token string) *consulapi.Client {
	t.Helper()
	client, err := consulapi.NewClient(&consulapi.Config{Address: c.consul, Token: token})
	must.NoError(t, err)
	return client
}

func (c cluster) nomadClient(t *testing.T, token string) *nomadapi.Client {
	t.Helper()
	client, err := nomadapi.NewClient(&nomadapi.Config{Address: c.nomad, SecretID: token})
	must.NoError(t, err)
	return client
}

// settings discovers those of a fabric.
func (c cluster) settings(t *testing.T, given join.Settings) join.Settings {
	t.Helper()
	s, _, err := setup.Discover(t.Context(), c.Clients, given, join.Settings{Vault: join.VaultSettings{Address: c.vault}})
	must.NoError(t, err)
	return s
}

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

// everything lists what the servers hold, as far as a set-up could touch it.
func (c cluster) everything(t *testing.T) (all []string) {
	t.Helper()
	add := func(what string, names ...string) {
		for _, n := range names {
			all = append(all, what+" "+n)
		}
	}
	mounts, err := c.Vault.Sys().ListMounts()
	must.NoError(t, err)
	for name := range mounts {
		add("mount", name)
	}
	auths, err := c.Vault.Sys().ListAuth()
	must.NoError(t, err)
	for name := range auths {
		add("auth", name)
	}
	for _, path := range []string{"sys/policies/acl", "identity/oidc/key", "identity/oidc/role", "identity/entity/id"} {
		secret, err := c.Vault.Logical().List(path)
		must.NoError(t, err)
		if secret != nil {
			for _, k := range secret.Data["keys"].([]any) {
				add(path, fmt.Sprint(k))
			}
		}
	}
	policies, _, err := c.Consul.ACL().PolicyList(nil)
	must.NoError(t, err)
	for _, p := range policies {
		add("consul policy", p.Name)
	}
	roles, _, err := c.Consul.ACL().RoleList(nil)
	must.NoError(t, err)
	for _, r := range roles {
		add("consul role", r.Name)
	}
	methods, _, err := c.Consul.ACL().AuthMethodList(nil)
	must.NoError(t, err)
	for _, m := range methods {
		add("consul auth method", m.Name)
	}
	rules, _, err := c.Consul.ACL().BindingRuleList("", nil)
	must.NoError(t, err)
	for _, r := range rules {
		add("consul binding rule", r.BindName)
	}
	nomadPolicies, _, err := c.Nomad.ACLPolicies().List(nil)
	must.NoError(t, err)
	for _, p := range nomadPolicies {
		add("nomad policy", p.Name)
	}
	nomadMethods, _, err := c.Nomad.ACLAuthMethods().List(nil)
	must.NoError(t, err)
	for _, m := range nomadMethods {
		add("nomad auth method", m.Name)
	}
	nomadRules, _, err := c.Nomad.ACLBindingRules().List(nil)
	must.NoError(t, err)
	for _, r := range nomadRules {
		add("nomad binding rule", r.AuthMethod)
	}
	slices.Sort(all)
	return all
}

// loggedIn returns a client of Vault as a machine.
func (c cluster) loggedIn(t *testing.T, g join.Grant) *vaultapi.Client { return login(t, c.Vault, g) }

// jwt returns an identity token of a machine.
func jwt(t *testing.T, machine *vaultapi.Client, role string) string {
	t.Helper()
	secret, err := machine.Logical().Read("identity/oidc/token/" + role)
	must.NoError(t, err)
	return secret.Data["token"].(string)
}

// Setting up, looking, setting up again, what others changed, two fabrics side by side, the log-ins
// of machines, and taking it all away.
func TestSetup(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	before := c.everything(t)
	settings := c.settings(t, join.Settings{TrustDomain: trustDomain})
	s := setup.New(c.Clients, settings)

	report, err := s.Check(ctx)
	must.NoError(t, err)
	must.Eq(t, len(report.Items), report.Count(setup.Create))
	must.Eq(t, before, c.everything(t), must.Sprint("a check writes nothing"))

	var written []string
	told := func(i setup.Item) { written = append(written, i.String()) }
	// An interruption in the middle, and again.
	interrupted, cancel := context.WithCancel(ctx)
	err = s.Apply(interrupted, func(i setup.Item) {
		told(i)
		if len(written) == 7 {
			cancel()
		}
	})
	must.ErrorIs(t, err, context.Canceled)
	must.NoError(t, s.Apply(ctx, told))
	must.Len(t, len(report.Items)-1, written) // there are no roles of nodes yet

	well := func() {
		t.Helper()
		report, err := s.Check(ctx)
		must.NoError(t, err)
		for _, i := range report.Items {
			must.Eq(t, setup.Well, i.State, must.Sprint(i, i.Differences))
		}
		written = nil
		must.NoError(t, s.Apply(ctx, told))
		must.SliceEmpty(t, written)
	}
	well()

	// A second look needs no options: the settings are in Vault. The address by which another
	// operator reaches Vault replaces nothing.
	must.Eq(t, settings, c.settings(t, join.Settings{}))
	elsewhere, _, err := setup.Discover(ctx, c.Clients, join.Settings{}, join.Settings{Vault: join.VaultSettings{Address: "http://tunnel:8200", CA: "x"}})
	must.NoError(t, err)
	must.Eq(t, settings, elsewhere)

	// What others changed is shown, and put back.
	_, err = c.Vault.Logical().Write("sif-pki/roles/workload", map[string]any{"allow_any_name": true, "allowed_uri_sans": "*"})
	must.NoError(t, err)
	role, _, err := c.Consul.ACL().RoleReadByName("sif-node", nil)
	must.NoError(t, err)
	role.Policies = append(role.Policies, &consulapi.ACLRolePolicyLink{Name: "sif-controller"})
	_, _, err = c.Consul.ACL().RoleUpdate(role, nil)
	must.NoError(t, err)
	_, err = c.Nomad.ACLPolicies().Delete("sif-controller", nil)
	must.NoError(t, err)
	report, err = s.Check(ctx)
	must.NoError(t, err)
	must.Eq(t, 2, report.Count(setup.Change))
	must.Eq(t, 1, report.Count(setup.Create))
	must.NoError(t, s.Apply(ctx, told))
	must.Eq(t, []string{`Vault PKI role "sif-pki/roles/workload"`, `Consul role "sif-node"`, `Nomad policy "sif-controller"`}, written)
	well()

	// Another life of certificates is that of nodes that exist, too; nothing else of them changes.
	_, err = setup.CreateNode(ctx, c.Vault, settings, setup.Machine{ID: fabric.NodeID{Zone: "aws1", Name: "old"}, Kinds: []join.Kind{join.Workload}})
	must.NoError(t, err)
	well()
	const nodeRole = "sif-pki/roles/node-aws1--old"
	roleBefore, err := c.Vault.Logical().Read(nodeRole)
	must.NoError(t, err)
	must.NoError(t, setup.New(c.Clients, c.settings(t, join.Settings{CertTTL: time.Minute})).Apply(ctx, told))
	must.SliceContains(t, written, `Vault PKI roles "sif-pki/roles/node-*"`)
	roleAfter, err := c.Vault.Logical().Read(nodeRole)
	must.NoError(t, err)
	for field, value := range map[string]string{"ttl": "60", "max_ttl": "60", "not_before_duration": "6"} {
		must.Eq(t, any(json.Number(value)), roleAfter.Data[field], must.Sprint(field))
		delete(roleBefore.Data, field)
		delete(roleAfter.Data, field)
	}
	must.Eq(t, roleBefore.Data, roleAfter.Data)
	must.NoError(t, s.Apply(ctx, told))
	well()
	short := settings
	short.CertTTL = 59 * time.Second
	must.ErrorContains(t, setup.Check(short), "59s is outside 1m0s to 72h0m0s")

	t.Run("names of others", func(t *testing.T) {
		_, err := setup.New(c.Clients, c.settings(t, join.Settings{Fabric: "other", TrustDomain: trustDomain})).Check(ctx)
		must.NoError(t, err)
		err = setup.New(c.Clients, c.settings(t, join.Settings{Fabric: "other", TrustDomain: trustDomain})).Apply(ctx, told)
		must.ErrorContains(t, err, `Vault pki mount "sif-pki" exists already, and it belongs to fabric "sif": use another name (-pki-mount)`)
		must.ErrorContains(t, err, `Consul policy "sif-node" exists already`)
		well()
		// Neither is anything of them taken away by who forgets the prefix of another fabric.
		other := setup.New(c.Clients, c.settings(t, join.Settings{Fabric: "other", TrustDomain: trustDomain}))
		report, err := other.CheckDestroy(ctx)
		must.NoError(t, err)
		for _, i := range report.Items {
			must.NotEq(t, setup.Delete, i.State, must.Sprint(i))
		}
		_, _, err = c.Consul.ACL().PolicyCreate(&consulapi.ACLPolicy{Name: "green-node", Description: "somebody's"}, nil)
		must.NoError(t, err)
		err = setup.New(c.Clients, c.settings(t, join.Settings{Fabric: "green", Prefix: "green", TrustDomain: trustDomain})).Apply(ctx, told)
		must.EqError(t, err, `Consul policy "green-node" exists already, and it is not one of a fabric's: use another name (-prefix)`)
		p, _, err := c.Consul.ACL().PolicyReadByName("green-node", nil)
		must.NoError(t, err)
		_, err = c.Consul.ACL().PolicyDelete(p.ID, nil)
		must.NoError(t, err)
	})

	// Another fabric beside it.
	blue := c.settings(t, join.Settings{Fabric: "blue", Prefix: "blue", TrustDomain: "blue.test"})
	must.Eq(t, "blue-pki", blue.Vault.PKIMount)
	must.NoError(t, setup.New(c.Clients, blue).Apply(ctx, told))
	well()

	node := func(s join.Settings, name string, kinds ...join.Kind) join.Grant {
		g, err := setup.CreateNode(ctx, c.Vault, s, setup.Machine{ID: fabric.NodeID{Zone: "aws1", Name: name}, Kinds: kinds})
		must.NoError(t, err)
		return g
	}
	controller, w1, foreign := node(settings, "c1", join.Controller), node(settings, "w1", join.Workload), node(blue, "w1", join.Controller)

	t.Run("log-ins", func(t *testing.T) {
		atConsul := func(s join.Settings, jwt string) (*consulapi.ACLToken, error) {
			token, _, err := c.consulClient(t, "").ACL().Login(&consulapi.ACLLoginParams{AuthMethod: s.Consul.AuthMethod, BearerToken: jwt}, nil)
			return token, err
		}
		atNomad := func(s join.Settings, jwt string) (*nomadapi.ACLToken, error) {
			token, _, err := c.nomadClient(t, "").ACLAuth().Login(&nomadapi.ACLLoginRequest{AuthMethodName: s.Nomad.AuthMethod, LoginToken: jwt}, nil)
			return token, err
		}
		roles := func(token *consulapi.ACLToken) (names []string) {
			for _, r := range token.Roles {
				names = append(names, r.Name)
			}
			slices.Sort(names)
			return names
		}
		asController, asNode := c.loggedIn(t, controller), c.loggedIn(t, w1)
		token, err := atConsul(settings, jwt(t, asNode, "sif-consul"))
		must.NoError(t, err)
		must.Eq(t, []string{"sif-node"}, roles(token))
		must.NotNil(t, token.ExpirationTime)
		token, err = atConsul(settings, jwt(t, asController, "sif-consul"))
		must.NoError(t, err)
		must.Eq(t, []string{"sif-controller"}, roles(token))
		token, err = atConsul(settings, jwt(t, c.loggedIn(t, node(settings, "cw1", join.Controller, join.Workload)), "sif-consul"))
		must.NoError(t, err)
		must.Eq(t, []string{"sif-controller", "sif-node"}, roles(token))
		_, err = c.consulClient(t, token.SecretID).KV().Put(&consulapi.KVPair{Key: "sif/v1/leader"}, nil)
		must.NoError(t, err, must.Sprint("the node's rights take none of the controller's away"))
		nomadToken, err := atNomad(settings, jwt(t, asController, "sif-nomad"))
		must.NoError(t, err)
		must.Eq(t, []string{"sif-controller"}, nomadToken.Policies)
		must.Eq(t, "client", nomadToken.Type)

		// Neither accepts what is for the other, for another fabric, or what a node must not have.
		_, err = atNomad(settings, jwt(t, asController, "sif-consul"))
		must.ErrorContains(t, err, "audience")
		_, err = atConsul(settings, jwt(t, asController, "sif-nomad"))
		must.ErrorContains(t, err, "audience")
		_, err = atConsul(settings, jwt(t, c.loggedIn(t, foreign), "blue-consul"))
		must.ErrorContains(t, err, "audience")
		_, err = asNode.Logical().Read("identity/oidc/token/sif-nomad")
		must.ErrorContains(t, err, "permission denied")
		_, err = asNode.Logical().Read("identity/oidc/token/blue-consul")
		must.ErrorContains(t, err, "permission denied")
	})

	t.Run("destroy", func(t *testing.T) {
		blueSetup := setup.New(c.Clients, blue)
		for _, s := range []*setup.Setup{s, blueSetup} {
			report, err := s.CheckDestroy(ctx)
			must.NoError(t, err)
			must.Eq(t, len(report.Items), report.Count(setup.Delete))
			// An interruption in the middle.
			stop := errors.New("stop")
			n := 0
			func() {
				defer func() { must.Eq(t, any(stop), recover()) }()
				_ = s.Destroy(ctx, report, func(setup.Item) {
					if n++; n == 9 {
						panic(stop)
					}
				})
			}()
			if s != blueSetup {
				r, err := blueSetup.Check(ctx)
				must.NoError(t, err)
				must.Eq(t, len(r.Items), r.Count(setup.Well), must.Sprint("the other fabric is whole"))
			}
			report, err = s.CheckDestroy(ctx)
			must.NoError(t, err)
			must.NoError(t, s.Destroy(ctx, report, func(setup.Item) {}))
		}
		must.Eq(t, before, c.everything(t))
	})
}

// Who has no rights learns which are missing, and where.
func TestMissingRights(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	settings := c.settings(t, join.Settings{TrustDomain: trustDomain})
	weak := c
	token, err := c.Vault.Auth().Token().Create(&vaultapi.TokenCreateRequest{Policies: []string{"default"}})
	must.NoError(t, err)
	weak.Vault, err = c.Vault.Clone()
	must.NoError(t, err)
	weak.Vault.SetToken(token.Auth.ClientToken)
	_, err = setup.New(weak.Clients, settings).Check(ctx)
	must.EqError(t, err, `read Vault pki mount "sif-pki": the token of Vault lacks a capability: it needs read on path "sys/mounts" and has deny there`)

	weak = c
	weak.Consul = c.consulClient(t, "")
	_, _, err = setup.Discover(ctx, weak.Clients, join.Settings{}, join.Settings{})
	must.ErrorContains(t, err, `the token is refused by Consul: set CONSUL_HTTP_TOKEN to one with acl = "write"`)
	weak = c
	weak.Nomad = c.nomadClient(t, "")
	_, _, err = setup.Discover(ctx, weak.Clients, join.Settings{}, join.Settings{})
	must.ErrorContains(t, err, `the token is refused by Nomad: set NOMAD_TOKEN to a management token`)
}

// Consul's and Nomad's servers must read Vault's keys.
func TestUnreachableKeys(t *testing.T) {
	c := newCluster(t)
	for _, server := range []string{"Consul", "Nomad"} {
		one := c
		if server == "Consul" {
			one.Nomad = nil
		} else {
			one.Consul = nil
		}
		s, _, err := setup.Discover(t.Context(), one.Clients, join.Settings{TrustDomain: trustDomain, Vault: join.VaultSettings{Address: "http://127.0.0.1:1"}}, join.Settings{})
		must.NoError(t, err)
		err = setup.New(one.Clients, s).Apply(t.Context(), func(setup.Item) {})
		must.ErrorContains(t, err, server+"'s servers cannot read the keys of Vault at http://127.0.0.1:1/v1/identity/oidc/.well-known/keys")
	}
}

// Servers without ACLs work, with a warning.
func TestWithoutACLs(t *testing.T) {
	vault, vaultClient := testhost.Vault(t)
	_, consul := testhost.Consul(t)
	_, nomad := testhost.Nomad(t)
	clients := setup.Clients{Vault: vaultClient, Consul: consul, Nomad: nomad}
	s, warnings, err := setup.Discover(t.Context(), clients, join.Settings{}, join.Settings{Vault: join.VaultSettings{Address: "http://" + vault.Address}})
	must.NoError(t, err)
	must.StrContains(t, strings.Join(warnings, "\n"), "Consul has no ACLs")
	must.StrContains(t, strings.Join(warnings, "\n"), "Nomad has no ACLs")
	must.Eq(t, "", s.Consul.AuthMethod+s.Nomad.AuthMethod)
	must.NoError(t, setup.New(clients, s).Apply(t.Context(), func(setup.Item) {}))
	r, err := setup.New(clients, s).Check(t.Context())
	must.NoError(t, err)
	must.Eq(t, len(r.Items), r.Count(setup.Well))
}
