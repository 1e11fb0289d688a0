// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/coalesce"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/outside/names"
	"github.com/sif-project/sif/internal/outside/query"
	"github.com/sif-project/sif/internal/outside/resolve"
	"github.com/sif-project/sif/internal/outside/resolve/resolvetest"
	"github.com/sif-project/sif/internal/trust/roster"
)

// outsideDocuments let shop/web reach names by the zone, and one by its node; and shop/sql another.
func outsideDocuments() map[fabric.Ref]fabric.Document {
	g := &fabric.Graph{Domains: map[string]*fabric.Domain{"shop": {
		Name: "shop", Services: []fabric.Service{{Name: "web"}, {Name: "sql"}},
		Externals: []fabric.External{
			{Name: "payments", Names: []string{"api.example.com", "*.cdn.example.com"}},
			{Name: "updates", Names: []string{"updates.example.com"}, Exit: fabric.ExitNode},
			{Name: "backup", Names: []string{"backup.example.com"}},
		},
	}}}
	d := g.Domains["shop"]
	for contract, of := range map[string][2]string{"pay": {"web", "payments"}, "update": {"web", "updates"}, "save": {"sql", "backup"}} {
		d.Contracts = append(d.Contracts, fabric.Contract{Name: contract, Originators: []fabric.Ref{refOf("shop/" + of[0])}, Responders: []fabric.Ref{refOf("shop/" + of[1])},
			Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 443, To: 443}}}}})
	}
	docs := map[fabric.Ref]fabric.Document{}
	for _, d := range fabric.Documents(g) {
		docs[d.Service] = d
	}
	return docs
}

// exitEngine is an engine that resolves by a real resolver, as it is on the wire.
type exitEngine struct {
	by    *resolve.Resolver
	now   func() time.Time
	asked atomic.Int64
	mu    sync.Mutex
	held  []rpc.NameInUse
	lost  bool  // it holds no name; the next list of names tells
	away  error // of the connection
	code  int   // instead of an answer
}

func (e *exitEngine) Call(ctx context.Context, method string, params, reply any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.away != nil {
		return e.away
	}
	switch p := params.(type) {
	case rpc.HoldParams:
		for _, n := range p.Names {
			if len(n.Addresses) > 0 {
				e.held = append(e.held, n)
			}
			if e.lost {
				reply.(*rpc.HoldReply).Missing = append(reply.(*rpc.HoldReply).Missing, rpc.NameInUse{Service: n.Service, Name: n.Name})
			}
		}
		e.lost = false
	case rpc.ResolveParams:
		e.asked.Add(1)
		q := resolve.Question{Name: p.Name, Type: p.Type}
		a, err := e.by.Resolve(ctx, q, func() error { return nil })
		r := query.Reply{Answer: a}
		if r.Code = e.code; err != nil {
			r = query.Failure(err)
		} else if a.NoName {
			r.Code = miekg.RcodeNameError
		}
		raw, err := r.Pack(q, e.now())
		if err != nil {
			return err
		}
		reply.(*rpc.ResolveReply).Message = raw
	}
	return nil
}

func (e *exitEngine) set(away error, code int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.away, e.code = away, code
}

var exit1, exit2 = fabric.NodeID{Zone: "z1", Name: "p1"}, fabric.NodeID{Zone: "z1", Name: "p2"}

// lookups is an agent with two endpoints, and an engine at its exit.
type lookups struct {
	*Agent
	engine   *exitEngine
	world    *resolvetest.World
	exitNow  atomic.Pointer[fabric.NodeID] // nil: the node
	enacted  atomic.Int64
	ahead    atomic.Int64 // of the clock
	web, sql netip.Addr
	path     string
	client   *resolve.Client
}

