// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	miekg "github.com/miekg/dns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/outside/names"
	"github.com/sif-project/sif/internal/outside/query"
	"github.com/sif-project/sif/internal/outside/resolve"
	"github.com/sif-project/sif/internal/outside/resolve/resolvetest"
)

// outsideGraph is graph with two services that may reach outside names, over other ports, and one
// whose names leave by its nodes.
func outsideGraph() *fabric.Graph {
	g := graph()
	d := g.Domains["app"]
	d.Externals = []fabric.External{
		{Name: "payments", Names: []string{"api.example.com", "*.cdn.example.com"}},
		{Name: "logs", Names: []string{"logs.example.com"}},
		{Name: "updates", Names: []string{"updates.example.com"}, Exit: fabric.ExitNode},
	}
	to := func(name string) []fabric.Ref { return []fabric.Ref{{Domain: "app", Name: name}} }
	d.Contracts = append(d.Contracts,
		fabric.Contract{Name: "pay", Originators: []fabric.Ref{svc}, Responders: to("payments"), Rules: http},
		fabric.Contract{Name: "log", Originators: []fabric.Ref{web}, Responders: to("logs"), Rules: http},
		fabric.Contract{Name: "update", Originators: []fabric.Ref{svc}, Responders: to("updates"), Rules: http},
	)
	return g
}

// allRoles gives an endpoint every role that outsideGraph has for its service.
func allRoles(a *fabric.Admission) { a.Roles = documents(outsideGraph())[a.Service].Roles() }

// exitIn returns the engine of a zone as an exit that asks a real resolver.
func (w *world) exitIn(zone, path string, resolver netip.AddrPort) (*Engine, *recorder, *fixedDocuments) {
	e, sw, docs := w.engine(zone)
	docs.docs = documents(outsideGraph())
	known := fabric.Outside{Ranges: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}}
	e.known = func() fabric.Outside { return known }
	start := time.Now()
	e.now = func() time.Time { return start.Add(time.Duration(w.ahead.Load())) }
	client := resolve.NewClient(netip.AddrPort{}, []netip.AddrPort{resolver}, "/nonexistent")
	r, err := e.openResolver(path, resolve.NewResolver(client, e.now), func(string, error) {})
	must.NoError(w.t, err)
	w.t.Cleanup(func() { _ = r.names.Stored() })
	e.resolver = r
	return e, sw, docs
}

// ask asks an engine as a node does, on the wire.
func ask(e *Engine, from rpc.Peer, service fabric.Ref, name string, qtype uint16) (resolve.Answer, error) {
	var reply rpc.ResolveReply
	c := wire{self: from, handle: e.Handle}
	if err := c.Call(context.Background(), rpc.MethodResolve, rpc.ResolveParams{Service: service, Name: name, Type: qtype}, &reply); err != nil {
		return resolve.Answer{}, err
	}
	return query.Unpack(reply.Message, resolve.Question{Name: name, Type: qtype}, e.now())
}

func agentNode(zone, name string) rpc.Peer {
	return rpc.Peer{NodeID: fabric.NodeID{Zone: zone, Name: name}, Kind: fabric.KindWorkload}
}

func hold(e *Engine, from rpc.Peer, list ...rpc.NameInUse) error {
	return wire{self: from, handle: e.Handle}.Call(context.Background(), rpc.MethodHold, rpc.HoldParams{Names: list}, nil)
}

func addresses(texts ...string) (list []netip.Addr) {
	for _, t := range texts {
		list = append(list, netip.MustParseAddr(t))
	}
	return list
}

