// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/node/rpc"
)

// owner is an agent that owns endpoints, and compares them with its engine as agents do.
type owner struct {
	w    *world
	node string
	has  map[string]fabric.Request
	told *told
}

func (o *owner) call(e *Engine, method string, params, reply any) {
	peer := rpc.Peer{NodeID: fabric.NodeID{Zone: e.self.Zone, Name: o.node}, Kind: fabric.KindWorkload}
	must.NoError(o.w.t, wire{self: peer, peer: peerOf(e), handle: e.Handle}.Call(context.Background(), method, params, reply))
}

// connect connects the agent to an engine and introduces its endpoints.
func (o *owner) connect(e *Engine) {
	o.told = o.w.agentOf(e, o.node)
	o.sync(e)
}

func (o *owner) sync(e *Engine) {
	list := rpc.SyncParams{Endpoints: map[string]time.Time{}}
	for endpoint, r := range o.has {
		list.Endpoints[endpoint] = issued(o.w.t, r)
	}
	for range 2 { // the second time, nothing is missing
		var reply rpc.SyncReply
		o.call(e, rpc.MethodSync, list, &reply)
		for _, held := range reply.Unlisted {
			o.call(e, rpc.MethodWithdraw, rpc.WithdrawParams{Endpoints: []string{held.Endpoint}}, nil)
		}
		for _, endpoint := range reply.Missing {
			o.call(e, rpc.MethodConnect, rpc.ConnectParams{Request: o.has[endpoint]}, nil)
		}
	}
}

func issued(t *testing.T, r fabric.Request) time.Time {
	var a fabric.Admission
	must.NoError(t, json.Unmarshal(r.Admission.Payload, &a))
	return a.Issued
}

func held(e *Engine) []string {
	var list []string
	for _, le := range e.leases.All(time.Now()) {
		list = append(list, le.Admission.Endpoint)
	}
	return list
}

// An engine that has lost its leases and starts before its agents ends none elsewhere. It gets
// those of its own zone back from the other zone, and those of the other zone from there; when its
// agents come, their word counts.
func TestEngineThatLostItsLeases(t *testing.T) {
	w := newWorld(t)
	aws, _, _ := w.engine("aws1")
	gcp, _, _ := w.engine("gcp1")
	w1 := &owner{w: w, node: "w1", has: map[string]fabric.Request{"svc-1": w.request(1, "aws1", "w1", svc), "svc-2": w.request(2, "aws1", "w1", svc)}}
	g1 := &owner{w: w, node: "w1", has: map[string]fabric.Request{"news-3": w.request(3, "gcp1", "w1", news)}}
	w.join(aws, gcp)
	w1.connect(aws)
	g1.connect(gcp)
	all := []string{"news-3", "svc-1", "svc-2"}
	must.Eq(t, all, held(aws))
	must.Eq(t, all, held(gcp))
	aws.Sync(t.Context())
	must.SliceEmpty(t, gcp.unheard())

	aws, _, _ = w.engine("aws1") // with a new file
	must.SliceLen(t, 3, aws.unheard())
	w.join(aws, gcp)
	must.Eq(t, all, held(gcp))
	must.Eq(t, all, held(aws))
	must.Eq(t, []string{"svc-1", "svc-2"}, g1.told.endpoints())
	must.Eq(t, []string{"node aws1/w1: its agent is not connected", "node aws1/w2: its agent is not connected"}, aws.unheard())

	delete(w1.has, "svc-2") // meanwhile, and nobody was told
	w1.connect(aws)
	must.Eq(t, []string{"news-3", "svc-1"}, held(aws))
	must.Eq(t, []string{"news-3", "svc-1"}, held(gcp))
	must.Eq(t, []string{"svc-1"}, g1.told.endpoints())
}

