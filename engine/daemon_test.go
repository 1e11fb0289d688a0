// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/trust/admission"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// carrier returns an engine without a switch.
func (w *world) carrier(name string, kind fabric.NodeKind) *Engine {
	e, err := New(Options{
		Known: func() fabric.Outside { return fabric.Outside{} },
		Self:  fabric.Node{Fabric: "test", Zone: "aws1", Name: name, Kind: kind, NoSwitch: true},
		Log:   hclog.NewNullLogger(), Documents: &fixedDocuments{docs: documents(graph())}, Leases: filepath.Join(w.t.TempDir(), "leases.json"),
		Nodes:    func() []fabric.Node { return w.nodes },
		Verifier: admission.Verifier{Fabric: "test", TrustDomain: identitytest.TrustDomain, Keys: w.ca.Keys, Roots: w.ca.Roots, Node: w.node, Removed: func() fabric.Revocations { return fabric.Revocations{} }},
	})
	must.NoError(w.t, err)
	must.NoError(w.t, e.Resume(w.t.Context()))
	return e
}

// Engines without a switch, on a processor and on a node with workloads, announce the same to the
// agents, whatever other zones there are: nothing is pending because of them.
func TestCarriers(t *testing.T) {
	w := newWorld(t)
	engines := []*Engine{w.carrier("p1", fabric.KindProcessor), w.carrier("w1", fabric.KindBoth)}
	var agents [][2]*told
	for _, e := range engines {
		agents = append(agents, [2]*told{w.agentOf(e, "w1"), w.agentOf(e, "w2")})
	}
	both := func(node string, n int, service fabric.Ref) {
		t.Helper()
		r := w.request(n, "aws1", node, service)
		for _, e := range engines {
			reply, err := w.connect(e, node, r)
			must.NoError(t, err)
			must.SliceEmpty(t, reply.Pending)
		}
	}
	both("w1", 1, svc)
	both("w2", 2, web)
	for i, e := range engines {
		must.Eq(t, []string{"web-2"}, agents[i][0].endpoints())
		must.Eq(t, []string{"svc-1"}, agents[i][1].endpoints())
		must.NoError(t, e.Refresh(t.Context()))
		e.Sync(t.Context())
		must.MapEmpty(t, e.otherZones())
		must.Eq(t, []string{"web-2"}, agents[i][0].endpoints())
	}
	// The agents tell one engine only of an end: the other one still has it, until it is told.
	params, err := json.Marshal(rpc.WithdrawParams{Endpoints: []string{"web-2"}})
	must.NoError(t, err)
	from := rpc.Peer{NodeID: fabric.NodeID{Zone: "aws1", Name: "w2"}, Kind: fabric.KindBoth}
	_, err = engines[1].Handle(t.Context(), from, rpc.MethodWithdraw, params)
	must.NoError(t, err)
	must.SliceEmpty(t, agents[1][0].endpoints())
	must.Eq(t, []string{"web-2"}, agents[0][0].endpoints())
}

// A node with workloads is never at a boundary: its certificate lets it speak for itself in its own
// zone, and for nobody in another.
func TestNodeWithBothDaemonsSpeaksForItself(t *testing.T) {
	w := newWorld(t)
	e, sw, _ := w.engine("aws1")
	gcp, _, _ := w.engine("gcp1")
	w.join(e, gcp)
	_, err := w.connect(e, "w1", w.request(3, "aws1", "w1", svc))
	must.NoError(t, err)
	_, err = w.connect(gcp, "w1", w.request(1, "gcp1", "w1", news))
	must.NoError(t, err)
	must.Eq(t, []string{"news-1", "svc-3"}, sw.endpoints())
	stranger := rpc.Peer{NodeID: fabric.NodeID{Zone: "gcp1", Name: "w1"}, Kind: fabric.KindBoth}
	for method, p := range map[string]any{
		rpc.MethodWithdraw: rpc.WithdrawParams{Endpoints: []string{"news-1"}},
		rpc.MethodForward:  rpc.ForwardParams{Request: w.request(2, "gcp1", "w1", news)},
		rpc.MethodConnect:  rpc.ConnectParams{Request: w.request(2, "gcp1", "w1", news)},
	} {
		params, err := json.Marshal(p)
		must.NoError(t, err)
		_, err = e.Handle(t.Context(), stranger, method, params)
		must.Eq(t, method == rpc.MethodWithdraw, err == nil, must.Sprint(method, err))
		must.Eq(t, []string{"news-1", "svc-3"}, sw.endpoints())
	}
	c := wire{self: rpc.Peer{NodeID: e.self.ID(), Kind: fabric.KindProcessor}, peer: stranger, done: make(chan struct{})}
	must.ErrorContains(t, e.Welcome(context.Background(), c), "is neither an agent of zone aws1 nor an engine of another zone")
}

// A zone without a switch lacks nothing until there is a second zone.
func TestShutIn(t *testing.T) {
	carrier := fabric.Node{Zone: "a", Name: "p1", Kind: fabric.KindProcessor, NoSwitch: true}
	both := fabric.Node{Zone: "a", Name: "b1", Kind: fabric.KindBoth, NoSwitch: true}
	boundary := fabric.Node{Zone: "a", Name: "p2", Kind: fabric.KindProcessor}
	far := fabric.Node{Zone: "b", Name: "w1", Kind: fabric.KindWorkload}
	must.SliceEmpty(t, shutIn("a", nil))
	must.SliceEmpty(t, shutIn("a", []fabric.Node{carrier, both}))
	must.SliceEmpty(t, shutIn("a", []fabric.Node{carrier, both, boundary, far}))
	found := shutIn("a", []fabric.Node{carrier, both, far})
	must.Len(t, 1, found)
	must.StrContains(t, found[0], `no engine of zone a has a switch, so nothing passes between it and b: `)
}