// A stolen node asks for everything that it could want, and gets what a contract of a live endpoint
// of it names, as the resolvers of the exit say.
func TestHostileAgentNamesNoAddress(t *testing.T) {
	w := newWorld(t)
	records := resolvetest.NewWorld(t,
		"api.example.com. 60 IN A 192.0.2.1", "a.cdn.example.com. 60 IN A 192.0.2.2", "logs.example.com. 60 IN A 192.0.2.3", "other.example.com. 60 IN A 192.0.2.4",
		"updates.example.com. 60 IN A 192.0.2.5", "inside.cdn.example.com. 60 IN A 100.64.0.2", "meta.cdn.example.com. 60 IN A 169.254.169.254")
	s := resolvetest.Start(t, records.ServeDNS)
	e, sw, docs := w.exitIn("aws1", filepath.Join(t.TempDir(), "names.json"), s.Addr)
	for n, r := range []fabric.Request{w.request(1, "aws1", "w1", svc, allRoles), w.request(2, "aws1", "w2", web, allRoles)} {
		_, err := w.connect(e, fmt.Sprint("w", n+1), r)
		must.NoError(t, err)
	}
	w1 := agentNode("aws1", "w1")
	for _, tc := range []struct {
		what    string
		from    rpc.Peer
		service fabric.Ref
		name    string
		err     string
	}{
		{"a name that no contract names", w1, svc, "other.example.com", "no contract of app/svc names other.example.com"},
		{"a name of another service of its own", w1, svc, "logs.example.com", "no contract of app/svc"},
		{"the name of another node's service", w1, web, "logs.example.com", "no contract of app/web"},
		{"a service that does not exist", w1, fabric.Ref{Domain: "app", Name: "none"}, "api.example.com", "no contract of app/none"},
		{"what a wildcard stands for, without a label", w1, svc, "cdn.example.com", "no contract of app/svc"},
		{"a name that leaves by the node", w1, svc, "updates.example.com", "no contract of app/svc"},
		{"a label with a dot", w1, svc, `x\.cdn.example.com`, "is not a name that can be asked for"},
		{"upper case", w1, svc, "API.example.com", "is not a name that can be asked for"},
		{"a final dot", w1, svc, "api.example.com.", "is not a name that can be asked for"},
		{"a pattern", w1, svc, "*.cdn.example.com", "is not a name that can be asked for"},
		{"a node of another zone", agentNode("gcp1", "w1"), svc, "api.example.com", "may not ask for outside names in zone aws1"},
		{"an engine", rpc.Peer{NodeID: fabric.NodeID{Zone: "gcp1", Name: "p1"}, Kind: fabric.KindProcessor}, svc, "api.example.com", "may not ask for outside names"},
	} {
		_, err := ask(e, tc.from, tc.service, tc.name, miekg.TypeA)
		must.ErrorContains(t, err, tc.err, must.Sprint(tc.what))
	}
	must.Zero(t, s.UDP.Load())
	must.SliceEmpty(t, e.resolver.names.Keys())

	for name, want := range map[string][]netip.Addr{
		"api.example.com": addresses("192.0.2.1"), "a.cdn.example.com": addresses("192.0.2.2"),
		"inside.cdn.example.com": nil, "meta.cdn.example.com": nil,
	} {
		a, err := ask(e, w1, svc, name, miekg.TypeA)
		must.NoError(t, err)
		must.Eq(t, want, a.Addresses(), must.Sprint(name))
		for _, addr := range want { // in force before the answer
			must.Positive(t, sw.last.Externals[netip.PrefixFrom(addr, 32)], must.Sprint(name))
		}
	}
	must.MapLen(t, 2, sw.last.Externals)
	// What it says to be in use counts only within what the engine has resolved for it.
	want := e.resolver.names.Named()
	must.SliceLen(t, 2, want)
	evil := addresses("203.0.113.66", "100.64.0.2", "169.254.169.254")
	must.NoError(t, hold(e, w1,
		rpc.NameInUse{Service: svc, Name: "api.example.com", Addresses: evil}, rpc.NameInUse{Service: svc, Name: "inside.cdn.example.com", Addresses: evil},
		rpc.NameInUse{Service: web, Name: "logs.example.com", Addresses: evil}, rpc.NameInUse{Service: web, Name: "\x00"}))
	must.ErrorContains(t, hold(e, w1, slices.Repeat([]rpc.NameInUse{{Service: svc, Name: "x"}}, maxHeld+1)...), "more than a node can have")
	must.ErrorContains(t, hold(e, agentNode("gcp1", "w1")), "has no outside names in zone aws1")
	must.Eq(t, want, e.resolver.names.Named())
	// Nor does it keep what another node asked for.
	_, err := ask(e, agentNode("aws1", "w2"), web, "logs.example.com", miekg.TypeA)
	must.NoError(t, err)
	w.ahead.Store(int64(time.Minute + namesMargin - time.Second))
	must.NoError(t, hold(e, w1, rpc.NameInUse{Service: web, Name: "logs.example.com", Addresses: addresses("192.0.2.3")}))
	must.NoError(t, hold(e, w1, rpc.NameInUse{Service: svc, Name: "api.example.com", Addresses: addresses("192.0.2.1")}))
	w.ahead.Store(int64(time.Minute + namesMargin + 5*time.Second))
	must.NoError(t, e.tendNames())
	must.Eq(t, []fabric.Named{{Service: svc, Name: "api.example.com", Addresses: addresses("192.0.2.1")}}, e.resolver.names.Named())

	// What no contract names any more leads nowhere, and so does what belongs to an endpoint that
	// has ended; but for as long as agents answer without a question, it is known.
	ask(e, w1, svc, "a.cdn.example.com", miekg.TypeA)
	ask(e, agentNode("aws1", "w2"), web, "logs.example.com", miekg.TypeA)
	tended := func(want ...string) {
		t.Helper()
		must.NoError(t, e.tendNames())
		must.NoError(t, e.Refresh(t.Context()))
		var prefixes []netip.Prefix
		for _, text := range want {
			prefixes = append(prefixes, netip.MustParsePrefix(text))
		}
		must.Eq(t, prefixes, slices.SortedFunc(maps.Keys(sw.last.Externals), netip.Prefix.Compare))
		must.SliceLen(t, 3, e.resolver.names.Keys())
	}
	tended("192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32")
	put := func(g *fabric.Graph) {
		docs.mu.Lock()
		defer docs.mu.Unlock()
		docs.docs = documents(g)
	}
	g := outsideGraph()
	g.Domains["app"].Externals[0].Names = []string{"*.cdn.example.com"}
	put(g)
	tended("192.0.2.2/32", "192.0.2.3/32")
	must.NoError(t, e.withdraw(agentNode("aws1", "w2"), rpc.WithdrawParams{Endpoints: []string{"web-2"}}))
	tended("192.0.2.2/32")
	put(outsideGraph())
	tended("192.0.2.1/32", "192.0.2.2/32")
	put(g)
	w.ahead.Store(int64(10 * time.Minute))
	must.NoError(t, e.tendNames())
	must.SliceEmpty(t, e.resolver.names.Keys())
	ask(e, w1, svc, "a.cdn.example.com", miekg.TypeA)
	// A document that is missing is no withdrawal.
	docs.mu.Lock()
	docs.docs = maps.Clone(docs.docs)
	delete(docs.docs, svc)
	docs.mu.Unlock()
	must.NoError(t, e.tendNames())
	must.SliceLen(t, 1, e.resolver.names.Keys())
}

