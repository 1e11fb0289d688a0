// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/flow"
)

// serveFlows carries out tasks of flows until the test ends: it sends what serve sends.
func (n *testNode) serveFlows(t *testing.T, serve func(task api.Task, send func(api.TaskResult) error)) {
	ctx := t.Context()
	go func() {
		for ctx.Err() == nil {
			tasks, err := n.Tasks(ctx, time.Minute)
			if err != nil {
				return // the controller has stopped
			}
			for _, task := range tasks {
				go serve(task, func(r api.TaskResult) error {
					r.ID = task.ID
					return n.TaskDone(ctx, r)
				})
			}
		}
	}()
}

// answers is what a call said of each node.
type answers map[fabric.NodeID]*api.FlowsMessage

func (a answers) take(m api.FlowsMessage) error {
	if a[m.Node] == nil {
		a[m.Node] = &api.FlowsMessage{}
	}
	was := a[m.Node]
	was.Flows = append(was.Flows, m.Flows...)
	was.Missed += m.Missed
	was.Next, was.Error, was.Old = m.Next, m.Error, m.Old
	return nil
}

// Records of flows come from all nodes. A node that does not answer, or cannot, is said. Who reads
// only a domain sees its flows, whatever nodes send.
func testFlows(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	app := testDomain("app")
	app.Contracts[0].Pos = fabric.Position{File: "app.sif.hcl", Line: 12, Column: 3}
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(app, testDomain("news"))})
	must.NoError(t, err)
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	w1.register(t, "10.0.0.1")
	w2.register(t, "10.0.0.2")
	w1.report(t, api.NodeStatus{Recorded: &api.RecordedStatus{}})
	w2.report(t, api.NodeStatus{Version: "0.1.0"})
	ref := func(domain, name string) fabric.Ref { return fabric.Ref{Domain: domain, Name: name} }
	within := flow.Flow{Time: time.Now().UTC().Truncate(time.Second), Event: flow.Opened, Verdict: flow.Allow, Reason: "allowed-contract", Number: 1,
		Node:   fabric.NodeID{Zone: "gcp1", Name: "forged"},
		Source: flow.End{Name: ref("app", "proxy"), Address: netip.MustParseAddr("100.64.1.2")}, Destination: flow.End{Name: ref("app", "svc"), Endpoint: "e-svc"},
		Contract: ref("app", app.Contracts[0].Name), Place: "forged:1"}
	across, other := within, within
	across.Number, across.Source, across.Contract = 2, flow.End{Name: ref("news", "svc"), Endpoint: "e-news"}, fabric.Ref{}
	other.Number, other.Source, other.Destination = 3, flow.End{Name: ref("news", "proxy")}, flow.End{Name: ref("news", "svc")}
	asked := make(chan api.FlowQuery, 10)
	w1.serveFlows(t, func(task api.Task, send func(api.TaskResult) error) {
		asked <- *task.Flows
		if task.Flows.After == "wait" {
			for send(api.TaskResult{Ready: true, Flows: &api.FlowBatch{Flows: []flow.Flow{within}, Next: "more"}}) == nil {
				time.Sleep(10 * time.Millisecond)
			}
			asked <- api.FlowQuery{After: "gone"}
			return
		}
		_ = send(api.TaskResult{Ready: true, Flows: &api.FlowBatch{Flows: []flow.Flow{within, across}, Next: "a", Missed: 3}})
		_ = send(api.TaskResult{Ready: true, Flows: &api.FlowBatch{Flows: []flow.Flow{other}, Next: "b"}})
		_ = send(api.TaskResult{Done: true})
	})

	got := answers{}
	must.NoError(t, w.reader(t, c, "sif-read").Flows(ctx, api.FlowsRequest{Last: 5, After: map[fabric.NodeID]string{w1.id: "x"}}, got.take))
	q := <-asked
	must.True(t, q.Everything)
	must.Eq(t, 5, q.Last)
	must.Eq(t, "x", q.After)
	one := got[w1.id]
	must.Eq(t, "", one.Error)
	must.Eq(t, 3, one.Missed)
	must.Eq(t, "b", one.Next)
	placed := within
	placed.Node, placed.Place = w1.id, "app.sif.hcl:12" // whatever the node says
	must.Len(t, 3, one.Flows)
	must.Eq(t, placed, one.Flows[0])
	must.True(t, got[w2.id].Old)
	must.Eq(t, "version 0.1.0 records no flows; upgrade it", got[w2.id].Error)

	got = answers{}
	reader := w.reader(t, c, "sif-read-app")
	must.NoError(t, reader.Flows(ctx, api.FlowsRequest{}, got.take))
	q = <-asked
	must.False(t, q.Everything)
	must.Eq(t, []string{"app"}, q.Domains)
	one = got[w1.id]
	must.Len(t, 2, one.Flows)
	must.Eq(t, flow.End{Withheld: true}, one.Flows[1].Source)
	// The filter cannot find out what is withheld.
	got = answers{}
	must.NoError(t, reader.Flows(ctx, api.FlowsRequest{Filter: flow.Filter{Terms: []flow.Term{{Field: flow.From, Value: "news/svc"}}}}, got.take))
	must.SliceEmpty(t, got[w1.id].Flows)
	<-asked

	// A node that is asked and does not answer; one that is not asked.
	w2.report(t, api.NodeStatus{Recorded: &api.RecordedStatus{}})
	got = answers{}
	on := func(id string) api.FlowsRequest {
		return api.FlowsRequest{Filter: flow.Filter{Terms: []flow.Term{{Field: flow.OnNode, Value: id}}}}
	}
	must.NoError(t, c.operator.Flows(ctx, on(w2.id.String()), got.take))
	must.Eq(t, answers{w2.id: {Error: "node " + w2.id.String() + " did not answer in time"}}, got)

	// An observer that goes ends what its node does.
	gone := errors.New("gone")
	err = c.operator.Flows(ctx, api.FlowsRequest{Filter: on(w1.id.String()).Filter, Follow: true, After: map[fabric.NodeID]string{w1.id: "wait"}}, func(m api.FlowsMessage) error {
		if len(m.Flows) > 0 {
			return gone
		}
		return nil
	})
	must.ErrorIs(t, err, gone)
	must.True(t, (<-asked).Follow)
	must.Eq(t, "gone", (<-asked).After)

	for want, req := range map[string]api.FlowsRequest{
		"the filter: colour: there is no such field": {Filter: flow.Filter{Terms: []flow.Term{{Field: "colour", Value: "x"}}}},
		"is in the future: it is":                    {Filter: flow.Filter{Since: time.Now().Add(time.Hour)}},
		"last: -1 must be from 0 to":                 {Last: -1},
	} {
		err := c.operator.Flows(ctx, req, got.take)
		must.StrContains(t, code(t, api.CodeInvalid, err).Message, want)
	}
	err = c.operator.Flows(ctx, on("aws1/nobody"), got.take)
	must.StrContains(t, code(t, api.CodeNotFound, err).Message, `there is no node "aws1/nobody"`)
	_, err = c.operator.Probe(ctx, []api.Task{{Node: w1.id, Kind: api.TaskFlows, Protocol: fabric.TCP}})
	must.StrContains(t, code(t, api.CodeInvalid, err).Message, "POST /v1/flows")
	must.ErrorContains(t, w.reader(t, c, "default-x").Flows(ctx, api.FlowsRequest{}, got.take), "none of")
}

