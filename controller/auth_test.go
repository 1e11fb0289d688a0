// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/testhost"
)

func TestAuth(t *testing.T) {
	w := newWorld(t)
	t.Run("permissions", func(t *testing.T) { testPermissions(t, w) })
	t.Run("operators", func(t *testing.T) { testOperators(t, w) })
	t.Run("tokens that are refused", func(t *testing.T) { testRefusedTokens(t, w) })
	t.Run("recorded", func(t *testing.T) { testRecorded(t, w) })
	t.Run("who it was", func(t *testing.T) { testActors(t, w) })
}

// show is a token in the form in which a client sends it.
type show = api.Config

func consulToken(secret string) show { return show{Token: secret} }
func vaultToken(secret string) show  { return show{VaultToken: secret} }

// tokenKinds are the ways to create a token with permissions of given names.
var tokenKinds = map[string]func(t *testing.T, w *world, names []string) show{
	"consul policies": func(t *testing.T, w *world, names []string) show {
		return consulToken(w.consulToken(t, &consulapi.ACLToken{Policies: w.consulPolicies(t, names)}).SecretID)
	},
	"consul roles of these names": func(t *testing.T, w *world, names []string) show {
		token := &consulapi.ACLToken{}
		for _, name := range names {
			token.Roles = append(token.Roles, w.consulRole(t, name, "nothing"))
		}
		return consulToken(w.consulToken(t, token).SecretID)
	},
	"consul roles with these policies": func(t *testing.T, w *world, names []string) show {
		role := w.consulRole(t, "team-"+strings.Join(names, "-"), names...)
		return consulToken(w.consulToken(t, &consulapi.ACLToken{Roles: []*consulapi.ACLTokenRoleLink{role}}).SecretID)
	},
	"consul login": func(t *testing.T, w *world, names []string) show {
		return consulToken(w.consulLogin(t, w.consulRole(t, "login-"+strings.Join(names, "-"), names...)))
	},
	"vault token": func(t *testing.T, w *world, names []string) show {
		return vaultToken(w.vaultToken(t, &vaultapi.TokenCreateRequest{Policies: names}))
	},
	"vault batch token": func(t *testing.T, w *world, names []string) show {
		return vaultToken(w.vaultToken(t, &vaultapi.TokenCreateRequest{Policies: names, Type: "batch"}))
	},
	"vault entity": func(t *testing.T, w *world, names []string) show {
		user, entity := w.vaultUser(t)
		w.vaultWrite(t, "identity/entity/id/"+entity, map[string]any{"policies": names})
		return vaultToken(w.vaultLogin(t, user))
	},
	"vault group": func(t *testing.T, w *world, names []string) show {
		user, entity := w.vaultUser(t)
		w.vaultWrite(t, "identity/group", map[string]any{"name": "group-" + user, "policies": names, "member_entity_ids": []string{entity}})
		return vaultToken(w.vaultLogin(t, user))
	},
}

