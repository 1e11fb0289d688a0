// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/sif-project/sif/api"
)

func (c *Controller) getGraph(ctx context.Context, r request) (any, error) {
	if s := r.URL.Query().Get("revision"); s != "" {
		sequence, err := strconv.ParseUint(s, 10, 64)
		if err != nil || sequence == 0 {
			return nil, invalid("revision: %q must be the sequence of a revision", s)
		}
		old, err := c.policy.at(ctx, sequence)
		if err != nil {
			return nil, err
		}
		current := c.policy.current.Load()
		graph, partial := r.operator.visible(old.graph)
		return api.GraphReply{Pointer: current.pointer, Signed: current.signed, Graph: graph, Partial: partial, Change: &old.change}, nil
	}
	index, err := awaitIndex(ctx, r, c.policy.bell)
	if err != nil {
		return nil, err
	}
	current := c.policy.current.Load()
	graph, partial := r.operator.visible(current.graph)
	reply := api.GraphReply{Pointer: current.pointer, Signed: current.signed, Graph: graph, Partial: partial}
	for _, w := range current.graph.Waiting() {
		if r.operator.reads(w.Contract.Domain) {
			reply.Waiting = append(reply.Waiting, w)
		}
	}
	return indexed{reply, index}, nil
}

func (c *Controller) putGraph(ctx context.Context, r request) (any, error) {
	req, err := decode[api.GraphRequest](r)
	if err != nil {
		return nil, err
	}
	r.entry.Target, r.entry.Message = targets(req), req.Message
	if err := r.operator.mayChange(c.policy.current.Load().graph, req, false); err != nil {
		return nil, err
	}
	if err := c.intend(r); err != nil {
		return nil, err
	}
	return r.changed(c.policy.apply(ctx, req, r.operator.author, r.id()))
}

func (c *Controller) validateGraph(_ context.Context, r request) (any, error) {
	req, err := decode[api.GraphRequest](r)
	if err != nil {
		return nil, err
	}
	r.entry.Target = targets(req)
	if err := r.operator.mayChange(c.policy.current.Load().graph, req, true); err != nil {
		return nil, err
	}
	problems, err := c.policy.problems(req)
	return api.GraphReply{Pointer: c.policy.pointer(), Problems: problems}, err
}

func (c *Controller) planGraph(_ context.Context, r request) (any, error) {
	req, err := decode[api.GraphRequest](r)
	if err != nil {
		return nil, err
	}
	r.entry.Target, r.entry.Message = targets(req), req.Message
	if err := r.operator.mayChange(c.policy.current.Load().graph, req, true); err != nil {
		return nil, err
	}
	plan, next, err := c.policy.plan(req)
	if err != nil {
		return nil, err
	}
	if concerned, some := pathsConcerned(req); some {
		plan.Warnings = append(plan.Warnings, c.wayless(next, concerned)...)
	}
	if len(req.Links) > 0 {
		plan.Warnings = append(plan.Warnings, vacant(req.Links, c.processors())...)
	}
	plan.Touched, plan.Cut = c.table.touched(plan.Delta, next), c.reports.cut(plan.Delta)
	plan.Seal()
	return plan, nil
}

func (c *Controller) deleteDomain(ctx context.Context, r request) (any, error) {
	name := r.PathValue("name")
	r.entry.Target = name
	if err := r.operator.mayChange(c.policy.current.Load().graph, api.GraphRequest{RemoveDomains: []string{name}}, false); err != nil {
		return nil, err
	}
	if err := c.intend(r); err != nil {
		return nil, err
	}
	return r.changed(c.policy.remove(ctx, name, r.operator.author, r.id()))
}

// changed returns the reply to a change of the graph, and records its revision.
func (r request) changed(reply api.GraphReply, err error) (any, error) {
	r.entry.Revision = reply.Pointer.Sequence
	if reply.Graph != nil {
		reply.Graph, reply.Partial = r.operator.visible(reply.Graph)
	}
	return reply, err
}

func (c *Controller) diffGraph(ctx context.Context, r request) (any, error) {
	req, err := decode[api.DiffRequest](r)
	if err != nil {
		return nil, err
	}
	if err := r.operator.mayReadAll("compare revisions"); err != nil {
		return nil, err
	}
	return c.policy.diff(ctx, req)
}

func (c *Controller) rollbackGraph(ctx context.Context, r request) (any, error) {
	req, err := decode[api.RollbackRequest](r)
	if err != nil {
		return nil, err
	}
	r.entry.Target, r.entry.Message, r.entry.harmless = fmt.Sprint("revision ", req.Revision), req.Message, req.DryRun
	if req.OperatorBlocks {
		r.entry.Target += " with guardrails, bindings and links"
	}
	if req.DryRun {
		err = r.operator.mayReadAll("plan a rollback")
	} else {
		err = r.operator.mayOperate("roll the graph back")
	}
	if err != nil {
		return nil, err
	}
	if !req.DryRun {
		if err := c.intend(r); err != nil {
			return nil, err
		}
	}
	reply, err := c.policy.rollback(ctx, req, r.operator.author, r.id())
	r.entry.Revision = reply.Pointer.Sequence
	return reply, err
}

func (c *Controller) getHistory(ctx context.Context, r request) (any, error) {
	index, err := awaitIndex(ctx, r, c.policy.bell)
	if err != nil {
		return nil, err
	}
	current := c.policy.current.Load()
	changes, err := c.policy.history(ctx, current.pointer)
	if err != nil {
		return nil, err
	}
	return indexed{api.History{Pointer: current.pointer, Signed: current.signed, Changes: changes}, index}, nil
}

// targets lists what a request changes, for the audit log.
func targets(req api.GraphRequest) string {
	list := slices.Sorted(maps.Keys(req.Domains))
	for _, name := range req.RemoveDomains {
		list = append(list, "-"+name)
	}
	for _, g := range req.Guardrails {
		list = append(list, "guardrail "+g.Name)
	}
	for _, name := range req.RemoveGuardrails {
		list = append(list, "-guardrail "+name)
	}
	for _, b := range req.Bindings {
		list = append(list, "binding "+b.Domain)
	}
	for _, name := range req.RemoveBindings {
		list = append(list, "-binding "+name)
	}
	for _, l := range req.Links {
		list = append(list, "link "+l.Name)
	}
	for _, name := range req.RemoveLinks {
		list = append(list, "-link "+name)
	}
	return strings.Join(list, ",")
}
