// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/inspect/verify"
	"github.com/sif-project/sif/internal/wellknown"
)

// declared applies the one rule to a flow and collects the reasons. What the two parties declare
// beyond bindings is among them: it has no effect, or loses it when admissions are renewed.
func declared(f verify.Fabric, from, to api.Party, protocol fabric.Protocol, port uint16) api.Declared {
	d := decided(f, from, to, protocol, port)
	var revoked []api.Reason
	for _, p := range []api.Party{from, to} {
		if p.Revoked != "" {
			revoked = append(revoked, api.Reason{Why: p.Revoked})
		}
	}
	if len(revoked) > 0 {
		if d.Allowed {
			d = api.Declared{} // what the graph allows does not matter
		}
		d.Reasons = append(revoked, d.Reasons...)
	}
	names := []fabric.Ref{from.Service, from.External, to.Service, to.External}
	if to.Outside() {
		names = append(names, called(f.Graph, from, to)...)
	}
	for _, r := range names {
		if r == (fabric.Ref{}) {
			continue
		}
		for _, e := range f.Graph.Excess(r.Domain) {
			reason := api.Reason{Pos: e.Pos, Why: e.Why}
			if (e.Name == "" || e.Name == r.Name) && !slices.Contains(d.Reasons, reason) {
				d.Reasons = append(d.Reasons, reason)
			}
		}
	}
	for _, p := range []api.Party{from, to} {
		if o := p.Origin; o.Attached != "" && !f.Graph.MayAttach(p.Service.Domain, p.Node, o.Consul) {
			d.Reasons = append(d.Reasons, api.Reason{Why: fmt.Sprintf(
				"domain %q has no binding any more with an attach block that names Consul service %q and node %s: %s ends when its admission would be renewed", p.Service.Domain, o.Consul, p.Node, o.Attached)})
		}
	}
	return d
}

func decided(f verify.Fabric, from, to api.Party, protocol fabric.Protocol, port uint16) api.Declared {
	docs := verify.Documents(f.Graph, f.Now)
	no := func(why string) api.Declared { return api.Declared{Reasons: []api.Reason{{Why: why}}} }
	var d api.Declared
	switch none := (fabric.Ref{}); {
	case from.Health() || to.Health():
		return amongNodes(from, to, protocol, port)
	case from.Service == none && from.External == none && !to.Outside():
		return no(fmt.Sprintf("no endpoint or external has address %s", from.Address))
	case from.Service == none && from.External == none:
		return no("both ends are outside the fabric")
	case from.External != none && to.Outside():
		return no("both ends are outside the fabric")
	case to.Outside():
		return outward(f, from, to, docs[from.Service], protocol, port)
	case from.External != none:
		d = fromExternal(from.Address, to.Identity(), docs[to.Service], protocol, port)
	default:
		v := fabric.Decide(from.Identity(), docs[from.Service], to.Identity(), protocol, port)
		d = api.Declared{Allowed: v.Allowed, Audit: v.Audit, Contract: v.Contract}
	}
	if !d.Allowed {
		d.Reasons = against(f, from, to, protocol, port)
		return d
	}
	d.Reasons = []api.Reason{inFavour(f.Graph, d, from, to)}
	return d
}

// amongNodes tells of the built-in exceptions from the rule: nodes exchange probes among their
// health addresses, and the agents of a zone speak to one another at them.
func amongNodes(from, to api.Party, protocol fabric.Protocol, port uint16) api.Declared {
	var d api.Declared
	var why string
	switch probe := protocol == fabric.UDP && port == wellknown.ProbePort; {
	case from.Health() && to.Health() && probe:
		d.Allowed, why = true, "nodes exchange probes among their health addresses"
	case from.Health() && to.Health() && from.Node.Zone == to.Node.Zone && protocol == fabric.TCP && port == wellknown.AgentPort:
		d.Allowed, why = true, "the agents of a zone tell one another of their endpoints at the nodes' health addresses, by mutual TLS, when no engine is there"
	case from.Health() && to.Health():
		why = fmt.Sprintf("health addresses exchange nothing but probes: UDP port %d; and what the agents of one zone tell one another: TCP port %d", wellknown.ProbePort, wellknown.AgentPort)
	case from.Health():
		why = fmt.Sprintf("%s is the health address of node %s, which exchanges probes with other nodes only, never with an endpoint", from.Address, from.Node)
	default:
		why = fmt.Sprintf("%s is the health address of node %s, which exchanges probes with other nodes only, never with an endpoint", to.Address, to.Node)
	}
	d.Reasons = []api.Reason{{Why: why}}
	return d
}

