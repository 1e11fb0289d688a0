// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/daemon"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
	"github.com/sif-project/sif/internal/trust/revocation"
)

// fakeEngine remembers which endpoints it holds, as an engine would: by their requests, whose
// signature is the endpoint's ID here.
type fakeEngine struct {
	before func(method string, endpoint string)
	refuse string // the endpoint that it does not believe
	broken error  // of the connection
	exit   bool
	far    bool

	mu    sync.Mutex
	holds map[string]bool
}

func (f *fakeEngine) Call(ctx context.Context, method string, params, reply any) error {
	var endpoint string
	if p, ok := params.(rpc.ConnectParams); ok {
		endpoint = string(p.Request.Signature)
	}
	if f.before != nil {
		f.before(method, endpoint)
	}
	if err := errors.Join(ctx.Err(), f.broken); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch p := params.(type) {
	case rpc.ConnectParams:
		if endpoint == f.refuse {
			return &rpc.RemoteError{Method: method, Message: "not believed"}
		}
		f.holds[endpoint] = true
	case rpc.WithdrawParams:
		for _, id := range p.Endpoints {
			delete(f.holds, id)
		}
	case rpc.SyncParams:
		differs := rpc.SyncReply{Exit: f.exit, Far: f.far}
		for id := range f.holds {
			if _, listed := p.Endpoints[id]; !listed {
				differs.Unlisted = append(differs.Unlisted, rpc.Held{Endpoint: id})
			}
		}
		for id := range p.Endpoints {
			if !f.holds[id] && id != f.refuse {
				differs.Missing = append(differs.Missing, id)
			}
		}
		*reply.(*rpc.SyncReply) = differs
	}
	return nil
}

func (f *fakeEngine) has() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := []string{}
	for id := range f.holds {
		list = append(list, id)
	}
	slices.Sort(list)
	return list
}

func testEngines(t *testing.T) (*engines, *engine, *fakeEngine) {
	eps, err := openEndpoints(filepath.Join(t.TempDir(), "endpoints.json"))
	must.NoError(t, err)
	node := &daemon.Node{Config: &config.Config{}, Identity: identitytest.NewCA(t).Node("aws1", "w1", fabric.KindWorkload), Removals: &revocation.Watcher{}}
	a := &Agent{node: node, endpoints: eps, log: hclog.NewNullLogger(), exits: newExits()}
	f := &fakeEngine{holds: map[string]bool{}}
	en := &engine{id: fabric.NodeID{Zone: "aws1", Name: "p1"}, conn: f}
	a.engines = newEngines(a, a.log)
	a.engines.conns[en.id] = en
	return a.engines, en, f
}

func at(id string) cnicall.Attachment { return cnicall.Attachment{ContainerID: id, IfName: "eth0"} }

func (e *engines) put(t *testing.T, id string) {
	must.NoError(t, e.agent.endpoints.put(endpoint{
		ID: id, Attachment: at(id), Request: fabric.Request{Signature: []byte(id)}, Admission: fabric.Admission{Endpoint: id},
	})())
}

// An endpoint that is attached while an engine is introduced stays with it.
func TestAttachedDuringIntroduction(t *testing.T) {
	e, en, f := testEngines(t)
	e.put(t, "old")
	f.holds["gone"] = true
	var coming sync.WaitGroup
	f.before = func(method, _ string) {
		if method == rpc.MethodSync {
			coming.Go(func() {
				e.put(t, "new")
				_, err := e.requestConnectivity(context.Background(), at("new"))
				must.NoError(t, err)
			})
			time.Sleep(50 * time.Millisecond)
		}
	}
	must.NoError(t, e.introduce(context.Background(), en))
	coming.Wait()
	must.Eq(t, []string{"new", "old"}, f.has())
}

