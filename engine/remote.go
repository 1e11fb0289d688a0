// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/coalesce"
	"github.com/sif-project/sif/internal/fanout"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/node/rpc"
)

// remote is a connection with an agent or an engine. Before its certificates end, another takes its
// place, with the same locks, so that messages on both keep their order; see Engine.newest.
type remote struct {
	id   fabric.NodeID
	conn Conn

	// order keeps messages about an endpoint to another engine in order. Forwards hold it for
	// reading. Messages about ended leases hold it for writing, so that they wait for forwards in
	// progress.
	order *sync.RWMutex

	// told contains, for each endpoint that an agent was told of, the life of its admission. mu
	// keeps the messages about it in order.
	mu   *sync.Mutex
	told map[string]life

	// heard is what the peer listed last. Engine.mu guards it.
	heard heard
	// announce tells another engine what this one wants; nil for an agent. said is what it was told
	// last and knows; nil if that is not known. Engine.mu guards said.
	announce *coalesce.Func
	said     *wants
	// before is the connection whose place this one took, nil if there was none. It takes its place
	// again if it is open when this one ends: a daemon does not know that another process with its
	// certificate was here for a while. Engine.mu guards it.
	before *remote
}

// open returns r, or the connection before it that is open, or nil.
func (r *remote) open() *remote {
	for ; r != nil; r = r.before {
		select {
		case <-r.conn.Done():
		default:
			return r
		}
	}
	return nil
}

// life is when an admission was issued and when it expires.
type life struct{ issued, expires time.Time }

// Conn is a connection to another daemon.
type Conn interface {
	Call(ctx context.Context, method string, params, reply any) error
	Peer() rpc.Peer
	Done() <-chan struct{}
}

// announceAtOnce is the number of requests in one message to an agent, far below the limit of a
// frame. forwardAtOnce is the number of concurrent forwards to an engine that has just connected.
const (
	announceAtOnce = 500
	forwardAtOnce  = 16
)

// Welcome adds the connection of an agent of the zone or of the engine of another zone, brings the
// peer up to date, and removes the connection when it closes. A peer that refuses endpoints stays
// connected.
func (e *Engine) Welcome(ctx context.Context, conn Conn) error {
	peer := conn.Peer()
	r := &remote{id: peer.NodeID, conn: conn, order: new(sync.RWMutex), mu: new(sync.Mutex), told: map[string]life{}}
	switch {
	case peer.Kind.Has(fabric.KindWorkload) && peer.Zone == e.self.Zone:
		e.enter(e.agents, r)
		err := e.update(ctx, r)
		if errors.As(err, new(refusal)) {
			e.log.Warn("counterparts refused", logkey.Node, r.id, logkey.Error, err)
			return nil
		}
		if err == nil {
			err = e.syncAgent(ctx, r)
		}
		if err != nil {
			return fmt.Errorf("bring agent %s up to date: %w", r.id, err)
		}
	case peer.Kind == fabric.KindProcessor && peer.Zone != e.self.Zone:
		r.announce = e.announcer(r.id)
		e.enter(e.engines, r)
		if err := e.offer(ctx, r); err != nil {
			return fmt.Errorf("bring engine %s up to date: %w", r.id, err)
		}
	default:
		return fmt.Errorf("%s node %s is neither an agent of zone %s nor an engine of another zone", peer.Kind, r.id, e.self.Zone)
	}
	return nil
}

func (e *Engine) enter(set map[fabric.NodeID]*remote, r *remote) {
	e.mu.Lock()
	if old := set[r.id]; old != nil {
		r.order, r.mu, r.heard, r.before = old.order, old.mu, old.heard, old.open()
		r.announce = old.announce
	}
	set[r.id] = r
	e.mu.Unlock()
	e.log.Info("connected", logkey.Node, r.id)
	go func() {
		// Beside the rest: what is told of processors must not wait for it.
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		if err := e.compareStates(ctx, r); err != nil {
			e.log.Debug("cannot compare states of processors", logkey.Node, r.id, logkey.Error, err)
		}
	}()
	go func() {
		<-r.conn.Done()
		e.mu.Lock()
		if set[r.id] == r {
			if before := r.before.open(); before != nil {
				before.heard = r.heard
				set[r.id] = before
			} else {
				delete(set, r.id)
			}
		}
		e.mu.Unlock()
		e.log.Info("disconnected, its leases stay in force", logkey.Node, r.id)
	}()
}

// newest returns the connection that took the place of r, or r. The caller holds a lock of r.
func (e *Engine) newest(set map[fabric.NodeID]*remote, r *remote) *remote {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := set[r.id]; n != nil && n.mu == r.mu {
		return n
	}
	return r
}

// own returns the leases of this zone.
func (e *Engine) own() []lease.Lease {
	return e.leases.Where(e.now(), func(a fabric.Admission) bool { return a.Zone == e.self.Zone })
}

// offer tells the engine of another zone what this one wants, and sends it what it wants and lacks.
func (e *Engine) offer(ctx context.Context, r *remote) error {
	if err := r.announce.Call(); err != nil {
		return err
	}
	if err := e.syncEngine(ctx, r); err != nil {
		return err
	}
	err := e.Refresh(ctx)
	if err != nil {
		e.log.Warn("cannot bring everybody up to date, the next synchronisation will", logkey.Error, err)
	}
	return nil
}

