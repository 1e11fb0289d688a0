// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/node/rpc"
)

// meetAtOnce is the number of requests in one message between agents, far below the limit of a
// frame.
const meetAtOnce = 500

// believes returns an error if a peer is not the agent of another node of the zone.
func (z *neighbours) believes(peer rpc.Peer) error {
	if !peer.Kind.Has(fabric.KindWorkload) || peer.Zone != z.self.Zone || peer.NodeID == z.self {
		return fmt.Errorf("%s node %s is not the agent of another node of zone %s", peer.Kind, peer.NodeID, z.self.Zone)
	}
	return nil
}

// handle answers calls of neighbours.
func (z *neighbours) handle(_ context.Context, from rpc.Peer, method string, params json.RawMessage) (any, error) {
	if err := z.believes(from); err != nil {
		return nil, err
	}
	switch method {
	case rpc.MethodMeet:
		var p rpc.MeetParams
		if err := json.Unmarshal(params, &p); err != nil {
			return nil, fmt.Errorf("decode the parameters of %s: %w", method, err)
		}
		return z.meet(from.NodeID, p)
	case rpc.MethodWithdraw:
		var p rpc.WithdrawParams
		if err := json.Unmarshal(params, &p); err != nil {
			return nil, fmt.Errorf("decode the parameters of %s: %w", method, err)
		}
		return struct{}{}, z.end(from.NodeID, p.Endpoints)
	case rpc.MethodRevocations:
		return z.agent.node.Revocations(from, params)
	}
	return nil, fmt.Errorf("unknown method %q", method)
}

// meet takes what a neighbour says of its endpoints, and answers with the endpoints of this node
// that are counterparts of those.
func (z *neighbours) meet(from fabric.NodeID, p rpc.MeetParams) (reply rpc.MeetReply, err error) {
	if len(p.Requests) > meetAtOnce {
		return reply, fmt.Errorf("%d requests, at most %d are allowed at once", len(p.Requests), meetAtOnce)
	}
	var met []fabric.Admission
	met, reply.Refused = z.take(from, p.Requests)
	var has map[string]time.Time
	if p.Roll != nil {
		has = p.Roll.Held
		met = append(met, z.read(from, *p.Roll, &reply)...)
	}
	reply.Counterparts = z.answer(met, has)
	return reply, nil
}

// take verifies requests of a neighbour as those that an engine announces, and keeps those of
// counterparts. It returns, when these are programmed, the admissions that it believes, and why it
// refuses others.
func (z *neighbours) take(from fabric.NodeID, requests []fabric.Request) (met []fabric.Admission, refused map[string]string) {
	if len(requests) == 0 {
		return nil, nil
	}
	a, now := z.agent, z.agent.now()
	needs := desired.CounterpartOf(z.identities(), z.documents())
	refused = map[string]string{}
	var kept []fabric.Admission
	displaced := false
	for _, r := range requests {
		adm, held := a.counterparts.InForce(r, now)
		var err error
		if !held {
			adm, err = z.verify.Verify(r, now)
		}
		switch {
		case err != nil:
		case adm.Host() != from:
			err = fmt.Errorf("node %s may not speak for endpoint %s of %s", from, adm.Endpoint, adm.Host())
		case !a.counterparts.Hear(adm, now):
			err = fmt.Errorf("endpoint %s: one of its addresses has a newer admission", adm.Endpoint)
		case !needs(adm.Identity()):
			// The owner tells of it again when that changes. What was at its addresses has ended.
			met, displaced = append(met, adm), a.counterparts.Displace(adm) || displaced
			continue
		case !held && !a.counterparts.Accept(lease.Lease{Request: r, Admission: adm, Since: now}):
			if _, held := a.counterparts.InForce(r, now); !held {
				err = fmt.Errorf("endpoint %s: a newer admission is in force", adm.Endpoint)
			}
		}
		if err != nil {
			a.log.Warn("counterpart refused", logkey.Endpoint, adm.Endpoint, logkey.Node, from, logkey.Error, err)
			refused[adm.Endpoint] = err.Error()
			continue
		}
		met, kept = append(met, adm), append(kept, adm)
		z.lives(adm.Endpoint)
	}
	if len(kept) == 0 && !displaced {
		return met, refused
	}
	defer a.counterparts.Save()()
	if err := a.reprogram.Call(); err != nil {
		a.node.Degrade("data path", err)
		for _, adm := range kept {
			if !a.inKernel(adm) {
				refused[adm.Endpoint] = err.Error()
			}
		}
	}
	return met, refused
}

