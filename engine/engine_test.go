// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/trust/admission"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// world is a fabric of two zones in memory: real engines and signatures, with recorders where the
// switch and the agents are.
type world struct {
	ahead atomic.Int64 // of the clock of exits
	t     *testing.T
	ca    *identitytest.CA
	nodes []fabric.Node

	leases string // file of the next engines; each has its own if empty
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, ca: identitytest.NewCA(t)}
	for i, id := range [][2]string{{"aws1", "p1"}, {"aws1", "w1"}, {"aws1", "w2"}, {"gcp1", "p1"}, {"gcp1", "w1"}} {
		n := fabric.Node{Fabric: "test", Zone: id[0], Name: id[1], Kind: fabric.KindWorkload,
			Pool4: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(i), 0}), 24), Pool6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x5f, 7: byte(i)}), 64)}
		if id[1] == "p1" {
			n.Kind = fabric.KindProcessor
		}
		w.nodes = append(w.nodes, n)
	}
	return w
}

func (w *world) node(id fabric.NodeID) (fabric.Node, bool) {
	i := slices.IndexFunc(w.nodes, func(n fabric.Node) bool { return n.ID() == id })
	if i < 0 {
		return fabric.Node{}, false
	}
	return w.nodes[i], true
}

type fixedDocuments struct {
	mu   sync.Mutex
	docs map[fabric.Ref]fabric.Document
}

func (d *fixedDocuments) Document(_ context.Context, r fabric.Ref) (fabric.Document, error) {
	return d.Documents()[r], nil
}

func (d *fixedDocuments) Documents() map[fabric.Ref]fabric.Document {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.docs
}

// recorder is a Switch that only remembers, unless it is broken.
type recorder struct {
	mu     sync.Mutex
	last   SwitchState
	broken error
}

func (r *recorder) Program(s SwitchState) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken == nil {
		r.last = s
	}
	return r.broken
}

func (r *recorder) Reconcile() ([]string, error)      { return nil, nil }
func (r *recorder) Drops() (map[string]uint64, error) { return nil, nil }

func (r *recorder) endpoints() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.last.Endpoints))
}

func (w *world) engine(zone string) (*Engine, *recorder, *fixedDocuments) {
	sw, docs := &recorder{}, &fixedDocuments{docs: documents(graph())}
	self, _ := w.node(fabric.NodeID{Zone: zone, Name: "p1"})
	leases := w.leases
	if leases == "" {
		leases = filepath.Join(w.t.TempDir(), "leases.json")
	}
	e, err := New(Options{
		Known: func() fabric.Outside { return fabric.Outside{} },
		Self:  self, Log: hclog.NewNullLogger(), Documents: docs, Switch: sw, Numbers: counter{},
		Leases:   leases,
		Nodes:    func() []fabric.Node { return w.nodes },
		Verifier: admission.Verifier{Fabric: "test", TrustDomain: identitytest.TrustDomain, Keys: w.ca.Keys, Roots: w.ca.Roots, Node: w.node, Removed: func() fabric.Revocations { return fabric.Revocations{} }},
	})
	must.NoError(w.t, err)
	return e, sw, docs
}

// request signs a request for the n-th endpoint of a service.
func (w *world) request(n int, zone, node string, service fabric.Ref, change ...func(*fabric.Admission)) fabric.Request {
	return w.requestBy(w.ca.Issue(service.SPIFFE(), ""), n, zone, node, service, change...)
}

func (w *world) requestBy(cert *tls.Certificate, n int, zone, node string, service fabric.Ref, change ...func(*fabric.Admission)) fabric.Request {
	host, _ := w.node(fabric.NodeID{Zone: zone, Name: node})
	a := instance(n, zone, node, service)
	b4, b6 := host.Pool4.Addr().As4(), host.Pool6.Addr().As16()
	b4[3], b6[15] = byte(n+2), byte(n+2)
	a.IPv4, a.IPv6 = netip.AddrFrom4(b4), netip.AddrFrom16(b6)
	for _, c := range change {
		c(&a)
	}
	signed := w.ca.Sign(fabric.KindAdmission, a)
	digest := sha256.Sum256(fabric.RequestSigningInput(signed.Payload))
	sig, err := cert.PrivateKey.(crypto.Signer).Sign(rand.Reader, digest[:], crypto.SHA256)
	must.NoError(w.t, err)
	return fabric.Request{Admission: signed, Certificate: cert.Certificate, Signature: sig}
}

