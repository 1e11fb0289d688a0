// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import (
	"cmp"
	"fmt"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
)

func zone(name string) Group { return Group{Zone: name} }

func processor(zone string, n int) fabric.NodeID {
	return fabric.NodeID{Zone: zone, Name: fmt.Sprintf("p%d", n)}
}

func meshed(processors int, zones ...string) (nodes []fabric.Node, tunnels []Tunnel) {
	for _, z := range zones {
		nodes = append(nodes, processorsOf(z, processors)...)
	}
	return nodes, FullMesh(nodes)
}

func TestBucketsSpreadPairsEvenly(t *testing.T) {
	for n, pairs := range map[int]int{2: 1000, 3: 4000, 5: 20000} { // chance alone differs by less than 10 %
		nodes, tunnels := meshed(n, "a", "b")
		topology := NewTopology(nodes, tunnels, nil)
		first, last := map[fabric.NodeID]int{}, map[fabric.NodeID]int{}
		for i := range pairs {
			bucket := Bucket(Number(fmt.Sprintf("web-%d", i)), Number(fmt.Sprintf("db-%d", i)))
			r, ok := topology.Route(zone("a"), zone("b"), "", bucket)
			must.True(t, ok)
			first[r.Processors[0]]++
			last[r.Processors[1]]++
		}
		for _, count := range []map[fabric.NodeID]int{first, last} {
			must.MapLen(t, n, count)
			for p, got := range count {
				must.Between(t, pairs/n*9/10, got, pairs/n*11/10, must.Sprintf("%s of %d", p, n))
			}
		}
	}
}

// The way back is the way there, whatever the order of the roster; what dies moves only the buckets
// that it carried, and they come back.
func TestOnlyWhatDiesMoves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, tunnels := meshed(rapid.IntRange(1, 4).Draw(t, "processors"), "a", "b")
		all := NewTopology(nodes, tunnels, nil)
		shuffled := NewTopology(rapid.Permutation(nodes).Draw(t, "roster"), rapid.Permutation(tunnels).Draw(t, "tunnels"), nil)
		var states []State
		if rapid.Bool().Draw(t, "a processor dies") {
			dead := rapid.SampledFrom(nodes).Draw(t, "dead").ID()
			for _, n := range nodes {
				if n.Zone != dead.Zone {
					states = append(states, State{Processor: n.ID(), Number: 1, Ready: true, Silent: []Hop{{Processor: dead}}})
				}
			}
		} else {
			dead := rapid.SampledFrom(tunnels).Draw(t, "dead")
			states = []State{{Processor: dead.B, Number: 1, Ready: true, Silent: []Hop{{Processor: dead.A}}}}
		}
		hit := func(r Route) bool {
			return slices.ContainsFunc(states, func(s State) bool {
				return slices.ContainsFunc(s.Silent, func(h Hop) bool {
					return slices.Contains(r.Processors, s.Processor) && slices.Contains(r.Processors, h.Processor)
				})
			})
		}
		after := NewTopology(nodes, tunnels, states)
		for b := range Buckets {
			bucket := uint8(b)
			was, _ := all.Route(zone("a"), zone("b"), "", bucket)
			back, _ := shuffled.Route(zone("b"), zone("a"), "", bucket)
			must.Eq(t, was, back.reversed())
			is, ok := after.Route(zone("a"), zone("b"), "", bucket)
			must.True(t, ok)
			switch single := len(nodes) == 2; {
			case single || !hit(was):
				must.Eq(t, was, is) // it is never left for nothing
			default:
				must.False(t, hit(is), must.Sprint(is))
			}
		}
	})
}

