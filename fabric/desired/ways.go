// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/sif-project/sif/fabric"
)

// Buckets is the number of parts into which pairs of endpoints are divided. All pairs of a bucket
// that are of the same two groups and the same class go the same way.
const Buckets = 256

// Number is what an endpoint, or a node by its "zone/node", has for buckets: the first byte of the
// SHA-256 of its ID.
func Number(id string) uint8 {
	sum := sha256.Sum256([]byte(id))
	return sum[0]
}

// Bucket returns the bucket of two endpoints by their numbers. Their order does not matter.
func Bucket(a, b uint8) uint8 { return a ^ b }

// Hop is a tunnel to a processor, as seen from its other end.
type Hop struct {
	Processor fabric.NodeID
	Link      string // the name of the declared link; empty: none is declared, or it is the zone's own
}

// IsZero reports whether the hop leads nowhere.
func (h Hop) IsZero() bool { return h == Hop{} }

// String returns "zone/node" or "zone/node#link".
func (h Hop) String() string {
	if h.Link == "" {
		return h.Processor.String()
	}
	return h.Processor.String() + "#" + h.Link
}

// ParseHop parses the text form of a hop.
func ParseHop(text string) (Hop, error) {
	node, link, named := strings.Cut(text, "#")
	if named {
		if err := fabric.CheckName(link); err != nil {
			return Hop{}, fmt.Errorf("link of %q: %w", text, err)
		}
	}
	id, err := fabric.ParseNodeID(node)
	return Hop{id, link}, err
}

// MarshalText implements encoding.TextMarshaler.
func (h Hop) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hop) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*h = Hop{}
		return nil
	}
	*h, err = ParseHop(string(b))
	return err
}

// Group is the nodes of a zone that reach the same processors of it. Its text form is the zone's
// name, and the names of the processors that they do not reach.
type Group struct {
	Zone    string
	Without string // names in order, separated by commas
}

func (g Group) String() string {
	if g.Without == "" {
		return g.Zone
	}
	return g.Zone + " without " + g.Without
}

// Class is what contracts wish of a way: the canonical text of a fabric.Path. It is empty for
// contracts that wish nothing.
type Class string

// ClassOf returns the class of a path.
func ClassOf(p fabric.Path) Class {
	var parts []string
	for _, wish := range []struct {
		verb   string
		labels []string
	}{{"require", p.Require}, {"prefer", p.Prefer}, {"avoid", p.Avoid}} {
		labels := slices.Clone(wish.labels)
		slices.Sort(labels)
		if labels = slices.Compact(labels); len(labels) > 0 {
			parts = append(parts, wish.verb+" "+strings.Join(labels, " "))
		}
	}
	return Class(strings.Join(parts, ", "))
}

// Path returns the path that the class stands for.
func (c Class) Path() (p fabric.Path) {
	for part := range strings.SplitSeq(string(c), ", ") {
		words := strings.Fields(part)
		if len(words) == 0 {
			continue
		}
		switch words[0] {
		case "require":
			p.Require = words[1:]
		case "prefer":
			p.Prefer = words[1:]
		case "avoid":
			p.Avoid = words[1:]
		}
	}
	return p
}

// Tunnel is an encrypted link between two processors of different zones.
type Tunnel struct {
	A, B   fabric.NodeID
	Link   string // as in Hop
	Labels []string
	Cost   int
}

// DefaultCost is the cost of a tunnel whose link does not say it.
const DefaultCost = 100

// State is what the engine of a processor publishes. Of two states of one processor the one with
// the higher number holds, so all who know the newest ones choose alike.
type State struct {
	Processor fabric.NodeID `json:"processor"`
	Number    uint64        `json:"number"`
	// Ready means that its switch enforces what it should, and that it knows the endpoints of its
	// zone.
	Ready    bool `json:"ready"`
	Draining bool `json:"draining,omitempty"` // an operator wants no packets to pass there
	// Silent are the tunnels whose other end does not answer, Unreached the workload nodes of its
	// zone that do not.
	Silent    []Hop           `json:"silent,omitempty"`
	Unreached []fabric.NodeID `json:"unreached,omitempty"`
}

// Route is a way through processors: of one zone after the other, each joined to the next one by a
// tunnel.
type Route struct {
	Processors []fabric.NodeID
	Links      []string // one less than the processors
}

// String names the processors and links in order: "a/p1 -private-> b/p1".
func (r Route) String() string {
	var b strings.Builder
	for i, p := range r.Processors {
		if i > 0 {
			b.WriteString(" -" + r.Links[i-1] + "-> ")
		}
		b.WriteString(p.String())
	}
	return b.String()
}

