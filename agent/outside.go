// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	miekg "github.com/miekg/dns"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/outside/names"
	"github.com/sif-project/sif/internal/outside/query"
	"github.com/sif-project/sif/internal/outside/resolve"
	"github.com/sif-project/sif/internal/retry"
)

const (
	// connectWait limits the time for which a question waits for an engine that is not connected.
	connectWait = 900 * time.Millisecond
	// look is the time between two looks whether what a question waits for is there.
	look = 20 * time.Millisecond
	// usageInterval is the time between looks at which outside names are in use.
	usageInterval = 20 * time.Second
	// usageAhead is how long before an address ends the agent looks whether it is in use.
	usageAhead = 3 * time.Second
	// tellAtOnce is the number of concurrent questions that renew what a new exit must know.
	tellAtOnce = 8
)

// resolver answers the questions of the node's endpoints about outside names. It implements
// dns.Outside.
type resolver struct {
	agent   *Agent
	names   *names.Table
	handler *query.Handler
	own     *resolve.Resolver              // where the node is the exit
	answers *resolve.Cache[engineQuestion] // of engines
	refused refusedNames

	documents func() map[fabric.Ref]fabric.Document // of the revision in force
	// exit returns the processor by which an endpoint's flows leave the zone, or that the node is
	// the exit.
	exit func(endpoint) (processor fabric.NodeID, node bool, err error)

	looked time.Time // when usage was looked at; only tend has it

	mu    sync.Mutex
	epoch map[fabric.NodeID]int // of an engine: raised whenever it may have lost names
	told  map[engineName]bool   // names that engines have resolved for this node
}

// engineName is a name that an engine has resolved, as long as it cannot have lost it.
type engineName struct {
	exit  fabric.NodeID
	epoch int
	key   names.Key
}

// engineQuestion is a question to an engine.
type engineQuestion struct {
	engineName
	qtype uint16
}

// openResolver takes over the names in force that are kept at path.
func (a *Agent) openResolver(path string, client *resolve.Client) (*resolver, error) {
	table, err := names.Open(path, 0, a.now, a.log)
	if err != nil {
		return nil, err
	}
	r := &resolver{agent: a, documents: a.node.Revision.Documents, exit: a.exit, names: table, own: resolve.NewResolver(client, a.now), epoch: map[fabric.NodeID]int{}, told: map[engineName]bool{}}
	r.answers = resolve.NewCache(r.askEngine, a.now)
	r.answers.Life = func(ttl time.Duration) time.Duration {
		// Who is told an address later can use it for a while.
		return min(ttl, names.Life(ttl)/2)
	}
	r.handler = query.New(query.Options{
		Ask: r.ask, Table: table, Enact: a.reprogram.Call, Known: a.reservations, Log: a.log.Named("dns"),
		Report: func(err error) { a.node.Degrade("outside names", err) },
	})
	return r, nil
}

// Resolve implements dns.Outside.
func (r *resolver) Resolve(ctx context.Context, asker netip.Addr, qname string, qtype uint16) query.Reply {
	ep, ok := view{r.agent}.asker(asker)
	if !ok {
		return query.Reply{Code: miekg.RcodeRefused}
	}
	service := ep.Admission.Service
	name, valid := resolve.ParseName(qname)
	grants := r.egress(ep.Admission)
	if !valid || len(grants.naming(name)) == 0 {
		r.refused.note(service, qname, r.agent.now())
		return query.Refusal(service, qname)
	}
	q := r.question(ep, grants, name, qtype)
	// An endpoint that has just come has its exit soon.
	for deadline := time.Now().Add(connectWait); q.Unready != nil && len(r.names.Known(q.Key)) == 0 && time.Now().Before(deadline); {
		if !retry.Sleep(ctx, look) {
			break
		}
		q = r.question(ep, grants, name, qtype)
	}
	return r.handler.Answer(ctx, q)
}

// question returns a question of an endpoint about a name that one of grants names.
func (r *resolver) question(ep endpoint, grants externals, name string, qtype uint16) query.Question {
	adm := ep.Admission
	q := query.Question{
		Key: names.Key{Service: adm.Service, Name: name}, Type: qtype, Source: adm.Endpoint,
		Externals: grants.naming(name),
		Granted:   func(other string) bool { return len(grants.naming(other)) > 0 },
	}
	byZone := slices.DeleteFunc(slices.Clone(q.Externals), func(x fabric.Peer) bool { return x.Exit != fabric.ExitZone })
	if len(byZone) == 0 {
		return q
	}
	exit, node, err := r.exit(ep)
	if !node {
		q.Exit, q.Externals, q.Unready = exit, byZone, err
	}
	return q
}

