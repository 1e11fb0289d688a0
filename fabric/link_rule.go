// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// LinkRule is the operators' word on how processors of different zones are linked: it joins each
// two processors at its two ends. A graph without such rules links all zones; see LinksOf. The keys
// and ports of the devices are in the statement of each node, a Link.
type LinkRule struct {
	Name        string     `json:"name"`
	Description string     `json:"description,omitempty"`
	Between     [2]LinkEnd `json:"between"`
	Labels      []string   `json:"labels,omitempty"` // what paths of contracts require, prefer and avoid
	Cost        uint16     `json:"cost"`             // of several ways that fit equally well, the cheapest is taken
	// Endpoints names the addresses by which the processors reach each other, as their
	// configurations name them; empty: the underlay address.
	Endpoints string   `json:"endpoints,omitempty"`
	MTU       int      `json:"mtu,omitempty"` // in bytes, of packets in the link; 0: that of the processor
	Disabled  bool     `json:"disabled,omitempty"`
	Pos       Position `json:"pos,omitzero"`
}

const (
	// DefaultLinkCost is the cost of a link that sets none.
	DefaultLinkCost = 100
	// DefaultEndpoints names the underlay addresses.
	DefaultEndpoints = "default"
	// EveryZone stands for all zones as an end of a link.
	EveryZone = "*"
	// MinLinkMTU and MaxLinkMTU bound the MTU of links. What workloads send must not be below the
	// minimum of IPv6, and an encrypted packet must fit into a datagram.
	MinLinkMTU = 1320
	MaxLinkMTU = 65455

	maxLinks      = 1000 // of a fabric, because every node reads them
	maxLinkLabels = 64   // of a link
)

// LinkEnd is one side of a link: the processors of a zone, a single one of them, or those of
// EveryZone. Its text forms are "zone", "zone/node" and "*".
type LinkEnd struct {
	Zone string
	Node string // empty: all processors of the zone
}

// ParseLinkEnd parses "zone", "zone/node" or "*".
func ParseLinkEnd(s string) (LinkEnd, error) {
	if strings.Contains(s, "/") {
		id, err := ParseNodeID(s)
		return LinkEnd{Zone: id.Zone, Node: id.Name}, err
	}
	end := LinkEnd{Zone: s}
	if s == EveryZone {
		return end, nil
	}
	if err := CheckName(s); err != nil {
		return LinkEnd{}, fmt.Errorf("zone: %w", err)
	}
	return end, nil
}

func (e LinkEnd) String() string {
	if e.Node == "" {
		return e.Zone
	}
	return e.Zone + "/" + e.Node
}

// MarshalText implements encoding.TextMarshaler.
func (e LinkEnd) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (e *LinkEnd) UnmarshalText(b []byte) error {
	v, err := ParseLinkEnd(string(b))
	if err != nil {
		return err
	}
	*e = v
	return nil
}

// Has reports whether a processor is at this end.
func (e LinkEnd) Has(processor NodeID) bool {
	return (e.Zone == EveryZone || e.Zone == processor.Zone) && (e.Node == "" || e.Node == processor.Name)
}

// Covers reports whether the link joins two processors. A disabled link joins none.
func (l LinkRule) Covers(a, b NodeID) bool { return !l.Disabled && l.names(a, b) }

// names reports whether the two processors are at the ends of the link, disabled or not.
func (l LinkRule) names(a, b NodeID) bool {
	return a.Zone != b.Zone && (l.Between[0].Has(a) && l.Between[1].Has(b) || l.Between[0].Has(b) && l.Between[1].Has(a))
}

// HasLabel reports whether the link has a label.
func (l LinkRule) HasLabel(label string) bool { return slices.Contains(l.Labels, label) }

// canonical returns the link without description and position, its labels and ends in order.
func (l LinkRule) canonical() LinkRule {
	l.Description, l.Pos, l.Labels = "", Position{}, slices.Sorted(slices.Values(l.Labels))
	slices.SortFunc(l.Between[:], func(a, b LinkEnd) int { return strings.Compare(a.String(), b.String()) })
	return l
}

