// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	hcl2 "github.com/hashicorp/hcl/v2"

	"github.com/sif-project/sif/fabric"
)

// Check says what the controller would refuse of a stanza whose group is
// attested as w, under graph g: a service or contract that g lacks, a service
// that does not select w, a role that the service does not have.
func (s Stanza) Check(g *fabric.Graph, w fabric.Workload) Diagnostics {
	var diags hcl2.Diagnostics
	report := func(r hcl2.Range, detail, format string, args ...any) {
		diags = append(diags, errorAt(r, detail, format, args...))
	}
	if service, ok := s.selected(g, w, report); ok {
		s.checkRoles(g, service, s.originate, "originator", report)
		s.checkRoles(g, service, s.respond, "responder", report)
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

func (s Stanza) checkRoles(g *fabric.Graph, service fabric.Ref, names []text, role string, report reporter) {
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
