// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/revision"
	"github.com/sif-project/sif/internal/trust/signature"
)

func TestHistory(t *testing.T) {
	w := newWorld(t)
	t.Run("plan", func(t *testing.T) { testPlan(t, w) })
	t.Run("history and rollback", func(t *testing.T) { testRollback(t, w) })
	t.Run("guardrails", func(t *testing.T) { testGuardrails(t, w) })
	t.Run("collection", func(t *testing.T) { testCollect(t, w) })
	t.Run("collection against applies", func(t *testing.T) { testCollectConcurrent(t, w) })
	t.Run("blocking reads", func(t *testing.T) { testBlocking(t, w) })
}

// ported returns testDomain with other ports.
func ported(name string, port uint16) *fabric.Domain {
	d := testDomain(name)
	d.Contracts[0].Rules[0].Ports = []fabric.PortRange{{From: port, To: port}}
	return d
}

func testPlan(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	plan, err := c.operator.Plan(ctx, api.GraphRequest{Domains: domains(testDomain("app")), Message: "why"})
	must.NoError(t, err)
	must.NoError(t, plan.Check())
	must.True(t, plan.Changed)
	must.Len(t, 1, plan.Delta.Reach)
	must.Eq(t, fabric.StandsAllowed, plan.Delta.Reach[0].Is)
	_, _, err = revision.ReadCurrent(ctx, w.consul)
	must.ErrorIs(t, err, revision.ErrNoRevision)

	// A plan can be read from its file, unless it was altered.
	data, err := json.Marshal(plan)
	must.NoError(t, err)
	var kept api.Plan
	must.NoError(t, json.Unmarshal(data, &kept))
	must.NoError(t, kept.Check())
	kept.Request.Domains["app"].Contracts[0].Rules[0].Ports[0].To = 9000
	must.ErrorContains(t, kept.Check(), "altered")

	reply, err := c.operator.Apply(ctx, plan.Apply())
	must.NoError(t, err)
	must.Eq(t, plan.Root, reply.Pointer.Root)

	// The graph was changed after the plan.
	second, err := c.operator.Plan(ctx, api.GraphRequest{Domains: domains(ported("app", 81))})
	must.NoError(t, err)
	must.Len(t, 2, second.Delta.Reach)
	_, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("other"))})
	must.NoError(t, err)
	_, err = c.operator.Apply(ctx, second.Apply())
	code(t, api.CodeConflict, err)

	// A request that leads to another root than the planned one.
	wrong := second.Apply()
	sequence := uint64(2)
	wrong.CAS = &sequence
	_, err = c.operator.Apply(ctx, wrong)
	must.StrContains(t, code(t, api.CodeConflict, err).Message, "plan it again")

	same, err := c.operator.Plan(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	must.False(t, same.Changed)
	must.True(t, same.Delta.Empty())

	// A plan contains the problems that prevent it.
	bad := testDomain("app")
	bad.Contracts[0].Responders[0].Name = "svx"
	refused, err := c.operator.Plan(ctx, api.GraphRequest{Domains: domains(bad)})
	must.NoError(t, err)
	must.Len(t, 1, refused.Problems)
	must.True(t, refused.Root.IsZero())

	// A plan contains the live endpoints and connections that it affects.
	c.table.mu.Lock()
	c.table.grants[kvkey.Admission{Node: fabric.NodeID{Zone: "aws1", Name: "w1"}, Endpoint: "alloc"}] = &grant{admission: fabric.Admission{Service: fabric.Ref{Domain: "app", Name: "svc"}, Expires: time.Now().Add(time.Hour)}}
	c.table.grants[kvkey.Admission{Node: fabric.NodeID{Zone: "aws1", Name: "w1"}, Endpoint: "stranger"}] = &grant{admission: fabric.Admission{Service: fabric.Ref{Domain: "other", Name: "svc"}, Expires: time.Now().Add(time.Hour)}}
	c.table.mu.Unlock()
	flow := api.FlowStatus{From: fabric.Ref{Domain: "app", Name: "proxy"}, To: fabric.Ref{Domain: "app", Name: "svc"}, Protocol: fabric.TCP, Port: 8080, Count: 3, Contract: fabric.Ref{Domain: "app", Name: "frontend"}}
	c.reports.put(identity.Node{NodeID: fabric.NodeID{Zone: "aws1", Name: "w1"}}, api.NodeStatus{Flows: []api.FlowStatus{flow}})
	third, err := c.operator.Plan(ctx, api.GraphRequest{RemoveDomains: []string{"app"}})
	must.NoError(t, err)
	must.Eq(t, []api.Touched{{Endpoint: "alloc", Node: "aws1/w1", Service: flow.To, Effect: "removed"}}, third.Touched)
	must.Eq(t, []api.CutFlow{{Node: "aws1/w1", FlowStatus: flow}}, third.Cut)
	must.NoError(t, third.Check())
}

