// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
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
	office         = fabric.Ref{Domain: "app", Name: "office"}
)

// documents of web -> svc -> news, where the office may call web, too.
func documents() map[fabric.Ref]fabric.Document {
	tcp := func(port uint16) []fabric.Rule {
		return []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: port, To: port}}}}
	}
	graph := &fabric.Graph{Domains: map[string]*fabric.Domain{"app": {
		Name: "app", Services: []fabric.Service{{Name: "web"}, {Name: "svc"}, {Name: "news"}},
		Externals: []fabric.External{{Name: "office", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}},
		Contracts: []fabric.Contract{
			{Name: "frontend", Originators: []fabric.Ref{web}, Responders: []fabric.Ref{svc}, Rules: tcp(8080)},
			{Name: "news-api", Originators: []fabric.Ref{svc}, Responders: []fabric.Ref{news}, Rules: tcp(9000)},
			{Name: "visit", Originators: []fabric.Ref{office}, Responders: []fabric.Ref{web}, Rules: tcp(80)},
		},
	}}}
	docs := map[fabric.Ref]fabric.Document{}
	for _, d := range fabric.Documents(graph) {
		docs[d.Service] = d
	}
	return docs
}

// admitted is an endpoint of a service with all its roles at the n-th address.
func admitted(n byte, zone string, service fabric.Ref) fabric.Admission {
	return fabric.Admission{
		Endpoint: service.Name, Zone: zone, Node: "w1", Service: service, Roles: documents()[service].Roles(),
		IPv4: netip.AddrFrom4([4]byte{100, 64, 0, n}), IPv6: netip.AddrFrom16([16]byte{0xfd, 0x5f, 15: n}),
		Expires: time.Unix(1e10, 0),
	}
}

func hosted(index int, a fabric.Admission) endpoint {
	return endpoint{ID: a.Endpoint, HostIf: "sif" + a.Endpoint, HostIndex: index, IPv4: a.IPv4, IPv6: a.IPv6, Admission: a}
}

const underlay, beyond = 2, 3

func compileHere(t *testing.T, num counter, local []endpoint, others []fabric.Admission, docs map[fabric.Ref]fabric.Document) kernelState {
	c := compiler{num: num, underlay: underlay, towards: func(zone, _ string) (int, bool) { return beyond, zone == "gcp1" }}
	s, err := c.compile(local, others, docs)
	must.NoError(t, err)
	return s
}

// What the kernel holds is the one rule for who is here, and nothing else: who
// may come by which interface, and which pairs may talk.
func TestCompile(t *testing.T) {
	num := counter{}
	s := compileHere(t, num, []endpoint{hosted(7, admitted(2, "aws1", svc)), hosted(8, admitted(3, "aws1", web))},
		[]fabric.Admission{admitted(4, "gcp1", news), admitted(5, "azure1", news)}, documents())
	must.MapLen(t, 2, s.Endpoints)
	must.Eq(t, 7, s.Endpoints["sifsvc"].Index)
	id := func(last byte) kernelPeer { return s.Peers[netip.AddrFrom4([4]byte{100, 64, 0, last})] }
	must.Eq(t, 7, id(2).Index)
	must.Eq(t, beyond, id(4).Index)
	must.Eq(t, kernelPeer{}, id(5)) // nothing leads to azure1
	visitors := s.Externals[kernelExternal{underlay, netip.MustParsePrefix("192.0.2.0/24")}]
	must.NotEq(t, 0, visitors)
	rules := func(port uint16, contract string) []kernelRule {
		return []kernelRule{{fabric.TCP, fabric.PortRange{From: port, To: port}, num["contract app/"+contract], false}}
	}
	must.Eq(t, map[kernelPair][]kernelRule{
		{id(3).Identity, id(2).Identity}: rules(8080, "frontend"),
		{id(2).Identity, id(4).Identity}: rules(9000, "news-api"),
		{visitors, id(3).Identity}:       rules(80, "visit"),
	}, s.Pairs)
}

// Without a document, and without the role, there are no rights.
func TestCompileWithoutRights(t *testing.T) {
	docs := documents()
	delete(docs, svc)
	delete(docs, web)
	both := []endpoint{hosted(7, admitted(2, "aws1", svc)), hosted(8, admitted(3, "aws1", web))}
	s := compileHere(t, counter{}, both, nil, docs)
	must.MapLen(t, 2, s.Endpoints)
	must.MapEmpty(t, s.Pairs)
	must.MapEmpty(t, s.Externals)
	for i := range both {
		both[i].Admission.Roles = fabric.Roles{}
	}
	s = compileHere(t, counter{}, both, nil, documents())
	must.MapEmpty(t, s.Pairs)
}

// An address within the prefixes of several externals has the rights of each.
func TestCompileNestedExternals(t *testing.T) {
	docs := documents()
	doc := docs[web]
	edge := doc.Responds[0]
	edge.Contract.Name = "admin"
	edge.Peers = []fabric.Peer{{Name: fabric.Ref{Domain: "app", Name: "desk"}, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")}}}
	doc.Responds = append(doc.Responds[:1:1], edge)
	docs[web] = doc
	a := admitted(3, "aws1", web)
	a.Roles.Respond = append(a.Roles.Respond, edge.Contract)
	s := compileHere(t, counter{}, []endpoint{hosted(8, a)}, nil, docs)
	must.MapLen(t, 2, s.Externals)
	to := s.Endpoints["sifweb"].Identity
	desk := s.Externals[kernelExternal{underlay, netip.MustParsePrefix("192.0.2.7/32")}]
	wide := s.Externals[kernelExternal{underlay, netip.MustParsePrefix("192.0.2.0/24")}]
	must.Len(t, 2, s.Pairs[kernelPair{desk, to}])
	must.Len(t, 1, s.Pairs[kernelPair{wide, to}])
}
