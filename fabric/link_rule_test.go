// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

func linkBetween(t testing.TB, a, b string) LinkRule {
	t.Helper()
	var l LinkRule
	for i, s := range []string{a, b} {
		end, err := ParseLinkEnd(s)
		must.NoError(t, err)
		l.Between[i] = end
	}
	l.Name, l.Cost = "l", DefaultLinkCost
	return l
}

func TestLinkCovers(t *testing.T) {
	aws1, aws2, gcp1 := NodeID{"aws1", "p1"}, NodeID{"aws1", "p2"}, NodeID{"gcp1", "p1"}
	for _, c := range []struct {
		a, b string
		x, y NodeID
		want bool
	}{
		{"aws1", "gcp1", aws1, gcp1, true},
		{"aws1", "gcp1", aws2, gcp1, true},
		{"aws1/p1", "gcp1", aws1, gcp1, true},
		{"aws1/p1", "gcp1", aws2, gcp1, false},
		{"aws1/p1", "gcp1/p2", aws1, gcp1, false},
		{"aws1", "*", aws1, gcp1, true},
		{"gcp1", "*", aws1, gcp1, true},
		{"azure", "*", aws1, gcp1, false},
		{"*", "*", aws1, gcp1, true},
		{"*", "*", aws1, aws2, false}, // nodes of one zone
		{"aws1/p1", "*", aws1, aws2, false},
	} {
		l := linkBetween(t, c.a, c.b)
		must.Eq(t, c.want, l.Covers(c.x, c.y), must.Sprint(c))
		must.Eq(t, c.want, l.Covers(c.y, c.x), must.Sprint(c))
		l.Disabled = true
		must.False(t, l.Covers(c.x, c.y), must.Sprint(c))
	}
	must.Eq(t, []LinkRule{ImplicitLink}, LinksOf(nil))
	must.True(t, ImplicitLink.Covers(aws1, gcp1))
	must.False(t, ImplicitLink.Covers(aws1, aws2))
}

func TestCheckLinks(t *testing.T) {
	good := linkBetween(t, "aws1", "gcp1")
	edit := func(f func(*LinkRule)) []LinkRule {
		l := good
		f(&l)
		return []LinkRule{l}
	}
	for _, c := range []struct {
		links []LinkRule
		want  string // empty: no problem
	}{
		{[]LinkRule{good}, ""},
		{edit(func(l *LinkRule) { l.Labels, l.MTU, l.Endpoints, l.Cost = []string{"a", "b"}, 1400, "private", 0 }), ""},
		{edit(func(l *LinkRule) { l.Name = "Bad" }), `link: name "Bad" contains 'B'`},
		{edit(func(l *LinkRule) { l.Between[1] = LinkEnd{} }), `link "l": zone: name must not be empty`},
		{edit(func(l *LinkRule) { l.Between[1] = LinkEnd{Zone: "*", Node: "p1"} }), `link "l": zone of node "*/p1"`},
		{edit(func(l *LinkRule) { l.Between[1] = l.Between[0] }), `link "l" has both ends in zone aws1`},
		{edit(func(l *LinkRule) { l.Labels = []string{"a", "a"} }), `link "l" lists label "a" twice`},
		{edit(func(l *LinkRule) { l.Labels = []string{""} }), `link "l" lists an empty label`},
		{edit(func(l *LinkRule) { l.Labels = make([]string, maxLinkLabels+1) }), `link "l" has 65 labels`},
		{edit(func(l *LinkRule) { l.MTU = 1319 }), `the MTU 1319 of link "l" is outside 1320-65455`},
		{edit(func(l *LinkRule) { l.MTU = -1 }), `the MTU -1 of link "l" is outside`},
		{edit(func(l *LinkRule) { l.Endpoints = "no such name" }), `the endpoints of link "l"`},
		{[]LinkRule{good, good}, `link "l": the name is already taken`},
		{slices.Repeat([]LinkRule{good}, maxLinks+1), "the graph has 1001 links"},
	} {
		problems := (&Graph{Links: c.links}).Check(reachNow)
		if c.want == "" {
			must.SliceEmpty(t, problems)
			continue
		}
		must.SliceNotEmpty(t, problems, must.Sprint(c.want))
		must.StrContains(t, problems[0].String(), c.want)
		must.NotEq(t, "", problems[0].Remedy)
	}
}