func testRollback(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	for i := range 3 {
		_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(ported("app", uint16(80+i))), Message: fmt.Sprint("step ", i), Files: fabric.HashOf([]byte{byte(i)})})
		must.NoError(t, err)
	}
	history, err := c.operator.History(ctx)
	must.NoError(t, err)
	must.Len(t, 3, history.Changes)
	for i, h := range history.Changes {
		must.Eq(t, uint64(3-i), h.Sequence)
		must.Eq(t, fmt.Sprint("step ", 2-i), h.Message)
		must.Eq(t, fabric.HashOf([]byte{byte(2 - i)}), h.Files)
		must.StrHasPrefix(t, "token ", h.Author)
	}
	old, err := c.operator.GraphAt(ctx, 1)
	must.NoError(t, err)
	must.Eq(t, domains(ported("app", 80)), old.Graph.Domains)
	must.Eq(t, "step 0", old.Change.Message)
	_, err = c.operator.GraphAt(ctx, 9)
	must.StrContains(t, code(t, api.CodeNotFound, err).Message, "reaches from 1 to 3")

	diff, err := c.operator.Diff(ctx, api.DiffRequest{From: 1})
	must.NoError(t, err)
	must.Eq(t, 3, diff.To)
	must.Len(t, 2, diff.Delta.Reach)

	dry, err := c.operator.Rollback(ctx, api.RollbackRequest{Revision: 1, DryRun: true})
	must.NoError(t, err)
	must.Eq(t, 3, dry.Pointer.Sequence)
	must.Len(t, 2, dry.Delta.Reach)
	back, err := c.operator.Rollback(ctx, api.RollbackRequest{Revision: 1, Message: "oops"})
	must.NoError(t, err)
	must.True(t, back.Changed)
	must.Eq(t, 4, back.Pointer.Sequence)
	must.Eq(t, history.Changes[2].Root, back.Pointer.Root)
	history, err = c.operator.History(ctx)
	must.NoError(t, err)
	must.Eq(t, 1, history.Changes[0].Rollback)

	// What the API returns can be verified by the client.
	anchor := &signature.Anchor{Keys: c.cfg.Identity.Keys(), Source: "Vault"}
	must.Eq(t, signature.Finding{State: signature.Verified, Source: "Vault"}, signature.Check(anchor, history.Signed, history.Pointer))
	must.NoError(t, signature.History(history.Pointer, history.Changes))
	for _, read := range []func() (api.GraphReply, error){
		func() (api.GraphReply, error) { return c.operator.Graph(ctx) }, func() (api.GraphReply, error) { return c.operator.GraphAt(ctx, 2) },
	} {
		g, err := read()
		must.NoError(t, err)
		must.Eq(t, signature.Verified, signature.Check(anchor, g.Signed, g.Pointer).State)
		if g.Change == nil {
			must.NoError(t, signature.Graph(g.Pointer, g.Graph))
		} else {
			must.NoError(t, signature.Past(*g.Change, g.Graph))
		}
	}

	// A controller that is restarted, with its stored revision or without, knows the whole history.
	c.stop()
	for _, dir := range []string{c.dir, t.TempDir()} {
		again := w.start(t, dir, nil, false)
		same, err := again.operator.History(ctx)
		must.NoError(t, err)
		must.Eq(t, history, same)
		again.stop()
	}

	// An altered entry is refused.
	entry := history.Pointer.Change
	_, err = w.consul.KV().Put(&consulapi.KVPair{Key: kvkey.Object(entry).String(), Value: []byte(`{"sequence":4}`)}, nil)
	must.NoError(t, err)
	last := w.start(t, c.dir, nil, false)
	_, err = last.operator.History(ctx)
	must.StrContains(t, code(t, api.CodeRevision, err).Message, "altered")
}

