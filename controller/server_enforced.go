// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"errors"
	"net/url"
	"strconv"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/inspect/enforced"
	"github.com/sif-project/sif/internal/inspect/explain"
	"github.com/sif-project/sif/internal/inspect/verify"
	"github.com/sif-project/sif/internal/setup"
)

// dumpTimeout bounds how long a node may take to read its data path.
const dumpTimeout = 20 * time.Second

// dump has nodes read back what they enforce.
func (c *Controller) dump(ctx context.Context, r request) (any, error) {
	req, err := decode[api.DumpRequest](r)
	if err != nil {
		return nil, err
	}
	if err := r.operator.mayReadAll("read what nodes enforce"); err != nil {
		return nil, err
	}
	if len(req.Nodes) > api.MaxDumpNodes {
		return nil, invalid("%d nodes are more than the %d of one request", len(req.Nodes), api.MaxDumpNodes)
	}
	for _, n := range req.Nodes {
		if err := c.knows(n); err != nil {
			return nil, err
		}
	}
	var reply api.DumpReply
	reply.Dumps, reply.Failed, err = own{c}.Dumps(ctx, req.Nodes)
	return reply, err
}

// knows refuses a node that is not registered.
func (c *Controller) knows(node fabric.NodeID) error {
	if _, ok := c.nodes.get(node); !ok {
		return notFound("there is no node %q", node)
	}
	return nil
}

// explain answers whether a flow passes, and why.
func (c *Controller) explain(ctx context.Context, r request) (any, error) {
	q, err := questionOf(r.URL.Query())
	if err != nil {
		return nil, invalid("%v", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.stop, cancel)()
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
		return nil, unavailable("the call was cut short: %v", err)
	case errors.As(err, &unreadable):
		return nil, r.operator.missing("read domain "+strconv.Quote(unreadable.Domain), setup.ReadPolicy, setup.ReadPolicy+"-"+unreadable.Domain)
	case errors.As(err, &unknown):
		return nil, notFound("%v", err)
	}
	return nil, invalid("%v", err)
}

// questionOf reads a question from the parameters of a query.
func questionOf(v url.Values) (q api.Question, err error) {
	q.From, q.To, q.Protocol = v.Get("from"), v.Get("to"), fabric.TCP
	if q.From == "" || q.To == "" {
		return q, errors.New("from and to: both are needed")
	}
	if name := v.Get("protocol"); name != "" {
		if q.Protocol, err = fabric.ParseProtocol(name); err != nil {
			return q, err
		}
	}
	q.Port, err = q.Protocol.ParsePort(v.Get("port"))
	return q, err
}

// own is what the controller knows without its API.
type own struct{ *Controller }

// Declared implements enforced.Source.
func (o own) Declared(context.Context) (verify.Fabric, error) {
	held := o.policy.current.Load()
	return verify.Fabric{Graph: held.graph, Pointer: held.pointer, Signed: held.signed, Status: o.status()}, nil
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
			failed[nodes[i]] = "the node answered without a dump of its own"
		default:
			dumps[nodes[i]] = *r.Dump
		}
	}
	return dumps, failed, ctx.Err()
}