func TestWaysOfGroups(t *testing.T) {
	nodes, tunnels := meshed(3, "a", "b")
	cut := fabric.NodeID{Zone: "a", Name: "w1"}
	for _, c := range []struct {
		name   string
		states []State
		group  Group
		first  []fabric.NodeID // that may carry pairs of the node
	}{
		{"all reach it", nil, zone("a"), []fabric.NodeID{processor("a", 0), processor("a", 1), processor("a", 2)}},
		{"one does not", []State{{Processor: processor("a", 1), Ready: true, Unreached: []fabric.NodeID{cut}}},
			Group{"a", "p1"}, []fabric.NodeID{processor("a", 0), processor("a", 2)}},
		{"one of another zone says so", []State{{Processor: processor("b", 1), Ready: true, Unreached: []fabric.NodeID{cut}}},
			zone("a"), []fabric.NodeID{processor("a", 0), processor("a", 1), processor("a", 2)}},
		{"two do not", []State{{Processor: processor("a", 2), Ready: true, Unreached: []fabric.NodeID{cut}}, {Processor: processor("a", 1), Ready: true, Unreached: []fabric.NodeID{cut}}},
			Group{"a", "p1,p2"}, []fabric.NodeID{processor("a", 0)}},
		{"none does", []State{
			{Processor: processor("a", 0), Ready: true, Unreached: []fabric.NodeID{cut}}, {Processor: processor("a", 1), Ready: true, Unreached: []fabric.NodeID{cut}},
			{Processor: processor("a", 2), Ready: true, Unreached: []fabric.NodeID{cut}}},
			zone("a"), []fabric.NodeID{processor("a", 0), processor("a", 1), processor("a", 2)}},
		{"one is draining", []State{{Processor: processor("a", 0), Ready: true, Draining: true}}, zone("a"), []fabric.NodeID{processor("a", 1), processor("a", 2)}},
		{"one is not ready", []State{{Processor: processor("a", 0)}}, zone("a"), []fabric.NodeID{processor("a", 1), processor("a", 2)}},
		{"none is ready", []State{{Processor: processor("a", 0)}, {Processor: processor("a", 1)}, {Processor: processor("a", 2)}}, zone("a"),
			[]fabric.NodeID{processor("a", 0), processor("a", 1), processor("a", 2)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			topology := NewTopology(nodes, tunnels, c.states)
			must.Eq(t, c.group, topology.GroupOf(cut))
			count := map[fabric.NodeID]int{}
			for b := range Buckets {
				r, ok := topology.Route(c.group, zone("b"), "", uint8(b))
				must.True(t, ok)
				count[r.Processors[0]]++
			}
			must.MapLen(t, len(c.first), count)
			for _, p := range c.first {
				must.Between(t, Buckets/len(c.first)*9/10, count[p], Buckets/len(c.first)*11/10, must.Sprint(count))
			}
		})
	}
}

// naiveLength is the length of the cheapest way by trying them all.
func naiveLength(nodes []fabric.Node, tunnels []Tunnel, silent map[int]bool, from, to string, path fabric.Path) (best []int) {
	var try func(at fabric.NodeID, visited []string, l []int)
	try = func(at fabric.NodeID, visited []string, l []int) {
		if at.Zone == to {
			if best == nil || slices.Compare(l, best) < 0 {
				best = l
			}
			return
		}
		for i, t := range tunnels {
			next := t.B
			if next == at {
				next = t.A
			} else if t.A != at {
				continue
			}
			fits := !silent[i] && !slices.Contains(visited, next.String()) && next.Zone != from
			for _, label := range path.Require {
				fits = fits && slices.Contains(t.Labels, label)
			}
			if !fits {
				continue
			}
			has := func(labels []string) bool {
				return slices.ContainsFunc(labels, func(l string) bool { return slices.Contains(t.Labels, l) })
			}
			m := slices.Clone(l)
			if has(path.Avoid) {
				m[0]++
			}
			if len(path.Prefer) > 0 && !has(path.Prefer) {
				m[1]++
			}
			m[2], m[3] = m[2]+t.Cost, m[3]+1
			try(next, append(slices.Clone(visited), next.String()), m)
		}
	}
	for _, n := range nodes {
		if n.Zone == from {
			try(n.ID(), []string{n.ID().String()}, make([]int, 4))
		}
	}
	return best
}

