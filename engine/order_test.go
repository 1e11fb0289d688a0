// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"github.com/shoenig/test/wait"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/node/rpc"
)

// through is a connection to an engine that has before called with each method before it passes the
// call on.
type through struct {
	wire
	before func(method string)
}

func (c through) Call(ctx context.Context, method string, params, reply any) error {
	c.before(method)
	return c.wire.Call(ctx, method, params, reply)
}

func peerOf(e *Engine) rpc.Peer {
	return rpc.Peer{NodeID: e.self.ID(), Kind: fabric.KindProcessor}
}

func (w *world) withdraw(e *Engine, node, endpoint string) {
	params, err := json.Marshal(rpc.WithdrawParams{Endpoints: []string{endpoint}})
	must.NoError(w.t, err)
	_, err = e.Handle(context.Background(), rpc.Peer{NodeID: fabric.NodeID{Zone: e.self.Zone, Name: node}, Kind: fabric.KindWorkload}, rpc.MethodWithdraw, params)
	must.NoError(w.t, err)
}

// An endpoint that comes while an engine is told the list of all endpoints is not taken for one
// that has gone.
func TestEndpointsThatComeDuringSync(t *testing.T) {
	w := newWorld(t)
	aws, _, _ := w.engine("aws1")
	gcp, gcpSwitch, _ := w.engine("gcp1")
	news2 := w.request(2, "aws1", "w1", svc)
	_, err := w.connect(gcp, "w1", w.request(1, "gcp1", "w1", news))
	must.NoError(t, err)
	must.NoError(t, gcp.Welcome(context.Background(), wire{peerOf(gcp), peerOf(aws), aws.Handle, make(chan struct{})}))
	var coming sync.WaitGroup
	first := true
	conn := through{wire: wire{peerOf(aws), peerOf(gcp), gcp.Handle, make(chan struct{})}, before: func(method string) {
		if method == rpc.MethodSync && first {
			first = false
			coming.Go(func() {
				_, err := w.connect(aws, "w1", news2)
				must.NoError(t, err)
			})
			time.Sleep(100 * time.Millisecond)
		}
	}}
	must.NoError(t, aws.Welcome(context.Background(), conn))
	coming.Wait()
	must.Eq(t, []string{"news-1", "svc-2"}, gcpSwitch.endpoints())
}

// The end of an endpoint does not overtake its beginning.
func TestWithdrawalWaitsForForwards(t *testing.T) {
	w := newWorld(t)
	aws, _, _ := w.engine("aws1")
	gcp, gcpSwitch, _ := w.engine("gcp1")
	conn := through{wire: wire{peerOf(aws), peerOf(gcp), gcp.Handle, make(chan struct{})}, before: func(method string) {
		if method == rpc.MethodForward {
			time.Sleep(inForce + 200*time.Millisecond)
		}
	}}
	_, err := w.connect(gcp, "w1", w.request(2, "gcp1", "w1", news))
	must.NoError(t, err)
	must.NoError(t, gcp.Welcome(context.Background(), wire{peerOf(gcp), peerOf(aws), aws.Handle, make(chan struct{})}))
	must.NoError(t, aws.Welcome(context.Background(), conn))
	reply, err := w.connect(aws, "w1", w.request(1, "aws1", "w1", svc))
	must.NoError(t, err)
	must.Eq(t, []string{"aws1/w1: its agent is not connected", "gcp1/p1: no answer in time"}, reply.Pending)
	w.withdraw(aws, "w1", "svc-1")
	time.Sleep(300 * time.Millisecond)
	must.Eq(t, []string{"news-2"}, gcpSwitch.endpoints())
}

// slow is a switch that takes long to be programmed.
type slow struct {
	recorder
	during func()
}

func (s *slow) Program(state SwitchState) error {
	s.during()
	return s.recorder.Program(state)
}

