// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
	"github.com/sif-project/sif/internal/trust/revision"
	"github.com/sif-project/sif/internal/trust/revocation"
	"github.com/sif-project/sif/internal/trust/roster"
)

// listNode is a node as far as it exchanges the list of removals and revocations.
type listNode struct {
	*Node
	identity *identity.Source
	subject  identity.Subject
	address  string
}

// newListNode returns a node that answers others. An old one does not know the list.
func newListNode(t *testing.T, ca *identitytest.CA, name string, old bool) *listNode {
	t.Helper()
	id := ca.Node("z", name, fabric.KindWorkload)
	n := &listNode{identity: id, subject: identity.Subject{Node: identity.Node{NodeID: fabric.NodeID{Zone: "z", Name: name}, Kind: fabric.KindWorkload}}}
	n.Node = &Node{Log: hclog.NewNullLogger(), Identity: id, relay: relay{wake: make(chan struct{}, 1)}, Self: fabric.Node{Zone: "z", Name: name}}
	var err error
	n.Removals, err = revocation.New(nil, t.TempDir(), "f", ca.Keys, hclog.NewNullLogger())
	must.NoError(t, err)
	n.Removals.OnChange(n.handOn)
	onConn := func(_ context.Context, c *rpc.Conn) { n.Relay(c.Peer().NodeID, c) }
	if old {
		onConn = nil
	}
	server, err := rpc.NewServer(id.ServerTLS(tls.RequireAndVerifyClientCert), id, onConn, n.handler(old))
	must.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	n.address = l.Addr().String()
	ctx, cancel := context.WithCancel(hclog.WithContext(context.Background(), hclog.NewNullLogger()))
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		must.NoError(t, <-done)
	})
	return n
}

func (n *listNode) handler(old bool) rpc.Handler {
	return func(_ context.Context, from rpc.Peer, method string, params json.RawMessage) (any, error) {
		if method != rpc.MethodRevocations || old {
			return nil, fmt.Errorf("unknown method %q", method)
		}
		return n.Revocations(from, params)
	}
}

// meets opens a connection to another node.
func (n *listNode) meets(t *testing.T, other *listNode) *rpc.Conn {
	t.Helper()
	ctx := hclog.WithContext(t.Context(), hclog.NewNullLogger())
	conn, err := rpc.Dial(ctx, other.address, n.identity.ClientTLS(other.subject), n.identity, n.handler(false))
	must.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	n.Relay(other.subject.Node.NodeID, conn)
	return conn
}

func (n *listNode) gets(t *testing.T, sequence uint64) {
	t.Helper()
	eventuallyHas(t, func() error {
		if have := n.Removals.List().Sequence; have != sequence {
			return fmt.Errorf("%s has list %d, not %d", n.subject, have, sequence)
		}
		return nil
	})
}

