// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/fanout"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/node/states"
	"github.com/sif-project/sif/internal/trust/identity"
)

// callTimeout limits a call to an engine after its caller has stopped waiting.
const callTimeout = 10 * time.Second

// introduceAtOnce is the number of concurrent requests to an engine that has just connected.
const introduceAtOnce = 16

// errNoEngine is returned when no engine is connected that could be asked for connectivity.
var errNoEngine = away{errors.New("no engine of the zone is connected")}

// caller is a connection to an engine.
type caller interface {
	Call(ctx context.Context, method string, params, reply any) error
}

// engine is a connected engine.
type engine struct {
	id   fabric.NodeID
	conn caller // replaced before its certificates end; see engines.enter

	latest caller // the same, guarded by engines.mu

	// order keeps messages about an endpoint in order. Requests hold it for reading. Messages about
	// removed endpoints hold it for writing, so that they wait for requests in progress.
	order sync.RWMutex
}

// engines keeps a connection to each engine of the zone.
type engines struct {
	agent *Agent
	log   hclog.Logger
	// silent reports whether an engine is known not to answer, by its link. No call waits for it.
	silent func(fabric.NodeID) bool
	// moved is called when an engine said something new about its switch as an exit.
	moved func()
	// zone are the other agents of the zone, who are told when no engine answers; nil without any.
	zone *neighbours

	mu    sync.Mutex
	conns map[fabric.NodeID]*engine
	// gone are the engines that are not connected although that was tried, or that were lost.
	gone map[fabric.NodeID]bool
	// compared are the connected engines that have listed the counterparts of this node.
	compared map[fabric.NodeID]bool
	// pending lists, for each endpoint, where its connectivity is not in force yet. An endpoint
	// that is missing here was not requested since the agent started.
	pending map[cnicall.Attachment][]string
}

func newEngines(a *Agent, log hclog.Logger) *engines {
	return &engines{
		agent: a, log: log, silent: func(fabric.NodeID) bool { return false }, moved: func() {},
		conns: map[fabric.NodeID]*engine{}, gone: map[fabric.NodeID]bool{}, compared: map[fabric.NodeID]bool{},
		pending: map[cnicall.Attachment][]string{},
	}
}

// pendingOf lists where the connectivity of an endpoint is not in force yet.
func (e *engines) pendingOf(at cnicall.Attachment) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	pending, requested := e.pending[at]
	if !requested {
		return []string{"not requested since the agent started"}
	}
	return pending
}

// setPending records where the connectivity of an endpoint, as ep describes it, is not in force
// yet. It ignores an endpoint that was removed or got another request since ep was read: the
// answers to an earlier request say nothing about the present one.
func (e *engines) setPending(ep endpoint, pending []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now, still := e.agent.endpoints.get(ep.Attachment)
	if still && slices.Equal(now.Request.Signature, ep.Request.Signature) {
		e.pending[ep.Attachment] = pending
	}
}

// uncompared describes the engines of the zone that have not listed the counterparts of this node
// since they connected: some of what they know can be missing here.
func (e *engines) uncompared() []string {
	self := e.agent.node.Self
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []string
	for _, n := range e.agent.node.Nodes() {
		if n.Engine != 0 && n.Zone == self.Zone && !e.compared[n.ID()] {
			list = append(list, "engine "+n.ID().String()+" has not listed the counterparts of this node yet")
		}
	}
	return list
}

// speaks reports whether an engine is connected and has this node's endpoints.
func (e *engines) speaks(engine fabric.NodeID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.conns[engine] != nil
}

// connected reports whether any engine is connected.
func (e *engines) connected() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns) > 0
}

// absent reports whether an engine is known not to be there: it is not connected although that was
// tried, or does not answer by its link.
func (e *engines) absent(engine fabric.NodeID) bool {
	e.mu.Lock()
	connected, gone := e.conns[engine] != nil, e.gone[engine]
	e.mu.Unlock()
	if connected {
		return e.silent(engine)
	}
	return gone
}

// answering reports whether an engine is connected that is not known not to answer.
func (e *engines) answering() bool {
	return slices.ContainsFunc(e.all(), func(en *engine) bool { return !e.silent(en.id) })
}

// all returns the connected engines.
func (e *engines) all() []*engine {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Values(e.conns))
}

// run connects to the engines of the zone that the roster lists, until ctx ends.
func (e *engines) run(ctx context.Context) error {
	ofZone := func(n fabric.Node) bool { return n.Zone == e.agent.node.Self.Zone }
	underlay := func(n fabric.Node) netip.Addr { return n.Underlay }
	return e.agent.node.KeepEngines(ctx, ofZone, underlay, e.session)
}

