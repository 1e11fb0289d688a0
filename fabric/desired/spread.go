// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"

	"github.com/sif-project/sif/fabric"
)

// Via names the way of an endpoint's packets in dumps.
func (e Endpoint) Via() string { return via(e.Way, e.Group, e.Number) }

// Via names the way of a node's probes in dumps.
func (p Probed) Via() string { return via(p.Way, p.Group, p.Number) }

func via(w Way, g Group, number uint8) string {
	if w == ByWays {
		return ViaWays(g, number)
	}
	return w.String()
}

// ViaWays names the way of an endpoint of a group with a number in dumps, if it is ByWays.
func ViaWays(g Group, number uint8) string {
	return fmt.Sprintf("the ways of %s, number %d", g, number)
}

// Shares returns which buckets go by each hop, as a number with 256 bits in hexadecimal digits:
// bucket 0 is the lowest bit. Buckets for which nothing leads are left out.
func Shares(next [Buckets]Hop) map[string]string {
	bits := map[Hop]*[Buckets / 8]byte{}
	for bucket, hop := range next {
		if hop.IsZero() {
			continue
		}
		if bits[hop] == nil {
			bits[hop] = &[Buckets / 8]byte{}
		}
		bits[hop][len(bits[hop])-1-bucket/8] |= 1 << (bucket % 8)
	}
	shares := map[string]string{}
	for hop, b := range bits {
		shares[hop.String()] = hex.EncodeToString(b[:])
	}
	return shares
}

// InShare reports whether a share, in the form of Shares, has a bucket.
func InShare(share string, bucket uint8) bool {
	bits, err := hex.DecodeString(share)
	return err == nil && len(bits) == Buckets/8 && bits[len(bits)-1-int(bucket)/8]&(1<<(bucket%8)) != 0
}

// ways are the ways of a graph that were computed so far.
type ways struct {
	*graph
	computed map[relation]*choice
	behind   map[behind]*[Buckets]Hop // from one processor, for what it does not carry
}

// relation is what a way depends on besides the bucket.
type relation struct {
	from, to Group
	class    Class
}

// behind is what the hops from one processor depend on besides the bucket.
type behind struct {
	at    int
	to    Group
	class Class
}

func newWays(g *graph) *ways {
	return &ways{graph: g, computed: map[relation]*choice{}, behind: map[behind]*[Buckets]Hop{}}
}

// between returns the way of each bucket from one group to another, or nil if none fits.
func (w *ways) between(from, to Group, class Class) *choice {
	r := relation{from, to, class}
	routes, done := w.computed[r]
	if !done {
		routes = w.routes(from, to, class)
		w.computed[r] = routes
	}
	return routes
}

// from returns the hops that lead from one processor to a group, for packets that come to it though
// another one carries them.
func (w *ways) from(at int, to Group, class Class) *[Buckets]Hop {
	key := behind{at, to, class}
	hops, done := w.behind[key]
	if done {
		return hops
	}
	hops = &[Buckets]Hop{}
	w.behind[key] = hops
	routes := w.best(start{at: at + 1}, to, class, true)
	if len(routes) == 0 {
		routes = w.best(start{at: at + 1}, to, class, false)
	}
	if len(routes) > 0 {
		chosen := share(routes, routes)
		for bucket := range hops {
			hops[bucket], _ = chosen.route(uint8(bucket)).Next(w.processors[at])
		}
	}
	return hops
}

// sources returns the tunnels by which packets of a zone may come to a processor: from processors
// of the zone and, if ways lead through other zones, from those that are reached without passing
// this processor. A way may pass another processor of its zone before.
func (w *ways) sources(at fabric.NodeID, zone string) (list []Hop) {
	i, known := w.index[at]
	if !known {
		return nil
	}
	var reached []int
	leads := make([]bool, len(w.processors))
	for p, id := range w.processors {
		if id.Zone == zone {
			leads[p], reached = true, append(reached, p)
		}
	}
	for w.transit && len(reached) > 0 {
		p := reached[0]
		reached = reached[1:]
		for _, e := range w.edges[p] {
			if e.to != i && !leads[e.to] {
				leads[e.to], reached = true, append(reached, e.to)
			}
		}
	}
	for _, e := range w.edges[i] {
		if leads[e.to] {
			list = append(list, Hop{w.processors[e.to], e.link})
		}
	}
	return list
}

