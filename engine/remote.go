// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/lease"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/signal"
)

// remote is a connected agent or engine.
type remote struct {
	id   string // zone/node
	zone string
	node string
	conn Conn

	// told is what an agent was told of other endpoints: when the admission of
	// each was issued. mu keeps the messages about it in order.
	mu   sync.Mutex
	told map[string]time.Time
}

// Conn is the connection to another daemon.
type Conn interface {
	Call(ctx context.Context, method string, params, reply any) error
	Peer() signal.Peer
	Done() <-chan struct{}
}

// Attach takes up the connection of an agent of the zone or of another zone's
// engine, brings the other side up to date, and forgets it when it closes.
func (e *Engine) Attach(ctx context.Context, conn Conn) error {
	peer := conn.Peer()
	r := &remote{id: peer.Zone + "/" + peer.Node, zone: peer.Zone, node: peer.Node, conn: conn, told: map[string]time.Time{}}
	switch {
	case peer.Kind == fabric.KindWorkload && peer.Zone == e.self.Zone:
		e.enter(e.agents, r)
		if err := e.update(ctx, r); err != nil {
			return fmt.Errorf("bring agent %s up to date: %w", r.id, err)
		}
	case peer.Kind == fabric.KindProcessor && peer.Zone != e.self.Zone:
		e.enter(e.engines, r)
		if err := e.offer(ctx, r); err != nil {
			return fmt.Errorf("bring engine %s up to date: %w", r.id, err)
		}
	default:
		return fmt.Errorf("%s %s has no business with the engine of zone %s", peer.Kind, r.id, e.self.Zone)
	}
	return nil
}

func (e *Engine) enter(set map[string]*remote, r *remote) {
	e.mu.Lock()
	set[r.id] = r
	e.mu.Unlock()
	e.log.Info("connected", logkey.Node, r.id)
	go func() {
		<-r.conn.Done()
		e.mu.Lock()
		if set[r.id] == r {
			delete(set, r.id)
		}
		e.mu.Unlock()
		e.log.Info("disconnected; what it announced stays in force", logkey.Node, r.id)
	}()
}

// offer forwards all endpoints of the own zone to another zone's engine.
func (e *Engine) offer(ctx context.Context, r *remote) error {
	var endpoints []string
	for _, le := range e.leases.All(e.now()) {
		if le.Admission.Zone != e.self.Zone {
			continue
		}
		endpoints = append(endpoints, le.Admission.Endpoint)
		if _, err := e.forwardTo(ctx, r, le.Request); err != nil {
			return err
		}
	}
	if err := r.conn.Call(ctx, signal.MethodSync, signal.SyncParams{Endpoints: endpoints}, nil); err != nil {
		return err
	}
	return e.Refresh(ctx)
}

// update tells an agent what has changed among the counterparts of the
// endpoints that it hosts, and returns when it has programmed them.
func (e *Engine) update(ctx context.Context, r *remote) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var hosted []fabric.Admission
	for _, le := range e.leases.All(e.now()) {
		if le.Admission.Zone == r.zone && le.Admission.Node == r.node {
			hosted = append(hosted, le.Admission)
		}
	}
	relevant := map[string]bool{}
	var news []fabric.Request
	issued := map[string]time.Time{}
	for _, le := range e.counterparts(hosted) {
		a := le.Admission
		relevant[a.Endpoint] = true
		if a.Zone == r.zone && a.Node == r.node {
			continue // it knows its own
		}
		if at, told := r.told[a.Endpoint]; !told || at.Before(a.Issued) {
			news = append(news, le.Request)
			issued[a.Endpoint] = a.Issued
		}
	}
	var gone []string
	for endpoint := range r.told {
		if !relevant[endpoint] {
			gone = append(gone, endpoint)
		}
	}
	if len(gone) > 0 {
		slices.Sort(gone)
		if err := r.conn.Call(ctx, signal.MethodWithdraw, signal.WithdrawParams{Endpoints: gone}, nil); err != nil {
			return err
		}
		for _, endpoint := range gone {
			delete(r.told, endpoint)
		}
	}
	if len(news) == 0 {
		return nil
	}
	var reply signal.AnnounceReply
	if err := r.conn.Call(ctx, signal.MethodAnnounce, signal.AnnounceParams{Requests: news}, &reply); err != nil {
		return err
	}
	var refused []error
	for endpoint, at := range issued {
		if why, no := reply.Refused[endpoint]; no {
			refused = append(refused, fmt.Errorf("endpoint %s refused: %s", endpoint, why))
			continue
		}
		r.told[endpoint] = at
	}
	return errors.Join(refused...)
}

