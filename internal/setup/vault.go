// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/wellknown"
)

// RoleWorkload is the PKI role with which the controller has certificates of workloads signed, for
// any spiffe://<trust domain>/<domain>/<service>.
const RoleWorkload = "workload"

// RoleApplication is the PKI role with which the controller has certificates signed that
// applications hold, for the same names.
const RoleApplication = "application"

const (
	rootTTL   = 10 * 365 * 24 * time.Hour
	loginTTL  = time.Hour        // of Vault tokens, at most: a renewal does not need the secret ID
	clockSkew = 60 * time.Second // how far the clock of a verifier may be behind that of Vault
	jwtTTL    = 5 * time.Minute  // of identity tokens, which are used at once
	keyPeriod = 24 * time.Hour   // of the key that signs them
	signing   = "ES256"          // its algorithm
)

type vault struct {
	client   *api.Client
	settings join.Settings

	mine     map[string]bool // the mounts that are there and the fabric's, as last read
	accessor string          // of the AppRole mount, as last read
	owner    string          // of the fabric's identity tokens, as last read
}

func (v *vault) objects() []object {
	s := v.settings.Vault
	v.mine = map[string]bool{}
	list := []object{
		v.mount(s.PKIMount, "pki", "identities of nodes and workloads", "-pki-mount", rootTTL),
		v.root(),
		v.inMount(s.PKIMount, "PKI role", "roles/"+RoleWorkload, v.role("service", v.spiffeID("/*/*"))), // matches nodes' IDs too: they differ in the unit
		v.inMount(s.PKIMount, "PKI role", "roles/"+RoleApplication, v.applicationRole()),
		v.inMount(s.PKIMount, "PKI role", "roles/"+wellknown.ControllerRole, v.controllerRole()),
		v.nodeRoles(),
		v.mount(s.TransitMount, "transit", "signatures of revisions and admissions", "-transit-mount", 0),
		v.inMount(s.TransitMount, "transit key", "keys/"+s.TransitKey, fields{"type": "ed25519"}),
		v.inMount(s.TransitMount, "transit key", "keys/"+wellknown.JWTKey(s.TransitKey), fields{"type": "ecdsa-p256"}),
		v.mount(s.SettingsMount, "kv", "its settings, and the addresses of its controllers", "-settings-mount", 0),
		v.authMount(),
		v.identityKey(),
	}
	// Consul and Nomad have a role and an audience each, so that neither accepts the other's
	// tokens.
	for _, role := range []string{v.settings.Consul.TokenRole, v.settings.Nomad.TokenRole} {
		if role != "" {
			list = append(list, v.identityRole(role, role, v.claims))
		}
	}
	if v.settings.ControllerJob != "" {
		list = append(list, v.jobObjects()...)
	}
	return append(list,
		v.policy(v.nodePolicyName(), "engines and agents", v.nodePolicy),
		v.policy(v.controllerPolicyName(), "controllers", v.controllerPolicy),
		v.policy(v.named(operatorSuffix), "operators", func() string { return operatorRule + v.keysPolicy() + v.nodesPolicy() }),
		v.policy(v.named(readSuffix), "readers", func() string { return operatorRule + v.keysPolicy() }),
		v.policy(v.named(verifySuffix), "who verifies signatures", v.keysPolicy),
	)
}

func (v *vault) named(suffix string) string { return named(v.settings, suffix) }

func (v *vault) nodePolicyName() string       { return v.named(nodeSuffix) }
func (v *vault) controllerPolicyName() string { return v.named(controllerSuffix) }

// read reads a path; nil if there is nothing.
func (v *vault) read(ctx context.Context, path string) (map[string]any, error) {
	secret, err := v.client.Logical().ReadWithContext(ctx, path)
	if err != nil {
		return nil, v.explain(ctx, err, path, "read")
	}
	if secret == nil {
		return nil, nil
	}
	return secret.Data, nil
}

func (v *vault) put(ctx context.Context, path string, data map[string]any) (*api.Secret, error) {
	secret, err := v.client.Logical().WriteWithContext(ctx, path, data)
	if err != nil {
		return nil, v.explain(ctx, err, path, "create and update")
	}
	return secret, nil
}

