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
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/coalesce"
	"github.com/sif-project/sif/internal/fanout"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/outside/resolve"
	"github.com/sif-project/sif/internal/trust/admission"
)

// inForce limits the time for which a request waits for other nodes. The agent waits 500 ms in
// total. What is not in force by then becomes so later.
const inForce = 400 * time.Millisecond

// callTimeout limits a call to another daemon after its caller has stopped waiting.
const callTimeout = 10 * time.Second

// errSuperseded is returned for a request whose endpoint has a lease with a newer admission.
var errSuperseded = errors.New("a newer admission is in force")

// Documents returns documents of the revision in force. Requesting a document also subscribes to
// its changes.
type Documents interface {
	Document(ctx context.Context, service fabric.Ref) (fabric.Document, error)
	Documents() map[fabric.Ref]fabric.Document
}

// Engine keeps the leases of a zone, and updates the agents of the zone and, at the zone's
// boundary, the switch and the engines of other zones.
type Engine struct {
	self   fabric.Node
	log    hclog.Logger
	verify admission.Verifier
	docs   Documents
	leases *lease.Set
	sw     Switch // nil if there is none
	num    numbers
	nodes  func() []fabric.Node  // of the whole fabric
	exit   func() Exit           // what the switch is
	known  func() fabric.Outside // what is known of the outside besides documents and names
	now    func() time.Time

	reprogram   *coalesce.Func // of program
	enforcing   func() func()
	programming sync.Mutex  // held while the switch is being programmed
	recalling   sync.Mutex  // held while leases are ended, or lost ones are accepted: one that ends meanwhile was not lost
	behind      atomic.Bool // the switch was not brought to what the leases ask for
	resolver    *resolver   // nil if the engine is no exit
	stand       *standing   // nil without a switch
	topology    func() desired.Topology
	// writtenOutside is what the switch was programmed with; guarded by programming.
	writtenOutside fabric.Outside

	mu      sync.Mutex
	agents  map[fabric.NodeID]*remote // connected agents of the zone
	engines map[fabric.NodeID]*remote // connected engines of other zones
	ended   map[string]time.Time      // endpoints of the zone that were withdrawn, and when
	wanted  map[fabric.NodeID]*wants  // of which services the engines of other zones want requests

	wanting sync.Mutex               // held while wants are changed
	needed  map[fabric.Ref]time.Time // of which services the zone needs endpoints, and when last; guarded by wanting
	wants   atomic.Pointer[wants]    // of which services this engine wants requests
}

// Options configures an Engine.
type Options struct {
	Self      fabric.Node
	Log       hclog.Logger
	Verifier  admission.Verifier
	Documents Documents
	Leases    string           // file in which the leases are kept
	Outage    func() time.Time // when the present outage began, zero if there is none; may be nil
	Switch    Switch           // nil: the engine only carries requests
	Numbers   numbers          // of what is in the switch; nil if there is none
	Nodes     func() []fabric.Node
	Exit      func() Exit // what the switch is as an exit; nil: it is none
	Standing  *Standing   // nil: the engine publishes no state of its processor
	// Topology is where the processors are, and which of them live; nil: each one is linked to
	// every other, and all do.
	Topology func() desired.Topology

	// Names is the file in which the outside names in force are kept; empty: the engine is no exit.
	Names    string
	Resolver *resolve.Resolver
	// Report is told what is degraded, or nil when it is no longer.
	Report func(subject string, err error)
	Known  func() fabric.Outside // what is known of the outside besides documents and names
	// Enforcing is called before what the switch must contain is computed, and what it returns when
	// the switch contains that; it may be nil.
	Enforcing func() (done func())
}

// Exit says whether the switch of a processor leads to the outside.
type Exit struct {
	Leads bool // by a port of its own, which judges what leaves
	Far   bool // and the machine has an address and a route for it
}

