// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"maps"
	"runtime"
	"slices"
	"testing"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/graphgen"
)

// BenchmarkDecodeLarge parses and checks a graph of 10,000 services and 50,000
// contracts, a file for each domain, and has it compiled: what `sif graph
// apply` and the controller do of it together.
func BenchmarkDecodeLarge(b *testing.B) {
	g := graphgen.Generate(graphgen.Shape{Services: 10_000, Contracts: 50_000})
	var sources []Source
	var size int64
	for _, name := range slices.Sorted(maps.Keys(g.Domains)) {
		text := EncodeGraph(&fabric.Graph{Domains: map[string]*fabric.Domain{name: g.Domains[name]}})
		sources = append(sources, Source{Name: name + ".sif.hcl", Data: text})
		size += int64(len(text))
	}
	sources = append(sources, Source{Name: "guardrails.sif.hcl", Data: EncodeGraph(&fabric.Graph{Guardrails: g.Guardrails})})
	g = nil
	decode := func(b *testing.B) *fabric.Graph {
		g, diags := DecodeGraph(Options{}, sources...)
		if diags.HasErrors() {
			b.Fatal(diags[0])
		}
		return g
	}
	b.Run("decode and check", func(b *testing.B) {
		b.SetBytes(size)
		b.ReportAllocs()
		for b.Loop() {
			decode(b)
		}
	})
	b.Run("decode, check and compile", func(b *testing.B) {
		b.SetBytes(size)
		b.ReportAllocs()
		for b.Loop() {
			fabric.Compile(decode(b))
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		b.ReportMetric(float64(m.HeapSys)/(1<<20), "heap-MiB")
	})
}