func newLookups(t testing.TB, records ...string) *lookups {
	t.Helper()
	a, _, _ := hookedAgent(t)
	l := &lookups{Agent: a, world: resolvetest.NewWorld(t, records...), web: netip.MustParseAddr("100.64.0.2"), sql: netip.MustParseAddr("100.64.0.3"), path: filepath.Join(t.TempDir(), "names.json")}
	s := resolvetest.Start(t, l.world.ServeDNS)
	l.client = resolve.NewClient(netip.AddrPort{}, []netip.AddrPort{s.Addr}, "/nonexistent")
	l.node.Roster = &roster.Watcher{}
	l.now = func() time.Time { return time.Now().Add(time.Duration(l.ahead.Load())) }
	l.engine = &exitEngine{by: resolve.NewResolver(l.client, l.now), now: l.now}
	l.reprogram = coalesce.New(func() error { l.enacted.Add(1); return nil })
	l.exitNow.Store(&exit1)
	l.open(t)
	l.engines.enter(&engine{id: exit1}, l.engine)
	docs := outsideDocuments()
	for addr, service := range map[netip.Addr]fabric.Ref{l.web: refOf("shop/web"), l.sql: refOf("shop/sql")} {
		id := service.Name
		must.NoError(t, l.endpoints.put(endpoint{ID: id, Attachment: at(id), HostIndex: 7, IPv4: addr, IPv6: netip.MustParseAddr("fd5f::" + addr.String()[9:]),
			Admission: fabric.Admission{Endpoint: id, Zone: "z1", Node: "w1", Service: service, IPv4: addr, Roles: docs[service].Roles(), Expires: time.Now().Add(100 * time.Hour)}})())
	}
	return l
}

// open opens the resolver, as a start of the agent does.
func (l *lookups) open(t testing.TB) {
	r, err := l.openResolver(l.path, l.client)
	must.NoError(t, err)
	t.Cleanup(func() { _ = r.names.Stored() })
	r.documents = outsideDocuments
	r.exit = func(endpoint) (fabric.NodeID, bool, error) {
		if at := l.exitNow.Load(); at != nil {
			return *at, false, nil
		}
		return fabric.NodeID{}, true, nil
	}
	l.resolver = r
}

func (l *lookups) pass(d time.Duration) { l.ahead.Add(int64(d)) }

func (l *lookups) ask(t testing.TB, from netip.Addr, qname string, qtype uint16) query.Reply {
	t.Helper()
	return l.resolver.Resolve(t.Context(), from, qname, qtype)
}

func addressesOf(texts ...string) (list []netip.Addr) {
	for _, t := range texts {
		list = append(list, netip.MustParseAddr(t))
	}
	return list
}

// An endpoint resolves the outside names that its contracts name, at its exit, and no others: those
// are counted, and the last of them are told.
func TestOutsideNames(t *testing.T) {
	l := newLookups(t, "api.example.com. 60 IN A 192.0.2.1", "a.cdn.example.com. 60 IN A 192.0.2.2", "updates.example.com. 60 IN A 192.0.2.3", "backup.example.com. 60 IN A 192.0.2.4", "other.example.com. 60 IN A 192.0.2.5")
	for _, tc := range []struct {
		from  netip.Addr
		name  string
		code  int
		want  []netip.Addr
		asked int64 // the engine, in all
	}{
		{l.web, "api.example.com.", miekg.RcodeSuccess, addressesOf("192.0.2.1"), 1},
		{l.web, "API.Example.com.", miekg.RcodeSuccess, addressesOf("192.0.2.1"), 1}, // it is known
		{l.web, "a.CDN.example.com.", miekg.RcodeSuccess, addressesOf("192.0.2.2"), 2},
		{l.web, "updates.example.com.", miekg.RcodeSuccess, addressesOf("192.0.2.3"), 2}, // by the node
		{l.web, "backup.example.com.", miekg.RcodeRefused, nil, 2},
		{l.sql, "backup.example.com.", miekg.RcodeSuccess, addressesOf("192.0.2.4"), 3},
		{l.sql, "api.example.com.", miekg.RcodeRefused, nil, 3},
		{l.web, "cdn.example.com.", miekg.RcodeRefused, nil, 3},
		{l.web, "other.example.com.", miekg.RcodeRefused, nil, 3},
		{l.web, `x\.cdn.example.com.`, miekg.RcodeRefused, nil, 3},
		{l.web, ".", miekg.RcodeRefused, nil, 3},
		{netip.MustParseAddr("100.64.0.99"), "api.example.com.", miekg.RcodeRefused, nil, 3},
		{l.web, "none.cdn.example.com.", miekg.RcodeNameError, nil, 4},
	} {
		r := l.ask(t, tc.from, tc.name, miekg.TypeA)
		must.Eq(t, tc.code, r.Code, must.Sprint(tc.name))
		must.Eq(t, tc.want, r.Addresses(), must.Sprint(tc.name))
		must.Eq(t, tc.asked, l.engine.asked.Load(), must.Sprint(tc.name))
	}
	must.Eq(t, 4, l.enacted.Load())
	must.Eq(t, []fabric.Named{
		{Service: refOf("shop/sql"), Name: "backup.example.com", Addresses: addressesOf("192.0.2.4")},
		{Service: refOf("shop/web"), Name: "a.cdn.example.com", Addresses: addressesOf("192.0.2.2")},
		{Service: refOf("shop/web"), Name: "api.example.com", Addresses: addressesOf("192.0.2.1")},
		{Service: refOf("shop/web"), Name: "updates.example.com", Addresses: addressesOf("192.0.2.3")},
	}, l.resolver.names.Named())
	l.ask(t, l.web, "backup.example.com.", miekg.TypeA)
	refused := l.resolver.refused.all()
	must.SliceLen(t, 6, refused)
	must.Eq(t, "shop/sql api.example.com.", refused[0].Service.String()+" "+refused[0].Name)
	must.Eq(t, "backup.example.com.", refused[1].Name) // the latest
	must.Eq(t, 2, refused[1].Count)
	for range 100 {
		l.ask(t, l.web, time.Now().Format("20060102-150405.000000000")+".", miekg.TypeA)
	}
	must.SliceLen(t, maxRefusedNames+1, l.resolver.refused.all())
}

