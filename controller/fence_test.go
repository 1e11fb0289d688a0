// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
)

// frozen is a Signer that stands still when it is told to, as a controller does that is stopped in
// the middle of a call.
type frozen struct {
	Signer
	kind    fabric.Kind
	reached chan struct{}
	proceed chan struct{}
}

func (f *frozen) Sign(ctx context.Context, kind fabric.Kind, payload []byte) (fabric.Signed, error) {
	if kind == f.kind {
		f.reached <- struct{}{}
		<-f.proceed
	}
	return f.Signer.Sign(ctx, kind, payload)
}

// TestFence lets a leader lose its lock in the middle of a call, between its last look at Consul
// and its write, without that it knows. The call writes nothing, whatever it is.
func TestFence(t *testing.T) {
	w := newWorld(t)
	for name, tc := range map[string]struct {
		kind fabric.Kind
		call func(c *running) error
	}{
		"apply": {fabric.KindPointer, func(c *running) error {
			_, err := c.policy.apply(t.Context(), api.GraphRequest{Domains: domains(testDomain("late"))}, "", "")
			return err
		}},
		"node": {fabric.KindNode, func(c *running) error {
			_, err := w.node(t, c, "w2").RegisterNode(t.Context(), api.NodeRequest{Underlay: netip.MustParseAddr("192.0.2.7")})
			return err
		}},
		"pool": {fabric.KindPool, func(c *running) error {
			_, err := w.node(t, c, "w2").RegisterNode(t.Context(), api.NodeRequest{Underlay: netip.MustParseAddr("192.0.2.7")})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := w.fresh(t, nil)
			w.node(t, c, "w1").register(t, "192.0.2.1")
			_, err := c.operator.Apply(t.Context(), api.GraphRequest{Domains: domains(testDomain("app"))})
			must.NoError(t, err)
			// The other controller does not campaign yet: it would not know either.
			signer := &frozen{Signer: c.cfg.Signer, kind: tc.kind, reached: make(chan struct{}, 4), proceed: make(chan struct{})}
			c.policy.signer, c.nodes.cfg.Signer = signer, signer
			ended := make(chan error, 1)
			go func() { ended <- tc.call(c) }()
			<-signer.reached
			// Somebody else has the lock, and this controller's fence is open as it was.
			session := c.cfg.fence.session
			takeLock(t, w.consul)
			c.cfg.fence.begin(session, func() {})
			before := keysOf(t, w.consul)
			close(signer.proceed)
			code(t, api.CodeNotLeader, <-ended)
			must.Eq(t, before, keysOf(t, w.consul))
		})
	}
}

// frozenIssuer is an Authority and a JWTSigner that stands still after it has issued something.
type frozenIssuer struct {
	Authority
	jwt     JWTSigner
	reached chan struct{}
	proceed chan struct{}
}

func (f *frozenIssuer) SignWorkload(ctx context.Context, csr []byte, service fabric.Ref) ([][]byte, error) {
	defer f.wait()
	return f.Authority.SignWorkload(ctx, csr, service)
}

func (f *frozenIssuer) Sign(ctx context.Context, claims any, now time.Time) (token, key string, err error) {
	defer f.wait()
	return f.jwt.Sign(ctx, claims, now)
}

func (f *frozenIssuer) wait() {
	f.reached <- struct{}{}
	<-f.proceed
}