func testPermissions(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"), testDomain("news"))})
	must.NoError(t, err)
	change := api.GraphRequest{Domains: domains(ported("app", 81))}
	rail := api.GraphRequest{Guardrails: []fabric.Guardrail{{Name: "g", Deny: []fabric.Denial{{From: fabric.Labels{"x": "y"}}}}}}
	binding := api.GraphRequest{Bindings: []fabric.Binding{{Domain: fabric.EveryDomain}}}
	ask := func(c *api.Client, from, to string) error {
		_, err := c.Explain(ctx, api.Question{From: from, To: to, Protocol: fabric.TCP, Port: 80})
		return err
	}
	calls := map[string]func(*api.Client) error{
		"read":         func(c *api.Client) error { _, err := c.Graph(ctx); return err },
		"status":       func(c *api.Client) error { _, err := c.Status(ctx); return err },
		"endpoints":    func(c *api.Client) error { _, err := c.Endpoints(ctx); return err },
		"diff":         func(c *api.Client) error { _, err := c.Diff(ctx, api.DiffRequest{}); return err },
		"plan":         func(c *api.Client) error { _, err := c.Plan(ctx, change); return err },
		"validate":     func(c *api.Client) error { _, err := c.Validate(ctx, change); return err },
		"apply":        func(c *api.Client) error { _, err := c.Apply(ctx, change); return err },
		"plan binding": func(c *api.Client) error { _, err := c.Plan(ctx, binding); return err },
		"binding":      func(c *api.Client) error { _, err := c.Apply(ctx, binding); return err },
		"unbind": func(c *api.Client) error {
			_, err := c.Apply(ctx, api.GraphRequest{RemoveBindings: []string{"*"}})
			return err
		},
		"plan guardrail": func(c *api.Client) error { _, err := c.Plan(ctx, rail); return err },
		"guardrail":      func(c *api.Client) error { _, err := c.Apply(ctx, rail); return err },
		"probe":          func(c *api.Client) error { _, err := c.Probe(ctx, nil); return err },
		"rollback":       func(c *api.Client) error { _, err := c.Rollback(ctx, api.RollbackRequest{Revision: 1}); return err },
		"plan rollback": func(c *api.Client) error {
			_, err := c.Rollback(ctx, api.RollbackRequest{Revision: 1, DryRun: true})
			return err
		},
		"dump": func(c *api.Client) error {
			_, _, err := c.Dumps(ctx, []fabric.NodeID{{Zone: "aws1", Name: "nobody"}})
			if api.IsCode(err, api.CodeNotFound) {
				return nil // the call is permitted, but there is no such node
			}
			return err
		},
		"explain own":  func(c *api.Client) error { return ask(c, "app/proxy", "app/svc") },
		"explain both": func(c *api.Client) error { return ask(c, "app/proxy", "news/svc") },
		"delete other": func(c *api.Client) error { _, err := c.DeleteDomain(ctx, "news"); return err },
	}
	for kind, made := range tokenKinds {
		for _, holder := range []struct {
			names []string
			may   string // calls, separated by commas
			sees  int
		}{
			{[]string{"sif-read"}, "read,endpoints,status,diff,plan rollback,dump,explain own,explain both", 2},
			{[]string{"sif-read-app"}, "read,endpoints,explain own", 1},
			{[]string{"sif-read-app", "sif-plan-news"}, "read,endpoints,explain own,explain both", 2},
			{[]string{"sif-plan-app"}, "read,endpoints,plan,validate,explain own", 1},
			{[]string{"sif-apply-app"}, "read,endpoints,plan,validate,apply,explain own", 1},
			{[]string{"sif-apply-news", "sif-read"}, "read,endpoints,status,diff,plan rollback,delete other,dump,explain own,explain both", 2},
			{[]string{"sif-apply"}, "", 0},
			{[]string{"unrelated"}, "", 0},
		} {
			client := w.clientOf(t, at(c, made(t, w, holder.names)))
			for name, call := range calls {
				what := must.Sprint(kind, holder.names, name)
				may := strings.Contains(","+holder.may+",", ","+name+",")
				switch {
				case may && name == "delete other": // the next token needs the domain
				case may:
					must.NoError(t, call(client), what)
				default:
					e := code(t, api.CodeForbidden, call(client))
					must.Eq(t, http.StatusForbidden, e.Status, what)
					must.StrContains(t, e.Message, "sif-operator", what)
				}
			}
			if holder.sees > 0 {
				g, err := client.Graph(ctx)
				must.NoError(t, err)
				must.MapLen(t, holder.sees, g.Graph.Domains)
				must.Eq(t, holder.sees < 2, g.Partial)
			}
			client.Close() // all holders together would have more connections than one source may
		}
		must.NoError(t, calls["probe"](w.clientOf(t, at(c, made(t, w, []string{"sif-operator"})))), must.Sprint(kind))
	}
	for _, tt := range []struct {
		kind, want string
	}{
		{"consul roles with these policies", "it has none of the Consul policies or roles sif-apply-app, sif-operator"},
		{"vault group", "it has none of the Vault policies sif-apply-app, sif-operator"},
	} {
		e := code(t, api.CodeForbidden, calls["apply"](w.clientOf(t, at(c, tokenKinds[tt.kind](t, w, []string{"sif-plan-app"})))))
		must.StrContains(t, e.Message, `may not apply changes of domain "app": `+tt.want)
	}
}