// A request that is slow does not outlive the endpoint's end.
func TestWithdrawnWhileConnecting(t *testing.T) {
	e, _, f := testEngines(t)
	e.put(t, "a")
	f.before = func(method, _ string) {
		if method == rpc.MethodConnect {
			time.Sleep(100 * time.Millisecond)
		}
	}
	short, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	pending, err := e.requestConnectivity(short, at("a"))
	must.NoError(t, err)
	must.Eq(t, []string{"aws1/p1: no answer in time"}, pending)
	e.agent.endpoints.remove(at("a"))
	e.withdraw(context.Background(), endpoint{ID: "a", Attachment: at("a")})
	must.SliceEmpty(t, f.has())
	// Asking again for what has gone asks for nothing.
	_, err = e.requestConnectivity(context.Background(), at("a"))
	must.NoError(t, err)
	must.SliceEmpty(t, f.has())
}

// An engine that does not answer holds up the end of an endpoint no longer than the caller waits; a
// withdrawal that comes too late spares who is back.
func TestWithdrawalDoesNotWaitForEver(t *testing.T) {
	e, _, f := testEngines(t)
	release := make(chan struct{})
	f.before = func(method, _ string) { <-release }
	e.put(t, "slow")
	go e.requestConnectivity(context.Background(), at("slow"))
	time.Sleep(20 * time.Millisecond)
	e.agent.endpoints.remove(at("slow"))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	start := time.Now()
	e.withdraw(ctx, endpoint{ID: "slow", Attachment: at("slow")})
	must.Less(t, time.Second, time.Since(start))
	e.put(t, "slow")
	close(release)
	_, err := e.requestConnectivity(context.Background(), at("slow"))
	must.NoError(t, err)
	must.Eq(t, []string{"slow"}, f.has())
}

// One endpoint that is refused keeps no other from being introduced, and is pending; without an
// engine nothing is in force.
func TestRefusalAndAbsence(t *testing.T) {
	e, en, f := testEngines(t)
	e.put(t, "a")
	e.put(t, "b")
	f.refuse = "a"
	must.NoError(t, e.introduce(context.Background(), en))
	must.Eq(t, []string{"b"}, f.has())
	must.Len(t, 1, e.pendingOf(at("a")))
	must.SliceEmpty(t, e.pendingOf(at("b")))
	_, err := e.requestConnectivity(context.Background(), at("a"))
	must.ErrorContains(t, err, "not believed")
	delete(e.conns, en.id)
	_, err = e.requestConnectivity(context.Background(), at("b"))
	must.True(t, errors.Is(err, errNoEngine))
}

// An answer that belongs to the request before a renewal does not hide that the renewed one has to
// be sent.
func TestRenewedWhileAsking(t *testing.T) {
	e, en, f := testEngines(t)
	for what, ask := range map[string]func(){
		"an introduction": func() { must.NoError(t, e.introduce(t.Context(), en)) },
		"a request": func() {
			_, err := e.requestConnectivity(t.Context(), at("a"))
			must.NoError(t, err)
		},
	} {
		e.put(t, "a")
		f.before = func(method, _ string) {
			if method != rpc.MethodConnect {
				return
			}
			renewed := endpoint{ID: "a", Attachment: at("a"), Request: fabric.Request{Signature: []byte("renewed")}}
			must.NoError(t, e.agent.endpoints.put(renewed)())
			e.setPending(renewed, []string{"renewed, not announced yet"})
		}
		ask()
		must.Eq(t, []string{"renewed, not announced yet"}, e.pendingOf(at("a")), must.Sprint(what))
		f.before = nil
		_, err := e.requestConnectivity(t.Context(), at("a"))
		must.NoError(t, err)
		must.SliceEmpty(t, e.pendingOf(at("a")))
	}
}