func eventuallyHas(t *testing.T, try func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func lists(services ...string) fabric.Revocations {
	r := fabric.Revocations{Fabric: "f"}
	at := time.Now().UTC().Truncate(time.Second)
	for _, s := range services {
		r = r.With(at, fabric.Revocations{Revoked: []fabric.Revocation{{Service: fabric.Ref{Domain: "shop", Name: s}, Revoked: at}}})
	}
	return r
}

// The list goes from hand to hand: on connections that are open, to who connects later, in either
// direction, past a node that does not know it. What the fabric did not sign goes nowhere.
func TestListIsHandedOn(t *testing.T) {
	ca := identitytest.NewCA(t)
	a, b, c, late, old := newListNode(t, ca, "a", false), newListNode(t, ca, "b", false), newListNode(t, ca, "c", false), newListNode(t, ca, "d", false), newListNode(t, ca, "e", true)
	a.meets(t, b)
	b.meets(t, c)
	a.meets(t, old)
	first := lists("web")
	must.NoError(t, c.Removals.Offer(ca.Sign(fabric.KindRevocations, first)))
	for _, n := range []*listNode{a, b, c} {
		n.gets(t, 1)
	}
	late.meets(t, a) // which has the newer one
	late.gets(t, 1)
	second := first.With(time.Now(), fabric.Revocations{Revoked: []fabric.Revocation{{Endpoint: "00000000-0000-4000-8000-000000000001", Revoked: time.Now().UTC()}}})
	must.NoError(t, late.Removals.Offer(ca.Sign(fabric.KindRevocations, second)))
	for _, n := range []*listNode{a, b, c} {
		n.gets(t, 2)
	}
	fresh := newListNode(t, ca, "g", false)
	must.NoError(t, fresh.Removals.Offer(ca.Sign(fabric.KindRevocations, second.With(time.Now()))))
	fresh.meets(t, a) // which has the older one
	a.gets(t, 3)
	c.gets(t, 3)
	must.Eq(t, 0, old.Removals.List().Sequence)

	forged := identitytest.NewCA(t).Sign(fabric.KindRevocations, second.With(time.Now()).With(time.Now()))
	conn := late.meets(t, b)
	var reply rpc.RevocationsReply
	must.NoError(t, conn.Call(t.Context(), rpc.MethodRevocations, rpc.RevocationsParams{List: &forged}, &reply))
	must.Eq(t, 3, reply.Has.Sequence)
	must.Eq(t, 3, b.Removals.List().Sequence)
}

// listServer is a controller as far as it exchanges the list.
type listServer struct {
	mu   sync.Mutex
	has  fabric.Signed
	id   fabric.ListID
	rang chan struct{}
	got  []fabric.Signed
}

func (s *listServer) set(signed fabric.Signed) {
	var list fabric.Revocations
	_ = json.Unmarshal(signed.Payload, &list)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.has, s.id = signed, fabric.ListID{Sequence: list.Sequence, Digest: fabric.HashOf(signed.Payload)}
	close(s.rang)
	s.rang = make(chan struct{})
}

func (s *listServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPut {
		var signed fabric.Signed
		_ = json.NewDecoder(r.Body).Decode(&signed)
		s.mu.Lock()
		s.got = append(s.got, signed)
		s.mu.Unlock()
		return
	}
	for {
		s.mu.Lock()
		id, has, rang := s.id, s.has, s.rang
		s.mu.Unlock()
		if fmt.Sprint(id.Sequence) != r.FormValue("index") || id.Digest.String() != r.FormValue("digest") {
			reply := api.ListReply{Has: id}
			if id.Sequence > 0 {
				reply.List = &has
			}
			_ = json.NewEncoder(w).Encode(reply)
			return
		}
		select {
		case <-rang:
		case <-r.Context().Done():
			return
		}
	}
}

func (s *listServer) received() []fabric.Signed {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got
}

// A node has the controller's list when the controller has it, and gives the controller what that
// lacks: its own list, and one of a peer that it cannot take itself.
func TestListOfTheController(t *testing.T) {
	ca := identitytest.NewCA(t)
	s := &listServer{rang: make(chan struct{})}
	server := ca.Controller(s)
	defer server.Close()
	n := newListNode(t, ca, "a", false)
	var err error
	n.Controller, err = api.NewClient(api.Config{Address: server.URL, TLS: n.identity.ClientTLS(identity.Subject{Controller: true})})
	must.NoError(t, err)
	defer n.Controller.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.followList(ctx) }()
	defer func() {
		cancel()
		must.NoError(t, <-ended)
	}()
	first := lists("web")
	s.set(ca.Sign(fabric.KindRevocations, first))
	n.gets(t, 1)

	// What came by another way goes to the controller.
	second := ca.Sign(fabric.KindRevocations, first.With(time.Now(), lists("db")))
	must.NoError(t, n.Removals.Offer(second))
	eventuallyHas(t, func() error {
		if got := s.received(); len(got) == 0 || string(got[0].Payload) != string(second.Payload) {
			return errors.New("the controller has not got it")
		}
		return nil
	})
	s.set(second)

	// A list of a peer that lacks something of this one's and has something else.
	fork := ca.Sign(fabric.KindRevocations, first.With(time.Now(), lists("cache")))
	n.takeList(fabric.NodeID{Zone: "z", Name: "b"}, fork)
	eventuallyHas(t, func() error {
		for _, got := range s.received() {
			if string(got.Payload) == string(fork.Payload) {
				return nil
			}
		}
		return errors.New("the controller has not got the other list")
	})
	must.Eq(t, 2, n.Removals.List().Sequence)
}

// What a daemon reports to be in force is what its data path enforces, not what it knows: between
// the two, a disk may be slow.
func TestReportsWhatTheDataPathEnforces(t *testing.T) {
	ca := identitytest.NewCA(t)
	n := newListNode(t, ca, "a", false)
	n.Revision, n.Roster = &revision.Follower{}, &roster.Watcher{}
	reports := func() uint64 { return n.complete(t.Context(), api.NodeStatus{}).Revocations }
	before := n.Enforcing()
	must.NoError(t, n.Removals.Offer(ca.Sign(fabric.KindRevocations, lists("web"))))
	must.Eq(t, 1, n.Removals.List().Sequence)
	must.Zero(t, reports())
	before() // it was computed without the list
	must.Zero(t, reports())
	n.Enforcing()()
	must.Eq(t, 1, reports())
}