// New returns an engine with the leases that are stored on disk.
func New(o Options) (*Engine, error) {
	ls, err := lease.Open(o.Leases, o.Outage, o.Log)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		self: o.Self, log: o.Log, verify: o.Verifier, docs: o.Documents, leases: ls,
		sw: o.Switch, num: o.Numbers, nodes: o.Nodes, exit: o.Exit, known: o.Known, now: clock.Now,
		agents: map[fabric.NodeID]*remote{}, engines: map[fabric.NodeID]*remote{},
		ended: map[string]time.Time{}, wanted: map[fabric.NodeID]*wants{}, needed: map[fabric.Ref]time.Time{},
	}
	e.wants.Store(newWants(false, nil))
	if e.exit == nil {
		e.exit = func() Exit { return Exit{} }
	}
	if o.Standing != nil {
		e.stand = &standing{Standing: *o.Standing, kick: make(chan struct{}, 1)}
	}
	if e.topology = o.Topology; e.topology == nil {
		e.topology = func() desired.Topology {
			nodes := e.nodes()
			return desired.NewTopology(nodes, desired.FullMesh(nodes), nil)
		}
	}
	if e.enforcing = o.Enforcing; e.enforcing == nil {
		e.enforcing = func() func() { return func() {} }
	}
	e.reprogram = coalesce.New(e.program)
	if o.Names != "" {
		if e.resolver, err = e.openResolver(o.Names, o.Resolver, o.Report); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// Resume subscribes to the documents of the stored leases and programs the switch. Call it first.
func (e *Engine) Resume(ctx context.Context) error {
	for _, le := range e.leases.All(e.now()) {
		e.interest(ctx, le.Admission.Service)
	}
	e.reviseWants()
	return e.reprogram.Call()
}

// believe verifies a request and returns its admission. A request that is already in force was
// verified when it arrived. It stays valid until it expires, even if its certificate expires first;
// otherwise a restart would end it.
func (e *Engine) believe(r fabric.Request) (fabric.Admission, error) {
	if a, held := e.leases.InForce(r, e.now()); held {
		return a, nil
	}
	return e.verify.Verify(r, e.now())
}

// interest subscribes to the document of a service. A service that is not in the revision has no
// rights, which is not an error.
func (e *Engine) interest(ctx context.Context, service fabric.Ref) {
	if _, err := e.docs.Document(ctx, service); err != nil {
		e.log.Warn("the revision in force has no document of the service, so the service has no rights", logkey.Service, service, logkey.Error, err)
	}
}

// leased returns the services that have leases.
func (e *Engine) leased() map[fabric.Ref]bool {
	services := map[fabric.Ref]bool{}
	for _, le := range e.leases.All(e.now()) {
		services[le.Admission.Service] = true
	}
	return services
}

// Handle answers calls of agents and of other engines.
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
		return e.requestConnectivity(ctx, from, p)
	case rpc.MethodForward:
		var p rpc.ForwardParams
		if err := decode(&p); err != nil {
			return nil, err
		}
		return e.forward(ctx, from, p)
	case rpc.MethodWant:
		var p rpc.WantParams
		if err := decode(&p); err != nil {
			return nil, err
		}
		return e.want(ctx, from, p)
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
		return e.sync(from, p)
	case rpc.MethodRecall:
		var p rpc.RecallParams
		if err := decode(&p); err != nil {
			return nil, err
		}
		return e.recalled(from, p)
	case rpc.MethodResolve:
		var p rpc.ResolveParams
		if err := decode(&p); err != nil {
			return nil, err
		}
		return e.resolve(ctx, from, p)
	case rpc.MethodHold:
		var p rpc.HoldParams
		if err := decode(&p); err != nil {
			return nil, err
		}
		return e.hold(from, p)
	case rpc.MethodStates:
		var p rpc.StatesParams
		if err := decode(&p); err != nil {
			return nil, err
		}
		return e.states(ctx, from, p)
	}
	return nil, fmt.Errorf("unknown method %q", method)
}

