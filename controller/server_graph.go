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
	"time"

	"github.com/sif-project/sif/api"
)

// awaitIndex holds a read back until b is newer than the index that the query
// names, and returns the index of the answer.
func awaitIndex(ctx context.Context, r request, b *bell) (uint64, error) {
	query := r.URL.Query()
	var after uint64
	var err error
	if s := query.Get("index"); s != "" {
		if after, err = strconv.ParseUint(s, 10, 64); err != nil {
			return 0, invalid("index: %q is not a number", s)
		}
	}
	wait, err := waitOf(r, api.DefaultWait, api.MaxWait)
	if err != nil {
		return 0, err
	}
	if after == 0 {
		wait = 0
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.stop, cancel)()
	return b.wait(ctx, after, wait), nil
}

// waitOf returns how long a call wants to wait.
func waitOf(r request, otherwise, most time.Duration) (time.Duration, error) {
	s := r.URL.Query().Get("wait")
	if s == "" {
		return otherwise, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, invalid("wait: %q is not a duration such as 30s", s)
	}
	return min(d, most), nil
}

func (c *Controller) getGraph(ctx context.Context, r request) (any, error) {
	if s := r.URL.Query().Get("revision"); s != "" {
		sequence, err := strconv.ParseUint(s, 10, 64)
		if err != nil || sequence == 0 {
			return nil, invalid("revision: %q is not a sequence", s)
		}
		old, err := c.policy.at(ctx, sequence)
		if err != nil {
			return nil, err
		}
		held := c.policy.current.Load()
		graph, partial := r.operator.visible(old.graph)
		return api.GraphReply{Pointer: held.pointer, Signed: held.signed, Graph: graph, Partial: partial, Change: &old.change}, nil
	}
	index, err := awaitIndex(ctx, r, c.policy.bell)
	if err != nil {
		return nil, err
	}
	held := c.policy.current.Load()
	graph, partial := r.operator.visible(held.graph)
	reply := api.GraphReply{Pointer: held.pointer, Signed: held.signed, Graph: graph, Partial: partial}
	for _, w := range held.graph.Waiting() {
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
	if err := r.operator.mayChange(req, false); err != nil {
		return nil, err
	}
	return r.changed(c.policy.apply(ctx, req, r.operator.author))
}

func (c *Controller) validateGraph(_ context.Context, r request) (any, error) {
	req, err := decode[api.GraphRequest](r)
	if err != nil {
		return nil, err
	}
	r.entry.Target = targets(req)
	if err := r.operator.mayChange(req, true); err != nil {
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
	if err := r.operator.mayChange(req, true); err != nil {
		return nil, err
	}
	plan, err := c.policy.plan(req)
	if err != nil {
		return nil, err
	}
	plan.Touched, plan.Cut = c.table.touched(plan.Delta), c.reports.cut(plan.Delta)
	plan.Seal()
	return plan, nil
}

func (c *Controller) deleteDomain(ctx context.Context, r request) (any, error) {
	name := r.PathValue("name")
	r.entry.Target = name
	if err := r.operator.mayChange(api.GraphRequest{RemoveDomains: []string{name}}, false); err != nil {
		return nil, err
	}
	return r.changed(c.policy.remove(ctx, name, r.operator.author))
}

// changed is the answer to a change of the graph.
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
	if req.DryRun {
		err = r.operator.mayReadAll("plan a rollback")
	} else {
		err = r.operator.mayOperate("roll the graph back")
	}
	if err != nil {
		return nil, err
	}
	reply, err := c.policy.rollback(ctx, req, r.operator.author)
	r.entry.Revision = reply.Pointer.Sequence
	return reply, err
}

func (c *Controller) getHistory(ctx context.Context, r request) (any, error) {
	index, err := awaitIndex(ctx, r, c.policy.bell)
	if err != nil {
		return nil, err
	}
	held := c.policy.current.Load()
	changes, err := c.policy.history(ctx, held.pointer)
	if err != nil {
		return nil, err
	}
	return indexed{api.History{Pointer: held.pointer, Signed: held.signed, Changes: changes}, index}, nil
}

func (c *Controller) getStatus(ctx context.Context, r request) (any, error) {
	if err := r.operator.mayReadAll("read the status of the fabric"); err != nil {
		return nil, err
	}
	index, err := awaitIndex(ctx, r, c.reports.bell)
	if err != nil {
		return nil, err
	}
	return indexed{c.status(), index}, nil
}

func (c *Controller) probe(ctx context.Context, r request) (any, error) {
	req, err := decode[api.ProbeRequest](r)
	if err != nil {
		return nil, err
	}
	if err := r.operator.mayOperate("send probes"); err != nil {
		return nil, err
	}
	if len(req.Tasks) > api.MaxProbeTasks {
		return nil, invalid("%d tasks are more than the %d of one request", len(req.Tasks), api.MaxProbeTasks)
	}
	for _, t := range req.Tasks {
		if err := c.knows(t.Node); err != nil {
			return nil, err
		}
		if t.Kind == api.TaskDump {
			return nil, invalid("a dump is no probe; ask for it with POST /v1/dump")
		}
	}
	return api.ProbeReply{Results: c.tasks.run(ctx, req.Tasks)}, nil
}

// targets names what a request changes, for the audit log.
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
	return strings.Join(list, ",")
}