// wire calls a handler directly, through JSON as on the wire.
type wire struct {
	self, peer rpc.Peer // the caller, and whom it calls
	handle     rpc.Handler
	done       chan struct{}
}

func (c wire) Peer() rpc.Peer        { return c.peer }
func (c wire) Done() <-chan struct{} { return c.done }
func (c wire) Call(ctx context.Context, method string, params, reply any) error {
	data, err := json.Marshal(params)
	if err != nil {
		return err
	}
	result, err := c.handle(ctx, c.self, method, data)
	if err != nil {
		return &rpc.RemoteError{Peer: c.peer, Method: method, Message: err.Error()}
	}
	if reply == nil {
		return nil
	}
	if data, err = json.Marshal(result); err != nil {
		return err
	}
	return json.Unmarshal(data, reply)
}

// agentOf attaches an agent that remembers what it was told.
func (w *world) agentOf(e *Engine, node string) *told {
	a := &told{set: map[string]bool{}}
	c := wire{
		self: rpc.Peer{NodeID: e.self.ID(), Kind: fabric.KindProcessor},
		peer: rpc.Peer{NodeID: fabric.NodeID{Zone: e.self.Zone, Name: node}, Kind: fabric.KindWorkload}, handle: a.handle, done: make(chan struct{}),
	}
	must.NoError(w.t, e.Welcome(context.Background(), c))
	return a
}

type told struct {
	mu     sync.Mutex
	set    map[string]bool
	refuse map[string]string        // endpoint to reason
	synced []string                 // as the engine named them last
	extra  map[string]fabric.NodeID // what it has from before, with the nodes
}

func (a *told) handle(_ context.Context, _ rpc.Peer, method string, params json.RawMessage) (any, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch method {
	case rpc.MethodAnnounce:
		var p rpc.AnnounceParams
		if err := json.Unmarshal(params, &p); err != nil {
			return nil, err
		}
		for _, r := range p.Requests {
			var adm fabric.Admission
			if err := json.Unmarshal(r.Admission.Payload, &adm); err != nil {
				return nil, err
			}
			if a.refuse[adm.Endpoint] == "" {
				a.set[adm.Endpoint] = true
			}
		}
	case rpc.MethodWithdraw:
		var p rpc.WithdrawParams
		if err := json.Unmarshal(params, &p); err != nil {
			return nil, err
		}
		for _, id := range p.Endpoints {
			delete(a.set, id)
			delete(a.extra, id)
		}
	case rpc.MethodSync:
		var p rpc.SyncParams
		if err := json.Unmarshal(params, &p); err != nil {
			return nil, err
		}
		a.synced = slices.Sorted(maps.Keys(p.Endpoints))
		var reply rpc.SyncReply
		for endpoint := range p.Endpoints {
			if !a.set[endpoint] {
				reply.Missing = append(reply.Missing, endpoint)
			}
		}
		for endpoint, node := range a.extra {
			reply.Unlisted = append(reply.Unlisted, rpc.Held{Endpoint: endpoint, Node: node})
		}
		return reply, nil
	}
	return rpc.AnnounceReply{Refused: a.refuse}, nil
}

func (a *told) endpoints() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Sorted(maps.Keys(a.set))
}

// join connects two engines in both directions.
func (w *world) join(a, b *Engine) {
	peer := func(e *Engine) rpc.Peer {
		return rpc.Peer{NodeID: e.self.ID(), Kind: fabric.KindProcessor}
	}
	done := make(chan struct{})
	must.NoError(w.t, a.Welcome(context.Background(), wire{peer(a), peer(b), b.Handle, done}))
	must.NoError(w.t, b.Welcome(context.Background(), wire{peer(b), peer(a), a.Handle, done}))
}

func (w *world) connect(e *Engine, node string, r fabric.Request) (rpc.ConnectReply, error) {
	params, err := json.Marshal(rpc.ConnectParams{Request: r})
	must.NoError(w.t, err)
	reply, err := e.Handle(context.Background(), rpc.Peer{NodeID: fabric.NodeID{Zone: e.self.Zone, Name: node}, Kind: fabric.KindWorkload}, rpc.MethodConnect, params)
	if err != nil {
		return rpc.ConnectReply{}, err
	}
	return reply.(rpc.ConnectReply), nil
}