// requestConnectivity accepts a connectivity request from an agent of the zone. It returns when the
// request is in force everywhere, or when the workload should not wait longer.
func (e *Engine) requestConnectivity(ctx context.Context, from rpc.Peer, p rpc.ConnectParams) (rpc.ConnectReply, error) {
	a, err := e.believe(p.Request)
	if err != nil {
		return rpc.ConnectReply{}, err
	}
	if !from.Kind.Has(fabric.KindWorkload) || from.Zone != e.self.Zone || a.Host() != from.NodeID {
		return rpc.ConnectReply{}, fmt.Errorf("node %s may not request connectivity for endpoint %s of %s", from.NodeID, a.Endpoint, a.Host())
	}
	e.mu.Lock()
	delete(e.ended, a.Endpoint) // first: it may be withdrawn as soon as it is accepted
	e.mu.Unlock()
	fresh, err := e.take(ctx, lease.Lease{Request: p.Request, Admission: a, Since: e.now()})
	if err != nil {
		return rpc.ConnectReply{}, err
	}
	defer e.leases.Save()()
	e.wantFor(a.Identity())
	waiting, cancel := context.WithTimeout(ctx, inForce)
	defer cancel()
	// The switch is programmed, and the agents of the zone and the other zones are told, at the
	// same time: what is not in force everywhere yet passes nothing. New counterparts may have come
	// from the other zones meanwhile, so the agents are updated again; an agent without changes is
	// not called.
	var beside errgroup.Group
	if fresh {
		beside.Go(e.reprogram.Call)
	}
	beside.Go(func() error {
		e.tell(waiting, a)
		return nil
	})
	pending := e.spread(waiting, p.Request, a.Service)
	if err := beside.Wait(); err != nil {
		return rpc.ConnectReply{}, err
	}
	pending = append(pending, e.tell(waiting, a)...)
	slices.Sort(pending)
	pending = slices.Compact(pending) // several engines may say the same of an agent
	e.log.Info("connectivity request", logkey.Endpoint, a.Endpoint, logkey.Service, a.Service, logkey.Node, a.Host(), logkey.Pending, pending)
	return rpc.ConnectReply{Pending: pending}, nil
}

// forward accepts a request that the engine of another zone has accepted. It is verified like a
// request of an agent.
func (e *Engine) forward(ctx context.Context, from rpc.Peer, p rpc.ForwardParams) (rpc.ForwardReply, error) {
	a, err := e.believe(p.Request)
	if err != nil {
		return rpc.ForwardReply{}, err
	}
	if from.Kind != fabric.KindProcessor || from.Zone == e.self.Zone || a.Zone != from.Zone {
		return rpc.ForwardReply{}, fmt.Errorf("engine %s may not forward endpoint %s of zone %s", from.NodeID, a.Endpoint, a.Zone)
	}
	fresh, err := e.take(ctx, lease.Lease{Request: p.Request, Admission: a, Since: e.now()})
	if err != nil {
		return rpc.ForwardReply{}, err
	}
	defer e.leases.Save()()
	waiting, cancel := context.WithTimeout(ctx, inForce)
	defer cancel()
	var beside errgroup.Group
	if fresh {
		beside.Go(e.reprogram.Call)
	}
	reply := rpc.ForwardReply{Pending: e.tell(waiting, a)}
	if err := beside.Wait(); err != nil {
		return rpc.ForwardReply{}, err
	}
	if e.wantedBy(from.NodeID).said() {
		return reply, nil // it was sent what it wants
	}
	for _, le := range e.counterparts([]fabric.Identity{a.Identity()}) {
		if le.Admission.Zone == e.self.Zone {
			reply.Counterparts = append(reply.Counterparts, le.Request)
		}
	}
	return reply, nil
}

// accept stores a verified lease and returns after the switch is programmed and the lease is on
// disk.
func (e *Engine) accept(ctx context.Context, le lease.Lease) error {
	fresh, err := e.take(ctx, le)
	if err != nil || !fresh {
		return err
	}
	defer e.leases.Save()()
	return e.reprogram.Call()
}

// take stores a verified lease, in memory; the caller has it saved beside its own work. It reports
// whether the switch must be programmed for it to be in force.
func (e *Engine) take(ctx context.Context, le lease.Lease) (fresh bool, err error) {
	changed := e.leases.Accept(le)
	e.interest(ctx, le.Admission.Service) // after Put, so that leased includes it
	if changed {
		return true, nil
	}
	if _, held := e.leases.InForce(le.Request, e.now()); !held {
		return false, fmt.Errorf("request of endpoint %s: %w", le.Admission.Endpoint, errSuperseded)
	}
	return e.behind.Load(), nil
}

