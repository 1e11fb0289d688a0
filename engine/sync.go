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

	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/node/rpc"
)

// heard is what a peer listed last on its connection. It is empty before that.
type heard struct {
	// endpoints is the list, with those that this engine does not want. It is nil if the peer has
	// not listed its endpoints yet.
	endpoints map[string]time.Time
	// owners are the nodes for which the peer speaks.
	owners map[fabric.NodeID]bool
	// missing is the number of endpoints in the list that this engine lacked.
	missing int
}

// Sync compares with every connected agent and engine what it should have from us, in case either
// side missed or lost something.
func (e *Engine) Sync(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var group errgroup.Group
	tell := func(set map[fabric.NodeID]*remote, do func(context.Context, *remote) error) {
		for _, r := range e.remotes(set) {
			group.Go(func() error {
				if err := do(ctx, r); err != nil {
					e.log.Warn("cannot compare the endpoints", logkey.Node, r.id, logkey.Error, err)
				}
				return nil
			})
		}
	}
	tell(e.agents, e.syncAgent)
	tell(e.engines, e.syncEngine)
	tell(e.agents, e.compareStates)
	tell(e.engines, e.compareStates)
	_ = group.Wait() // errors are logged above
}

// syncAgent compares what an agent was told of with what it has. It sends again what the agent has
// lost, and withdraws what the agent still has although it has ended.
func (e *Engine) syncAgent(ctx context.Context, r *remote) error {
	lost, err := e.compareAgent(ctx, r)
	if err != nil || !lost {
		return err
	}
	err = e.update(ctx, r)
	if errors.As(err, new(refusal)) {
		return nil // update is called again soon, and returns it then
	}
	return err
}

// compareAgent does the first part of syncAgent, and reports whether the agent has lost something.
func (e *Engine) compareAgent(ctx context.Context, r *remote) (lost bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r = e.newest(e.agents, r)
	params := rpc.SyncParams{Endpoints: map[string]time.Time{}}
	for endpoint, l := range r.told {
		params.Endpoints[endpoint] = l.issued
	}
	var reply rpc.SyncReply
	if err := r.conn.Call(ctx, rpc.MethodSync, params, &reply); err != nil {
		return false, err
	}
	for _, endpoint := range reply.Missing {
		delete(r.told, endpoint)
	}
	if len(reply.Missing) > 0 {
		e.log.Info("the agent has lost counterparts, sending them again", logkey.Node, r.id, logkey.Count, len(reply.Missing))
	}
	gone, _ := e.judge(reply.Unlisted)
	if len(gone) == 0 {
		return len(reply.Missing) > 0, nil
	}
	return len(reply.Missing) > 0, r.conn.Call(ctx, rpc.MethodWithdraw, rpc.WithdrawParams{Endpoints: gone}, nil)
}

// syncEngine compares the endpoints of this zone that the engine of another zone wants with what it
// has of them, and what this engine wants with what the other one knows of that. It forwards what
// that engine has lost, withdraws what it still has although it has ended, and gets back what this
// engine has lost.
func (e *Engine) syncEngine(ctx context.Context, r *remote) error {
	reply, err := e.compareEngine(ctx, r)
	if err != nil {
		return err
	}
	if len(reply.Missing) > 0 {
		e.log.Info("the other engine lacks endpoints, sending them again", logkey.Node, r.id, logkey.Count, len(reply.Missing))
	}
	if reply.OtherWants {
		e.mu.Lock()
		r.said = nil
		e.mu.Unlock()
		err = r.announce.Call()
	}
	var lacked []lease.Lease
	for _, endpoint := range reply.Missing {
		if le, ok := e.leases.Get(endpoint); ok {
			lacked = append(lacked, le)
		}
	}
	gone, lost := e.judge(reply.Unlisted)
	err = errors.Join(err, e.forwardAll(ctx, r, lacked), e.withdrawFrom(ctx, r, gone), e.recall(ctx, r, lost))
	if err == nil && len(lacked) > 0 {
		_, err = e.compareEngine(ctx, r) // so that the peer sees that it lacks nothing any more
	}
	return err
}

// compareEngine sends the list of all endpoints of this zone. No forward may overtake the list,
// because the peer would then report the new endpoint as not listed.
func (e *Engine) compareEngine(ctx context.Context, r *remote) (reply rpc.SyncReply, err error) {
	r.order.Lock()
	defer r.order.Unlock()
	r = e.newest(e.engines, r)
	params := rpc.SyncParams{Endpoints: map[string]time.Time{}, Owners: e.listedOwners()}
	e.mu.Lock()
	wants := e.wanted[r.id]
	if r.said != nil {
		params.Wants = r.said.digest
	}
	e.mu.Unlock()
	for _, le := range e.own() {
		if wants.has(le.Admission.Service) {
			params.Endpoints[le.Admission.Endpoint] = le.Admission.Issued
		} else {
			params.Others = append(params.Others, le.Admission.Endpoint)
		}
	}
	return reply, r.conn.Call(ctx, rpc.MethodSync, params, &reply)
}