// When connect returns with nothing pending, both switches and all agents that host counterparts
// have been programmed; nobody else was told.
func TestConnectIsInForceInBothZones(t *testing.T) {
	w := newWorld(t)
	aws, awsSwitch, _ := w.engine("aws1")
	gcp, gcpSwitch, _ := w.engine("gcp1")
	w.join(aws, gcp)
	aws1, aws2, gcp1 := w.agentOf(aws, "w1"), w.agentOf(aws, "w2"), w.agentOf(gcp, "w1")

	reply, err := w.connect(gcp, "w1", w.request(1, "gcp1", "w1", news))
	must.NoError(t, err)
	must.SliceEmpty(t, reply.Pending)
	reply, err = w.connect(aws, "w1", w.request(2, "aws1", "w1", svc))
	must.NoError(t, err)
	must.SliceEmpty(t, reply.Pending)
	must.Eq(t, []string{"news-1"}, aws1.endpoints())
	must.Eq(t, []string{"svc-2"}, gcp1.endpoints())
	must.SliceEmpty(t, aws2.endpoints())

	reply, err = w.connect(aws, "w2", w.request(3, "aws1", "w2", web))
	must.NoError(t, err)
	must.SliceEmpty(t, reply.Pending)
	must.Eq(t, []string{"news-1", "web-3"}, aws1.endpoints())
	must.Eq(t, []string{"svc-2"}, aws2.endpoints())
	must.Eq(t, []string{"svc-2"}, gcp1.endpoints())
	must.Eq(t, []string{"news-1", "svc-2", "web-3"}, awsSwitch.endpoints())
	must.Eq(t, []string{"news-1", "svc-2"}, gcpSwitch.endpoints()) // nothing there leads to web
	must.Eq(t, []string{"news-1", "svc-2"}, held(gcp))

	// The owner withdraws: everybody forgets.
	params, err := json.Marshal(rpc.WithdrawParams{Endpoints: []string{"news-1"}})
	must.NoError(t, err)
	_, err = gcp.Handle(context.Background(), rpc.Peer{NodeID: fabric.NodeID{Zone: "gcp1", Name: "w1"}, Kind: fabric.KindWorkload}, rpc.MethodWithdraw, params)
	must.NoError(t, err)
	must.Eq(t, []string{"web-3"}, aws1.endpoints())
	must.Eq(t, []string{"svc-2", "web-3"}, awsSwitch.endpoints())
	must.SliceEmpty(t, gcpSwitch.endpoints())
}

// Engines that meet late learn what they missed.
func TestEnginesThatMeetLate(t *testing.T) {
	w := newWorld(t)
	aws, _, _ := w.engine("aws1")
	gcp, gcpSwitch, _ := w.engine("gcp1")
	aws1 := w.agentOf(aws, "w1")
	reply, err := w.connect(aws, "w1", w.request(1, "aws1", "w1", svc))
	must.NoError(t, err)
	must.Eq(t, []string{"zone gcp1: its engine cannot be reached"}, reply.Pending)
	_, err = w.connect(gcp, "w1", w.request(2, "gcp1", "w1", news))
	must.NoError(t, err)
	w.join(aws, gcp)
	must.Eq(t, []string{"news-2"}, aws1.endpoints())
	must.Eq(t, []string{"news-2", "svc-1"}, gcpSwitch.endpoints())
}

func TestRequestsThatAreRefused(t *testing.T) {
	w := newWorld(t)
	e, sw, _ := w.engine("aws1")
	good := w.request(1, "aws1", "w1", svc)
	forged := good
	forged.Admission.Payload = slices.Replace(slices.Clone(good.Admission.Payload), 2, 3, 'X')
	stolen := w.request(1, "aws1", "w1", web, func(a *fabric.Admission) { a.Service = svc })
	cases := []struct {
		name, node string
		request    fabric.Request
		problem    string
	}{
		{"another node's endpoint", "w2", good, "may not request connectivity"},
		{"an altered admission", "w1", forged, "signature of the admission does not verify"},
		{"signed by another service", "w1", stolen, "is signed by"},
		{"an address of another node's pool", "w1", w.request(1, "aws1", "w1", svc, func(a *fabric.Admission) { a.IPv4 = netip.MustParseAddr("100.64.2.9") }), "outside the pool"},
		{"expired", "w1", w.request(1, "aws1", "w1", svc, func(a *fabric.Admission) { a.Expires = time.Unix(1001, 0) }), "expired"},
		{"of another fabric", "w1", w.request(1, "aws1", "w1", svc, func(a *fabric.Admission) { a.Fabric = "other" }), `belongs to fabric "other"`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := w.connect(e, c.node, c.request)
			must.ErrorContains(t, err, c.problem)
			must.SliceEmpty(t, sw.endpoints())
		})
	}
}

