// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/identity"
	"github.com/sif-project/sif/internal/setup"
)

// managementPolicy is Consul's built-in policy of operators who may do
// everything.
const managementPolicy = "global-management"

// access is what the holder of a token may do. It follows from the names of
// the policies and roles that the token carries in Consul, whose rules do not
// matter here:
//
//	sif-operator          everything
//	sif-read              read every domain, the status and the history
//	sif-read-<domain>     read one domain
//	sif-plan-<domain>     read it and plan changes of it
//	sif-apply-<domain>    read it, plan and apply changes of it
//
// Guardrails and rollbacks concern every domain and are for operators only.
type access struct {
	actor  string // for the audit log: "token " and its accessor
	author string // for the history: that, and what the token is called
	names  map[string]bool
}

const (
	readPolicy  = "sif-read"
	planPolicy  = "sif-plan"
	applyPolicy = "sif-apply"
)

func (a access) has(names ...string) bool {
	return a.names[setup.OperatorPolicy] || a.names[managementPolicy] ||
		slices.ContainsFunc(names, func(n string) bool { return a.names[n] })
}

func (a access) readsAll() bool { return a.has(readPolicy) }

func (a access) reads(domain string) bool {
	return a.readsAll() || a.plans(domain) || a.names[readPolicy+"-"+domain]
}

func (a access) plans(domain string) bool {
	return a.applies(domain) || a.names[planPolicy+"-"+domain]
}

func (a access) applies(domain string) bool { return a.has(applyPolicy + "-" + domain) }

// missing refuses because none of the policies is carried.
func (a access) missing(what string, policies ...string) error {
	return api.Errorf(http.StatusForbidden, api.CodeForbidden, "the %s may not %s: it carries none of the Consul policies or roles %s",
		a.actor, what, strings.Join(append(policies, setup.OperatorPolicy), ", "))
}

// mayOperate refuses all but operators.
func (a access) mayOperate(what string) error {
	if !a.has() {
		return a.missing(what)
	}
	return nil
}

func (a access) mayReadAll(what string) error {
	if !a.readsAll() {
		return a.missing(what, readPolicy)
	}
	return nil
}

// mayChange refuses a request that concerns a domain that the token has no
// say in. What is planned only needs the permission to plan.
func (a access) mayChange(req api.GraphRequest, planned bool) error {
	verb, may, policies := "apply", a.applies, []string{applyPolicy}
	if planned {
		verb, may, policies = "plan", a.plans, []string{planPolicy, applyPolicy}
	}
	for _, domain := range slices.Concat(slices.Sorted(maps.Keys(req.Domains)), req.RemoveDomains) {
		if !may(domain) {
			var wanted []string
			for _, p := range policies {
				wanted = append(wanted, p+"-"+domain)
			}
			return a.missing(fmt.Sprintf("%s changes of domain %q", verb, domain), wanted...)
		}
	}
	if len(req.Guardrails)+len(req.RemoveGuardrails) > 0 {
		return a.mayOperate(verb + " changes of guardrails")
	}
	return nil
}

// visible returns the part of a graph that may be read. Guardrails bind every
// domain, so everybody reads them.
func (a access) visible(g *fabric.Graph) *fabric.Graph {
	if a.readsAll() {
		return g
	}
	part := &fabric.Graph{Domains: map[string]*fabric.Domain{}, Guardrails: g.Guardrails}
	for name, d := range g.Domains {
		if a.reads(name) {
			part.Domains[name] = d
		}
	}
	return part
}

// operator returns what whoever shows a token may do. Consul is asked each
// time, so a revoked token is refused at once.
func (c *Controller) operator(ctx context.Context, r *http.Request) (access, error) {
	token := r.Header.Get(api.TokenHeader)
	if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); token == "" && ok {
		token = bearer
	}
	if token == "" {
		return access{}, api.Errorf(http.StatusUnauthorized, api.CodeForbidden, "this call needs an operator's token: set %s to a Consul ACL token with the policy %s", api.EnvToken, setup.OperatorPolicy)
	}
	self, _, err := c.cfg.Consul().ACL().TokenReadSelf((&consulapi.QueryOptions{Token: token}).WithContext(ctx))
	var answer consulapi.StatusError
	switch {
	case errors.As(err, &answer) && (answer.Code == http.StatusForbidden || answer.Code == http.StatusUnauthorized || answer.Code == http.StatusNotFound):
		return access{}, api.Errorf(http.StatusForbidden, api.CodeForbidden, "Consul does not accept the token: %s", strings.TrimSpace(answer.Body))
	case err != nil:
		return access{}, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "have Consul check the token: %v", err)
	}
	a := access{actor: "token " + self.AccessorID, names: map[string]bool{}}
	a.author = a.actor
	if self.Description != "" {
		a.author += " (" + self.Description + ")"
	}
	known := false
	add := func(name string) {
		a.names[name] = true
		known = known || name == setup.OperatorPolicy || name == managementPolicy || name == readPolicy
		for _, p := range []string{readPolicy, planPolicy, applyPolicy} {
			known = known || strings.HasPrefix(name, p+"-")
		}
	}
	for _, p := range self.Policies {
		add(p.Name)
	}
	for _, l := range self.Roles {
		if l.Name != managementPolicy { // anybody who may write roles can call one so
			add(l.Name)
		}
	}
	if !known {
		return a, a.missing("call this", readPolicy, readPolicy+"-<domain>", planPolicy+"-<domain>", applyPolicy+"-<domain>")
	}
	return a, nil
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