// Four zones, links of two kinds: every pair of zones takes a cheapest way that fits, or none if
// none does, and whoever follows the hops arrives.
func TestCheapestWayThatFits(t *testing.T) {
	labels := []string{"private", "fast"}
	rapid.Check(t, func(t *rapid.T) {
		zones := []string{"a", "b", "c", "d"}
		nodes, possible := meshed(2, zones...)
		var tunnels []Tunnel
		silent, states := map[int]bool{}, map[fabric.NodeID]State{}
		for i, tunnel := range possible {
			if !rapid.Bool().Draw(t, fmt.Sprintf("tunnel %d", i)) {
				continue
			}
			tunnel.Link = "l"
			tunnel.Labels = rapid.SliceOfNDistinct(rapid.SampledFrom(labels), 0, 2, rapid.ID[string]).Draw(t, "labels")
			tunnel.Cost = rapid.IntRange(0, 3).Draw(t, "cost")
			if rapid.IntRange(0, 4).Draw(t, "silent") == 0 {
				silent[len(tunnels)] = true
				s := states[tunnel.A]
				states[tunnel.A] = State{Processor: tunnel.A, Number: 1, Ready: true, Silent: append(s.Silent, Hop{tunnel.B, "l"})}
			}
			tunnels = append(tunnels, tunnel)
		}
		some := func(what string) []string {
			return rapid.SliceOfNDistinct(rapid.SampledFrom(labels), 0, 2, rapid.ID[string]).Draw(t, what)
		}
		path := fabric.Path{Require: some("require"), Prefer: some("prefer"), Avoid: some("avoid")}
		class := ClassOf(path)
		var list []State
		for _, s := range states {
			list = append(list, s)
		}
		topology := NewTopology(nodes, tunnels, list)
		from, to := rapid.SampledFrom(zones).Draw(t, "from"), rapid.SampledFrom(zones).Draw(t, "to")
		if from == to {
			return
		}
		want := naiveLength(nodes, tunnels, silent, from, to, path)
		if want == nil {
			want = naiveLength(nodes, tunnels, nil, from, to, path)
		}
		for b := range Buckets {
			r, ok := topology.Route(zone(from), zone(to), class, uint8(b))
			must.Eq(t, want != nil, ok)
			if !ok {
				return
			}
			got := make([]int, 4)
			for i := range r.Links {
				at := slices.IndexFunc(tunnels, func(t Tunnel) bool {
					x, y := r.Processors[i], r.Processors[i+1]
					return t.A == x && t.B == y || t.A == y && t.B == x
				})
				must.Positive(t, at+1)
				e := edge{labels: tunnels[at].Labels, cost: tunnels[at].Cost}
				l, fits := e.lengthOf(path)
				must.True(t, fits)
				got[0], got[1], got[2], got[3] = got[0]+l.avoided, got[1]+l.unpreferred, got[2]+l.cost, got[3]+1
			}
			must.Eq(t, want, got)
			// Each processor knows its part, and the switch of the last one has it.
			at := r.Processors[0]
			for range r.Processors {
				i := topology.ways.index[at]
				s := topology.spread(i, zone(from), zone(to), class)
				must.True(t, s.Carried[b])
				if at.Zone == to {
					must.True(t, s.Next[b].IsZero())
					break
				}
				must.True(t, slices.Contains(topology.Sources(s.Next[b].Processor, from), Hop{at, s.Next[b].Link}))
				at = s.Next[b].Processor
			}
			must.Eq(t, to, at.Zone)
		}
	})
}

// A way that passes two processors of one zone, with another zone between them, is open at each.
func TestWayPassesAZoneTwice(t *testing.T) {
	nodes, _ := meshed(2, "a", "b", "c", "d")
	id := func(zone, name string) fabric.NodeID { return fabric.NodeID{Zone: zone, Name: name} }
	first, second := nodes[0].Name, nodes[1].Name
	tunnel := func(a, b fabric.NodeID) Tunnel { return Tunnel{A: a, B: b, Link: "l", Cost: 1} }
	topology := NewTopology(nodes, []Tunnel{
		tunnel(id("a", first), id("b", first)), tunnel(id("b", first), id("c", first)),
		tunnel(id("c", first), id("b", second)), tunnel(id("b", second), id("d", first)),
	}, nil)
	r, ok := topology.Route(zone("a"), zone("d"), "", 0)
	must.True(t, ok)
	must.Len(t, 5, r.Processors)
	must.Eq(t, []Hop{{id("c", first), "l"}}, topology.Sources(id("b", second), "a"))
	// What comes back from there was here already.
	must.Eq(t, []Hop{{id("a", first), "l"}}, topology.Sources(id("b", first), "a"))
}

// A switch that is not on the way of a bucket still leads its packets on, and never back to their
// zone.
func TestStrayPacketsArrive(t *testing.T) {
	nodes, tunnels := meshed(2, "a", "b", "c")
	topology := NewTopology(nodes, tunnels, nil)
	for _, n := range nodes {
		for _, to := range []string{"a", "b", "c"} {
			if to == n.Zone {
				continue
			}
			s := topology.spread(topology.ways.index[n.ID()], zone(n.Zone), zone(to), "")
			for b := range Buckets {
				must.Eq(t, to, s.Next[b].Processor.Zone)
			}
		}
	}
	must.Eq(t, []Hop{{Processor: processor("c", 0)}, {Processor: processor("c", 1)}}, topology.Sources(processor("a", 0), "c"))
}

