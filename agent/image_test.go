// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/node/firewall"
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

// here is the node of the tests; p1 is the processor of its zone.
var here, p1 = fabric.NodeID{Zone: "aws1", Name: "w1"}, fabric.NodeID{Zone: "aws1", Name: "p1"}

// marks are those of packets to the zone's processor.
var marks = map[fabric.NodeID]uint32{p1: 0x100}

// twoZones is a fabric of aws1 and gcp1 with a processor each.
func twoZones() desired.Topology {
	nodes := []fabric.Node{
		{Zone: p1.Zone, Name: p1.Name, Kind: fabric.KindProcessor}, {Zone: "gcp1", Name: "p1", Kind: fabric.KindProcessor},
		{Zone: here.Zone, Name: here.Name, Kind: fabric.KindWorkload}, {Zone: "gcp1", Name: "w1", Kind: fabric.KindWorkload},
	}
	return desired.NewTopology(nodes, desired.FullMesh(nodes), nil)
}

// imageHere is the image of a node in a fabric of aws1 and gcp1, whose links are up.
func imageHere(t *testing.T, num numbers, local []endpoint, others []fabric.Admission, docs map[fabric.Ref]fabric.Document) image {
	l := layout{num: num, underlay: underlay, zone: here.Zone, own: map[string]uint32{}, links: map[desired.Way]uint32{desired.Through(p1): beyond}, marks: marks}
	var endpoints []fabric.Admission
	for _, ep := range local {
		l.own[ep.ID] = uint32(ep.HostIndex)
		endpoints = append(endpoints, ep.Admission)
	}
	im, err := l.image(desired.ForWorkload(here, twoZones(), append(endpoints, others...), docs, fabric.Outside{}))
	must.NoError(t, err)
	return im
}

// What the maps contain is the one rule for who is here, and nothing else: who may come by which
// interface, and which pairs may talk.
func TestImage(t *testing.T) {
	num := counter{}
	neighbour := admitted(5, "aws1", news)
	neighbour.Endpoint, neighbour.Node = "neighbour", "w2"
	im := imageHere(t, num, []endpoint{hosted(7, admitted(2, "aws1", svc)), hosted(8, admitted(3, "aws1", web))},
		[]fabric.Admission{admitted(4, "gcp1", news), neighbour}, documents())
	must.MapLen(t, 2, im.endpoints)
	must.Eq(t, netip.AddrFrom4([4]byte{100, 64, 0, 2}), im.endpoints[7].IPv4)
	peer := func(last byte) bpf.Peer { return im.peers[netip.AddrFrom4([4]byte{100, 64, 0, last})] }
	must.Eq(t, 7, peer(2).Interface)
	must.True(t, peer(4).Ways)
	must.Eq(t, []uint32{beyond}, im.links)
	for _, mark := range im.ways[relation{0, peer(4).Group}] {
		must.Eq(t, marks[p1], mark)
	}
	must.Eq(t, bpf.Peer{}, peer(5)) // the link to the zone's nodes is not up
	visitors := im.externals[externalKey{underlay, netip.MustParsePrefix("192.0.2.0/24")}].Identity
	must.NotEq(t, 0, visitors)
	rules := func(port uint16, contract string) []bpf.Rule {
		return []bpf.Rule{{Protocol: uint8(fabric.TCP), From: port, To: port, Contract: num["contract app/"+contract]}}
	}
	must.Eq(t, map[bpf.Pair][]bpf.Rule{
		{Source: peer(3).Identity, Destination: peer(2).Identity}: rules(8080, "frontend"),
		{Source: peer(2).Identity, Destination: peer(4).Identity}: rules(9000, "news-api"),
		{Source: visitors, Destination: peer(3).Identity}:         rules(80, "visit"),
	}, im.pairs)
}

// Without a document, and without the role, there are no rights.
func TestImageWithoutRights(t *testing.T) {
	docs := documents()
	delete(docs, svc)
	delete(docs, web)
	both := []endpoint{hosted(7, admitted(2, "aws1", svc)), hosted(8, admitted(3, "aws1", web))}
	im := imageHere(t, counter{}, both, nil, docs)
	must.MapLen(t, 2, im.endpoints)
	must.MapEmpty(t, im.pairs)
	must.MapEmpty(t, im.externals)
	for i := range both {
		both[i].Admission.Roles = fabric.Roles{}
	}
	im = imageHere(t, counter{}, both, nil, documents())
	must.MapEmpty(t, im.pairs)
}