// What an agent or the engine of another zone has lost is sent again.
func TestLostElsewhere(t *testing.T) {
	w := newWorld(t)
	aws, _, _ := w.engine("aws1")
	gcp, _, _ := w.engine("gcp1")
	w.carries(gcp)
	w.join(aws, gcp)
	w1 := &owner{w: w, node: "w1", has: map[string]fabric.Request{"svc-1": w.request(1, "aws1", "w1", svc)}}
	w2 := &owner{w: w, node: "w2", has: map[string]fabric.Request{"web-2": w.request(2, "aws1", "w2", web)}}
	w1.connect(aws)
	w2.connect(aws)
	must.Eq(t, []string{"svc-1", "web-2"}, held(gcp))
	must.Eq(t, []string{"web-2"}, w1.told.endpoints())

	gcp.leases.Remove(func(lease.Lease) bool { return true })
	w1.told.set = map[string]bool{}
	aws.Sync(t.Context())
	must.Eq(t, []string{"svc-1", "web-2"}, held(gcp))
	must.Eq(t, []string{"web-2"}, w1.told.endpoints())
}

// An agent's counterparts from before end when the engine knows that they have, and not because it
// does not know them.
func TestCounterpartsFromBefore(t *testing.T) {
	w := newWorld(t)
	e, _, _ := w.engine("aws1")
	id := func(zone, node string) fabric.NodeID { return fabric.NodeID{Zone: zone, Name: node} }
	a := w.agentOf(e, "w2")
	before := map[string]fabric.NodeID{"svc-1": id("aws1", "w1"), "svc-2": id("aws1", "w1"), "news-3": id("gcp1", "w1")}
	a.extra = maps.Clone(before)
	e.Sync(t.Context())
	must.Eq(t, before, a.extra)
	w1 := &owner{w: w, node: "w1", has: map[string]fabric.Request{"svc-1": w.request(1, "aws1", "w1", svc)}}
	w1.connect(e)
	e.Sync(t.Context())
	must.Eq(t, map[string]fabric.NodeID{"svc-1": id("aws1", "w1"), "news-3": id("gcp1", "w1")}, a.extra)
	gcp, _, _ := w.engine("gcp1")
	w.join(e, gcp)
	e.Sync(t.Context())
	must.MapLen(t, 2, a.extra)
	(&owner{w: w, node: "w1"}).connect(gcp)
	gcp.Sync(t.Context())
	e.Sync(t.Context())
	must.Eq(t, map[string]fabric.NodeID{"svc-1": id("aws1", "w1")}, a.extra)
}

// An endpoint that was withdrawn is not taken for one that this engine has lost.
func TestWithdrawnIsNotLost(t *testing.T) {
	w := newWorld(t)
	aws, _, _ := w.engine("aws1")
	gcp, _, _ := w.engine("gcp1")
	w.carries(gcp)
	w.join(aws, gcp)
	r := w.request(1, "aws1", "w1", svc)
	_, err := w.connect(aws, "w1", r)
	must.NoError(t, err)
	w.withdraw(aws, "w1", "svc-1")
	_, err = gcp.Handle(t.Context(), peerOf(aws), rpc.MethodForward, encode(t, rpc.ForwardParams{Request: r})) // as if the withdrawal had not arrived
	must.NoError(t, err)
	aws.Sync(t.Context())
	must.SliceEmpty(t, held(aws))
	must.SliceEmpty(t, held(gcp))
	_, err = w.connect(aws, "w1", r) // the same endpoint may come back
	must.NoError(t, err)
	aws.Sync(t.Context())
	must.Eq(t, []string{"svc-1"}, held(aws))
	must.Eq(t, []string{"svc-1"}, held(gcp))
}

func encode(t *testing.T, v any) json.RawMessage {
	b, err := json.Marshal(v)
	must.NoError(t, err)
	return b
}

