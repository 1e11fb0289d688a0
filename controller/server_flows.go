// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/flow"
)

const (
	// followTime is how long a call that follows lasts at most. Then the caller calls again, and
	// its token is looked at again.
	followTime = 55 * time.Second
	// lastTime is how long a node may take to answer a call that does not follow.
	lastTime = 10 * time.Second
	// lineTime is how long the caller may take to accept a line. One that is slower loses its call;
	// until then, what comes is gathered, and what finds no room is counted.
	lineTime = 20 * time.Second
	// futureSlack is how far a time may be ahead of the controller's clock, and not be in the
	// future.
	futureSlack = 5 * time.Second
)

// streamed is a reply of several lines of JSON, which come over time.
type streamed func(ctx context.Context, line func(v any) error)

// stream writes a streamed reply.
func stream(ctx context.Context, w http.ResponseWriter, s streamed) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	rc, lines := http.NewResponseController(w), json.NewEncoder(w)
	_ = rc.Flush() // the first line may come later
	s(ctx, func(v any) error {
		_ = rc.SetWriteDeadline(time.Now().Add(lineTime)) // fails only if the connection is closed
		err := lines.Encode(v)
		if err == nil {
			err = rc.Flush()
		}
		if err != nil {
			cancel()
		}
		return err
	})
	_ = rc.SetWriteDeadline(time.Time{})
}

// postFlows asks nodes for records of flows, and passes on what they answer.
func (c *Controller) postFlows(_ context.Context, r request) (any, error) {
	req, err := decode[api.FlowsRequest](r)
	if err != nil {
		return nil, err
	}
	m, err := req.Filter.Compile()
	if err != nil {
		return nil, invalid("the filter: %v", err)
	}
	for name, t := range map[string]time.Time{"since": req.Filter.Since, "until": req.Filter.Until} {
		if now := time.Now(); t.After(now.Add(futureSlack)) && !(name == "until" && req.Follow) {
			return nil, invalid("%s: %s is in the future: it is %s now; give a time that has passed, or follow", name, t.Format(time.RFC3339), now.Format(time.RFC3339))
		}
	}
	if req.Last < 0 || req.Last > api.MaxFlows {
		return nil, invalid("last: %d must be from 0 to %d", req.Last, api.MaxFlows)
	}
	query := api.FlowQuery{Filter: req.Filter, Last: req.Last, Follow: req.Follow, Everything: r.operator.readsAll()}
	if !query.Everything {
		query.Domains = []string{}
		for name := range c.policy.current.Load().graph.Domains {
			if r.operator.reads(name) {
				query.Domains = append(query.Domains, name)
			}
		}
	}
	nodes, err := c.recording(req.Filter)
	if err != nil {
		return nil, err
	}
	return streamed(func(ctx context.Context, line func(any) error) {
		ctx, cancel := r.untilStop(ctx)
		defer cancel()
		var tasks []api.Task
		for _, n := range nodes {
			if n.Recorded == nil && !n.Reported.IsZero() {
				err := line(api.FlowsMessage{Node: n.ID(), Old: true, Error: fmt.Sprintf("version %s records no flows; upgrade it", n.Version)})
				if err != nil {
					return
				}
				continue
			}
			q := query
			q.After = req.After[n.ID()]
			t := api.Task{Node: n.ID(), Kind: api.TaskFlows, Flows: &q, Timeout: lastTime}
			if req.Follow {
				t.Timeout = followTime
			}
			tasks = append(tasks, t)
		}
		places := places{controller: c}
		c.tasks.stream(ctx, tasks, func(node fabric.NodeID, r2 api.TaskResult, missed uint64) {
			msg := api.FlowsMessage{Node: node, Error: r2.Error, Missed: missed}
			if b := r2.Flows; b != nil {
				msg.Next = b.Next
				msg.Missed += b.Missed
				for _, f := range b.Flows {
					f.Node = node // a node speaks for itself
					seen, visible := f.For(r.operator.reads)
					if visible && m.Match(&seen) {
						seen.Place = "" // nodes do not know it
						if r.operator.reads(seen.Contract.Domain) {
							seen.Place = places.of(seen.Contract)
						}
						msg.Flows = append(msg.Flows, seen)
					}
				}
			}
			if r2.Error != "" || len(msg.Flows) > 0 || msg.Next != "" || msg.Missed > 0 {
				_ = line(msg) // an error ends ctx
			}
		})
	}), nil
}

// recording returns the nodes that may have records for a filter.
func (c *Controller) recording(f flow.Filter) (list []api.NodeStatus, err error) {
	only := map[fabric.NodeID]bool{}
	for _, t := range f.Terms {
		if t.Field == flow.OnNode && !t.Not {
			id, err := fabric.ParseNodeID(t.Value)
			if err == nil {
				err = c.checkRegistered(id)
			}
			if err != nil {
				return nil, err
			}
			only[id] = true
		}
	}
	for _, n := range c.nodes.all() {
		for _, s := range c.reports.of(n) {
			if s.Kind.Has(fabric.KindWorkload) && (len(only) == 0 || only[s.ID()]) {
				list = append(list, s)
			}
		}
	}
	return list, nil
}

// places tells where contracts are declared in the graph in force.
type places struct {
	controller *Controller
	read       *inForce // from which known is
	known      map[fabric.Ref]string
}

func (p *places) of(contract fabric.Ref) string {
	if now := p.controller.policy.current.Load(); now != p.read {
		p.read, p.known = now, map[fabric.Ref]string{}
		for domain, d := range now.graph.Domains {
			for _, c := range d.Contracts {
				if c.Pos.File != "" {
					p.known[fabric.Ref{Domain: domain, Name: c.Name}] = fmt.Sprintf("%s:%d", c.Pos.File, c.Pos.Line)
				}
			}
		}
	}
	return p.known[contract]
}
