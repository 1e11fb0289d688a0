// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package rpc

import (
	"context"
	"encoding/json"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// from opens a TCP connection from another source, in the network of the loopback device.
func from(t *testing.T, source, addr string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	conn, err := d.Dial("tcp", addr)
	must.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A source that opens connections and does not go on keeps nobody else waiting.
func TestFloodOfHandshakes(t *testing.T) {
	ca := identitytest.NewCA(t)
	echo := func(_ context.Context, _ Peer, _ string, params json.RawMessage) (any, error) { return params, nil }
	addr, server := serveCounting(t, ca.Node("z", "p", fabric.KindProcessor), nil, echo)
	other, err := dial(addr, ca.Node("z", "w", fabric.KindWorkload), engineAt("z", "p"), deny)
	must.NoError(t, err)
	defer other.Close()
	const flood = 2 * (maxHandshakesEach + handshakeBurst)
	for range flood {
		from(t, "127.0.0.2", addr)
	}
	// Another member connects and calls, and one that is connected goes on.
	c, err := dial(addr, ca.Node("z", "w2", fabric.KindWorkload), engineAt("z", "p"), deny)
	must.NoError(t, err)
	defer c.Close()
	var got string
	must.NoError(t, c.Call(t.Context(), "echo", "x", &got))
	must.NoError(t, other.Call(t.Context(), "echo", "x", &got))
	must.Eq(t, "x", got)
	// The accept loop takes connections in order, so those of the flood were judged.
	refused := server.Refused()
	must.Positive(t, refused[reasonHandshakes])
	must.Positive(t, refused[reasonRate])
	must.LessEq(t, flood-maxHandshakesEach+uint64(0), refused[reasonHandshakes]+refused[reasonRate])
}

// A node cannot take all connections and handlers.
func TestFloodOfOneNode(t *testing.T) {
	ca := identitytest.NewCA(t)
	release := make(chan struct{})
	var running atomic.Int64
	addr, server := serveCounting(t, ca.Node("z", "p", fabric.KindProcessor), nil,
		func(ctx context.Context, _ Peer, method string, params json.RawMessage) (any, error) {
			if method == "wait" {
				running.Add(1)
				select {
				case <-release:
				case <-ctx.Done():
				}
			}
			return params, nil
		})
	bad := ca.Node("z", "w", fabric.KindWorkload)
	var conns []*Conn
	lost := 0
	for range 4 * maxConns {
		c, err := dial(addr, bad, engineAt("z", "p"), deny)
		must.NoError(t, err)
		defer c.Close()
		if c.Call(t.Context(), "echo", nil, nil) == nil {
			conns = append(conns, c)
		} else {
			lost++
		}
	}
	must.Len(t, maxConns, conns)
	must.Eq(t, map[string]uint64{reasonConns: uint64(lost)}, server.Refused())

	// Its calls are bounded on all of its connections together, ...
	answers := make(chan error, 2*maxWaiting)
	for i := range 2 * maxWaiting {
		go func() { answers <- conns[i%len(conns)].Call(t.Context(), "wait", nil, nil) }()
	}
	for range maxWaiting {
		must.ErrorContains(t, <-answers, "too many calls of this node")
	}
	must.Eq(t, maxRunning, running.Load())
	must.Eq(t, maxWaiting, server.Refused()[reasonCalls])
	// ... and those of others are not among them.
	good, err := dial(addr, ca.Node("z", "w2", fabric.KindWorkload), engineAt("z", "p"), deny)
	must.NoError(t, err)
	defer good.Close()
	must.NoError(t, good.Call(t.Context(), "echo", nil, nil))
	close(release)
	for range maxWaiting {
		must.NoError(t, <-answers)
	}

	// Who has left has all its connections again.
	for _, c := range conns {
		c.Close()
	}
	c := reconnect(t, addr, bad)
	must.NoError(t, c.Call(t.Context(), "echo", nil, nil))
}

// reconnect connects as soon as the server has noticed the ends of earlier connections.
func reconnect(t *testing.T, addr string, id *identity.Source) *Conn {
	t.Helper()
	for {
		c, err := dial(addr, id, engineAt("z", "p"), deny)
		must.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		if c.Call(t.Context(), "echo", nil, nil) == nil {
			return c
		}
		time.Sleep(10 * time.Millisecond)
	}
}