// read compares what a neighbour lists with what this agent has, and returns the listed endpoints
// that it has. What only the neighbour says of them it believes only as far as to ask for more.
func (z *neighbours) read(from fabric.NodeID, roll rpc.Roll, reply *rpc.MeetReply) (met []fabric.Admission) {
	a := z.agent
	needs := desired.CounterpartOf(z.identities(), z.documents())
	needed := map[string]time.Time{}
	for id, listed := range roll.Endpoints {
		if needs(listed.Identity) {
			needed[id] = listed.Issued
		}
	}
	reply.Missing = a.counterparts.Lacking(needed)
	for _, le := range a.counterparts.Where(a.now(), hostedBy(from)) {
		id := le.Admission.Endpoint
		if _, listed := roll.Endpoints[id]; !listed {
			reply.Unlisted = append(reply.Unlisted, id)
			continue
		}
		z.lives(id)
		met = append(met, le.Admission)
	}
	for id := range roll.Held {
		if _, here := a.endpoints.find(func(ep endpoint) bool { return ep.ID == id }); !here {
			reply.Ended = append(reply.Ended, id)
		}
	}
	slices.Sort(reply.Ended)
	return met
}

func hostedBy(node fabric.NodeID) func(fabric.Admission) bool {
	return func(adm fabric.Admission) bool { return adm.Host() == node }
}

// answer returns the requests of endpoints of this node that are counterparts of others, without
// those that the asker has.
func (z *neighbours) answer(of []fabric.Admission, has map[string]time.Time) (list []fabric.Request) {
	if len(of) == 0 {
		return nil
	}
	docs := z.documents()
	known := map[string]bool{}
	for _, ep := range z.own() {
		if issued, had := has[ep.ID]; had && !issued.Before(ep.Admission.Issued) {
			continue
		}
		key := ep.Admission.Identity().Key()
		is, asked := known[key]
		if !asked {
			counterpart := desired.CounterpartOf([]fabric.Identity{ep.Admission.Identity()}, docs)
			is = slices.ContainsFunc(of, func(adm fabric.Admission) bool { return counterpart(adm.Identity()) })
			known[key] = is
		}
		if is {
			list = append(list, ep.Request)
		}
		if len(list) == meetAtOnce {
			break // the next round brings more
		}
	}
	return list
}

// own returns the endpoints of this node that have an admission.
func (z *neighbours) own() []endpoint {
	now := z.agent.now()
	return slices.DeleteFunc(z.agent.endpoints.all(), func(ep endpoint) bool {
		return !ep.admitted() || !z.agent.holds(ep, now) || z.agent.revoked(ep) != nil
	})
}

func (z *neighbours) identities() (list []fabric.Identity) {
	for _, ep := range z.own() {
		list = append(list, ep.Admission.Identity())
	}
	return list
}

// end ends counterparts by the word of the agent of their node.
func (z *neighbours) end(from fabric.NodeID, endpoints []string) error {
	a, of := z.agent, hostedBy(from)
	return a.forget(func(le lease.Lease) bool {
		adm := le.Admission
		if !of(adm) || !slices.Contains(endpoints, adm.Endpoint) {
			return false
		}
		a.ended.note(adm, a.now())
		z.mu.Lock()
		delete(z.said, adm.Endpoint)
		z.mu.Unlock()
		return true
	})
}

// lives notes that the agent of an endpoint's node says that it lives.
func (z *neighbours) lives(endpoint string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.said[endpoint] = time.Now()
}

