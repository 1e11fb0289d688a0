// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/agext/levenshtein"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
)

// maxTried bounds how many selectors an error lists.
const maxTried = 10

// stanza is the connectivity stanza of a job's group, or what the node requests for a workload
// outside Nomad. It can only narrow what the graph gives to a service.
type stanza struct {
	service            string   // "domain/service", "service", or "" for the one that matches
	originate, respond []string // contracts: "domain/contract", or "contract" in the service's domain
}

// stanzaOf decodes the stanza from the group's meta, whose lists are separated by commas or white
// space.
func stanzaOf(meta map[string]string) stanza {
	list := func(s string) []string {
		return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' })
	}
	return stanza{service: strings.TrimSpace(meta[hcl.MetaService]), originate: list(meta[hcl.MetaOriginate]), respond: list(meta[hcl.MetaRespond])}
}

// choose returns the service of a workload: the one whose selectors match its attested properties.
// If several match, the stanza must name one of them.
func choose(g *fabric.Graph, w fabric.Workload, s stanza) (fabric.Ref, error) {
	matched, barred := g.Select(w)
	if s.service == "" {
		switch len(matched) {
		case 0:
			if len(barred) > 0 {
				return fabric.Ref{}, beyond(w, barred)
			}
			return fabric.Ref{}, unmatched(g, w, nil)
		case 1:
			return matched[0], nil
		}
		e := api.Errorf(http.StatusForbidden, api.CodeAmbiguous, "%s matches several services: %s; name one of them as `service` in %s", describe(w), join(matched), requestOf(w))
		e.Details.Services = matched
		return fabric.Ref{}, e
	}
	wants := func(r fabric.Ref) bool { return r.String() == s.service || r.Name == s.service }
	named := slices.DeleteFunc(slices.Clone(matched), func(r fabric.Ref) bool { return !wants(r) })
	switch len(named) {
	case 0:
		barred = slices.DeleteFunc(barred, func(b fabric.Barred) bool { return !wants(b.Service) })
		if len(barred) > 0 {
			return fabric.Ref{}, beyond(w, barred)
		}
		return fabric.Ref{}, unmatchedNamed(g, w, s.service, wants)
	case 1:
		return named[0], nil
	}
	e := api.Errorf(http.StatusForbidden, api.CodeAmbiguous, "%s of %s names service %q, which can be any of %s; write it as <domain>/<service>", requestOf(w), describe(w), s.service, join(named))
	e.Details.Services = named
	return fabric.Ref{}, e
}

// beyond returns the error for a workload that only services select whose domains may not have it.
func beyond(w fabric.Workload, barred []fabric.Barred) error {
	e := api.Errorf(http.StatusForbidden, api.CodeBeyond, "%s is not let in by bindings", describe(w))
	for i, b := range barred {
		separator := "; "
		if i == 0 {
			separator = ": "
		}
		e.Message += fmt.Sprintf("%sservice %s selects it, but %s", separator, b.Service, b.Why)
		e.Details.Services = append(e.Details.Services, b.Service)
	}
	return e
}

// mayPublish refuses a workload of a domain that publishes ports of its node which the domain may
// not publish.
func mayPublish(g *fabric.Graph, w fabric.Workload, service fabric.Ref) error {
	refused := g.RefusedPorts(service.Domain, w.StaticPorts)
	if len(refused) == 0 {
		return nil
	}
	return api.Errorf(http.StatusForbidden, api.CodeBeyond, "%s is not let in: no binding lets domain %q publish port %s of a node", describe(w), service.Domain, fabric.JoinPorts(refused))
}

// unmatchedNamed returns the error for a workload that does not match the service which its stanza
// names.
func unmatchedNamed(g *fabric.Graph, w fabric.Workload, name string, wants func(fabric.Ref) bool) error {
	var candidates []fabric.Ref
	for _, d := range g.Domains {
		for _, s := range d.Services {
			if r := (fabric.Ref{Domain: d.Name, Name: s.Name}); wants(r) {
				candidates = append(candidates, r)
			}
		}
	}
	if len(candidates) == 0 {
		return api.Errorf(http.StatusForbidden, api.CodeUnknownService, "%s of %s names service %q, which is not in the graph", requestOf(w), describe(w), name)
	}
	return unmatched(g, w, candidates)
}

// unmatched returns the error for a workload that no selector matches. It lists the selectors that
// come nearest: of the services in only, or of the whole graph if only is nil.
func unmatched(g *fabric.Graph, w fabric.Workload, only []fabric.Ref) error {
	type attempt struct {
		distance int
		text     string
	}
	var attempts []attempt
	for _, d := range g.Domains {
		for _, s := range d.Services {
			r := fabric.Ref{Domain: d.Name, Name: s.Name}
			if only != nil && !slices.Contains(only, r) {
				continue
			}
			for _, sel := range s.Selectors {
				distance, why := mismatch(sel, w)
				attempts = append(attempts, attempt{distance, fmt.Sprintf("%s: %s: %s", r, sel, why)})
			}
		}
	}
	slices.SortFunc(attempts, func(a, b attempt) int {
		return cmp.Or(cmp.Compare(a.distance, b.distance), strings.Compare(a.text, b.text))
	})
	e := api.Errorf(http.StatusForbidden, api.CodeNoSelector, "%s matches no selector of %s", describe(w), subject(only))
	for _, a := range attempts[:min(len(attempts), maxTried)] {
		e.Details.Tried = append(e.Details.Tried, a.text)
	}
	switch {
	case len(attempts) == 0:
		e.Message += "; there are none"
	case len(attempts) > maxTried:
		e.Message += fmt.Sprintf("; the nearest %d of %d tried: %s", maxTried, len(attempts), strings.Join(e.Details.Tried, "; "))
	default:
		e.Message += "; tried: " + strings.Join(e.Details.Tried, "; ")
	}
	return e
}

