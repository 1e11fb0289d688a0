// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/expiry"
)

func TestDumpOf(t *testing.T) {
	web4, db4 := netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("100.64.1.2")
	web6 := netip.MustParseAddr("fd5f::2")
	users := netip.MustParsePrefix("203.0.113.0/24")
	im := newImage()
	im.endpoints[7] = bpf.Endpoint{Interface: 7, Identity: 16, IPv4: web4, IPv6: web6}
	im.peers[web4] = bpf.Peer{Address: web4, Identity: 16, Interface: 7}
	im.peers[db4] = bpf.Peer{Address: db4, Identity: 17, Interface: 3}
	for _, by := range []uint32{2, bpf.FromNode} {
		im.externals[externalKey{by, users}] = bpf.External{Prefix: users, Identity: 19, Interface: by}
	}
	im.checks[bpf.Check{Interface: 7, Protocol: 6, Port: 80}] = true
	im.pairs[bpf.Pair{Source: 16, Destination: 17}] = []bpf.Rule{{Protocol: 6, From: 5432, To: 5433, Contract: 18 | bpf.AuditContract}}
	want := api.Dump{
		Layer:    api.LayerEBPF,
		Guarded:  []api.DumpEndpoint{{IPv4: web4, IPv6: web6, Identity: "shop/web >shop/sql", Checks: []fabric.Check{{Protocol: fabric.TCP, Port: 80}}}},
		Peers:    []api.DumpPeer{{Address: web4, Identity: "shop/web >shop/sql", Via: desired.OwnInterface.String()}, {Address: db4, Identity: "shop/db <shop/sql", Via: "z1/p1"}},
		External: []api.DumpExternal{{Prefix: users, Identity: "external shop/users shop/world", In: true}},
		Rules: []api.DumpRule{{From: "shop/web >shop/sql", To: "shop/db <shop/sql", Protocol: fabric.TCP,
			Ports: fabric.PortRange{From: 5432, To: 5433}, Contract: "shop/sql", Audit: true}},
	}
	links := map[desired.Way]uint32{desired.Through(fabric.NodeID{Zone: "z1", Name: "p1"}): 3}
	must.Eq(t, want, dumpOf(im, someNames, wayNames{}, links, 2))

	im.peers[db4] = bpf.Peer{Address: db4, Identity: 99, Interface: 3}
	im.pairs[bpf.Pair{Source: 17, Destination: 16}] = nil
	im.pairs[bpf.Pair{Source: 16, Destination: 17}] = []bpf.Rule{{Protocol: 6, From: 1, To: 2, Contract: 98}}
	must.Len(t, 4, dumpOf(im, someNames, wayNames{}, links, 1).Problems)
}

// registry gives out numbers, and knows what they stand for.
type registry map[string]uint32

func (c registry) Of(name string) (uint32, error) {
	if _, ok := c[name]; !ok {
		c[name] = uint32(16 + len(c))
	}
	return c[name], nil
}

// pairMaps is a data path in memory, as far as pairs go.
type pairMaps struct {
	Datapath
	pairs map[bpf.Pair][]bpf.Rule
	log   []string
}

func (m *pairMaps) ReplacePair(p bpf.Pair, rules []bpf.Rule) error {
	m.pairs[p] = rules
	m.log = append(m.log, fmt.Sprint(len(rules)))
	return nil
}
func (m *pairMaps) PutPeer(bpf.Peer) error         { return nil }
func (m *pairMaps) PutEndpoint(bpf.Endpoint) error { return nil }

// A contract that expires takes its rules out of the maps at that moment, with nobody there.
func TestContractExpiresByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		expires := time.Now().Add(90 * time.Second)
		web, db := refOf("shop/web"), refOf("shop/db")
		graph := &fabric.Graph{Domains: map[string]*fabric.Domain{"shop": {
			Name: "shop", Services: []fabric.Service{{Name: "web"}, {Name: "db"}},
			Contracts: []fabric.Contract{{Name: "sql", Expires: expires, Originators: []fabric.Ref{web}, Responders: []fabric.Ref{db},
				Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 5432, To: 5432}}}}}},
		}}}
		docs := map[fabric.Ref]fabric.Document{}
		for _, d := range fabric.Documents(graph) {
			docs[d.Service] = d
		}
		instance := func(n byte, service fabric.Ref) endpoint {
			v4, v6 := netip.AddrFrom4([4]byte{100, 64, 0, n}), netip.AddrFrom16([16]byte{0xfd, 0x5f, 15: n})
			return endpoint{ID: service.Name, HostIf: "sif" + service.Name, HostIndex: int(n), IPv4: v4, IPv6: v6,
				Admission: fabric.Admission{Endpoint: service.Name, Zone: here.Zone, Node: here.Name, Service: service, Roles: docs[service].Roles(), IPv4: v4, IPv6: v6}}
		}
		local := []endpoint{instance(2, web), instance(3, db)}
		num, data, written := registry{}, &pairMaps{pairs: map[bpf.Pair][]bpf.Rule{}}, newImage()
		program := func() {
			want := imageHere(t, num, local, nil, fabric.DocumentsAt(docs, time.Now()))
			_, err := write(data, written, want)
			must.NoError(t, err)
			written = want
		}
		program()
		must.Eq(t, []string{"1"}, data.log)
		ctx, cancel := context.WithCancel(t.Context())
		go expiry.Watch(ctx, time.Now, func() map[fabric.Ref]fabric.Document { return docs }, program)
		time.Sleep(90*time.Second - time.Nanosecond)
		synctest.Wait()
		must.Eq(t, []string{"1"}, data.log)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		must.Eq(t, []string{"1", "0"}, data.log)
		cancel()
		synctest.Wait()
	})
}

// bare is a data path without programs at interfaces.
type bare struct{ Datapath }

func (bare) Guarded(string) error { return bpf.ErrNotGuarded }

// The interface of an endpoint that is being detached is gone before the endpoint is. Nobody is
// told that it is not guarded.
func TestDetachedEndpointIsNotUnguarded(t *testing.T) {
	a, _, _ := hookedAgent(t)
	a.data = bare{a.data}
	ep := endpoint{ID: "a", Attachment: at("c1"), HostIf: "sif0123456789a", HostIndex: 4711}
	ep.Admission.Expires = a.now().Add(time.Hour)
	must.NoError(t, a.endpoints.put(ep)())
	must.Len(t, 1, a.unguarded())
	unlock := a.locks.Lock(ep.Attachment)
	must.SliceEmpty(t, a.unguarded())
	a.endpoints.remove(ep.Attachment)
	unlock()
	must.SliceEmpty(t, a.unguarded())
}
