// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/fanout"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/daemon"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/retry"
	"github.com/sif-project/sif/internal/trust/admission"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/wellknown"
)

const (
	// dialTimeout limits an attempt to connect to a neighbour, dialAtOnce is how many there may be
	// at once, and dialRest is the time after a failure in which none is made.
	dialTimeout = 3 * time.Second
	dialAtOnce  = 32
	dialRest    = time.Second
	// roundAtOnce is the number of neighbours with which a round compares at once. A round begins
	// this long after the one before, and longer in a zone of many nodes, by roundShare for each.
	roundAtOnce   = 16
	roundInterval = 5 * time.Second
	roundShare    = 200 * time.Millisecond
	// outLinger is how long connections to neighbours stay open after an engine is there again.
	outLinger = time.Minute
	// maxToldNeighbours is how many neighbours that do not answer are told of one by one.
	maxToldNeighbours = 8
)

// errQuiet is the outcome of a call to a neighbour that failed a moment ago.
var errQuiet = errors.New("its agent did not answer a moment ago")

// neighbour is the agent of another workload node of the zone.
type neighbour struct {
	id fabric.NodeID

	// order keeps messages about an endpoint in order, as engine.order does.
	order sync.RWMutex

	dialling sync.Mutex // one attempt at a time

	mu      sync.Mutex
	node    fabric.Node
	conn    *rpc.Conn // nil if there is none
	dialled bool      // this side opened conn
	failed  time.Time // when a call last failed, zero since one succeeded
}

// neighbours are the agents of the other workload nodes of the zone. While no engine of the zone
// answers, this agent tells them of its endpoints and learns theirs from them; otherwise it only
// answers them. It believes each neighbour only about the endpoints of the neighbour's own node.
type neighbours struct {
	agent   *Agent
	engines *engines
	log     hclog.Logger
	self    fabric.NodeID
	server  *rpc.Server // nil in tests that have their own

	nodes     func() []fabric.Node // of the fabric
	verify    admission.Verifier
	documents func() map[fabric.Ref]fabric.Document
	dial      func(context.Context, fabric.Node) (*rpc.Conn, error)

	dials chan struct{} // a place for each attempt to connect
	wake  chan struct{}

	mu  sync.Mutex
	all map[fabric.NodeID]*neighbour
	// told are the endpoints of this node of which neighbours were told.
	told map[string]bool
	// said is when a node last said itself that an endpoint of it lives, which weighs more than
	// that an engine, which was away, does not know it.
	said map[string]time.Time
}

// newNeighbours returns the neighbours of an agent. serve answers them.
func newNeighbours(a *Agent) (*neighbours, error) {
	n := a.node
	z := &neighbours{
		agent: a, engines: a.engines, log: a.log, self: n.Self.ID(), nodes: n.Nodes, verify: n.Verifier(), documents: a.documents,
		dials: make(chan struct{}, dialAtOnce), wake: make(chan struct{}, 1),
		all: map[fabric.NodeID]*neighbour{}, told: map[string]bool{}, said: map[string]time.Time{},
	}
	z.dial = func(ctx context.Context, to fabric.Node) (*rpc.Conn, error) {
		at := netip.AddrPortFrom(to.Health4(), wellknown.AgentPort).String()
		return rpc.DialFrom(ctx, n.Self.Health4(), at, n.Identity.ClientTLS(identity.OfNode(to)), n.Identity, z.handle)
	}
	var err error
	z.server, err = rpc.NewServer(n.Identity.ServerTLS(tls.RequireAndVerifyClientCert), n.Identity, z.welcome, z.handle)
	return z, err
}

// serve listens at the node's health address until ctx ends. It is reached through the encrypted
// link to the nodes of the zone only. The agent does its other work even if it cannot listen.
func (z *neighbours) serve(ctx context.Context, node *daemon.Node) error {
	const subject = "agents of the zone"
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var option error
		err := raw.Control(func(fd uintptr) { option = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) }) // the address may come later
		return errors.Join(err, option)
	}}
	config.SetMultipathTCP(false)
	for ctx.Err() == nil {
		l, err := config.Listen(ctx, "tcp4", netip.AddrPortFrom(node.Self.Health4(), wellknown.AgentPort).String())
		if err == nil {
			node.Degrade(subject, nil)
			err = z.server.Serve(ctx, l)
		}
		if err != nil && ctx.Err() == nil {
			node.Degrade(subject, fmt.Errorf("listen for the agents of the zone, which tell of their endpoints when no engine is there: %w", err))
		}
		retry.Sleep(ctx, roundInterval)
	}
	return nil
}