// forwardAll forwards requests to an engine. A request that it refuses does not affect the others.
func (e *Engine) forwardAll(ctx context.Context, r *remote, leases []lease.Lease) error {
	var group errgroup.Group
	group.SetLimit(forwardAtOnce)
	for _, le := range leases {
		group.Go(func() error {
			_, err := e.forwardTo(ctx, r, le.Request)
			var refused *rpc.RemoteError
			if errors.As(err, &refused) {
				e.log.Warn("another zone refused the endpoint", logkey.Endpoint, le.Admission.Endpoint, logkey.Node, r.id, logkey.Error, err)
				return nil
			}
			return err
		})
	}
	return group.Wait()
}

// withdrawFrom tells the engine of another zone of endpoints of this zone that have ended.
func (e *Engine) withdrawFrom(ctx context.Context, r *remote, gone []string) error {
	r.order.Lock()
	defer r.order.Unlock()
	r = e.newest(e.engines, r)
	gone = slices.DeleteFunc(gone, func(endpoint string) bool {
		_, back := e.leases.Get(endpoint)
		return back
	})
	if len(gone) == 0 {
		return nil
	}
	return r.conn.Call(ctx, rpc.MethodWithdraw, rpc.WithdrawParams{Endpoints: gone}, nil)
}

// recallAtOnce is the number of requests in one message of lost requests.
const recallAtOnce = 500

// recall gets back requests of this zone from the engine of another zone. They are verified like
// those of agents. When the agent of their node has connected, its word counts again.
func (e *Engine) recall(ctx context.Context, r *remote, lost []string) error {
	for some := range slices.Chunk(lost, recallAtOnce) {
		var reply rpc.RecallReply
		if err := r.conn.Call(ctx, rpc.MethodRecall, rpc.RecallParams{Endpoints: some}, &reply); err != nil {
			return err
		}
		for _, request := range reply.Requests {
			a, err := e.believe(request)
			if err == nil && a.Zone != e.self.Zone {
				err = fmt.Errorf("endpoint %s is not of zone %s", a.Endpoint, e.self.Zone)
			}
			if err != nil {
				e.log.Debug("cannot use a request that another engine still has", logkey.Node, r.id, logkey.Error, err)
				continue
			}
			if err := e.acceptLost(ctx, lease.Lease{Request: request, Admission: a, Since: e.now()}); err != nil && !errors.Is(err, errSuperseded) {
				return err
			}
		}
	}
	return nil
}

// acceptLost accepts a lease that another engine still had, unless it was withdrawn meanwhile.
func (e *Engine) acceptLost(ctx context.Context, le lease.Lease) error {
	e.recalling.Lock()
	defer e.recalling.Unlock()
	if _, lost := e.judge([]rpc.Held{{Endpoint: le.Admission.Endpoint, Node: le.Admission.Host()}}); len(lost) == 0 {
		return nil
	}
	if err := e.accept(ctx, le); err != nil {
		return err
	}
	e.log.Info("got back a lease from another engine", logkey.Endpoint, le.Admission.Endpoint, logkey.Node, le.Admission.Host())
	return nil
}

// recalled answers an engine that has lost requests of its zone.
func (e *Engine) recalled(from rpc.Peer, p rpc.RecallParams) (rpc.RecallReply, error) {
	if len(p.Endpoints) > recallAtOnce {
		return rpc.RecallReply{}, fmt.Errorf("%d endpoints are asked for, at most %d are allowed", len(p.Endpoints), recallAtOnce)
	}
	owns, reply := e.ownedBy(from), rpc.RecallReply{}
	for _, endpoint := range p.Endpoints {
		if le, ok := e.leases.Get(endpoint); ok && owns(le.Admission) {
			reply.Requests = append(reply.Requests, le.Request)
		}
	}
	return reply, nil
}