func testGuardrails(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	pos := fabric.Position{File: "org.sif.hcl", Line: 2, Column: 3}
	rail := fabric.Guardrail{Name: "no-app", Deny: []fabric.Denial{{To: fabric.Labels{"domain": "app"}, Pos: pos}}, Pos: pos}
	_, err := c.operator.Apply(ctx, api.GraphRequest{Guardrails: []fabric.Guardrail{rail}})
	must.NoError(t, err)
	_, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
	must.StrContains(t, code(t, api.CodeProblems, err).Details.Problems[0].Summary, `guardrail "no-app" denies at org.sif.hcl:2:3`)
	plan, err := c.operator.Plan(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	must.Len(t, 1, plan.Problems)
	must.Len(t, 1, plan.Delta.Reach)

	// They are still there after a restart.
	c.stop()
	for _, dir := range []string{c.dir, t.TempDir()} {
		again := w.start(t, dir, nil, false)
		g, err := again.operator.Graph(ctx)
		must.NoError(t, err)
		must.Eq(t, []fabric.Guardrail{rail}, g.Graph.Guardrails)
		again.stop()
	}
	c = w.start(t, c.dir, nil, false)
	reply, err := c.operator.Apply(ctx, api.GraphRequest{RemoveGuardrails: []string{"no-app"}, Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	must.SliceEmpty(t, reply.Graph.Guardrails)
	_, err = c.operator.Apply(ctx, api.GraphRequest{RemoveGuardrails: []string{"no-app"}})
	code(t, api.CodeNotFound, err)

	// A contract that waits for consent is reported.
	foreign := testDomain("app")
	foreign.Contracts[0].Responders = []fabric.Ref{{Domain: "news", Name: "svc"}}
	reply, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(foreign, testDomain("news"))})
	must.NoError(t, err)
	must.Eq(t, []fabric.Waiting{{Contract: fabric.Ref{Domain: "app", Name: "frontend"}, For: []fabric.Ref{{Domain: "news", Name: "svc"}}}}, reply.Waiting)
	g, err := c.operator.Graph(ctx)
	must.NoError(t, err)
	must.Eq(t, reply.Waiting, g.Waiting)
}

func objects(t *testing.T, w *world) int {
	t.Helper()
	keys, _, err := w.consul.KV().Keys("sif/v1/obj/", "", nil)
	must.NoError(t, err)
	return len(keys)
}

func testCollect(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	c.policy.keep = 3
	for i := range 8 {
		_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(ported("app", uint16(80+i)))})
		must.NoError(t, err)
	}
	before := objects(t, w)
	removed, err := c.policy.collect(ctx)
	must.NoError(t, err)
	must.Positive(t, removed)
	must.Eq(t, before-removed, objects(t, w))
	removed, err = c.policy.collect(ctx)
	must.NoError(t, err)
	must.Zero(t, removed)

	// The revisions of the history are complete; all other objects were deleted.
	c.stop()
	again := w.start(t, t.TempDir(), nil, false)
	history, err := again.operator.History(ctx)
	must.NoError(t, err)
	must.Len(t, 3, history.Changes)
	for i, h := range history.Changes {
		g, err := again.operator.GraphAt(ctx, h.Sequence)
		must.NoError(t, err)
		must.Eq(t, domains(ported("app", uint16(87-i))), g.Graph.Domains)
		for _, o := range fabric.Compile(g.Graph).Objects {
			found, err := revision.Fetch(ctx, w.consul, []fabric.Hash{o.Hash})
			must.NoError(t, err)
			must.Eq(t, string(o.Data), string(found[o.Hash]))
		}
	}
	_, err = again.operator.GraphAt(ctx, 5)
	code(t, api.CodeNotFound, err)
	_, err = again.operator.Rollback(ctx, api.RollbackRequest{Revision: 6})
	must.NoError(t, err)

	// If a revision of the history cannot be read in full, nothing is deleted.
	again.policy.keep = 2
	var root fabric.Root
	must.NoError(t, revision.ReadObject(ctx, w.consul, history.Changes[0].Root, &root))
	_, err = w.consul.KV().Delete(kvkey.Object(root.Domains).String(), nil)
	must.NoError(t, err)
	before = objects(t, w)
	_, err = again.policy.collect(ctx)
	must.ErrorContains(t, err, "is missing")
	must.Eq(t, before, objects(t, w))
}

