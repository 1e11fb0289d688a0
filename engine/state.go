// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/node/states"
)

const (
	// standInterval is how often the engine looks at the state of its processor, besides when it
	// knows of a change.
	standInterval = 200 * time.Millisecond
	// readyAtMost is how long after its start an engine waits for what it does not know yet: an
	// agent that does not come must not keep a processor from its work.
	readyAtMost = 15 * time.Second
)

// Standing is by what the engine judges the state of its processor, and publishes it.
type Standing struct {
	States *states.Set
	// Sign signs with the key of the node's certificate, which ends at Expiry.
	Sign   func(msg []byte) (sig []byte, chain [][]byte, err error)
	Expiry func() time.Time
	// Live says which tunnels and workload nodes answer; it has none of which that is not known.
	// The hop of a node has no name of a link.
	Live func() map[desired.Hop]bool
	// Tunnels are those among processors of the whole fabric.
	Tunnels func() []desired.Tunnel
	// Enforces reports whether the switch answers, and has what it was told last.
	Enforces func() bool
}

// standing is what the engine has published of its processor.
type standing struct {
	Standing
	kick chan struct{}

	mu       sync.Mutex
	began    time.Time
	complete bool          // what the fabric has was known once
	last     desired.State // that was published
	expiry   time.Time     // of the certificate that signed it
}

// look has the engine look at the state of its processor soon.
func (s *standing) look() {
	if s == nil {
		return
	}
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// keepStanding publishes the state of the processor at each change, until ctx ends. report is told
// what keeps it from that.
func (e *Engine) keepStanding(ctx context.Context, report func(error)) {
	e.stand.mu.Lock()
	e.stand.began = time.Now()
	e.stand.mu.Unlock()
	tick := time.NewTicker(standInterval)
	defer tick.Stop()
	for {
		report(e.publish(ctx))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-e.stand.kick:
		}
	}
}

// publish signs the state of the processor, sends it to everybody who is connected, and puts it in
// force here, if it is another one than before. It waits neither for them nor for the switch, which
// may be what does not answer.
func (e *Engine) publish(ctx context.Context) error {
	s := e.stand
	s.mu.Lock()
	defer s.mu.Unlock()
	state := e.measure()
	state.Number = s.last.Number
	known := s.States.Numbers()[e.self.ID()] // after a restart, others may know of a later one
	expiry := s.Expiry()
	if reflect.DeepEqual(state, s.last) && known == s.last.Number && expiry.Equal(s.expiry) {
		return nil
	}
	state.Number = max(uint64(e.now().UnixMilli()), s.last.Number+1, known+1)
	signed, err := states.Sign(state, s.Sign)
	if err == nil {
		_, err = s.States.Take([]states.Signed{signed})
	}
	if err != nil {
		return fmt.Errorf("publish the state of this processor: %w", err)
	}
	e.log.Info("the processor has another state", logkey.State, describeState(state))
	s.last, s.expiry = state, expiry
	e.relay(ctx, []states.Signed{signed}, fabric.NodeID{})
	go func() {
		if err := e.reprogram.Call(); err != nil {
			e.log.Warn("the switch does not follow the state of its processor, trying again", logkey.Error, err)
		}
	}()
	return nil
}

func describeState(s desired.State) string {
	text := "not ready"
	if s.Ready {
		text = "ready"
	}
	if s.Draining {
		text += ", draining"
	}
	return fmt.Sprintf("%s, silent tunnels: %v, unreached nodes: %v", text, s.Silent, s.Unreached)
}

// measure returns the state of the processor as it is now, without a number. The caller must hold
// the lock of the standing.
func (e *Engine) measure() desired.State {
	s, self := e.stand, e.self.ID()
	live := s.Live()
	state := desired.State{Processor: self, Draining: e.draining()}
	for _, t := range s.Tunnels() {
		if t.B == self {
			t.A, t.B = t.B, t.A
		}
		if hop := (desired.Hop{Processor: t.B, Link: t.Link}); t.A == self && !live[hop] {
			state.Silent = append(state.Silent, hop)
		}
	}
	for _, n := range e.nodes() {
		if n.Zone == self.Zone && n.Kind.Has(fabric.KindWorkload) && !live[desired.Hop{Processor: n.ID()}] {
			state.Unreached = append(state.Unreached, n.ID())
		}
	}
	slices.SortFunc(state.Silent, func(a, b desired.Hop) int { return cmp.Compare(a.String(), b.String()) })
	slices.SortFunc(state.Unreached, fabric.CompareNodeIDs)
	if !s.complete {
		s.complete = !s.began.IsZero() && (time.Since(s.began) > readyAtMost || e.knowsAll(live))
	}
	state.Ready = s.complete && !e.behind.Load() && s.Enforces()
	return state
}

