// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/coalesce"
	"github.com/sif-project/sif/internal/fanout"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/node/rpc"
)

// A request goes only to the engines of zones that need the endpoint: they say of which services
// they want requests. That two endpoints that start at the same time in two zones find each other
// depends on an order. Each side stores its own lease first, then says what it wants because of it,
// and reads what the other side wants; who is told a want notes it first, and then sends what it
// has. So one of the two sees the other at least, in each direction.

// wants are of which services an engine wants requests. They do not change.
type wants struct {
	everything bool
	services   map[fabric.Ref]bool
	digest     fabric.Hash // zero: nobody said so
}

// unsaid is what an engine of an older version wants, which does not say it.
var unsaid = &wants{everything: true}

func newWants(everything bool, services map[fabric.Ref]bool) *wants {
	list := slices.SortedFunc(maps.Keys(services), fabric.CompareRefs)
	digest := fabric.NewObject(rpc.WantParams{Everything: everything, Add: list}).Hash
	return &wants{everything, services, digest}
}

// has reports whether requests of a service are wanted. Who said nothing yet, nil, wants none.
func (w *wants) has(service fabric.Ref) bool {
	return w != nil && (w.everything || w.services[service])
}

// said reports whether the engine said what it wants.
func (w *wants) said() bool { return w != nil && w != unsaid }

// since returns what to say to an engine that was told before; nil: nothing.
func (w *wants) since(before *wants) rpc.WantParams {
	p := rpc.WantParams{Everything: w.everything}
	if before == nil {
		before = &wants{}
	}
	p.Before = before.digest
	for service := range w.services {
		if !before.services[service] {
			p.Add = append(p.Add, service)
		}
	}
	for service := range before.services {
		if !w.services[service] {
			p.Remove = append(p.Remove, service)
		}
	}
	slices.SortFunc(p.Add, fabric.CompareRefs)
	slices.SortFunc(p.Remove, fabric.CompareRefs)
	return p
}

// changed returns the wants after a change. It is false if the change is of others.
func (w *wants) changed(p rpc.WantParams) (*wants, bool) {
	services := map[fabric.Ref]bool{}
	if p.Before != (fabric.Hash{}) {
		if !w.said() || w.digest != p.Before {
			return nil, false
		}
		maps.Copy(services, w.services)
	}
	for _, service := range p.Remove {
		delete(services, service)
	}
	for _, service := range p.Add {
		services[service] = true
	}
	return newWants(p.Everything, services), true
}

// wantedFor is how long an engine goes on to want requests that it does not need any more: a job
// that is replaced needs them again. What else is not needed costs its messages only.
const wantedFor = 10 * time.Minute

// wantFor wants what a new endpoint of the zone needs.
func (e *Engine) wantFor(id fabric.Identity) {
	e.wanting.Lock()
	defer e.wanting.Unlock()
	now, have, news := time.Now(), e.wants.Load(), false // durations only
	for _, service := range fabric.Counterparts(id, e.docs.Documents()[id.Service].At(e.now())) {
		e.needed[service] = now
		news = news || !have.has(service)
	}
	if news {
		e.setWants(have.everything)
	}
}

// reviseWants computes what this engine wants from the leases of its zone and the revision in
// force.
func (e *Engine) reviseWants() {
	e.wanting.Lock()
	defer e.wanting.Unlock()
	var own []fabric.Identity
	for _, le := range e.own() {
		own = append(own, le.Admission.Identity())
	}
	needed, now := e.topology().Needed(e.self.Zone, own, e.documents()), time.Now()
	for _, service := range needed.Services() {
		e.needed[service] = now
	}
	maps.DeleteFunc(e.needed, func(_ fabric.Ref, at time.Time) bool { return now.Sub(at) > wantedFor })
	e.setWants(needed.Everything)
}

// setWants makes what was needed lately what this engine wants. The caller must hold wanting.
func (e *Engine) setWants(everything bool) {
	services := map[fabric.Ref]bool{}
	if !everything { // otherwise none is named, so that a new endpoint changes nothing
		for service := range e.needed {
			services[service] = true
		}
	}
	if have := e.wants.Load(); have.everything != everything || !maps.Equal(have.services, services) {
		e.wants.Store(newWants(everything, services))
	}
}

// wantedBy returns what another engine wants, nil if it has not said it yet.
func (e *Engine) wantedBy(id fabric.NodeID) *wants {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.wanted[id]
}

// informed reports whether an engine was told what this one wants.
func (e *Engine) informed(r *remote) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return r.said == e.wants.Load()
}

// announcer returns what tells an engine what this one wants. It returns when this engine has got
// what the other one holds of that.
func (e *Engine) announcer(id fabric.NodeID) *coalesce.Func {
	return coalesce.New(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		again, err := e.announce(ctx, id)
		if again {
			_, err = e.announce(ctx, id)
		}
		return err
	})
}

// announce tells an engine what has changed of what this one wants. again says that the other one
// knows something else, so that it must be told everything.
func (e *Engine) announce(ctx context.Context, id fabric.NodeID) (again bool, err error) {
	wants := e.wants.Load()
	e.mu.Lock()
	r := e.engines[id]
	if r == nil || r.said == wants {
		e.mu.Unlock()
		return false, nil // who connects is told
	}
	before := r.said
	r.said = nil // what the other side knows is not known if there is no answer
	e.mu.Unlock()
	var reply rpc.WantReply
	err = r.conn.Call(ctx, rpc.MethodWant, wants.since(before), &reply)
	older := errors.As(err, new(*rpc.RemoteError)) // or busy: then it says what it wants once more
	switch {
	case older:
		err = nil
	case err != nil:
		return false, fmt.Errorf("say what this zone wants: %w", err)
	case reply.Other:
		return before != nil, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	r.said = wants
	if older {
		e.wanted[id] = unsaid
	}
	return false, nil
}

// announceWants tells the engines of other zones what this one wants, as far as they do not know
// it. It waits for them as long as a workload does.
func (e *Engine) announceWants(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, inForce)
	defer cancel()
	for o := range fanout.Call(ctx, callTimeout, e.remotes(e.engines), tellWants) {
		if o.Err != nil {
			e.log.Warn("cannot say what this zone wants, the next synchronisation will", logkey.Node, o.Peer.id, logkey.Error, o.Err)
		}
	}
}

func tellWants(_ context.Context, r *remote) (struct{}, error) {
	return struct{}{}, r.announce.Call()
}

// want notes what the engine of another zone wants, and sends what it wants newly.
func (e *Engine) want(ctx context.Context, from rpc.Peer, p rpc.WantParams) (reply rpc.WantReply, err error) {
	if from.Kind != fabric.KindProcessor || from.Zone == e.self.Zone {
		return reply, fmt.Errorf("node %s is no engine of another zone, so it is sent no requests", from.NodeID)
	}
	e.mu.Lock()
	before := e.wanted[from.NodeID]
	after, ok := before.changed(p)
	if !ok {
		e.mu.Unlock()
		reply.Other = true
		return reply, nil
	}
	e.wanted[from.NodeID] = after
	r := e.engines[from.NodeID]
	e.mu.Unlock()
	if r == nil {
		return reply, nil // it is just connecting, and is offered what it wants
	}
	var news []lease.Lease
	for _, le := range e.own() {
		if s := le.Admission.Service; after.has(s) && !before.has(s) {
			news = append(news, le)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return reply, e.forwardAll(ctx, r, news)
}

// forgetWants forgets what engines wanted whose nodes have left the roster.
func (e *Engine) forgetWants(known map[fabric.NodeID]bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.wanted, func(id fabric.NodeID, _ *wants) bool { return !known[id] })
}
