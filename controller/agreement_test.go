// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/inspect/verify"
)

// heldFabric is a fabric whose nodes hold what dumps says.
type heldFabric struct {
	fabric verify.Fabric
	dumps  map[fabric.NodeID]api.Dump
	asked  []fabric.NodeID
	delay  time.Duration // before the nodes answer
}

func (h *heldFabric) Declared(context.Context) (verify.Fabric, error) { return h.fabric, nil }

func (h *heldFabric) Dumps(_ context.Context, nodes []fabric.NodeID) (map[fabric.NodeID]api.Dump, map[fabric.NodeID]string, error) {
	h.asked = append(h.asked, nodes...)
	time.Sleep(h.delay)
	return h.dumps, nil, nil
}

// A node that does not hold what it must is told so, and the endpoint that it lacks is not in
// force, although both daemons have no problem of their own; but only after it had time to follow.
func TestAgreement(t *testing.T) {
	now := time.Now()
	name := func(name string) fabric.Ref { return fabric.Ref{Domain: "shop", Name: name} }
	graph := &fabric.Graph{Domains: map[string]*fabric.Domain{"shop": {
		Name: "shop", Services: []fabric.Service{{Name: "web"}, {Name: "db"}},
		Contracts: []fabric.Contract{{Name: "sql", Originators: []fabric.Ref{name("web")}, Responders: []fabric.Ref{name("db")},
			Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 5432, To: 5432}}}}}},
	}}}
	node := func(n string, octet byte, id string, service fabric.Ref, roles fabric.Roles) api.NodeStatus {
		return api.NodeStatus{Zone: "z1", Node: n, Kind: fabric.KindWorkload, Sequence: 1, Reported: now, Endpoints: []api.EndpointStatus{{
			Endpoint: id, Service: service, Roles: roles, InForce: true,
			IPv4: netip.AddrFrom4([4]byte{100, 64, octet, 2}), IPv6: netip.AddrFrom16([16]byte{0xfd, 5: octet, 15: 2}),
		}}}
	}
	sql := []fabric.Ref{name("sql")}
	h := &heldFabric{fabric: verify.Fabric{Graph: graph, Pointer: fabric.Pointer{Sequence: 1}}}
	h.fabric.Status.Nodes = []api.NodeStatus{
		node("w1", 1, "web-1", name("web"), fabric.Roles{Originate: sql}), node("w2", 2, "db-1", name("db"), fabric.Roles{Respond: sql}),
	}
	h.fabric.Now = now
	digests := verify.Digests(h.fabric)
	w1, w2 := fabric.NodeID{Zone: "z1", Name: "w1"}, fabric.NodeID{Zone: "z1", Name: "w2"}
	report := func(digest string, age time.Duration) {
		h.fabric.Status.Nodes[0].Enforced = &api.Enforced{Digest: digest, Age: age}
		h.fabric.Status.Nodes[1].Enforced = &api.Enforced{Digest: digests[w2]}
	}
	a := newAgreement(h)
	judged := func() api.Status {
		found, _ := a.compare(t.Context())
		a.set(found)
		s := h.fabric.Status
		s.Nodes = append([]api.NodeStatus(nil), s.Nodes...)
		a.judge(&s)
		return s
	}

	report(digests[w1], 0)
	s := judged()
	must.SliceEmpty(t, s.Nodes[0].Degraded)
	must.SliceEmpty(t, h.asked)

	report("0-other", 0)
	s = judged() // it may not have had the time
	must.SliceEmpty(t, s.Nodes[0].Degraded)
	for id := range a.since {
		a.since[id] = now.Add(-2 * settling)
	}
	s = judged()
	must.Eq(t, []fabric.NodeID{w1}, h.asked)
	must.Len(t, 1, s.Nodes[0].Degraded)
	must.StrContains(t, s.Nodes[0].Degraded[0], "it does not hold what it must: ")
	must.SliceEmpty(t, s.Nodes[1].Degraded)

	// It holds all but the other's address.
	whole := api.Dump{Node: w1, Sequence: 1}
	key := func(i int) string {
		e := h.fabric.Status.Nodes[i].Endpoints[0]
		return fabric.Identity{Service: e.Service, Roles: e.Roles}.Key()
	}
	web := h.fabric.Status.Nodes[0].Endpoints[0]
	whole.Guarded = []api.DumpEndpoint{{IPv4: web.IPv4, IPv6: web.IPv6, Identity: key(0)}}
	whole.Peers = []api.DumpPeer{{Address: web.IPv4, Identity: key(0), Via: "endpoint"}, {Address: web.IPv6, Identity: key(0), Via: "endpoint"}}
	whole.Rules = []api.DumpRule{{From: key(0), To: key(1), Protocol: fabric.TCP, Ports: fabric.PortRange{From: 5432, To: 5432}, Contract: "shop/sql"}}
	h.dumps = map[fabric.NodeID]api.Dump{w1: whole}
	s = judged()
	must.StrContains(t, s.Nodes[0].Degraded[0], "missing address 100.64.2.2")
	must.Eq(t, []string{"z1/w1: it does not hold it"}, s.Nodes[1].Endpoints[0].Pending)
	must.False(t, s.Nodes[1].Endpoints[0].InForce)
	must.True(t, h.fabric.Status.Nodes[1].Endpoints[0].InForce) // the report is as it was

	// That it waits for a node is no work, after which it would pause.
	h.delay = 300 * time.Millisecond
	began := time.Now()
	_, busy := a.compare(t.Context())
	must.LessEq(t, time.Since(began)-h.delay, busy)
	h.delay = 0

	report(digests[w1], 0)
	s = judged()
	must.SliceEmpty(t, s.Nodes[0].Degraded)
	must.True(t, s.Nodes[1].Endpoints[0].InForce)
	h.fabric.Status.Nodes[0].Enforced.Repaired = 2
	must.StrContains(t, judged().Nodes[0].Degraded[0], "differed from what it must hold in 2 places")
	report(digests[w1], 2*comparedTimeout)
	must.StrContains(t, judged().Nodes[0].Degraded[0], "last compared 40s before")
}
