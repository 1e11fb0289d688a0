// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/coalesce"
	"github.com/sif-project/sif/internal/fanout"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/trust/admission"
)

// inForce bounds how long a request waits for other nodes. The agent waits
// 500 ms in all; what is not in force by then follows by itself.
const inForce = 400 * time.Millisecond

// settle bounds a call to another daemon that nobody waits for any more.
const settle = 10 * time.Second

// errSuperseded says that a younger admission is in force than the one that a
// request carries.
var errSuperseded = errors.New("a younger admission is in force")

// Documents hands out the documents of the revision in force. Asking for a
// service makes it an interest: it is then kept up to date.
type Documents interface {
	Document(ctx context.Context, service fabric.Ref) (fabric.Document, error)
	Documents() map[fabric.Ref]fabric.Document
}

// Engine holds the leases of a zone and keeps the switch, the zone's agents
// and the other zones' engines in step with them.
type Engine struct {
	self   fabric.Node
	log    hclog.Logger
	verify admission.Verifier
	docs   Documents
	leases *lease.Set
	sw     Switch
	num    numbers
	nodes  func() []fabric.Node // of the whole fabric
	now    func() time.Time

	reprogram   *coalesce.Func // of program
	programming sync.Mutex     // held while the switch is being programmed
	behind      atomic.Bool    // the switch was not brought to what the leases ask for

	mu      sync.Mutex
	agents  map[fabric.NodeID]*remote // connected agents of the zone
	engines map[fabric.NodeID]*remote // connected engines of other zones
}

// Options is what an Engine is made of.
type Options struct {
	Self      fabric.Node
	Log       hclog.Logger
	Verifier  admission.Verifier
	Documents Documents
	Leases    string // file in which the leases are kept
	Switch    Switch
	Numbers   numbers
	Nodes     func() []fabric.Node
}

// New returns an engine that holds the leases it held when it stopped.
func New(o Options) (*Engine, error) {
	ls, err := lease.Open(o.Leases, o.Log)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		self: o.Self, log: o.Log, verify: o.Verifier, docs: o.Documents, leases: ls,
		sw: o.Switch, num: o.Numbers, nodes: o.Nodes, now: time.Now,
		agents: map[fabric.NodeID]*remote{}, engines: map[fabric.NodeID]*remote{},
	}
	e.reprogram = coalesce.New(e.program)
	return e, nil
}

// Resume takes up the leases from disk: it makes their services interests and
// programs the switch. It must come before anything else.
func (e *Engine) Resume(ctx context.Context) error {
	for _, le := range e.leases.All(e.now()) {
		e.interest(ctx, le.Admission.Service)
	}
	return e.reprogram.Call()
}

// believe returns the admission of a request if it may be believed. One that is
// held was verified when it came and stands until it expires: that its
// certificate has expired meanwhile must not end it when a daemon restarts.
func (e *Engine) believe(r fabric.Request) (fabric.Admission, error) {
	if a, held := e.leases.Held(r, e.now()); held {
		return a, nil
	}
	return e.verify.Verify(r, e.now())
}

// interest makes the document of a service known. A service that the revision
// does not have has no rights, which is no error.
func (e *Engine) interest(ctx context.Context, service fabric.Ref) {
	if _, err := e.docs.Document(ctx, service); err != nil {
		e.log.Warn("no document of the service in the revision in force; it has no rights", logkey.Service, service, logkey.Error, err)
	}
}

// leased returns the services that have leases, whose documents matter.
func (e *Engine) leased() map[fabric.Ref]bool {
	services := map[fabric.Ref]bool{}
	for _, le := range e.leases.All(e.now()) {
		services[le.Admission.Service] = true
	}
	return services
}

// Handle answers the calls of agents and of other engines.
func (e *Engine) Handle(ctx context.Context, from rpc.Peer, method string, params json.RawMessage) (any, error) {
	decode := func(v any) error {
		if err := json.Unmarshal(params, v); err != nil {
			return fmt.Errorf("decode the parameters of %s: %w", method, err)
		}
		return nil
	}
	switch method {
	case rpc.MethodConnect:
		var p rpc.ConnectParams
		if err := decode(&p); err != nil {
			return nil, err
		}
		return e.connect(ctx, from, p)
	case rpc.MethodForward:
		var p rpc.ForwardParams
		if err := decode(&p); err != nil {
			return nil, err
		}
		return e.forward(ctx, from, p)
	case rpc.MethodWithdraw:
		var p rpc.WithdrawParams
		if err := decode(&p); err != nil {
			return nil, err
		}
		return struct{}{}, e.withdraw(from, p)
	case rpc.MethodSync:
		var p rpc.SyncParams
		if err := decode(&p); err != nil {
			return nil, err
		}
		return struct{}{}, e.sync(from, p)
	}
	return nil, fmt.Errorf("an engine does not serve %q", method)
}