func (v *vault) drop(ctx context.Context, path string) error {
	if _, err := v.client.Logical().DeleteWithContext(ctx, path); err != nil {
		return v.explain(ctx, err, path, "delete")
	}
	return nil
}

// list lists the keys under a path.
func (v *vault) list(ctx context.Context, path string) ([]string, error) {
	secret, err := v.client.Logical().ListWithContext(ctx, path)
	if err != nil {
		return nil, v.explain(ctx, err, path, "list")
	}
	if secret == nil {
		return nil, nil
	}
	keys, _ := secret.Data["keys"].([]any)
	var names []string
	for _, k := range keys {
		names = append(names, fmt.Sprint(k))
	}
	return names, nil
}

// explain adds to a refusal which capability is missing on which path.
func (v *vault) explain(ctx context.Context, err error, path, needed string) error {
	var r *api.ResponseError
	if !errors.As(err, &r) || r.StatusCode != http.StatusForbidden {
		return err
	}
	has, cerr := v.client.Sys().CapabilitiesSelfWithContext(ctx, path)
	if cerr != nil {
		return fmt.Errorf("the token of Vault is not valid, or may not %s %q: log in again, or use another one: %w", needed, path, err)
	}
	return fmt.Errorf("the token of Vault lacks a capability: it needs %s on path %q and has %s there", needed, path, strings.Join(has, ", "))
}

// mount is a secrets engine.
func (v *vault) mount(path, kind, what, option string, most time.Duration) object {
	want := fields{"type": kind, "description": owned(v.settings.Fabric, what)}
	if most > 0 {
		want["max_lease_ttl"] = int(most.Seconds())
	}
	tuned := func() map[string]any {
		t := map[string]any{"description": want["description"]}
		if most > 0 {
			t["max_lease_ttl"] = fmt.Sprintf("%.0fs", most.Seconds())
		}
		return t
	}
	return object{
		server: Vault, kind: kind + " mount", name: path, option: option,
		want: fixed(want),
		read: func(ctx context.Context) (*found, error) {
			mounts, err := v.client.Sys().ListMountsWithContext(ctx)
			if err != nil {
				return nil, v.explain(ctx, err, "sys/mounts", "read")
			}
			m := mounts[path+"/"]
			v.mine[path] = m != nil && ownerOf(m.Description) == v.settings.Fabric
			if m == nil {
				return nil, nil
			}
			return &found{owner: ownerOf(m.Description), fields: fields{
				"type": m.Type, "description": m.Description, "max_lease_ttl": m.Config.MaxLeaseTTL,
			}}, nil
		},
		write: func(ctx context.Context, _ fields, have *found) error {
			if have != nil {
				_, err := v.put(ctx, "sys/mounts/"+path+"/tune", tuned())
				return err
			}
			_, err := v.put(ctx, "sys/mounts/"+path, map[string]any{"type": kind, "description": want["description"], "config": tuned()})
			return err
		},
		remove: func(ctx context.Context, _ *found) error { return v.drop(ctx, "sys/mounts/"+path) },
	}
}

// authMount is the AppRole method of the fabric's machines. It has a mount of its own, so that who
// makes nodes can make no other logins.
func (v *vault) authMount() object {
	path := v.settings.Vault.AppRoleMount
	return v.authMethod(path, "approle", "log-in of its machines", "-approle-mount", &v.accessor)
}

