// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/setup"
)

func TestNomadNodes(t *testing.T) {
	w := newWorld(t)
	t.Run("claim", func(t *testing.T) { testClaim(t, w) })
	t.Run("names", func(t *testing.T) { testNames(t, w) })
	t.Run("again", func(t *testing.T) { testBoundAgain(t, w) })
	t.Run("signed", func(t *testing.T) { testBindingsAreSigned(t, w) })
}

// claim registers a node that says which Nomad node it is.
func (n *testNode) claim(t *testing.T, underlay, nomad string) {
	t.Helper()
	_, err := n.RegisterNode(t.Context(), api.NodeRequest{Underlay: netip.MustParseAddr(underlay), NomadNode: nomad})
	must.NoError(t, err)
}

// A node is the Nomad node that it names if Nomad knows that one with the node's address, and no
// other node is it. Otherwise it still registers, and the status says why it is not bound.
func testClaim(t *testing.T, w *world) {
	scheduler := &fakeScheduler{machines: []Machine{machine("nomad-1", "192.0.2.1", "10.0.0.1"), machine("nomad-2", "10.0.0.2")}}
	c := w.fresh(t, scheduler)
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	w1.claim(t, "10.0.0.1", "nomad-1")
	must.Eq(t, "nomad-1", c.bound.of(w1.id).ID)
	must.SliceEmpty(t, c.bound.degraded())

	for _, x := range []struct{ underlay, nomad, why string }{
		{"10.0.0.3", "nomad-9", "node aws1/w2 says that it is Nomad node nomad-9: it is unknown to Nomad's servers"},
		{"10.0.0.3", "nomad-2", "its addresses are [10.0.0.2], but the address of node aws1/w2 is 10.0.0.3"},
		{"10.0.0.1", "nomad-1", "is node aws1/w1 of the fabric already"},
	} {
		w2.claim(t, x.underlay, x.nomad)
		must.Eq(t, "", c.bound.of(w2.id).ID)
		must.Len(t, 1, c.bound.degraded())
		must.StrContains(t, c.bound.degraded()[0], x.why)
	}
	w2.claim(t, "10.0.0.2", "nomad-2")
	must.Eq(t, "nomad-2", c.bound.of(w2.id).ID)
	must.SliceEmpty(t, c.bound.degraded())

	// Once it is bound, what it says does not count. What is wrong with it is reported while the
	// Nomad node that it names is there.
	w2.claim(t, "10.0.0.2", "nomad-1")
	must.Eq(t, "nomad-2", c.bound.of(w2.id).ID)
	must.StrContains(t, c.bound.degraded()[0], "run `sif node bind aws1/w2`")
	w2.claim(t, "10.0.0.2", "nomad-9")
	must.SliceEmpty(t, c.bound.degraded())

	list, err := c.operator.Nodes(t.Context())
	must.NoError(t, err)
	must.Eq(t, "nomad-1", list.Nodes[0].NomadNode)
	must.Eq(t, "nomad-2", list.Nodes[1].NomadNode)
}

// No name of Nomad counts: all clients have one name here, and are in one datacenter.
func testNames(t *testing.T, w *world) {
	scheduler := &fakeScheduler{placed: map[string]Placement{allocation(1): placed("app", "g"), allocation(2): placed("app", "g"), allocation(3): placed("app", "g")}}
	on := func(n int, m Machine) {
		p := scheduler.placed[allocation(n)]
		p.Machine = m
		scheduler.placed[allocation(n)] = p
	}
	second, elsewhere := machine("nomad-2", "10.0.0.2"), machine("nomad-3", "10.0.0.3")
	second.Name, elsewhere.Name = "aws1-w1", "w1"
	on(2, second)
	on(3, elsewhere)
	c, ctx := w.fresh(t, scheduler), t.Context()
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	w1.register(t, "10.0.0.1")
	w2.register(t, "10.0.0.2")
	of := func(node string, n int) api.AdmissionRequest {
		req := request4(n, 10)
		if node == "w2" {
			req.IPv4, req.IPv6 = netip.MustParseAddr("100.64.1.10"), netip.MustParseAddr("fd5f:7369:6600:1::a")
		}
		return req
	}
	_, err = w1.Admit(ctx, of("w1", 3))
	must.StrContains(t, code(t, api.CodeNotPlaced, err).Message,
		`Nomad placed it on Nomad node nomad-3 ("w1" in datacenter "dc1"): its addresses are [10.0.0.3], but the address of node aws1/w1 is 10.0.0.1; if it is the same machine, run `+"`sif node bind -nomad-node=nomad-3 aws1/w1`")
	_, err = w1.Admit(ctx, of("w1", 1))
	must.NoError(t, err)
	_, err = w2.Admit(ctx, of("w2", 2))
	must.NoError(t, err)
	must.Eq(t, "nomad-1", c.bound.of(w1.id).ID)
	must.Eq(t, "nomad-2", c.bound.of(w2.id).ID)
}

