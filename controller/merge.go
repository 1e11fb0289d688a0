// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"slices"
	"strings"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

var errEmpty = invalid("the request contains no domain and no guardrail")

func empty(req api.GraphRequest) bool {
	return len(req.Domains)+len(req.Guardrails)+len(req.RemoveDomains)+len(req.RemoveGuardrails) == 0
}

// merge makes the changes of a request to g. It replaces domains and the list of guardrails, and
// changes none in place.
func merge(g *fabric.Graph, req api.GraphRequest) error {
	if err := mergeDomains(g, req); err != nil {
		return err
	}
	return mergeGuardrails(g, req)
}

func mergeDomains(g *fabric.Graph, req api.GraphRequest) error {
	for name, d := range req.Domains {
		if d == nil || d.Name != name {
			return invalid("domain %q: its definition is missing or has another name", name)
		}
		g.Domains[name] = d
	}
	for _, name := range req.RemoveDomains {
		if g.Domains[name] == nil || req.Domains[name] != nil {
			return notFound("the graph has no domain %q to remove", name)
		}
		delete(g.Domains, name)
	}
	return nil
}

func mergeGuardrails(g *fabric.Graph, req api.GraphRequest) error {
	g.Guardrails = slices.Clone(g.Guardrails)
	at := func(name string) int {
		return slices.IndexFunc(g.Guardrails, func(r fabric.Guardrail) bool { return r.Name == name })
	}
	for _, name := range req.RemoveGuardrails {
		i := at(name)
		if i < 0 {
			return notFound("the graph has no guardrail %q to remove", name)
		}
		g.Guardrails = slices.Delete(g.Guardrails, i, i+1)
	}
	given := map[string]bool{} // a second one of the same name stays, and is a problem of the graph
	for _, r := range req.Guardrails {
		if i := at(r.Name); i >= 0 && !given[r.Name] {
			g.Guardrails[i] = r
		} else {
			g.Guardrails = append(g.Guardrails, r)
		}
		given[r.Name] = true
	}
	slices.SortStableFunc(g.Guardrails, func(a, b fabric.Guardrail) int { return strings.Compare(a.Name, b.Name) })
	return nil
}
