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
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/fanout"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/trust/identity"
)

// callTimeout limits a call to an engine after its caller has stopped waiting.
const callTimeout = 10 * time.Second

// introduceAtOnce is the number of concurrent requests to an engine that has just connected.
const introduceAtOnce = 16

// errNoEngine is returned when no engine is connected that could be asked for connectivity.
var errNoEngine = errors.New("no engine of the zone is connected")

// caller is a connection to an engine.
type caller interface {
	Call(ctx context.Context, method string, params, reply any) error
}

// engine is a connected engine.
type engine struct {
	id   fabric.NodeID
	conn caller // replaced before its certificates end; see engines.enter

	// order keeps messages about an endpoint in order. Requests hold it for reading. Messages about
	// removed endpoints hold it for writing, so that they wait for requests in progress.
	order sync.RWMutex
}

// engines keeps a connection to each engine of the zone.
type engines struct {
	agent *Agent
	log   hclog.Logger

	mu    sync.Mutex
	conns map[fabric.NodeID]*engine
	// pending lists, for each endpoint, where its connectivity is not in force yet. An endpoint
	// that is missing here was not requested since the agent started.
	pending map[cnicall.Attachment][]string
}

func newEngines(a *Agent, log hclog.Logger) *engines {
	return &engines{agent: a, log: log, conns: map[fabric.NodeID]*engine{}, pending: map[cnicall.Attachment][]string{}}
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

// connected reports whether any engine is connected.
func (e *engines) connected() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns) > 0
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
		defer e.mu.Unlock()
		if e.conns[en.id] == en {
			delete(e.conns, en.id)
		}
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
	e.conns[en.id] = en
	e.mu.Unlock()
}

// introduce sends the requests of all endpoints, and then their list, so that the engine ends
// leases of endpoints that no longer exist. A refused endpoint does not affect the others.
func (e *engines) introduce(ctx context.Context, en *engine) error {
	var group errgroup.Group
	group.SetLimit(introduceAtOnce)
	for _, ep := range e.agent.endpoints.all() {
		group.Go(func() error {
			pending, err := e.request(ctx, en, ep.Attachment)
			var refused *rpc.RemoteError
			if errors.As(err, &refused) {
				pending, err = []string{en.id.String() + ": " + err.Error()}, nil
			}
			if err != nil {
				return err
			}
			e.setPending(ep, pending)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return e.sync(ctx, en)
}

// sync sends the list of all endpoints of this node. No request may overtake the list, because the
// engine would then treat the new endpoint as removed.
func (e *engines) sync(ctx context.Context, en *engine) error {
	en.order.Lock()
	defer en.order.Unlock()
	ids := []string{}
	for _, ep := range e.agent.endpoints.all() {
		ids = append(ids, ep.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return en.conn.Call(ctx, rpc.MethodSync, rpc.SyncParams{Endpoints: ids}, nil)
}

// syncAll sends the list to all engines, in case a connected engine missed a message.
func (e *engines) syncAll(ctx context.Context) {
	for _, en := range e.all() {
		if err := e.sync(ctx, en); err != nil && ctx.Err() == nil {
			e.log.Warn("cannot send the list of endpoints to the engine", logkey.Node, en.id, logkey.Error, err)
		}
	}
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
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var reply rpc.ConnectReply
	if err := en.conn.Call(ctx, rpc.MethodConnect, rpc.ConnectParams{Request: ep.Request}, &reply); err != nil {
		return nil, err
	}
	return reply.Pending, nil
}

// requestConnectivity sends the connectivity request of an endpoint to every engine of the zone. It
// returns, and records, where the connectivity is not in force when ctx ends; the calls continue
// after that. A refusal by an engine is an error.
func (e *engines) requestConnectivity(ctx context.Context, at cnicall.Attachment) (pending []string, err error) {
	engines := e.all()
	if len(engines) == 0 {
		return nil, errNoEngine
	}
	ep, _ := e.agent.endpoints.get(at)
	request := func(ctx context.Context, en *engine) ([]string, error) { return e.request(ctx, en, at) }
	for o := range fanout.Call(ctx, callTimeout, engines, request) {
		switch {
		case errors.Is(o.Err, fanout.ErrLate):
			pending = append(pending, fmt.Sprintf("%s: %v", o.Peer.id, o.Err))
		case o.Err != nil:
			return nil, fmt.Errorf("engine %s: %w", o.Peer.id, o.Err)
		}
		pending = append(pending, o.Reply...)
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
	tell := func(ctx context.Context, en *engine) (struct{}, error) {
		err := e.tellGone(ctx, en, gone.ID)
		if err != nil {
			e.log.Warn("cannot tell the engine of a removed endpoint, the next synchronisation will", logkey.Node, en.id, logkey.Endpoint, gone.ID, logkey.Error, err)
		}
		return struct{}{}, err
	}
	for range fanout.Call(ctx, callTimeout, e.all(), tell) { // the outcomes are logged, also those that come later
	}
}

func (e *engines) tellGone(ctx context.Context, en *engine, id string) error {
	en.order.Lock()
	defer en.order.Unlock()
	if _, back := e.agent.endpoints.find(func(ep endpoint) bool { return ep.ID == id }); back {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return en.conn.Call(ctx, rpc.MethodWithdraw, rpc.WithdrawParams{Endpoints: []string{id}}, nil)
}

// handle answers calls of an engine.
func (e *engines) handle(_ context.Context, from rpc.Peer, method string, params json.RawMessage) (any, error) {
	if from.Kind != fabric.KindProcessor || from.Zone != e.agent.node.Self.Zone {
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
		return struct{}{}, e.agent.forget(func(a fabric.Admission) bool { return slices.Contains(p.Endpoints, a.Endpoint) })
	case rpc.MethodSync:
		var p rpc.SyncParams
		if err := json.Unmarshal(params, &p); err != nil {
			return nil, fmt.Errorf("decode the parameters of %s: %w", method, err)
		}
		return struct{}{}, e.agent.forget(func(a fabric.Admission) bool { return !slices.Contains(p.Endpoints, a.Endpoint) })
	}
	return nil, fmt.Errorf("unknown method %q", method)
}
