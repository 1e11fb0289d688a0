// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"unicode"

	consulapi "github.com/hashicorp/consul/api"
	vaultapi "github.com/hashicorp/vault/api"
)

// managementPolicyID is the ID of Consul's built-in policy global-management, which permits
// everything. Its name can be changed.
const managementPolicyID = "00000000-0000-0000-0000-000000000001"

// rootPolicy is Vault's built-in policy that permits everything. Only tokens have it, never
// entities or groups.
const rootPolicy = "root"

// consulAccess asks Consul which policies and roles a token has, and which policies its roles have.
// A token can read itself, but not its roles. These are read with the controller's own token, which
// is that of the client.
func consulAccess(ctx context.Context, consul *consulapi.Client, token string) (access, error) {
	self, _, err := consul.ACL().TokenReadSelf((&consulapi.QueryOptions{Token: token}).WithContext(ctx))
	var answer consulapi.StatusError
	switch {
	case errors.As(err, &answer) && (answer.Code == http.StatusForbidden || answer.Code == http.StatusUnauthorized || answer.Code == http.StatusNotFound):
		return access{}, forbidden("Consul does not accept the token: %s", strings.TrimSpace(answer.Body))
	case err != nil:
		return access{}, unavailable("ask Consul about the token: %v", err)
	}
	a := newAccess("token "+self.AccessorID, self.Description, "Consul policies or roles")
	for _, p := range self.Policies {
		a.names[p.Name] = true
		a.superuser = a.superuser || p.ID == managementPolicyID
	}
	if len(self.Roles) == 0 {
		return a, nil
	}
	whole, _, err := consul.ACL().TokenReadExpanded(self.AccessorID, (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return access{}, unavailable(
			"read the roles of the token from Consul, for which the controller's own token needs acl = \"read\": %v", err)
	}
	for _, role := range whole.ExpandedRoles {
		a.names[role.Name] = true
		for _, p := range role.Policies {
			a.names[p.Name] = true
		}
	}
	return a, nil
}

// vaultAccess asks Vault which policies a token has: its own, and those of its entity and the
// entity's groups. The token looks up itself, so the controller's own token needs no permission to
// look up others.
func vaultAccess(ctx context.Context, vault *vaultapi.Client, token string) (access, error) {
	if strings.ContainsFunc(token, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return access{}, forbidden("the Vault token contains unprintable characters that no token has")
	}
	clone, err := vault.Clone()
	if err != nil {
		return access{}, unavailable("ask Vault about the token: %v", err)
	}
	clone.SetToken(token)
	secret, err := clone.Auth().Token().LookupSelfWithContext(ctx)
	var answer *vaultapi.ResponseError
	switch {
	case errors.As(err, &answer) && (answer.StatusCode == http.StatusForbidden || answer.StatusCode == http.StatusBadRequest):
		return access{}, forbidden(
			"Vault does not accept the token: it is unknown, expired or revoked, or its policies do not permit reading auth/token/lookup-self, as Vault's policy \"default\" does: %s", oneLine(answer.Errors))
	case err != nil:
		return access{}, unavailable("ask Vault about the token: %v", err)
	case secret == nil || secret.Data == nil:
		return access{}, unavailable("ask Vault about the token: the answer has no data")
	}
	text := func(field string) string { s, _ := secret.Data[field].(string); return s }
	// In another namespace of Vault Enterprise, other people may have given a policy the same name.
	if theirs, ours := strings.Trim(text("namespace_path"), "/"), strings.Trim(vault.Namespace(), "/"); theirs != ours {
		return access{}, forbidden("the token is from Vault namespace %q, but the controller uses namespace %q", theirs, ours)
	}
	actor := "vault batch token" // it has no accessor
	switch entity, accessor := text("entity_id"), text("accessor"); {
	case entity != "":
		actor = "vault entity " + entity
	case accessor != "":
		actor = "vault token " + accessor
	}
	a := newAccess(actor, text("display_name"), "Vault policies")
	for _, field := range []string{"policies", "identity_policies"} {
		list, _ := secret.Data[field].([]any)
		for _, v := range list {
			name, _ := v.(string)
			a.names[name] = true
			a.superuser = a.superuser || name == rootPolicy && field == "policies"
		}
	}
	return a, nil
}

// oneLine returns Vault's errors, each of which has several lines, as one line.
func oneLine(errs []string) string {
	return strings.Join(strings.Fields(strings.Join(errs, ", ")), " ")
}
