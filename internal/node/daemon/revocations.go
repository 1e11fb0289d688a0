// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/retry"
)

// The signed list of removals and revocations comes to a node by three ways, so that it comes while
// Consul, the controllers or both are away: from Consul, from a controller, and from every daemon
// that it speaks with, which hands on what is new to it.

const (
	// listWait is how long a question for the list waits for another one. listRetry is the pause
	// after a failed one, and after one whose answer could not be used, and listOld the pause
	// before a controller is asked again that does not know the question.
	listWait  = time.Minute
	listRetry = time.Second
	listOld   = time.Minute
	// relayTimeout limits a call to another daemon, and relayInterval is the time between two
	// comparisons of the lists with it.
	relayTimeout  = 10 * time.Second
	relayInterval = 10 * time.Second
)

// Caller is a connection to another daemon.
type Caller interface {
	Call(ctx context.Context, method string, params, reply any) error
	Done() <-chan struct{}
}

// relay has the connections by which this node hands on the list.
type relay struct {
	mu    sync.Mutex
	peers map[Caller]fabric.NodeID
	// disputed is a list of a peer that is valid, and that this node cannot take since its own has
	// what that one lacks. A controller signs one with everything.
	disputed *fabric.Signed
	wake     chan struct{} // disputed was set
}

// Relay hands the list of removals and revocations to a daemon by a connection, and takes its own,
// until the connection ends. It does not wait for the peer.
func (n *Node) Relay(peer fabric.NodeID, conn Caller) {
	r := &n.relay
	r.mu.Lock()
	if r.peers == nil {
		r.peers = map[Caller]fabric.NodeID{}
	}
	r.peers[conn] = peer
	r.mu.Unlock()
	go func() {
		tick := time.NewTicker(relayInterval)
		defer tick.Stop()
		for {
			n.compareList(peer, conn, false)
			select {
			case <-conn.Done():
				r.mu.Lock()
				delete(r.peers, conn)
				r.mu.Unlock()
				return
			case <-tick.C:
			}
		}
	}()
}

// handOn gives the list to all peers. It does not wait for them.
func (n *Node) handOn() {
	n.relay.mu.Lock()
	defer n.relay.mu.Unlock()
	for conn, peer := range n.relay.peers {
		go n.compareList(peer, conn, true)
	}
}

// compareList tells a peer which list this node has, or gives it, and takes a newer one.
func (n *Node) compareList(peer fabric.NodeID, conn Caller, give bool) {
	ctx, cancel := context.WithTimeout(context.Background(), relayTimeout)
	defer cancel()
	p := rpc.RevocationsParams{Has: n.Removals.ID()}
	if give {
		signed := n.Removals.Signed()
		p.List = &signed
	}
	var reply rpc.RevocationsReply
	err := conn.Call(ctx, rpc.MethodRevocations, p, &reply)
	if errors.As(err, new(*rpc.RemoteError)) {
		n.Log.Debug("a peer does not take the list of removals and revocations", logkey.Node, peer, logkey.Error, err)
		return // it has an earlier version, or its own trouble
	}
	if err != nil {
		return // the connection says so itself, and the next comparison makes up for it
	}
	if reply.List != nil {
		n.takeList(peer, *reply.List)
	}
	if own := n.Removals.ID(); !give && own.Sequence > reply.Has.Sequence {
		n.compareList(peer, conn, true)
	}
}

// takeList uses a list that a peer sent, and hands it on if it is new.
func (n *Node) takeList(peer fabric.NodeID, signed fabric.Signed) {
	if reflect.DeepEqual(signed, n.Removals.Signed()) {
		return // verified when it came; who got it from here hands it back
	}
	err := n.Removals.Offer(signed)
	if err == nil {
		return
	}
	n.Log.Debug("the list of removals and revocations of a peer is not used", logkey.Node, peer, logkey.Error, err)
	theirs, verifying := n.Removals.Verify(signed)
	if verifying != nil {
		n.Log.Warn("a peer sent a list of removals and revocations that is not valid", logkey.Node, peer, logkey.Error, verifying)
		return
	}
	if ours := n.Removals.List(); ours.Covers(theirs, ours.Issued) {
		return // an older one
	}
	n.relay.mu.Lock()
	n.relay.disputed = &signed
	n.relay.mu.Unlock()
	select {
	case n.relay.wake <- struct{}{}:
	default:
	}
}

