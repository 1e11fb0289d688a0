// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
)

// plan returns what applying a request would change, without what nodes report, and the graph to
// which it leads.
func (p *policy) plan(req api.GraphRequest) (api.Plan, *fabric.Graph, error) {
	if empty(req) {
		return api.Plan{}, nil, errEmpty
	}
	current := p.current.Load()
	req.CAS, req.Expect = nil, fabric.Hash{} // the plan has these itself
	plan := api.Plan{Format: api.PlanFormat, Fabric: p.fabric, Sequence: current.pointer.Sequence, Base: current.pointer.Root, Request: req}
	graph, err := p.edited(current, func(g *fabric.Graph) error { return merge(g, req) })
	refusal := err
	if plan.Problems, err = asProblems(err); err != nil {
		return plan, nil, err
	}
	plan.Delta, plan.Warnings = fabric.Compare(current.graph, graph, p.now()), graph.Unenforced()
	if concerned, some := pathsConcerned(req); some {
		for _, unmet := range graph.UnmetPaths(concerned...) {
			plan.Warnings = append(plan.Warnings, unmet.String())
		}
	}
	plan.Changed = true
	if len(plan.Problems) == 0 {
		compiled, _, _ := current.compiled.Next(graph)
		plan.Root, plan.Changed = compiled.Root, compiled.Root != plan.Base
	} else if !decodable(plan) {
		return api.Plan{}, nil, refusal // with invalid names or protocols, only the problems can be encoded
	}
	return plan, graph, nil
}

// decodable reports whether a client can decode the plan.
func decodable(plan api.Plan) bool {
	data, err := json.Marshal(plan)
	return err == nil && json.Unmarshal(data, &api.Plan{}) == nil
}

// diff compares two revisions of the history.
func (p *policy) diff(ctx context.Context, req api.DiffRequest) (api.DiffReply, error) {
	from, err := p.at(ctx, req.From)
	if err != nil {
		return api.DiffReply{}, err
	}
	to, err := p.at(ctx, req.To)
	if err != nil {
		return api.DiffReply{}, err
	}
	return api.DiffReply{From: from.change.Sequence, To: to.change.Sequence, Delta: fabric.Compare(from.graph, to.graph, p.now())}, nil
}

// touched returns the live endpoints that a change to a graph affects.
func (t *table) touched(delta fabric.Delta, next *fabric.Graph) []api.Touched {
	effect := map[fabric.Ref]string{}
	for _, c := range delta.Reach {
		effect[c.From], effect[c.To] = "rules", "rules"
	}
	for _, n := range delta.Nodes {
		switch {
		case n.External:
		case n.Change == fabric.Removed:
			effect[n.Name] = "removed"
		case effect[n.Name] == "" && slices.Contains(n.What, "selectors"):
			effect[n.Name] = "selectors"
		}
	}
	excess := map[string]map[string]bool{} // names by domain
	for _, e := range delta.Excess {
		if excess[e.Domain] == nil {
			excess[e.Domain] = map[string]bool{}
		}
		excess[e.Domain][e.Name] = true
	}
	if len(effect)+len(excess)+len(delta.Bindings) == 0 {
		return nil
	}
	// A selector may select as before in Nomad, and nothing any more that nodes attach.
	barred := func(id kvkey.Admission, g *grant) bool {
		if len(delta.Bindings) == 0 || g.Registered == nil {
			return false
		}
		_, barred := next.Select(g.Registered.of(id.Node))
		return slices.ContainsFunc(barred, func(b fabric.Barred) bool { return b.Service == g.admission.Service })
	}
	var list []api.Touched
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for id, g := range t.grants {
		e, lost := effect[g.admission.Service], excess[g.admission.Service.Domain]
		if lost[""] || lost[g.admission.Service.Name] || barred(id, g) {
			e = "binding"
		}
		if e != "" && g.live(now) {
			list = append(list, api.Touched{Endpoint: id.Endpoint, Node: id.Node.String(), Service: g.admission.Service, Effect: e})
		}
	}
	slices.SortFunc(list, func(a, b api.Touched) int {
		return cmp.Or(fabric.CompareRefs(a.Service, b.Service), strings.Compare(a.Node, b.Node), strings.Compare(a.Endpoint, b.Endpoint))
	})
	return list
}

// cut returns the flows in the last reports of nodes that a change would cut.
func (r *reports) cut(delta fabric.Delta) []api.CutFlow {
	type pair struct{ from, to fabric.Ref }
	lost := map[pair][]fabric.Rule{}
	for _, c := range delta.Reach {
		if c.Is == fabric.StandsDropped {
			lost[pair{c.From, c.To}] = append(lost[pair{c.From, c.To}], c.Rules...)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	var list []api.CutFlow
	r.mu.Lock()
	defer r.mu.Unlock()
	for by, s := range r.last {
		for _, f := range s.Flows {
			if slices.ContainsFunc(lost[pair{f.From, f.To}], func(r fabric.Rule) bool { return r.Matches(f.Protocol, f.Port) }) {
				list = append(list, api.CutFlow{Node: by.String(), FlowStatus: f})
			}
		}
	}
	slices.SortFunc(list, func(a, b api.CutFlow) int {
		return cmp.Or(fabric.CompareRefs(a.From, b.From), fabric.CompareRefs(a.To, b.To), cmp.Compare(a.Port, b.Port), strings.Compare(a.Node, b.Node))
	})
	return list
}
