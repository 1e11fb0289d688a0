// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"bytes"
	"maps"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"testing"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/graphgen"
)

// BenchmarkDecodeLarge parses and checks a graph of 10,000 services and 50,000 contracts, and
// compiles it: the work of sif graph apply and of the controller together. Its metric is the peak
// of the heap in use, the files included, measured in one more run.
func BenchmarkDecodeLarge(b *testing.B) {
	for _, c := range []struct {
		name string
		form func([]Source) []Source
	}{
		{"a file for each domain", func(files []Source) []Source { return files }},
		{"one file", func(files []Source) []Source {
			var all []byte
			for _, f := range files {
				all = append(all, f.Data...)
			}
			return []Source{{Name: "graph.sif.hcl", Data: bytes.Clone(all)}}
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			sources := c.form(largeGraph())
			run := func(name string, do func(*fabric.Graph)) {
				decode := func() {
					g, diags := DecodeGraph(Options{}, sources...)
					if diags.HasErrors() {
						b.Fatal(diags[0])
					}
					do(g)
				}
				b.Run(name, func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						decode()
					}
					b.ReportMetric(float64(peakHeap(decode))/(1<<20), "peak-heap-MiB")
				})
			}
			run("decode and check", func(*fabric.Graph) {})
			run("decode, check and compile", func(g *fabric.Graph) { fabric.Compile(g) })
		})
	}
}

// largeGraph returns the files of a large graph, one for each domain.
func largeGraph() []Source {
	g := graphgen.Generate(graphgen.Shape{Services: 10_000, Contracts: 50_000})
	var sources []Source
	for _, name := range slices.Sorted(maps.Keys(g.Domains)) {
		part := &fabric.Graph{Domains: map[string]*fabric.Domain{name: g.Domains[name]}}
		sources = append(sources, Source{Name: name + ".sif.hcl", Data: EncodeGraph(part)})
	}
	return append(sources, Source{Name: "guardrails.sif.hcl", Data: EncodeGraph(&fabric.Graph{Guardrails: g.Guardrails})})
}

// peakHeap returns the peak of the heap in use (HeapInuse of runtime.MemStats) while do runs,
// sampled every millisecond. It frees garbage first.
func peakHeap(do func()) uint64 {
	debug.FreeOSMemory()
	done, peak := make(chan struct{}), make(chan uint64)
	go func() {
		inUse := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		most := uint64(0)
		for {
			metrics.Read(inUse)
			most = max(most, inUse[0].Value.Uint64()+inUse[1].Value.Uint64())
			select {
			case <-tick.C:
			case <-done:
				peak <- most
				return
			}
		}
	}()
	do()
	close(done)
	return <-peak
}
