// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/inspect/verify"
)

// Name makes registry a registry that can be asked both ways.
func (c registry) Name(n uint32) string {
	for name, have := range c {
		if have == n {
			return name
		}
	}
	return ""
}

// What the agent writes into its maps is what `sif verify` expects there, on any graph, and nothing
// less than all of it.
func TestWhatIsProgrammedVerifies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(5000, 0)
		f, local, counterparts := anyFabric(t, now)
		docs := verify.Documents(f.Graph, now)
		num := registry{}
		l := layout{num: num, underlay: 2, own: map[string]uint32{}, links: map[desired.Way]uint32{desired.ZoneLink: 3, desired.Through(fabric.NodeID{Zone: "z1", Name: "p1"}): 4},
			zone: "z1", ways: &wayNumbers{}, marks: map[fabric.NodeID]uint32{{Zone: "z1", Name: "p1"}: 0x100}}
		// The engine announces counterparts only.
		var known []fabric.Admission
		for _, own := range local {
			l.own[own.ID] = uint32(own.HostIndex)
			known = append(known, own.Admission)
		}
		for _, other := range counterparts {
			for _, own := range local {
				id, doc := own.Admission.Identity(), docs[own.Admission.Service]
				if len(fabric.Grants(id, doc, other.Identity()))+len(fabric.GrantsTo(id, doc, other.Identity())) > 0 {
					known = append(known, other)
					break
				}
			}
		}
		im, err := l.image(desired.ForWorkload(fabric.NodeID{Zone: "z1", Name: "w1"}, verify.Topology(f), known, docs, fabric.Outside{}))
		must.NoError(t, err)
		dump := func() api.Dump {
			d := dumpOf(im, num, l.ways.names(l.marks), l.links, 2)
			d.Node, d.Sequence, d.Root = fabric.NodeID{Zone: "z1", Name: "w1"}, f.Pointer.Sequence, f.Pointer.Root
			return d
		}
		differences := func() (list []verify.Difference) {
			f.Dumps = map[fabric.NodeID]api.Dump{{Zone: "z1", Name: "w1"}: dump()}
			for _, d := range verify.Compare(f).Differences {
				if d.Node == "z1/w1" {
					list = append(list, d)
				}
			}
			return list
		}
		must.SliceEmpty(t, differences())
		for i := range f.Status.Nodes {
			f.Status.Nodes[i].Sequence, f.Status.Nodes[i].Root = f.Pointer.Sequence, f.Pointer.Root
		}
		digest := verify.Digests(f)[fabric.NodeID{Zone: "z1", Name: "w1"}]
		must.Eq(t, digest, dump().Digest())
		for pair := range im.pairs {
			delete(im.pairs, pair)
			must.SliceNotEmpty(t, differences())
			must.NotEq(t, digest, dump().Digest())
			break
		}
		for addr := range im.peers {
			delete(im.peers, addr)
			must.SliceNotEmpty(t, differences())
			must.NotEq(t, digest, dump().Digest())
			break
		}
	})
}