// What a path wishes and no link has is named, with the contract and its place.
func TestUnmetPaths(t *testing.T) {
	link := func(name string, labels ...string) LinkRule {
		l := linkBetween(t, "aws1", "gcp1")
		l.Name, l.Labels = name, labels
		return l
	}
	off := link("off", "sleeping")
	off.Disabled = true
	links := []LinkRule{link("l1", "encrypted", "low-cost"), link("l2", "metered"), off}
	for _, c := range []struct {
		path  Path
		links []LinkRule
		want  []string
	}{
		{Path{}, nil, nil},
		{Path{Require: []string{"encrypted", "low-cost"}, Prefer: []string{"metered"}, Avoid: []string{"metered"}}, links, nil},
		{Path{Require: []string{"encrypted"}}, nil, []string{`contract a/c requires label "encrypted", which no link has: no way between zones fits it; declare links with labels`}},
		{Path{Require: []string{"encryptd"}}, links, []string{`requires label "encryptd", which no link has: no way between zones fits it; did you mean "encrypted"?`}},
		{Path{Require: []string{"sleeping"}}, links, []string{`requires label "sleeping", which no enabled link has: no way between zones fits it`}},
		{Path{Require: []string{"encrypted", "metered"}}, links, []string{`requires the labels encrypted, metered, which no enabled link has together`}},
		{Path{Prefer: []string{"fast"}, Avoid: []string{"slow"}}, links, []string{
			`contract a/c prefers label "fast", which no link has: that has no effect`, `contract a/c avoids label "slow", which no link has: that has no effect`}},
	} {
		contract := Contract{Name: "c", Path: c.path, Pos: Position{File: "g", Line: 3, Column: 1}}
		g := &Graph{Domains: map[string]*Domain{"a": {Name: "a", Contracts: []Contract{contract}}}, Links: c.links}
		var got []string
		for _, p := range g.UnmetPaths() {
			got = append(got, p.String())
		}
		must.Len(t, len(c.want), got, must.Sprint(got))
		for i := range got {
			must.StrContains(t, got[i], c.want[i])
			must.StrHasPrefix(t, "g:3:1: ", got[i])
		}
		g.Domains["a"].Contracts[0].Disabled = true
		must.SliceEmpty(t, g.UnmetPaths())
	}
	contradiction := Contract{Name: "c", Path: Path{Require: []string{"a"}, Avoid: []string{"a"}}}
	g := &Graph{Domains: map[string]*Domain{"a": {Name: "a", Contracts: []Contract{contradiction}}}}
	must.True(t, slices.ContainsFunc(g.Check(reachNow), func(p Problem) bool {
		return strings.Contains(p.Summary, `contract "c" requires and avoids label "a"`)
	}))
}

