// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package signal is the RPC between agents and engines: JSON-RPC 2.0 over
// mutual TLS, in which both sides call. It knows connections, who is at their
// other end, and the messages; it does not judge what a message says.
package signal

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"

	"github.com/sif-project/sif/fabric"
)

// Handler answers one call. Calls are handled concurrently: a sender for whom
// order matters waits for each reply. A returned error reaches the caller as
// a *RemoteError. ctx ends with the connection.
type Handler func(ctx context.Context, from Peer, method string, params json.RawMessage) (any, error)

// Peer is the node at the other end, as its certificate says: zone and node by
// SPIFFE ID, kind by organizational unit.
type Peer struct {
	Zone string
	Node string
	Kind fabric.NodeKind
}

// Conn is a connection to a peer.
type Conn struct {
	peer Peer
	done chan struct{}
}

// Dial connects to addr ("host:port").
func Dial(ctx context.Context, addr string, tls *tls.Config, trustDomain string, h Handler) (*Conn, error) {
	panic("todo")
}

// Serve accepts connections until ctx ends.
func Serve(ctx context.Context, l net.Listener, tls *tls.Config, trustDomain string, onConn func(*Conn), h Handler) error {
	panic("todo")
}

// Call calls a method of the peer and decodes the result into reply, unless
// that is nil.
func (c *Conn) Call(ctx context.Context, method string, params, reply any) error { panic("todo") }

// Notify calls a method of the peer without waiting for a result.
func (c *Conn) Notify(ctx context.Context, method string, params any) error { panic("todo") }

// Peer returns who is at the other end.
func (c *Conn) Peer() Peer { return c.peer }

// Done is closed once the connection is gone.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Close ends the connection.
func (c *Conn) Close() error { panic("todo") }
