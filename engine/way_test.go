// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/ovs/ovstest"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
)

var ownProcessor = fabric.NodeID{Zone: "aws1", Name: "p1"}

// twoEach is a fabric of two zones with two processors each, and of one beyond them that no tunnel
// leads to from aws1.
func twoEach() (nodes []fabric.Node, tunnels []desired.Tunnel) {
	nodes = probed()
	for _, zone := range []string{"aws1", "gcp1"} {
		for _, name := range []string{"p1", "p2"} {
			nodes = append(nodes, fabric.Node{Zone: zone, Name: name, Kind: fabric.KindProcessor})
		}
	}
	nodes = append(nodes, fabric.Node{Zone: "azure1", Name: "p1", Kind: fabric.KindProcessor})
	tunnel := func(a, b fabric.NodeID, link string, cost int) {
		tunnels = append(tunnels, desired.Tunnel{A: a, B: b, Link: link, Cost: cost, Labels: []string{link}})
	}
	for _, a := range []string{"p1", "p2"} {
		for _, b := range []string{"p1", "p2"} {
			tunnel(fabric.NodeID{Zone: "aws1", Name: a}, fabric.NodeID{Zone: "gcp1", Name: b}, "private", 10)
			tunnel(fabric.NodeID{Zone: "aws1", Name: a}, fabric.NodeID{Zone: "gcp1", Name: b}, "public", 20)
		}
		tunnel(fabric.NodeID{Zone: "gcp1", Name: a}, fabric.NodeID{Zone: "azure1", Name: "p1"}, "public", 20)
	}
	return nodes, tunnels
}

// wished is what the switch of aws1/p1 must contain in a fabric of twoEach.
func wished(states ...desired.State) desired.Processor {
	nodes, tunnels := twoEach()
	g := graph()
	g.Domains["app"].Contracts[1].Path = fabric.Path{Require: []string{"public"}}
	live := []fabric.Admission{instance(1, "aws1", "w1", svc), instance(2, "gcp1", "w1", news), instance(3, "gcp1", "w1", web), instance(4, "azure1", "w1", news)}
	return desired.ForProcessor(ownProcessor, desired.NewTopology(nodes, tunnels, states), live, documents(g), fabric.Outside{})
}

// allHops gives each tunnel of aws1/p1 a port.
func allHops() map[desired.Hop]ovs.Port {
	ports := map[desired.Hop]ovs.Port{zoneHop: {No: 1}}
	_, tunnels := twoEach()
	for _, t := range tunnels {
		if t.A == ownProcessor {
			ports[desired.Hop{Processor: t.B, Link: t.Link}] = ovs.Port{No: uint32(len(ports) + 1)}
		}
	}
	return ports
}

// leads says to which port a switch with these ways leads, as its tables do.
func leads(s ovs.State, from, to, class uint16, bucket int) uint32 {
	all := uint32(0)
	for _, w := range s.Ways {
		if w.From == from && w.To == to && w.Class == class {
			switch int(w.Bucket) {
			case bucket:
				return w.Port
			case int(ovs.AllBuckets):
				all = w.Port
			}
		}
	}
	return all
}

// What leads from a processor is what desired says, in ports.
func TestWaysInPorts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var states []desired.State
		nodes, tunnels := twoEach()
		for _, n := range nodes {
			if n.Boundary() && rapid.IntRange(0, 3).Draw(t, "has a state") == 0 {
				s := desired.State{Processor: n.ID(), Number: 1, Ready: rapid.Bool().Draw(t, "ready")}
				for _, x := range tunnels {
					if x.A == n.ID() && rapid.Bool().Draw(t, "silent") {
						s.Silent = append(s.Silent, desired.Hop{Processor: x.B, Link: x.Link})
					}
				}
				states = append(states, s)
			}
		}
		p := wished(states...)
		num := counter{}
		want, err := numbered(p, num)
		must.NoError(t, err)
		b := &bridge{ports: allHops(), wanted: want, names: num}
		state := b.state()
		for _, w := range want.Ways {
			for bucket, hop := range w.Spread.Next {
				port := uint32(0) // nothing leads there, or the endpoint's own port
				if !hop.IsZero() {
					port = b.ports[hop].No
					must.Positive(t, port, must.Sprint(hop))
				}
				must.Eq(t, port, leads(state, w.From, w.To, w.Class, bucket))
			}
		}
		dump := dumpOf(state, b.ports, b.describes())
		held := map[string]map[string]string{}
		for _, w := range dump.Ways {
			held[w.From+" "+w.To+" "+w.Path] = w.Next
		}
		for _, w := range p.Ways {
			next := desired.Shares(w.Next)
			name := w.From.String() + " " + w.To.String() + " " + string(w.Class)
			if len(next) > 0 {
				must.Eq(t, next, held[name])
			}
			delete(held, name)
		}
		must.MapEmpty(t, held)
		must.SliceEmpty(t, dump.Problems)
		vias := map[string]bool{}
		for _, peer := range dump.Peers {
			vias[peer.Via] = true
		}
		for _, e := range p.Endpoints {
			must.True(t, vias[e.Via()])
		}
		byNumber := map[uint64]ovs.Endpoint{}
		for _, e := range state.Endpoints {
			byNumber[e.ID] = e
			must.Positive(t, e.Group)
		}
		for _, e := range p.Endpoints {
			have := byNumber[endpointNumber(e.Endpoint)]
			must.Eq(t, want.Groups[e.Group], have.Group)
			must.Eq(t, e.Number, have.Number)
			if e.Zone == ownProcessor.Zone {
				must.Eq(t, []uint32{1}, have.SourcePorts)
				must.Eq(t, 1, have.OutPort)
				continue
			}
			must.Eq(t, 0, have.OutPort)
			must.SliceLen(t, len(p.Sources[e.Zone]), have.SourcePorts)
			// A router's report gets there, too, if any way does.
			must.Eq(t, leads(state, want.Groups[desired.Group{Zone: ownProcessor.Zone}], have.Group, 0, 0) != 0, leads(state, 0, have.Group, 0, 0) != 0)
		}
		classes := map[uint16]bool{}
		for _, e := range state.Entries {
			classes[e.Class] = true
		}
		must.Eq(t, map[uint16]bool{0: true, want.Classes["require public"]: true}, classes)
	})
}

