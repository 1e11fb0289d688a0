// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/coalesce"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/inspect/verify"
	"github.com/sif-project/sif/internal/node/daemon"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/trust/admission"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
	"github.com/sif-project/sif/internal/trust/revocation"
)

var (
	svcWeb, svcAPI, svcStore = refOf("shop/web"), refOf("shop/api"), refOf("shop/store")
	epochs                   = time.Now().Add(-time.Minute).Truncate(time.Millisecond)
)

// zone is a zone of real agents without data paths, which speak by mutual TLS. Web may open flows
// to api, and api to store.
type zone struct {
	t       testing.TB
	ca      *identitytest.CA
	nodes   []fabric.Node
	graph   atomic.Pointer[fabric.Graph]
	removed atomic.Pointer[fabric.Revocations]
	certs   map[fabric.Ref]*tls.Certificate
	engine  atomic.Bool // one of the zone answers all agents
	members map[string]*member
}

// member is an agent of the zone.
type member struct {
	*Agent
	*zone
	id       fabric.NodeID
	identity *identity.Source
	listen   net.Listener
	stop     func()
	broken   atomic.Bool // nobody reaches it
}

func shopGraph(links ...[2]fabric.Ref) *fabric.Graph {
	d := &fabric.Domain{Name: "shop", Services: []fabric.Service{{Name: "web"}, {Name: "api"}, {Name: "store"}}}
	for i, l := range links {
		d.Contracts = append(d.Contracts, fabric.Contract{Name: fmt.Sprint("c", i), Originators: []fabric.Ref{l[0]}, Responders: []fabric.Ref{l[1]},
			Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 80, To: 80}}}}})
	}
	return &fabric.Graph{Domains: map[string]*fabric.Domain{"shop": d}}
}

func newZone(t testing.TB, names ...string) *zone {
	z := &zone{t: t, ca: identitytest.NewCA(t), certs: map[fabric.Ref]*tls.Certificate{}, members: map[string]*member{}}
	z.graph.Store(shopGraph([2]fabric.Ref{svcWeb, svcAPI}, [2]fabric.Ref{svcAPI, svcStore}))
	z.removed.Store(&fabric.Revocations{})
	for _, service := range []fabric.Ref{svcWeb, svcAPI, svcStore} {
		z.certs[service] = z.ca.Issue(service.SPIFFE(), "")
	}
	for i, name := range append([]string{"p1"}, names...) {
		n := fabric.Node{Fabric: "test", Zone: "z", Name: name, Kind: fabric.KindWorkload,
			Pool4: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(i), 0}), 24), Pool6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x5f, 7: byte(i)}), 64)}
		if name == "p1" {
			n.Kind, n.Engine = fabric.KindProcessor, 8441
		}
		z.nodes = append(z.nodes, n)
	}
	for _, name := range names {
		z.join(name)
	}
	return z
}

func (z *zone) node(id fabric.NodeID) (fabric.Node, bool) {
	i := slices.IndexFunc(z.nodes, func(n fabric.Node) bool { return n.ID() == id })
	if i < 0 {
		return fabric.Node{}, false
	}
	return z.nodes[i], true
}

func (z *zone) docs() map[fabric.Ref]fabric.Document {
	return verify.Documents(z.graph.Load(), time.Now())
}

