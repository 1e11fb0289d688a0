// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/lease"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/signal"
)

// redial is the pause between attempts to reach an engine.
const redial = time.Second

// engines keeps a connection to each engine of the zone.
type engines struct {
	agent *Agent
	log   hclog.Logger

	mu    sync.Mutex
	conns map[string]*signal.Conn // by zone/node
}

// connected reports whether an engine can be asked.
func (e *engines) connected() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns) > 0
}

// run connects to the zone's engines, as the roster names them, until ctx ends.
func (e *engines) run(ctx context.Context) error {
	started := map[string]context.CancelFunc{}
	var running sync.WaitGroup
	defer running.Wait()
	tick := time.NewTicker(redial)
	defer tick.Stop()
	for {
		want := map[string]fabric.Node{}
		for _, n := range e.agent.node.Nodes() {
			if n.Kind == fabric.KindProcessor && n.Zone == e.agent.node.Self.Zone {
				want[n.ID()] = n
			}
		}
		for id, stop := range started {
			if _, stays := want[id]; !stays {
				stop()
				delete(started, id)
			}
		}
		for id, n := range want {
			if started[id] != nil {
				continue
			}
			each, stop := context.WithCancel(ctx)
			started[id] = stop
			running.Go(func() { e.follow(each, n) })
		}
		select {
		case <-ctx.Done():
			for _, stop := range started {
				stop()
			}
			return nil
		case <-tick.C:
		}
	}
}

// follow keeps a connection to one engine.
func (e *engines) follow(ctx context.Context, n fabric.Node) {
	for ctx.Err() == nil {
		err := e.session(ctx, n)
		if ctx.Err() != nil {
			return
		}
		e.agent.node.Degrade("engine "+n.ID(), err)
		select {
		case <-ctx.Done():
		case <-time.After(redial):
		}
	}
}

// session connects to an engine, tells it all that this node has, and stays
// until the connection is gone.
func (e *engines) session(ctx context.Context, n fabric.Node) error {
	node := e.agent.node
	tls := node.Identity.ClientTLS(func(path string, _ *x509.Certificate) error {
		if path != fabric.NodeSPIFFE(n.Zone, n.Name) {
			return fmt.Errorf("the server is spiffe://%s%s, not the engine of %s", node.Config.TrustDomain, path, n.ID())
		}
		return nil
	})
	dialing, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := signal.Dial(dialing, netip.AddrPortFrom(n.Underlay, n.Engine).String(), tls, node.Config.TrustDomain, e.handle)
	if err != nil {
		return fmt.Errorf("reach the engine %s: %w", n.ID(), err)
	}
	defer conn.Close()
	if err := e.introduce(ctx, conn); err != nil {
		return fmt.Errorf("introduce this node to the engine %s: %w", n.ID(), err)
	}
	e.mu.Lock()
	e.conns[n.ID()] = conn
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(e.conns, n.ID())
		e.mu.Unlock()
	}()
	node.Degrade("engine "+n.ID(), nil)
	e.log.Info("connected to engine", logkey.Node, n.ID())
	select {
	case <-ctx.Done():
		return nil
	case <-conn.Done():
		return fmt.Errorf("the connection to the engine %s was lost", n.ID())
	}
}

// introduce sends the requests of all endpoints, and then their list, so that
// the engine ends what it holds beyond them.
func (e *engines) introduce(ctx context.Context, conn *signal.Conn) error {
	var ids []string
	for _, ep := range e.agent.endpoints.all() {
		ids = append(ids, ep.ID)
		pending, err := connectOver(ctx, conn, ep)
		if err != nil {
			return err
		}
		if err := e.agent.endpoints.change(ep.Attachment, func(ep *endpoint) { ep.Pending = pending }); err != nil {
			return err
		}
	}
	return conn.Call(ctx, signal.MethodSync, signal.SyncParams{Endpoints: ids}, nil)
}

func connectOver(ctx context.Context, conn *signal.Conn, ep endpoint) (pending []string, err error) {
	var reply signal.ConnectReply
	if err := conn.Call(ctx, signal.MethodConnect, signal.ConnectParams{Request: ep.Request}, &reply); err != nil {
		return nil, err
	}
	return reply.Pending, nil
}

