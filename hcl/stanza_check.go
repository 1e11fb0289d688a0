// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	hcl2 "github.com/hashicorp/hcl/v2"

	"github.com/sif-project/sif/fabric"
)

// Applied is the graph in force, as far as the user may read it.
type Applied struct {
	Graph   *fabric.Graph
	Partial bool             // Graph lacks domains that the user may not read
	Waiting []fabric.Waiting // contracts of Graph that wait for consent
}

// hides reports whether the domain may exist although it is not in Graph.
func (a Applied) hides(domain string) bool { return a.Partial && a.Graph.Domains[domain] == nil }

// Check reports what prevents a stanza, whose group is attested as w, from getting its roles under
// the graph in force at now. What w does not name, such as the node, is known only when Nomad has
// placed an instance; so are the texts of its services that are in later. Errors: the graph lacks a
// service or contract, the service does not select w, or the service does not have a role. Warnings
// are about what the owners of a domain can fix without a change of the job, a contract that has
// expired or waits for consent, and about what depends on the placement. What the user may not read
// is not checked, which is a warning too.
func (s Stanza) Check(a Applied, w fabric.Workload, later map[string]bool, now time.Time) Diagnostics {
	c := &checker{Applied: a}
	if service, ok := c.selected(s, w, later); ok {
		if refused := c.Graph.RefusedPorts(service.Domain, w.StaticPorts); len(refused) > 0 {
			c.report(s.block, "Ask the operators of the fabric for a wider binding, or correct the job.",
				"no binding lets domain %q publish port %s of a node", service.Domain, fabric.JoinPorts(refused))
		}
		requested := slices.Concat(c.roles(service, s.originate, "originator"), c.roles(service, s.respond, "responder"))
		c.dormant(requested, now)
	}
	return newDiagnostics(c.diags, s.source)
}

// checker checks one stanza.
type checker struct {
	Applied
	diags hcl2.Diagnostics
}

func (c *checker) report(r hcl2.Range, detail, format string, args ...any) {
	c.diags = append(c.diags, errorAt(r, detail, format, args...))
}

func (c *checker) warn(r hcl2.Range, detail, format string, args ...any) {
	c.diags = append(c.diags, warningAt(r, detail, format, args...))
}

// unseen warns of something that cannot be checked.
func (c *checker) unseen(r hcl2.Range, format string, args ...any) {
	c.warn(r, "The controller checks it when the workload starts. To check it here, use a token that may read the domain.", format, args...)
}

// couldBe reports whether a consul selector matches a service, or will when the texts in later are
// known.
func couldBe(s fabric.Selector, have fabric.WorkloadService, later map[string]bool) bool {
	for _, tag := range s.Tags {
		if !slices.Contains(have.Tags, tag) && !slices.ContainsFunc(have.Tags, func(t string) bool { return later[t] }) {
			return false
		}
	}
	for key, value := range s.Meta {
		if got := have.Meta[key]; got != value && !later[got] {
			return false
		}
	}
	return s.Service == have.Name || later[have.Name]
}

const placedLater = "The controller compares the selectors when Nomad has placed an instance."

// unplaced returns a graph whose selectors match everything that they could match when an instance
// of w is placed.
func unplaced(g *fabric.Graph, w fabric.Workload, later map[string]bool) *fabric.Graph {
	loose := *g
	loose.Domains = make(map[string]*fabric.Domain, len(g.Domains))
	for name, d := range g.Domains {
		domain := *d
		domain.Services = slices.Clone(d.Services)
		for i, service := range domain.Services {
			selectors := slices.Clone(service.Selectors)
			for n := range selectors {
				loosen(&selectors[n], w, later)
			}
			domain.Services[i].Selectors = selectors
		}
		loose.Domains[name] = &domain
	}
	return &loose
}

// loosen removes from a selector what w does not name.
func loosen(s *fabric.Selector, w fabric.Workload, later map[string]bool) {
	for _, f := range []struct {
		want *string
		have string
	}{
		{&s.Region, w.Region}, {&s.Datacenter, w.Datacenter}, {&s.NodeClass, w.NodeClass},
		{&s.NodePool, w.NodePool}, {&s.Zone, w.Zone}, {&s.Node, w.Node},
	} {
		if f.have == "" {
			*f.want = ""
		}
	}
	switch {
	case s.Kind == fabric.SelectConsul && slices.ContainsFunc(w.Services, func(have fabric.WorkloadService) bool { return couldBe(*s, have, later) }):
		*s = fabric.Selector{Kind: fabric.SelectNomad, Namespace: s.Namespace, Job: w.Job, Datacenter: s.Datacenter}
	case s.Kind == fabric.SelectNode && s.NodePool == "": // else it must match the pool that w names
		*s = fabric.Selector{Kind: fabric.SelectNomad, Namespace: w.Namespace, Job: w.Job}
	}
}