// join makes the agent of a node and lets it listen.
func (z *zone) join(name string) *member {
	dir := z.t.TempDir()
	m := &member{zone: z, id: fabric.NodeID{Zone: "z", Name: name}, identity: z.ca.Node("z", name, fabric.KindWorkload)}
	m.Agent = &Agent{node: &daemon.Node{Log: hclog.NewNullLogger(), Config: &config.Config{TrustDomain: identitytest.TrustDomain}, Identity: m.identity, Removals: &revocation.Watcher{}}, log: hclog.NewNullLogger(), now: time.Now, exits: newExits(), reprogram: coalesce.New(func() error { return nil })}
	var err error
	m.endpoints, err = openEndpoints(filepath.Join(dir, "endpoints.json"))
	must.NoError(z.t, err)
	m.counterparts, err = lease.Open(filepath.Join(dir, "counterparts.json"), nil, m.log)
	must.NoError(z.t, err)
	m.engines = newEngines(m.Agent, m.log)
	m.engines.gone[fabric.NodeID{Zone: "z", Name: "p1"}] = true
	m.engines.silent = func(fabric.NodeID) bool { return !z.engine.Load() }
	nb := &neighbours{
		agent: m.Agent, engines: m.engines, log: m.log, self: m.id, documents: z.docs,
		nodes: func() []fabric.Node { return z.nodes },
		verify: admission.Verifier{Fabric: "test", TrustDomain: identitytest.TrustDomain, Keys: z.ca.Keys, Roots: z.ca.Roots, Node: z.node,
			Removed: func() fabric.Revocations { return *z.removed.Load() }},
		dials: make(chan struct{}, dialAtOnce), wake: make(chan struct{}, 1),
		all: map[fabric.NodeID]*neighbour{}, told: map[string]bool{}, said: map[string]time.Time{},
	}
	nb.dial = func(ctx context.Context, to fabric.Node) (*rpc.Conn, error) {
		other := z.members[to.Name]
		if other.broken.Load() || m.broken.Load() {
			return nil, fmt.Errorf("connect to %s: no route", to.ID())
		}
		return rpc.Dial(ctx, other.listen.Addr().String(), m.identity.ClientTLS(identity.OfNode(to)), m.identity, nb.handle)
	}
	nb.server, err = rpc.NewServer(m.identity.ServerTLS(tls.RequireAndVerifyClientCert), m.identity, nb.welcome, nb.handle)
	must.NoError(z.t, err)
	m.engines.zone = nb
	m.listen, err = net.Listen("tcp", "127.0.0.1:0")
	must.NoError(z.t, err)
	ctx, cancel := context.WithCancel(hclog.WithContext(context.Background(), m.log))
	served := make(chan error, 1)
	go func() { served <- nb.server.Serve(ctx, m.listen) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		must.NoError(z.t, <-served)
	})
	z.t.Cleanup(m.stop)
	z.members[name] = m
	return m
}

// admission returns the n-th admission of a node's addresses, issued some seconds after another.
func (z *zone) admission(node string, service fabric.Ref, endpoint string, n, issued int) fabric.Admission {
	host, _ := z.node(fabric.NodeID{Zone: "z", Name: node})
	b4, b6 := host.Pool4.Addr().As4(), host.Pool6.Addr().As16()
	b4[3], b6[15] = byte(n+2), byte(n+2)
	return fabric.Admission{Fabric: "test", Endpoint: endpoint, Zone: "z", Node: node, Service: service, Roles: z.docs()[service].Roles(),
		IPv4: netip.AddrFrom4(b4), IPv6: netip.AddrFrom16(b6), Issued: epochs.Add(time.Duration(issued) * time.Second), Expires: time.Now().Add(time.Hour)}
}

func (z *zone) request(a fabric.Admission) fabric.Request {
	signed := z.ca.Sign(fabric.KindAdmission, a)
	digest := sha256.Sum256(fabric.RequestSigningInput(signed.Payload))
	cert := z.certs[a.Service]
	sig, err := cert.PrivateKey.(crypto.Signer).Sign(rand.Reader, digest[:], crypto.SHA256)
	must.NoError(z.t, err)
	return fabric.Request{Admission: signed, Certificate: cert.Certificate, Signature: sig}
}

// put gives the node an endpoint of which nobody was told yet.
func (m *member) put(id string, service fabric.Ref, n, issued int) {
	a := m.admission(m.id.Name, service, id, n, issued)
	must.NoError(m.t, m.endpoints.put(endpoint{ID: id, Attachment: at(id), IPv4: a.IPv4, IPv6: a.IPv6, Admission: a, Request: m.request(a)})())
}