// session connects to an engine, introduces all endpoints of this node, and returns when the
// connection ends.
func (e *engines) session(ctx context.Context, n fabric.Node) error {
	node := e.agent.node
	en := &engine{id: n.ID()}
	defer func() {
		e.mu.Lock()
		if e.conns[en.id] == en {
			delete(e.conns, en.id)
			delete(e.compared, en.id)
		}
		e.gone[en.id] = true
		e.mu.Unlock()
		e.zone.hurry()
		node.Degrade(missingFrom(en.id), nil)
	}()
	dial := func(ctx context.Context) (*rpc.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		tls := node.Identity.ClientTLS(identity.OfNode(n))
		conn, err := rpc.Dial(ctx, netip.AddrPortFrom(n.Underlay, n.Engine).String(), tls, node.Identity, e.handle)
		if err != nil {
			return nil, fmt.Errorf("reach the engine %s: %w", n.ID(), err)
		}
		return conn, nil
	}
	err := rpc.Stay(ctx, dial, func(ctx context.Context, conn *rpc.Conn) error {
		// From here on the engine receives changes. introduce sends the endpoints that existed
		// before.
		e.enter(en, conn)
		node.Relay(en.id, conn)
		if err := e.introduce(ctx, en); err != nil {
			return fmt.Errorf("introduce this node to the engine %s: %w", n.ID(), err)
		}
		node.Degrade("engine "+n.ID().String(), nil)
		e.log.Info("connected to engine", logkey.Node, n.ID())
		return nil
	})
	if err == rpc.ErrClosed {
		return fmt.Errorf("the connection to the engine %s was lost", n.ID())
	}
	return err
}

// enter has messages to an engine use conn, after those in progress on the connection before it.
func (e *engines) enter(en *engine, conn caller) {
	en.order.Lock()
	en.conn = conn
	en.order.Unlock()
	e.mu.Lock()
	fresh := e.conns[en.id] != en
	e.conns[en.id], en.latest = en, conn
	delete(e.gone, en.id)
	e.mu.Unlock()
	if r := e.agent.resolver; fresh && r != nil {
		r.reconnected(en.id)
	}
}

// introduce sends the requests of all endpoints, and then their list, so that the engine ends
// leases of endpoints that no longer exist. A refused endpoint does not affect the others.
func (e *engines) introduce(ctx context.Context, en *engine) error {
	if err := e.requestAll(ctx, en, e.agent.endpoints.all()); err != nil {
		return err
	}
	return e.sync(ctx, en)
}

// requestAll sends the requests of endpoints to one engine, and records where their connectivity is
// not in force. A refused endpoint does not affect the others.
func (e *engines) requestAll(ctx context.Context, en *engine, list []endpoint) error {
	var group errgroup.Group
	group.SetLimit(introduceAtOnce)
	for _, ep := range list {
		group.Go(func() error {
			pending, err := e.request(ctx, en, ep.Attachment)
			if errors.As(err, new(*rpc.RemoteError)) {
				pending, err = []string{en.id.String() + ": " + err.Error()}, nil
			}
			if err != nil {
				return err
			}
			e.setPending(ep, pending)
			return nil
		})
	}
	return group.Wait()
}

// sync compares the endpoints of this node with the leases that the engine has of it. It requests
// what the engine has lost, and withdraws what the engine still has although it has ended.
func (e *engines) sync(ctx context.Context, en *engine) error {
	reply, err := e.compare(ctx, en)
	if err != nil {
		return err
	}
	e.agent.exits.lacks(en.id, reply.Missing...)
	if e.agent.exits.said(en.id, reply.Exit, reply.Far) {
		go e.moved()
	}
	var gone []string
	for _, held := range reply.Unlisted {
		gone = append(gone, held.Endpoint)
	}
	if err := e.tellGone(ctx, en, gone); err != nil {
		return err
	}
	if len(reply.Missing) == 0 {
		return nil
	}
	e.log.Info("the engine lacks endpoints of this node, requesting them again", logkey.Node, en.id, logkey.Count, len(reply.Missing))
	var lost []endpoint
	for _, ep := range e.agent.endpoints.all() {
		if slices.Contains(reply.Missing, ep.ID) {
			e.setPending(ep, []string{en.id.String() + ": it has lost the endpoint"})
			lost = append(lost, ep)
		}
	}
	if err := e.requestAll(ctx, en, lost); err != nil {
		return err
	}
	_, err = e.compare(ctx, en) // so that the engine sees that it lacks nothing any more
	return err
}

