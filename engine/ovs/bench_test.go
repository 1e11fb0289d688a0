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
		p := ovs.NewPipeline(7, sw.Settle)
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

func BenchmarkUpdateOneEndpoint(b *testing.B) {
	ctx := context.Background()
	instance := ovstest.Start(b)
	sw := ovs.NewSwitch(instance.Config)
	must.NoError(b, sw.Create(ctx))
	p := ovs.NewPipeline(7, sw.Settle)
	conn, err := sw.Dial(ctx)
	must.NoError(b, err)
	b.Cleanup(func() { _ = conn.Close() })
	p.Attach(conn)
	state := crowd(*benchEndpoints)
	_, err = p.Replace(ctx, state)
	must.NoError(b, err)
	e := state.Endpoints[len(state.Endpoints)/2]
	var took []time.Duration
	for b.Loop() {
		e.Class ^= 1 << 20
		start := time.Now()
		must.NoError(b, p.PutEndpoint(ctx, e))
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "us-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "us-p99")
}