// add is put, and tells as ADD does.
func (m *member) add(id string, service fabric.Ref, n, issued int) (pending []string) {
	m.t.Helper()
	m.put(id, service, n, issued)
	ctx, cancel := context.WithTimeout(m.t.Context(), 20*time.Second) // no more than a bound: the machine may be slow
	defer cancel()
	pending, err := m.engines.requestConnectivity(ctx, at(id))
	must.NoError(m.t, err)
	must.Eq(m.t, pending, m.engines.pendingOf(at(id)))
	return pending
}

func (m *member) del(id string) {
	ep, _ := m.endpoints.get(at(id))
	m.endpoints.remove(at(id))
	m.engines.withdraw(m.t.Context(), ep)
}

// has returns the counterparts that the agent holds.
func (m *member) has() string {
	var list []string
	for _, le := range m.counterparts.All(time.Now()) {
		list = append(list, le.Admission.Endpoint)
	}
	return strings.Join(list, " ")
}

func (m *member) round() { m.engines.zone.round(m.t.Context()) }

// as returns a connection to m of which a stranger disposes: a node's certificate, and nothing of
// its agent.
func (m *member) as(id *identity.Source) *rpc.Conn {
	conn, err := rpc.Dial(m.t.Context(), m.listen.Addr().String(), id.ClientTLS(identity.Subject{Node: identity.Node{NodeID: m.id, Kind: fabric.KindWorkload}}), id,
		func(context.Context, rpc.Peer, string, json.RawMessage) (any, error) { return nil, nil })
	must.NoError(m.t, err)
	m.t.Cleanup(func() { conn.Close() })
	return conn
}

// Without an engine, who may speak with one another learn of one another, in either order, at once
// in force within the zone, and nobody else learns anything. It ends everywhere.
func TestZoneWithoutEngines(t *testing.T) {
	z := newZone(t, "a", "b", "c")
	a, b, c := z.members["a"], z.members["b"], z.members["c"]
	beyond := []string{"no engine of zone z answers: nothing knows it outside the zone"}
	must.Eq(t, beyond, a.add("web-1", svcWeb, 0, 0))
	must.Eq(t, "", b.has())
	must.Eq(t, beyond, b.add("api-1", svcAPI, 0, 0))
	must.Eq(t, "api-1", a.has())
	must.Eq(t, "web-1", b.has())
	must.Eq(t, beyond, c.add("store-1", svcStore, 0, 0))
	must.Eq(t, "api-1", a.has()) // the store is nobody's whom it hosts
	must.Eq(t, "store-1 web-1", b.has())
	must.Eq(t, "api-1", c.has())
	a.add("web-2", svcWeb, 1, 1)
	must.Eq(t, "store-1 web-1 web-2", b.has())
	a.del("web-1")
	must.Eq(t, "store-1 web-2", b.has())
	must.Len(t, 1, slices.DeleteFunc(b.ended.addresses(time.Now()), netip.Addr.Is6))
	b.del("api-1")
	must.Eq(t, "", a.has())
	must.Eq(t, "", c.has())
}

// A neighbour that cannot be reached is waited for once. It catches up by a round, in both
// directions, with what began and what ended meanwhile.
func TestNeighbourThatIsAway(t *testing.T) {
	z := newZone(t, "a", "b")
	a, b := z.members["a"], z.members["b"]
	a.add("web-1", svcWeb, 0, 0)
	b.add("api-1", svcAPI, 0, 0)
	must.Eq(t, "web-1", b.has())
	for _, nb := range append(a.engines.zone.present(), b.engines.zone.present()...) {
		nb.mu.Lock()
		nb.conn.Close()
		nb.mu.Unlock()
	}
	b.broken.Store(true)
	a.del("web-1")
	pending := a.add("web-2", svcWeb, 1, 1)
	must.Len(t, 2, pending)
	must.StrHasPrefix(t, "z/b: ", pending[1])
	b.add("api-2", svcAPI, 1, 1)
	must.Eq(t, "web-1", b.has())
	a.round()
	must.Len(t, 2, a.engines.pendingOf(at("web-2")))
	b.broken.Store(false)
	time.Sleep(dialRest)
	a.round() // of one side is enough
	must.Eq(t, "web-2", b.has())
	must.Eq(t, "api-1 api-2", a.has())
	must.Len(t, 1, a.engines.pendingOf(at("web-2")))
}