// CanonicalLinks returns links ordered by name, in the form that does not depend on how they were
// written: ends and labels in order, without descriptions and positions.
func CanonicalLinks(links []LinkRule) []LinkRule {
	list := make([]LinkRule, len(links))
	for i, l := range links {
		list[i] = l.canonical()
	}
	slices.SortFunc(list, func(a, b LinkRule) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// ImplicitLink is the link of a fabric that declares none: between each two processors of different
// zones, without labels. It has no name.
var ImplicitLink = LinkRule{Between: [2]LinkEnd{{Zone: EveryZone}, {Zone: EveryZone}}, Cost: DefaultLinkCost}

// LinksOf returns the links that declared ones stand for: themselves or, if there are none, the
// ImplicitLink.
func LinksOf(declared []LinkRule) []LinkRule {
	if len(declared) == 0 {
		return []LinkRule{ImplicitLink}
	}
	return declared
}

// checkLinks checks what holds for each link, whatever nodes there are.
func (g *Graph) checkLinks(report reporter) {
	if len(g.Links) > maxLinks {
		report(g.Links[maxLinks].Pos, `join zones, or "*", instead of single processors`, "the graph has %d links; the most is %d", len(g.Links), maxLinks)
	}
	for i := range g.Links {
		l := &g.Links[i]
		if err := CheckName(l.Name); err != nil {
			report(l.Pos, "choose another name for the link", "link: %v", err)
		}
		for _, other := range g.Links[:i] {
			if other.Name == l.Name {
				report(l.Pos, "rename one of the two", "link %q: the name is already taken at %s", l.Name, other.Pos)
			}
		}
		l.check(report)
	}
}

func (l *LinkRule) check(report reporter) {
	for _, e := range l.Between {
		if _, err := ParseLinkEnd(e.String()); err != nil {
			report(l.Pos, `name a zone, a processor as "zone/node", or "*" for every zone`, "link %q: %v", l.Name, err)
			return
		}
	}
	if fault, remedy := EndsFault(l.Between[0], l.Between[1]); fault != "" {
		report(l.Pos, remedy, "link %q %s", l.Name, fault)
	}
	if len(l.Labels) > maxLinkLabels {
		report(l.Pos, "remove some", "link %q has %d labels; the most is %d", l.Name, len(l.Labels), maxLinkLabels)
	}
	checkPathLabels(l.Labels, "link "+strconv.Quote(l.Name), l.Pos, report)
	if err := CheckName(cmp.Or(l.Endpoints, DefaultEndpoints)); err != nil {
		report(l.Pos, "write the name that the processors' configurations give to the addresses", "the endpoints of link %q: %v", l.Name, err)
	}
	if l.MTU != 0 && (l.MTU < MinLinkMTU || l.MTU > MaxLinkMTU) {
		report(l.Pos, "correct it, or remove it for the MTU of the processors", "the MTU %d of link %q is outside %d-%d", l.MTU, l.Name, MinLinkMTU, MaxLinkMTU)
	}
}

// checkPathLabels checks the labels of a link, or those of a contract's path.
func checkPathLabels(labels []string, whose string, pos Position, report reporter) {
	for i, label := range labels {
		switch {
		case label == "":
			report(pos, "set a value or remove it", "%s lists an empty label", whose)
		case slices.Index(labels, label) != i:
			report(pos, "remove one of the two", "%s lists label %q twice", whose, label)
		}
	}
}

// EndsFault returns why no link can have these two ends and what to do about it, or "".
func EndsFault(a, b LinkEnd) (fault, remedy string) {
	if a.Zone == b.Zone && a.Zone != EveryZone {
		return fmt.Sprintf("has both ends in zone %s", a.Zone), "name two zones: the nodes of one zone are linked without it"
	}
	return "", ""
}

// check checks the labels of a contract's path.
func (p Path) check(contract string, pos Position, report reporter) {
	for _, wish := range p.wishes() {
		checkPathLabels(wish.labels, fmt.Sprintf("%s of contract %q", wish.name, contract), pos, report)
	}
	for _, label := range p.Require {
		if slices.Contains(p.Avoid, label) {
			report(pos, "remove one of the two", "contract %q requires and avoids label %q", contract, label)
		}
	}
}

// wish is one part of a path.
type wish struct {
	name   string
	labels []string
}

func (p Path) wishes() []wish {
	return []wish{{"require", p.Require}, {"prefer", p.Prefer}, {"avoid", p.Avoid}}
}

// same reports whether two paths have the same meaning.
func (p Path) same(q Path) bool {
	return slices.Equal(p.Require, q.Require) && slices.Equal(p.Prefer, q.Prefer) && slices.Equal(p.Avoid, q.Avoid)
}

// empty reports whether the path wishes nothing.
func (p Path) empty() bool { return len(p.Require)+len(p.Prefer)+len(p.Avoid) == 0 }

// Vacant returns the ends of the link at which there is none of the processors.
func (l LinkRule) Vacant(processors []NodeID) []LinkEnd {
	var list []LinkEnd
	for _, e := range l.Between {
		if !slices.ContainsFunc(processors, e.Has) {
			list = append(list, e)
		}
	}
	return list
}

// Joins returns a function that reports whether there is a way between two zones, over one link or
// several, on which each link has what the path requires. links are the declared ones.
func (p Path) Joins(links []LinkRule, processors []NodeID) func(a, b string) bool {
	group := make([]int, len(processors)) // of processors with ways among them
	for i := range group {
		group[i] = i
	}
	find := func(i int) int {
		for group[i] != i {
			i = group[i]
		}
		return i
	}
	for _, l := range LinksOf(links) {
		if !p.allows(l) {
			continue
		}
		for i, a := range processors {
			for j, b := range processors[:i] {
				if l.Covers(a, b) {
					group[find(i)] = find(j)
				}
			}
		}
	}
	in := map[string]map[int]bool{} // groups by zone
	for i, id := range processors {
		if in[id.Zone] == nil {
			in[id.Zone] = map[int]bool{}
		}
		in[id.Zone][find(i)] = true
	}
	return func(a, b string) bool {
		for g := range in[a] {
			if in[b][g] {
				return true
			}
		}
		return false
	}
}

// UnmetPaths returns a problem for each label in a contract's path that no link has, and for each
// contract whose required labels no single link has together. Such a graph can be applied all the
// same: what cannot be had is preferred or avoided without effect, and no way between zones fits
// what requires it. If domains are named, it looks at their contracts only.
func (g *Graph) UnmetPaths(domains ...string) []Problem {
	var list []Problem
	for _, d := range g.sortedDomains() {
		if len(domains) > 0 && !slices.Contains(domains, d.Name) {
			continue
		}
		for i := range d.Contracts {
			if c := &d.Contracts[i]; !c.Disabled && !c.Path.empty() {
				list = append(list, c.unmet(d.Name, g.Links)...)
			}
		}
	}
	return list
}

func (c *Contract) unmet(domain string, links []LinkRule) []Problem {
	var list []Problem
	name := Ref{domain, c.Name}
	report := func(remedy, format string, args ...any) {
		list = append(list, Problem{Pos: c.Pos, Summary: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	found := map[string]bool{}
	for _, l := range links {
		for _, label := range l.Labels {
			found[label] = found[label] || !l.Disabled
		}
	}
	labels := slices.Collect(maps.Keys(found))
	remedy := func(label string) string {
		if near := Nearest(label, labels); near != "" && near != label {
			return fmt.Sprintf("did you mean %q?", near)
		}
		if len(links) == 0 {
			return "declare links with labels: a fabric without link blocks links all zones by links without labels"
		}
		return "correct it, or have the operators of the fabric set it in a link block"
	}
	lacks := func(label string) string {
		if enabled, declared := found[label]; declared && !enabled {
			return "no enabled link has"
		}
		return "no link has"
	}
	missing := false
	for _, w := range c.Path.wishes() {
		for _, label := range w.labels {
			switch {
			case found[label]:
			case w.name == "require":
				missing = true
				report(remedy(label), "contract %s requires label %q, which %s: no way between zones fits it", name, label, lacks(label))
			default:
				report(remedy(label), "contract %s %ss label %q, which %s: that has no effect", name, w.name, label, lacks(label))
			}
		}
	}
	if !missing && len(c.Path.Require) > 0 && !slices.ContainsFunc(links, func(l LinkRule) bool { return !l.Disabled && c.Path.allows(l) }) {
		report("give one link all of them", "contract %s requires the labels %s, which no enabled link has together: no way between zones fits it",
			name, strings.Join(c.Path.Require, ", "))
	}
	return list
}

// allows reports whether the path may lead over a link.
func (p Path) allows(l LinkRule) bool {
	return !slices.ContainsFunc(p.Require, func(label string) bool { return !l.HasLabel(label) })
}

// LinkChange is a link that was added, removed or altered. A graph without links counts as one with
// the ImplicitLink, which has neither name nor position. What names the parts that differ.
type LinkChange struct {
	Name   string     `json:"name,omitempty"`
	Pos    Position   `json:"pos,omitzero"`
	Change Alteration `json:"change"`
	What   []string   `json:"what,omitempty"` // such as "cost 100 to 10"
}

// compareLinks returns how the links of two graphs differ, ordered by name.
func compareLinks(before, after []LinkRule) []LinkChange {
	if reflect.DeepEqual(before, after) {
		return nil
	}
	byName := func(links []LinkRule) map[string]LinkRule {
		m := map[string]LinkRule{}
		for _, l := range LinksOf(links) {
			m[l.Name] = l
		}
		return m
	}
	var list []LinkChange
	was, is := byName(before), byName(after)
	for _, name := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(sortedKeys(was), sortedKeys(is))))) {
		o, had := was[name]
		n, has := is[name]
		switch {
		case !had:
			list = append(list, LinkChange{Name: name, Pos: n.Pos, Change: Added})
		case !has:
			list = append(list, LinkChange{Name: name, Pos: o.Pos, Change: Removed})
		default:
			if what := o.differences(n); len(what) > 0 {
				list = append(list, LinkChange{Name: name, Pos: n.Pos, Change: Altered, What: what})
			}
		}
	}
	return list
}

// differences says in what two versions of a link differ in effect.
func (l LinkRule) differences(is LinkRule) []string {
	var what []string
	differ := func(name, was, is string) {
		if was != is {
			what = append(what, fmt.Sprintf("%s %s to %s", name, was, is))
		}
	}
	list := func(labels []string) string { return "[" + strings.Join(labels, ", ") + "]" }
	mtu := func(bytes int) string {
		if bytes == 0 {
			return "of the processors"
		}
		return strconv.Itoa(bytes)
	}
	o, n := l.canonical(), is.canonical()
	differ("between", o.Between[0].String()+" and "+o.Between[1].String(), n.Between[0].String()+" and "+n.Between[1].String())
	differ("labels", list(o.Labels), list(n.Labels))
	differ("cost", strconv.Itoa(int(o.Cost)), strconv.Itoa(int(n.Cost)))
	differ("endpoints", cmp.Or(o.Endpoints, DefaultEndpoints), cmp.Or(n.Endpoints, DefaultEndpoints))
	differ("mtu", mtu(o.MTU), mtu(n.MTU))
	differ("enabled", strconv.FormatBool(!o.Disabled), strconv.FormatBool(!n.Disabled))
	return what
}