// Others learn of a withdrawal while the switch waits for its datapath.
func TestWithdrawalIsToldBesideTheSwitch(t *testing.T) {
	w := newWorld(t)
	e, _, _ := w.engine("aws1")
	sw := &slow{during: func() {}}
	e.sw = sw
	w1 := w.agentOf(e, "w1")
	for node, r := range map[string]fabric.Request{"w1": w.request(1, "aws1", "w1", svc), "w2": w.request(2, "aws1", "w2", web)} {
		_, err := w.connect(e, node, r)
		must.NoError(t, err)
	}
	must.Eq(t, []string{"web-2"}, w1.endpoints())
	told := false
	sw.during = func() {
		for end := time.Now().Add(10 * time.Second); !told && time.Now().Before(end); time.Sleep(time.Millisecond) {
			told = len(w1.endpoints()) == 0
		}
	}
	w.withdraw(e, "w2", "web-2")
	must.True(t, told)
	must.Eq(t, []string{"svc-1"}, sw.endpoints())
}

// What could not be programmed is no more in force when it is asked for again.
func TestRequestsWhileTheSwitchIsBroken(t *testing.T) {
	w := newWorld(t)
	e, sw, _ := w.engine("aws1")
	w1 := w.agentOf(e, "w1")
	_, err := w.connect(e, "w2", w.request(2, "aws1", "w2", web))
	must.NoError(t, err)
	sw.broken = errors.New("no switch")
	r := w.request(1, "aws1", "w1", svc)
	for range 2 {
		_, err = w.connect(e, "w1", r)
		must.ErrorContains(t, err, "no switch")
	}
	// Whom the agents may talk to is not left as it was because of that.
	must.ErrorContains(t, e.Refresh(context.Background()), "no switch")
	must.Eq(t, []string{"web-2"}, w1.endpoints())
	sw.broken = nil
	_, err = w.connect(e, "w1", r)
	must.NoError(t, err)
	must.Eq(t, []string{"svc-1", "web-2"}, sw.endpoints())
}

// An agent that does not believe in one endpoint stays connected.
func TestRefusedByAnAgent(t *testing.T) {
	w := newWorld(t)
	e, _, _ := w.engine("aws1")
	_, err := w.connect(e, "w1", w.request(1, "aws1", "w1", svc))
	must.NoError(t, err)
	for n := range 2 {
		_, err = w.connect(e, "w2", w.request(2+n, "aws1", "w2", web))
		must.NoError(t, err)
	}
	a := &told{set: map[string]bool{}, refuse: map[string]string{"web-2": "I do not believe it"}}
	c := wire{self: peerOf(e), peer: rpc.Peer{NodeID: fabric.NodeID{Zone: "aws1", Name: "w1"}, Kind: fabric.KindWorkload}, handle: a.handle, done: make(chan struct{})}
	must.NoError(t, e.Welcome(context.Background(), c))
	must.Eq(t, []string{"web-3"}, a.endpoints())
	reply, err := w.connect(e, "w1", w.request(4, "aws1", "w1", svc))
	must.NoError(t, err)
	must.SliceContains(t, reply.Pending, "aws1/w1: endpoint web-2 refused: I do not believe it")
	// What it refused is not compared: it is announced again.
	e.Sync(context.Background())
	must.Eq(t, []string{"web-3"}, a.synced)
}

// A request that is held stands until its admission expires, though the certificate that signed it
// is over; a new one does not.
func TestCertificateThatExpired(t *testing.T) {
	w := newWorld(t)
	e, _, _ := w.engine("aws1")
	over := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }
	r := w.requestBy(w.ca.Issue(svc.SPIFFE(), "", over), 1, "aws1", "w1", svc)
	_, err := w.connect(e, "w1", r)
	must.ErrorContains(t, err, "expired")
	var a fabric.Admission
	must.NoError(t, json.Unmarshal(r.Admission.Payload, &a))
	e.leases.Accept(lease.Lease{Request: r, Admission: a})
	_, err = w.connect(e, "w1", r)
	must.NoError(t, err)
}