// draining reports whether the operator wants no packets to pass here.
func (e *Engine) draining() bool {
	return slices.ContainsFunc(e.nodes(), func(n fabric.Node) bool { return n.ID() == e.self.ID() && n.Draining })
}

// knowsAll reports whether the agents of the zone and the engines of the other zones have listed
// their endpoints, as far as their nodes answer, nothing of that is missing here, and the engines
// know what this one wants.
func (e *Engine) knowsAll(live map[desired.Hop]bool) bool {
	nodes := e.nodes()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, n := range nodes {
		set := e.engines
		switch {
		case n.Zone == e.self.Zone && n.Kind.Has(fabric.KindWorkload):
			set = e.agents
		case n.Zone == e.self.Zone || !n.Boundary():
			continue
		}
		answers, known := live[desired.Hop{Processor: n.ID()}]
		r := set[n.ID()]
		if !known || answers && (r == nil || r.heard.endpoints == nil || r.heard.missing > 0 || r.announce != nil && r.said != e.wants.Load()) {
			return false
		}
	}
	return true
}

// relay sends states to all connected agents and engines but the one that they came from, and does
// not wait for them. Who misses them gets them with the next comparison.
func (e *Engine) relay(ctx context.Context, news []states.Signed, from fabric.NodeID) {
	for _, r := range e.everybody() {
		if r.id == from {
			continue
		}
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
			defer cancel()
			if err := sendStates(ctx, r.conn, news); err != nil {
				e.log.Debug("cannot send states of processors", logkey.Node, r.id, logkey.Error, err)
			}
		}()
	}
}

// everybody returns the connected agents and engines.
func (e *Engine) everybody() []*remote { return append(e.remotes(e.agents), e.remotes(e.engines)...) }

// sendStates sends states to a peer and returns when they are in force there.
func sendStates(ctx context.Context, to Conn, list []states.Signed) error {
	for some := range slices.Chunk(list, states.MaxMessage) {
		err := to.Call(ctx, rpc.MethodStates, rpc.StatesParams{States: some}, nil)
		if errors.As(err, new(*rpc.RemoteError)) {
			return nil // it has an older version, which knows nothing of states, or its own trouble
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// compareStates exchanges with a peer what either of both lacks.
func (e *Engine) compareStates(ctx context.Context, r *remote) error {
	if e.stand == nil {
		return nil
	}
	var reply rpc.StatesReply
	err := r.conn.Call(ctx, rpc.MethodStates, rpc.StatesParams{Numbers: e.stand.States.Numbers()}, &reply)
	if errors.As(err, new(*rpc.RemoteError)) {
		return nil // likewise
	}
	if err != nil {
		return err
	}
	if e.takeStates(ctx, reply.Newer, r.id) {
		err = e.reprogram.Call()
	}
	return errors.Join(err, sendStates(ctx, r.conn, e.stand.States.Of(reply.Lacking)))
}

// takeStates uses states that a peer sent, sends on what is new, and reports whether anything is.
func (e *Engine) takeStates(ctx context.Context, list []states.Signed, from fabric.NodeID) bool {
	news, err := e.stand.States.Take(list)
	if err != nil {
		e.log.Warn("states of processors refused", logkey.Node, from, logkey.Error, err)
	}
	if len(news) == 0 {
		return false
	}
	e.relay(ctx, news, from)
	e.stand.look() // one of this processor's may be among them
	return true
}

// states answers a peer that sends states, or asks for them. They are in force when it returns.
func (e *Engine) states(ctx context.Context, from rpc.Peer, p rpc.StatesParams) (rpc.StatesReply, error) {
	var reply rpc.StatesReply
	if e.stand == nil {
		return reply, errors.New("this engine has no switch, so it needs no states of processors")
	}
	var err error
	if e.takeStates(ctx, p.States, from.NodeID) {
		err = e.reprogram.Call()
	}
	if p.Numbers != nil {
		reply.Newer, reply.Lacking = e.stand.States.Compare(p.Numbers)
	}
	return reply, err
}

// published returns the state that was published last, for people; nil before the first.
func (e *Engine) published() *api.ProcessorState {
	e.stand.mu.Lock()
	defer e.stand.mu.Unlock()
	last := e.stand.last
	if last.Number == 0 {
		return nil
	}
	s := &api.ProcessorState{Number: last.Number, Ready: last.Ready, Draining: last.Draining}
	for _, hop := range last.Silent {
		s.Silent = append(s.Silent, hop.String())
	}
	for _, id := range last.Unreached {
		s.Unreached = append(s.Unreached, id.String())
	}
	return s
}