// possible returns the services that may select w when an instance of it is placed, and those that
// bindings keep from it wherever that is.
func (c *checker) possible(w fabric.Workload, later map[string]bool) (services []fabric.Ref, barred []fabric.Barred) {
	loose := unplaced(c.Graph, w, later)
	services, barred = loose.Select(w)
	// To which domains it will be bound by its node is not known either.
	loose.Bindings = unplacedBindings(c.Graph.Bindings, w)
	more, _ := loose.Select(w)
	services = append(services, more...)
	slices.SortFunc(services, fabric.CompareRefs)
	services = slices.Compact(services)
	return services, slices.DeleteFunc(barred, func(b fabric.Barred) bool { return slices.Contains(services, b.Service) })
}

// unplacedBindings returns bindings that cover w if they could when an instance of it is placed.
func unplacedBindings(bindings []fabric.Binding, w fabric.Workload) []fabric.Binding {
	loose := slices.Clone(bindings)
	for i := range loose {
		b := &loose[i]
		b.Nodes, b.Nomad = slices.Clone(b.Nodes), slices.Clone(b.Nomad)
		for n := range b.Nodes {
			node := &b.Nodes[n]
			for _, f := range []struct {
				want *string
				have string
			}{{&node.Zone, w.Zone}, {&node.Node, w.Node}, {&node.NodeClass, w.NodeClass}, {&node.NodePool, w.NodePool}} {
				if f.have == "" {
					*f.want = ""
				}
			}
			if *node == (fabric.NodeScope{}) {
				b.Nomad = append(b.Nomad, fabric.NomadScope{Namespace: "*"})
			}
		}
	}
	return loose
}

// selected returns the service of which the group would be an instance.
func (c *checker) selected(s Stanza, w fabric.Workload, later map[string]bool) (fabric.Ref, bool) {
	matches, _ := c.Graph.Select(w)
	possible, barred := c.possible(w, later)
	what := fmt.Sprintf("group %q of job %q in namespace %q", w.Group, w.Job, w.Namespace)
	if s.Service == "" {
		switch {
		case len(matches) == 1 && len(possible) > 1:
			c.warn(s.block, "Name the one that is meant: service = \"domain/service\".",
				"when it is placed, several services may select %s: %s", what, joinRefs(possible))
			return matches[0], true
		case len(matches) == 1:
			return matches[0], true
		case len(matches) == 0 && len(possible) == 0 && len(barred) > 0:
			c.bar(s.block, what, barred)
		case len(matches) == 0 && c.Partial:
			c.unseen(s.block, "no service that the token may read selects %s", what)
		case len(matches) == 0 && len(possible) > 0:
			c.warn(s.block, placedLater, "whether a service selects %s depends on its placement: %s", what, joinRefs(possible))
			return possible[0], len(possible) == 1
		case len(matches) == 0:
			c.report(s.block, "Add a selector to the service in the graph, and apply it.", "no service of the applied graph selects %s", what)
		default:
			c.report(s.block, "Name one of them: service = \"domain/service\".", "several services select %s: %s", what, joinRefs(matches))
		}
		return fabric.Ref{}, false
	}
	ref, err := fabric.ParseRef(s.Service)
	if err != nil {
		return ref, false // ExtractConnectivity has reported it
	}
	if slices.Contains(matches, ref) {
		return ref, true
	}
	if slices.Contains(possible, ref) {
		c.warn(s.service, placedLater, "whether service %q selects %s depends on its placement", ref, what)
		return ref, true
	}
	if i := slices.IndexFunc(barred, func(b fabric.Barred) bool { return b.Service == ref }); i >= 0 {
		c.bar(s.service, what, barred[i:i+1])
		return ref, false
	}
	if c.hides(ref.Domain) {
		c.unseen(s.service, "service %q is not checked: the token may not read domain %q, if there is one", ref, ref.Domain)
		return ref, false
	}
	var known []string
	for _, d := range c.Graph.Domains {
		for _, svc := range d.Services {
			r := fabric.Ref{Domain: d.Name, Name: svc.Name}
			known = append(known, r.String())
			if r != ref {
				continue
			}
			var selectors []string
			for _, sel := range svc.Selectors {
				selectors = append(selectors, sel.String())
			}
			detail := "It has no selectors."
			if len(selectors) > 0 {
				detail = fmt.Sprintf("Its selectors are %s. Correct the graph or the job.", strings.Join(selectors, ", "))
			}
			c.report(s.service, detail, "service %q does not select %s", ref, what)
			return ref, false
		}
	}
	remedy := didYouMean(ref.String(), known)
	if remedy == "" {
		remedy = "Apply a graph that declares it, or correct the name."
	}
	c.report(s.service, remedy, "the applied graph has no service %q", ref)
	return ref, false
}

