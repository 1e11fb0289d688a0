// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"maps"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

// Compiled.Next gives what Compile gives, over any sequence of graphs, and the fresh objects of all
// steps include every object of the last.
func TestNextIsCompile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c *Compiled
		store := map[Hash][]byte{}
		for range rapid.IntRange(1, 4).Draw(t, "graphs") {
			g := drawGraph(t)
			if rapid.Bool().Draw(t, "rich") {
				g = drawRichGraph(t, "")
			}
			if c != nil && rapid.Bool().Draw(t, "one domain only") {
				kept := &Graph{Domains: maps.Clone(c.Graph.Domains), Guardrails: c.Graph.Guardrails, Bindings: c.Graph.Bindings}
				if d := g.Domains["d1"]; d != nil && kept.Domains["d1"] != nil {
					kept.Domains["d1"] = d
				}
				g = kept
			}
			if rapid.Bool().Draw(t, "guardrails") {
				g.Guardrails = []Guardrail{{Name: "g"}}
			}
			if rapid.Bool().Draw(t, "bindings") {
				g.Bindings = drawBindings(t, "")
			}
			full := Compile(g)
			before := c
			next, fresh, touched := c.Next(g)
			c = next
			must.Eq(t, full.Root, c.Root)
			for _, o := range fresh {
				store[o.Hash] = o.Data
			}
			for _, o := range full.Objects {
				must.Eq(t, string(o.Data), string(store[o.Hash]))
			}
			must.Eq(t, docsByName(g), c.Documents)
			must.Eq(t, differing(before, c), touched)
		}
	})
}

func docsByName(g *Graph) map[Ref]Document {
	docs := map[Ref]Document{}
	for _, d := range Documents(g) {
		docs[d.Service] = d
	}
	return docs
}

func differing(a, b *Compiled) []Ref {
	var old map[Ref]Document
	if a != nil {
		old = a.Documents
	}
	set := map[Ref]bool{}
	for r, d := range old {
		if n, ok := b.Documents[r]; !ok || NewObject(n).Hash != NewObject(d).Hash {
			set[r] = true
		}
	}
	for r := range b.Documents {
		if _, ok := old[r]; !ok {
			set[r] = true
		}
	}
	return slices.SortedFunc(maps.Keys(set), CompareRefs)
}