// Whatever the engines lose, miss or restart, an endpoint that lives is never ended in a zone that
// had it and lost nothing; and when all have met and compared, everybody has just what lives.
func TestOnlyTheOwnerEnds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		w.leases = ""
		files := map[string]string{"aws1": filepath.Join(t.TempDir(), "a.json"), "gcp1": filepath.Join(t.TempDir(), "g.json")}
		engines := map[string]*Engine{}
		start := func(zone string) {
			w.leases = files[zone]
			engines[zone], _, _ = w.engine(zone)
		}
		start("aws1")
		start("gcp1")
		w.carries(engines["gcp1"])
		owners := map[string]*owner{}
		for _, n := range []string{"w1", "w2"} {
			owners[n] = &owner{w: w, node: n, has: map[string]fabric.Request{}}
		}
		joined, connected := false, map[string]bool{}
		n := 0
		// known is what gcp1 has learned of and has not lost.
		known := map[string]bool{}
		live := func() []string {
			var list []string
			for _, o := range owners {
				list = slices.AppendSeq(list, maps.Keys(o.has))
			}
			slices.Sort(list)
			return list
		}
		for range rapid.IntRange(10, 40).Draw(rt, "steps") {
			node := rapid.SampledFrom([]string{"w1", "w2"}).Draw(rt, "node")
			o, aws := owners[node], engines["aws1"]
			switch rapid.SampledFrom([]string{"begin", "begin", "end", "restart", "restart", "lose", "join", "connect", "sync"}).Draw(rt, "what") {
			case "begin":
				n++
				o.has[fmt.Sprintf("svc-%d", n)] = w.request(n, "aws1", node, svc)
				if connected[node] {
					o.sync(aws)
				}
			case "end": // and nobody is told
				for endpoint := range o.has {
					delete(o.has, endpoint)
					break
				}
			case "restart":
				start("aws1")
				joined, connected = false, map[string]bool{}
			case "lose":
				files["aws1"] = filepath.Join(t.TempDir(), "again.json")
				start("aws1")
				joined, connected = false, map[string]bool{}
			case "join":
				if !joined {
					w.join(aws, engines["gcp1"])
					joined = true
				}
			case "connect":
				o.connect(aws)
				connected[node] = true
			case "sync":
				if connected[node] {
					o.sync(aws)
				}
				aws.Sync(context.Background())
			}
			has := held(engines["gcp1"])
			for endpoint := range known {
				if slices.Contains(live(), endpoint) && !slices.Contains(has, endpoint) {
					rt.Fatalf("%s lives and was ended", endpoint)
				}
			}
			for _, endpoint := range has {
				known[endpoint] = true
			}
		}
		aws := engines["aws1"]
		if !joined {
			w.join(aws, engines["gcp1"])
		}
		for _, o := range owners {
			o.connect(aws)
		}
		aws.Sync(context.Background())
		for zone, e := range engines {
			if !slices.Equal(live(), held(e)) {
				rt.Fatalf("%s has %v, live are %v", zone, held(e), live())
			}
		}
	})
}

// An engine says what it is as an exit, to its own zone only.
func TestExitIsTold(t *testing.T) {
	w := newWorld(t)
	e, _, _ := w.engine("aws1")
	for _, c := range []struct {
		zone string
		is   Exit
		want rpc.SyncReply
	}{
		{"aws1", Exit{}, rpc.SyncReply{}},
		{"aws1", Exit{Leads: true}, rpc.SyncReply{Exit: true}},
		{"aws1", Exit{Leads: true, Far: true}, rpc.SyncReply{Exit: true, Far: true}},
		{"gcp1", Exit{Leads: true, Far: true}, rpc.SyncReply{}},
	} {
		e.exit = func() Exit { return c.is }
		reply, err := e.sync(rpc.Peer{NodeID: fabric.NodeID{Zone: c.zone, Name: "n"}, Kind: fabric.KindWorkload}, rpc.SyncParams{})
		must.NoError(t, err)
		must.Eq(t, c.want, reply)
	}
}