// A bucket that comes to a processor counts as moved for ten seconds, and all do that it has when
// it starts, or when its switch does.
func TestMoves(t *testing.T) {
	var m moves
	now := time.Unix(1000, 0)
	carries := func(buckets ...int) []SwitchWays {
		w := SwitchWays{From: 1, To: 2, Class: 3, Spread: desired.Spread{From: desired.Group{Zone: "a"}, To: desired.Group{Zone: "b"}}}
		for _, bucket := range buckets {
			w.Spread.Carried[bucket] = true
		}
		return []SwitchWays{w}
	}
	moved := func(buckets ...ovs.Bucket) (list []ovs.Course) {
		for _, bucket := range buckets {
			list = append(list, ovs.Course{From: 1, To: 2, Class: 3, Bucket: bucket})
		}
		return list
	}
	must.Eq(t, moved(4, 5), m.note(carries(4, 5), now))
	must.False(t, m.over(now.Add(movedFor-1)))
	now = now.Add(5 * time.Second)
	must.Eq(t, moved(4, 6), m.note(carries(4, 6), now))
	now = now.Add(5 * time.Second)
	must.True(t, m.over(now))
	must.Eq(t, moved(6), m.note(carries(4, 6), now))
	must.False(t, m.over(now))
	must.Eq(t, moved(5, 6), m.note(carries(4, 5, 6), now))
	now = now.Add(movedFor)
	must.Eq(t, moved(), m.note(carries(4, 5, 6), now))
	must.False(t, m.over(now))
	m.forget()
	must.Eq(t, moved(4, 5, 6), m.note(carries(4, 5, 6), now))
	must.Eq(t, moved(), m.note(nil, now))
	var all []int
	for bucket := range desired.Buckets {
		all = append(all, bucket)
	}
	must.Eq(t, moved(ovs.AllBuckets), m.note(carries(all...), now))
}

// A name keeps its number when others come, unless one before it has the same.
func TestShortNumbers(t *testing.T) {
	names := map[string]int{}
	for i := range 3000 {
		names[fmt.Sprintf("zone-%d", i)] = i
	}
	numbers := shortNumbers(names)
	seen := map[uint16]bool{}
	for _, n := range numbers {
		must.Positive(t, n)
		seen[n] = true
	}
	must.MapLen(t, 3000, seen)
	must.Eq(t, numbers, shortNumbers(names))
	names["another"] = 3000
	more, changed := shortNumbers(names), 0
	for i, n := range numbers {
		if more[i] != n {
			changed++
		}
	}
	must.LessEq(t, 3, changed)
}

// A switch takes the ways of a fabric with several processors, and what moved ends by itself.
func TestBridgeWithWays(t *testing.T) {
	instance := ovstest.Start(t)
	sw := ovs.NewSwitch(instance.Config)
	must.NoError(t, sw.Create(t.Context()))
	b := newBridge(sw, fixedNames{}, hclog.NewNullLogger())
	now := time.Unix(1000, 0)
	b.now = func() time.Time { return now }
	for hop, port := range allHops() {
		must.NoError(t, b.setPort(hop, port))
	}
	program := func(states ...desired.State) ovs.State {
		t.Helper()
		want, err := numbered(wished(states...), counter{})
		must.NoError(t, err)
		must.NoError(t, b.Program(want))
		have, diff, _, _, err := b.inspect(t.Context())
		must.NoError(t, err)
		must.True(t, diff.Empty(), must.Sprintf("%v", diff))
		return have
	}
	must.SliceNotEmpty(t, program().Moved)
	now = now.Add(movedFor)
	repaired, err := b.Reconcile()
	must.NoError(t, err)
	must.SliceEmpty(t, repaired)
	have := program()
	must.SliceEmpty(t, have.Moved)
	must.SliceNotEmpty(t, have.Ways)
	// The other processor of the zone dies.
	have = program(desired.State{Processor: fabric.NodeID{Zone: "aws1", Name: "p2"}, Number: 1})
	must.SliceNotEmpty(t, have.Moved)
	now = now.Add(movedFor)
	must.SliceEmpty(t, program(desired.State{Processor: fabric.NodeID{Zone: "aws1", Name: "p2"}, Number: 1}).Moved)
	instance.RestartSwitch()
	<-b.conn.Done()
	_, err = b.Reconcile()
	must.NoError(t, err)
	have, _, _, _, err = b.inspect(t.Context())
	must.NoError(t, err)
	must.SliceNotEmpty(t, have.Moved)
}
