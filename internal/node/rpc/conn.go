// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/sourcegraph/jsonrpc2"

	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/logkey"
)

const (
	methodPing   = "ping"          // answered by this package, never passed to handlers
	pingInterval = 8 * time.Second // a dead peer is detected within interval + timeout,
	pingTimeout  = 8 * time.Second // plus writeTimeout if its receive window is full
)

// codeRefused answers a call that was not handled because the connection may not be used any more.
const codeRefused = -32001

// keepAlive lets the kernel detect a peer whose host is down.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}

// ErrClosed is returned by calls on a closed connection.
var ErrClosed = errors.New("the connection is closed")

// RemoteError is an error that the peer's handler returned.
type RemoteError struct {
	Peer    Peer
	Method  string
	Message string
}

func (e *RemoteError) Error() string {
	return fmt.Sprintf("%s at %s: %s", e.Method, e.Peer.NodeID, e.Message)
}

// Conn is a connection to a peer. It ends when either side closes it, when the peer does not answer
// any more, when the certificate of either side ends, or when the peer's is revoked. No call is
// sent or handled after that.
type Conn struct {
	peer  Peer
	conn  net.Conn
	judge func() error // why the certificate of either side does not count any more, or nil
	// changed returns what is closed when judge may answer otherwise.
	changed func() <-chan struct{}
	ends    time.Time // the earlier end of the two certificates
	rpc     *jsonrpc2.Conn
	done    chan struct{}
	ready   chan struct{} // closed when calls may be handled

	handlers sync.WaitGroup
	load     *load
}

// start starts reading. It returns when the peer's calls may be handled.
func (c *Conn) start(ctx context.Context, h Handler, onConn func(context.Context, *Conn), l *load) {
	c.load = l
	logger := log.New(io.Discard, "", 0) // what it logs is also returned as errors
	c.rpc = jsonrpc2.NewConn(ctx, newStream(c.conn), rpcHandler{c, h}, jsonrpc2.SetLogger(logger))
	go func() {
		<-c.rpc.DisconnectNotify()
		close(c.done)
	}()
	go c.watch()
	if onConn != nil {
		onConn(ctx, c)
	}
	close(c.ready)
}

// watch closes the connection when the peer does not answer, when a certificate ends, or when the
// peer's is revoked.
func (c *Conn) watch() {
	ticker := time.NewTicker(pingInterval)
	defer ticker.Stop()
	end := time.NewTimer(c.ends.Sub(clock.Now()))
	defer end.Stop()
	for {
		changed := c.changed()
		if c.check() != nil {
			return
		}
		select {
		case <-c.done:
			return
		case <-end.C:
			continue // in an outage, certificates can count beyond their end
		case <-changed:
			continue
		case <-ticker.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), pingTimeout)
		err := c.rpc.Call(ctx, methodPing, nil, nil)
		cancel()
		if err != nil {
			c.Close()
			return
		}
	}
}

// check returns why the connection may not be used any more, and closes it then, so that whoever
// dialled dials again.
func (c *Conn) check() error {
	err := c.judge()
	if err != nil {
		c.Close()
	}
	return err
}

// Call calls a method of the peer, waits for the result and decodes it into reply, unless that is
// nil. The error is a *RemoteError if the peer's handler returned one, ErrClosed if the connection
// is closed, or that of ctx.
func (c *Conn) Call(ctx context.Context, method string, params, reply any) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("call %s of %s: %w", method, c.peer.NodeID, err)
	}
	if err := c.check(); err != nil {
		return fmt.Errorf("call %s of %s: %w: %w", method, c.peer.NodeID, ErrClosed, err)
	}
	err := c.rpc.Call(ctx, method, params, reply)
	var remote *jsonrpc2.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &remote) && remote.Code == codeRefused:
		err = fmt.Errorf("%w: the peer: %s", ErrClosed, remote.Message)
	case errors.As(err, &remote):
		return &RemoteError{Peer: c.peer, Method: method, Message: remote.Message}
	case errors.Is(err, jsonrpc2.ErrClosed):
		err = ErrClosed
	}
	return fmt.Errorf("call %s of %s: %w", method, c.peer.NodeID, err)
}