// compare sends the list of all endpoints of this node. No request may overtake the list, because
// the engine would then report the new endpoint as not listed.
func (e *engines) compare(ctx context.Context, en *engine) (reply rpc.SyncReply, err error) {
	en.order.Lock()
	defer en.order.Unlock()
	params := rpc.SyncParams{Endpoints: map[string]time.Time{}}
	for _, ep := range e.agent.endpoints.all() {
		if ep.admitted() && e.agent.revoked(ep) == nil {
			params.Endpoints[ep.ID] = ep.Admission.Issued
		}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return reply, en.conn.Call(ctx, rpc.MethodSync, params, &reply)
}

// syncAll compares with all engines, in case one has missed or lost something.
func (e *engines) syncAll(ctx context.Context) {
	var group sync.WaitGroup
	for _, en := range e.all() {
		group.Go(func() {
			if err := e.sync(ctx, en); err != nil && ctx.Err() == nil {
				e.log.Warn("cannot compare the endpoints with the engine", logkey.Node, en.id, logkey.Error, err)
			}
		})
	}
	group.Wait()
}

// request sends the connectivity request of an endpoint to one engine. It reads the endpoint only
// when it may send, and does nothing if the endpoint has been removed by then.
func (e *engines) request(ctx context.Context, en *engine, at cnicall.Attachment) (pending []string, err error) {
	en.order.RLock()
	defer en.order.RUnlock()
	ep, ok := e.agent.endpoints.get(at)
	if !ok {
		return nil, nil
	}
	if why := e.agent.revoked(ep); why != nil {
		return []string{why.Error()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var reply rpc.ConnectReply
	err = en.conn.Call(ctx, rpc.MethodConnect, rpc.ConnectParams{Request: ep.Request}, &reply)
	switch {
	case errors.As(err, new(*rpc.RemoteError)):
		e.agent.exits.lacks(en.id, ep.ID)
		return nil, err
	case err != nil:
		return nil, err
	}
	e.agent.exits.took(en.id, ep.ID)
	return reply.Pending, nil
}

// requestConnectivity sends the connectivity request of an endpoint to every engine of the zone. It
// returns, and records, where the connectivity is not in force when all have answered that live, or
// when ctx ends; the calls continue after that. One engine that took the request is enough: another
// one that refuses it may be behind, and one that died or hangs holds up nothing. It is an error if
// all refused, or none is left. If it is known that no engine of the zone answers, the other agents
// of the zone are told instead, at once.
func (e *engines) requestConnectivity(ctx context.Context, at cnicall.Attachment) (pending []string, err error) {
	engines := e.all()
	ep, _ := e.agent.endpoints.get(at)
	request := func(ctx context.Context, en *engine) ([]string, error) { return e.request(ctx, en, at) }
	if e.zone.out() {
		// One that was stopped takes the request when it goes on. Nobody waits for it.
		fanout.Start(ctx, callTimeout, engines, request)
		pending = e.zone.request(ctx, ep)
		e.setPending(ep, pending)
		return pending, nil
	}
	if len(engines) == 0 {
		return nil, errNoEngine
	}
	taken, answered := false, false
	var refusals []error
	open := map[fabric.NodeID]bool{} // those that have not answered, and whether they are waited for
	for _, en := range engines {
		open[en.id] = !e.silent(en.id)
	}
	for o := range fanout.Call(ctx, callTimeout, engines, request) {
		delete(open, o.Peer.id)
		refused := errors.As(o.Err, new(*rpc.RemoteError))
		if refused {
			refusals = append(refusals, fmt.Errorf("engine %s: %w", o.Peer.id, o.Err))
		}
		if o.Err != nil {
			pending = append(pending, fmt.Sprintf("%s: %v", o.Peer.id, o.Err))
		}
		taken, answered = taken || o.Err == nil || errors.Is(o.Err, fanout.ErrLate), answered || o.Err == nil || refused
		pending = append(pending, o.Reply...)
		if waits := slices.Contains(slices.Collect(maps.Values(open)), true); taken && !waits {
			break
		}
	}
	for id := range open {
		pending = append(pending, fmt.Sprintf("%s: it does not answer", id))
	}
	switch {
	case taken && !answered && e.zone != nil:
		go e.zone.request(context.WithoutCancel(ctx), ep) // they may all be gone, which is not known yet
	case taken:
	case len(refusals) > 0:
		return nil, errors.Join(refusals...)
	case e.zone != nil:
		pending = append(pending, e.zone.request(ctx, ep)...)
	default:
		return nil, away{fmt.Errorf("all engines of the zone were lost: %s", strings.Join(pending, "; "))}
	}
	e.setPending(ep, pending)
	return pending, nil
}

// withdraw tells the engines that an endpoint was removed, and waits for them until ctx ends. The
// next sync informs an engine that missed the message.
func (e *engines) withdraw(ctx context.Context, gone endpoint) {
	e.mu.Lock()
	delete(e.pending, gone.Attachment)
	e.mu.Unlock()
	e.agent.exits.ended(gone.ID)
	var neighbours sync.WaitGroup
	defer neighbours.Wait()
	neighbours.Go(func() { e.zone.withdraw(ctx, gone) })
	tell := func(ctx context.Context, en *engine) (struct{}, error) {
		err := e.tellGone(ctx, en, []string{gone.ID})
		if err != nil {
			e.log.Warn("cannot tell the engine of a removed endpoint, the next synchronisation will", logkey.Node, en.id, logkey.Endpoint, gone.ID, logkey.Error, err)
		}
		return struct{}{}, err
	}
	var waited, silent []*engine
	for _, en := range e.all() {
		if e.silent(en.id) {
			silent = append(silent, en)
		} else {
			waited = append(waited, en)
		}
	}
	fanout.Start(ctx, callTimeout, silent, tell)
	for range fanout.Call(ctx, callTimeout, waited, tell) { // the outcomes are logged, also those that come later
	}
}

// tellGone withdraws those endpoints that are not on this node.
func (e *engines) tellGone(ctx context.Context, en *engine, gone []string) error {
	en.order.Lock()
	defer en.order.Unlock()
	for _, ep := range e.agent.endpoints.all() {
		gone = slices.DeleteFunc(gone, func(id string) bool { return id == ep.ID })
	}
	if len(gone) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return en.conn.Call(ctx, rpc.MethodWithdraw, rpc.WithdrawParams{Endpoints: gone}, nil)
}

// missingFrom is the subject of counterparts that an engine listed and that were missing here.
func missingFrom(engine fabric.NodeID) string { return "counterparts from " + engine.String() }

// handle answers calls of an engine.
func (e *engines) handle(ctx context.Context, from rpc.Peer, method string, params json.RawMessage) (any, error) {
	if !from.Kind.Has(fabric.KindProcessor) || from.Zone != e.agent.node.Self.Zone {
		return nil, fmt.Errorf("%s node %s is not an engine of zone %s", from.Kind, from.NodeID, e.agent.node.Self.Zone)
	}
	switch method {
	case rpc.MethodAnnounce:
		var p rpc.AnnounceParams
		if err := json.Unmarshal(params, &p); err != nil {
			return nil, fmt.Errorf("decode the parameters of %s: %w", method, err)
		}
		return e.agent.announced(p)
	case rpc.MethodWithdraw:
		var p rpc.WithdrawParams
		if err := json.Unmarshal(params, &p); err != nil {
			return nil, fmt.Errorf("decode the parameters of %s: %w", method, err)
		}
		return struct{}{}, e.agent.withdrawn(p.Endpoints)
	case rpc.MethodSync:
		var p rpc.SyncParams
		if err := json.Unmarshal(params, &p); err != nil {
			return nil, fmt.Errorf("decode the parameters of %s: %w", method, err)
		}
		reply, err := e.agent.compare(p), error(nil)
		if n := len(reply.Missing); n > 0 {
			err = fmt.Errorf("%d counterparts were missing; the engine announces them again", n)
		}
		e.agent.node.Degrade(missingFrom(from.NodeID), err)
		e.mu.Lock()
		e.compared[from.NodeID] = e.conns[from.NodeID] != nil
		e.mu.Unlock()
		return reply, nil
	case rpc.MethodRevocations:
		return e.agent.node.Revocations(from, params)
	case rpc.MethodStates:
		var p rpc.StatesParams
		if err := json.Unmarshal(params, &p); err != nil {
			return nil, fmt.Errorf("decode the parameters of %s: %w", method, err)
		}
		return e.states(ctx, from.NodeID, p)
	}
	return nil, fmt.Errorf("unknown method %q", method)
}

// states uses states of processors that an engine sent, sends what is new to the other engines of
// the zone, which do not speak with that one, and answers what the sender lacks. The states are in
// force when it returns.
func (e *engines) states(ctx context.Context, from fabric.NodeID, p rpc.StatesParams) (reply rpc.StatesReply, err error) {
	set := e.agent.node.States
	news, refused := set.Take(p.States)
	if refused != nil {
		e.log.Warn("states of processors refused", logkey.Node, from, logkey.Error, refused)
	}
	if len(news) > 0 {
		e.relay(ctx, news, from)
		err = e.agent.reprogram.Call()
	}
	if p.Numbers != nil {
		reply.Newer, reply.Lacking = set.Compare(p.Numbers)
	}
	return reply, err
}

// relay sends states to the engines other than the one that they came from, and waits for none.
func (e *engines) relay(ctx context.Context, news []states.Signed, from fabric.NodeID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, en := range e.conns {
		if conn := en.latest; id != from {
			go func() {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
				defer cancel()
				if err := conn.Call(ctx, rpc.MethodStates, rpc.StatesParams{States: news}, nil); err != nil {
					e.log.Debug("cannot send states of processors", logkey.Node, id, logkey.Error, err)
				}
			}()
		}
	}
}