// spread forwards a request to all engines of the other zones that want requests of the service,
// because each may carry some of the endpoint's packets, and tells all of them what this engine
// wants, if that has changed. It returns what is not in force when ctx ends; the calls continue
// after that. An engine that is known not to answer is not waited for, if the zone has another one:
// nothing passes there, and it compares when it is back.
func (e *Engine) spread(ctx context.Context, r fabric.Request, service fabric.Ref) (pending []string) {
	forward := func(ctx context.Context, peer *remote) (pending []string, err error) {
		var beside errgroup.Group
		beside.Go(peer.announce.Call)
		if e.wantedBy(peer.id).has(service) {
			pending, err = e.forwardTo(ctx, peer, r)
		}
		return pending, errors.Join(err, beside.Wait())
	}
	unconcerned := func(peer *remote) bool { return e.informed(peer) && !e.wantedBy(peer.id).has(service) }
	var peers []*remote
	for zone, nodes := range e.otherZones() {
		answering, silent := e.enginesOf(nodes)
		switch {
		case len(answering) > 0:
			for range fanout.Call(ended(ctx), callTimeout, slices.DeleteFunc(silent, unconcerned), forward) {
				continue // their calls go on
			}
		case len(silent) > 0:
			answering = silent
		default:
			pending = append(pending, fmt.Sprintf("zone %s: its engine cannot be reached", zone))
		}
		peers = append(peers, slices.DeleteFunc(answering, unconcerned)...)
	}
	for o := range fanout.Call(ctx, callTimeout, peers, forward) {
		if o.Err != nil {
			pending = append(pending, fmt.Sprintf("%s: %v", o.Peer.id, o.Err))
		}
		pending = append(pending, o.Reply...)
	}
	return pending
}

// ended returns a context with the values of ctx that has ended.
func ended(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	return ctx
}

// forwardTo forwards one request to one engine, if the request is still in force, and accepts the
// counterparts in the answer.
func (e *Engine) forwardTo(ctx context.Context, peer *remote, r fabric.Request) (pending []string, err error) {
	peer.order.RLock()
	defer peer.order.RUnlock()
	peer = e.newest(e.engines, peer)
	if _, held := e.leases.InForce(r, e.now()); !held {
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
			e.log.Warn("counterpart refused: it is not in the zone of the engine that sent it", logkey.Node, peer.id, logkey.Endpoint, a.Endpoint)
			continue
		}
		if err := e.accept(ctx, lease.Lease{Request: c, Admission: a}); err != nil && !errors.Is(err, errSuperseded) {
			return nil, err
		}
	}
	return reply.Pending, nil
}

// withdraw ends leases on request of their owner: an agent for its own node, an engine for its own
// zone.
func (e *Engine) withdraw(from rpc.Peer, p rpc.WithdrawParams) error {
	owns := e.ownedBy(from)
	return e.drop(func(le lease.Lease) bool {
		return owns(le.Admission) && slices.Contains(p.Endpoints, le.Admission.Endpoint)
	}, true)
}

// ownedBy returns the function that says whether a peer speaks for an endpoint.
func (e *Engine) ownedBy(from rpc.Peer) func(fabric.Admission) bool {
	return func(a fabric.Admission) bool {
		if from.Zone != e.self.Zone {
			return from.Kind == fabric.KindProcessor && a.Zone == from.Zone
		}
		return from.Kind.Has(fabric.KindWorkload) && a.Host() == from.NodeID
	}
}

// drop ends leases and informs the agents that were told of them. The engines of other zones are
// informed of a withdrawal; the end of an admission or of a node, and a revocation, they see for
// themselves, by their own clocks and lists.
func (e *Engine) drop(gone func(lease.Lease) bool, withdrawn bool) error {
	removed, own := e.end(gone, withdrawn)
	if len(removed) == 0 {
		return nil
	}
	for _, le := range removed {
		e.log.Info("lease ended", logkey.Endpoint, le.Admission.Endpoint, logkey.Service, le.Admission.Service)
	}
	// The others are informed while the switch waits for its datapath, and even if it cannot be
	// programmed.
	informed := make(chan struct{})
	go func() {
		defer close(informed)
		e.inform(own)
	}()
	err := e.reprogram.Call()
	select {
	case <-informed:
	case <-time.After(inForce): // one that does not answer must not keep the caller from what it does next
	}
	return err
}