// authMethod is a way to log in. Its accessor is kept when it is read.
func (v *vault) authMethod(path, kind, what, option string, accessor *string) object {
	want := fields{"type": kind, "description": owned(v.settings.Fabric, what)}
	return object{
		server: Vault, kind: kind + " auth method", name: path, option: option,
		want: fixed(want),
		read: func(ctx context.Context) (*found, error) {
			mounts, err := v.client.Sys().ListAuthWithContext(ctx)
			if err != nil {
				return nil, v.explain(ctx, err, "sys/auth", "read")
			}
			m := mounts[path+"/"]
			*accessor = ""
			if path == v.settings.Vault.AppRoleMount {
				v.owner = v.settings.Fabric
				if m != nil {
					v.owner = ownerOf(m.Description)
				}
			}
			v.mine["auth/"+path] = m != nil && ownerOf(m.Description) == v.settings.Fabric
			if m == nil {
				return nil, nil
			}
			*accessor = m.Accessor
			return &found{owner: ownerOf(m.Description), fields: fields{"type": m.Type, "description": m.Description}}, nil
		},
		write: func(ctx context.Context, want fields, have *found) error {
			if have != nil {
				_, err := v.put(ctx, "sys/auth/"+path+"/tune", map[string]any{"description": want["description"]})
				return err
			}
			_, err := v.put(ctx, "sys/auth/"+path, want)
			return err
		},
		remove: func(ctx context.Context, have *found) error {
			if err := v.forgetEntities(ctx, *accessor); err != nil {
				return err
			}
			return v.drop(ctx, "sys/auth/"+path)
		},
	}
}

// forgetEntities deletes the entities that Vault made of who logged in by an auth method, those of
// machines that were removed included.
func (v *vault) forgetEntities(ctx context.Context, accessor string) error {
	const path = "identity/entity-alias/id"
	secret, err := v.client.Logical().ListWithContext(ctx, path)
	if err != nil {
		return v.explain(ctx, err, path, "list")
	}
	if secret == nil {
		return nil
	}
	aliases, _ := secret.Data["key_info"].(map[string]any)
	for _, a := range aliases {
		alias, _ := a.(map[string]any)
		if alias["mount_accessor"] != accessor {
			continue
		}
		if err := v.drop(ctx, fmt.Sprintf("identity/entity/id/%v", alias["canonical_id"])); err != nil {
			return err
		}
	}
	return nil
}

// inMount is an object of one of the fabric's mounts, with which it goes.
func (v *vault) inMount(mount, kind, path string, want fields) object {
	full := mount + "/" + path
	return object{
		server: Vault, kind: kind, name: full, option: "another mount",
		want: fixed(want),
		read: func(ctx context.Context) (*found, error) {
			if !v.mine[mount] {
				return nil, nil
			}
			data, err := v.read(ctx, full)
			if err != nil || data == nil {
				return nil, err
			}
			return &found{owner: v.settings.Fabric, fields: data}, nil
		},
		write: func(ctx context.Context, want fields, have *found) error {
			if have != nil && kind == "transit key" { // writing it changes nothing, without an error
				return fmt.Errorf("it is not a key of type %v: use another one (-transit-key)", want["type"])
			}
			_, err := v.put(ctx, full, want)
			return err
		},
	}
}

// root is the fabric's root certificate.
func (v *vault) root() object {
	mount := v.settings.Vault.PKIMount
	return object{
		server: Vault, kind: "root certificate", name: mount + "/cert/ca", option: "-pki-mount",
		want: fixed(fields{"certificate": "SIF " + v.settings.TrustDomain + ", EC P-256, 10 years"}),
		read: func(ctx context.Context) (*found, error) {
			if !v.mine[mount] {
				return nil, nil
			}
			data, err := v.read(ctx, mount+"/cert/ca")
			var r *api.ResponseError
			// Without an issuer, Vault answers with an error or with an empty certificate,
			// depending on its version.
			if errors.As(err, &r) && r.StatusCode < http.StatusInternalServerError || err != nil && strings.Contains(err.Error(), "no default issuer") {
				err = nil
			}
			if pem, _ := data["certificate"].(string); err != nil || pem == "" {
				return nil, err
			}
			// Another root than the first one is the operator's choice: its rotation.
			return &found{owner: v.settings.Fabric, fields: fields{"certificate": "SIF " + v.settings.TrustDomain + ", EC P-256, 10 years"}}, nil
		},
		write: func(ctx context.Context, _ fields, _ *found) error {
			_, err := v.put(ctx, mount+"/root/generate/internal", map[string]any{
				"common_name": "SIF " + v.settings.TrustDomain, "issuer_name": "sif", "uri_sans": v.spiffeID(""),
				"key_type": "ec", "key_bits": 256, "ttl": fmt.Sprintf("%.0fs", rootTTL.Seconds()),
			})
			return err
		},
	}
}