func TestCompareLinks(t *testing.T) {
	l := linkBetween(t, "aws1", "gcp1")
	l.Labels, l.Pos = []string{"a", "b"}, Position{File: "g", Line: 1, Column: 1}
	same := l // it means the same
	same.Description, same.Labels, same.Between[0], same.Between[1] = "text", []string{"b", "a"}, l.Between[1], l.Between[0]
	other := l
	other.Cost, other.Labels, other.MTU, other.Endpoints, other.Disabled = 10, []string{"a"}, 1400, "private", true
	graph := func(links ...LinkRule) *Graph { return &Graph{Links: links} }
	compare := func(before, after *Graph) []LinkChange { return Compare(before, after, reachNow).Links }

	must.SliceEmpty(t, compare(graph(l), graph(same)))
	must.Eq(t, []LinkChange{{Change: Removed}, {Name: "l", Pos: l.Pos, Change: Added}}, compare(graph(), graph(l)))
	must.Eq(t, []LinkChange{{Change: Added}, {Name: "l", Pos: l.Pos, Change: Removed}}, compare(graph(l), graph()))
	must.Eq(t, []LinkChange{{Name: "l", Pos: l.Pos, Change: Altered, What: []string{
		"labels [a, b] to [a]", "cost 100 to 10", "endpoints default to private", "mtu of the processors to 1400", "enabled true to false",
	}}}, compare(graph(l), graph(other)))
	must.False(t, Compare(graph(l), graph(other), reachNow).Empty())
	must.Eq(t, CanonicalLinks([]LinkRule{l}), CanonicalLinks([]LinkRule{same}))
}

// The root names the links, and a revision without links is what it was before there were any.
func TestCompileLinks(t *testing.T) {
	none, _, _ := (*Compiled)(nil).Next(&Graph{})
	with, fresh, touched := none.Next(&Graph{Links: []LinkRule{linkBetween(t, "aws1", "*")}})
	must.NotEq(t, none.Root, with.Root)
	must.SliceEmpty(t, touched)
	must.NoError(t, with.CheckObjects(fresh))
	without, _, _ := with.Next(&Graph{})
	must.Eq(t, none.Root, without.Root)
}

func TestParseLinkEndInvertsString(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-z]{1,5}`)
		e := LinkEnd{Zone: name.Draw(t, "zone")}
		switch rapid.IntRange(0, 2).Draw(t, "kind") {
		case 0:
			e.Node = name.Draw(t, "node")
		case 1:
			e.Zone = EveryZone
		}
		data, err := json.Marshal(e)
		must.NoError(t, err)
		var back LinkEnd
		must.NoError(t, json.Unmarshal(data, &back))
		must.Eq(t, e, back)
	})
	for _, s := range []string{"", "A", "a/", "/b", "*/a", "a/*", "a/b/c", "**"} {
		_, err := ParseLinkEnd(s)
		must.Error(t, err, must.Sprint(s))
	}
}

func FuzzParseLinkEnd(f *testing.F) {
	for _, s := range []string{"aws1", "aws1/p1", "*", "*/x", "a--b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if e, err := ParseLinkEnd(s); err == nil {
			must.Eq(t, s, e.String())
		}
	})
}

// A path joins zones over any number of links that have what it requires.
func TestPathJoins(t *testing.T) {
	processors := []NodeID{{"a", "p1"}, {"a", "p2"}, {"b", "p1"}, {"b", "p2"}, {"c", "p1"}}
	link := func(a, b string, labels ...string) LinkRule {
		l := linkBetween(t, a, b)
		l.Labels = labels
		return l
	}
	safe := Path{Require: []string{"safe"}}
	off := link("a", "c", "safe")
	off.Disabled = true
	for _, c := range []struct {
		path  Path
		links []LinkRule
		want  bool // between a and c
	}{
		{Path{}, nil, true},
		{safe, nil, false},
		{Path{}, []LinkRule{link("a", "b")}, false},
		{Path{}, []LinkRule{link("a", "b"), link("b", "c")}, true},
		{safe, []LinkRule{link("a", "b", "safe"), link("b", "c")}, false},
		{safe, []LinkRule{link("a", "b", "safe"), link("*", "c", "x", "safe")}, true},
		{Path{}, []LinkRule{link("a/p1", "b/p1"), link("b/p2", "c")}, false}, // no link joins the two in zone b
		{Path{}, []LinkRule{off, link("a", "b")}, false},
	} {
		joins := c.path.Joins(c.links, processors)
		must.Eq(t, c.want, joins("a", "c"), must.Sprint(c))
		must.Eq(t, c.want, joins("c", "a"), must.Sprint(c))
		must.False(t, joins("a", "nowhere"))
	}
}