// at returns the configuration of a client for a controller.
func at(c *running, s show) api.Config {
	s.Address = c.address
	return s
}

// Superusers of Consul and Vault are operators. A token that has only a policy or role of that
// name, or has the policy only through a role or entity, is not.
func testOperators(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	named := []string{"global-management"}
	for name, tt := range map[string]struct {
		token show
		may   bool
	}{
		"global-management":               {consulToken(management), true},
		"a role of its name":              {tokenKinds["consul roles of these names"](t, w, named), false},
		"a role with it":                  {tokenKinds["consul roles with these policies"](t, w, named), false},
		"root":                            {vaultToken(w.vaultRoot.Token()), true},
		"a Vault policy of Consul's name": {tokenKinds["vault token"](t, w, named), false},
		"a Consul policy of Vault's name": {tokenKinds["consul policies"](t, w, []string{"root"}), false},
		"the controller's own in Vault":   {vaultToken(c.cfg.Vault().Token()), false},
		"the controller's own in Consul":  {consulToken(w.tokens.Controller), false},
	} {
		_, err := w.clientOf(t, at(c, tt.token)).Probe(ctx, nil)
		if tt.may {
			must.NoError(t, err, must.Sprint(name))
		} else {
			code(t, api.CodeForbidden, err)
		}
	}
	// The policy that package setup writes into Vault is enough.
	reader := vaultToken(w.vaultToken(t, &vaultapi.TokenCreateRequest{Policies: []string{setup.ReadPolicy}, NoDefaultPolicy: true}))
	_, err := w.clientOf(t, at(c, reader)).Status(ctx)
	must.NoError(t, err)
	// A node's certificate is not accepted instead of an operator's token, nor the other way round.
	_, err = w.node(t, c, "w1").Graph(ctx)
	code(t, api.CodeForbidden, err)
	_, err = c.operator.RegisterNode(ctx, api.NodeRequest{})
	code(t, api.CodeForbidden, err)
}