func (t Topology) endpoint(a fabric.Admission, party Party, way Way) Endpoint {
	return Endpoint{Admission: a, Party: party, Way: way, Group: t.ways.groupOf(a.Host()), Number: Number(a.Endpoint)}
}

func compareGroups(a, b Group) int {
	return cmp.Or(cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Without, b.Without))
}

// waysOfWorkload returns the ways from a workload node to the groups of endpoints of other zones:
// those that rules of the node need, and for each group those of no wish.
func (t Topology) waysOfWorkload(self fabric.NodeID, endpoints []Endpoint, rules []Rule) (list []Spread) {
	from := t.ways.groupOf(self)
	need, groups := relations{}, map[Party]map[Group]bool{}
	for _, e := range endpoints {
		if e.Way == ByWays {
			insert(groups, e.Party, e.Group)
			need.add(from, e.Group, "")
		}
	}
	for _, r := range rules {
		for _, p := range []Party{r.From, r.To} {
			for to := range groups[p] {
				need.add(from, to, r.Class)
			}
		}
	}
	for _, r := range need.sorted() {
		s := Spread{From: from, To: r.to, Class: r.class}
		if chosen := t.ways.between(from, r.to, r.class); chosen != nil {
			for bucket := range s.Next {
				s.Next[bucket] = Hop{Processor: chosen.route(uint8(bucket)).Processors[0]}
			}
		}
		list = append(list, s)
	}
	return list
}

// waysOfProcessor returns the ways among the groups of what a processor knows, and the tunnels by
// which the packets of other zones may come. Ways between two other zones are those that rules
// need, and one for probes that pass here, whatever their bucket.
func (t Topology) waysOfProcessor(self fabric.NodeID, p Processor) (list []Spread, sources map[string][]Hop) {
	at, known := t.ways.index[self]
	if !known {
		return nil, nil
	}
	groups, all := map[Party]map[Group]bool{}, map[Group]bool{}
	for _, e := range p.Endpoints {
		insert(groups, e.Party, e.Group)
		all[e.Group] = true
	}
	for _, n := range p.Probes {
		all[n.Group] = true
	}
	need, probed, transit := relations{}, relations{}, t.CarriesOthers(self.Zone)
	own := func(from, to Group) bool { return from.Zone == self.Zone || to.Zone == self.Zone }
	// What of others does not pass here, and would not if everything lived, never comes here.
	add := func(some relations, from, to Group, class Class) {
		if from.Zone == to.Zone || need[relation{from, to, class}] {
			return
		}
		if own(from, to) || transit && t.ways.between(from, to, class).passes(self) {
			some.add(from, to, class)
		}
	}
	for _, r := range p.Rules {
		for from := range groups[r.From] {
			for to := range groups[r.To] {
				add(need, from, to, r.Class)
				add(need, to, from, r.Class)
			}
		}
	}
	sources = map[string][]Hop{}
	for from := range all {
		if _, done := sources[from.Zone]; from.Zone != self.Zone && !done {
			sources[from.Zone] = t.ways.sources(self, from.Zone)
		}
		for to := range all {
			if own(from, to) {
				add(need, from, to, "")
			} else {
				add(probed, from, to, "")
			}
		}
	}
	list = make([]Spread, 0, len(need)+len(probed)) // they are large
	for _, r := range need.sorted() {
		list = append(list, t.spread(at, r.from, r.to, r.class))
	}
	for _, r := range probed.sorted() {
		s, hop := Spread{From: r.from, To: r.to}, t.ways.from(at, r.to, "")[0]
		for bucket := range s.Next {
			s.Next[bucket] = hop
		}
		list = append(list, s)
	}
	return list, sources
}

// CarriesOthers reports whether ways between two other zones can lead through a zone: its
// processors have tunnels to two at least.
func (t Topology) CarriesOthers(zone string) bool {
	if !t.ways.transit {
		return false
	}
	other := ""
	for i, p := range t.ways.processors {
		if p.Zone != zone {
			continue
		}
		for _, e := range t.ways.edges[i] {
			switch z := t.ways.processors[e.to].Zone; other {
			case "", z:
				other = z
			default:
				return true
			}
		}
	}
	return false
}

// relations are those for which ways are needed.
type relations map[relation]bool

func (n relations) add(from, to Group, class Class) { n[relation{from, to, class}] = true }

