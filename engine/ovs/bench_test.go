// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs_test

import (
	"context"
	"flag"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/ovs/ovstest"
)

var benchEndpoints = flag.Int("endpoints", 10_000, "endpoints in the switch during benchmarks")

// crowd is n endpoints of one address each, in n/100 classes.
func crowd(n int) ovs.State {
	state := ovs.State{Ports: []ovs.Port{{No: 1}, {No: 2}}}
	addr := netip.MustParseAddr("100.64.0.0")
	for i := range n {
		addr = addr.Next()
		state.Endpoints = append(state.Endpoints, ovs.Endpoint{
			ID: uint64(i + 1), Class: uint32(i/100 + 1), SourcePorts: []uint32{uint32(i%2 + 1)}, OutPort: uint32(i%2 + 1),
			Prefixes: []netip.Prefix{netip.PrefixFrom(addr, 32)},
		})
		if i%100 == 0 {
			state.Entries = append(state.Entries, ovs.Entry{
				ID: uint64(i/100 + 1), Src: uint32(i/100 + 1), Dst: uint32(i/100 + 2), Protocol: 6,
				Ports: []ovs.PortRange{{First: 8080, Last: 8080}},
			})
		}
	}
	return state
}

func BenchmarkReplaceFromNothing(b *testing.B) {
	ctx := context.Background()
	instance := ovstest.Start(b)
	sw := ovs.NewSwitch(instance.Config)
	must.NoError(b, sw.Create(ctx))
	state := crowd(*benchEndpoints)
	for b.Loop() {
		b.StopTimer()
		p := ovs.NewPipeline(7, sw.Revalidated)
		conn, err := sw.Dial(ctx)
		must.NoError(b, err)
		p.Attach(conn)
		_, err = p.Replace(ctx, ovs.State{})
		must.NoError(b, err)
		b.StartTimer()
		_, err = p.Replace(ctx, state)
		must.NoError(b, err)
		b.StopTimer()
		_ = conn.Close()
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/replace")
}

// BenchmarkOneEndpoint adds an endpoint to the crowd and removes it again: the
// first is the way of a starting workload, the second returns only when the
// datapath follows.
func BenchmarkOneEndpoint(b *testing.B) {
	ctx := context.Background()
	instance := ovstest.Start(b)
	sw := ovs.NewSwitch(instance.Config)
	must.NoError(b, sw.Create(ctx))
	p := ovs.NewPipeline(7, sw.Revalidated)
	conn, err := sw.Dial(ctx)
	must.NoError(b, err)
	b.Cleanup(func() { _ = conn.Close() })
	p.Attach(conn)
	state := crowd(*benchEndpoints)
	_, err = p.Replace(ctx, state)
	must.NoError(b, err)
	e := state.Endpoints[0]
	e.ID, e.Prefixes = 1<<32, []netip.Prefix{netip.MustParsePrefix("10.9.9.9/32"), netip.MustParsePrefix("fd00::9/128")}
	var added, settled, removed []time.Duration
	for b.Loop() {
		start := time.Now()
		must.NoError(b, p.PutEndpoint(ctx, e))
		added = append(added, time.Since(start))
		start = time.Now()
		must.NoError(b, p.Settle(ctx))
		settled = append(settled, time.Since(start))
		start = time.Now()
		must.NoError(b, p.DeleteEndpoint(ctx, e.ID))
		removed = append(removed, time.Since(start))
	}
	for name, took := range map[string][]time.Duration{"add": added, "settle": settled, "remove": removed} {
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), name+"-us-p50")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), name+"-us-p99")
	}
}