// connect requests the connectivity of an endpoint from every engine of the
// zone. It returns what is not in force elsewhere yet; an engine that did not
// answer in time is part of that, one that refuses is an error.
func (e *engines) connect(ctx context.Context, ep endpoint) (pending []string, err error) {
	e.mu.Lock()
	conns := make(map[string]*signal.Conn, len(e.conns))
	for id, c := range e.conns {
		conns[id] = c
	}
	e.mu.Unlock()
	for id, conn := range conns {
		p, err := connectOver(ctx, conn, ep)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			pending = append(pending, id+": no answer in time")
		case err != nil:
			return nil, fmt.Errorf("engine %s: %w", id, err)
		}
		pending = append(pending, p...)
	}
	return pending, nil
}

// withdraw tells the engines that an endpoint is gone. One that cannot be
// reached learns it when it is connected again.
func (e *engines) withdraw(ctx context.Context, endpoint string) {
	e.mu.Lock()
	conns := make(map[string]*signal.Conn, len(e.conns))
	for id, c := range e.conns {
		conns[id] = c
	}
	e.mu.Unlock()
	for id, conn := range conns {
		if err := conn.Call(ctx, signal.MethodWithdraw, signal.WithdrawParams{Endpoints: []string{endpoint}}, nil); err != nil {
			e.log.Warn("engine not told of a withdrawal; it will be when it is connected again", logkey.Node, id, logkey.Endpoint, endpoint, logkey.Error, err)
		}
	}
}

// handle serves the calls of an engine.
func (e *engines) handle(_ context.Context, from signal.Peer, method string, params json.RawMessage) (any, error) {
	if from.Kind != fabric.KindProcessor || from.Zone != e.agent.node.Self.Zone {
		return nil, fmt.Errorf("%s %s/%s is not an engine of zone %s", from.Kind, from.Zone, from.Node, e.agent.node.Self.Zone)
	}
	switch method {
	case signal.MethodAnnounce:
		var p signal.AnnounceParams
		if err := json.Unmarshal(params, &p); err != nil {
			return nil, fmt.Errorf("decode the parameters of %s: %w", method, err)
		}
		return e.agent.announced(p)
	case signal.MethodWithdraw:
		var p signal.WithdrawParams
		if err := json.Unmarshal(params, &p); err != nil {
			return nil, fmt.Errorf("decode the parameters of %s: %w", method, err)
		}
		return struct{}{}, e.agent.forget(func(a fabric.Admission) bool { return slices.Contains(p.Endpoints, a.Endpoint) })
	case signal.MethodSync:
		var p signal.SyncParams
		if err := json.Unmarshal(params, &p); err != nil {
			return nil, fmt.Errorf("decode the parameters of %s: %w", method, err)
		}
		return struct{}{}, e.agent.forget(func(a fabric.Admission) bool { return !slices.Contains(p.Endpoints, a.Endpoint) })
	}
	return nil, fmt.Errorf("an agent does not serve %q", method)
}

// announced takes up counterparts on an engine's word, which is checked like
// anybody's, and returns when they are programmed.
func (a *Agent) announced(p signal.AnnounceParams) (signal.AnnounceReply, error) {
	verifier := a.node.Verifier()
	reply := signal.AnnounceReply{Refused: map[string]string{}}
	for _, r := range p.Requests {
		adm, err := verifier.Verify(r, a.now())
		if err != nil {
			a.log.Warn("counterpart refused", logkey.Endpoint, adm.Endpoint, logkey.Error, err)
			reply.Refused[adm.Endpoint] = err.Error()
			continue
		}
		if _, err := a.counterparts.Put(lease.Lease{Request: r, Admission: adm}); err != nil {
			return reply, err
		}
	}
	a.refreshCatalog()
	return reply, a.reprogram()
}

// forget drops counterparts.
func (a *Agent) forget(gone func(fabric.Admission) bool) error {
	removed, err := a.counterparts.Remove(gone)
	if err != nil || len(removed) == 0 {
		return err
	}
	return a.reprogram()
}