func (v *vault) spiffeID(path string) string { return "spiffe://" + v.settings.TrustDomain + path }

// backdated is how long before their issue certificates of a life begin: as much as clocks may
// differ, and of short lives only a tenth, so that a renewal at two thirds leaves time.
func backdated(life time.Duration) time.Duration { return min(clockSkew, life/10) }

// role returns a PKI role for short-lived certificates of clients and servers whose only name is a
// SPIFFE ID.
func (v *vault) role(unit, spiffeID string) fields {
	ttl := int(v.settings.CertTTL.Seconds())
	return fields{
		"allowed_uri_sans":    []string{spiffeID},
		"allow_ip_sans":       false,
		"allow_any_name":      false,
		"allow_localhost":     false,
		"require_cn":          false,
		"ou":                  []string{unit},
		"key_type":            "ec",
		"key_bits":            256,
		"key_usage":           []string{"DigitalSignature"},
		"server_flag":         true,
		"client_flag":         true,
		"no_store":            true, // storing takes 100 ms on raft, and the certificates are short-lived
		"ttl":                 ttl,
		"max_ttl":             ttl,
		"not_before_duration": int(backdated(v.settings.CertTTL).Seconds()),

		"allow_wildcard_certificates": false,
	}
}

// applicationRole differs in the life, since applications check no revocation, and in the unit, by
// which nobody takes an application for its node.
func (v *vault) applicationRole() fields {
	role := v.role(fabric.UnitApplication, v.spiffeID("/*/*"))
	ttl := int(min(v.settings.CertTTL, fabric.MaxSVIDLife).Seconds())
	role["ttl"], role["max_ttl"] = ttl, ttl
	return role
}

// controllerRole is the only role that has names and addresses, because only the controller is
// called by people and programs that know a host; its identity is the URI.
func (v *vault) controllerRole() fields {
	role := v.role("controller", v.spiffeID(fabric.ControllerSPIFFE))
	role["allow_ip_sans"] = true
	role["allow_any_name"] = true
	return role
}

// identityKey signs the tokens that machines show to Consul and Nomad.
func (v *vault) identityKey() object {
	name := v.settings.Prefix
	path := "identity/oidc/key/" + name
	var audiences []string
	for _, role := range []string{v.settings.Consul.TokenRole, v.settings.Nomad.TokenRole} {
		if role != "" {
			audiences = append(audiences, role)
		}
	}
	if audiences == nil { // neither has ACLs
		audiences = []string{name + "-none"}
	}
	return object{
		server: Vault, kind: "identity token key", name: name, option: "-prefix",
		want: fixed(fields{
			"algorithm": signing, "allowed_client_ids": audiences,
			"rotation_period": int(keyPeriod.Seconds()), "verification_ttl": int(keyPeriod.Seconds()),
		}),
		read: func(ctx context.Context) (*found, error) {
			data, err := v.read(ctx, path)
			if err != nil || data == nil {
				return nil, err
			}
			f := &found{fields: data}
			// It carries no description. That it is a fabric's follows from the audiences, which
			// other keys have from Vault at random, and which one's from the mount of the log-in.
			ids, _ := data["allowed_client_ids"].([]any)
			for _, id := range ids {
				if strings.HasPrefix(fmt.Sprint(id), name+"-") {
					f.owner = v.owner
				}
			}
			return f, nil
		},
		write:  func(ctx context.Context, want fields, _ *found) error { _, err := v.put(ctx, path, want); return err },
		remove: func(ctx context.Context, _ *found) error { return v.drop(ctx, path) },
	}
}