func TestClassText(t *testing.T) {
	for _, c := range []struct {
		path fabric.Path
		want Class
	}{
		{fabric.Path{}, ""},
		{fabric.Path{Require: []string{"b", "a", "b"}}, "require a b"},
		{fabric.Path{Require: []string{"x"}, Prefer: []string{"y"}, Avoid: []string{"z", "a"}}, "require x, prefer y, avoid a z"},
		{fabric.Path{Avoid: []string{"z"}}, "avoid z"},
	} {
		must.Eq(t, c.want, ClassOf(c.path))
		must.Eq(t, c.want, ClassOf(c.want.Path()))
	}
}

func TestHopText(t *testing.T) {
	for _, h := range []Hop{{}, {Processor: processor("a", 1)}, {processor("a", 1), "private"}} {
		text, err := h.MarshalText()
		must.NoError(t, err)
		var back Hop
		must.NoError(t, back.UnmarshalText(text))
		must.Eq(t, h, back)
	}
	for _, text := range []string{"a", "a/b#", "#x", "a/b#c#d", "a/B"} {
		_, err := ParseHop(text)
		must.Error(t, err, must.Sprint(text))
	}
}

// One flow has one class, and no rule loses a port that no other one opens.
func TestOneClassEach(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var rules []Rule
		for i := range rapid.IntRange(0, 5).Draw(t, "rules") {
			r := Rule{From: "x", To: "y", Contract: fabric.Ref{Domain: "d", Name: fmt.Sprintf("c%d", i)}, Audit: rapid.Bool().Draw(t, "audit")}
			r.Class = Class(rapid.SampledFrom([]string{"", "avoid a", "prefer b"}).Draw(t, "class"))
			for range rapid.IntRange(1, 2).Draw(t, "ports") {
				from := rapid.Uint16Range(1, 12).Draw(t, "from")
				r.Rules = append(r.Rules, fabric.Rule{
					Protocol: rapid.SampledFrom([]fabric.Protocol{fabric.TCP, fabric.UDP}).Draw(t, "protocol"),
					Ports:    []fabric.PortRange{{From: from, To: rapid.Uint16Range(from, 12).Draw(t, "to")}},
				})
			}
			rules = append(rules, r)
		}
		opening := func(rules []Rule, protocol fabric.Protocol, port uint16) (list []Rule) {
			for _, r := range rules {
				if slices.ContainsFunc(r.Rules, func(r fabric.Rule) bool { return r.Matches(protocol, port) }) {
					list = append(list, r)
				}
			}
			return list
		}
		separate := oneClassEach(slices.Clone(rules))
		for _, protocol := range []fabric.Protocol{fabric.TCP, fabric.UDP} {
			for port := range uint16(14) {
				before, after := opening(rules, protocol, port), opening(separate, protocol, port)
				must.Eq(t, len(before) > 0, len(after) > 0)
				if len(before) == 0 {
					continue
				}
				first := slices.MinFunc(before, func(a, b Rule) int {
					if a.Audit != b.Audit {
						return map[bool]int{false: -1, true: 1}[a.Audit]
					}
					return cmp.Compare(a.Contract.String(), b.Contract.String())
				})
				for _, r := range after {
					must.Eq(t, first.Class, r.Class)
				}
				must.True(t, slices.ContainsFunc(after, func(r Rule) bool { return r.Contract == first.Contract }))
			}
		}
	})
}

// Declared links lead from zone to zone over any number of links that have what a path requires,
// just where plan says so.
func TestDeclaredLinksLead(t *testing.T) {
	var nodes []fabric.Node
	var processors []fabric.NodeID
	for _, id := range []fabric.NodeID{{Zone: "a", Name: "p1"}, {Zone: "a", Name: "p2"}, {Zone: "b", Name: "p1"}, {Zone: "b", Name: "p2"}, {Zone: "c", Name: "p1"}} {
		nodes, processors = append(nodes, fabric.Node{Zone: id.Zone, Name: id.Name, Kind: fabric.KindProcessor}), append(processors, id)
	}
	link := func(a, b string, labels ...string) fabric.LinkRule {
		l := fabric.LinkRule{Name: "l", Labels: labels}
		for i, end := range []string{a, b} {
			e, err := fabric.ParseLinkEnd(end)
			must.NoError(t, err)
			l.Between[i] = e
		}
		return l
	}
	safe := fabric.Path{Require: []string{"safe"}}
	off := link("a", "c", "safe")
	off.Disabled = true
	for _, c := range []struct {
		path  fabric.Path
		links []fabric.LinkRule
		want  bool // between a and c
	}{
		{fabric.Path{}, nil, true},
		{safe, nil, false},
		{fabric.Path{}, []fabric.LinkRule{link("a", "b")}, false},
		{fabric.Path{}, []fabric.LinkRule{link("a", "b"), link("b", "c")}, true},
		{safe, []fabric.LinkRule{link("a", "b", "safe"), link("b", "c")}, false},
		{safe, []fabric.LinkRule{link("a", "b", "safe"), link("*", "c", "x", "safe")}, true},
		{fabric.Path{}, []fabric.LinkRule{link("a/p1", "b/p1"), link("b/p2", "c")}, false}, // no link joins the two in zone b
		{fabric.Path{}, []fabric.LinkRule{off, link("a", "b")}, false},
	} {
		topology := NewTopology(nodes, Tunnels(nodes, c.links), nil)
		leads := func(from, to string) bool {
			_, ok := topology.Route(zone(from), zone(to), ClassOf(c.path), 0)
			return ok
		}
		must.Eq(t, c.want, leads("a", "c"), must.Sprint(c))
		must.Eq(t, c.want, leads("c", "a"), must.Sprint(c))
		must.Eq(t, c.want, c.path.Joins(c.links, processors)("a", "c"), must.Sprint(c))
		must.False(t, leads("a", "nowhere"))
	}
}

