// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package revision

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/graphgen"
	"github.com/sif-project/sif/internal/kvkey"
)

// scale is a large graph in a Consul, of which one contract changes at a time.
type scale struct {
	*lab
	base *fabric.Compiled
	port uint16
}

func newScale(t testing.TB, shape graphgen.Shape) *scale {
	s := &scale{lab: newLab(t)}
	start := time.Now()
	var none *fabric.Compiled
	next, fresh, _ := none.Next(graphgen.Generate(shape))
	compiled := time.Now()
	s.move(next, fresh)
	t.Logf("%d objects compiled in %s and written in %s", len(fresh), compiled.Sub(start).Round(time.Millisecond), time.Since(compiled).Round(time.Millisecond))
	return s
}

// move publishes the compiled revision.
func (s *scale) move(next *fabric.Compiled, fresh []fabric.Object) {
	s.t.Helper()
	var index uint64
	if s.sequence > 0 {
		index = s.get(kvkey.Current).ModifyIndex
	}
	s.sequence++
	signed := s.ca.Sign(fabric.KindPointer, fabric.Pointer{Fabric: name, Sequence: s.sequence, Root: next.Root, Time: time.Now()})
	must.NoError(s.t, NewWriter(s.consul, Unfenced(s.consul)).Publish(context.Background(), fabric.Revision{Root: next.Root, Objects: fresh}, signed, index))
	s.base = next
}

// change compiles the graph with another port in one contract.
func (s *scale) change() (next *fabric.Compiled, fresh []fabric.Object, touched []fabric.Ref) {
	s.port++
	g := &fabric.Graph{Domains: maps.Clone(s.base.Graph.Domains), Guardrails: s.base.Graph.Guardrails, Bindings: s.base.Graph.Bindings}
	for _, name := range slices.Sorted(maps.Keys(g.Domains)) {
		d := *g.Domains[name]
		if len(d.Contracts) > 0 {
			d.Contracts = slices.Clone(d.Contracts)
			d.Contracts[0].Rules = []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: s.port, To: s.port}}}}
			g.Domains[name] = &d
			break
		}
	}
	return s.base.Next(g)
}

// Of a change of one contract only the documents that differ are written, with the shards and the
// indexes that lead to them.
func TestOnlyWhatChangedIsWritten(t *testing.T) {
	s := newScale(t, graphgen.Shape{Services: 1000, Contracts: 5000})
	before := s.get(kvkey.Current).ModifyIndex
	next, fresh, touched := s.change()
	s.move(next, fresh)
	pairs, _, err := s.consul.KV().List("sif/v1/", nil)
	must.NoError(t, err)
	var written []string
	for _, p := range pairs {
		if p.ModifyIndex > before {
			written = append(written, p.Key)
		}
	}
	must.Greater(t, 1, len(touched))
	// Documents and at most as many shards; the domain and the index of domains; root; pointer.
	must.LessEq(t, 2*len(touched)+4, len(written))
	must.GreaterEq(t, len(touched)+5, len(written))
	must.Eq(t, len(fresh)+1, len(written))

	// A reader that has seen none of it finds all objects.
	f := s.follower(t.TempDir())
	must.True(t, f.consider(context.Background(), s.get(kvkey.Current)))
	for r, want := range next.Documents {
		if len(f.Documents()) == 50 {
			break
		}
		doc, err := f.Document(context.Background(), r)
		must.NoError(t, err)
		must.Eq(t, want, doc)
	}
}

// BenchmarkPublishOneContract is the time that it takes to write one changed contract among 50,000
// to a Consul, once it is compiled and signed.
func BenchmarkPublishOneContract(b *testing.B) {
	s := newScale(b, graphgen.Shape{Services: 10_000, Contracts: 50_000})
	objects := 0
	for b.Loop() {
		b.StopTimer()
		next, fresh, _ := s.change()
		objects = len(fresh)
		b.StartTimer()
		s.move(next, fresh)
	}
	b.ReportMetric(float64(objects+1), "keys/op")
}