// An address stays while a connection of the service to it lives, here and at the exit, and ends
// then; and what no contract names any more ends then, too.
func TestNamesInUseStay(t *testing.T) {
	l := newLookups(t, "api.example.com. 60 IN A 192.0.2.1", "api.example.com. 60 IN A 192.0.2.2", "backup.example.com. 60 IN A 192.0.2.1")
	m := l.data.(*memory)
	l.ask(t, l.web, "api.example.com.", miekg.TypeA)
	l.ask(t, l.sql, "backup.example.com.", miekg.TypeA)
	key := names.Key{Service: refOf("shop/web"), Name: "api.example.com"}
	conn := func(local netip.Addr, remote string) bpf.Connection {
		return bpf.Connection{Local: netip.AddrPortFrom(local, 40000), Remote: netip.MustParseAddrPort(remote), Outbound: true}
	}
	inward := conn(l.web, "192.0.2.2:443")
	inward.Outbound = false
	m.connections = []bpf.Connection{conn(l.web, "192.0.2.1:443"), inward, conn(l.web, "203.0.113.9:443")}
	for range 10 { // far longer than the answer holds
		l.pass(59 * time.Second)
		must.NoError(t, l.tendNames(t.Context()))
	}
	must.Eq(t, addressesOf("192.0.2.1"), l.resolver.names.Known(key))
	must.Eq(t, []names.Key{key}, l.resolver.names.Keys()) // sql has no connection
	l.engine.mu.Lock()
	must.Positive(t, len(l.engine.held))
	for _, n := range l.engine.held {
		must.Eq(t, rpc.NameInUse{Service: key.Service, Name: key.Name, Addresses: addressesOf("192.0.2.1")}, n)
	}
	l.engine.mu.Unlock()
	// A restarted agent goes on.
	must.NoError(t, l.resolver.names.Stored())
	l.open(t)
	must.Eq(t, addressesOf("192.0.2.1"), l.resolver.names.Known(key))
	m.connections = nil
	l.pass(30 * time.Second)
	must.NoError(t, l.tendNames(t.Context()))
	must.Eq(t, 1, len(l.resolver.names.Known(key)))
	l.pass(31 * time.Second)
	enacted := l.enacted.Load()
	must.NoError(t, l.tendNames(t.Context()))
	must.SliceEmpty(t, l.resolver.names.Keys())
	must.Greater(t, enacted, l.enacted.Load())

	l.ask(t, l.web, "api.example.com.", miekg.TypeA)
	l.resolver.documents = func() map[fabric.Ref]fabric.Document { return nil }
	must.NoError(t, l.tendNames(t.Context()))
	must.SliceLen(t, 1, l.resolver.names.Keys()) // absence is not a withdrawal
	l.resolver.documents = func() map[fabric.Ref]fabric.Document {
		return map[fabric.Ref]fabric.Document{key.Service: {Service: key.Service}}
	}
	must.NoError(t, l.tendNames(t.Context()))
	must.Eq(t, miekg.RcodeRefused, l.ask(t, l.web, "api.example.com.", miekg.TypeA).Code)
	must.SliceLen(t, 1, l.resolver.names.Keys()) // a contract may name it again
	l.pass(61 * time.Second)
	must.NoError(t, l.tendNames(t.Context()))
	must.SliceEmpty(t, l.resolver.names.Keys())
}