// An older admission of an endpoint is refused, and says so.
func TestSupersededRequest(t *testing.T) {
	w := newWorld(t)
	e, _, _ := w.engine("aws1")
	younger := func(a *fabric.Admission) { a.Issued = a.Issued.Add(time.Second) }
	_, err := w.connect(e, "w1", w.request(1, "aws1", "w1", svc, younger))
	must.NoError(t, err)
	_, err = w.connect(e, "w1", w.request(1, "aws1", "w1", svc))
	must.ErrorIs(t, err, errSuperseded)
}

// Calls of everybody at once: for the race detector.
func TestEverybodyAtOnce(t *testing.T) {
	w := newWorld(t)
	aws, _, _ := w.engine("aws1")
	gcp, gcpSwitch, _ := w.engine("gcp1")
	aws.log, gcp.log = hclog.NewNullLogger(), hclog.NewNullLogger()
	_, err := w.connect(gcp, "w1", w.request(30, "gcp1", "w1", news))
	must.NoError(t, err)
	w.join(aws, gcp)
	w.agentOf(aws, "w1")
	w.agentOf(gcp, "w1")
	var all sync.WaitGroup
	for n := range 20 {
		r := w.request(n, "aws1", "w1", svc)
		all.Go(func() {
			_, err := w.connect(aws, "w1", r)
			must.NoError(t, err)
			if n%2 == 0 {
				w.withdraw(aws, "w1", fmt.Sprintf("svc-%d", n))
			}
		})
		all.Go(func() { aws.Sync(context.Background()) })
		all.Go(func() { must.NoError(t, gcp.Refresh(context.Background())) })
	}
	all.Wait()
	must.SliceNotEmpty(t, gcpSwitch.endpoints())
	must.Len(t, 10, aws.own())
	must.Len(t, 11, gcpSwitch.endpoints())
}

// A message for an agent that has connected anew goes over the new connection, also when it was
// meant for the old one: the engine remembers for the new one what the agent was told.
func TestMessageAfterTheConnectionWasReplaced(t *testing.T) {
	w := newWorld(t)
	e, _, _ := w.engine("aws1")
	_, err := w.connect(e, "w1", w.request(1, "aws1", "w1", svc))
	must.NoError(t, err)
	first := w.agentOf(e, "w1")
	old := e.agents[fabric.NodeID{Zone: "aws1", Name: "w1"}]
	second := w.agentOf(e, "w1")
	r := w.request(2, "aws1", "w2", web)
	var a fabric.Admission
	must.NoError(t, json.Unmarshal(r.Admission.Payload, &a))
	e.leases.Accept(lease.Lease{Request: r, Admission: a})
	must.NoError(t, e.update(t.Context(), old))
	must.SliceEmpty(t, first.endpoints())
	must.Eq(t, []string{"web-2"}, second.endpoints())
	must.NoError(t, e.syncAgent(t.Context(), old))
	must.Eq(t, []string{"web-2"}, second.synced)
}

// Another process with a node's certificate takes the place of the node's agent while it is
// connected, and no longer: the agent does not know of it.
func TestAgentTakesItsPlaceAgain(t *testing.T) {
	w := newWorld(t)
	e, _, _ := w.engine("aws1")
	id := fabric.NodeID{Zone: "aws1", Name: "w1"}
	current := func() *remote {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.agents[id]
	}
	connect := func() chan struct{} {
		a := &told{set: map[string]bool{}}
		done := make(chan struct{})
		c := wire{self: peerOf(e), peer: rpc.Peer{NodeID: id, Kind: fabric.KindWorkload}, handle: a.handle, done: done}
		must.NoError(t, e.Welcome(context.Background(), c))
		return done
	}
	becomes := func(what string, is func(*remote) bool) {
		t.Helper()
		must.Wait(t, wait.InitialSuccess(wait.BoolFunc(func() bool { return is(current()) }), wait.Timeout(5*time.Second), wait.Gap(time.Millisecond)), must.Sprint(what))
	}
	agent := connect()
	first := current()
	second := connect()
	third := connect()
	must.False(t, current() == first)
	close(second)
	close(third)
	becomes("the agent's connection", func(r *remote) bool { return r == first })
	close(agent)
	becomes("nothing", func(r *remote) bool { return r == nil })
}