// welcome takes the connection of a neighbour, over which this side can call as well.
func (z *neighbours) welcome(_ context.Context, c *rpc.Conn) {
	if z.believes(c.Peer()) != nil {
		return // each call is answered with the reason
	}
	z.agent.node.Relay(c.Peer().NodeID, c)
	z.mu.Lock()
	nb := z.all[c.Peer().NodeID]
	if nb == nil {
		nb = &neighbour{id: c.Peer().NodeID}
		z.all[nb.id] = nb
	}
	z.mu.Unlock()
	nb.mu.Lock()
	defer nb.mu.Unlock()
	if !nb.open() {
		nb.use(c, false)
	}
	nb.failed = time.Time{}
}

// open reports whether there is a connection. The caller must hold mu.
func (nb *neighbour) open() bool {
	if nb.conn == nil {
		return false
	}
	select {
	case <-nb.conn.Done():
		return false
	default:
		return true
	}
}

func (nb *neighbour) use(c *rpc.Conn, dialled bool) { nb.conn, nb.dialled = c, dialled }

// present returns the neighbours, by the roster, in order.
func (z *neighbours) present() []*neighbour {
	z.mu.Lock()
	defer z.mu.Unlock()
	var list []*neighbour
	there := map[fabric.NodeID]bool{}
	for _, n := range z.nodes() {
		if n.Zone != z.self.Zone || !n.Kind.Has(fabric.KindWorkload) || n.ID() == z.self {
			continue
		}
		nb := z.all[n.ID()]
		if nb == nil {
			nb = &neighbour{id: n.ID()}
			z.all[nb.id] = nb
		}
		nb.mu.Lock()
		nb.node = n
		nb.mu.Unlock()
		there[nb.id] = true
		list = append(list, nb)
	}
	for id, nb := range z.all {
		if !there[id] {
			nb.close()
			delete(z.all, id)
		}
	}
	slices.SortFunc(list, func(a, b *neighbour) int { return fabric.CompareNodeIDs(a.id, b.id) })
	return list
}

// close closes the connection that this side opened. The other one closes its own.
func (nb *neighbour) close() {
	nb.mu.Lock()
	defer nb.mu.Unlock()
	if nb.conn != nil && nb.dialled {
		nb.conn.Close()
		nb.conn = nil
	}
}

// quiet reports whether the last call failed, so that nobody should wait for the next one.
func (nb *neighbour) quiet() bool {
	nb.mu.Lock()
	defer nb.mu.Unlock()
	return !nb.failed.IsZero()
}

func (nb *neighbour) record(err error) {
	nb.mu.Lock()
	defer nb.mu.Unlock()
	switch {
	case err == nil || errors.As(err, new(*rpc.RemoteError)):
		nb.failed = time.Time{}
	case err != errQuiet:
		nb.failed = time.Now()
	}
}

// connected returns the connection to a neighbour, which it opens if there is none.
func (z *neighbours) connected(ctx context.Context, nb *neighbour) (*rpc.Conn, error) {
	nb.dialling.Lock()
	defer nb.dialling.Unlock()
	nb.mu.Lock()
	conn, open, node, resting := nb.conn, nb.open(), nb.node, time.Since(nb.failed) < dialRest
	nb.mu.Unlock()
	switch {
	case open:
		return conn, nil
	case resting:
		return nil, errQuiet
	}
	select {
	case z.dials <- struct{}{}:
		defer func() { <-z.dials }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := z.dial(ctx, node)
	if err != nil {
		return nil, fmt.Errorf("reach the agent of %s: %w", nb.id, err)
	}
	nb.mu.Lock()
	nb.use(conn, true)
	nb.mu.Unlock()
	z.agent.node.Relay(nb.id, conn)
	return conn, nil
}

// call calls a method of a neighbour. A connection that has ended is replaced once.
func (z *neighbours) call(ctx context.Context, nb *neighbour, method string, params, reply any) error {
	err := rpc.ErrClosed
	for try := 0; try < 2 && errors.Is(err, rpc.ErrClosed); try++ {
		var conn *rpc.Conn
		if conn, err = z.connected(ctx, nb); err == nil {
			err = conn.Call(ctx, method, params, reply)
		}
	}
	nb.record(err)
	return err
}

// out reports whether it is known that no engine of the zone answers. A zone for which no engine is
// registered has never been set up.
func (z *neighbours) out() bool {
	if z == nil {
		return false
	}
	some := false
	for _, n := range z.nodes() {
		if n.Engine == 0 || n.Zone != z.self.Zone {
			continue
		}
		if !z.engines.absent(n.ID()) {
			return false
		}
		some = true
	}
	return some
}

// interval is the time between two rounds.
func (z *neighbours) interval(neighbours int) time.Duration {
	return max(roundInterval, time.Duration(neighbours)*roundShare)
}

// hurry has the next round begin at once.
func (z *neighbours) hurry() {
	if z == nil {
		return
	}
	select {
	case z.wake <- struct{}{}:
	default:
	}
}

// run compares with the neighbours while no engine of the zone answers, until ctx ends.
func (z *neighbours) run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var next, last time.Time // round; when no engine answered
	for {
		asked := false
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-z.wake:
			asked = true
		}
		now := time.Now()
		switch out := z.out(); {
		case out && (asked || !now.Before(next)):
			if last.IsZero() {
				z.log.Warn("no engine of the zone answers; the agents of the zone tell one another of their endpoints", logkey.Zone, z.self.Zone)
			}
			z.round(ctx)
			last, next = time.Now(), time.Now().Add(z.interval(len(z.present())))
		case out:
			last = now
		case !last.IsZero() && now.Sub(last) > outLinger:
			last, next = time.Time{}, time.Time{}
			for _, nb := range z.present() {
				nb.close()
			}
		case !last.IsZero():
			next = time.Time{}
		}
	}
}