// Without its engine, an agent answers with the names that are in force, and fails others within a
// second or so; and does as before when the engine is back.
func TestExitIsAway(t *testing.T) {
	for what, away := range map[string]func(*lookups){
		"not connected": func(l *lookups) { l.engines.conns = map[fabric.NodeID]*engine{} },
		"lost":          func(l *lookups) { l.engine.set(rpc.ErrClosed, 0) },
		"failing":       func(l *lookups) { l.engine.set(nil, miekg.RcodeServerFailure) },
		"behind":        func(l *lookups) { l.engine.set(nil, miekg.RcodeRefused) }, // it has an older revision
		"no exit": func(l *lookups) {
			l.resolver.exit = func(endpoint) (fabric.NodeID, bool, error) { return fabric.NodeID{}, false, errNoExit }
		},
	} {
		t.Run(what, func(t *testing.T) {
			l := newLookups(t, "api.example.com. 5 IN A 192.0.2.1", "a.cdn.example.com. 60 IN A 192.0.2.2")
			must.Eq(t, addressesOf("192.0.2.1"), l.ask(t, l.web, "api.example.com.", miekg.TypeA).Addresses())
			before := l.resolver.exit
			l.engines.mu.Lock()
			away(l)
			l.engines.mu.Unlock()
			l.pass(10 * time.Second)
			began := time.Now()
			r := l.ask(t, l.web, "api.example.com.", miekg.TypeA)
			must.Eq(t, addressesOf("192.0.2.1"), r.Addresses())
			must.Eq(t, miekg.ExtendedErrorCodeStaleAnswer, r.Extended)
			must.Eq(t, miekg.RcodeServerFailure, l.ask(t, l.web, "a.cdn.example.com.", miekg.TypeA).Code)
			must.Less(t, 5*time.Second, time.Since(began))
			l.engine.set(nil, 0)
			l.resolver.exit = before
			l.engines.enter(&engine{id: exit1}, l.engine)
			l.pass(2 * time.Second)
			must.Eq(t, addressesOf("192.0.2.2"), l.ask(t, l.web, "a.cdn.example.com.", miekg.TypeA).Addresses())
		})
	}
}

// A question that comes before the engine is connected is answered when it is.
func TestQuestionWaitsForTheEngine(t *testing.T) {
	l := newLookups(t, "api.example.com. 60 IN A 192.0.2.1")
	l.engines.mu.Lock()
	l.engines.conns = map[fabric.NodeID]*engine{}
	l.engines.mu.Unlock()
	go func() {
		time.Sleep(100 * time.Millisecond)
		l.engines.enter(&engine{id: exit1}, l.engine)
	}()
	must.Eq(t, addressesOf("192.0.2.1"), l.ask(t, l.web, "api.example.com.", miekg.TypeA).Addresses())
}

// When an endpoint's exit changes, and when an engine may have lost what it knew, the exit resolves
// the names in force before a workload asks again.
func TestExitChanges(t *testing.T) {
	l := newLookups(t, "api.example.com. 300 IN A 192.0.2.1", "api.example.com. 300 IN AAAA 2001:db8::1")
	other := &exitEngine{by: resolve.NewResolver(l.client, l.now), now: l.now}
	l.engines.enter(&engine{id: exit2}, other)
	l.ask(t, l.web, "api.example.com.", miekg.TypeA)
	must.NoError(t, l.tendNames(t.Context()))
	must.One(t, l.engine.asked.Load())
	l.exitNow.Store(&exit2)
	must.NoError(t, l.tendNames(t.Context()))
	must.Eq(t, 2, other.asked.Load()) // of both kinds
	must.NoError(t, l.tendNames(t.Context()))
	must.Eq(t, 2, other.asked.Load())
	must.Eq(t, addressesOf("192.0.2.1"), l.ask(t, l.web, "api.example.com.", miekg.TypeA).Addresses())
	must.Eq(t, 2, other.asked.Load())
	l.engines.enter(&engine{id: exit2}, other) // it has started again
	must.NoError(t, l.tendNames(t.Context()))
	must.Eq(t, 4, other.asked.Load())
	must.One(t, l.engine.asked.Load())
}