// identityRole makes tokens that say which machine shows them. Its client ID, the audience, is its
// name.
func (v *vault) identityRole(name, audience string, claims func() string) object {
	path := "identity/oidc/role/" + name
	return object{
		server: Vault, kind: "identity token role", name: name, option: "-prefix",
		want: func(context.Context) (fields, error) {
			return fields{"key": v.settings.Prefix, "client_id": audience, "ttl": int(jwtTTL.Seconds()), "template": claims()}, nil
		},
		read: func(ctx context.Context) (*found, error) {
			data, err := v.read(ctx, path)
			if err != nil || data == nil {
				return nil, err
			}
			f := &found{fields: data}
			if data["client_id"] == audience && data["key"] == v.settings.Prefix {
				f.owner = v.owner
			}
			return f, nil
		},
		write:  func(ctx context.Context, want fields, _ *found) error { _, err := v.put(ctx, path, want); return err },
		remove: func(ctx context.Context, _ *found) error { return v.drop(ctx, path) },
	}
}

// claims is the template of an identity token. Vault needs the blanks between closing braces.
func (v *vault) claims() string {
	var list []string
	for _, name := range claimNames {
		list = append(list, fmt.Sprintf(`%q: {{%s}}`, name, v.meta(name)))
	}
	return `{"sif": {` + strings.Join(list, ", ") + ` } }`
}

// meta names, in templates of Vault, what `sif node create` said of a machine. It comes with the
// secret ID, so that nobody needs the right to write identities.
func (v *vault) meta(name string) string {
	accessor := v.accessor
	if accessor == "" { // before the mount exists
		accessor = "<accessor of " + v.settings.Vault.AppRoleMount + ">"
	}
	return "identity.entity.aliases." + accessor + ".metadata." + name
}

// policy is an ACL policy. Its first line is a comment that says whose it is.
func (v *vault) policy(name, whose string, rules func() string) object {
	path := "sys/policies/acl/" + name
	return object{
		server: Vault, kind: "policy", name: name, option: "-prefix",
		want: func(context.Context) (fields, error) {
			return fields{"policy": "# " + owned(v.settings.Fabric, whose) + "\n" + rules()}, nil
		},
		read: func(ctx context.Context) (*found, error) {
			data, err := v.read(ctx, path)
			if err != nil || data == nil {
				return nil, err
			}
			text, _ := data["policy"].(string)
			return &found{owner: ownerOf(strings.TrimPrefix(text, "# ")), fields: fields{"policy": text}}, nil
		},
		write:  func(ctx context.Context, want fields, _ *found) error { _, err := v.put(ctx, path, want); return err },
		remove: func(ctx context.Context, _ *found) error { return v.drop(ctx, path) },
	}
}

// settingsObject is the settings themselves.
func (v *vault) settingsObject() object {
	var want fields
	text, err := json.Marshal(v.settings)
	if err == nil {
		err = json.Unmarshal(text, &want)
	}
	o := v.inMount(v.settings.Vault.SettingsMount, "settings", strings.TrimPrefix(v.settings.Vault.SettingsPath(), v.settings.Vault.SettingsMount+"/"), want)
	o.want = func(context.Context) (fields, error) { return want, err }
	return o
}

// operatorRule permits the token of an operator to look up itself, which the controller asks of it.
// Vault's policy "default" contains the same rule.
var operatorRule = rule("auth/token/lookup-self", "read")

func (v *vault) controllerPolicy() string {
	s := v.settings.Vault
	return v.readPolicy() + v.tokenPolicy(v.settings.Consul.TokenRole) + v.tokenPolicy(v.settings.Nomad.TokenRole) + v.signPolicy() +
		rule(s.ControllerPath(fabric.NodeID{Zone: "{{" + v.meta(metaZone) + "}}", Name: "{{" + v.meta(metaNode) + "}}"}), "create", "read", "update", "delete")
}

// signPolicy permits what a controller has signed: statements of the fabric, and certificates of
// workloads and of controllers; and to have Vault list certificates as revoked.
func (v *vault) signPolicy() string {
	s := v.settings.Vault
	return rule(s.TransitMount+"/sign/"+s.TransitKey, "update") +
		rule(s.TransitMount+"/sign/"+wellknown.JWTKey(s.TransitKey), "update") +
		signRule(s.PKIMount+"/sign/"+RoleWorkload) +
		signRule(s.PKIMount+"/sign/"+RoleApplication) +
		signRule(s.PKIMount+"/sign/"+wellknown.ControllerRole) +
		rule(s.PKIMount+"/revoke", "update")
}

