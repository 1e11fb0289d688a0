// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/wellknown"
)

// access is what the holder of a token may do. It follows from the names of the token's policies,
// and of its roles in Consul. Their rules do not matter here:
//
//	sif-operator          everything
//	sif-read              read every domain, the status and the history
//	sif-read-<domain>     read one domain
//	sif-plan-<domain>     read it and plan changes of it
//	sif-apply-<domain>    read it, plan and apply changes of it
//
// Guardrails, bindings, links and rollbacks concern every domain and are for operators only.
type access struct {
	actor     string          // for the audit log, for instance "token <accessor>"
	author    string          // for the history: the actor and the name of the token
	by        string          // what the names are of, for messages, for instance "Vault policies"
	superuser bool            // may do everything in Consul or Vault, and therefore here
	names     map[string]bool // of policies and roles, as if the fabric's prefix were the default
	prefix    string          // of the names, for messages; empty: the default
}

// under returns the access in a fabric whose policies have another prefix than the default.
func (a access) under(prefix string) access {
	if prefix == "" || prefix == wellknown.Prefix {
		return a
	}
	names := map[string]bool{}
	for name := range a.names {
		if rest, ours := strings.CutPrefix(name, prefix+"-"); ours {
			names[wellknown.Prefix+"-"+rest] = true
		}
	}
	a.names, a.prefix = names, prefix
	return a
}

// newAccess returns an access without names. tokenName is how people know the token; it may be
// empty.
func newAccess(actor, tokenName, by string) access {
	a := access{actor: actor, author: actor, by: by, names: map[string]bool{}}
	if tokenName = printable(tokenName); tokenName != "" {
		a.author += " (" + tokenName + ")"
	}
	return a
}

// maxTokenName bounds how many characters of a token's name the history contains.
const maxTokenName = 100

// printable returns a name that other people chose without what could confuse logs and terminals.
func printable(s string) string {
	runes := []rune(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s))
	return string(runes[:min(len(runes), maxTokenName)])
}

// has reports whether the token has one of the names, or may do everything.
func (a access) has(names ...string) bool {
	return a.superuser || a.names[setup.OperatorPolicy] || slices.ContainsFunc(names, func(n string) bool { return a.names[n] })
}

// any reports whether the token permits anything.
func (a access) any() bool {
	if a.readsAll() {
		return true
	}
	for name := range a.names {
		for _, p := range []string{setup.ReadPolicy, setup.PlanPolicy, setup.ApplyPolicy} {
			if strings.HasPrefix(name, setup.DomainPolicy(p, "")) {
				return true
			}
		}
	}
	return false
}

func (a access) readsAll() bool { return a.has(setup.ReadPolicy) }

func (a access) reads(domain string) bool {
	return a.readsAll() || a.plans(domain) || a.names[setup.DomainPolicy(setup.ReadPolicy, domain)]
}

func (a access) plans(domain string) bool {
	return a.applies(domain) || a.names[setup.DomainPolicy(setup.PlanPolicy, domain)]
}

func (a access) applies(domain string) bool {
	return a.has(setup.DomainPolicy(setup.ApplyPolicy, domain))
}

// missing returns the refusal of a token that has none of the policies.
func (a access) missing(what string, policies ...string) error {
	policies = append(policies, setup.OperatorPolicy)
	if a.prefix != "" {
		for i, p := range policies {
			policies[i] = a.prefix + strings.TrimPrefix(p, wellknown.Prefix)
		}
	}
	return forbidden("the %s may not %s: it has none of the %s %s", a.actor, what, a.by, strings.Join(policies, ", "))
}

// mayOperate refuses everybody except operators.
func (a access) mayOperate(what string) error {
	if !a.has() {
		return a.missing(what)
	}
	return nil
}

// mayReadAll refuses a token that may not read everything.
func (a access) mayReadAll(what string) error {
	if !a.readsAll() {
		return a.missing(what, setup.ReadPolicy)
	}
	return nil
}

// unreadable returns the refusal of a token that may not read a domain.
func (a access) unreadable(domain string) error {
	return a.missing(fmt.Sprintf("read domain %q", domain), setup.ReadPolicy, setup.DomainPolicy(setup.ReadPolicy, domain))
}