// An address within the prefixes of several externals has the rights of each.
func TestImageOfNestedExternals(t *testing.T) {
	docs := documents()
	doc := docs[web]
	edge := doc.Responds[0]
	edge.Contract.Name = "admin"
	edge.Rules = []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 22, To: 22}}}} // the map joins equal ports
	edge.Peers = []fabric.Peer{{Name: fabric.Ref{Domain: "app", Name: "desk"}, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")}}}
	doc.Responds = append(doc.Responds[:1:1], edge)
	docs[web] = doc
	a := admitted(3, "aws1", web)
	a.Roles.Respond = append(a.Roles.Respond, edge.Contract)
	im := imageHere(t, counter{}, []endpoint{hosted(8, a)}, nil, docs)
	must.MapLen(t, 6, im.externals) // by the underlay, from the node, and nobody's by the link; nobody calls the nested one
	to := im.endpoints[8].Identity
	desk := im.externals[externalKey{underlay, netip.MustParsePrefix("192.0.2.7/32")}].Identity
	wide := im.externals[externalKey{underlay, netip.MustParsePrefix("192.0.2.0/24")}].Identity
	must.Len(t, 2, im.pairs[bpf.Pair{Source: desk, Destination: to}])
	must.Len(t, 1, im.pairs[bpf.Pair{Source: wide, Destination: to}])
}

// The node's firewall lets out by wide prefixes what is not reserved, and of that what is listed.
func TestEgressOf(t *testing.T) {
	world, desk, far := fabric.Ref{Domain: "app", Name: "world"}, fabric.Ref{Domain: "app", Name: "desk"}, fabric.Ref{Domain: "app", Name: "far"}
	prefix := netip.MustParsePrefix
	rules := func(port uint16) []fabric.Rule {
		return []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: port, To: port}}}}
	}
	graph := &fabric.Graph{Domains: map[string]*fabric.Domain{"app": {
		Name: "app", Services: []fabric.Service{{Name: "web"}},
		Externals: []fabric.External{
			{Name: "world", Exit: fabric.ExitNode, Prefixes: []netip.Prefix{prefix("0.0.0.0/0")}},
			{Name: "desk", Exit: fabric.ExitNode, Prefixes: []netip.Prefix{prefix("192.0.2.5/32")}},
			{Name: "far", Prefixes: []netip.Prefix{prefix("198.51.100.0/24")}},
		},
		Contracts: []fabric.Contract{
			{Name: "all", Originators: []fabric.Ref{web}, Responders: []fabric.Ref{world}, Rules: rules(443)},
			{Name: "one", Originators: []fabric.Ref{web}, Responders: []fabric.Ref{desk}, Rules: rules(22)},
			{Name: "other", Originators: []fabric.Ref{web}, Responders: []fabric.Ref{far}, Rules: rules(80)},
		},
	}}, Bindings: []fabric.Binding{{Domain: "app", Outside: []fabric.OutsideGrants{{Prefixes: []netip.Prefix{prefix("0.0.0.0/0"), prefix("192.0.2.5/32")}}}}}}
	doc := fabric.Documents(graph)[0]
	a := admitted(2, here.Zone, web)
	a.Roles = doc.Roles()
	known := fabric.Outside{Ranges: []netip.Prefix{prefix("100.64.0.0/10")}, Reserved: []netip.Prefix{prefix("192.0.2.5/32"), prefix("192.0.2.6/32")}}
	list, withheld := egressOf(desired.ForWorkload(here, twoZones(), []fabric.Admission{a}, map[fabric.Ref]fabric.Document{web: doc}, known))
	entry := func(to string, port uint16) firewall.Egress {
		return firewall.Egress{Endpoint: a.IPv4, Prefix: prefix(to), Protocol: fabric.TCP, Ports: fabric.PortRange{From: port, To: port}}
	}
	for _, e := range []firewall.Egress{entry("0.0.0.0/0", 443), entry("192.0.2.5/32", 22), entry("192.0.2.5/32", 443), entry("198.51.100.0/24", 443)} {
		must.True(t, slices.Contains(list, e), must.Sprint(e))
	}
	must.False(t, slices.Contains(list, entry("198.51.100.0/24", 80))) // by the zone
	for _, p := range []string{"100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "192.0.2.6/32"} {
		must.True(t, slices.Contains(withheld, prefix(p)), must.Sprint(prefix(p)))
	}
	must.False(t, slices.Contains(withheld, prefix("198.51.100.0/24")) || slices.Contains(withheld, prefix("192.0.2.5/32")))
	for _, e := range list {
		must.False(t, slices.Contains(withheld, e.Prefix), must.Sprint(e))
	}
}