// Revocations answers a peer that says which list of removals and revocations it has, or sends it.
// The list is in force when it returns, as far as this process holds it.
func (n *Node) Revocations(from rpc.Peer, params json.RawMessage) (rpc.RevocationsReply, error) {
	var p rpc.RevocationsParams
	if err := json.Unmarshal(params, &p); err != nil {
		return rpc.RevocationsReply{}, fmt.Errorf("decode the parameters of %s: %w", rpc.MethodRevocations, err)
	}
	if p.List != nil {
		n.takeList(from.NodeID, *p.List)
	}
	reply := rpc.RevocationsReply{Has: n.Removals.ID()}
	if reply.Has != p.Has && reply.Has.Sequence >= p.Has.Sequence && reply.Has.Sequence > 0 {
		signed := n.Removals.Signed()
		reply.List = &signed
	}
	return reply, nil
}

// followList exchanges the list with the controller until ctx ends, so that it comes without
// Consul.
func (n *Node) followList(ctx context.Context) error {
	for ctx.Err() == nil {
		changed, has := n.Removals.Changed(), n.Removals.ID()
		reply, err := n.awaitList(ctx, changed, has)
		switch {
		case ctx.Err() != nil:
			return nil
		case api.IsCode(err, api.CodeNotFound):
			retry.Sleep(ctx, listOld) // a controller of an earlier version: Consul and the reports bring the list
			continue
		case errors.Is(err, errListChanged), err == nil && reply.Has == has:
			continue
		case err != nil:
			retry.Sleep(ctx, listRetry)
			continue
		}
		taken := errors.New("the controller has an older list")
		if reply.List != nil {
			taken = n.Removals.Offer(*reply.List)
		}
		if taken == nil {
			continue
		}
		if err := n.handToController(ctx); err != nil {
			n.Log.Warn("cannot give the list of removals and revocations to the controller, retrying", logkey.Error, err)
		}
		retry.Sleep(ctx, listRetry)
	}
	return nil
}

// errListChanged is the outcome of a question during which this node got another list.
var errListChanged = errors.New("the list of this node has changed meanwhile")

// awaitList asks the controller for another list than this node has.
func (n *Node) awaitList(ctx context.Context, changed <-chan struct{}, has fabric.ListID) (api.ListReply, error) {
	asking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		for {
			select {
			case <-asking.Done():
				return
			case <-changed:
				cancel(errListChanged)
				return
			case <-n.relay.wake:
				n.handDisputed(asking)
			}
		}
	}()
	reply, err := n.Controller.AwaitRevocations(asking, has, listWait)
	if err != nil && context.Cause(asking) != nil && ctx.Err() == nil {
		err = context.Cause(asking)
	}
	return reply, err
}

// handDisputed gives the controller the list of a peer that lacks something of this node's, and has
// what that one lacks.
func (n *Node) handDisputed(ctx context.Context) {
	n.relay.mu.Lock()
	disputed := n.relay.disputed
	n.relay.disputed = nil
	n.relay.mu.Unlock()
	if disputed == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	if err := n.Controller.Revocations(ctx, *disputed); err != nil {
		n.Log.Warn("cannot give a peer's list of removals and revocations to the controller", logkey.Node, n.Self.ID(), logkey.Error, err)
	}
}

// handToController gives the controller the list of this node.
func (n *Node) handToController(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	return n.Controller.Revocations(ctx, n.Removals.Signed())
}