// Notify calls a method of the peer and does not wait for the peer to receive the call.
func (c *Conn) Notify(ctx context.Context, method string, params any) error {
	if err := c.check(); err != nil {
		return fmt.Errorf("notify %s of %s: %w: %w", c.peer.NodeID, method, ErrClosed, err)
	}
	err := c.rpc.Notify(ctx, method, params)
	if errors.Is(err, jsonrpc2.ErrClosed) {
		err = ErrClosed
	}
	if err != nil {
		return fmt.Errorf("notify %s of %s: %w", c.peer.NodeID, method, err)
	}
	return nil
}

// Peer returns the node at the other end.
func (c *Conn) Peer() Peer { return c.peer }

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// RemoteAddr returns the address at the other end.
func (c *Conn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }

// Close ends the connection. It may be called more than once.
func (c *Conn) Close() error {
	err := c.rpc.Close()
	if errors.Is(err, jsonrpc2.ErrClosed) {
		return nil
	}
	return err
}

// rpcHandler runs a Handler for each call in a goroutine of its own. Reading must not wait for a
// handler, because replies that handlers wait for arrive on the same connection.
type rpcHandler struct {
	c *Conn
	h Handler
}

// Handle implements jsonrpc2.Handler.
func (r rpcHandler) Handle(ctx context.Context, rpc *jsonrpc2.Conn, req *jsonrpc2.Request) {
	c := r.c
	if err := c.judge(); err != nil {
		hclog.FromContext(ctx).Warn("connection closed", logkey.Node, c.peer.NodeID, logkey.Error, err)
		if !req.Notif {
			_ = rpc.SendResponse(ctx, &jsonrpc2.Response{ID: req.ID, Error: &jsonrpc2.Error{Code: codeRefused, Message: err.Error()}})
		}
		c.Close()
		return
	}
	var params json.RawMessage
	if req.Params != nil {
		params = *req.Params
	}
	full, flooded := c.load.add(len(params))
	if flooded { // the peer sends calls and does not read the replies
		c.load.remove(len(params))
		rpc.Close()
		return
	}
	c.handlers.Go(func() {
		defer c.load.remove(len(params))
		var result any
		var err error
		switch {
		case req.Method == methodPing:
		case full:
			err = errors.New("too many calls of this node are waiting; try again later")
		default:
			result, err = r.run(ctx, req.Method, params)
		}
		if req.Notif {
			if err != nil {
				hclog.FromContext(ctx).Warn("cannot handle the notification "+req.Method, logkey.Node, c.peer.NodeID, logkey.Error, err)
			}
			return
		}
		resp := &jsonrpc2.Response{ID: req.ID}
		if err == nil {
			err = resp.SetResult(result)
		}
		if err != nil {
			resp.Result = nil
			resp.Error = &jsonrpc2.Error{Code: jsonrpc2.CodeInternalError, Message: err.Error()}
		}
		err = rpc.SendResponse(ctx, resp)
		if err == nil || errors.Is(err, jsonrpc2.ErrClosed) {
			return
		}
		hclog.FromContext(ctx).Warn("cannot answer the call "+req.Method, logkey.Node, c.peer.NodeID, logkey.Error, err)
		refusal := &jsonrpc2.Response{ID: req.ID, Error: &jsonrpc2.Error{Code: jsonrpc2.CodeInternalError, Message: err.Error()}}
		if rpc.SendResponse(ctx, refusal) != nil {
			rpc.Close() // otherwise the peer would wait forever
		}
	})
}

// run calls the handler when fewer than maxRunning are running, and recovers from its panics.
func (r rpcHandler) run(ctx context.Context, method string, params json.RawMessage) (result any, err error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-r.c.ready:
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r.c.load.running <- struct{}{}:
	}
	defer func() { <-r.c.load.running }()
	defer func() {
		if p := recover(); p != nil {
			hclog.FromContext(ctx).Error("the handler of "+method+" panicked", logkey.Node, r.c.peer.NodeID, logkey.Error, p, logkey.Stack, string(debug.Stack()))
			result, err = nil, errors.New("internal error")
		}
	}()
	return r.h(ctx, r.c.peer, method, params)
}