// Next returns the hop after a processor on the way, and whether the way passes it. The hop of the
// last one is zero.
func (r Route) Next(at fabric.NodeID) (next Hop, passes bool) {
	i := slices.Index(r.Processors, at)
	if i < 0 || i == len(r.Processors)-1 {
		return Hop{}, i >= 0
	}
	return Hop{r.Processors[i+1], r.Links[i]}, true
}

func (r Route) reversed() Route {
	r = Route{slices.Clone(r.Processors), slices.Clone(r.Links)}
	slices.Reverse(r.Processors)
	slices.Reverse(r.Links)
	return r
}

// edge is a tunnel from one of its ends.
type edge struct {
	to     int // index of the processor
	link   string
	labels []string
	cost   int
	silent bool
}

// graph is the processors and tunnels of a fabric, with what is known of their life.
type graph struct {
	processors []fabric.NodeID
	index      map[fabric.NodeID]int
	edges      [][]edge
	live       []bool                   // ready and not draining
	without    map[fabric.NodeID]string // by workload node; see Group
	transit    bool                     // ways may lead through a third zone
	trees      map[treeKey]*tree        // that were computed so far
}

// FullMesh returns the tunnels of a fabric in which no link is declared: one between every two
// processors of different zones.
func FullMesh(nodes []fabric.Node) []Tunnel {
	var list []Tunnel
	for i, a := range nodes {
		for _, b := range nodes[i+1:] {
			if a.Boundary() && b.Boundary() && a.Zone != b.Zone {
				list = append(list, Tunnel{A: a.ID(), B: b.ID(), Cost: DefaultCost})
			}
		}
	}
	return list
}

// newGraph arranges processors and tunnels. Tunnels to processors that are not among the nodes are
// left out.
func newGraph(nodes []fabric.Node, tunnels []Tunnel, states map[fabric.NodeID]State) *graph {
	g := &graph{index: map[fabric.NodeID]int{}, without: map[fabric.NodeID]string{}, trees: map[treeKey]*tree{}}
	for _, n := range nodes {
		if n.Boundary() {
			g.processors = append(g.processors, n.ID())
		}
	}
	slices.SortFunc(g.processors, fabric.CompareNodeIDs)
	g.edges, g.live = make([][]edge, len(g.processors)), make([]bool, len(g.processors))
	lacking := map[fabric.NodeID][]string{}
	for i, id := range g.processors {
		g.index[id] = i
		s, known := states[id]
		g.live[i] = !known || s.Ready && !s.Draining
		for _, w := range s.Unreached {
			if w.Zone == id.Zone {
				lacking[w] = append(lacking[w], id.Name)
			}
		}
	}
	inZone := map[string]int{}
	for _, id := range g.processors {
		inZone[id.Zone]++
	}
	for w, names := range lacking {
		slices.Sort(names)
		if names = slices.Compact(names); len(names) < inZone[w.Zone] { // whoever reaches none is treated as if it reached all
			g.without[w] = strings.Join(names, ",")
		}
	}
	said := func(by, of fabric.NodeID, link string) bool { return slices.Contains(states[by].Silent, Hop{of, link}) }
	for _, t := range tunnels {
		a, okA := g.index[t.A]
		b, okB := g.index[t.B]
		if !okA || !okB || t.A.Zone == t.B.Zone {
			continue
		}
		g.transit = g.transit || t.Link != ""
		silent := said(t.A, t.B, t.Link) || said(t.B, t.A, t.Link)
		g.edges[a] = append(g.edges[a], edge{to: b, link: t.Link, labels: t.Labels, cost: t.Cost, silent: silent})
		g.edges[b] = append(g.edges[b], edge{to: a, link: t.Link, labels: t.Labels, cost: t.Cost, silent: silent})
	}
	for _, list := range g.edges {
		slices.SortFunc(list, func(x, y edge) int { return cmp.Or(cmp.Compare(x.to, y.to), cmp.Compare(x.link, y.link)) })
	}
	return g
}

// groupOf returns the group of a node.
func (g *graph) groupOf(node fabric.NodeID) Group { return Group{node.Zone, g.without[node]} }

// reaches reports whether the nodes of a group reach a processor of their zone.
func (g *graph) reaches(group Group, processor fabric.NodeID) bool {
	return processor.Zone == group.Zone && !slices.Contains(strings.Split(group.Without, ","), processor.Name)
}

// length is what a way costs, in the order of what counts most.
type length struct{ avoided, unpreferred, cost, hops int }