// A contract that is applied while no engine is there leads to new counterparts, and so does a
// renewal replace what was known.
func TestRoundsFollowTheRevision(t *testing.T) {
	z := newZone(t, "a", "b")
	a, b := z.members["a"], z.members["b"]
	a.add("web-1", svcWeb, 0, 0)
	b.add("store-1", svcStore, 0, 0)
	must.Eq(t, "", a.has()+b.has())
	z.graph.Store(shopGraph([2]fabric.Ref{svcWeb, svcStore}))
	a.put("web-1", svcWeb, 0, 1) // its new roles
	b.put("store-1", svcStore, 0, 1)
	b.round()
	must.Eq(t, "store-1", a.has())
	must.Eq(t, "web-1", b.has())
	renewed := epochs.Add(5 * time.Second)
	a.put("web-1", svcWeb, 0, 5)
	a.round()
	le, _ := b.counterparts.Get("web-1")
	must.True(t, le.Admission.Issued.Equal(renewed))
}

// An agent is believed about its own node's endpoints only, and only as what the fabric signed.
// Each refusal leaves everything as it was.
func TestWhomAnAgentBelieves(t *testing.T) {
	z := newZone(t, "a", "b", "c")
	a := z.members["a"]
	a.put("api-1", svcAPI, 0, 0)
	other := identitytest.NewCA(t)
	good := z.admission("b", svcWeb, "web-1", 0, 0)
	change := func(f func(*fabric.Admission)) fabric.Request {
		adm := good
		f(&adm)
		return z.request(adm)
	}
	forged := z.request(good)
	forged.Admission = other.Sign(fabric.KindAdmission, good)
	foreign := z.request(good)
	foreign.Signature = z.request(z.admission("b", svcWeb, "web-2", 1, 0)).Signature
	stranger := z.request(good)
	stranger.Certificate = other.Issue(svcWeb.SPIFFE(), "").Certificate
	bad := map[string]fabric.Request{
		"not speak for":       z.request(z.admission("c", svcWeb, "web-3", 0, 0)),
		"signature":           forged,
		"request of endpoint": foreign,
		"certificate":         stranger,
		"expired":             change(func(a *fabric.Admission) { a.Expires = time.Now().Add(-time.Second) }),
		"is not in the pool":  change(func(a *fabric.Admission) { a.IPv4 = netip.MustParseAddr("100.64.3.7") }),
		"another fabric":      change(func(a *fabric.Admission) { a.Fabric = "other" }),
		"not a node":          change(func(a *fabric.Admission) { a.Node = "w9" }),
		"":                    {},
	}
	conn := a.as(z.ca.Node("z", "b", fabric.KindWorkload))
	for why, r := range bad {
		var reply rpc.MeetReply
		must.NoError(t, conn.Call(t.Context(), rpc.MethodMeet, rpc.MeetParams{Requests: []fabric.Request{r}}, &reply))
		must.MapLen(t, 1, reply.Refused, must.Sprint(why))
		must.SliceEmpty(t, reply.Counterparts)
		for _, text := range reply.Refused {
			t.Log(why, "->", text)
		}
		must.Eq(t, "", a.has())
	}
	var reply rpc.MeetReply
	must.NoError(t, conn.Call(t.Context(), rpc.MethodMeet, rpc.MeetParams{Requests: []fabric.Request{z.request(good)}}, &reply))
	must.MapEmpty(t, reply.Refused)
	must.Eq(t, "web-1", a.has())
	must.Len(t, 1, reply.Counterparts)
	// Nobody else ends it.
	third := a.as(z.ca.Node("z", "c", fabric.KindWorkload))
	must.NoError(t, third.Call(t.Context(), rpc.MethodWithdraw, rpc.WithdrawParams{Endpoints: []string{"web-1"}}, nil))
	reply = rpc.MeetReply{}
	must.NoError(t, third.Call(t.Context(), rpc.MethodMeet, rpc.MeetParams{Roll: &rpc.Roll{Endpoints: map[string]rpc.Listed{"web-1": {Issued: time.Now().Add(time.Hour), Identity: good.Identity()}}}}, &reply))
	must.SliceEmpty(t, reply.Unlisted)
	must.SliceEmpty(t, reply.Counterparts) // what is only listed is not believed
	must.Eq(t, "web-1", a.has())
	// Other kinds, and nodes of other zones, are no neighbours.
	for _, id := range []*identity.Source{z.ca.Node("z", "p1", fabric.KindProcessor), z.ca.Node("y", "b", fabric.KindWorkload), z.ca.Node("z", "a", fabric.KindWorkload)} {
		err := a.as(id).Call(t.Context(), rpc.MethodMeet, rpc.MeetParams{}, nil)
		must.ErrorContains(t, err, "is not the agent of another node of zone z")
	}
	must.ErrorContains(t, conn.Call(t.Context(), rpc.MethodAnnounce, rpc.AnnounceParams{}, nil), "unknown method")
	must.ErrorContains(t, conn.Call(t.Context(), rpc.MethodMeet, []int{}, nil), "decode")
	must.ErrorContains(t, conn.Call(t.Context(), rpc.MethodMeet, rpc.MeetParams{Requests: make([]fabric.Request, meetAtOnce+1)}, nil), "at most")
	// What was admitted before the node was removed has ended.
	z.removed.Store(&fabric.Revocations{Tombstones: []fabric.Tombstone{{Node: good.Host(), Removed: time.Now()}}})
	reply = rpc.MeetReply{}
	must.NoError(t, conn.Call(t.Context(), rpc.MethodMeet, rpc.MeetParams{Requests: []fabric.Request{z.request(z.admission("b", svcWeb, "web-4", 4, 0))}}, &reply))
	must.StrContains(t, reply.Refused["web-4"], "was removed at")
}

