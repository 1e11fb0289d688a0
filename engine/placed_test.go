// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/connlimit"
)

// What a bridge has its switch hold does not depend on what it wanted before.
func TestPlacedIsMadeFromWhatIsWanted(t *testing.T) {
	other := fabric.NodeID{Zone: "gcp1", Name: "p1"}
	endpoint := rapid.Custom(func(t *rapid.T) SwitchEndpoint {
		n := byte(rapid.IntRange(0, 3).Draw(t, "address"))
		e := SwitchEndpoint{IPv4: netip.AddrFrom4([4]byte{10, 0, 0, n}), IPv6: netip.AddrFrom16([16]byte{0xfd, 15: n}), Class: uint32(n) + 1}
		e.Way = rapid.SampledFrom([]desired.Way{desired.ZoneLink, desired.Through(other), desired.ByWays}).Draw(t, "way")
		if e.Way == desired.ByWays {
			e.Group, e.Number = 1, n
			e.Sources = []desired.Hop{{Processor: other, Link: rapid.SampledFrom([]string{"", "a"}).Draw(t, "link")}}
		}
		return e
	})
	rapid.Check(t, func(t *rapid.T) {
		b := &bridge{ports: map[desired.Hop]ovs.Port{zoneHop: {No: 1}, outsidePeer: {No: 9}}}
		for range 6 {
			if rapid.IntRange(0, 3).Draw(t, "port comes") == 0 {
				must.NoError(t, b.setPort(desired.Hop{Processor: other}, ovs.Port{No: uint32(rapid.IntRange(2, 3).Draw(t, "port"))}))
			}
			b.wanted = SwitchState{Endpoints: map[string]SwitchEndpoint{}, Probes: map[fabric.NodeID]SwitchEndpoint{}, Externals: map[netip.Prefix]uint32{}}
			for i := range 5 {
				if rapid.Bool().Draw(t, "endpoint there") {
					b.wanted.Endpoints[fmt.Sprintf("endpoint-%d", i)] = endpoint.Draw(t, "endpoint")
				}
				if rapid.IntRange(0, 3).Draw(t, "probe there") == 0 {
					b.wanted.Probes[fabric.NodeID{Zone: "gcp1", Name: fmt.Sprint(i)}] = endpoint.Draw(t, "probe")
				}
				if rapid.IntRange(0, 3).Draw(t, "external there") == 0 {
					b.wanted.Externals[netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32)] = uint32(i)
				}
			}
			have := b.state()
			made := (&bridge{ports: b.ports, wanted: b.wanted}).state().Endpoints
			must.Eq(t, append([]ovs.Endpoint{}, made...), append([]ovs.Endpoint{}, have.Endpoints...))
			must.True(t, slices.IsSortedFunc(have.Endpoints, func(a, b ovs.Endpoint) int {
				if a.ID < b.ID {
					return -1
				}
				return 1
			}))
		}
	})
}

// The switch limits what endpoints of the own zone open each, and what all of a zone open together.
func TestWhatIsLimited(t *testing.T) {
	groups := map[desired.Group]uint16{{Zone: "gcp1"}: 7, {Zone: "aws1"}: 5, {Zone: "aws1", Without: "p2"}: 6}
	own, far, probe := SwitchEndpoint{Class: 1, Way: desired.ZoneLink}, SwitchEndpoint{Class: 1, Way: desired.ByWays}, SwitchEndpoint{Class: ovs.ProbeClass, Way: desired.ZoneLink}
	far.Sources = []desired.Hop{{Processor: fabric.NodeID{Zone: "gcp1", Name: "p1"}}}
	b := &bridge{ports: map[desired.Hop]ovs.Port{zoneHop: {No: 1}, far.Sources[0]: {No: 2}}, wanted: SwitchState{Groups: groups}}
	for e, limited := range map[*SwitchEndpoint]bool{&own: true, &far: false, &probe: false} {
		must.Eq(t, limited, b.place("web", *e).Limited)
	}
	gates := b.gates()
	slices.SortFunc(gates, func(a, b ovs.Gate) int { return int(a.Group) - int(b.Group) })
	must.Eq(t, []ovs.Gate{{Group: 0, Zone: 1}, {Group: 5, Zone: 2}, {Group: 6, Zone: 2}, {Group: 7, Zone: 3}}, gates)

	limits := connlimit.Default()
	limits.ZoneNewPerSecond = 0
	must.Eq(t, ovs.Rates{Endpoint: ovs.Rate{PerSecond: 10_000, Burst: 50_000}}, rates(limits))
}