// round compares with all neighbours and tells what is not in force.
func (z *neighbours) round(ctx context.Context) {
	var group errgroup.Group
	group.SetLimit(roundAtOnce)
	var mu sync.Mutex
	var failures unheard
	for _, nb := range z.present() {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			if err := z.compare(ctx, nb); err != nil {
				mu.Lock()
				failures = append(failures, fmt.Sprintf("%s: %v", nb.id, err))
				mu.Unlock()
			}
			return nil
		})
	}
	_ = group.Wait() // failures are told
	if ctx.Err() != nil || !z.out() {
		return
	}
	pending := append([]string{z.beyond()}, failures.told()...)
	for _, ep := range z.agent.endpoints.all() {
		if len(z.engines.pendingOf(ep.Attachment)) > 0 {
			z.engines.setPending(ep, pending)
		}
	}
}

// beyond says what is not in force while no engine answers.
func (z *neighbours) beyond() string {
	return fmt.Sprintf("no engine of zone %s answers: nothing knows it outside the zone", z.self.Zone)
}

// unheard are neighbours that could not be asked, and why.
type unheard []string

// told returns what is said of them, which is no more in a large zone.
func (u unheard) told() []string {
	slices.Sort(u)
	if len(u) <= maxToldNeighbours {
		return u
	}
	return append(slices.Clone(u[:maxToldNeighbours]), fmt.Sprintf("%d more agents of the zone", len(u)-maxToldNeighbours))
}

// request tells all neighbours of an endpoint and takes their counterparts of it. It returns where
// the endpoint is not in force when all have answered who did so the last time, or when ctx ends;
// the calls continue after that.
func (z *neighbours) request(ctx context.Context, ep endpoint) (pending []string) {
	z.mu.Lock()
	z.told[ep.ID] = true
	z.mu.Unlock()
	tell := func(ctx context.Context, nb *neighbour) (struct{}, error) {
		return struct{}{}, z.introduce(ctx, nb, []cnicall.Attachment{ep.Attachment})
	}
	waited, quiet := z.split()
	fanout.Start(ctx, callTimeout, quiet, tell)
	var failures unheard
	for _, nb := range quiet {
		failures = append(failures, fmt.Sprintf("%s: %v", nb.id, errQuiet))
	}
	for o := range fanout.Call(ctx, callTimeout, waited, tell) {
		if o.Err != nil {
			failures = append(failures, fmt.Sprintf("%s: %v", o.Peer.id, o.Err))
		}
	}
	return append([]string{z.beyond()}, failures.told()...)
}

// split returns the neighbours, apart those for whose answers nobody should wait.
func (z *neighbours) split() (waited, quiet []*neighbour) {
	for _, nb := range z.present() {
		if nb.quiet() {
			quiet = append(quiet, nb)
		} else {
			waited = append(waited, nb)
		}
	}
	return waited, quiet
}

// withdraw tells the neighbours that an endpoint has ended, if no engine does, or they know it from
// this agent. It waits for those that answered the last time, until ctx ends.
func (z *neighbours) withdraw(ctx context.Context, gone endpoint) {
	if z == nil {
		return
	}
	z.mu.Lock()
	told := z.told[gone.ID]
	delete(z.told, gone.ID)
	z.mu.Unlock()
	if !told && !z.out() {
		return
	}
	tell := func(ctx context.Context, nb *neighbour) (struct{}, error) {
		return struct{}{}, z.tellGone(ctx, nb, []string{gone.ID})
	}
	waited, quiet := z.split()
	fanout.Start(ctx, callTimeout, quiet, tell)
	for range fanout.Call(ctx, callTimeout, waited, tell) { // the next round tells who missed it
	}
}

// refused returns what the limits of the server refused.
func (z *neighbours) refused() map[string]uint64 {
	if z == nil || z.server == nil {
		return nil
	}
	return z.server.Refused()
}