// Of two admissions of one address the one that was issued later wins, in whatever order they
// come, whether or not the later one concerns the receiver, and even if it has ended: a stolen
// node that replays an earlier one is refused.
func TestReplayedAdmission(t *testing.T) {
	z := newZone(t, "a", "b")
	b := z.ca.Node("z", "b", fabric.KindWorkload)
	conns := map[*member]*rpc.Conn{}
	a := z.members["a"]
	a.put("api-1", svcAPI, 0, 0)
	conns[a] = a.as(b)
	requests := map[string]fabric.Request{}
	admissions := map[string]fabric.Admission{}
	for i, service := range []fabric.Ref{svcWeb, svcStore, svcAPI} { // api's endpoints are no counterparts of api's
		for issued := range 4 {
			for n := range 2 {
				key := fmt.Sprintf("%s-%d-%d", service.Name, n, issued*3+i)
				adm := z.admission("b", service, key, 10+n, issued*3+i)
				requests[key], admissions[key] = z.request(adm), adm
			}
		}
	}
	keys := slices.Sorted(maps.Keys(requests))
	rapid.Check(t, func(rt *rapid.T) {
		// A fresh set each time; connection and agent stay.
		path := filepath.Join(t.TempDir(), "counterparts.json")
		set, err := lease.Open(path, nil, a.log)
		must.NoError(rt, err)
		a.counterparts = set
		latest := map[netip.Addr]fabric.Admission{}
		for range rapid.IntRange(1, 12).Draw(rt, "messages") {
			key := rapid.SampledFrom(keys).Draw(rt, "admission")
			adm := admissions[key]
			was, known := latest[adm.IPv4]
			var reply rpc.MeetReply
			must.NoError(rt, conns[a].Call(t.Context(), rpc.MethodMeet, rpc.MeetParams{Requests: []fabric.Request{requests[key]}}, &reply))
			_, refused := reply.Refused[key]
			must.Eq(rt, known && was.Issued.After(adm.Issued), refused)
			if !refused {
				latest[adm.IPv4] = adm
			}
			if rapid.Bool().Draw(rt, "ends") {
				must.NoError(rt, conns[a].Call(t.Context(), rpc.MethodWithdraw, rpc.WithdrawParams{Endpoints: []string{key}}, nil))
			}
			for _, held := range set.All(time.Now()) {
				must.Eq(rt, latest[held.Admission.IPv4].Endpoint, held.Admission.Endpoint)
			}
			stored, err := lease.Open(path, nil, a.log)
			must.NoError(rt, err)
			must.Eq(rt, held(set), held(stored)) // what was answered survives a crash
		}
	})
}

