// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/wellknown"
)

// RoleWorkload is the PKI role with which the controller has certificates of workloads signed, for
// any spiffe://<trust domain>/<domain>/<service>.
const RoleWorkload = "workload"

// AppRole contains the credentials with which a daemon logs in to Vault.
type AppRole struct {
	RoleID   string
	SecretID string
}

// VaultResult contains what the daemons need from Vault.
type VaultResult struct {
	CA         string                    // the fabric's root certificate, PEM
	Controller AppRole                   // may sign with the transit key, and have certificates of workloads signed
	Nodes      map[fabric.NodeID]AppRole // may have their own certificate signed, and read the public keys
}

const (
	rootTTL   = 10 * 365 * 24 * time.Hour
	loginTTL  = "1h"  // of Vault tokens, which the daemons renew
	clockSkew = "60s" // how far the clock of a verifier may be behind that of Vault
)

// Vault creates the PKI with its root and roles, the signing key, the policies of operators, and an
// AppRole for the controller and each node. The client's token must be able to mount secrets
// engines and auth methods, and to write policies.
func Vault(ctx context.Context, client *api.Client, spec Spec) (*VaultResult, error) {
	spec, err := spec.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("set up Vault: %w", err)
	}
	v := vault{client: client, spec: spec}
	result, err := v.setUp(ctx)
	if err != nil {
		return nil, fmt.Errorf("set up Vault: %w", err)
	}
	return result, nil
}

// operatorRule permits the token of an operator to look up itself, which the controller asks of it.
// Vault's policy "default" contains the same rule.
var operatorRule = rule("auth/token/lookup-self", "read")

type vault struct {
	client *api.Client
	spec   Spec
}

func (v *vault) setUp(ctx context.Context) (*VaultResult, error) {
	if err := v.mounts(ctx); err != nil {
		return nil, err
	}
	result := &VaultResult{Nodes: map[fabric.NodeID]AppRole{}}
	var err error
	if result.CA, err = v.root(ctx); err != nil {
		return nil, err
	}
	if err := v.roles(ctx); err != nil {
		return nil, err
	}
	for name, rules := range map[string]string{
		OperatorPolicy: operatorRule + v.keysPolicy(), ReadPolicy: operatorRule + v.keysPolicy(), VerifyPolicy: v.keysPolicy(),
	} {
		if err := v.policy(ctx, name, rules); err != nil {
			return nil, err
		}
	}
	if result.Controller, err = v.appRole(ctx, wellknown.ControllerRole, v.controllerPolicy()); err != nil {
		return nil, err
	}
	for _, n := range v.spec.Nodes {
		if result.Nodes[n.NodeID], err = v.appRole(ctx, wellknown.NodeRole(n.Zone, n.Name), v.nodePolicy(n)); err != nil {
			return nil, err
		}
	}
	return result, nil
}

func (v *vault) write(ctx context.Context, path string, data map[string]any) (*api.Secret, error) {
	secret, err := v.client.Logical().WriteWithContext(ctx, path, data)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return secret, nil
}

