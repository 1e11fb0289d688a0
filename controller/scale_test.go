// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"maps"
	"slices"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/graphgen"
	"github.com/sif-project/sif/internal/testhost"
)

// many starts a controller with the large graph of docs/performance.md in force.
type many struct {
	*running
	graph *fabric.Graph
	port  uint16
}

func newMany(b *testing.B) *many {
	w := newWorldOn(b, testhost.ConsulOnDisk)
	m := &many{running: w.fresh(b, nil), graph: graphgen.Generate(graphgen.Shape{Services: 10_000, Contracts: 50_000}), port: 20_000}
	_, err := m.operator.Apply(b.Context(), api.GraphRequest{Domains: m.graph.Domains, Guardrails: m.graph.Guardrails})
	must.NoError(b, err)
	return m
}

// change returns a request that changes a port of one contract. It contains the domain of that
// contract, or the whole graph as an operator's files would.
func (m *many) change(whole bool) api.GraphRequest {
	m.port++
	d := *m.graph.Domains["d00500"]
	d.Contracts = slices.Clone(d.Contracts)
	d.Contracts[7].Rules = []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: m.port, To: m.port}}}}
	if !whole {
		return api.GraphRequest{Domains: domains(&d)}
	}
	req := api.GraphRequest{Domains: maps.Clone(m.graph.Domains), Guardrails: m.graph.Guardrails}
	req.Domains[d.Name] = &d
	return req
}

// BenchmarkPlan plans a change of one contract among 50,000, from the HTTPS request to the decoded
// answer.
func BenchmarkPlan(b *testing.B) {
	m := newMany(b)
	m.eachSize(b, func(req api.GraphRequest) {
		plan, err := m.operator.Plan(b.Context(), req)
		must.NoError(b, err)
		must.Positive(b, len(plan.Delta.Reach))
	})
}

// BenchmarkApply applies the same change. Consul and the controller store it on disk.
func BenchmarkApply(b *testing.B) {
	m := newMany(b)
	m.eachSize(b, func(req api.GraphRequest) {
		reply, err := m.operator.Apply(b.Context(), req)
		must.NoError(b, err)
		must.True(b, reply.Changed)
	})
}

func (m *many) eachSize(b *testing.B, do func(api.GraphRequest)) {
	for _, size := range []struct {
		name  string
		whole bool
	}{{"one domain", false}, {"all domains", true}} {
		b.Run(size.name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				req := m.change(size.whole)
				b.StartTimer()
				do(req)
			}
		})
	}
}