// held returns when the admissions of a set were issued, by endpoint.
func held(set *lease.Set) map[string]time.Time {
	issued := map[string]time.Time{}
	for _, le := range set.All(time.Now()) {
		issued[le.Admission.Endpoint] = le.Admission.Issued
	}
	return issued
}

// An engine that comes back and does not know what an agent said of its own endpoints does not end
// them; once it has announced them, its word counts again.
func TestEngineThatWasAway(t *testing.T) {
	z := newZone(t, "a", "b")
	a, b := z.members["a"], z.members["b"]
	a.add("api-1", svcAPI, 0, 0)
	b.add("web-1", svcWeb, 0, 0)
	must.Eq(t, "web-1", a.has())
	must.NoError(t, a.withdrawn([]string{"web-1"}))
	must.Eq(t, "web-1", a.has())
	ep, _ := b.endpoints.get(at("web-1"))
	reply, err := a.announced(rpc.AnnounceParams{Requests: []fabric.Request{ep.Request}})
	must.NoError(t, err)
	must.MapEmpty(t, reply.Refused)
	must.NoError(t, a.withdrawn([]string{"web-1"}))
	must.Eq(t, "", a.has())
	// The word of an agent counts no longer than some rounds.
	b.add("web-2", svcWeb, 1, 1)
	a.engines.zone.said["web-2"] = time.Now().Add(-10 * roundInterval)
	must.NoError(t, a.withdrawn([]string{"web-2"}))
	must.Eq(t, "", a.has())
}

// What an engine announced is on disk when it is answered, so that a crash does not lose it.
func TestAnnouncedSurvivesACrash(t *testing.T) {
	z := newZone(t, "a", "b")
	a := z.members["a"]
	path := filepath.Join(t.TempDir(), "counterparts.json")
	var err error
	a.counterparts, err = lease.Open(path, nil, a.log)
	must.NoError(t, err)
	for i := range 20 {
		ep := fmt.Sprint("web-", i)
		adm := z.admission("b", svcWeb, ep, i+1, i)
		r := z.request(adm)
		must.True(t, a.counterparts.Accept(lease.Lease{Request: r, Admission: adm})) // verified, and not saved yet
		_, err := a.announced(rpc.AnnounceParams{Requests: []fabric.Request{r}})
		must.NoError(t, err)
		stored, err := lease.Open(path, nil, a.log)
		must.NoError(t, err)
		_, has := stored.Get(ep)
		must.True(t, has, must.Sprint(ep))
	}
}