// An exit that has ended a name is asked again, whatever the agent remembers of its answer: after
// the name gave way to others here, and when the exit says that it lacks the name. That the service
// had no endpoint on the node for a while ends no name, at neither end.
func TestExitThatEndedAName(t *testing.T) {
	l := newLookups(t, "api.example.com. 3000 IN A 192.0.2.1", "api.example.com. 3000 IN AAAA 2001:db8::1")
	ask := func() {
		t.Helper()
		must.Eq(t, addressesOf("192.0.2.1"), l.ask(t, l.web, "api.example.com.", miekg.TypeA).Addresses())
	}
	ask()
	must.NoError(t, l.tendNames(t.Context()))
	before := l.engine.asked.Load()
	ask()
	must.Eq(t, before, l.engine.asked.Load())

	ep, _ := l.endpoints.get(at("web"))
	l.endpoints.remove(ep.Attachment)
	must.NoError(t, l.tendNames(t.Context()))
	must.NoError(t, l.endpoints.put(ep)())
	ask()
	must.Eq(t, before, l.engine.asked.Load())

	for n := range names.MaxNames {
		l.resolver.names.Put(names.Key{Service: refOf("shop/web"), Name: fmt.Sprintf("n%d.cdn.example.com", n)}, addressesOf("192.0.2.2"), time.Hour)
	}
	must.SliceEmpty(t, l.resolver.names.Known(names.Key{Service: refOf("shop/web"), Name: "api.example.com"}))
	ask()
	must.Eq(t, before+1, l.engine.asked.Load())

	l.engine.mu.Lock()
	l.engine.lost = true
	l.engine.mu.Unlock()
	l.pass(usageInterval)
	must.NoError(t, l.tendNames(t.Context())) // tells, is told, and asks for both kinds
	must.Greater(t, before+1, l.engine.asked.Load())
}

// An engine that was taken over cannot name addresses that no outside name may have.
func TestHostileEngine(t *testing.T) {
	l := newLookups(t)
	l.node.Self.Ranges = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}
	l.world.Set("api.example.com.", 60, "127.0.0.1", "100.64.0.3", "169.254.169.254", "192.0.2.1")
	must.Eq(t, addressesOf("192.0.2.1"), l.ask(t, l.web, "api.example.com.", miekg.TypeA).Addresses())
	must.Eq(t, addressesOf("192.0.2.1"), l.resolver.names.Known(names.Key{Service: refOf("shop/web"), Name: "api.example.com"}))
	l.engine.set(errors.New("gone"), 0)
}

// What a lookup costs an agent besides the resolver, which is asked alone for comparison, and
// besides the time until the maps are written.
func BenchmarkLookup(b *testing.B) {
	const atOnce = 400 // within the allowance of an endpoint
	for _, by := range []string{"Resolver", "Node", "Engine"} {
		b.Run(by, func(b *testing.B) {
			l := newLookups(b)
			if by == "Node" {
				l.exitNow.Store(nil)
			}
			for n := 0; b.Loop(); n++ {
				b.StopTimer()
				if n%atOnce == 0 {
					l.open(b)
				}
				l.world.Set("api.example.com.", 0, netip.AddrFrom4([4]byte{192, 0, 2, byte(n%60 + 1)}).String())
				l.pass(2 * time.Second)
				b.StartTimer()
				if by != "Resolver" {
					r := l.ask(b, l.web, "api.example.com.", miekg.TypeA)
					must.SliceLen(b, 1, r.Records)
					must.Eq(b, "", r.Why)
					continue
				}
				_, err := l.engine.by.Resolve(b.Context(), resolve.Question{Name: "api.example.com", Type: miekg.TypeA}, func() error { return nil })
				must.NoError(b, err)
			}
		})
	}
}