// refusal is returned when an agent refused counterparts.
type refusal struct{ reasons map[string]string } // by endpoint

func (r refusal) Error() string {
	var texts []string
	for _, endpoint := range slices.Sorted(maps.Keys(r.reasons)) {
		texts = append(texts, fmt.Sprintf("endpoint %s refused: %s", endpoint, r.reasons[endpoint]))
	}
	return strings.Join(texts, "; ")
}

// relevant returns the leases of other nodes that an agent must know.
func (e *Engine) relevant(r *remote) map[string]lease.Lease {
	var hosted []fabric.Identity
	onNode := func(a fabric.Admission) bool { return a.Host() == r.id }
	for _, le := range e.leases.Where(e.now(), onNode) {
		hosted = append(hosted, le.Admission.Identity())
	}
	all := map[string]lease.Lease{}
	for _, le := range e.counterparts(hosted) {
		if !onNode(le.Admission) { // it knows its own
			all[le.Admission.Endpoint] = le
		}
	}
	return all
}

// update sends an agent the changes among the counterparts of its endpoints, and returns after the
// agent has programmed them. If the agent refuses some, the error is a refusal.
func (e *Engine) update(ctx context.Context, r *remote) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r = e.newest(e.agents, r)
	relevant := e.relevant(r)
	var gone []string
	for endpoint, l := range r.told {
		switch _, stays := relevant[endpoint]; {
		case stays:
		case !e.now().Before(l.expires):
			delete(r.told, endpoint) // the agent sees by its own clock when an admission expires
		default:
			gone = append(gone, endpoint)
		}
	}
	if len(gone) > 0 {
		slices.Sort(gone)
		if err := r.conn.Call(ctx, rpc.MethodWithdraw, rpc.WithdrawParams{Endpoints: gone}, nil); err != nil {
			return err
		}
		for _, endpoint := range gone {
			delete(r.told, endpoint)
		}
	}
	var news []string
	for endpoint, le := range relevant {
		if l, told := r.told[endpoint]; !told || l.issued.Before(le.Admission.Issued) {
			news = append(news, endpoint)
		}
	}
	slices.Sort(news)
	refused := map[string]string{}
	for some := range slices.Chunk(news, announceAtOnce) {
		var params rpc.AnnounceParams
		for _, endpoint := range some {
			params.Requests = append(params.Requests, relevant[endpoint].Request)
		}
		var reply rpc.AnnounceReply
		if err := r.conn.Call(ctx, rpc.MethodAnnounce, params, &reply); err != nil {
			return err
		}
		for _, endpoint := range some {
			if why, no := reply.Refused[endpoint]; no {
				refused[endpoint] = why
				continue
			}
			a := relevant[endpoint].Admission
			r.told[endpoint] = life{a.Issued, a.Expires}
		}
	}
	if len(refused) > 0 {
		return refusal{refused}
	}
	return nil
}

// counterparts returns the leases of endpoints that are counterparts of any of the given identities
// under the revision in force.
func (e *Engine) counterparts(of []fabric.Identity) []lease.Lease {
	isCounterpart := desired.CounterpartOf(of, e.documents())
	return e.leases.Where(e.now(), func(a fabric.Admission) bool { return isCounterpart(a.Identity()) })
}

// tell updates the agents that host counterparts of a, and a's own agent. It returns what is not in
// force when ctx ends; the calls continue after that.
func (e *Engine) tell(ctx context.Context, a fabric.Admission) (pending []string) {
	hosts := map[fabric.NodeID]bool{}
	if a.Zone == e.self.Zone {
		hosts[a.Host()] = true
	}
	for _, le := range e.counterparts([]fabric.Identity{a.Identity()}) {
		if le.Admission.Zone == e.self.Zone {
			hosts[le.Admission.Host()] = true
		}
	}
	var agents []*remote
	for id := range hosts {
		e.mu.Lock()
		agent := e.agents[id]
		e.mu.Unlock()
		if agent == nil {
			pending = append(pending, id.String()+": its agent is not connected")
			continue
		}
		agents = append(agents, agent)
	}
	update := func(ctx context.Context, agent *remote) (struct{}, error) { return struct{}{}, e.update(ctx, agent) }
	for o := range fanout.Call(ctx, callTimeout, agents, update) {
		if o.Err != nil {
			pending = append(pending, fmt.Sprintf("%s: %v", o.Peer.id, o.Err))
		}
	}
	return pending
}

// remotes returns a snapshot of a set of connections.
func (e *Engine) remotes(set map[fabric.NodeID]*remote) []*remote {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]*remote, 0, len(set))
	for _, r := range set {
		list = append(list, r)
	}
	return list
}

// enginesOf returns the connected engines among the given processors: those that answer by some
// tunnel, as far as is known, and those that are known not to.
func (e *Engine) enginesOf(ids []fabric.NodeID) (answering, silent []*remote) {
	answers := map[fabric.NodeID]bool{}
	if e.stand != nil {
		for hop, live := range e.stand.Live() {
			answers[hop.Processor] = answers[hop.Processor] || live
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range ids {
		live, known := answers[id]
		switch r := e.engines[id]; {
		case r == nil:
		case known && !live:
			silent = append(silent, r)
		default:
			answering = append(answering, r)
		}
	}
	return answering, silent
}