// While an engine answers, or before it is known that none does, neighbours are not called.
func TestNeighboursAreLeftAlone(t *testing.T) {
	z := newZone(t, "a", "b")
	a := z.members["a"]
	id := fabric.NodeID{Zone: "z", Name: "p1"}
	f := &fakeEngine{holds: map[string]bool{}}
	a.engines.enter(&engine{id: id, conn: f}, f)
	z.engine.Store(true)
	must.False(t, a.engines.zone.out())
	must.SliceEmpty(t, a.add("api-1", svcAPI, 0, 0))
	a.del("api-1")
	for _, nb := range a.engines.zone.present() {
		must.Nil(t, nb.conn)
	}
	// It was stopped: it takes the request when it goes on, and nobody waits for that.
	z.engine.Store(false)
	goesOn := make(chan struct{})
	f.before = func(string, string) { <-goesOn }
	must.True(t, a.engines.zone.out())
	must.NoError(t, a.ready())
	must.Len(t, 1, a.add("api-2", svcAPI, 1, 1))
	z.members["b"].add("web-1", svcWeb, 0, 0)
	must.Eq(t, "web-1", a.has())
	close(goesOn)
	for len(f.has()) == 0 {
		time.Sleep(time.Millisecond)
	}
	// An agent that has just started waits for its engines first.
	delete(a.engines.conns, id)
	delete(a.engines.gone, id)
	must.False(t, a.engines.zone.out())
	_, err := a.engines.requestConnectivity(t.Context(), at("api-2"))
	must.ErrorIs(t, err, errNoEngine)
}

// All begin and end at once, at all nodes of a zone: at the end everybody knows just what there is.
func TestZoneAtOnce(t *testing.T) {
	z := newZone(t, "a", "b", "c", "d")
	var all sync.WaitGroup
	want := map[string][]string{}
	for i, name := range []string{"a", "b", "c", "d"} {
		service := []fabric.Ref{svcWeb, svcAPI}[i%2]
		m := z.members[name]
		for n := range 6 {
			id := fmt.Sprintf("%s-%s-%d", service.Name, name, n)
			if n%2 == 0 {
				want[service.Name] = append(want[service.Name], id)
			}
			all.Go(func() {
				m.put(id, service, n, n)
				_, err := m.engines.requestConnectivity(t.Context(), at(id))
				must.NoError(t, err)
				if n%2 == 1 {
					m.del(id)
				}
			})
		}
		all.Go(m.round)
	}
	all.Wait()
	for i, name := range []string{"a", "b", "c", "d"} {
		z.members[name].round()
		must.Eq(t, strings.Join(want[[]string{"api", "web"}[i%2]], " "), z.members[name].has())
	}
}

// Whatever a neighbour sends, it gets an answer or a refusal, and nothing that is not signed for
// its own node is believed.
func FuzzMeet(f *testing.F) {
	z := newZone(f, "a", "b")
	a := z.members["a"]
	a.put("api-1", svcAPI, 0, 0)
	seed := func(v any) {
		data, err := json.Marshal(v)
		must.NoError(f, err)
		f.Add(data)
	}
	good, foreign := z.admission("b", svcWeb, "web-1", 0, 0), z.admission("a", svcWeb, "web-2", 1, 0)
	seed(rpc.MeetParams{Requests: []fabric.Request{z.request(good)}})
	seed(rpc.MeetParams{Requests: []fabric.Request{z.request(foreign)}})
	seed(rpc.MeetParams{Roll: &rpc.Roll{Endpoints: map[string]rpc.Listed{"web-1": {Issued: good.Issued, Identity: good.Identity()}}, Held: map[string]time.Time{"api-1": {}, "gone": {}}}})
	f.Add([]byte(`{"roll":{"endpoints":{"":{}}},"requests":[{}]}`))
	f.Add([]byte(`null`))
	from := rpc.Peer{NodeID: fabric.NodeID{Zone: "z", Name: "b"}, Kind: fabric.KindWorkload}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, method := range []string{rpc.MethodMeet, rpc.MethodWithdraw} {
			reply, err := a.engines.zone.handle(t.Context(), from, method, data)
			if err == nil {
				_, err = json.Marshal(reply)
				must.NoError(t, err)
			}
		}
		for _, le := range a.counterparts.All(time.Now()) {
			must.Eq(t, from.NodeID, le.Admission.Host())
		}
		must.Len(t, 1, a.endpoints.all())
	})
}