// mounts creates the mounts, the auth method AppRole and the signing key.
func (v *vault) mounts(ctx context.Context) error {
	mounted, err := v.client.Sys().ListMountsWithContext(ctx)
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	for path, input := range map[string]*api.MountInput{
		v.spec.PKIMount: {
			Type:        "pki",
			Description: "SIF " + v.spec.Fabric + ": identities of nodes and workloads",
			Config:      api.MountConfigInput{MaxLeaseTTL: fmt.Sprintf("%.0fh", rootTTL.Hours())},
		},
		v.spec.TransitMount: {
			Type:        "transit",
			Description: "SIF " + v.spec.Fabric + ": signatures of revisions and admissions",
		},
	} {
		if have, ok := mounted[path+"/"]; ok {
			if have.Type != input.Type {
				return fmt.Errorf("the type of mount %s is %s, expected %s; use another mount", path, have.Type, input.Type)
			}
			continue
		}
		if err := v.client.Sys().MountWithContext(ctx, path, input); err != nil {
			return fmt.Errorf("mount %s: %w", path, err)
		}
	}
	auths, err := v.client.Sys().ListAuthWithContext(ctx)
	if err != nil {
		return fmt.Errorf("list auth methods: %w", err)
	}
	if _, ok := auths["approle/"]; !ok {
		if err := v.client.Sys().EnableAuthWithOptionsWithContext(ctx, "approle", &api.EnableAuthOptions{Type: "approle"}); err != nil {
			return fmt.Errorf("enable AppRole: %w", err)
		}
	}
	// Writing a key that exists changes nothing, without an error, even if the key has another
	// type.
	key := v.spec.TransitMount + "/keys/" + v.spec.TransitKey
	if _, err := v.write(ctx, key, map[string]any{"type": "ed25519"}); err != nil {
		return err
	}
	secret, err := v.client.Logical().ReadWithContext(ctx, key)
	if err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	if secret == nil || secret.Data["type"] != "ed25519" {
		return fmt.Errorf("%s exists but is not an ed25519 key; use another key name", key)
	}
	return nil
}