// Everything at once ends with the engine holding just what there is.
func TestEnginesAtOnce(t *testing.T) {
	e, en, f := testEngines(t)
	var all sync.WaitGroup
	for n := range 30 {
		id := fmt.Sprintf("e%02d", n)
		all.Go(func() {
			e.put(t, id)
			_, err := e.requestConnectivity(context.Background(), at(id))
			must.NoError(t, err)
			if n%2 == 0 {
				e.agent.endpoints.remove(at(id))
				e.withdraw(context.Background(), endpoint{ID: id, Attachment: at(id)})
			}
		})
		all.Go(func() { must.NoError(t, e.introduce(context.Background(), en)) })
		all.Go(func() { e.connectAll(t) })
	}
	all.Wait()
	must.Len(t, 15, f.has())
}

func (e *engines) connectAll(t *testing.T) {
	for _, ep := range e.agent.endpoints.all() {
		_, err := e.requestConnectivity(context.Background(), ep.Attachment)
		must.NoError(t, err)
	}
}

// What an engine has lost is requested again at the next comparison, and nothing else; what it
// still has although it has ended is withdrawn.
func TestEngineThatLostEndpoints(t *testing.T) {
	e, en, f := testEngines(t)
	for _, id := range []string{"a", "b", "c"} {
		e.put(t, id)
	}
	must.NoError(t, e.introduce(t.Context(), en))
	must.Eq(t, []string{"a", "b", "c"}, f.has())
	f.holds = map[string]bool{"b": true, "ended": true}
	var asked []string
	f.before = func(method, endpoint string) {
		if method == rpc.MethodConnect {
			f.mu.Lock()
			asked = append(asked, endpoint)
			f.mu.Unlock()
		}
	}
	e.syncAll(t.Context())
	slices.Sort(asked)
	must.Eq(t, []string{"a", "c"}, asked)
	must.Eq(t, []string{"a", "b", "c"}, f.has())
	must.SliceEmpty(t, e.pendingOf(at("a")))
}

// Of several engines, one that takes a request is enough. What the others lack is retried.
func TestRequestToSeveralEngines(t *testing.T) {
	for name, tc := range map[string]struct {
		states  string // of each engine: takes, refuses, broken, late
		err     string
		pending int
		away    bool
	}{
		"all take it":                  {"takes takes takes", "", 0, false},
		"one has died":                 {"takes broken takes", "", 1, false},
		"one is behind":                {"refuses takes", "", 1, false},
		"one does not answer":          {"late takes", "", 1, false},
		"the only one does not answer": {"late", "", 1, false},
		"one left":                     {"broken refuses broken takes", "", 3, false},
		"all refuse":                   {"refuses refuses", "engine aws1/p0: connect at : not believed\nengine aws1/p1: connect at : not believed", 0, false},
		"all that answer refuse":       {"broken refuses", "engine aws1/p1: connect at : not believed", 0, false},
		"all have died":                {"broken broken", "all engines of the zone were lost: ", 0, true},
		"there is none":                {"", "no engine of the zone is connected", 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			e, _, _ := testEngines(t)
			clear(e.conns)
			release := make(chan struct{})
			defer close(release)
			for i, state := range strings.Fields(tc.states) {
				f := &fakeEngine{holds: map[string]bool{}}
				switch state {
				case "refuses":
					f.refuse = "a"
				case "broken":
					f.broken = rpc.ErrClosed
				case "late":
					f.before = func(string, string) { <-release }
				}
				id := fabric.NodeID{Zone: "aws1", Name: fmt.Sprint("p", i)}
				e.conns[id] = &engine{id: id, conn: f}
			}
			e.put(t, "a")
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			pending, err := e.requestConnectivity(ctx, at("a"))
			if tc.err == "" {
				must.NoError(t, err)
				must.Len(t, tc.pending, pending)
				must.Len(t, tc.pending, e.pendingOf(at("a")))
				return
			}
			lines := strings.Split(err.Error(), "\n")
			slices.Sort(lines)
			must.StrHasPrefix(t, tc.err, strings.Join(lines, "\n"))
			must.Eq(t, tc.away, isAway(err))
		})
	}
}