func testRefusedTokens(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	deleted := w.consulToken(t, &consulapi.ACLToken{Policies: w.consulPolicies(t, []string{"sif-operator"})})
	role := w.consulRole(t, "short-lived", "sif-operator")
	bereft := w.consulToken(t, &consulapi.ACLToken{Roles: []*consulapi.ACLTokenRoleLink{role}})
	revoked := w.vaultToken(t, &vaultapi.TokenCreateRequest{Policies: []string{"sif-operator"}})
	short := w.vaultToken(t, &vaultapi.TokenCreateRequest{Policies: []string{"sif-operator"}, TTL: "1s"})
	shortDeadline := time.Now().Add(1100 * time.Millisecond)
	w.vaultWrite(t, "sys/policies/acl/sif-apply-mute", map[string]any{"policy": "# nothing"})
	user, entity := w.vaultUser(t)
	w.vaultWrite(t, "identity/entity/id/"+entity, map[string]any{"policies": []string{"sif-operator"}})
	left := w.vaultLogin(t, user)

	for name, s := range map[string]show{"deleted": consulToken(deleted.SecretID), "bereft": consulToken(bereft.SecretID), "revoked": vaultToken(revoked), "left": vaultToken(left)} {
		_, err := w.clientOf(t, at(c, s)).Status(ctx)
		must.NoError(t, err, must.Sprint(name))
	}
	_, err := w.consul.ACL().TokenDelete(deleted.AccessorID, nil)
	must.NoError(t, err)
	_, err = w.consul.ACL().RoleDelete(role.ID, nil)
	must.NoError(t, err)
	must.NoError(t, w.vaultRoot.Auth().Token().RevokeTree(revoked))
	w.vaultWrite(t, "identity/entity/id/"+entity, map[string]any{"policies": []string{}})
	time.Sleep(time.Until(shortDeadline))

	for name, tt := range map[string]struct {
		token  show
		status int
		want   string
	}{
		"none":                  {show{}, http.StatusUnauthorized, "set SIF_TOKEN to a Consul ACL token, or SIF_VAULT_TOKEN to a Vault token"},
		"unknown to Consul":     {consulToken("11111111-2222-3333-4444-555555555555"), http.StatusForbidden, "Consul does not accept the token"},
		"a node's":              {consulToken(w.tokens.Nodes[fabric.NodeID{Zone: "aws1", Name: "w1"}]), http.StatusForbidden, "sif-operator"},
		"deleted in Consul":     {consulToken(deleted.SecretID), http.StatusForbidden, "Consul does not accept the token"},
		"its role is gone":      {consulToken(bereft.SecretID), http.StatusForbidden, "none of the Consul policies or roles"},
		"unknown to Vault":      {vaultToken("hvs.nobody"), http.StatusForbidden, "Vault does not accept the token"},
		"revoked in Vault":      {vaultToken(revoked), http.StatusForbidden, "Vault does not accept the token"},
		"expired in Vault":      {vaultToken(short), http.StatusForbidden, "Vault does not accept the token"},
		"its entity lost it":    {vaultToken(left), http.StatusForbidden, "none of the Vault policies"},
		"not for Vault":         {vaultToken("no\u00a0break"), http.StatusForbidden, "characters that no token has"},
		"of the other to Vault": {vaultToken(w.tokens.Operator), http.StatusForbidden, "Vault does not accept the token"},
		"may not look at itself": {vaultToken(w.vaultToken(t, &vaultapi.TokenCreateRequest{Policies: []string{"sif-apply-mute"}, NoDefaultPolicy: true})),
			http.StatusForbidden, "auth/token/lookup-self"},
	} {
		_, err := w.clientOf(t, at(c, tt.token)).Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
		e := code(t, api.CodeForbidden, err)
		must.Eq(t, tt.status, e.Status, must.Sprint(name))
		must.StrContains(t, e.Message, tt.want, must.Sprint(name))
		for _, secret := range []string{tt.token.Token, tt.token.VaultToken} {
			must.True(t, secret == "" || !strings.Contains(e.Message, secret), must.Sprint(name))
		}
	}

	// Both kinds at once are refused, because their permissions may differ.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/v1/status", nil)
	must.NoError(t, err)
	req.Header.Set(api.TokenHeader, w.tokens.Operator)
	req.Header.Set(api.VaultTokenHeader, w.vaultRoot.Token())
	_, err = c.Controller.operator(ctx, req)
	must.Eq(t, http.StatusBadRequest, code(t, api.CodeInvalid, err).Status)
	req.Header.Del(api.TokenHeader)
	req.Header.Set("Authorization", "Bearer "+w.tokens.Operator)
	_, err = c.Controller.operator(ctx, req)
	code(t, api.CodeInvalid, err)
	req.Header.Del(api.VaultTokenHeader)
	_, err = c.Controller.operator(ctx, req)
	must.NoError(t, err)

	// A controller that may not read roles refuses the token, and names the permission that it
	// lacks.
	poor := w.consulClient(t, w.consulToken(t, &consulapi.ACLToken{Policies: w.consulPolicies(t, []string{"nothing"})}).SecretID)
	withRole := tokenKinds["consul roles with these policies"](t, w, []string{"sif-operator"})
	_, err = consulAccess(ctx, poor, withRole.Token)
	e := code(t, api.CodeUnavailable, err)
	must.Eq(t, http.StatusServiceUnavailable, e.Status)
	must.StrContains(t, e.Message, `acl = "read"`)
	nowhere, err := consulapi.NewClient(&consulapi.Config{Address: "127.0.0.1:1"})
	must.NoError(t, err)
	_, err = consulAccess(ctx, nowhere, "x")
	code(t, api.CodeUnavailable, err)
}