// exit returns the processor by which an endpoint's flows leave the zone, or that the node is the
// exit, because no processor of the zone has a switch.
func (a *Agent) exit(ep endpoint) (processor fabric.NodeID, node bool, err error) {
	if !desired.HasBoundary(a.node.Nodes(), a.node.Self.Zone) {
		return processor, true, nil
	}
	processor, ok := a.exitOf(ep)
	if !ok {
		return processor, false, fmt.Errorf("%w: %w", resolve.ErrUnreachable, errNoExit)
	}
	return processor, false, nil
}

// errNoExit is returned for an endpoint whose packets no processor of the zone would carry.
var errNoExit = errors.New("no processor of the zone is an exit for this endpoint")

// externals are those that an endpoint may reach.
type externals []fabric.Peer

// egress returns the externals that an endpoint may reach.
func (r *resolver) egress(adm fabric.Admission) (list externals) {
	for _, g := range fabric.EgressGrants(adm.Identity(), r.documents()[adm.Service].At(r.agent.now())) {
		list = append(list, g.External)
	}
	return list
}

// naming returns those of the externals that name a name.
func (x externals) naming(name string) (list []fabric.Peer) {
	for _, p := range x {
		if p.HasName(name) {
			list = append(list, p)
		}
	}
	return list
}

// ask resolves a name at its exit.
func (r *resolver) ask(ctx context.Context, q query.Question, may func() error) (resolve.Answer, error) {
	if q.Exit.IsZero() {
		return r.own.Resolve(ctx, resolve.Question{Name: q.Name, Type: q.Type}, may)
	}
	r.mu.Lock()
	n := engineName{q.Exit, r.epoch[q.Exit], q.Key}
	r.mu.Unlock()
	if len(r.names.Known(q.Key)) == 0 {
		// The exit may have ended the name as well, for example because it gave way to others. What
		// it said before does not count.
		r.answers.Forget(engineQuestion{n, q.Type})
	}
	answer, err := r.answers.Ask(ctx, engineQuestion{n, q.Type}, may)
	if err == nil {
		r.mu.Lock()
		if r.epoch[n.exit] == n.epoch {
			r.told[n] = true
		}
		r.mu.Unlock()
	}
	return answer, err
}

// askEngine asks an engine, which answers when it has the addresses in force.
func (r *resolver) askEngine(ctx context.Context, q engineQuestion) (resolve.Answer, error) {
	conn, err := r.connected(ctx, q.exit)
	if err != nil {
		return resolve.Answer{}, err
	}
	var reply rpc.ResolveReply
	err = conn.Call(ctx, rpc.MethodResolve, rpc.ResolveParams{Service: q.key.Service, Name: q.key.Name, Type: q.qtype}, &reply)
	var refused *rpc.RemoteError
	switch {
	case errors.As(err, &refused):
		return resolve.Answer{}, err
	case err != nil:
		return resolve.Answer{}, fmt.Errorf("%w: %w", resolve.ErrUnreachable, err)
	}
	return query.Unpack(reply.Message, resolve.Question{Name: q.key.Name, Type: q.qtype}, r.agent.now())
}

// connected returns the connection to an engine, for which it waits a moment: after a start, it is
// there soon.
func (r *resolver) connected(ctx context.Context, id fabric.NodeID) (caller, error) {
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	for {
		if conn := r.agent.engines.latest(id); conn != nil {
			return conn, nil
		}
		if !retry.Sleep(ctx, look) {
			return nil, fmt.Errorf("%w: the engine %s, which is the exit, is not connected", resolve.ErrUnreachable, id)
		}
	}
}

// reconnected tells that an engine may have lost names.
func (r *resolver) reconnected(id fabric.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch[id]++
	for n := range r.told {
		if n.exit == id {
			delete(r.told, n)
		}
	}
}

// tendNames keeps names in force that are in use, and removes those that have ended. Those that no
// contract names any more lead nowhere, but stay to their end: workloads remember answers as long.
func (a *Agent) tendNames(ctx context.Context) error {
	r := a.resolver
	live, services := a.live(), map[fabric.Ref]bool{}
	for _, ep := range live {
		services[ep.Admission.Service] = true
	}
	keys := r.names.Keys()
	if due := a.now().Sub(r.looked) >= usageInterval; len(keys) > 0 && (due || r.names.Ending(usageAhead)) {
		r.looked = a.now()
		if err := r.holdUsed(ctx, keys); err != nil {
			return err // without knowing what is in use, nothing ends
		}
	}
	r.refused.retain(func(service fabric.Ref) bool { return services[service] })
	var err error
	if r.names.Expire() {
		err = r.names.Enact(a.reprogram.Call)
	}
	r.tellExits(ctx, live, keys)
	return errors.Join(err, r.names.Stored())
}

