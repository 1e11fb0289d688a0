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

// Check says what keeps a stanza whose group is attested as w from its roles
// under graph g at now. Errors: a service or contract that g lacks, a service
// that does not select w, a role that the service does not have. Warnings, as
// the graph's owners or those of another domain can mend it without the job: a
// contract that has expired or waits for consent.
func (s Stanza) Check(g *fabric.Graph, w fabric.Workload, now time.Time) Diagnostics {
	var diags hcl2.Diagnostics
	report := func(r hcl2.Range, detail, format string, args ...any) {
		diags = append(diags, errorAt(r, detail, format, args...))
	}
	if service, ok := s.selected(g, w, report); ok {
		var requested []request
		requested = append(requested, s.checkRoles(g, service, s.originate, "originator", report)...)
		requested = append(requested, s.checkRoles(g, service, s.respond, "responder", report)...)
		diags = append(diags, dormant(g, requested, now)...)
	}
	return newDiagnostics(diags, s.source)
}

type reporter func(r hcl2.Range, detail, format string, args ...any)

// selected returns the service that the group would be an instance of.
func (s Stanza) selected(g *fabric.Graph, w fabric.Workload, report reporter) (fabric.Ref, bool) {
	matches := g.Select(w)
	what := fmt.Sprintf("group %q of job %q in namespace %q", w.Group, w.Job, w.Namespace)
	if s.Service == "" {
		switch len(matches) {
		case 1:
			return matches[0], true
		case 0:
			report(s.block, "Add a selector to the service in the graph, and apply it.", "no service of the applied graph selects %s", what)
		default:
			report(s.block, "Name one of them: service = \"domain/service\".", "several services select %s: %s", what, joinRefs(matches))
		}
		return fabric.Ref{}, false
	}
	ref, err := fabric.ParseRef(s.Service)
	if err != nil {
		return ref, false // ExtractConnectivity has refused it
	}
	if slices.Contains(matches, ref) {
		return ref, true
	}
	var known []string
	for _, d := range g.Domains {
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
			report(s.service, detail, "service %q does not select %s", ref, what)
			return ref, false
		}
	}
	remedy := didYouMean(ref.String(), known)
	if remedy == "" {
		remedy = "Apply a graph that declares it, or correct the name."
	}
	report(s.service, remedy, "the applied graph has no service %q", ref)
	return ref, false
}

// request is a contract that a stanza names and in which the service has the
// role.
type request struct {
	name     text
	ref      fabric.Ref
	contract fabric.Contract
}

// checkRoles returns the requests that the graph grants the service, and
// reports the others.
func (s Stanza) checkRoles(g *fabric.Graph, service fabric.Ref, names []text, role string, report reporter) []request {
	var granted []request
	for _, n := range names {
		ref := fabric.Ref{Domain: service.Domain, Name: n.value}
		if strings.Contains(n.value, "/") {
			var err error
			if ref, err = fabric.ParseRef(n.value); err != nil {
				continue // ExtractConnectivity has refused it
			}
		}
		contracts := map[string]fabric.Contract{}
		if d := g.Domains[ref.Domain]; d != nil {
			for _, c := range d.Contracts {
				contracts[c.Name] = c
			}
		}
		c, ok := contracts[ref.Name]
		side := c.Originators
		if role == "responder" {
			side = c.Responders
		}
		switch {
		case !ok:
			remedy := didYouMean(ref.Name, slices.Sorted(maps.Keys(contracts)))
			if remedy == "" {
				remedy = "Apply a graph that declares it, or correct the name."
			}
			report(n.rng, remedy, "the applied graph has no contract %q", ref)
		case c.Disabled:
			report(n.rng, "Enable it in the graph, or leave it out.", "contract %q is disabled", ref)
		case !slices.Contains(side, service):
			report(n.rng, fmt.Sprintf("Its %ss are %s.", role, joinRefs(side)), "service %q is not among the %ss of contract %q", service, role, ref)
		default:
			granted = append(granted, request{n, ref, c})
		}
	}
	return granted
}

// dormant warns of requested contracts that allow nothing at now.
func dormant(g *fabric.Graph, requested []request, now time.Time) hcl2.Diagnostics {
	if len(requested) == 0 {
		return nil
	}
	waiting := map[fabric.Ref][]fabric.Ref{}
	for _, w := range g.Waiting() {
		waiting[w.Contract] = w.For
	}
	var diags hcl2.Diagnostics
	for _, r := range requested {
		if !r.contract.InForce(now) { // and not disabled, which is an error
			diags = append(diags, warningAt(r.name.rng, "It allows nothing any more. Set a later time in the graph, or leave it out.",
				"contract %q expired at %s", r.ref, r.contract.Expires.Format(time.RFC3339)))
		}
		missing, names := map[string][]fabric.Ref{}, map[string][]string{}
		for _, service := range waiting[r.ref] {
			missing[service.Domain] = append(missing[service.Domain], service)
			names[service.Domain] = append(names[service.Domain], service.Name)
		}
		for _, domain := range slices.Sorted(maps.Keys(missing)) {
			diags = append(diags, warningAt(r.name.rng,
				fmt.Sprintf("Workloads that request it are refused until then. In domain %q, write: accept %q { services = [%s] }.", domain, r.ref, quotedList(names[domain])),
				"contract %q waits until domain %q accepts it for %s", r.ref, domain, joinRefs(missing[domain])))
		}
	}
	return diags
}

func joinRefs(refs []fabric.Ref) string {
	var list []string
	for _, r := range refs {
		list = append(list, r.String())
	}
	return strings.Join(list, ", ")
}
