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

// CheckChange finds what Check finds, for any change to any graph that has passed Check.
func TestCheckChangeIsCheck(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := &Graph{Domains: map[string]*Domain{}}
		for range rapid.IntRange(8, 16).Draw(t, "changes") {
			next := drawChange(t, base)
			problems := next.Check(reachNow)
			must.Eq(t, problems, next.CheckChange(base, reachNow))
			if len(problems) == 0 {
				base = next
			}
		}
	})
}

// drawChange draws a graph that shares some or all domains with base.
func drawChange(t *rapid.T, base *Graph) *Graph {
	next := &Graph{Domains: maps.Clone(base.Domains), Guardrails: base.Guardrails}
	for name, d := range drawRichGraph(t, "next ").Domains {
		tier := rapid.SampledFrom([]string{"", "one", "two"})
		d.Labels = Labels{"tier": tier.Draw(t, "domain's tier")}
		for i := range d.Services {
			d.Services[i].Labels = Labels{"tier": tier.Draw(t, "tier")}
		}
		if name == "a" && rapid.Bool().Draw(t, "across") {
			d.Contracts = append(d.Contracts, Contract{
				Name: "across", Originators: []Ref{{"a", "s0"}},
				Responders: []Ref{{"b", rapid.SampledFrom([]string{"s0", "ext"}).Draw(t, "responder")}},
				Rules:      []Rule{{Protocol: TCP, Ports: []PortRange{{5, 9}}}},
			})
		}
		if rapid.Bool().Draw(t, "taken") {
			next.Domains[name] = d
		}
	}
	if rapid.IntRange(0, 4).Draw(t, "remove") == 0 {
		delete(next.Domains, rapid.SampledFrom([]string{"a", "b"}).Draw(t, "removed"))
	}
	if rapid.IntRange(0, 2).Draw(t, "guardrails") == 0 {
		next.Guardrails = slices.Repeat([]Guardrail{{Name: "g", Deny: []Denial{{
			From: Labels{"tier": "one"}, To: Labels{"tier": "two"},
			Rules: []Rule{{Protocol: TCP, Ports: []PortRange{{1, 5}}}},
		}}}}, rapid.IntRange(0, 2).Draw(t, "number"))
	}
	return next
}

// Graph.Unenforced is what all of its documents report.
func TestUnenforcedIsThatOfTheDocuments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		for range 30 { // most graphs have little of it
			g := drawRichGraph(t, "")
			var want []string
			for _, d := range Documents(g) {
				want = append(want, d.Unenforced()...)
			}
			slices.Sort(want)
			must.Eq(t, want, g.Unenforced())
		}
	})
}
