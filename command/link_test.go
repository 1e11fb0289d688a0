// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

func TestLinkTexts(t *testing.T) {
	now := time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)
	up := api.WayFound{State: api.WayUp, RTT: 1234 * time.Microsecond}
	end := func(zone string, down bool) api.TunnelEnd {
		e := api.TunnelEnd{
			Node: fabric.NodeID{Zone: zone, Name: "p1"}, Reported: now.Add(-2 * time.Second),
			Link: &api.LinkStatus{Device: "kernel", Endpoint: "192.0.2.1:51821", LastHandshake: now.Add(-time.Minute)}, Way: &api.WayStatus{IPv4: up, IPv6: up},
		}
		if down {
			e.Way.IPv6 = api.WayFound{State: api.WayDown}
		}
		return e
	}
	ends := [2]fabric.LinkEnd{{Zone: "aws1"}, {Zone: "gcp1", Node: "p1"}}
	list := api.LinkList{Links: []api.LinkInfo{
		{LinkRule: fabric.LinkRule{Name: "fast", Between: ends, Labels: []string{"encrypted", "low-cost"}, Cost: 10, Endpoints: "private", MTU: 1400, Pos: fabric.Position{File: "l.sif.hcl", Line: 1, Column: 6}},
			Tunnels:  []api.Tunnel{{Ends: [2]api.TunnelEnd{end("aws1", false), end("gcp1", false)}}, {Ends: [2]api.TunnelEnd{end("aws1", false), end("gcp1", true)}}},
			Warnings: []string{"something"}},
		{LinkRule: fabric.LinkRule{Name: "spare", Between: ends, Cost: 100, Disabled: true}},
		{LinkRule: fabric.ImplicitLink, Tunnels: []api.Tunnel{{}}},
	}}
	must.Eq(t, `Link       Between           Labels              Cost  Endpoints  Tunnels
fast       aws1 and gcp1/p1  encrypted,low-cost  10    private    1 of 2 up
spare      aws1 and gcp1/p1  -                   100   default    disabled
(implied)  * and *           -                   100   default    0 of 1 up

Warning: something
`, formatLinks(list))
	text := linkText(list.Links[0], now)
	must.StrContains(t, text, "MTU        1400\n")
	must.StrContains(t, text, "Declared   l.sif.hcl:1:6\n")
	must.StrContains(t, text, "gcp1/p1  aws1/p1  192.0.2.1:51821  kernel        1m0s ago  up, 1.23ms  down        2s ago\n")
	must.StrContains(t, linkText(list.Links[2], now), "MTU        that of the processors\n")
}