// mismatch returns why a selector does not match a workload, and how far it is from matching.
func mismatch(s fabric.Selector, w fabric.Workload) (distance int, why string) {
	var reasons []string
	miss := func(weight int, format string, args ...any) {
		distance += weight
		reasons = append(reasons, fmt.Sprintf(format, args...))
	}
	differs := func(name, want, have string) {
		if want != "" && want != have {
			miss(2, "%s is %q", name, have)
		}
	}
	switch s.Kind {
	case fabric.SelectNomad:
		if w.Attached {
			miss(100, "it is not in Nomad")
			break
		}
		if s.Job != w.Job {
			miss(5+levenshtein.Distance(s.Job, w.Job, nil), "job is %q", w.Job)
		}
		if cmp.Or(s.Namespace, fabric.DefaultNamespace) != w.Namespace {
			miss(3, "namespace is %q", w.Namespace)
		}
		differs("group", s.Group, w.Group)
		differs("region", s.Region, w.Region)
		differs("datacenter", s.Datacenter, w.Datacenter)
		differs("node class", s.NodeClass, w.NodeClass)
		differs("node pool", s.NodePool, w.NodePool)
	case fabric.SelectConsul:
		switch namespace := cmp.Or(s.Namespace, fabric.DefaultNamespace); {
		case w.Attached && namespace != fabric.DefaultNamespace:
			miss(3, "it is not in Nomad, so that only selectors without a namespace match it")
		case !w.Attached && namespace != w.Namespace:
			miss(3, "namespace is %q", w.Namespace)
		}
		differs("datacenter", s.Datacenter, w.Datacenter)
		var names []string
		nearest := 5 + len(s.Service)
		for _, have := range w.Services {
			if !slices.Contains(names, have.Name) {
				names = append(names, have.Name)
			}
			nearest = min(nearest, 5+levenshtein.Distance(s.Service, have.Name, nil))
		}
		bare := s
		bare.Tags, bare.Meta, bare.Namespace, bare.Datacenter = nil, nil, w.Namespace, ""
		switch {
		case len(names) == 0:
			miss(nearest, "the job has no service block")
		case !slices.Contains(names, s.Service):
			miss(nearest, "its services are %s", strings.Join(names, ", "))
		case bare.Matches(w) && (len(s.Tags) > 0 || len(s.Meta) > 0):
			miss(2, "service %s has different tags or meta", s.Service)
		}
	case fabric.SelectNode:
		differs("zone", s.Zone, w.Zone)
		differs("node", s.Node, w.Node)
		differs("node class", s.NodeClass, w.NodeClass)
		differs("node pool", s.NodePool, w.NodePool)
	default:
		miss(100, "this controller does not know selectors of kind %q", s.Kind)
	}
	return distance, strings.Join(reasons, ", ")
}

// requested returns the roles that the stanza requests; all roles of the service if it names none.
// It fails if the graph does not give the service one of them.
func requested(g *fabric.Graph, doc fabric.Document, w fabric.Workload, s stanza) (fabric.Roles, error) {
	resolve := func(names []string) ([]fabric.Ref, error) {
		var refs []fabric.Ref
		for _, n := range names {
			if !strings.Contains(n, "/") {
				n = doc.Service.Domain + "/" + n
			}
			r, err := fabric.ParseRef(n)
			if err != nil {
				return nil, api.Errorf(http.StatusForbidden, api.CodeUnknownRole, "%s names an invalid contract: %v", requestOf(w), err)
			}
			refs = append(refs, r)
		}
		return refs, nil
	}
	var want fabric.Roles
	var err error
	if want.Originate, err = resolve(s.originate); err != nil {
		return fabric.Roles{}, err
	}
	if want.Respond, err = resolve(s.respond); err != nil {
		return fabric.Roles{}, err
	}
	roles, err := doc.Request(want)
	if err != nil {
		for _, waits := range g.Waiting() {
			if slices.Contains(want.Originate, waits.Contract) || slices.Contains(want.Respond, waits.Contract) {
				return fabric.Roles{}, api.Errorf(http.StatusForbidden, api.CodeUnknownRole,
					"%s requests a role that is not in force: %v; contract %s is not accepted yet for %s", requestOf(w), err, waits.Contract, join(waits.For))
			}
		}
		have := doc.Roles()
		return fabric.Roles{}, api.Errorf(http.StatusForbidden, api.CodeUnknownRole,
			"%s requests a role that the graph does not give: %v; it may originate %s and respond to %s", requestOf(w), err, join(have.Originate), join(have.Respond))
	}
	return roles, nil
}

func describe(w fabric.Workload) string {
	if w.Attached {
		return fmt.Sprintf("the workload (Consul service %q, attached on node %s/%s)", nameOf(w), w.Zone, w.Node)
	}
	return fmt.Sprintf("the workload (namespace %q, job %q, group %q)", w.Namespace, w.Job, w.Group)
}

// nameOf returns the Consul service of a workload outside Nomad.
func nameOf(w fabric.Workload) string {
	if len(w.Services) == 0 {
		return ""
	}
	return w.Services[0].Name
}

// requestOf names what says which services and roles a workload requests.
func requestOf(w fabric.Workload) string {
	if w.Attached {
		return "the attachment"
	}
	return "the connectivity stanza"
}

func subject(only []fabric.Ref) string {
	if only == nil {
		return "the graph"
	}
	return "service " + join(only)
}

func join(refs []fabric.Ref) string {
	if len(refs) == 0 {
		return "nothing"
	}
	names := make([]string, len(refs))
	for i, r := range refs {
		names[i] = r.String()
	}
	return strings.Join(names, ", ")
}