func (l length) plus(o length) length {
	return length{l.avoided + o.avoided, l.unpreferred + o.unpreferred, l.cost + o.cost, l.hops + o.hops}
}

func compareLengths(a, b length) int {
	return cmp.Or(cmp.Compare(a.avoided, b.avoided), cmp.Compare(a.unpreferred, b.unpreferred), cmp.Compare(a.cost, b.cost), cmp.Compare(a.hops, b.hops))
}

// lengthOf returns what an edge costs on ways of a path, and whether they may take it.
func (e edge) lengthOf(p fabric.Path) (l length, fits bool) {
	has := func(label string) bool { return slices.Contains(e.labels, label) }
	for _, label := range p.Require {
		if !has(label) {
			return l, false
		}
	}
	if slices.ContainsFunc(p.Avoid, has) {
		l.avoided = 1
	}
	if len(p.Prefer) > 0 && !slices.ContainsFunc(p.Prefer, has) {
		l.unpreferred = 1
	}
	l.cost, l.hops = e.cost, 1
	return l, true
}

// routesAtMost limits the ways that share the pairs of two groups. A choice has an index of 8 bits.
const routesAtMost = 64

// start is where ways begin: at the processors that a group reaches, or at one.
type start struct {
	group Group
	at    int // index of the processor plus one; 0 for a group
}

func (g *graph) begins(s start) []int {
	if s.at > 0 {
		return []int{s.at - 1}
	}
	return g.reached(s.group)
}

// tree is the cheapest ways from a start to all processors.
type tree struct {
	dist   []length
	known  []bool
	before [][]edge // by which the cheapest ways come; to is where from
}

// treeKey is what a tree depends on.
type treeKey struct {
	start start
	class Class
	alive bool
}

// treeOf returns the tree of the ways of a class. alive leaves out what does not live. Ways lead
// through other zones only if links are declared.
func (g *graph) treeOf(s start, class Class, alive bool) *tree {
	key := treeKey{s, class, alive}
	if g.trees[key] == nil {
		g.trees[key] = g.search(g.begins(s), class.Path(), alive, "")
	}
	return g.trees[key]
}

// search computes a tree whose ways do not pass the zone beside.
func (g *graph) search(from []int, path fabric.Path, alive bool, beside string) *tree {
	t := &tree{dist: make([]length, len(g.processors)), known: make([]bool, len(g.processors)), before: make([][]edge, len(g.processors))}
	usable := func(i int) bool { return !alive || g.live[i] }
	done, starts := make([]bool, len(g.processors)), make([]bool, len(g.processors))
	own := ""
	for _, i := range from {
		t.known[i], starts[i], own = usable(i), true, g.processors[i].Zone
	}
	for {
		at := -1
		for i := range t.dist {
			if t.known[i] && !done[i] && (at < 0 || compareLengths(t.dist[i], t.dist[at]) < 0) {
				at = i
			}
		}
		if at < 0 {
			return t
		}
		done[at] = true
		// What is between the ends of a way is of neither end's zone.
		if zone := g.processors[at].Zone; !starts[at] && (!g.transit || zone == own || zone == beside) {
			continue
		}
		for _, e := range g.edges[at] {
			l, fits := e.lengthOf(path)
			if !fits || alive && e.silent || !usable(e.to) || starts[e.to] {
				continue
			}
			l = l.plus(t.dist[at])
			back := edge{to: at, link: e.link}
			switch order := compareLengths(l, t.dist[e.to]); {
			case !t.known[e.to] || order < 0:
				t.dist[e.to], t.known[e.to], t.before[e.to] = l, true, []edge{back}
			case order == 0:
				t.before[e.to] = append(t.before[e.to], back)
			}
		}
	}
}

// candidate is a route with its text form.
type candidate struct {
	Route
	name string
}

// best returns the cheapest ways of a class from a start to any processor that a group reaches, in
// order. alive leaves out what does not live.
func (g *graph) best(from start, to Group, class Class, alive bool) []candidate {
	// A way to the nearest processor of a zone does not pass another one of it, unless that one is
	// no end because the group does not reach it.
	t := (*tree)(nil)
	if to.Without == "" {
		t = g.treeOf(from, class, alive)
	} else {
		t = g.search(g.begins(from), class.Path(), alive, to.Zone)
	}
	nearest, ends := -1, g.reached(to)
	for _, i := range ends {
		if t.known[i] && (nearest < 0 || compareLengths(t.dist[i], t.dist[nearest]) < 0) {
			nearest = i
		}
	}
	if nearest < 0 {
		return nil
	}
	var routes []candidate
	var walk func(at int, r Route)
	walk = func(at int, r Route) {
		r.Processors = append(r.Processors, g.processors[at])
		if len(t.before[at]) == 0 {
			r = r.reversed()
			routes = append(routes, candidate{r, r.String()})
			return
		}
		for _, e := range t.before[at] {
			if len(routes) == routesAtMost {
				return
			}
			walk(e.to, Route{slices.Clone(r.Processors), append(slices.Clone(r.Links), e.link)})
		}
	}
	for _, i := range ends {
		if t.known[i] && compareLengths(t.dist[i], t.dist[nearest]) == 0 {
			walk(i, Route{})
		}
	}
	slices.SortFunc(routes, func(a, b candidate) int { return cmp.Compare(a.name, b.name) })
	return routes
}