func (n relations) sorted() []relation {
	return slices.SortedFunc(maps.Keys(n), func(a, b relation) int {
		return cmp.Or(compareGroups(a.from, b.from), compareGroups(a.to, b.to), cmp.Compare(a.class, b.class))
	})
}

// insert adds a group to those of a party.
func insert(groups map[Party]map[Group]bool, p Party, g Group) {
	if groups[p] == nil {
		groups[p] = map[Group]bool{}
	}
	groups[p][g] = true
}

func (t Topology) spread(at int, from, to Group, class Class) Spread {
	self := t.ways.processors[at]
	s := Spread{From: from, To: to, Class: class}
	if chosen := t.ways.between(from, to, class); chosen != nil {
		nexts, carries := make([]Hop, len(chosen.routes)), make([]bool, len(chosen.routes))
		for i, r := range chosen.routes {
			nexts[i], carries[i] = r.Next(self)
		}
		for bucket, i := range chosen.of {
			s.Next[bucket], s.Carried[bucket] = nexts[i], carries[i]
		}
	}
	if to.Zone == self.Zone || !slices.Contains(s.Carried[:], false) {
		return s
	}
	hops := t.ways.from(at, to, class)
	for bucket, carried := range s.Carried {
		if !carried {
			s.Next[bucket] = hops[bucket]
		}
	}
	return s
}

// precedence orders two contracts that allow the same flow by which of them says what the flow
// wishes of its way: one that enforces before one in audit mode, then the first by name.
func precedence(auditA, auditB bool, a, b fabric.Ref) int {
	if auditA != auditB {
		if auditB {
			return -1
		}
		return 1
	}
	return fabric.CompareRefs(a, b)
}

// ClassOfFlow returns what a flow wishes of its way, which one of the grants allows.
func ClassOfFlow(grants []fabric.Grant, protocol fabric.Protocol, port uint16) Class {
	grants = slices.DeleteFunc(slices.Clone(grants), func(g fabric.Grant) bool {
		return !slices.ContainsFunc(g.Rules, func(r fabric.Rule) bool { return r.Matches(protocol, port) })
	})
	if len(grants) == 0 {
		return ""
	}
	first := slices.MinFunc(grants, func(a, b fabric.Grant) int { return precedence(a.Audit, b.Audit, a.Contract, b.Contract) })
	return ClassOf(first.Path)
}

// oneClassEach makes all rules that allow one flow have one class: a port that rules of several
// classes open between two parties stays with the rule that has precedence. So every hop takes the
// same way, whatever its numbers are.
func oneClassEach(rules []Rule) []Rule {
	type pair struct{ from, to Party }
	byPair := map[pair][]int{}
	several := map[pair]bool{}
	for i, r := range rules {
		p := pair{r.From, r.To}
		if list := byPair[p]; len(list) > 0 && rules[list[0]].Class != r.Class {
			several[p] = true
		}
		byPair[p] = append(byPair[p], i)
	}
	for p := range several {
		list := byPair[p]
		slices.SortFunc(list, func(a, b int) int {
			return precedence(rules[a].Audit, rules[b].Audit, rules[a].Contract, rules[b].Contract)
		})
		for n, i := range list {
			for _, before := range list[:n] {
				if rules[before].Class != rules[i].Class {
					rules[i].Rules = without(rules[i].Rules, rules[before].Rules)
				}
			}
		}
	}
	return slices.DeleteFunc(rules, func(r Rule) bool { return len(r.Rules) == 0 })
}

// without returns the parts of rules whose ports are not in taken.
func without(rules, taken []fabric.Rule) (left []fabric.Rule) {
	for _, r := range rules {
		ports := slices.Clone(r.Ports)
		for _, t := range taken {
			if t.Protocol != r.Protocol {
				continue
			}
			for _, gone := range t.Ports {
				var rest []fabric.PortRange
				for _, p := range ports {
					if gone.To < p.From || gone.From > p.To {
						rest = append(rest, p)
						continue
					}
					if p.From < gone.From {
						rest = append(rest, fabric.PortRange{From: p.From, To: gone.From - 1})
					}
					if gone.To < p.To {
						rest = append(rest, fabric.PortRange{From: gone.To + 1, To: p.To})
					}
				}
				ports = rest
			}
		}
		if len(ports) > 0 {
			left = append(left, fabric.Rule{Name: r.Name, Protocol: r.Protocol, Ports: ports})
		}
	}
	return left
}