// Two controllers apply changes that need deleted objects again, while two delete as many objects
// as they can. All objects of the revision in force exist at any time.
func testCollectConcurrent(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	cfg := c.cfg
	cfg.DataDir, cfg.History = t.TempDir(), 1
	c.policy.keep = 1
	second := newPolicy(cfg)
	must.NoError(t, second.load(ctx))
	done := make(chan struct{})
	var collectors, appliers sync.WaitGroup
	removed := 0
	for _, p := range []*policy{c.policy, second} {
		collectors.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				n, _ := p.collect(ctx) // conflicts are expected
				if p == second {
					removed += n
				}
			}
		})
		appliers.Go(func() {
			for i := range 30 {
				if _, err := p.apply(ctx, api.GraphRequest{Domains: domains(ported("app", uint16(80+i%2)))}, "", ""); err != nil {
					t.Error(err)
				}
			}
		})
	}
	appliers.Wait()
	close(done)
	collectors.Wait()
	must.NoError(t, second.load(ctx)) // the other controller may have made the last change
	_, err := second.collect(ctx)
	must.NoError(t, err)
	held := second.current.Load()
	for _, o := range fabric.Compile(held.graph).Objects {
		found, err := revision.Fetch(ctx, w.consul, []fabric.Hash{o.Hash})
		must.NoError(t, err)
		must.Eq(t, string(o.Data), string(found[o.Hash]), must.Sprint(o.Hash))
	}
	t.Logf("%d revisions, at least %d objects removed, %d left", held.pointer.Sequence, removed, objects(t, w))
}

func testBlocking(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	empty, index, err := c.operator.WatchGraph(ctx, api.Query{})
	must.NoError(t, err)
	must.Eq(t, 0, empty.Pointer.Sequence)
	must.Positive(t, index)
	begin := time.Now()
	_, same, err := c.operator.WatchGraph(ctx, api.Query{Index: index, Wait: 300 * time.Millisecond})
	must.NoError(t, err)
	must.Eq(t, index, same)
	must.Greater(t, 250*time.Millisecond, time.Since(begin))

	got := make(chan uint64, 3)
	go func() {
		g, _, err := c.operator.WatchGraph(ctx, api.Query{Index: index})
		if err != nil {
			t.Error(err)
		}
		got <- g.Pointer.Sequence
	}()
	go func() {
		h, _, err := c.operator.WatchHistory(ctx, api.Query{Index: index})
		if err != nil {
			t.Error(err)
		}
		got <- h.Pointer.Sequence
	}()
	time.Sleep(100 * time.Millisecond)
	_, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	must.Eq(t, 1, <-got)
	must.Eq(t, 1, <-got)

	_, index, err = c.operator.WatchStatus(ctx, api.Query{})
	must.NoError(t, err)
	node := w.node(t, c, "w1")
	node.register(t, "192.0.2.1")
	go func() {
		time.Sleep(100 * time.Millisecond)
		if _, err := node.Report(ctx, api.NodeStatus{Sequence: 1}); err != nil {
			t.Error(err)
		}
	}()
	status, next, err := c.operator.WatchStatus(ctx, api.Query{Index: index, Wait: 20 * time.Second})
	must.NoError(t, err)
	must.Greater(t, index, next)
	must.Eq(t, 1, status.Nodes[0].Sequence)

	// Long polls do not prevent a controller from stopping.
	_, index, err = c.operator.WatchGraph(ctx, api.Query{})
	must.NoError(t, err)
	go func() {
		_, _, _ = c.operator.WatchGraph(ctx, api.Query{Index: index})
		got <- 0
	}()
	time.Sleep(100 * time.Millisecond)
	begin = time.Now()
	c.stop()
	<-got
	must.Less(t, 4*time.Second, time.Since(begin))
}