// reached returns the processors that the nodes of a group reach.
func (g *graph) reached(group Group) (list []int) {
	for i, p := range g.processors {
		if g.reaches(group, p) {
			list = append(list, i)
		}
	}
	return list
}

// routes returns the way of each bucket from one group to another, or nil if none fits. The ways
// from b to a are those from a to b reversed.
func (g *graph) routes(a, b Group, class Class) *choice {
	if compareGroups(a, b) > 0 {
		return g.routes(b, a, class).reversed()
	}
	// What would be chosen if everything lived is what each bucket returns to.
	home := g.best(start{group: Group{Zone: a.Zone}}, Group{Zone: b.Zone}, class, false)
	if len(home) == 0 {
		return nil
	}
	live := g.best(start{group: a}, b, class, true)
	if len(live) == 0 {
		if live = g.best(start{group: a}, b, class, false); len(live) == 0 {
			return nil
		}
	}
	return share(home, live)
}

// choice is the route of each bucket.
type choice struct {
	routes []Route
	of     [Buckets]uint8 // index of the bucket's route
	home   []Route        // the routes if everything lived
}

func (c *choice) route(bucket uint8) Route { return c.routes[c.of[bucket]] }

// passes reports whether a processor carries any bucket, or would if everything lived.
func (c *choice) passes(at fabric.NodeID) bool {
	passed := func(r Route) bool { return slices.Contains(r.Processors, at) }
	return c != nil && (slices.ContainsFunc(c.routes, passed) || slices.ContainsFunc(c.home, passed))
}

func (c *choice) reversed() *choice {
	if c == nil {
		return nil
	}
	turned := func(routes []Route) (list []Route) {
		for _, r := range routes {
			list = append(list, r.reversed())
		}
		return list
	}
	return &choice{routes: turned(c.routes), of: c.of, home: turned(c.home)}
}

// share divides the buckets evenly among routes. Those that have one of them by home, the routes if
// everything lived, stay there.
func share(home, routes []candidate) *choice {
	c := &choice{}
	var has [Buckets]bool
	index := map[string]int{}
	for i, r := range routes {
		c.routes, index[r.name] = append(c.routes, r.Route), i
	}
	for _, r := range home {
		c.home = append(c.home, r.Route)
	}
	count := map[string]int{}
	fill(home, map[string]int{}, &[Buckets]bool{}, func(bucket int, name string) {
		if i, among := index[name]; among {
			c.of[bucket], has[bucket] = uint8(i), true
			count[name]++
		}
	})
	fill(routes, count, &has, func(bucket int, name string) { c.of[bucket] = uint8(index[name]) })
	return c
}

// fill gives each bucket that has none yet the route with the highest weight that is not full.
// count is how many buckets each route has.
func fill(routes []candidate, count map[string]int, has *[Buckets]bool, give func(bucket int, name string)) {
	seeds, counts := make([]uint64, len(routes)), make([]int, len(routes))
	// Some routes have one bucket more than the others, if they do not divide evenly.
	most, longer := Buckets/len(routes), Buckets%len(routes)
	for i, r := range routes {
		sum := sha256.Sum256([]byte(r.name))
		seeds[i], counts[i] = binary.BigEndian.Uint64(sum[:]), count[r.name]
		longer -= max(0, counts[i]-most)
	}
	for bucket := range Buckets {
		if has[bucket] {
			continue
		}
		best, weight := -1, uint64(0)
		for i, n := range counts {
			if n > most || n == most && longer <= 0 {
				continue
			}
			if w := mix(seeds[i] ^ uint64(bucket)*0x9e3779b97f4a7c15); best < 0 || w > weight {
				best, weight = i, w
			}
		}
		if counts[best]++; counts[best] > most {
			longer--
		}
		give(bucket, routes[best].name)
	}
}

// mix is the finalizer of SplitMix64: each bit of the result depends on all of x.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