// connect takes a connectivity request from an agent of the zone and returns
// when it is in force everywhere, or when waiting any longer would hold up the
// workload.
func (e *Engine) connect(ctx context.Context, from rpc.Peer, p rpc.ConnectParams) (rpc.ConnectReply, error) {
	a, err := e.believe(p.Request)
	if err != nil {
		return rpc.ConnectReply{}, err
	}
	if from.Kind != fabric.KindWorkload || from.Zone != e.self.Zone || a.Host() != from.NodeID {
		return rpc.ConnectReply{}, fmt.Errorf("node %s may not request connectivity for endpoint %s of %s", from.NodeID, a.Endpoint, a.Host())
	}
	if err := e.hold(ctx, lease.Lease{Request: p.Request, Admission: a}); err != nil {
		return rpc.ConnectReply{}, err
	}
	waiting, cancel := context.WithTimeout(ctx, inForce)
	defer cancel()
	// The zone's agents and the other zones hear of it at the same time. What
	// the other zones answer may be news for the agents, so they are told again;
	// whoever knows everything is not called.
	told := make(chan struct{})
	go func() {
		e.tell(waiting, a)
		close(told)
	}()
	pending := e.spread(waiting, p.Request)
	<-told
	pending = append(pending, e.tell(waiting, a)...)
	slices.Sort(pending)
	e.log.Info("connectivity request", logkey.Endpoint, a.Endpoint, logkey.Service, a.Service, logkey.Node, a.Host(), logkey.Pending, pending)
	return rpc.ConnectReply{Pending: pending}, nil
}

// forward takes a request that another zone's engine has accepted. It is
// believed no more than an agent's.
func (e *Engine) forward(ctx context.Context, from rpc.Peer, p rpc.ForwardParams) (rpc.ForwardReply, error) {
	a, err := e.believe(p.Request)
	if err != nil {
		return rpc.ForwardReply{}, err
	}
	if from.Kind != fabric.KindProcessor || from.Zone == e.self.Zone || a.Zone != from.Zone {
		return rpc.ForwardReply{}, fmt.Errorf("engine %s may not forward endpoint %s of zone %s", from.NodeID, a.Endpoint, a.Zone)
	}
	if err := e.hold(ctx, lease.Lease{Request: p.Request, Admission: a}); err != nil {
		return rpc.ForwardReply{}, err
	}
	waiting, cancel := context.WithTimeout(ctx, inForce)
	defer cancel()
	reply := rpc.ForwardReply{Pending: e.tell(waiting, a)}
	for _, le := range e.counterparts([]fabric.Identity{a.Identity()}) {
		if le.Admission.Zone == e.self.Zone {
			reply.Counterparts = append(reply.Counterparts, le.Request)
		}
	}
	return reply, nil
}

// hold keeps a verified lease and returns when the switch is programmed for it.
func (e *Engine) hold(ctx context.Context, le lease.Lease) error {
	changed, err := e.leases.Put(le)
	if err != nil {
		return err
	}
	e.interest(ctx, le.Admission.Service) // after Put: see leased
	if !changed {
		if _, held := e.leases.Held(le.Request, e.now()); !held {
			return fmt.Errorf("request of endpoint %s: %w", le.Admission.Endpoint, errSuperseded)
		}
		if !e.behind.Load() {
			return nil
		}
	}
	return e.reprogram.Call()
}

// spread carries a request to the engines of all other zones, which answer
// with their counterparts. It returns what is not in force when ctx ends; the
// calls go on after that.
func (e *Engine) spread(ctx context.Context, r fabric.Request) (pending []string) {
	var peers []*remote
	for zone, nodes := range e.otherZones() {
		peer := e.engineOf(nodes)
		if peer == nil {
			pending = append(pending, fmt.Sprintf("zone %s: its engine cannot be reached", zone))
			continue
		}
		peers = append(peers, peer)
	}
	forward := func(ctx context.Context, peer *remote) ([]string, error) { return e.forwardTo(ctx, peer, r) }
	for o := range fanout.Call(ctx, settle, peers, forward) {
		if o.Err != nil {
			pending = append(pending, fmt.Sprintf("%s: %v", o.Peer.id, o.Err))
		}
		pending = append(pending, o.Reply...)
	}
	return pending
}

// forwardTo forwards one request to one engine, if it is still in force, and
// takes up the counterparts that it answers with.
func (e *Engine) forwardTo(ctx context.Context, peer *remote, r fabric.Request) (pending []string, err error) {
	peer.order.RLock()
	defer peer.order.RUnlock()
	if _, held := e.leases.Held(r, e.now()); !held {
		return nil, nil // it was withdrawn, or a younger one took its place
	}
	var reply rpc.ForwardReply
	if err := peer.conn.Call(ctx, rpc.MethodForward, rpc.ForwardParams{Request: r}, &reply); err != nil {
		return nil, err
	}
	for _, c := range reply.Counterparts {
		a, err := e.believe(c)
		if err != nil {
			e.log.Warn("counterpart refused", logkey.Node, peer.id, logkey.Error, err)
			continue
		}
		if a.Zone != peer.id.Zone {
			e.log.Warn("counterpart refused: it is not of the engine's zone", logkey.Node, peer.id, logkey.Endpoint, a.Endpoint)
			continue
		}
		if err := e.hold(ctx, lease.Lease{Request: c, Admission: a}); err != nil && !errors.Is(err, errSuperseded) {
			return nil, err
		}
	}
	return reply.Pending, nil
}