// holdUsed keeps the names in force to whose addresses connections live, here and at the exits.
func (r *resolver) holdUsed(ctx context.Context, keys []names.Key) error {
	connections, err := r.agent.data.Connections()
	if err != nil {
		return fmt.Errorf("look which outside names are in use: %w", err)
	}
	used := usedBy(r.agent.endpoints.all(), connections)
	var params rpc.HoldParams
	for _, k := range keys {
		inUse := slices.DeleteFunc(r.names.Known(k), func(addr netip.Addr) bool { return !used[usage{k.Service, addr}] })
		if len(inUse) > 0 {
			r.names.Hold(k, inUse, names.HoldLife)
		}
		params.Names = append(params.Names, rpc.NameInUse{Service: k.Service, Name: k.Name, Addresses: inUse})
	}
	if len(params.Names) > 0 {
		r.agent.engines.hold(ctx, params, r.lacks)
	}
	return nil
}

// lacks tells that an engine does not hold a name, so that it is asked again.
func (r *resolver) lacks(id fabric.NodeID, missing []rpc.NameInUse) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range missing {
		n := engineName{id, r.epoch[id], names.Key{Service: m.Service, Name: m.Name}}
		delete(r.told, n)
		for _, qtype := range []uint16{miekg.TypeA, miekg.TypeAAAA} {
			r.answers.Forget(engineQuestion{n, qtype})
		}
	}
}

// usage is an address to which connections of a service live.
type usage struct {
	service fabric.Ref
	address netip.Addr
}

// usedBy returns what connections of endpoints use.
func usedBy(endpoints []endpoint, connections []bpf.Connection) map[usage]bool {
	services := map[netip.Addr]fabric.Ref{}
	for _, ep := range endpoints {
		services[ep.IPv4], services[ep.IPv6] = ep.Admission.Service, ep.Admission.Service
	}
	used := map[usage]bool{}
	for _, c := range connections {
		if service, ok := services[c.Local.Addr().Unmap()]; ok && c.Outbound && !c.Host {
			used[usage{service, c.Remote.Addr().Unmap()}] = true
		}
	}
	return used
}

// tellExits has exits resolve the names in force that they have not resolved for this node: all
// that could be an exit of the endpoints, so that one that takes another's place knows the names
// already, and those that a restarted engine may have lost.
func (r *resolver) tellExits(ctx context.Context, live []endpoint, keys []names.Key) {
	var group errgroup.Group
	group.SetLimit(tellAtOnce)
	seen := map[engineName]bool{}
	for _, ep := range live {
		grants := r.egress(ep.Admission)
		for _, k := range keys {
			if k.Service != ep.Admission.Service || len(grants.naming(k.Name)) == 0 {
				continue
			}
			q := r.question(ep, grants, k.Name, miekg.TypeA)
			if q.Unready != nil || q.Exit.IsZero() {
				continue
			}
			for _, exit := range append(r.agent.exits.of(ep.ID), q.Exit) { // once each: see seen
				if r.agent.engines.latest(exit) == nil || exit != q.Exit && r.agent.silent(exit) {
					continue
				}
				r.mu.Lock()
				n := engineName{exit, r.epoch[exit], k}
				known := r.told[n]
				r.mu.Unlock()
				if known || seen[n] {
					continue
				}
				seen[n] = true
				for _, qtype := range []uint16{miekg.TypeA, miekg.TypeAAAA} {
					q := q
					q.Exit, q.Type = exit, qtype
					group.Go(func() error {
						ctx, cancel := context.WithTimeout(ctx, resolve.Timeout)
						defer cancel()
						// For the exit only: here, what a workload asks for comes in force.
						if _, err := r.ask(ctx, q, func() error { return nil }); err != nil {
							r.agent.log.Debug("cannot tell an exit of an outside name", logkey.Node, q.Exit, logkey.Name, q.Name, logkey.Error, err)
						}
						return nil
					})
				}
			}
		}
	}
	_ = group.Wait() // none fails
	// Names that have gone need not be remembered.
	there := map[names.Key]bool{}
	for _, k := range keys {
		there[k] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := range r.told {
		if !there[n.key] && !seen[n] {
			delete(r.told, n)
		}
	}
}

// hold tells all engines which names are in use.
func (e *engines) hold(ctx context.Context, params rpc.HoldParams, lacks func(fabric.NodeID, []rpc.NameInUse)) {
	for _, en := range e.all() {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		if conn := e.latest(en.id); conn != nil {
			var reply rpc.HoldReply
			err := conn.Call(ctx, rpc.MethodHold, params, &reply)
			lacks(en.id, reply.Missing)
			if err != nil {
				e.log.Debug("cannot tell which outside names are in use", logkey.Node, en.id, logkey.Error, err)
			}
		}
		cancel()
	}
}

// latest returns the connection to an engine, or nil. Unlike engine.conn it needs no lock that a
// call in progress can hold: questions about names have no order.
func (e *engines) latest(id fabric.NodeID) caller {
	e.mu.Lock()
	defer e.mu.Unlock()
	en := e.conns[id]
	if en == nil {
		return nil
	}
	return en.latest
}

// reservations returns which addresses are the fabric's, and which are reserved.
func (a *Agent) reservations() fabric.Outside {
	return fabric.Outside{Ranges: a.node.Inside(), Reserved: a.node.Reserved()}
}