// An engine speaks for its own zone only, an agent for its own node only.
func TestOwnersOnly(t *testing.T) {
	w := newWorld(t)
	e, sw, _ := w.engine("aws1")
	_, err := w.connect(e, "w1", w.request(1, "aws1", "w1", svc))
	must.NoError(t, err)
	params, err := json.Marshal(rpc.WithdrawParams{Endpoints: []string{"svc-1"}})
	must.NoError(t, err)
	for _, stranger := range []rpc.Peer{
		{NodeID: fabric.NodeID{Zone: "aws1", Name: "w2"}, Kind: fabric.KindWorkload},
		{NodeID: fabric.NodeID{Zone: "gcp1", Name: "p1"}, Kind: fabric.KindProcessor},
	} {
		_, err = e.Handle(context.Background(), stranger, rpc.MethodWithdraw, params)
		must.NoError(t, err)
		must.Eq(t, []string{"svc-1"}, sw.endpoints())
	}
	params, err = json.Marshal(rpc.ForwardParams{Request: w.request(2, "aws1", "w2", web)})
	must.NoError(t, err)
	_, err = e.Handle(context.Background(), rpc.Peer{NodeID: fabric.NodeID{Zone: "gcp1", Name: "p1"}, Kind: fabric.KindProcessor}, rpc.MethodForward, params)
	must.ErrorContains(t, err, "may not forward")
}

// A new revision decides who is told of whom, and the switch's entries.
func TestRevisionChangesCounterparts(t *testing.T) {
	w := newWorld(t)
	e, sw, docs := w.engine("aws1")
	w1, w2 := w.agentOf(e, "w1"), w.agentOf(e, "w2")
	_, err := w.connect(e, "w1", w.request(1, "aws1", "w1", svc))
	must.NoError(t, err)
	_, err = w.connect(e, "w2", w.request(2, "aws1", "w2", web))
	must.NoError(t, err)
	must.Eq(t, []string{"web-2"}, w1.endpoints())
	must.MapLen(t, 1, sw.last.Entries)
	g := graph()
	g.Domains["app"].Contracts[0].Disabled = true
	docs.mu.Lock()
	docs.docs = documents(g)
	docs.mu.Unlock()
	must.NoError(t, e.Refresh(context.Background()))
	must.SliceEmpty(t, w1.endpoints())
	must.SliceEmpty(t, w2.endpoints())
	must.MapEmpty(t, sw.last.Entries)
}

// A restarted engine goes on where it stopped; expired leases and those of nodes that left end, and
// an empty roster ends nothing.
func TestResumeAndExpire(t *testing.T) {
	w := newWorld(t)
	w.leases = filepath.Join(t.TempDir(), "leases.json")
	e, _, _ := w.engine("aws1")
	_, err := w.connect(e, "w1", w.request(1, "aws1", "w1", svc))
	must.NoError(t, err)
	_, err = w.connect(e, "w2", w.request(2, "aws1", "w2", web))
	must.NoError(t, err)
	again, sw, _ := w.engine("aws1")
	nodes := w.nodes
	again.nodes = func() []fabric.Node { return nodes }
	must.NoError(t, again.Resume(context.Background()))
	must.Eq(t, []string{"svc-1", "web-2"}, sw.endpoints())
	nodes = nil
	must.NoError(t, again.Expire())
	must.Eq(t, []string{"svc-1", "web-2"}, sw.endpoints())
	nodes = slices.DeleteFunc(slices.Clone(w.nodes), func(n fabric.Node) bool { return n.Name == "w2" })
	must.NoError(t, again.Expire())
	must.Eq(t, []string{"svc-1"}, sw.endpoints())
	again.now = func() time.Time { return time.Unix(2e10, 0) }
	must.NoError(t, again.Expire())
	must.SliceEmpty(t, sw.endpoints())
}