// A Vault that does not answer is reported as unavailable, not as a refusal.
func TestVaultIsAway(t *testing.T) {
	_, vault := testhost.Vault(t)
	_, err := vaultAccess(t.Context(), vault, vault.Token())
	must.NoError(t, err)
	must.NoError(t, vault.Sys().Seal())
	unreachable, err := vault.Clone()
	must.NoError(t, err)
	must.NoError(t, unreachable.SetAddress("http://127.0.0.1:1"))
	for _, client := range []*vaultapi.Client{vault, unreachable} {
		client.SetMaxRetries(0)
		_, err = vaultAccess(t.Context(), client, "root")
		must.Eq(t, http.StatusServiceUnavailable, code(t, api.CodeUnavailable, err).Status)
	}
}

// The history and the audit log name the caller, never by the secret.
func testActors(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	consul := w.consulToken(t, &consulapi.ACLToken{Description: "anna\x1b[31m", Policies: w.consulPolicies(t, []string{"sif-operator"})})
	user, entity := w.vaultUser(t)
	w.vaultWrite(t, "identity/entity/id/"+entity, map[string]any{"policies": []string{"sif-operator"}})
	service := w.vaultToken(t, &vaultapi.TokenCreateRequest{Policies: []string{"sif-operator"}, DisplayName: "ci"})
	looked, err := w.vaultRoot.Auth().Token().Lookup(service)
	must.NoError(t, err)
	accessor := looked.Data["accessor"].(string)
	batch := w.vaultToken(t, &vaultapi.TokenCreateRequest{Policies: []string{"sif-operator"}, Type: "batch"})
	for i, tt := range []struct {
		token         show
		actor, author string
	}{
		{consulToken(consul.SecretID), "token " + consul.AccessorID, " (anna[31m)"},
		{vaultToken(w.vaultLogin(t, user)), "vault entity " + entity, " (userpass-" + user + ")"},
		{vaultToken(service), "vault token " + accessor, " (token-ci)"},
		{vaultToken(batch), "vault batch token", " (token)"},
	} {
		_, err := w.clientOf(t, at(c, tt.token)).Apply(ctx, api.GraphRequest{Domains: domains(ported("app", uint16(80+i)))})
		must.NoError(t, err)
		h, err := c.operator.History(ctx)
		must.NoError(t, err)
		must.Eq(t, tt.actor+tt.author, h.Changes[0].Author)
		log, err := os.ReadFile(filepath.Join(c.dir, auditFile))
		must.NoError(t, err)
		lines := auditLines(t, filepath.Join(c.dir, auditFile))
		must.Eq(t, tt.actor, lines[len(lines)-1].Actor)
		for _, secret := range []string{tt.token.Token, tt.token.VaultToken} {
			must.True(t, secret == "" || !strings.Contains(string(log), secret))
		}
	}
}

// consulPolicies creates policies with these names, without rules.
func (w *world) consulPolicies(t *testing.T, names []string) (links []*consulapi.ACLTokenPolicyLink) {
	t.Helper()
	for _, name := range names {
		_, _, err := w.consul.ACL().PolicyCreate(&consulapi.ACLPolicy{Name: name}, nil)
		if err != nil && !strings.Contains(err.Error(), "already exists") {
			t.Fatal(err)
		}
		links = append(links, &consulapi.ACLTokenPolicyLink{Name: name})
	}
	return links
}

