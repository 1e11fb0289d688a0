// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/node/states"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// stander is an engine that publishes its state, and what it judges it by.
type stander struct {
	*Engine
	mu       sync.Mutex
	live     map[desired.Hop]bool
	enforces atomic.Bool
}

func (w *world) set() *states.Set {
	return states.New(states.Verifier{
		VerifyBy: func(chain [][]byte, msg, sig []byte) (identity.Subject, *x509.Certificate, error) {
			return identity.VerifyBy(w.ca.Roots(), identitytest.TrustDomain, chain, msg, sig)
		},
		Node:    w.node,
		Removed: func() fabric.Revocations { return fabric.Revocations{} },
	})
}

func (w *world) stander(zone string) *stander {
	e, _, _ := w.engine(zone)
	s := &stander{Engine: e, live: map[desired.Hop]bool{}}
	s.enforces.Store(true)
	id := w.ca.Node(zone, "p1", fabric.KindProcessor)
	e.stand = &standing{kick: make(chan struct{}, 1), Standing: Standing{
		States: w.set(), Sign: id.Sign, Expiry: id.Expiry, Enforces: s.enforces.Load,
		Tunnels: func() []desired.Tunnel { return desired.FullMesh(w.nodes) },
		Live: func() map[desired.Hop]bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			live := map[desired.Hop]bool{}
			for h, l := range s.live {
				live[h] = l
			}
			return live
		},
	}}
	return s
}

// answer says that everybody answers, but for some.
func (s *stander) answer(nodes []fabric.Node, but ...fabric.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range nodes {
		s.live[desired.Hop{Processor: n.ID()}] = true
	}
	for _, id := range but {
		s.live[desired.Hop{Processor: id}] = false
	}
}

func (s *stander) state1(t *testing.T) desired.State {
	must.NoError(t, s.publish(t.Context()))
	list := s.stand.States.States()
	for _, state := range list {
		if state.Processor == s.self.ID() {
			return state
		}
	}
	t.Fatal("the engine has published nothing")
	return desired.State{}
}

// A processor is ready when its switch enforces and it knows its zone, and each change has a higher
// number.
func TestStateOfTheProcessor(t *testing.T) {
	w := newWorld(t)
	s := w.stander("aws1")
	s.stand.began = time.Now()
	first := s.state1(t)
	must.False(t, first.Ready)
	must.SliceNotEmpty(t, first.Silent) // nothing is known yet
	must.Eq(t, first, s.state1(t))

	// Nobody's agent has come, but they do not answer either; so nothing is waited for.
	var all []fabric.NodeID
	for _, n := range w.nodes {
		all = append(all, n.ID())
	}
	s.answer(w.nodes, all...)
	second := s.state1(t)
	must.True(t, second.Ready)
	must.SliceNotEmpty(t, second.Unreached)
	must.Greater(t, first.Number, second.Number)

	s.answer(w.nodes)
	third := s.state1(t)
	must.SliceEmpty(t, third.Silent)
	must.SliceEmpty(t, third.Unreached)
	must.True(t, third.Ready) // who was complete once stays so

	s.enforces.Store(false)
	must.False(t, s.state1(t).Ready)
	s.enforces.Store(true)
	s.behind.Store(true)
	must.False(t, s.state1(t).Ready)
	s.behind.Store(false)
	last := s.state1(t)
	must.True(t, last.Ready)

	// After a restart it goes on above what others have heard, even if its clock went back.
	again := w.stander("aws1")
	_, err := again.stand.States.Take(s.stand.States.Of([]fabric.NodeID{s.self.ID()}))
	must.NoError(t, err)
	again.now = func() time.Time { return time.UnixMilli(1) }
	must.Greater(t, last.Number, again.state1(t).Number)
}

// What an engine finds out by itself holds in its own switch at once, also if nobody else says
// anything: ways that lead on through a processor that is silent here.
func TestOwnStateIsPutInForce(t *testing.T) {
	w := newWorld(t)
	w.nodes = append(w.nodes, fabric.Node{Zone: "gcp1", Name: "p2", Kind: fabric.KindProcessor})
	s := w.stander("aws1")
	s.topology = func() desired.Topology {
		return desired.NewTopology(w.nodes, desired.FullMesh(w.nodes), s.stand.States.States())
	}
	gone, stays := desired.Hop{Processor: fabric.NodeID{Zone: "gcp1", Name: "p1"}}, desired.Hop{Processor: fabric.NodeID{Zone: "gcp1", Name: "p2"}}
	// hops are those by which the switch leads to gcp1.
	hops := func() map[desired.Hop]bool {
		sw := s.sw.(*recorder)
		sw.mu.Lock()
		defer sw.mu.Unlock()
		set := map[desired.Hop]bool{}
		for _, way := range sw.last.Ways {
			if way.Spread.To.Zone == "gcp1" {
				for _, hop := range way.Spread.Next {
					set[hop] = true
				}
			}
		}
		return set
	}
	s.stand.began = time.Now().Add(-2 * readyAtMost)
	s.answer(w.nodes)
	s.state1(t)
	eventuallyTrue(t, func() bool { return maps.Equal(hops(), map[desired.Hop]bool{gone: true, stays: true}) })
	s.answer(nil, gone.Processor)
	s.state1(t)
	eventuallyTrue(t, func() bool { return maps.Equal(hops(), map[desired.Hop]bool{stays: true}) })
}

// An agent that answers must have listed its endpoints, for a while.
func TestReadyWaitsForAgents(t *testing.T) {
	w := newWorld(t)
	s := w.stander("aws1")
	s.stand.began = time.Now()
	s.answer(w.nodes)
	must.False(t, s.state1(t).Ready)
	s.stand.began = time.Now().Add(-2 * readyAtMost)
	must.True(t, s.state1(t).Ready)
}