// inform tells the engines of other zones that want to know of it of endpoints of this zone that
// were withdrawn, and the agents of what they were told of and has ended. Who wanted it earlier and
// has it still, hears of it when it compares.
func (e *Engine) inform(own []fabric.Admission) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	var group errgroup.Group
	for _, peer := range e.remotes(e.engines) {
		p, wants := rpc.WithdrawParams{}, e.wantedBy(peer.id)
		for _, a := range own {
			if wants.has(a.Service) {
				p.Endpoints = append(p.Endpoints, a.Endpoint)
			}
		}
		if len(p.Endpoints) == 0 {
			continue
		}
		group.Go(func() error {
			peer.order.Lock() // after the forwards that are on their way
			defer peer.order.Unlock()
			peer := e.newest(e.engines, peer)
			return peer.conn.Call(ctx, rpc.MethodWithdraw, p, nil)
		})
	}
	for _, agent := range e.remotes(e.agents) {
		group.Go(func() error { return e.update(ctx, agent) })
	}
	if err := group.Wait(); err != nil {
		e.log.Warn("cannot inform everybody about ended leases, the next synchronisation will", logkey.Error, err)
	}
}

// end removes leases, and remembers those of the zone that were withdrawn, which it returns as own.
func (e *Engine) end(gone func(lease.Lease) bool, withdrawn bool) (removed []lease.Lease, own []fabric.Admission) {
	e.recalling.Lock()
	defer e.recalling.Unlock()
	removed = e.leases.Remove(gone)
	for _, le := range removed {
		if withdrawn && le.Admission.Zone == e.self.Zone {
			own = append(own, le.Admission)
		}
	}
	e.remember(own)
	return removed, own
}

// Expire ends leases whose admission has expired, whose node has left the roster, or was removed
// and came back, and those that are revoked. With an empty roster, no node has left.
func (e *Engine) Expire() error {
	now := e.now()
	known := map[fabric.NodeID]bool{}
	for _, n := range e.nodes() {
		known[n.ID()] = true
	}
	if len(known) > 0 {
		e.forgetWants(known)
	}
	return e.drop(func(le lease.Lease) bool {
		a := le.Admission
		return !e.leases.Holds(le, now) || len(known) > 0 && !known[a.Host()] || e.verify.Void(le.Request, a) != nil
	}, false)
}

// Refresh updates the switch, the agents, and what is wanted of other zones, after a change of the
// revision or the roster.
func (e *Engine) Refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	e.reviseWants()
	var group errgroup.Group
	group.Go(func() error {
		e.announceWants(ctx)
		return nil
	})
	err := e.reprogram.Call()
	for _, agent := range e.remotes(e.agents) {
		group.Go(func() error { return e.update(ctx, agent) })
	}
	return errors.Join(err, group.Wait())
}

// documents returns the documents of the revision in force, without expired contracts.
func (e *Engine) documents() map[fabric.Ref]fabric.Document {
	return fabric.DocumentsAt(e.docs.Documents(), e.now())
}

// program computes what the switch must contain and programs it.
func (e *Engine) program() error {
	enforced := e.enforcing()
	if e.sw == nil {
		enforced()
		return nil
	}
	e.programming.Lock()
	defer e.programming.Unlock()
	// What has no number is left out; the rest is written nevertheless, removals above all.
	e.writtenOutside = e.known()
	if e.resolver != nil {
		e.writtenOutside.Named = e.resolver.names.Named()
	}
	want, lacking := numbered(e.desired(), e.num)
	err := e.sw.Program(want)
	if err == nil {
		enforced()
	}
	err = errors.Join(err, lacking)
	e.behind.Store(err != nil)
	e.stand.look()
	return err
}

// desired returns what the switch must enforce. The caller must hold programming.
func (e *Engine) desired() desired.Processor {
	var live []fabric.Admission
	for _, le := range e.leases.All(e.now()) {
		if e.verify.Void(le.Request, le.Admission) == nil { // it may have been verified before it was revoked, and stored after
			live = append(live, le.Admission)
		}
	}
	return desired.ForProcessor(e.self.ID(), e.topology(), live, e.documents(), e.writtenOutside)
}

// otherZones returns the processors of every other zone that have a switch, in order. Without a
// switch of its own, an engine exchanges nothing with them.
func (e *Engine) otherZones() map[string][]fabric.NodeID {
	zones := map[string][]fabric.NodeID{}
	for _, n := range e.nodes() {
		if e.self.Boundary() && n.Boundary() && n.Zone != e.self.Zone {
			zones[n.Zone] = append(zones[n.Zone], n.ID())
		}
	}
	for _, ids := range zones {
		slices.SortFunc(ids, fabric.CompareNodeIDs)
	}
	return zones
}
