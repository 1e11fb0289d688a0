// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package rpc

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/sif-project/sif/fabric"
)

// Limits of a Server. They are per source or per node, so that no member takes what the others
// need; docs/operations.md lists them.
const (
	// Unfinished handshakes, of a source (an IPv4 address or an IPv6 /64) and of all. Each ends
	// after handshakeTimeout.
	maxHandshakesEach = 16
	maxHandshakes     = 512
	// Connections of a source: a burst, and after that one each interval. A handshake costs this
	// side a signature.
	handshakeBurst    = 128
	handshakeInterval = 50 * time.Millisecond
	// Connections of a node. It needs two while one is replaced, and some may be dead and not yet
	// noticed.
	maxConns = 8

	// Of all connections of a node together:
	maxRunning     = 64       // handlers that run
	maxWaiting     = 1024     // calls that are not answered yet; others are refused
	maxWaitingSize = 64 << 20 // bytes of their params
)

// Reasons of what a Server refuses, as Refused counts them.
const (
	reasonHandshakes    = "unfinished handshakes of one source"
	reasonAllHandshakes = "unfinished handshakes"
	reasonRate          = "connections per second of one source"
	reasonConns         = "connections of one node"
	reasonCalls         = "calls of one node"
)

// load is what the calls of a node, or of one connection that this side dialled, occupy.
type load struct {
	running chan struct{}
	waiting atomic.Int64 // calls
	size    atomic.Int64 // bytes of their params
	refused func()       // counts a call that is refused
}

func newLoad() *load { return &load{running: make(chan struct{}, maxRunning), refused: func() {}} }

// add counts a call. full says that it must be refused, flooded that there are so many refused
// calls whose answers the peer has not read that the connection must end.
func (l *load) add(size int) (full, flooded bool) {
	waiting := l.waiting.Add(1)
	total := l.size.Add(int64(size))
	full = waiting > maxWaiting || total > maxWaitingSize && size > 0
	if full {
		l.refused()
	}
	return full, waiting > 2*maxWaiting
}

func (l *load) remove(size int) {
	l.waiting.Add(-1)
	l.size.Add(-int64(size))
}

// loads are the loads of the nodes that are connected to a Server.
type loads struct {
	mu    sync.Mutex
	nodes map[fabric.NodeID]*nodeLoad
}

type nodeLoad struct {
	load
	conns int
}

// enter counts a connection of a node and returns the node's load, or nil if it has too many.
func (l *loads) enter(id fabric.NodeID, refused func()) *load {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nodes == nil {
		l.nodes = map[fabric.NodeID]*nodeLoad{}
	}
	n := l.nodes[id]
	if n == nil {
		n = &nodeLoad{load: load{running: make(chan struct{}, maxRunning), refused: refused}}
		l.nodes[id] = n
	}
	if n.conns >= maxConns {
		return nil
	}
	n.conns++
	return &n.load
}

// leave is the end of a connection that enter counted.
func (l *loads) leave(id fabric.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.nodes[id]
	if n.conns--; n.conns == 0 {
		delete(l.nodes, id)
	}
}