// listener is a peer that notes the states that it gets.
type listener struct {
	peer rpc.Peer
	set  *states.Set
	err  error
}

func (l *listener) Call(_ context.Context, method string, params, reply any) error {
	if method != rpc.MethodStates {
		return nil
	}
	if l.err != nil {
		return l.err
	}
	p := params.(rpc.StatesParams)
	if _, err := l.set.Take(p.States); err != nil {
		return err
	}
	if reply == nil {
		return nil
	}
	var r rpc.StatesReply
	r.Newer, r.Lacking = l.set.Compare(p.Numbers)
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, reply)
}

func (l *listener) Peer() rpc.Peer        { return l.peer }
func (l *listener) Done() <-chan struct{} { return nil }

// States reach everybody by relay, and what was missed by comparison; a peer that knows nothing of
// them changes nothing.
func TestStatesAreRelayed(t *testing.T) {
	w := newWorld(t)
	s, other := w.stander("aws1"), w.stander("gcp1")
	s.stand.began, other.stand.began = time.Now(), time.Now()
	listen := func(zone, name string, kind fabric.NodeKind, err error) *listener {
		l := &listener{rpc.Peer{NodeID: fabric.NodeID{Zone: zone, Name: name}, Kind: kind}, w.set(), err}
		must.NoError(t, s.Welcome(t.Context(), l))
		return l
	}
	agent := listen("aws1", "w1", fabric.KindWorkload, nil)
	listen("aws1", "w2", fabric.KindWorkload, &rpc.RemoteError{Message: "unknown method"})
	listen("aws1", "w3", fabric.KindWorkload, errors.New("it has gone"))
	engine := listen("gcp1", "p9", fabric.KindProcessor, nil)
	foreign := other.state1(t)
	_, err := s.Handle(t.Context(), rpc.Peer{NodeID: other.self.ID(), Kind: fabric.KindProcessor}, rpc.MethodStates, encode(t, rpc.StatesParams{States: other.stand.States.Of([]fabric.NodeID{other.self.ID()})}))
	must.NoError(t, err)
	own := s.state1(t)
	eventuallyTrue(t, func() bool {
		for _, l := range []*listener{agent, engine} {
			n := l.set.Numbers()
			if n[own.Processor] != own.Number || n[foreign.Processor] != foreign.Number {
				return false
			}
		}
		return true
	})
	late := listen("gcp1", "p8", fabric.KindProcessor, nil)
	eventuallyTrue(t, func() bool { return late.set.Numbers()[foreign.Processor] == foreign.Number })
	var reply rpc.StatesReply
	answer, err := s.Handle(t.Context(), agent.peer, rpc.MethodStates, encode(t, rpc.StatesParams{Numbers: map[fabric.NodeID]uint64{own.Processor: own.Number + 5}}))
	must.NoError(t, err)
	reply = answer.(rpc.StatesReply)
	must.Len(t, 1, reply.Newer)
	must.Eq(t, []fabric.NodeID{own.Processor}, reply.Lacking)
}

func eventuallyTrue(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		must.True(t, time.Now().Before(end))
	}
}

// forwards is an engine that notes the requests that it gets, and answers them after a while.
type forwards struct {
	peer  rpc.Peer
	takes time.Duration
	count atomic.Int64
}

func (f *forwards) Call(_ context.Context, method string, _, _ any) error {
	if method == rpc.MethodForward {
		time.Sleep(f.takes)
		f.count.Add(1)
	}
	return nil
}

func (f *forwards) Peer() rpc.Peer        { return f.peer }
func (f *forwards) Done() <-chan struct{} { return nil }

// A request goes to all engines of another zone that wants it; those that are known not to answer
// get it too, and are not waited for, unless there is no other.
func TestRequestsGoToAllEnginesOfAZone(t *testing.T) {
	w := newWorld(t)
	p2 := fabric.Node{Fabric: "test", Zone: "gcp1", Name: "p2", Kind: fabric.KindProcessor}
	w.nodes = append(w.nodes, p2)
	s := w.stander("aws1")
	w.agentOf(s.Engine, "w1")
	engines := []*forwards{
		{peer: rpc.Peer{NodeID: fabric.NodeID{Zone: "gcp1", Name: "p1"}, Kind: fabric.KindProcessor}},
		{peer: rpc.Peer{NodeID: p2.ID(), Kind: fabric.KindProcessor}},
	}
	for _, f := range engines {
		must.NoError(t, s.Welcome(t.Context(), f))
		_, err := s.Handle(t.Context(), f.peer, rpc.MethodWant, encode(t, rpc.WantParams{Add: []fabric.Ref{svc}}))
		must.NoError(t, err)
	}
	n := 0
	connect := func() (pending []string) {
		t.Helper()
		before := []int64{engines[0].count.Load(), engines[1].count.Load()}
		n++
		reply, err := w.connect(s.Engine, "w1", w.request(n, "aws1", "w1", svc))
		must.NoError(t, err)
		eventuallyTrue(t, func() bool { return engines[0].count.Load() > before[0] && engines[1].count.Load() > before[1] })
		return reply.Pending
	}
	must.SliceEmpty(t, connect())
	engines[1].takes = 2 * inForce
	must.SliceContains(t, connect(), "gcp1/p2: no answer in time")
	s.answer(w.nodes, p2.ID())
	must.SliceEmpty(t, connect())
	s.answer(w.nodes, p2.ID(), engines[0].peer.NodeID)
	must.SliceContains(t, connect(), "gcp1/p2: no answer in time")
}
