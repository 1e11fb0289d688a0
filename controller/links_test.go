// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

func linkOf(name, a, b string, labels ...string) fabric.LinkRule {
	return fabric.LinkRule{Name: name, Between: [2]fabric.LinkEnd{{Zone: a}, {Zone: b}}, Labels: labels, Cost: fabric.DefaultLinkCost, Pos: fabric.Position{File: "l", Line: 2, Column: 6}}
}

// What a link names and is not there is said with its place, and the nearest name.
func TestVacantEnds(t *testing.T) {
	processors := []fabric.NodeID{{Zone: "aws1", Name: "p1"}, {Zone: "gcp1", Name: "p1"}}
	must.SliceEmpty(t, vacant([]fabric.LinkRule{linkOf("l", "aws1", "gcp1"), linkOf("m", "*", "*")}, processors))
	must.Eq(t, []string{`l:2:6: link l ends at zone gcp, which has not registered or has no switch: nothing is linked there yet; did you mean "gcp1"?`},
		vacant([]fabric.LinkRule{linkOf("l", "aws1", "gcp")}, processors))
	single := linkOf("l", "aws1", "gcp1")
	single.Between[1].Node = "p9"
	must.Eq(t, []string{`l:2:6: link l ends at processor gcp1/p9, which has not registered or has no switch: nothing is linked there yet; did you mean "gcp1/p1"?`},
		vacant([]fabric.LinkRule{single}, processors))
}

// The zones in which a contract has endpoints are compared, whoever plans it.
func TestApart(t *testing.T) {
	web, db := fabric.Ref{Domain: "app", Name: "web"}, fabric.Ref{Domain: "app", Name: "db"}
	zones := map[fabric.Ref]map[string]bool{web: {"a": true, "b": true}, db: {"b": true, "c": true}}
	k := &fabric.Contract{Originators: []fabric.Ref{web}, Responders: []fabric.Ref{db}}
	must.Eq(t, []zonePair{{"a", "b"}, {"a", "c"}, {"b", "c"}}, apart(k, zones))
}

func TestPathsConcerned(t *testing.T) {
	_, some := pathsConcerned(api.GraphRequest{RemoveBindings: []string{"x"}})
	must.False(t, some)
	domains, some := pathsConcerned(api.GraphRequest{Domains: map[string]*fabric.Domain{"b": nil, "a": nil}})
	must.True(t, some)
	must.Eq(t, []string{"a", "b"}, domains)
	domains, some = pathsConcerned(api.GraphRequest{Domains: map[string]*fabric.Domain{"b": nil}, RemoveLinks: []string{"l"}})
	must.True(t, some)
	must.SliceEmpty(t, domains)
}

// An end's report is found by peer and link.
func TestTunnelEnd(t *testing.T) {
	near, far := fabric.NodeID{Zone: "a", Name: "p1"}, fabric.NodeID{Zone: "b", Name: "p1"}
	up := api.WayFound{State: api.WayUp}
	said := api.NodeStatus{
		Links: []api.LinkStatus{{Peer: "b/p1", Link: "fast", Endpoint: "1"}, {Peer: "b/p1", Endpoint: "2"}},
		Ways:  []api.WayStatus{{To: "b/p1#fast", IPv4: up, IPv6: up}, {To: "b/p1", IPv4: up, IPv6: api.WayFound{State: api.WayDown}}},
	}
	fast, plain, slow := tunnelEnd(said, near, far, "fast"), tunnelEnd(said, near, far, ""), tunnelEnd(said, near, far, "slow")
	must.Eq(t, "1", fast.Link.Endpoint)
	must.True(t, fast.Up())
	must.Eq(t, "2", plain.Link.Endpoint)
	must.False(t, plain.Up())
	must.Nil(t, slow.Link)
	must.False(t, slow.Up())
}
