// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/outside/names"
	"github.com/sif-project/sif/internal/outside/query"
	"github.com/sif-project/sif/internal/outside/resolve"
)

// namesMargin is how much longer than for an agent an outside name stays in force here, so that the
// agent can say in time that it is in use.
const namesMargin = 45 * time.Second

// maxHeld limits the names in one list of those in use.
const maxHeld = names.MaxAsker

// resolver answers the questions of agents about outside names.
type resolver struct {
	names   *names.Table
	handler *query.Handler
}

// openResolver takes over the names in force that are kept at path.
func (e *Engine) openResolver(path string, by *resolve.Resolver, report func(string, error)) (*resolver, error) {
	table, err := names.Open(path, namesMargin, func() time.Time { return e.now() }, e.log)
	if err != nil {
		return nil, err
	}
	h := query.New(query.Options{
		Ask: func(ctx context.Context, q query.Question, may func() error) (resolve.Answer, error) {
			return by.Resolve(ctx, resolve.Question{Name: q.Name, Type: q.Type}, may)
		},
		Table: table, Enact: e.reprogram.Call, Known: e.known, Log: e.log,
		Report: func(err error) { report("outside names", err) },
	})
	return &resolver{names: table, handler: h}, nil
}

// resolve answers the question of a service that has an endpoint on the asking node, if a contract
// of that endpoint names the name.
func (e *Engine) resolve(ctx context.Context, from rpc.Peer, p rpc.ResolveParams) (rpc.ResolveReply, error) {
	if !from.Kind.Has(fabric.KindWorkload) || from.Zone != e.self.Zone {
		return rpc.ResolveReply{}, fmt.Errorf("%s node %s may not ask for outside names in zone %s", from.Kind, from.NodeID, e.self.Zone)
	}
	name, ok := resolve.ParseName(p.Name)
	if !ok || name != p.Name {
		return rpc.ResolveReply{}, fmt.Errorf("%q is not a name that can be asked for", p.Name)
	}
	if e.resolver == nil {
		return rpc.ResolveReply{}, fmt.Errorf("engine %s is no exit: it has no switch", e.self.ID())
	}
	question := resolve.Question{Name: name, Type: p.Type}
	grants := e.grantsOf(from.NodeID, p.Service)
	externals := naming(grants, name)
	var reply query.Reply
	if len(externals) == 0 {
		reply = query.Refusal(p.Service, name)
	} else {
		reply = e.resolver.handler.Answer(ctx, query.Question{
			Key: names.Key{Asker: from.NodeID.String(), Service: p.Service, Name: name},
			// Each service has its own: one must not take what the others of its node need.
			Type: p.Type, Source: from.NodeID.String() + " " + p.Service.String(), Externals: externals,
			Granted: func(other string) bool { return len(naming(grants, other)) > 0 },
		})
	}
	message, err := reply.Pack(question, e.now())
	return rpc.ResolveReply{Message: message}, err
}

// grantsOf returns the externals that live endpoints of a service on a node may reach by this exit.
func (e *Engine) grantsOf(node fabric.NodeID, service fabric.Ref) []fabric.Peer {
	now := e.now()
	doc := e.docs.Documents()[service].At(now)
	var list []fabric.Peer
	for _, le := range e.leases.Where(now, func(a fabric.Admission) bool { return a.Host() == node && a.Service == service }) {
		for _, g := range fabric.EgressGrants(le.Admission.Identity(), doc) {
			if g.External.Exit == fabric.ExitZone {
				list = append(list, g.External)
			}
		}
	}
	return list
}

// naming returns those of the externals that name a name.
func naming(externals []fabric.Peer, name string) (list []fabric.Peer) {
	for _, x := range externals {
		if x.HasName(name) {
			list = append(list, x)
		}
	}
	return list
}

// hold keeps outside names in force that are in use.
func (e *Engine) hold(from rpc.Peer, p rpc.HoldParams) (reply rpc.HoldReply, err error) {
	if !from.Kind.Has(fabric.KindWorkload) || from.Zone != e.self.Zone {
		return reply, fmt.Errorf("%s node %s has no outside names in zone %s", from.Kind, from.NodeID, e.self.Zone)
	}
	if len(p.Names) > maxHeld {
		return reply, fmt.Errorf("%d outside names in use are more than a node can have", len(p.Names))
	}
	if e.resolver == nil {
		return reply, nil
	}
	for _, n := range p.Names {
		key := names.Key{Asker: from.NodeID.String(), Service: n.Service, Name: n.Name}
		if len(e.resolver.names.Known(key)) == 0 {
			reply.Missing = append(reply.Missing, rpc.NameInUse{Service: n.Service, Name: n.Name})
		}
		e.resolver.names.Hold(key, n.Addresses, names.HoldLife+namesMargin)
	}
	return reply, nil
}

// tendNames removes the outside names that have ended. Those that no contract names any more lead
// nowhere, but stay to their end: until then agents answer with them without a question, when a
// contract names them again or another endpoint of the service comes.
func (e *Engine) tendNames() error {
	if e.resolver == nil {
		return nil
	}
	if e.resolver.names.Expire() {
		return e.resolver.names.Enact(e.reprogram.Call)
	}
	return e.resolver.names.Stored()
}

// describe adds to a status what it says about outside names.
func (r *resolver) describe(s *api.NodeStatus) {
	filtered, limited := r.handler.Counts()
	s.Drops["dns: reserved address"], s.Drops["dns: limited"] = filtered, limited
	s.Degraded = append(s.Degraded, r.names.Full()...)
}