// anyFabric draws a graph and endpoints: on z1/w1 those in local, elsewhere the counterparts.
func anyFabric(t *rapid.T, now time.Time) (f verify.Fabric, local []endpoint, counterparts []fabric.Admission) {
	services := []fabric.Ref{refOf("a/s"), refOf("a/t"), refOf("b/u")}
	names := append([]fabric.Ref{refOf("a/x"), refOf("a/y")}, services...)
	side := func(label string) []fabric.Ref {
		return rapid.SliceOfNDistinct(rapid.SampledFrom(names), 1, 2, rapid.ID).Draw(t, label)
	}
	rule := rapid.Custom(func(t *rapid.T) fabric.Rule {
		from := rapid.Uint16Range(1, 20).Draw(t, "from")
		return fabric.Rule{Protocol: rapid.SampledFrom(fabric.Protocols).Draw(t, "protocol"), Ports: []fabric.PortRange{{From: from, To: rapid.Uint16Range(from, 20).Draw(t, "to")}}}
	})
	mode := rapid.SampledFrom([]fabric.Mode{fabric.ModeEnforce, fabric.ModeAudit})
	a := &fabric.Domain{Name: "a", Services: []fabric.Service{{Name: "s"}, {Name: "t"}}, Mode: rapid.SampledFrom([]fabric.Mode{"", "", "", fabric.ModeAudit}).Draw(t, "domain"),
		Externals: []fabric.External{{Name: "x", Prefixes: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}, {Name: "y", Prefixes: []netip.Prefix{netip.MustParsePrefix("203.0.113.8/29"), netip.MustParsePrefix("2001:db8::/32")}}}}
	for i := range rapid.IntRange(0, 6).Draw(t, "contracts") {
		c := fabric.Contract{Name: fmt.Sprintf("c%d", i), Originators: side("originators"), Responders: side("responders"),
			Rules: rapid.SliceOfN(rule, 1, 3).Draw(t, "rules"), Mode: mode.Draw(t, "mode"), Disabled: rapid.IntRange(0, 4).Draw(t, "disabled") == 0}
		if rapid.Bool().Draw(t, "expires") {
			c.Expires = now.Add(time.Duration(rapid.IntRange(-1, 1).Draw(t, "when")) * time.Second)
		}
		a.Contracts = append(a.Contracts, c)
	}
	b := &fabric.Domain{Name: "b", Services: []fabric.Service{{Name: "u"}}}
	if rapid.Bool().Draw(t, "accepts") {
		b.Accepts = []fabric.Accept{{Contract: refOf("a/c0")}, {Contract: refOf("a/c1")}}
	}
	f.Graph, f.Now = &fabric.Graph{Domains: map[string]*fabric.Domain{"a": a, "b": b}}, now
	f.Pointer = fabric.Pointer{Sequence: 1, Root: fabric.Compile(f.Graph).Root}
	nodes := []api.NodeStatus{
		{Zone: "z1", Node: "w1", Kind: fabric.KindWorkload}, {Zone: "z1", Node: "w2", Kind: fabric.KindWorkload},
		{Zone: "z2", Node: "w1", Kind: fabric.KindWorkload}, {Zone: "z1", Node: "p1", Kind: fabric.KindProcessor},
	}
	docs := verify.Documents(f.Graph, now)
	for i := range rapid.IntRange(0, 8).Draw(t, "endpoints") {
		at := rapid.IntRange(0, 2).Draw(t, "node")
		service := rapid.SampledFrom(services).Draw(t, "service")
		roles := docs[service].Roles()
		if rapid.Bool().Draw(t, "fewer roles") {
			roles.Originate = roles.Originate[:len(roles.Originate)/2]
		}
		n := byte(i + 2)
		adm := fabric.Admission{Endpoint: fmt.Sprintf("e%d", i), Zone: nodes[at].Zone, Node: nodes[at].Node, Service: service, Roles: roles,
			IPv4: netip.AddrFrom4([4]byte{100, 64, byte(at), n}), IPv6: netip.AddrFrom16([16]byte{0xfd, 0x5f, 15: n}),
			Checks: []fabric.Check{{Protocol: fabric.TCP, Port: 80}}, Expires: now.Add(time.Hour)}
		nodes[at].Endpoints = append(nodes[at].Endpoints, api.EndpointStatus{Endpoint: adm.Endpoint, Service: service, Roles: roles, IPv4: adm.IPv4, IPv6: adm.IPv6, Expires: adm.Expires, Checks: adm.Checks})
		if at == 0 {
			local = append(local, endpoint{ID: adm.Endpoint, HostIf: "sif" + adm.Endpoint, HostIndex: 10 + i, IPv4: adm.IPv4, IPv6: adm.IPv6, Admission: adm})
		} else {
			counterparts = append(counterparts, adm)
		}
	}
	f.Status.Nodes = nodes
	return f, local, counterparts
}