// fromExternal applies the rule to a flow from an address outside the fabric.
func fromExternal(a netip.Addr, to fabric.Identity, doc fabric.Document, protocol fabric.Protocol, port uint16) api.Declared {
	var d api.Declared
	for _, g := range fabric.ExternalGrants(to, doc) {
		within := slices.ContainsFunc(g.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
		opens := slices.ContainsFunc(g.Rules, func(r fabric.Rule) bool { return r.Matches(protocol, port) })
		if within && opens && (!d.Allowed || d.Audit && !g.Audit) {
			d = api.Declared{Allowed: true, Audit: g.Audit, Contract: g.Contract}
		}
	}
	return d
}

func inFavour(g *fabric.Graph, d api.Declared, from, to api.Party) api.Reason {
	r := api.Reason{Contract: d.Contract}
	domain := g.Domains[d.Contract.Domain]
	if d.Contract.Name == fabric.AuditContract {
		r.Pos = domain.Pos
		r.Why = fmt.Sprintf("domain %s is in audit mode: no contract allows the flow, but it passes and is reported", domain.Name)
		return r
	}
	var parts []string
	if d.Audit {
		parts = append(parts, "is in audit mode, so flows pass and are reported")
	} else {
		parts = append(parts, "allows it")
	}
	switch none := (fabric.Ref{}); {
	case to.Service == none:
		parts = append(parts, "the originator requested its role")
	case from.Service == none:
		parts = append(parts, "the responder requested its role")
	default:
		parts = append(parts, "originator and responder requested their roles")
	}
	for _, c := range domain.Contracts {
		if c.Name != d.Contract.Name {
			continue
		}
		r.Pos, r.Expires = c.Pos, c.Expires
		if !c.Expires.IsZero() {
			parts = append(parts, "it expires at "+c.Expires.Format(time.RFC3339))
		}
	}
	for _, p := range []api.Party{from, to} {
		if p.Service.Domain != "" && p.Service.Domain != d.Contract.Domain {
			parts = append(parts, "domain "+p.Service.Domain+" accepts it")
		}
	}
	r.Why = strings.Join(parts, "; ")
	return r
}

// against lists, for each contract between the two parties, why it does not allow the flow.
func against(f verify.Fabric, from, to api.Party, protocol fabric.Protocol, port uint16) []api.Reason {
	waiting := map[fabric.Ref][]fabric.Ref{}
	for _, w := range f.Graph.Waiting() {
		waiting[w.Contract] = w.For
	}
	var holders []fabric.Ref
	if to.Outside() {
		holders = called(f.Graph, from, to)
	}
	names := func(refs []fabric.Ref, p api.Party) bool {
		return slices.ContainsFunc(refs, func(r fabric.Ref) bool {
			return r == p.Service || r == p.External || p.Outside() && slices.Contains(holders, r)
		})
	}
	var domains []string
	for name := range f.Graph.Domains {
		domains = append(domains, name)
	}
	slices.Sort(domains)
	var reasons []api.Reason
	for _, domain := range domains {
		for _, c := range f.Graph.Domains[domain].Contracts {
			r := fabric.Ref{Domain: domain, Name: c.Name}
			opens := slices.ContainsFunc(c.Rules, func(rule fabric.Rule) bool { return rule.Matches(protocol, port) })
			var why []string
			switch {
			case names(c.Originators, from) && names(c.Responders, to):
				why = obstacles(c, r, f.Now, waiting[r], from, to)
				if !opens {
					why = append(why, fmt.Sprintf("it allows %s, not %s", rulesText(c.Rules), flowText(protocol, port)))
				}
				if len(why) == 0 {
					why = append(why, withheld(to))
				}
			case names(c.Originators, to) && names(c.Responders, from) && opens:
				why = []string{"it allows the opposite direction only"}
			default:
				continue
			}
			reasons = append(reasons, api.Reason{Contract: r, Pos: c.Pos, Expires: c.Expires, Why: strings.Join(why, "; ")})
		}
	}
	switch {
	case len(reasons) == 0 && to.Outside() && to.External == (fabric.Ref{}):
		reasons = []api.Reason{{Why: unnamed(from, to)}}
	case len(reasons) == 0:
		reasons = []api.Reason{{Why: fmt.Sprintf("no contract has %s as originator and %s as responder", from.Name(), to.Name())}}
	}
	return reasons
}

func obstacles(c fabric.Contract, r fabric.Ref, now time.Time, waiting []fabric.Ref, from, to api.Party) []string {
	var why []string
	if c.Disabled {
		why = append(why, "it is disabled")
	}
	if !c.Disabled && !c.InForce(now) {
		why = append(why, "it expired at "+c.Expires.Format(time.RFC3339))
	}
	for _, w := range waiting {
		why = append(why, fmt.Sprintf("it waits for domain %s to accept it for %s", w.Domain, w))
	}
	if len(why) > 0 {
		return why // nobody can request a role in it
	}
	if from.Live() && !slices.Contains(from.Roles.Originate, r) {
		why = append(why, fmt.Sprintf("endpoint %s did not request to originate it", from.Endpoint))
	}
	if to.Live() && !slices.Contains(to.Roles.Respond, r) {
		why = append(why, fmt.Sprintf("endpoint %s did not request to respond to it", to.Endpoint))
	}
	return why
}

func rulesText(rules []fabric.Rule) string {
	texts := make([]string, len(rules))
	for i, r := range rules {
		texts[i] = r.String()
	}
	return strings.Join(texts, " ")
}

func flowText(protocol fabric.Protocol, port uint16) string {
	return fmt.Sprintf("%s/%d", protocol, port)
}