// root returns the root certificate. It creates one if the mount has none.
func (v *vault) root(ctx context.Context) (string, error) {
	path := v.spec.PKIMount + "/cert/ca"
	secret, err := v.client.Logical().ReadWithContext(ctx, path)
	// Without an issuer, Vault answers with an error or with an empty certificate, depending on its
	// version.
	if rerr, ok := err.(*api.ResponseError); ok && rerr.StatusCode < http.StatusInternalServerError && rerr.StatusCode != http.StatusForbidden {
		err = nil
	}
	if err != nil && !strings.Contains(err.Error(), "no default issuer") {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	if pem := text(secret, "certificate"); pem != "" {
		return pem, nil
	}
	secret, err = v.write(ctx, v.spec.PKIMount+"/root/generate/internal", map[string]any{
		"common_name": "SIF " + v.spec.TrustDomain,
		"issuer_name": "sif",
		"uri_sans":    v.spiffeID(""),
		"key_type":    "ec",
		"key_bits":    256,
		"ttl":         fmt.Sprintf("%.0fh", rootTTL.Hours()),
	})
	if err != nil {
		return "", err
	}
	pem := text(secret, "certificate")
	if pem == "" {
		return "", fmt.Errorf("Vault created a root but returned no certificate")
	}
	return pem, nil
}

// roles writes the PKI roles. Vault replaces a role that exists, so a role of an earlier version
// loses what this version does not permit.
func (v *vault) roles(ctx context.Context) error {
	// Only the controller is called by people and programs that know a host, so only its
	// certificate has names and addresses; its identity is the URI.
	controller := v.role("controller", v.spiffeID(fabric.ControllerSPIFFE))
	controller["allow_ip_sans"] = true
	controller["allow_any_name"] = true
	roles := map[string]map[string]any{
		// The pattern matches the IDs of nodes too. They differ in the organizational unit.
		RoleWorkload:             v.role("service", v.spiffeID("/*/*")),
		wellknown.ControllerRole: controller,
	}
	for _, n := range v.spec.Nodes {
		name, id := wellknown.NodeRole(n.Zone, n.Name), v.spiffeID(n.SPIFFE())
		if err := v.roleIsFree(ctx, name, id, roles[name]); err != nil {
			return err
		}
		roles[name] = v.role(string(n.Kind), id)
	}
	for name, role := range roles {
		if _, err := v.write(ctx, v.spec.PKIMount+"/roles/"+name, role); err != nil {
			return err
		}
	}
	return nil
}

// roleIsFree returns an error if a role of that name, in Vault or among those to be written, is for
// another node: "a-b/c" and "a/b-c" have the same name, and would get each other's certificates.
func (v *vault) roleIsFree(ctx context.Context, name, spiffeID string, planned map[string]any) error {
	path := v.spec.PKIMount + "/roles/" + name
	ids := planned["allowed_uri_sans"]
	if planned == nil {
		secret, err := v.client.Logical().ReadWithContext(ctx, path)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if secret == nil {
			return nil
		}
		ids = secret.Data["allowed_uri_sans"]
	}
	if have := fmt.Sprint(ids); have != fmt.Sprint([]string{spiffeID}) {
		return fmt.Errorf("role %s is for %s, not for %s: give the node another name, or delete the role if that node is gone", path, have, spiffeID)
	}
	return nil
}

func (v *vault) spiffeID(path string) string { return "spiffe://" + v.spec.TrustDomain + path }

// role returns a PKI role for short-lived certificates of clients and servers whose only name is a
// SPIFFE ID.
func (v *vault) role(unit, spiffeID string) map[string]any {
	ttl := fmt.Sprintf("%.0fs", v.spec.CertTTL.Seconds())
	return map[string]any{
		"allowed_uri_sans":    []string{spiffeID},
		"allow_ip_sans":       false,
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
		"not_before_duration": clockSkew,

		"allow_wildcard_certificates": false,
	}
}

// appRole creates an AppRole with a policy of its own, and returns new credentials for it.
func (v *vault) appRole(ctx context.Context, name, policy string) (AppRole, error) {
	policyName := "sif-" + name
	if err := v.policy(ctx, policyName, policy); err != nil {
		return AppRole{}, err
	}
	path := "auth/approle/role/sif-" + name
	if _, err := v.write(ctx, path, map[string]any{
		"token_policies": []string{policyName},
		"token_period":   loginTTL,
	}); err != nil {
		return AppRole{}, err
	}
	id, err := v.client.Logical().ReadWithContext(ctx, path+"/role-id")
	if err != nil {
		return AppRole{}, fmt.Errorf("read %s/role-id: %w", path, err)
	}
	secret, err := v.write(ctx, path+"/secret-id", nil)
	if err != nil {
		return AppRole{}, err
	}
	role := AppRole{RoleID: text(id, "role_id"), SecretID: text(secret, "secret_id")}
	if role.RoleID == "" || role.SecretID == "" {
		return AppRole{}, fmt.Errorf("%s has no role ID or secret ID", path)
	}
	return role, nil
}

func (v *vault) policy(ctx context.Context, name, rules string) error {
	if err := v.client.Sys().PutPolicyWithContext(ctx, name, rules); err != nil {
		return fmt.Errorf("write policy %s: %w", name, err)
	}
	return nil
}

func (v *vault) controllerPolicy() string {
	return v.readPolicy() +
		rule(v.spec.TransitMount+"/sign/"+v.spec.TransitKey, "update") +
		rule(v.spec.PKIMount+"/sign/"+RoleWorkload, "update") +
		rule(v.spec.PKIMount+"/sign/"+wellknown.ControllerRole, "update")
}

func (v *vault) nodePolicy(n Node) string {
	return v.readPolicy() + rule(v.spec.PKIMount+"/sign/"+wellknown.NodeRole(n.Zone, n.Name), "update")
}

// readPolicy permits reading what a daemon needs to verify: the public keys and the certificates of
// the CA.
func (v *vault) readPolicy() string {
	return v.keysPolicy() +
		rule(v.spec.PKIMount+"/cert/*", "read") +
		rule(v.spec.PKIMount+"/issuers", "list") +
		rule(v.spec.PKIMount+"/issuer/*", "read")
}

// keysPolicy permits reading the public keys of the signing key.
func (v *vault) keysPolicy() string {
	return rule(v.spec.TransitMount+"/keys/"+v.spec.TransitKey, "read")
}

func rule(path, capability string) string {
	return fmt.Sprintf("path %q {\n  capabilities = [%q]\n}\n", path, capability)
}

func text(secret *api.Secret, field string) string {
	if secret == nil {
		return ""
	}
	s, _ := secret.Data[field].(string)
	return s
}