// bar reports that the domains of services may not have the group, although these select it.
func (c *checker) bar(r hcl2.Range, what string, barred []fabric.Barred) {
	var why []string
	for _, b := range barred {
		why = append(why, fmt.Sprintf("service %q selects it, but %s", b.Service, b.Why))
	}
	c.report(r, "Ask the operators of the fabric for a wider binding, or correct the job.", "no domain may select %s: %s", what, strings.Join(why, "; "))
}

// request is a contract that a stanza names and in which the service has the role.
type request struct {
	name     text
	ref      fabric.Ref
	contract fabric.Contract
}

// roles returns the requests that the graph grants to the service, and reports the others.
func (c *checker) roles(service fabric.Ref, names []text, role string) []request {
	var granted []request
	for _, n := range names {
		ref := fabric.Ref{Domain: service.Domain, Name: n.value}
		if strings.Contains(n.value, "/") {
			var err error
			if ref, err = fabric.ParseRef(n.value); err != nil {
				continue // ExtractConnectivity has reported it
			}
		}
		contracts := map[string]fabric.Contract{}
		if d := c.Graph.Domains[ref.Domain]; d != nil {
			for _, contract := range d.Contracts {
				contracts[contract.Name] = contract
			}
		}
		contract, ok := contracts[ref.Name]
		side := contract.Originators
		if role == "responder" {
			side = contract.Responders
		}
		switch {
		case c.hides(ref.Domain):
			c.unseen(n.rng, "contract %q is not checked: the token may not read domain %q, if there is one", ref, ref.Domain)
		case !ok:
			remedy := didYouMean(ref.Name, slices.Sorted(maps.Keys(contracts)))
			if remedy == "" {
				remedy = "Apply a graph that declares it, or correct the name."
			}
			c.report(n.rng, remedy, "the applied graph has no contract %q", ref)
		case contract.Disabled:
			c.report(n.rng, "Enable it in the graph, or remove it from the stanza.", "contract %q is disabled", ref)
		case !slices.Contains(side, service):
			c.report(n.rng, fmt.Sprintf("Its %ss are %s.", role, joinRefs(side)), "service %q is not among the %ss of contract %q", service, role, ref)
		default:
			granted = append(granted, request{n, ref, contract})
		}
	}
	return granted
}

// dormant warns of requested contracts that allow nothing at now.
func (c *checker) dormant(requested []request, now time.Time) {
	waiting := map[fabric.Ref][]fabric.Ref{}
	for _, w := range c.Waiting {
		waiting[w.Contract] = w.For
	}
	for _, r := range requested {
		if !r.contract.InForce(now) { // it has expired: roles reports disabled contracts
			c.warn(r.name.rng, "It no longer allows anything. Set a later time in the graph, or remove it from the stanza.",
				"contract %q expired at %s", r.ref, r.contract.Expires.Format(time.RFC3339))
		}
		missing, names := map[string][]fabric.Ref{}, map[string][]string{}
		for _, service := range waiting[r.ref] {
			missing[service.Domain] = append(missing[service.Domain], service)
			names[service.Domain] = append(names[service.Domain], service.Name)
		}
		for _, domain := range slices.Sorted(maps.Keys(missing)) {
			c.warn(r.name.rng,
				fmt.Sprintf("Workloads that request it are refused until then. In domain %q, write: accept %q { services = [%s] }.", domain, r.ref, quotedList(names[domain])),
				"contract %q waits until domain %q accepts it for %s", r.ref, domain, joinRefs(missing[domain]))
		}
	}
}

func joinRefs(refs []fabric.Ref) string {
	var list []string
	for _, r := range refs {
		list = append(list, r.String())
	}
	return strings.Join(list, ", ")
}