// mayChange refuses a request that changes what the token may not change in the graph in force: a
// domain, what only operators declare, or a label by which a guardrail knows a domain. For a plan,
// the permission to plan is enough.
func (a access) mayChange(g *fabric.Graph, req api.GraphRequest, planned bool) error {
	verb, may, policies := "apply", a.applies, []string{setup.ApplyPolicy}
	if planned {
		verb, may, policies = "plan", a.plans, []string{setup.PlanPolicy, setup.ApplyPolicy}
	}
	for _, domain := range slices.Concat(slices.Sorted(maps.Keys(req.Domains)), req.RemoveDomains) {
		if !may(domain) {
			var wanted []string
			for _, p := range policies {
				wanted = append(wanted, setup.DomainPolicy(p, domain))
			}
			return a.missing(fmt.Sprintf("%s changes of domain %q", verb, domain), wanted...)
		}
	}
	if operatorBlocks(req) {
		return a.mayOperate(verb + " changes of guardrails, bindings and links")
	}
	for _, name := range slices.Sorted(maps.Keys(req.Domains)) {
		if d := req.Domains[name]; d != nil && !a.has() {
			if labels := g.Relabelled(d); len(labels) > 0 {
				return a.mayOperate("change label " + strings.Join(labels, ", label ") + ", which a guardrail names")
			}
		}
	}
	return nil
}

// visible returns the part of a graph that the token may read, and whether that is less than the
// graph. Guardrails, bindings and links apply to every domain, so everybody may read them.
func (a access) visible(g *fabric.Graph) (part *fabric.Graph, partial bool) {
	if a.readsAll() {
		return g, false
	}
	part = &fabric.Graph{Domains: map[string]*fabric.Domain{}, Guardrails: g.Guardrails, Bindings: g.Bindings, Links: g.Links}
	for name, d := range g.Domains {
		if a.reads(name) {
			part.Domains[name] = d
		}
	}
	return part, len(part.Domains) < len(g.Domains)
}

// authTimeout bounds how long the controller asks Consul or Vault about a token.
const authTimeout = 10 * time.Second

// operator returns what the token of a call permits. Consul or Vault is asked each time, so a
// revoked token is refused at once.
func (c *Controller) operator(ctx context.Context, r *http.Request) (access, error) {
	ctx, cancel := context.WithTimeout(ctx, authTimeout)
	defer cancel()
	consul, vault := r.Header.Get(api.TokenHeader), r.Header.Get(api.VaultTokenHeader)
	if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); consul == "" && ok {
		consul = bearer
	}
	var a access
	var err error
	switch {
	case consul == "" && vault == "":
		return access{}, api.Errorf(http.StatusUnauthorized, api.CodeForbidden, "this call needs the token of an operator: set %s to a Consul ACL token, or %s to a Vault token, with the policy %s",
			api.EnvToken, api.EnvVaultToken, setup.OperatorPolicy)
	case consul != "" && vault != "": // their permissions may differ
		return access{}, invalid("the call has a Consul token and a Vault token; send only one of them")
	case consul != "":
		a, err = consulAccess(ctx, c.cfg.Consul(), consul)
	default:
		a, err = vaultAccess(ctx, c.cfg.Vault(), vault)
	}
	a = a.under(c.cfg.PolicyPrefix)
	if err == nil && !a.any() {
		const domain = "<domain>"
		err = a.missing("make this call", setup.ReadPolicy,
			setup.DomainPolicy(setup.ReadPolicy, domain), setup.DomainPolicy(setup.PlanPolicy, domain), setup.DomainPolicy(setup.ApplyPolicy, domain))
	}
	return a, err
}

// caller returns which node is at the other end of the connection, and how many bits its
// certificate grants its pool, if it does. It is asked for each request, so that a node that was
// removed, or whose certificate is revoked, is refused on connections that are open.
func (c *Controller) caller(r *http.Request) (identity.Node, int, error) {
	peer, leaf, err := c.cfg.Identity.Peer(*r.TLS)
	if err != nil {
		return identity.Node{}, 0, api.Errorf(http.StatusUnauthorized, api.CodeForbidden, "this call needs the certificate of a node: %v", err)
	}
	if !peer.IsNode() {
		return identity.Node{}, 0, forbidden("this call needs the certificate of a node, not one of %s", peer)
	}
	list := c.removal.list.List()
	if t, ended := list.Ends(peer.Node.NodeID, leaf.NotBefore); ended {
		return peer.Node, 0, wasRemoved(t, "its certificate is from before that")
	}
	if v, ended := list.RevokedCertificate(identity.Serial(leaf)); ended {
		return peer.Node, 0, api.Errorf(http.StatusForbidden, api.CodeRevoked, "%s; node %s must call with another one", v, peer.Node.NodeID)
	}
	pool, err := identity.NodePrefix(leaf)
	if err != nil {
		return peer.Node, 0, forbidden("the certificate of node %s: %v", peer.Node.NodeID, err)
	}
	return peer.Node, pool, nil
}

// peerCaller refuses everybody who is not another controller.
func (c *Controller) peerCaller(r *http.Request) error {
	who, _, err := c.cfg.Identity.Peer(*r.TLS)
	if err != nil {
		return api.Errorf(http.StatusUnauthorized, api.CodeForbidden, "this call needs the certificate of a controller: %v", err)
	}
	if !who.Controller {
		return forbidden("this call needs the certificate of a controller, not one of %s", who)
	}
	return nil
}
