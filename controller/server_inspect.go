// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"errors"
	"net/url"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/inspect/enforced"
	"github.com/sif-project/sif/internal/inspect/explain"
	"github.com/sif-project/sif/internal/inspect/verify"
)

// dumpTimeout bounds how long a node may take to read back its data path.
const dumpTimeout = 20 * time.Second

func (c *Controller) getStatus(ctx context.Context, r request) (any, error) {
	if err := r.operator.mayReadAll("read the status of the fabric"); err != nil {
		return nil, err
	}
	index, err := awaitOther(ctx, r, c.reports.bell)
	if err != nil {
		return nil, err
	}
	return indexed{c.status(), index}, nil
}

// dump asks nodes to read back what they enforce.
func (c *Controller) dump(ctx context.Context, r request) (any, error) {
	req, err := decode[api.DumpRequest](r)
	if err != nil {
		return nil, err
	}
	if err := r.operator.mayReadAll("read what nodes enforce"); err != nil {
		return nil, err
	}
	if len(req.Nodes) > api.MaxDumpNodes {
		return nil, invalid("the request names %d nodes; it must name at most %d", len(req.Nodes), api.MaxDumpNodes)
	}
	for _, n := range req.Nodes {
		if err := c.checkRegistered(n); err != nil {
			return nil, err
		}
	}
	var reply api.DumpReply
	reply.Dumps, reply.Failed, err = own{c}.Dumps(ctx, req.Nodes)
	return reply, err
}

// checkRegistered refuses a node that is not registered.
func (c *Controller) checkRegistered(node fabric.NodeID) error {
	if _, ok := c.nodes.get(node); !ok {
		return notFound("there is no node %q; sif status lists the nodes", node)
	}
	return nil
}

// probe asks nodes to carry out tasks.
func (c *Controller) probe(ctx context.Context, r request) (any, error) {
	req, err := decode[api.ProbeRequest](r)
	if err != nil {
		return nil, err
	}
	if err := r.operator.mayOperate("send probes"); err != nil {
		return nil, err
	}
	if len(req.Tasks) > api.MaxProbeTasks {
		return nil, invalid("the request has %d tasks; it must have at most %d", len(req.Tasks), api.MaxProbeTasks)
	}
	for _, t := range req.Tasks {
		if err := c.checkRegistered(t.Node); err != nil {
			return nil, err
		}
		switch t.Kind {
		case api.TaskDump:
			return nil, invalid("a dump is not a probe; use POST /v1/dump")
		case api.TaskFlows:
			return nil, invalid("records of flows are not a probe; use POST /v1/flows")
		}
	}
	return api.ProbeReply{Results: c.tasks.run(ctx, req.Tasks)}, nil
}

// explain explains whether a flow passes.
func (c *Controller) explain(ctx context.Context, r request) (any, error) {
	q, err := questionOf(r.URL.Query())
	if err != nil {
		return nil, invalid("%v", err)
	}
	ctx, cancel := r.untilStop(ctx)
	defer cancel()
	var view explain.View
	if !r.operator.readsAll() {
		view.Reads = r.operator.reads
	}
	view.Fabric, err = enforced.Read(ctx, own{c}, func(f verify.Fabric) ([]fabric.NodeID, error) {
		return explain.Nodes(explain.View{Fabric: f, Reads: view.Reads}, q)
	})
	var answer api.Explanation
	if err == nil {
		answer, err = explain.Explain(view, q)
	}
	var unreadable *explain.UnreadableError
	var unknown *explain.UnknownError
	switch {
	case err == nil:
		return answer, nil
	case ctx.Err() != nil:
		return nil, unavailable("the call was cancelled: %v", err)
	case errors.As(err, &unreadable):
		return nil, r.operator.unreadable(unreadable.Domain)
	case errors.As(err, &unknown):
		return nil, notFound("%v", err)
	}
	return nil, invalid("%v", err)
}

// questionOf decodes a question from the query parameters.
func questionOf(v url.Values) (q api.Question, err error) {
	q.From, q.To, q.Protocol = v.Get("from"), v.Get("to"), fabric.TCP
	if q.From == "" || q.To == "" {
		return q, errors.New("from and to: both are required")
	}
	if name := v.Get("protocol"); name != "" {
		if q.Protocol, err = fabric.ParseProtocol(name); err != nil {
			return q, err
		}
	}
	q.Port, err = q.Protocol.ParsePort(v.Get("port"))
	return q, err
}

// own is an enforced.Source that needs no API calls.
type own struct{ *Controller }

// Declared implements enforced.Source.
func (o own) Declared(context.Context) (verify.Fabric, error) {
	current := o.policy.current.Load()
	return verify.Fabric{Graph: current.graph, Pointer: current.pointer, Signed: current.signed, Status: o.status()}, nil
}

// Dumps implements enforced.Source.
func (o own) Dumps(ctx context.Context, nodes []fabric.NodeID) (dumps map[fabric.NodeID]api.Dump, failed map[fabric.NodeID]string, err error) {
	work := make([]api.Task, len(nodes))
	for i, n := range nodes {
		work[i] = api.Task{Node: n, Kind: api.TaskDump, Timeout: dumpTimeout}
	}
	dumps, failed = map[fabric.NodeID]api.Dump{}, map[fabric.NodeID]string{}
	for i, r := range o.tasks.run(ctx, work) {
		switch {
		case r.Error != "":
			failed[nodes[i]] = r.Error
		case r.Dump == nil || r.Dump.Node != nodes[i]:
			failed[nodes[i]] = "the answer of the node contains no dump of it"
		default:
			dumps[nodes[i]] = *r.Dump
		}
	}
	return dumps, failed, ctx.Err()
}