func (v *vault) nodePolicy() string {
	return v.readPolicy() + v.tokenPolicy(v.settings.Consul.TokenRole) +
		signRule(v.settings.Vault.PKIMount+"/sign/"+wellknown.NodeRole("{{"+v.meta(metaZone)+"}}", "{{"+v.meta(metaNode)+"}}"))
}

// readPolicy permits reading what a daemon needs to verify, and what a machine needs to know: the
// public keys, the certificates of the CA, and the settings.
func (v *vault) readPolicy() string {
	s := v.settings.Vault
	return v.keysPolicy() +
		rule(s.TransitMount+"/keys/"+wellknown.JWTKey(s.TransitKey), "read") +
		rule(s.PKIMount+"/cert/*", "read") +
		rule(s.PKIMount+"/issuers", "list") +
		rule(s.PKIMount+"/issuer/*", "read") +
		rule(s.SettingsPath(), "read")
}

// tokenPolicy permits getting identity tokens.
func (v *vault) tokenPolicy(role string) string {
	if role == "" {
		return ""
	}
	return rule("identity/oidc/token/"+role, "read")
}

// keysPolicy permits reading the public keys of the signing key.
func (v *vault) keysPolicy() string {
	return rule(v.settings.Vault.TransitMount+"/keys/"+v.settings.Vault.TransitKey, "read")
}

// nodesPolicy permits making and removing nodes: their PKI roles, AppRoles and secret IDs. The
// AppRoles can have no policies but the fabric's, so it gives no rights beyond the fabric.
func (v *vault) nodesPolicy() string {
	s := v.settings.Vault
	roles := "auth/" + s.AppRoleMount + "/role"
	return rule(s.SettingsPath(), "read") +
		rule(s.ControllersPath(), "list") +
		rule(s.ControllersPath()+"/*", "read", "delete") +
		rule(s.PKIMount+"/cert/ca", "read") +
		rule(s.PKIMount+"/roles/node-*", "create", "read", "update", "delete") +
		rule(roles, "list") +
		fmt.Sprintf(`path "%s/+" {
  capabilities = ["create", "read", "update", "delete"]
  allowed_parameters = {
    "token_policies" = [%q, %q, %q]
    "*" = []
  }
  denied_parameters = {
    "policies" = []
  }
}
`, roles, v.nodePolicyName(), v.controllerPolicyName(), v.controllerPolicyName()+","+v.nodePolicyName()) +
		rule(roles+"/+/role-id", "read") +
		rule(roles+"/+/secret-id", "create", "update", "list") +
		rule(roles+"/+/secret-id-accessor/lookup", "create", "update") +
		rule(roles+"/+/secret-id-accessor/destroy", "create", "update") +
		rule("sys/wrapping/wrap", "create", "update")
}

func rule(path string, capabilities ...string) string {
	return fmt.Sprintf("path %q {\n  capabilities = [\"%s\"]\n}\n", path, strings.Join(capabilities, `", "`))
}

// signRule permits having certificates signed with the life that the role gives them: a role bounds
// ttl, but not the times themselves.
func signRule(path string) string {
	return fmt.Sprintf(`path %q {
  capabilities = ["update"]
  denied_parameters = {
    "not_after"  = []
    "not_before" = []
  }
}
`, path)
}

// lived returns the fields by which the tokens of a role live for loginTTL.
func lived(f fields) fields {
	f["token_period"], f["token_ttl"], f["token_max_ttl"] = 0, int(loginTTL.Seconds()), int(loginTTL.Seconds())
	return f
}

func fixed(f fields) func(context.Context) (fields, error) {
	return func(context.Context) (fields, error) { return f, nil }
}

func text(secret *api.Secret, field string) string {
	if secret == nil {
		return ""
	}
	s, _ := secret.Data[field].(string)
	return s
}