// Sync tells each connected agent all that it was ever told, so that it can
// drop what was withdrawn while it was away.
func (e *Engine) Sync(ctx context.Context) {
	for _, r := range e.remotes(e.agents) {
		r.mu.Lock()
		endpoints := slices.Sorted(maps.Keys(r.told))
		err := r.conn.Call(ctx, signal.MethodSync, signal.SyncParams{Endpoints: endpoints}, nil)
		r.mu.Unlock()
		if err != nil {
			e.log.Warn("agent not synchronised", logkey.Node, r.id, logkey.Error, err)
		}
	}
}

// counterparts returns the leases that may open flows to any of the given
// endpoints, or answer flows of theirs, under the revision in force.
func (e *Engine) counterparts(of []fabric.Admission) []lease.Lease {
	docs := e.docs.Documents()
	// Endpoints are many, their identities few.
	identities := map[string]fabric.Identity{}
	for _, a := range of {
		identities[a.Identity().Key()] = a.Identity()
	}
	concerned := map[string]bool{} // by identity
	var list []lease.Lease
	for _, le := range e.leases.All(e.now()) {
		other := le.Admission.Identity()
		key := other.Key()
		yes, known := concerned[key]
		if !known {
			for _, id := range identities {
				doc := docs[id.Service]
				yes = yes || len(fabric.Grants(id, doc, other)) > 0 || len(fabric.GrantsTo(id, doc, other)) > 0
			}
			concerned[key] = yes
		}
		if yes {
			list = append(list, le)
		}
	}
	return list
}

// tell brings the agents that host counterparts of a, and a's own, up to date.
// It returns what is not in force when ctx ends; the calls go on after that.
func (e *Engine) tell(ctx context.Context, a fabric.Admission) (pending []string) {
	hosts := map[string]bool{}
	if a.Zone == e.self.Zone {
		hosts[a.Zone+"/"+a.Node] = true
	}
	for _, le := range e.counterparts([]fabric.Admission{a}) {
		if le.Admission.Zone == e.self.Zone {
			hosts[le.Admission.Zone+"/"+le.Admission.Node] = true
		}
	}
	type outcome struct {
		id  string
		err error
	}
	results := make(chan outcome, len(hosts))
	waiting := map[string]bool{}
	for id := range hosts {
		e.mu.Lock()
		agent := e.agents[id]
		e.mu.Unlock()
		if agent == nil {
			pending = append(pending, id+": its agent is not connected")
			continue
		}
		waiting[id] = true
		go func() {
			background, cancel := context.WithTimeout(context.WithoutCancel(ctx), settle)
			defer cancel()
			results <- outcome{id, e.update(background, agent)}
		}()
	}
	for len(waiting) > 0 {
		select {
		case o := <-results:
			delete(waiting, o.id)
			if o.err != nil {
				pending = append(pending, fmt.Sprintf("%s: %v", o.id, o.err))
			}
		case <-ctx.Done():
			for id := range waiting {
				pending = append(pending, id+": no answer in time")
			}
			return pending
		}
	}
	return pending
}

// remotes returns a snapshot of a set of connections.
func (e *Engine) remotes(set map[string]*remote) []*remote {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]*remote, 0, len(set))
	for _, r := range set {
		list = append(list, r)
	}
	return list
}

// engineOf returns a connected engine among the given ones.
func (e *Engine) engineOf(ids []string) *remote {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range ids {
		if r := e.engines[id]; r != nil {
			return r
		}
	}
	return nil
}