// consulRole creates a role, unless one with its name exists.
func (w *world) consulRole(t *testing.T, name string, policies ...string) *consulapi.ACLTokenRoleLink {
	t.Helper()
	role, _, err := w.consul.ACL().RoleReadByName(name, nil)
	must.NoError(t, err)
	if role == nil {
		role, _, err = w.consul.ACL().RoleCreate(&consulapi.ACLRole{Name: name, Policies: w.consulPolicies(t, policies)}, nil)
		must.NoError(t, err)
	}
	return &consulapi.ACLTokenRoleLink{ID: role.ID}
}

func (w *world) consulToken(t *testing.T, token *consulapi.ACLToken) *consulapi.ACLToken {
	t.Helper()
	made, _, err := w.consul.ACL().TokenCreate(token, nil)
	must.NoError(t, err)
	return made
}

// consulLogin logs in with an auth method whose binding rule gives the role.
func (w *world) consulLogin(t *testing.T, role *consulapi.ACLTokenRoleLink) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	must.NoError(t, err)
	method := "jwt-" + rand.Text()
	_, _, err = w.consul.ACL().AuthMethodCreate(&consulapi.ACLAuthMethod{Name: method, Type: "jwt", Config: map[string]any{
		"JWTValidationPubKeys": []string{string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))},
		"BoundAudiences":       []string{"sif"},
	}}, nil)
	must.NoError(t, err)
	made, _, err := w.consul.ACL().RoleRead(role.ID, nil)
	must.NoError(t, err)
	_, _, err = w.consul.ACL().BindingRuleCreate(&consulapi.ACLBindingRule{AuthMethod: method, BindType: consulapi.BindingRuleBindTypeRole, BindName: made.Name}, nil)
	must.NoError(t, err)
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	signed := part(`{"alg":"ES256","typ":"JWT"}`) + "." + part(fmt.Sprintf(`{"sub":"anna","aud":"sif","iss":"test","nbf":%d,"exp":%d}`, time.Now().Add(-time.Hour).Unix(), time.Now().Add(time.Hour).Unix()))
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	must.NoError(t, err)
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	token, _, err := w.consulClient(t, "").ACL().Login(&consulapi.ACLLoginParams{AuthMethod: method, BearerToken: signed + "." + part(string(signature))}, nil)
	must.NoError(t, err)
	return token.SecretID
}

func (w *world) vaultToken(t *testing.T, req *vaultapi.TokenCreateRequest) string {
	t.Helper()
	secret, err := w.vaultRoot.Auth().Token().CreateOrphan(req)
	must.NoError(t, err)
	return secret.Auth.ClientToken
}

func (w *world) vaultWrite(t *testing.T, path string, data map[string]any) *vaultapi.Secret {
	t.Helper()
	secret, err := w.vaultRoot.Logical().WriteWithContext(context.Background(), path, data)
	must.NoError(t, err, must.Sprint(path))
	return secret
}

const vaultPassword = "correct horse"

// vaultUser creates a user who can log in with a password, and the user's entity.
func (w *world) vaultUser(t *testing.T) (user, entity string) {
	t.Helper()
	auths, err := w.vaultRoot.Sys().ListAuth()
	must.NoError(t, err)
	if auths["userpass/"] == nil {
		must.NoError(t, w.vaultRoot.Sys().EnableAuthWithOptions("userpass", &vaultapi.EnableAuthOptions{Type: "userpass"}))
	}
	user = strings.ToLower(rand.Text())
	w.vaultWrite(t, "auth/userpass/users/"+user, map[string]any{"password": vaultPassword})
	secret := w.vaultWrite(t, "auth/userpass/login/"+user, map[string]any{"password": vaultPassword})
	return user, secret.Auth.EntityID
}

func (w *world) vaultLogin(t *testing.T, user string) string {
	t.Helper()
	return w.vaultWrite(t, "auth/userpass/login/"+user, map[string]any{"password": vaultPassword}).Auth.ClientToken
}