// withdraw ends leases on the word of their owner: an agent for its own node,
// an engine for its own zone.
func (e *Engine) withdraw(from rpc.Peer, p rpc.WithdrawParams) error {
	return e.end(from, func(a fabric.Admission) bool { return slices.Contains(p.Endpoints, a.Endpoint) })
}

// sync ends the leases of an owner that it no longer names; it says all that
// it has.
func (e *Engine) sync(from rpc.Peer, p rpc.SyncParams) error {
	return e.end(from, func(a fabric.Admission) bool { return !slices.Contains(p.Endpoints, a.Endpoint) })
}

func (e *Engine) end(from rpc.Peer, gone func(fabric.Admission) bool) error {
	owns := func(a fabric.Admission) bool {
		if a.Zone != from.Zone {
			return false
		}
		return from.Kind == fabric.KindProcessor && from.Zone != e.self.Zone || a.Node == from.Name
	}
	return e.drop(func(a fabric.Admission) bool { return owns(a) && gone(a) })
}

// drop ends leases and lets everybody know who was told of them.
func (e *Engine) drop(gone func(fabric.Admission) bool) error {
	removed, err := e.leases.Remove(gone)
	if len(removed) == 0 {
		return err
	}
	// A switch that cannot be programmed keeps nobody from hearing of it.
	err = errors.Join(err, e.reprogram.Call())
	ctx, cancel := context.WithTimeout(context.Background(), settle)
	defer cancel()
	var own []string
	for _, le := range removed {
		e.log.Info("lease ended", logkey.Endpoint, le.Admission.Endpoint, logkey.Service, le.Admission.Service)
		if le.Admission.Zone == e.self.Zone {
			own = append(own, le.Admission.Endpoint)
		}
	}
	var group errgroup.Group
	if len(own) > 0 {
		for _, peer := range e.remotes(e.engines) {
			group.Go(func() error {
				peer.order.Lock() // after the forwards that are on their way
				defer peer.order.Unlock()
				return peer.conn.Call(ctx, rpc.MethodWithdraw, rpc.WithdrawParams{Endpoints: own}, nil)
			})
		}
	}
	for _, agent := range e.remotes(e.agents) {
		group.Go(func() error { return e.update(ctx, agent) })
	}
	if err := group.Wait(); err != nil {
		e.log.Warn("not everybody heard of the end of a lease; they will", logkey.Error, err)
	}
	return err
}

// Expire ends the leases that are past their admission's life, and those of
// nodes that have left the fabric. An empty roster means that nothing is
// known, so it ends nothing.
func (e *Engine) Expire() error {
	now := e.now()
	known := map[fabric.NodeID]bool{}
	for _, n := range e.nodes() {
		known[n.ID()] = true
	}
	return e.drop(func(a fabric.Admission) bool {
		return !now.Before(a.Expires) || len(known) > 0 && !known[a.Host()]
	})
}

// Refresh brings switch and agents up to a new revision or roster.
func (e *Engine) Refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	err := e.reprogram.Call()
	var group errgroup.Group
	for _, agent := range e.remotes(e.agents) {
		group.Go(func() error { return e.update(ctx, agent) })
	}
	return errors.Join(err, group.Wait())
}

// documents are those of the revision in force, as they hold now.
func (e *Engine) documents() map[fabric.Ref]fabric.Document {
	return fabric.DocumentsAt(e.docs.Documents(), e.now())
}

// program computes what the switch should hold and has it programmed.
func (e *Engine) program() error {
	e.programming.Lock()
	defer e.programming.Unlock()
	want, err := numbered(e.desired(), e.num)
	if err == nil {
		err = e.sw.Program(want)
	}
	e.behind.Store(err != nil)
	return err
}

// desired is what the switch must enforce now.
func (e *Engine) desired() desired.Processor {
	var live []fabric.Admission
	for _, le := range e.leases.All(e.now()) {
		live = append(live, le.Admission)
	}
	return desired.ForProcessor(e.self.Zone, desired.SingleProcessor(e.nodes()), live, e.documents())
}

// otherZones returns the IDs of the processors of every other zone, in order.
func (e *Engine) otherZones() map[string][]fabric.NodeID {
	zones := map[string][]fabric.NodeID{}
	for _, n := range e.nodes() {
		if n.Kind == fabric.KindProcessor && n.Zone != e.self.Zone {
			zones[n.Zone] = append(zones[n.Zone], n.ID())
		}
	}
	for _, ids := range zones {
		slices.SortFunc(ids, fabric.CompareNodeIDs)
	}
	return zones
}