// What a slow observer does not read is counted, and the nodes do not wait for it.
func TestStreamOfASlowObserver(t *testing.T) {
	b := newTaskBoard()
	node := fabric.NodeID{Zone: "aws1", Name: "w1"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	reading := make(chan struct{})
	type seen struct{ flows, missed uint64 }
	total := make(chan seen, 1)
	go func() {
		var s seen
		b.stream(ctx, []api.Task{{Node: node, Kind: api.TaskFlows, Timeout: time.Minute}}, func(_ fabric.NodeID, r api.TaskResult, missed uint64) {
			<-reading
			s.missed += missed
			if r.Flows != nil {
				s.flows += uint64(len(r.Flows.Flows))
			}
		})
		total <- s
	}()
	tasks := b.next(ctx, node, time.Minute)
	must.Len(t, 1, tasks)
	for range 100 {
		must.NoError(t, b.done(node, api.TaskResult{ID: tasks[0].ID, Ready: true, Flows: &api.FlowBatch{Flows: slices.Repeat([]flow.Flow{{}}, 10)}}))
	}
	must.NoError(t, b.done(node, api.TaskResult{ID: tasks[0].ID, Done: true}))
	close(reading)
	s := <-total
	must.Eq(t, 1000, s.flows+s.missed)
	must.Positive(t, s.missed)
	must.ErrorContains(t, b.done(node, api.TaskResult{ID: tasks[0].ID, Ready: true}), "has no task")
}