// TestNothingIsHandedOutWithoutTheLock lets a leader lose its lock while it issues something. It
// writes nothing then that would be refused, and hands nothing out all the same.
func TestNothingIsHandedOutWithoutTheLock(t *testing.T) {
	w := newWorld(t)
	own := csr(t, "spiffe://"+trustDomain+"/app/svc")
	for name, call := range map[string]func(n *testNode) error{
		"certificate": func(n *testNode) error {
			_, err := n.Certificate(t.Context(), api.CertificateRequest{Service: fabric.Ref{Domain: "app", Name: "svc"}, CSR: own})
			return err
		},
		"SVID": func(n *testNode) error {
			_, err := n.SVID(t.Context(), api.SVIDRequest{Endpoint: allocation(1), CSR: own})
			return err
		},
		"JWT-SVID": func(n *testNode) error {
			_, err := n.JWTSVID(t.Context(), api.JWTSVIDRequest{Endpoint: allocation(1), Audience: []string{"store"}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := w.fresh(t, &fakeScheduler{placed: map[string]Placement{allocation(1): placed("app", "g")}})
			n := w.node(t, c, "w1")
			n.register(t, "10.0.0.1")
			_, err := c.operator.Apply(t.Context(), api.GraphRequest{Domains: domains(testDomain("app"))})
			must.NoError(t, err)
			_, err = n.Admit(t.Context(), request4(1, 10))
			must.NoError(t, err)
			issuer := &frozenIssuer{Authority: c.cfg.Authority, jwt: c.cfg.SVIDs.JWT, reached: make(chan struct{}, 1), proceed: make(chan struct{})}
			c.admitter.cfg.Authority, c.admitter.cfg.SVIDs.JWT = issuer, issuer
			if name == "SVID" {
				issuer.Authority = c.cfg.SVIDs.Authority
				c.admitter.cfg.SVIDs.Authority = issuer
			}
			ended := make(chan error, 1)
			go func() { ended <- call(n) }()
			<-issuer.reached
			session := c.cfg.fence.session
			takeLock(t, w.consul)
			c.cfg.fence.begin(session, func() {})
			close(issuer.proceed)
			code(t, api.CodeNotLeader, <-ended)
		})
	}
}

// takeLock takes the leader's lock from whoever has it, until the test ends: a controller that
// noticed its loss would campaign, and lead again.
func takeLock(t *testing.T, consul *consulapi.Client) {
	t.Helper()
	rival, _, err := consul.Session().Create(&consulapi.SessionEntry{LockDelay: time.Millisecond}, nil)
	must.NoError(t, err)
	t.Cleanup(func() {
		_, err := consul.Session().Destroy(rival, nil)
		must.NoError(t, err)
	})
	eventually(t, func() error {
		kv, _, err := consul.KV().Get(kvkey.Leader, nil)
		switch {
		case err != nil:
			return err
		case kv.Session == rival:
			return nil
		case kv.Session != "":
			if _, err := consul.Session().Destroy(kv.Session, nil); err != nil {
				return err
			}
		}
		took, _, err := consul.KV().Acquire(&consulapi.KVPair{Key: kvkey.Leader, Value: kv.Value, Session: rival}, nil)
		if err == nil && !took {
			err = fmt.Errorf("the lock is not free yet")
		}
		return err
	})
}

// keysOf returns all keys but the leader's and the controllers', with their modify indexes.
func keysOf(t *testing.T, consul *consulapi.Client) map[string]uint64 {
	t.Helper()
	list, _, err := consul.KV().List(kvkey.Root, nil)
	must.NoError(t, err)
	m := map[string]uint64{}
	for _, kv := range list {
		if kv.Key != kvkey.Leader && !strings.HasPrefix(kv.Key, kvkey.Controllers) {
			m[kv.Key] = kv.ModifyIndex
		}
	}
	return m
}

// TestNothingIsWrittenWithoutTheFence looks for writes to Consul's key-value store that do not go
// through the fence.
func TestNothingIsWrittenWithoutTheFence(t *testing.T) {
	write := regexp.MustCompile(`KV\(\)\.(Put|CAS|Delete|DeleteCAS|DeleteTree|Acquire|Release|Txn)\(|\.Txn\(\)\.Txn\(`)
	allowed := map[string]string{
		"fence.go": "the fence itself",
		"peers.go": "each controller's own record, which nobody else writes",

		"removal.go":    "the list of removals and revocations, which every controller may extend",
		"audit_ship.go": "the copy of each controller's own audit log, which nobody else writes",
	}
	files, err := filepath.Glob("*.go")
	must.NoError(t, err)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || allowed[name] != "" {
			continue
		}
		text, err := os.ReadFile(name)
		must.NoError(t, err)
		must.Nil(t, write.Find(text), must.Sprintf("%s writes to Consul without the fence", name))
	}
}

// TestRequestsAreMadeOnce makes an apply again whose answer was lost, at the next leader.
func TestRequestsAreMadeOnce(t *testing.T) {
	w := newWorld(t)
	first := w.fresh(t, nil)
	req := api.GraphRequest{Domains: domains(testDomain("app")), CAS: new(uint64)}
	reply, err := first.policy.apply(t.Context(), req, "", "id-1")
	must.NoError(t, err)
	must.True(t, reply.Changed)
	first.stop()
	second := w.start(t, t.TempDir(), nil, false)
	again, err := second.policy.apply(t.Context(), req, "", "id-1")
	must.NoError(t, err)
	must.True(t, again.Changed)
	must.Eq(t, reply.Pointer.Sequence, again.Pointer.Sequence)
	_, err = second.policy.apply(t.Context(), req, "", "id-2")
	code(t, api.CodeConflict, err)
}

// TestStandby asks a controller that does not lead, and has it lead when the leader stops or ends.
func TestStandby(t *testing.T) {
	w := newWorld(t)
	first := w.fresh(t, nil)
	second := w.start(t, t.TempDir(), nil, true)
	n := w.node(t, first, "w1")
	n.register(t, "192.0.2.1")
	n.report(t, api.NodeStatus{Version: "reported"})
	_, err := first.operator.Apply(t.Context(), api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	eventually(t, func() error {
		s, err := second.operator.Status(t.Context())
		if err != nil {
			return err
		}
		if s.Controller.Leader || s.Controller.Address != second.address || len(s.Controllers) != 1 || !s.Controllers[0].Leader {
			return fmt.Errorf("controllers: %+v, %+v", s.Controller, s.Controllers)
		}
		if len(s.Nodes) != 1 || s.Nodes[0].Version != "reported" || s.Pointer.Sequence != 1 {
			return fmt.Errorf("the state: %+v", s)
		}
		return nil
	})
	// A client that knows only one of them finds the other one, and follows.
	client := w.clientOf(t, api.Config{Address: second.address, Token: w.tokens.Operator})
	follower, err := api.NewClient(api.Config{Address: second.address, Token: w.tokens.Operator, CACert: w.caFile})
	must.NoError(t, err)
	defer follower.Close()
	_, err = client.Apply(t.Context(), api.GraphRequest{Domains: domains(testDomain("b"))})
	code(t, api.CodeNotLeader, err)
	_, err = follower.Apply(t.Context(), api.GraphRequest{Domains: domains(testDomain("b"))})
	must.NoError(t, err)
	began := time.Now()
	first.stop()
	_, err = follower.Apply(t.Context(), api.GraphRequest{Domains: domains(testDomain("c"))})
	must.NoError(t, err)
	t.Logf("an apply at the next leader was made %s after the first one was told to stop", time.Since(began))
	s, err := second.operator.Status(t.Context())
	must.NoError(t, err)
	must.True(t, s.Controller.Leader)
	must.Eq(t, "reported", s.Nodes[0].Version) // what the nodes said was not lost
	eventually(t, func() error {
		s, err := second.operator.Status(t.Context())
		if err == nil && (len(s.Controllers) != 1 || s.Controllers[0].Away == "") {
			err = fmt.Errorf("controllers: %+v", s.Controllers)
		}
		return err
	})
}
