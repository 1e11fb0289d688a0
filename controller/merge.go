// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"slices"
	"strings"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

var errEmpty = invalid("the request contains no domain, no guardrail, no binding and no link")

func empty(req api.GraphRequest) bool {
	return len(req.Domains)+len(req.RemoveDomains) == 0 && !operatorBlocks(req)
}

// operatorBlocks reports whether a request changes what only operators may change.
func operatorBlocks(req api.GraphRequest) bool {
	return len(req.Guardrails)+len(req.RemoveGuardrails)+len(req.Bindings)+len(req.RemoveBindings)+len(req.Links)+len(req.RemoveLinks) > 0
}

// merge makes the changes of a request to g. It replaces domains and the lists of guardrails,
// bindings and links, and changes none in place.
func merge(g *fabric.Graph, req api.GraphRequest) error {
	if err := mergeDomains(g, req); err != nil {
		return err
	}
	var err error
	if g.Guardrails, err = mergeBlocks("guardrail", g.Guardrails, req.Guardrails, req.RemoveGuardrails, func(r fabric.Guardrail) string { return r.Name }); err != nil {
		return err
	}
	if g.Bindings, err = mergeBlocks("binding", g.Bindings, req.Bindings, req.RemoveBindings, func(b fabric.Binding) string { return b.Domain }); err != nil {
		return err
	}
	g.Links, err = mergeBlocks("link", g.Links, req.Links, req.RemoveLinks, func(l fabric.LinkRule) string { return l.Name })
	return err
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

// mergeBlocks returns list without the removed blocks and with the given ones, ordered by name.
func mergeBlocks[T any](kind string, list, given []T, removed []string, nameOf func(T) string) ([]T, error) {
	list = slices.Clone(list)
	at := func(name string) int {
		return slices.IndexFunc(list, func(b T) bool { return nameOf(b) == name })
	}
	for _, name := range removed {
		i := at(name)
		if i < 0 {
			return nil, notFound("the graph has no %s %q to remove", kind, name)
		}
		list = slices.Delete(list, i, i+1)
	}
	seen := map[string]bool{} // a second one of the same name stays, and is a problem of the graph
	for _, b := range given {
		name := nameOf(b)
		if i := at(name); i >= 0 && !seen[name] {
			list[i] = b
		} else {
			list = append(list, b)
		}
		seen[name] = true
	}
	slices.SortStableFunc(list, func(a, b T) int { return strings.Compare(nameOf(a), nameOf(b)) })
	return list, nil
}
