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

// managementPolicyID is that of Consul's built-in policy of operators who may
// do everything, global-management. Its name can be changed.
const managementPolicyID = "00000000-0000-0000-0000-000000000001"

// rootPolicy is Vault's built-in policy of those who may do everything. Only
// tokens carry it, never entities or groups.
const rootPolicy = "root"

// consulAccess has Consul say what a token carries: its policies, its roles,
// and the policies of its roles. A token reads itself, but not its roles:
// those are read with the controller's own token, which consul has.
func consulAccess(ctx context.Context, consul *consulapi.Client, token string) (access, error) {
	self, _, err := consul.ACL().TokenReadSelf((&consulapi.QueryOptions{Token: token}).WithContext(ctx))
	var answer consulapi.StatusError
	switch {
	case errors.As(err, &answer) && (answer.Code == http.StatusForbidden || answer.Code == http.StatusUnauthorized || answer.Code == http.StatusNotFound):
		return access{}, forbidden("Consul does not accept the token: %s", strings.TrimSpace(answer.Body))
	case err != nil:
		return access{}, unavailable("have Consul check the token: %v", err)
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
			"have Consul say what the roles of the token are, for which the controller's own token needs acl = \"read\": %v", err)
	}
	for _, role := range whole.ExpandedRoles {
		a.names[role.Name] = true
		for _, p := range role.Policies {
			a.names[p.Name] = true
		}
	}
	return a, nil
}

// vaultAccess has Vault say what a token carries: its own policies, and those
// that its entity has by itself and by groups. Vault is asked with that token.
// vault's own is not used: it need not be allowed to look up others.
func vaultAccess(ctx context.Context, vault *vaultapi.Client, token string) (access, error) {
	if strings.ContainsFunc(token, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return access{}, forbidden("the Vault token contains characters that no token has")
	}
	asking, err := vault.Clone()
	if err != nil {
		return access{}, unavailable("have Vault check the token: %v", err)
	}
	asking.SetToken(token)
	secret, err := asking.Auth().Token().LookupSelfWithContext(ctx)
	var answer *vaultapi.ResponseError
	switch {
	case errors.As(err, &answer) && (answer.StatusCode == http.StatusForbidden || answer.StatusCode == http.StatusBadRequest):
		return access{}, forbidden(
			"Vault does not accept the token: it is unknown, expired or revoked, or may not read auth/token/lookup-self, as Vault's policy \"default\" lets it: %s", oneLine(answer.Errors))
	case err != nil:
		return access{}, unavailable("have Vault check the token: %v", err)
	case secret == nil || secret.Data == nil:
		return access{}, unavailable("have Vault check the token: the answer has no data")
	}
	text := func(field string) string { s, _ := secret.Data[field].(string); return s }
	// The same name may mean something else in a namespace of Vault Enterprise
	// that others administer.
	if theirs, ours := strings.Trim(text("namespace_path"), "/"), strings.Trim(vault.Namespace(), "/"); theirs != ours {
		return access{}, forbidden("the token is of Vault's namespace %q; the controller uses %q", theirs, ours)
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

// oneLine makes a message of Vault's errors, which are lists over several
// lines.
func oneLine(errs []string) string {
	return strings.Join(strings.Fields(strings.Join(errs, ", ")), " ")
}