// A flood of one node fails there, and does not touch another.
func TestFloodOfOneNode(t *testing.T) {
	w := newWorld(t)
	records := resolvetest.NewWorld(t, "api.example.com. 60 IN A 192.0.2.1")
	e, _, _ := w.exitIn("aws1", filepath.Join(t.TempDir(), "names.json"), resolvetest.Start(t, records.ServeDNS).Addr)
	for n := range 2 {
		_, err := w.connect(e, fmt.Sprint("w", n+1), w.request(n+1, "aws1", fmt.Sprint("w", n+1), svc, allRoles))
		must.NoError(t, err)
	}
	refused := 0
	for n := range 1500 {
		name := fmt.Sprintf("n%d.cdn.example.com", n)
		records.Set(name+".", 60, fmt.Sprintf("198.51.%d.%d", n/256, n%256))
		if _, err := ask(e, agentNode("aws1", "w1"), svc, name, miekg.TypeTXT); err != nil {
			refused++
		}
	}
	must.Positive(t, refused)
	a, err := ask(e, agentNode("aws1", "w2"), svc, "api.example.com", miekg.TypeA)
	must.NoError(t, err)
	must.Eq(t, addresses("192.0.2.1"), a.Addresses())
}

// A restarted engine goes on with the names that were in force, and answers at once.
func TestNamesSurviveRestart(t *testing.T) {
	w := newWorld(t)
	w.leases = filepath.Join(t.TempDir(), "leases.json")
	path := filepath.Join(t.TempDir(), "names.json")
	records := resolvetest.NewWorld(t, "api.example.com. 60 IN A 192.0.2.1", "api.example.com. 60 IN AAAA 2001:db8::1")
	s := resolvetest.Start(t, records.ServeDNS)
	e, _, _ := w.exitIn("aws1", path, s.Addr)
	_, err := w.connect(e, "w1", w.request(1, "aws1", "w1", svc, allRoles))
	must.NoError(t, err)
	for _, qtype := range []uint16{miekg.TypeA, miekg.TypeAAAA} {
		_, err = ask(e, agentNode("aws1", "w1"), svc, "api.example.com", qtype)
		must.NoError(t, err)
	}
	must.NoError(t, e.tendNames())
	want := e.resolver.names.Named()
	must.SliceLen(t, 1, want)

	again, _, _ := w.exitIn("aws1", path, netip.MustParseAddrPort("127.0.0.1:9")) // no resolver answers
	must.Eq(t, want, again.resolver.names.Named())
	must.NoError(t, again.Resume(t.Context()))
	must.NoError(t, again.tendNames())
	must.Eq(t, want, again.resolver.names.Named())
	began := time.Now()
	a, err := ask(again, agentNode("aws1", "w1"), svc, "api.example.com", miekg.TypeA)
	must.NoError(t, err)
	must.Eq(t, addresses("192.0.2.1"), a.Addresses())
	must.Less(t, 3*time.Second, time.Since(began))
}