// Whoever is on the way of an allowed flow between two zones has its part of the way there and of
// the way back, whatever else it leaves out.
func TestEveryFlowHasItsWays(t *testing.T) {
	paths := []fabric.Path{{}, {Require: []string{"safe"}}, {Prefer: []string{"fast"}}, {Avoid: []string{"fast"}}}
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		for _, name := range []string{"a", "b"} {
			contracts := w.graph.Domains[name].Contracts
			for i := range contracts {
				contracts[i].Path = rapid.SampledFrom(paths).Draw(t, "path")
			}
		}
		tunnels := FullMesh(w.nodes)
		if rapid.Bool().Draw(t, "declared") {
			var declared []Tunnel
			for _, tunnel := range tunnels {
				if rapid.IntRange(0, 2).Draw(t, "linked") == 0 {
					continue
				}
				tunnel.Link, tunnel.Labels = "l", rapid.SampledFrom([][]string{nil, {"safe"}, {"fast"}, {"fast", "safe"}}).Draw(t, "labels")
				declared = append(declared, tunnel)
			}
			tunnels = declared
		}
		topology, docs := NewTopology(w.nodes, tunnels, nil), w.documents()
		part := func(ways []Spread, from, to Group, class Class) Spread {
			i := slices.IndexFunc(ways, func(s Spread) bool { return s.From == from && s.To == to && s.Class == class })
			if i < 0 {
				t.Fatalf("there is no way from %s to %s of class %q", from, to, class)
			}
			return ways[i]
		}
		for _, src := range w.endpoints {
			for _, dst := range w.endpoints {
				if src.Zone == dst.Zone || !topology.HasBoundary(src.Zone) || !topology.HasBoundary(dst.Zone) {
					continue
				}
				sender := ForWorkload(src.Host(), topology, w.endpoints, docs, w.outside)
				receiver := ForWorkload(dst.Host(), topology, w.endpoints, docs, w.outside)
				from, to := topology.GroupOf(src.Host()), topology.GroupOf(dst.Host())
				bucket := Bucket(Number(src.Endpoint), Number(dst.Endpoint))
				for _, r := range sender.Rules {
					if r.From != PartyOf(src.Identity()) || r.To != PartyOf(dst.Identity()) {
						continue
					}
					there, back := part(sender.Ways, from, to, r.Class), part(receiver.Ways, to, from, r.Class)
					route, leads := topology.Route(from, to, r.Class, bucket)
					if !leads {
						must.True(t, there.Next[bucket].IsZero() && back.Next[bucket].IsZero())
						continue
					}
					must.Eq(t, route.Processors[0], there.Next[bucket].Processor)
					must.Eq(t, route.Processors[len(route.Processors)-1], back.Next[bucket].Processor)
					for _, at := range route.Processors {
						p := ForProcessor(at, topology, w.endpoints, docs, w.outside)
						for _, s := range []Spread{part(p.Ways, from, to, r.Class), part(p.Ways, to, from, r.Class)} {
							must.True(t, s.Carried[bucket])
							along := route
							if s.From == to {
								along = route.reversed()
							}
							next, _ := along.Next(at)
							must.Eq(t, next, s.Next[bucket])
						}
						must.True(t, slices.ContainsFunc(p.Rules, func(judged Rule) bool {
							return judged.From == r.From && judged.To == r.To && judged.Contract == r.Contract && judged.Class == r.Class
						}))
					}
				}
			}
		}
	})
}
