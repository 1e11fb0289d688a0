// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/identity"
	"github.com/sif-project/sif/internal/setup"
)

// managementPolicy is Consul's built-in policy of operators who may do
// everything.
const managementPolicy = "global-management"

// operator returns who shows a token, if Consul knows the token and it carries
// the policy of operators. Consul is asked each time, so a revoked token is
// refused at once.
func (c *Controller) operator(ctx context.Context, r *http.Request) (string, error) {
	token := r.Header.Get(api.TokenHeader)
	if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); token == "" && ok {
		token = bearer
	}
	if token == "" {
		return "", api.Errorf(http.StatusUnauthorized, api.CodeForbidden, "this call needs an operator's token: set %s to a Consul ACL token with the policy %s", api.EnvToken, setup.OperatorPolicy)
	}
	self, _, err := c.cfg.Consul().ACL().TokenReadSelf((&consulapi.QueryOptions{Token: token}).WithContext(ctx))
	var answer consulapi.StatusError
	switch {
	case errors.As(err, &answer) && (answer.Code == http.StatusForbidden || answer.Code == http.StatusUnauthorized || answer.Code == http.StatusNotFound):
		return "", api.Errorf(http.StatusForbidden, api.CodeForbidden, "Consul does not accept the token: %s", strings.TrimSpace(answer.Body))
	case err != nil:
		return "", api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "have Consul check the token: %v", err)
	}
	carries := slices.ContainsFunc(self.Policies, func(p *consulapi.ACLTokenPolicyLink) bool {
		return p.Name == setup.OperatorPolicy || p.Name == managementPolicy
	}) || slices.ContainsFunc(self.Roles, func(l *consulapi.ACLTokenRoleLink) bool { return l.Name == setup.OperatorPolicy })
	if !carries {
		return "", api.Errorf(http.StatusForbidden, api.CodeForbidden, "the token %s carries neither the policy %s nor the role of that name", self.AccessorID, setup.OperatorPolicy)
	}
	return "token " + self.AccessorID, nil
}

// caller returns which node is at the other end of the connection.
func (c *Controller) caller(r *http.Request) (caller, error) {
	path, leaf, err := identity.Peer(*r.TLS, c.cfg.TrustDomain)
	if err != nil {
		return caller{}, api.Errorf(http.StatusUnauthorized, api.CodeForbidden, "this call needs a node's certificate: %v", err)
	}
	who, err := callerOf(path, leaf)
	if err != nil {
		return caller{}, api.Errorf(http.StatusForbidden, api.CodeForbidden, "%v", err)
	}
	return who, nil
}
