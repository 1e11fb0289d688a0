// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs_test

import (
	"context"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

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

// thousand is 1,000 entries between the classes of a crowd of n endpoints.
func thousand(n int) []ovs.Entry {
	var entries []ovs.Entry
	for i := range 1000 {
		class, port := uint32(i%(n/100)+1), uint16(9000+i)
		entries = append(entries, ovs.Entry{
			ID: uint64(1<<20 + i), Src: class, Dst: class + 1, Protocol: 6, Ports: []ovs.PortRange{{First: port, Last: port}},
		})
	}
	return entries
}

func benchPipeline(b *testing.B) (*ovs.Pipeline, *ovstest.Instance) {
	ctx := context.Background()
	instance := ovstest.Start(b)
	sw := ovs.NewSwitch(instance.Config)
	must.NoError(b, sw.Create(ctx))
	conn, err := sw.Dial(ctx)
	must.NoError(b, err)
	b.Cleanup(func() { _ = conn.Close() })
	p := ovs.NewPipeline(7, sw.Revalidated)
	p.UseConn(conn)
	return p, instance
}

func BenchmarkLoad(b *testing.B) {
	ctx := context.Background()
	p, instance := benchPipeline(b)
	state := crowd(*benchEndpoints)
	var own, its time.Duration
	for b.Loop() {
		b.StopTimer()
		must.NoError(b, p.Set(ctx, ovs.State{}))
		ownBefore, itsBefore := processorTime(b), instance.ProcessorTime()
		b.StartTimer()
		must.NoError(b, p.Set(ctx, state))
		b.StopTimer()
		own, its = own+processorTime(b)-ownBefore, its+instance.ProcessorTime()-itsBefore
		b.StartTimer()
	}
	perLoad := func(d time.Duration) float64 { return float64(d.Milliseconds()) / float64(b.N) }
	b.ReportMetric(perLoad(b.Elapsed()), "ms/load")
	b.ReportMetric(perLoad(own), "own-cpu-ms/load")
	b.ReportMetric(perLoad(its), "switch-cpu-ms/load")
}

// processorTime returns how long this process has run on processors.
func processorTime(b *testing.B) time.Duration {
	var usage unix.Rusage
	must.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkLoadByTool loads the same flows by ovs-ofctl, which has them as text: what the switch
// itself needs, and the tool.
func BenchmarkLoadByTool(b *testing.B) {
	ctx := context.Background()
	p, instance := benchPipeline(b)
	must.NoError(b, p.Set(ctx, crowd(*benchEndpoints)))
	flows := ovstest.Run(b, "ovs-ofctl", "-O", "OpenFlow14", "--no-stats", "dump-flows", instance.Management())
	_, flows, _ = strings.Cut(flows, "\n") // the first line is the header of the answer
	file := filepath.Join(b.TempDir(), "flows")
	must.NoError(b, os.WriteFile(file, []byte(flows), 0o600))
	var its time.Duration
	for b.Loop() {
		b.StopTimer()
		instance.Ofctl("del-flows")
		before := instance.ProcessorTime()
		b.StartTimer()
		ovstest.Run(b, "ovs-ofctl", "-O", "OpenFlow14", "--bundle", "add-flows", instance.Management(), file)
		b.StopTimer()
		its += instance.ProcessorTime() - before
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/load")
	b.ReportMetric(float64(its.Milliseconds())/float64(b.N), "switch-cpu-ms/load")
}

// BenchmarkOneEndpoint adds an endpoint to the crowd and removes it again. A starting workload
// waits for the first; the second returns only when the datapath follows. Each state is built anew,
// as the engine does.
func BenchmarkOneEndpoint(b *testing.B) {
	ctx := context.Background()
	p, _ := benchPipeline(b)
	with, without := crowd(*benchEndpoints), crowd(*benchEndpoints)
	e := with.Endpoints[0]
	e.ID, e.Prefixes = 1<<32, []netip.Prefix{netip.MustParsePrefix("10.9.9.9/32"), netip.MustParsePrefix("fd00::9/128")}
	with.Endpoints = append(with.Endpoints, e)
	must.NoError(b, p.Set(ctx, without))
	var added, removed []time.Duration
	for b.Loop() {
		start := time.Now()
		must.NoError(b, p.Set(ctx, with))
		added = append(added, time.Since(start))
		start = time.Now()
		must.NoError(b, p.Set(ctx, without))
		removed = append(removed, time.Since(start))
	}
	for name, took := range map[string][]time.Duration{"add": added, "remove": removed} {
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), name+"-us-p50")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), name+"-us-p99")
	}
}

// BenchmarkRemoveThousandEntries returns when no packet passes by any of them.
func BenchmarkRemoveThousandEntries(b *testing.B) {
	ctx := context.Background()
	p, _ := benchPipeline(b)
	without := crowd(*benchEndpoints)
	with := without
	with.Entries = slices.Concat(without.Entries, thousand(*benchEndpoints))
	for b.Loop() {
		b.StopTimer()
		must.NoError(b, p.Set(ctx, with))
		b.StartTimer()
		must.NoError(b, p.Set(ctx, without))
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/removal")
}
