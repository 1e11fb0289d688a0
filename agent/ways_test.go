// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
)

// zones are a workload node and two processors in aws1, and one processor in gcp1 and eu1 each.
var zones = func() (list []fabric.Node) {
	for _, id := range []fabric.NodeID{{Zone: "aws1", Name: "p1"}, {Zone: "aws1", Name: "p2"}, {Zone: "gcp1", Name: "p1"}, {Zone: "eu1", Name: "p1"}} {
		list = append(list, fabric.Node{Zone: id.Zone, Name: id.Name, Kind: fabric.KindProcessor})
	}
	return append(list, fabric.Node{Zone: here.Zone, Name: here.Name, Kind: fabric.KindWorkload})
}()

var p2 = fabric.NodeID{Zone: "aws1", Name: "p2"}

// imageOfWays is the image of a node with an endpoint and one counterpart in gcp1.
func imageOfWays(t *testing.T, num numbers, ways *wayNumbers, states ...desired.State) (image, desired.Workload) {
	l := layout{num: num, underlay: underlay, zone: here.Zone, own: map[string]uint32{}, ways: ways,
		links: map[desired.Way]uint32{desired.Through(p1): beyond, desired.Through(p2): beyond + 1, desired.ZoneLink: 9},
		marks: map[fabric.NodeID]uint32{p1: 0x100, p2: 0x101}}
	mine, its := admitted(2, "aws1", svc), admitted(4, "gcp1", news)
	l.own[mine.Endpoint] = 7
	w := desired.ForWorkload(here, desired.NewTopology(zones, desired.FullMesh(zones), states), []fabric.Admission{mine, its}, documents(), fabric.Outside{})
	im, err := l.image(w)
	must.NoError(t, err)
	return im, w
}

// With several processors, the maps have the way of each bucket to the groups of counterparts.
func TestImageOfWays(t *testing.T) {
	var numbers wayNumbers
	num := registry{}
	im, w := imageOfWays(t, num, &numbers)
	far := im.peers[netip.AddrFrom4([4]byte{100, 64, 0, 4})]
	must.True(t, far.Ways)
	must.Zero(t, far.Interface)
	must.Eq(t, 7, im.peers[netip.AddrFrom4([4]byte{100, 64, 0, 2})].Interface)
	must.Eq(t, []uint32{beyond, beyond + 1}, im.links)
	must.Len(t, 1, w.Ways)
	marks := im.ways[relation{0, far.Group}]
	count := map[uint32]int{}
	for bucket, mark := range marks {
		must.Eq(t, map[fabric.NodeID]uint32{p1: 0x100, p2: 0x101}[w.Ways[0].Next[bucket].Processor], mark)
		count[mark]++
	}
	must.Eq(t, map[uint32]int{0x100: 128, 0x101: 128}, count)
	for _, e := range w.Endpoints {
		number := im.endpoints[7].Number
		if e.Way == desired.ByWays {
			number = far.Number
		}
		must.Eq(t, desired.Number(e.Endpoint), number)
	}
	// They read back as the words of what is wanted.
	d := dumpOf(im, num, numbers.names(map[fabric.NodeID]uint32{p1: 0x100, p2: 0x101}), map[desired.Way]uint32{desired.Through(p1): beyond, desired.Through(p2): beyond + 1}, underlay)
	must.SliceEmpty(t, d.Problems)
	must.Eq(t, []api.DumpWay{{From: "aws1", To: "gcp1", Next: desired.Shares(w.Ways[0].Next)}}, d.Ways)
	for _, e := range w.Endpoints {
		must.True(t, slices.Contains(d.Peers, api.DumpPeer{Address: e.IPv4, Identity: e.Party.String(), Via: e.Via()}))
	}
	unknown := dumpOf(im, num, wayNames{}, nil, underlay)
	must.SliceContains(t, unknown.Problems, fmt.Sprintf("the maps contain ways of class 0 to group %d, which this node never assigned", far.Group))
	must.SliceContains(t, unknown.Problems, fmt.Sprintf("packets of other zones are let in by interface %d, which is no link", beyond))

	im, _ = imageOfWays(t, counter{}, nil, desired.State{Processor: p1, Number: 1, Ready: true, Draining: true})
	for _, mark := range im.ways[relation{0, far.Group}] {
		must.Eq(t, 0x101, mark)
	}
}

// Numbers of groups and classes stay while they are needed, and over a restart.
func TestNumbersOfWaysStay(t *testing.T) {
	group := func(zones ...string) (w desired.Workload) {
		for i, z := range zones {
			class := desired.Class("require " + z)
			a := fabric.Admission{IPv4: netip.AddrFrom4([4]byte{100, 64, 9, byte(i)})}
			w.Endpoints = append(w.Endpoints, desired.Endpoint{Admission: a, Way: desired.ByWays, Group: desired.Group{Zone: z}})
			w.Rules = append(w.Rules, desired.Rule{Contract: fabric.Ref{Domain: "d", Name: z}, Class: class})
			for _, c := range []desired.Class{"", class} {
				w.Ways = append(w.Ways, desired.Spread{To: desired.Group{Zone: z}, Class: c})
			}
		}
		return w
	}
	var n wayNumbers
	n.assign(group("a", "b", "c"))
	before := n
	must.MapLen(t, 3, before.groups)
	must.MapLen(t, 3, before.classes)
	n.assign(group("b", "c", "d"))
	for _, z := range []string{"b", "c"} {
		must.Eq(t, before.groups[desired.Group{Zone: z}], n.groups[desired.Group{Zone: z}])
		must.Eq(t, before.classes[desired.Class("require "+z)], n.classes[desired.Class("require "+z)])
	}
	for _, number := range before.groups {
		must.NotEq(t, number, n.groups[desired.Group{Zone: "d"}])
	}

	num, peers, classes := counter{}, []bpf.Peer{}, map[uint32]uint16{}
	w := group("b", "c", "d")
	for i, e := range w.Endpoints {
		peers = append(peers, bpf.Peer{Address: e.IPv4, Ways: true, Group: n.groups[e.Group]})
		contract, err := num.Of(desired.ContractKey{Contract: w.Rules[i].Contract}.String())
		must.NoError(t, err)
		classes[contract] = n.classes[w.Rules[i].Class]
	}
	var next wayNumbers
	next.resume(w, num, peers, classes)
	next.assign(w)
	must.Eq(t, n, next)
}

// At no time while groups change does a peer have no way that it had, and will have.
func TestWaysAreThereBeforePeers(t *testing.T) {
	with := func(group uint16, mark uint32) image {
		im := newImage()
		for i := range byte(3) {
			a := netip.AddrFrom4([4]byte{100, 64, 9, i})
			im.peers[a] = bpf.Peer{Address: a, Identity: 5, Ways: true, Group: group, Number: i}
		}
		marks := [desired.Buckets]uint32{}
		for i := range marks {
			marks[i] = mark
		}
		im.ways[relation{0, group}] = marks
		im.links = []uint32{mark}
		return im
	}
	k := newMemory()
	_, err := write(k, newImage(), with(1, 0x100))
	must.NoError(t, err)
	k.changed = func() {
		for a, p := range k.peers {
			marks, is := k.image.ways[relation{0, p.Group}]
			must.True(t, is && marks[p.Number] != 0, must.Sprint(fmt.Sprint(a, " has no way")))
		}
	}
	_, err = write(k, with(1, 0x100), with(2, 0x101))
	must.NoError(t, err)
	must.Eq(t, with(2, 0x101).ways, k.image.ways)
	must.True(t, maps.Equal(with(2, 0x101).peers, k.peers))
}
