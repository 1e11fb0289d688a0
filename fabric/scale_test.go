// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/graphgen"
)

// large is the graph that the goals of docs/performance.md are about.
var large = graphgen.Shape{Services: 10_000, Contracts: 50_000}

func BenchmarkCheck(b *testing.B) {
	g := graphgen.Generate(large)
	b.ReportAllocs()
	for b.Loop() {
		if problems := g.Check(time.Now()); len(problems) > 0 {
			b.Fatal(problems[0])
		}
	}
}

func BenchmarkDocuments(b *testing.B) {
	g := graphgen.Generate(large)
	b.ReportAllocs()
	for b.Loop() {
		fabric.Documents(g)
	}
}

func BenchmarkCompile(b *testing.B) {
	g := graphgen.Generate(large)
	b.ReportAllocs()
	size := 0
	for b.Loop() {
		size = 0
		for _, o := range fabric.Compile(g).Objects {
			size += len(o.Data)
		}
	}
	b.ReportMetric(float64(size), "object-bytes")
}

// edited returns g with one more port in one contract, and nothing else changed.
func edited(g *fabric.Graph, port uint16) *fabric.Graph {
	next := &fabric.Graph{Domains: maps.Clone(g.Domains), Guardrails: g.Guardrails}
	d := *g.Domains["d00500"]
	d.Contracts = slices.Clone(d.Contracts)
	c := d.Contracts[7]
	c.Rules = append(slices.Clone(c.Rules), fabric.Rule{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: port, To: port}}})
	d.Contracts[7] = c
	next.Domains[d.Name] = &d
	return next
}

func BenchmarkNext(b *testing.B) {
	g := graphgen.Generate(large)
	var none *fabric.Compiled
	base, _, _ := none.Next(g)
	b.ReportAllocs()
	for b.Loop() {
		_, fresh, touched := base.Next(edited(g, 7777))
		if len(touched) == 0 || len(touched) > 4 || len(fresh) > 2*len(touched)+3 {
			b.Fatalf("%d services touched, %d objects", len(touched), len(fresh))
		}
	}
}