// A Nomad client that was set up again has another ID. The refusal names the command that binds it.
func testBoundAgain(t *testing.T, w *world) {
	before, again := machine("nomad-1", "10.0.0.1"), machine("nomad-1b", "10.0.0.1")
	scheduler := &fakeScheduler{machines: []Machine{before}, placed: map[string]Placement{allocation(1): placed("app", "g")}}
	c, ctx := w.fresh(t, scheduler), t.Context()
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	w1.claim(t, "10.0.0.1", "nomad-1")
	w2.register(t, "10.0.0.2")
	scheduler.mu.Lock()
	p := scheduler.placed[allocation(1)]
	p.Machine = again
	scheduler.placed[allocation(1)] = p
	scheduler.machines = []Machine{before, again}
	scheduler.mu.Unlock()
	_, err = w1.Admit(ctx, request4(1, 10))
	must.StrContains(t, code(t, api.CodeNotPlaced, err).Message, "if its Nomad client was set up again, run `sif node bind aws1/w1`")

	bind := func(id fabric.NodeID, nomad string) (api.BindReply, error) {
		return c.operator.BindNode(ctx, id, api.BindRequest{NomadNode: nomad}, "set up again")
	}
	_, err = w.reader(t, c, setup.ReadPolicy).BindNode(ctx, w1.id, api.BindRequest{}, "")
	code(t, api.CodeForbidden, err)
	_, err = bind(fabric.NodeID{Zone: "aws1", Name: "w9"}, "")
	code(t, api.CodeNotFound, err)
	_, err = bind(w1.id, "nomad-7")
	must.StrContains(t, code(t, api.CodeNotFound, err).Message, `Nomad knows no node with the ID "nomad-7"`)
	_, err = bind(w2.id, "")
	must.StrContains(t, code(t, api.CodeNotFound, err).Message, "Nomad has no node with the address 10.0.0.2 of node aws1/w2")
	_, err = bind(w2.id, "nomad-1")
	must.StrContains(t, code(t, api.CodeConflict, err).Message, "is node aws1/w1 of the fabric")
	_, err = bind(w1.id, "")
	must.StrContains(t, code(t, api.CodeConflict, err).Message, "Nomad has several nodes with the address 10.0.0.1")
	must.Eq(t, "nomad-1", c.bound.of(w1.id).ID)

	// The one from before is down: there is no doubt.
	scheduler.mu.Lock()
	scheduler.machines[0].Down = true
	scheduler.mu.Unlock()
	reply, err := bind(w1.id, "")
	must.NoError(t, err)
	must.Eq(t, api.BindReply{Node: w1.id, NomadNode: "nomad-1b", Name: again.Name, Datacenter: "dc1", Before: "nomad-1"}, reply)
	_, err = w1.Admit(ctx, request4(1, 10))
	must.NoError(t, err)
	var logged []string
	for _, e := range auditLines(t, filepath.Join(c.dir, auditFile)) {
		if e.Action == "node.bind" && !e.Begun {
			logged = append(logged, e.Target+": "+e.Message+" "+e.Code)
		}
	}
	must.SliceContains(t, logged, "aws1/w1: Nomad node nomad-1b, before nomad-1. set up again ")
	must.SliceContains(t, logged, "aws1/w1:  forbidden")

	// An address that Nomad does not know of, by the operator's word.
	scheduler.mu.Lock()
	scheduler.machines = append(scheduler.machines, machine("nomad-2", "198.51.100.2"))
	scheduler.mu.Unlock()
	_, err = bind(w2.id, "nomad-2")
	must.NoError(t, err)
	must.Eq(t, "nomad-2", c.bound.of(w2.id).ID)
}

// Whoever writes Consul neither changes which Nomad node a node is, nor has its workloads refused.
func testBindingsAreSigned(t *testing.T, w *world) {
	scheduler := &fakeScheduler{
		machines: []Machine{machine("nomad-1", "10.0.0.1"), machine("nomad-2", "10.0.0.1")},
		placed:   map[string]Placement{allocation(1): placed("app", "g")},
	}
	c, ctx := w.fresh(t, scheduler), t.Context()
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	w1.register(t, "10.0.0.1")
	w2.register(t, "10.0.0.2")
	key, foreign := kvkey.Binding(w1.id).String(), kvkey.Binding(w2.id).String()

	// What is there before the first admission: a plain ID, as an older version wrote it.
	w.put(t, key, []byte("nomad-2"))
	w.put(t, foreign, []byte("nomad-1"))
	_, err = w1.Admit(ctx, request4(1, 10))
	must.NoError(t, err)
	must.Eq(t, "nomad-1", c.bound.of(w1.id).ID)
	first := w.value(t, key)
	var signed fabric.Signed
	must.NoError(t, json.Unmarshal(first, &signed))

	for name, value := range map[string][]byte{
		"plain": []byte("nomad-2"), "of another node": nil, "forged": []byte(strings.Replace(string(first), `"signature":"`, `"signature":"AA`, 1)), "deleted": nil,
	} {
		switch {
		case name == "of another node":
			w.put(t, foreign, first)
		case value == nil:
			_, err := w.consul.KV().Delete(key, nil)
			must.NoError(t, err)
		default:
			w.put(t, key, value)
		}
		must.NoError(t, c.bound.reconcile(ctx), must.Sprint(name))
		must.Eq(t, string(first), string(w.value(t, key)), must.Sprint(name))
		must.Nil(t, w.value(t, foreign), must.Sprint(name))
		must.Eq(t, "", c.bound.of(w2.id).ID)
		_, err = w1.Admit(ctx, request4(1, 10))
		must.NoError(t, err, must.Sprint(name))
	}

	// An old binding that was signed does not come back, not even at a controller that starts.
	_, err = c.operator.BindNode(ctx, w1.id, api.BindRequest{NomadNode: "nomad-2"}, "")
	must.NoError(t, err)
	second := string(w.value(t, key))
	w.put(t, key, first)
	must.NoError(t, c.bound.reconcile(ctx))
	must.Eq(t, second, string(w.value(t, key)))
	c.stop()
	w.put(t, key, first)
	c = w.start(t, c.dir, scheduler, false)
	must.Eq(t, "nomad-2", c.bound.of(w1.id).ID)
	must.Eq(t, second, string(w.value(t, key)))

	// Another controller, which has nothing on disk, has it from Consul.
	c.stop()
	must.NoError(t, os.Remove(filepath.Join(c.dir, "bindings.json")))
	c = w.start(t, c.dir, scheduler, false)
	must.Eq(t, "nomad-2", c.bound.of(w1.id).ID)
}