// sync compares the list of a peer with the leases that it owns. It ends nothing.
func (e *Engine) sync(from rpc.Peer, p rpc.SyncParams) (rpc.SyncReply, error) {
	reply := rpc.SyncReply{Missing: e.leases.Lacking(p.Endpoints)}
	listed := make(map[string]time.Time, len(p.Endpoints)+len(p.Others))
	maps.Copy(listed, p.Endpoints)
	for _, endpoint := range p.Others {
		listed[endpoint] = time.Time{}
	}
	for _, le := range e.leases.Where(e.now(), e.ownedBy(from)) {
		if _, has := listed[le.Admission.Endpoint]; !has {
			reply.Unlisted = append(reply.Unlisted, rpc.Held{Endpoint: le.Admission.Endpoint, Node: le.Admission.Host()})
		}
	}
	if from.Zone == e.self.Zone {
		x := e.exit()
		reply.Exit, reply.Far = x.Leads, x.Far
	}
	defer e.stand.look()
	h := heard{endpoints: listed, owners: map[fabric.NodeID]bool{}, missing: len(reply.Missing)}
	e.mu.Lock()
	defer e.mu.Unlock()
	if w := e.wanted[from.NodeID]; p.Wants != (fabric.Hash{}) {
		reply.OtherWants = !w.said() || w.digest != p.Wants
	}
	if from.Zone == e.self.Zone && e.agents[from.NodeID] != nil {
		h.owners[from.NodeID] = true
		e.agents[from.NodeID].heard = h
	} else if e.engines[from.NodeID] != nil {
		for _, owner := range p.Owners {
			h.owners[owner] = owner.Zone == from.Zone
		}
		e.engines[from.NodeID].heard = h
	}
	return reply, nil
}

// endedFor is how long the engine remembers that an endpoint was withdrawn: longer than any
// admission lives by default.
const endedFor = 48 * time.Hour

// remember notes that endpoints of the zone were withdrawn by their agent, so that they are not
// taken for lost ones while another engine still has them.
func (e *Engine) remember(withdrawn []fabric.Admission) {
	now := time.Now() // durations only
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.ended, func(_ string, at time.Time) bool { return now.Sub(at) > endedFor })
	for _, a := range withdrawn {
		e.ended[a.Endpoint] = now
	}
}

// listedOwners returns the nodes of the zone that have listed their endpoints since they connected,
// in order.
func (e *Engine) listedOwners() []fabric.NodeID {
	e.mu.Lock()
	defer e.mu.Unlock()
	var owners []fabric.NodeID
	for id, agent := range e.agents {
		if agent.heard.endpoints != nil {
			owners = append(owners, id)
		}
	}
	slices.SortFunc(owners, fabric.CompareNodeIDs)
	return owners
}

// judge decides about endpoints that a peer has from this engine and that are not in its list.
// Those have gone that have no lease and that are not in the last list of a peer that speaks for
// their node, or were withdrawn. Those without a lease for whose node nobody has spoken were lost
// by this engine. An engine that has just started knows nothing about the rest.
func (e *Engine) judge(unlisted []rpc.Held) (gone, lost []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, held := range unlisted {
		if _, has := e.leases.Get(held.Endpoint); has {
			continue
		}
		spoken, listed := false, false
		for _, set := range []map[fabric.NodeID]*remote{e.agents, e.engines} {
			for _, r := range set {
				if r.heard.owners[held.Node] {
					_, has := r.heard.endpoints[held.Endpoint]
					spoken, listed = true, listed || has
				}
			}
		}
		_, withdrawn := e.ended[held.Endpoint]
		switch {
		case withdrawn || spoken && !listed:
			gone = append(gone, held.Endpoint)
		case !spoken && held.Node.Zone == e.self.Zone:
			lost = append(lost, held.Endpoint)
		}
	}
	return gone, lost
}

// unheard describes the peers whose endpoints this engine cannot know completely, for people.
func (e *Engine) unheard() []string {
	elsewhere, here := e.otherZones(), []fabric.NodeID{}
	for _, n := range e.nodes() {
		if n.Kind.Has(fabric.KindWorkload) && n.Zone == e.self.Zone {
			here = append(here, n.ID())
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []string
	say := func(who string, r *remote) {
		switch {
		case r == nil:
			list = append(list, who+" is not connected")
		case r.heard.endpoints == nil:
			list = append(list, who+" has not listed its endpoints yet")
		case r.announce != nil && r.said != e.wants.Load():
			list = append(list, who+" does not know yet of which services endpoints are needed here")
		case r.heard.missing > 0:
			list = append(list, fmt.Sprintf("%s has %d endpoints that were missing here; they are on their way, or refused", who, r.heard.missing))
		}
	}
	for _, zone := range slices.Sorted(maps.Keys(elsewhere)) {
		var connected *remote
		for _, id := range elsewhere[zone] {
			if connected == nil {
				connected = e.engines[id]
			}
		}
		say("zone "+zone+": its engine", connected)
	}
	for _, id := range here {
		say("node "+id.String()+": its agent", e.agents[id])
	}
	return list
}