// vouched reports whether the agent of an endpoint's node said within the last rounds that it
// lives, and no engine has announced it since.
func (z *neighbours) vouched(endpoint string) bool {
	if z == nil {
		return false
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	at, said := z.said[endpoint]
	if said && time.Since(at) > 2*z.interval(len(z.all))+roundInterval {
		delete(z.said, endpoint)
		return false
	}
	return said
}

// announced notes that an engine has endpoints, so that its word counts again.
func (z *neighbours) announced(list []fabric.Admission) {
	if z == nil {
		return
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, adm := range list {
		delete(z.said, adm.Endpoint)
	}
}

// introduce tells a neighbour of endpoints of this node, as they are when it may send, and takes
// its counterparts of them.
func (z *neighbours) introduce(ctx context.Context, nb *neighbour, list []cnicall.Attachment) error {
	var p rpc.MeetParams
	var reply rpc.MeetReply
	ask := func() error {
		nb.order.RLock()
		defer nb.order.RUnlock()
		for _, at := range list {
			if ep, still := z.agent.endpoints.get(at); still && ep.admitted() && z.agent.revoked(ep) == nil {
				p.Requests = append(p.Requests, ep.Request)
			}
		}
		if len(p.Requests) == 0 {
			return nil
		}
		return z.call(ctx, nb, rpc.MethodMeet, p, &reply)
	}
	if err := ask(); err != nil {
		return err
	}
	z.take(nb.id, reply.Counterparts)
	if len(reply.Counterparts) == meetAtOnce {
		z.hurry() // there may be more
	}
	var refusals []error
	for endpoint, why := range reply.Refused {
		refusals = append(refusals, fmt.Errorf("endpoint %s: %s", endpoint, why))
	}
	return errors.Join(refusals...)
}

// compare compares all that this agent and a neighbour have of each other, and mends it. No request
// may overtake the list, because the neighbour would then report the new endpoint as not listed.
func (z *neighbours) compare(ctx context.Context, nb *neighbour) error {
	a := z.agent
	var reply rpc.MeetReply
	ask := func() error {
		nb.order.Lock()
		defer nb.order.Unlock()
		roll := rpc.Roll{Endpoints: map[string]rpc.Listed{}, Held: map[string]time.Time{}}
		for _, ep := range z.own() {
			roll.Endpoints[ep.ID] = rpc.Listed{Issued: ep.Admission.Issued, Identity: ep.Admission.Identity()}
		}
		for _, le := range a.counterparts.Where(a.now(), hostedBy(nb.id)) {
			roll.Held[le.Admission.Endpoint] = le.Admission.Issued
		}
		return z.call(ctx, nb, rpc.MethodMeet, rpc.MeetParams{Roll: &roll}, &reply)
	}
	if err := ask(); err != nil {
		return err
	}
	z.take(nb.id, reply.Counterparts)
	if len(reply.Counterparts) == meetAtOnce {
		z.hurry()
	}
	errs := []error{z.end(nb.id, reply.Ended), z.tellGone(ctx, nb, reply.Unlisted)}
	var lacking []cnicall.Attachment
	for _, ep := range a.endpoints.all() {
		if slices.Contains(reply.Missing, ep.ID) {
			lacking = append(lacking, ep.Attachment)
			z.mu.Lock()
			z.told[ep.ID] = true
			z.mu.Unlock()
		}
	}
	for some := range slices.Chunk(lacking, meetAtOnce) {
		errs = append(errs, z.introduce(ctx, nb, some))
	}
	return errors.Join(errs...)
}

// tellGone withdraws those endpoints that are not on this node.
func (z *neighbours) tellGone(ctx context.Context, nb *neighbour, gone []string) error {
	nb.order.Lock()
	defer nb.order.Unlock()
	for _, ep := range z.agent.endpoints.all() {
		gone = slices.DeleteFunc(gone, func(id string) bool { return id == ep.ID })
	}
	if len(gone) == 0 {
		return nil
	}
	return z.call(ctx, nb, rpc.MethodWithdraw, rpc.WithdrawParams{Endpoints: gone}, nil)
}
