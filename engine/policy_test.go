// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/node/number"
	"github.com/sif-project/sif/internal/testhost"
)

// counter numbers names in order.
type counter map[string]uint32

func (c counter) Of(name string) (uint32, error) {
	if c[name] == 0 {
		c[name] = uint32(len(c) + 1)
	}
	return c[name], nil
}

var (
	web, svc, news = fabric.Ref{Domain: "app", Name: "web"}, fabric.Ref{Domain: "app", Name: "svc"}, fabric.Ref{Domain: "app", Name: "news"}
	newsAPI        = fabric.Ref{Domain: "app", Name: "news-api"}
	http           = []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 8080, To: 8080}}}}
)

// graph is web -> svc -> news.
func graph() *fabric.Graph {
	return &fabric.Graph{Domains: map[string]*fabric.Domain{"app": {
		Name: "app", Services: []fabric.Service{{Name: "web"}, {Name: "svc"}, {Name: "news"}},
		Contracts: []fabric.Contract{
			{Name: "frontend", Originators: []fabric.Ref{web}, Responders: []fabric.Ref{svc}, Rules: http},
			{Name: "news-api", Originators: []fabric.Ref{svc}, Responders: []fabric.Ref{news}, Rules: http},
		},
	}}}
}

func documents(g *fabric.Graph) map[fabric.Ref]fabric.Document {
	docs := map[fabric.Ref]fabric.Document{}
	for _, d := range fabric.Documents(g) {
		docs[d.Service] = d
	}
	return docs
}

// instance is the n-th endpoint, of a service with all its roles.
func instance(n int, zone, node string, service fabric.Ref) fabric.Admission {
	return fabric.Admission{
		Fabric: "test", Endpoint: fmt.Sprintf("%s-%d", service.Name, n), Zone: zone, Node: node, Service: service,
		Roles: documents(graph())[service].Roles(),
		IPv4:  netip.AddrFrom4([4]byte{100, 64, byte(n >> 8), byte(n)}), IPv6: netip.MustParseAddr(fmt.Sprintf("fd5f::%x", n+1)),
		Issued: time.Unix(1000, 0), Expires: time.Unix(1e10, 0),
	}
}

// probed is the workload nodes of a fabric, of which nothing leads to azure1's.
func probed() []fabric.Node {
	node := func(zone, name string, n int) fabric.Node {
		return fabric.Node{Zone: zone, Name: name, Kind: fabric.KindWorkload,
			Pool4: netip.MustParsePrefix(fmt.Sprintf("100.65.%d.0/24", n)), Pool6: netip.MustParsePrefix(fmt.Sprintf("fd5f:0:%x::/64", n+1))}
	}
	return []fabric.Node{node("aws1", "w1", 1), node("aws1", "w2", 2), node("gcp1", "w1", 3), node("azure1", "w1", 4)}
}

var beyond = fabric.NodeID{Zone: "gcp1", Name: "p1"}

// boundary is what the switch of aws1 must contain in a fabric whose other zone is gcp1.
func boundary(live []lease.Lease, docs map[fabric.Ref]fabric.Document, num numbers) (SwitchState, error) {
	nodes := probed()
	for _, id := range []fabric.NodeID{{Zone: "aws1", Name: "p1"}, beyond} {
		nodes = append(nodes, fabric.Node{Zone: id.Zone, Name: id.Name, Kind: fabric.KindProcessor})
	}
	topology := desired.NewTopology(nodes, desired.FullMesh(nodes), nil)
	var endpoints []fabric.Admission
	for _, le := range live {
		endpoints = append(endpoints, le.Admission)
	}
	return numbered(desired.ForProcessor(fabric.NodeID{Zone: "aws1", Name: "p1"}, topology, endpoints, docs, fabric.Outside{}), num)
}

// What the switch holds grows with nodes plus endpoints plus contracts between the identities that
// are present, never with pairs of nodes or endpoints.
func TestBoundarySize(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var live []lease.Lease
		n := rapid.IntRange(0, 60).Draw(t, "endpoints")
		for i := range n {
			zone := rapid.SampledFrom([]string{"aws1", "gcp1"}).Draw(t, "zone")
			service := rapid.SampledFrom([]fabric.Ref{web, svc, news}).Draw(t, "service")
			live = append(live, lease.Lease{Admission: instance(i, zone, "w1", service)})
		}
		s, err := boundary(live, documents(graph()), counter{})
		must.NoError(t, err)
		for _, le := range live {
			if a := le.Admission; a.Zone == "aws1" {
				must.MapContainsKey(t, s.Endpoints, a.Endpoint)
			}
		}
		must.LessEq(t, n, len(s.Endpoints))
		must.MapLen(t, 3, s.Probes) // nothing leads to azure1
		must.LessEq(t, 2, len(s.Entries))
		for _, e := range s.Entries {
			must.NotEq(t, e.Src, e.Dst)
		}
	})
}