// Two names on one address, asked for by two services: each name has it, for its own service.
func TestTwoNamesOnOneAddress(t *testing.T) {
	w := newWorld(t)
	records := resolvetest.NewWorld(t, "api.example.com. 60 IN A 192.0.2.1", "logs.example.com. 60 IN A 192.0.2.1")
	e, _, _ := w.exitIn("aws1", filepath.Join(t.TempDir(), "names.json"), resolvetest.Start(t, records.ServeDNS).Addr)
	for n, service := range []fabric.Ref{svc, web} {
		_, err := w.connect(e, "w1", w.request(n+1, "aws1", "w1", service, allRoles))
		must.NoError(t, err)
	}
	for service, name := range map[fabric.Ref]string{svc: "api.example.com", web: "logs.example.com"} {
		a, err := ask(e, agentNode("aws1", "w1"), service, name, miekg.TypeA)
		must.NoError(t, err)
		must.Eq(t, addresses("192.0.2.1"), a.Addresses())
	}
	named := e.resolver.names.Named()
	slices.SortFunc(named, func(a, b fabric.Named) int { return fabric.CompareRefs(a.Service, b.Service) })
	must.Eq(t, []fabric.Named{
		{Service: svc, Name: "api.example.com", Addresses: addresses("192.0.2.1")},
		{Service: web, Name: "logs.example.com", Addresses: addresses("192.0.2.1")},
	}, named)
}

// Whatever a node sends, the engine does not panic and has nothing that it was not told by its
// resolvers.
func FuzzResolve(f *testing.F) {
	leases, err := lease.Open(filepath.Join(f.TempDir(), "leases.json"), nil, hclog.NewNullLogger())
	must.NoError(f, err)
	e := &Engine{
		self: fabric.Node{Zone: "aws1", Name: "p1", Kind: fabric.KindProcessor}, log: hclog.NewNullLogger(), now: time.Now, leases: leases,
		docs: &fixedDocuments{docs: documents(outsideGraph())}, nodes: func() []fabric.Node { return nil },
	}
	for _, p := range []any{rpc.ResolveParams{Service: svc, Name: "api.example.com", Type: 1}, rpc.HoldParams{Names: []rpc.NameInUse{{Service: svc, Name: "x", Addresses: addresses("192.0.2.1")}}}} {
		raw, err := json.Marshal(p)
		must.NoError(f, err)
		f.Add(raw)
	}
	table, err := names.Open(filepath.Join(f.TempDir(), "names.json"), 0, e.now, e.log)
	must.NoError(f, err)
	e.resolver = &resolver{names: table, handler: query.New(query.Options{
		Ask: func(context.Context, query.Question, func() error) (resolve.Answer, error) {
			return resolve.Answer{}, nil
		},
		Table: table, Enact: func() error { return nil }, Known: e.known, Report: func(error) {}, Log: e.log,
	})}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, method := range []string{rpc.MethodResolve, rpc.MethodHold} {
			_, _ = e.Handle(t.Context(), agentNode("aws1", "w1"), method, raw)
		}
		must.SliceEmpty(t, table.Keys())
	})
}

// A service that asks for more names than it may does not keep the others of its node from theirs.
func TestOneServiceTakesNoOthersQuestions(t *testing.T) {
	w := newWorld(t)
	records := resolvetest.NewWorld(t, "logs.example.com. 60 IN A 192.0.2.3")
	s := resolvetest.Start(t, records.ServeDNS)
	e, _, _ := w.exitIn("aws1", filepath.Join(t.TempDir(), "names.json"), s.Addr)
	for n, r := range []fabric.Request{w.request(1, "aws1", "w1", svc, allRoles), w.request(2, "aws1", "w1", web, allRoles)} {
		_, err := w.connect(e, "w1", r)
		must.NoError(t, err, must.Sprint(n))
	}
	limited := false
	for n := 0; n < 10000 && !limited; n++ {
		_, err := ask(e, agentNode("aws1", "w1"), svc, fmt.Sprintf("n%d.cdn.example.com", n), miekg.TypeA)
		limited = err != nil && strings.Contains(err.Error(), "too many questions")
	}
	must.True(t, limited)
	a, err := ask(e, agentNode("aws1", "w1"), web, "logs.example.com", miekg.TypeA)
	must.NoError(t, err)
	must.Eq(t, addresses("192.0.2.3"), a.Addresses())
}