func TestBoundary(t *testing.T) {
	live := []lease.Lease{
		{Admission: instance(1, "aws1", "w1", svc)}, {Admission: instance(2, "gcp1", "w1", news)},
		{Admission: instance(3, "gcp1", "w1", web)}, {Admission: instance(4, "azure1", "w1", web)},
	}
	s, err := boundary(live, documents(graph()), counter{})
	must.NoError(t, err)
	must.MapLen(t, 3, s.Endpoints) // nothing leads to azure1
	must.MapLen(t, 3, s.Probes)
	for _, n := range probed()[:3] {
		probe := s.Probes[n.ID()]
		must.Eq(t, []netip.Addr{n.Health4(), n.Health6()}, []netip.Addr{probe.IPv4, probe.IPv6})
		must.Eq(t, ovs.ProbeClass, probe.Class)
		must.Eq(t, n.Zone != beyond.Zone, probe.Way == desired.ZoneLink)
		must.Eq(t, n.Zone == beyond.Zone, probe.Way == desired.ByWays)
	}
	must.Eq(t, desired.ByWays, s.Endpoints["news-2"].Way)
	must.Eq(t, []desired.Hop{{Processor: beyond}}, s.Endpoints["news-2"].Sources)
	must.Eq(t, desired.ZoneLink, s.Endpoints["svc-1"].Way)
	class := func(endpoint string) uint32 { return s.Endpoints[endpoint].Class }
	pairs := map[[2]uint32]bool{}
	for _, e := range s.Entries {
		pairs[[2]uint32{e.Src, e.Dst}] = true
		must.Eq(t, http, []fabric.Rule{{Protocol: e.Protocol, Ports: e.Ports}})
	}
	must.Eq(t, map[[2]uint32]bool{{class("svc-1"), class("news-2")}: true, {class("web-3"), class("svc-1")}: true}, pairs)
}

// A contract with other ports is another entry, because connections on a port that it no longer has
// must end. In which rules and in which order the ports are written does not matter.
func TestEntriesAreTheirPorts(t *testing.T) {
	num := counter{}
	live := []lease.Lease{{Admission: instance(1, "aws1", "w1", svc)}, {Admission: instance(2, "gcp1", "w1", news)}}
	entries := func(rules ...fabric.Rule) map[uint32]SwitchEntry {
		g := graph()
		g.Domains["app"].Contracts[1].Rules = rules
		s, err := boundary(live, documents(g), num)
		must.NoError(t, err)
		return s.Entries
	}
	ports := func(list ...fabric.PortRange) fabric.Rule { return fabric.Rule{Protocol: fabric.TCP, Ports: list} }
	one, few, more := fabric.PortRange{From: 80, To: 80}, fabric.PortRange{From: 81, To: 89}, fabric.PortRange{From: 443, To: 443}
	udp := fabric.Rule{Protocol: fabric.UDP, Ports: []fabric.PortRange{one}}
	wide := entries(ports(one, few, more), udp)
	must.MapLen(t, 2, wide)
	must.Eq(t, wide, entries(udp, fabric.Rule{Name: "web", Protocol: fabric.TCP, Ports: []fabric.PortRange{more, one}}, ports(few)))
	for number, narrow := range entries(ports(one, few), udp) {
		_, same := wide[number]
		must.Eq(t, narrow.Protocol == fabric.UDP, same)
	}
}

// An entry keeps its ID as long as it means the same, because connections carry it; an entry with
// another meaning never gets it.
func TestEntriesKeepTheirNumbers(t *testing.T) {
	num := counter{}
	live := []lease.Lease{{Admission: instance(1, "aws1", "w1", svc)}, {Admission: instance(2, "gcp1", "w1", news)}}
	before, err := boundary(live, documents(graph()), num)
	must.NoError(t, err)
	g := graph()
	g.Domains["app"].Contracts = g.Domains["app"].Contracts[:1]
	g.Domains["app"].Contracts = append(g.Domains["app"].Contracts, fabric.Contract{Name: "other", Originators: []fabric.Ref{svc}, Responders: []fabric.Ref{news}, Rules: http})
	other := fabric.Ref{Domain: "app", Name: "other"}
	for i := range live {
		live[i].Admission.Roles = fabric.Roles{Originate: []fabric.Ref{newsAPI, other}, Respond: []fabric.Ref{newsAPI, other}}
	}
	after, err := boundary(live, documents(g), num)
	must.NoError(t, err)
	must.MapLen(t, 1, before.Entries)
	must.MapLen(t, 1, after.Entries)
	for id := range before.Entries {
		must.MapNotContainsKey(t, after.Entries, id)
	}
}

// With a full disk nothing new gets a number: the state lacks just that, and what is no longer
// allowed is not in it.
func TestNumberedWithFullDisk(t *testing.T) {
	disk := testhost.NewDisk(t, 2)
	num, err := number.Open(filepath.Join(disk.Dir, "numbers.json"))
	must.NoError(t, err)
	docs := documents(graph())
	services := slices.SortedFunc(maps.Keys(docs), fabric.CompareRefs)
	var live []lease.Lease
	for i, service := range services {
		live = append(live, lease.Lease{Admission: instance(2*i, "aws1", "w1", service)}, lease.Lease{Admission: instance(2*i+1, "gcp1", "w1", service)})
	}
	all, err := boundary(live, docs, num)
	must.NoError(t, err)
	must.MapNotEmpty(t, all.Entries)
	disk.Fill()
	for service := range docs {
		doc := docs[service]
		doc.Originates, doc.Responds = nil, nil
		docs[service] = doc
	}
	fresh := live[0]
	fresh.Admission.Endpoint, fresh.Admission.Service = "fresh", fabric.Ref{Domain: "app", Name: "fresh"}
	fresh.Admission.Roles = fabric.Roles{}
	fresh.Admission.IPv4, fresh.Admission.IPv6 = netip.MustParseAddr("100.64.9.9"), netip.MustParseAddr("fd5f::9:9")
	state, err := boundary(append(live, fresh), docs, num)
	must.MapEmpty(t, state.Entries, must.Sprint("what was removed is still there"))
	maps.DeleteFunc(all.Endpoints, func(_ string, ep SwitchEndpoint) bool { return ep.Way != desired.ZoneLink })
	must.Eq(t, all.Endpoints, state.Endpoints, must.Sprint("nothing leads to others any more"))
	must.ErrorContains(t, err, "no space left on device")
}
