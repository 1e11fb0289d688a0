// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/engine/ovs"
)

// kernel opens the pinned data path of a workload node.
func (f *fabricUnderTest) kernel(t *testing.T, node string) *bpf.Datapath {
	t.Helper()
	d, err := bpf.OpenPinned(filepath.Join(f.BPFDir(node), "sif"))
	must.NoError(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

// kernelPasses makes eBPF let everything pass on the given nodes, or on all, until undo is called
// or the test ends.
func (f *fabricUnderTest) kernelPasses(t *testing.T, nodes ...string) (undo func()) {
	t.Helper()
	var opened []*bpf.Datapath
	undo = func() {
		for _, d := range opened {
			must.NoError(t, d.SetPassAll(false))
		}
	}
	for _, n := range f.Topology.Nodes(lab.Workload) {
		if len(nodes) == 0 || slices.Contains(nodes, n.Name) {
			d := f.kernel(t, n.Name)
			must.NoError(t, d.SetPassAll(true))
			opened = append(opened, d)
		}
	}
	t.Cleanup(undo)
	return undo
}

// kernelDrops counts the packets that eBPF judged to drop on a node in one direction; passed counts
// those of them that passed because of kernelPasses.
func (f *fabricUnderTest) kernelDrops(t *testing.T, node string, dir bpf.Direction) (dropped, passed uint64) {
	t.Helper()
	c, err := f.kernel(t, node).Counters()
	must.NoError(t, err)
	for _, v := range c.Verdicts {
		if v.Direction == dir && !v.Reason.Allowed() {
			dropped += v.Packets - v.Overridden
			passed += v.Overridden
		}
	}
	return dropped, passed
}

// boundary connects to a processor's switch, in addition to its engine.
func (f *fabricUnderTest) boundary(t *testing.T, node string) *ovs.Pipeline {
	t.Helper()
	controls, err := filepath.Glob(filepath.Join(f.OVSRunDir(node), "ovs-vswitchd*.ctl"))
	must.NoError(t, err)
	must.Len(t, 1, controls)
	s := ovs.NewSwitch(ovs.Config{RunDir: f.OVSRunDir(node), Control: controls[0], Bridge: "sif0"})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := s.Dial(ctx)
	must.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	// The zone matters only for flows of entries, which this pipeline never writes.
	p := ovs.NewPipeline(1, s.Revalidated)
	p.UseConn(conn)
	return p
}

// boundaryPasses makes Open vSwitch let everything pass on all processors until undo is called or
// the test ends. The engines must be stopped, because they would revert it.
func (f *fabricUnderTest) boundaryPasses(t *testing.T) (undo func()) {
	t.Helper()
	var pipes []*ovs.Pipeline
	set := func(on bool) {
		for _, p := range pipes {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			must.NoError(t, p.SetPassAll(ctx, on))
			cancel()
		}
	}
	for _, n := range f.Topology.Nodes(lab.Processor) {
		pipes = append(pipes, f.boundary(t, n.Name))
	}
	set(true)
	on := true
	undo = func() {
		if on {
			on = false
			set(false)
		}
	}
	t.Cleanup(undo)
	return undo
}

// boundaryDrops counts the packets that the switches of all processors dropped, by node and reason.
func (f *fabricUnderTest) boundaryDrops(t *testing.T) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	for _, n := range f.Topology.Nodes(lab.Processor) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		drops, err := f.boundary(t, n.Name).Drops(ctx)
		cancel()
		must.NoError(t, err)
		for reason, packets := range drops {
			all[n.Name+": "+reason] = packets
		}
	}
	return all
}

// rise returns the counters that rose from before to after, and by how much.
func rise(before, after map[string]uint64) map[string]uint64 {
	grown := map[string]uint64{}
	for name, n := range after {
		if n > before[name] {
			grown[name] = n - before[name]
		}
	}
	return grown
}

// sumOf adds up the counters of one reason.
func sumOf(counters map[string]uint64, reason string) (sum uint64) {
	for name, n := range counters {
		if name == "aws1-p1: "+reason || name == "gcp1-p1: "+reason {
			sum += n
		}
	}
	return sum
}

// TestEachLayerHoldsAloneWithoutDaemons stops the daemons and sends an undeclared flow to the other
// zone. Open vSwitch drops it if eBPF lets everything pass. eBPF at either end drops it if
// everything else lets everything pass. It arrives if nothing drops it, which shows that nothing
// but these layers did.
func TestEachLayerHoldsAloneWithoutDaemons(t *testing.T) {
	from, to := world.workload(t, "voting-app/voting-svc", "aws1"), world.workload(t, "voting-app/result-db", "gcp1")
	const port = 7002 // result-db listens there
	world.freeze(t)
	silent := func(t *testing.T) {
		t.Helper()
		for range 2 {
			must.False(t, arrives(t, from, to, port, 700*time.Millisecond), must.Sprintf("from %s to %s", from, to))
		}
	}

	t.Run("Open vSwitch", func(t *testing.T) {
		world.kernelPasses(t)
		before := world.boundaryDrops(t)
		_, passed := world.kernelDrops(t, from.node, bpf.FromWorkload)
		silent(t)
		// The switch adds up the counters of its datapath every half second.
		eventually(t, 5*time.Second, func() error {
			// A switch knows only endpoints that its zone needs.
			if grown := rise(before, world.boundaryDrops(t)); sumOf(grown, ovs.DropNoContract)+sumOf(grown, ovs.DropUnknownDestination) < 2 {
				return fmt.Errorf("the switches' drop counters rose by %v", grown)
			}
			return nil
		})
		_, now := world.kernelDrops(t, from.node, bpf.FromWorkload)
		must.Greater(t, passed, now, must.Sprint("eBPF must let the packets pass"))
	})
	t.Run("eBPF at the sender", func(t *testing.T) {
		world.boundaryPasses(t)
		world.kernelPasses(t, to.node)
		dropped, _ := world.kernelDrops(t, from.node, bpf.FromWorkload)
		silent(t)
		now, _ := world.kernelDrops(t, from.node, bpf.FromWorkload)
		must.GreaterEq(t, dropped+2, now)
	})
	t.Run("eBPF at the receiver", func(t *testing.T) {
		world.boundaryPasses(t)
		world.kernelPasses(t, from.node)
		dropped, _ := world.kernelDrops(t, to.node, bpf.ToWorkload)
		silent(t)
		now, _ := world.kernelDrops(t, to.node, bpf.ToWorkload)
		must.GreaterEq(t, dropped+2, now)
	})
	t.Run("nothing else", func(t *testing.T) {
		world.boundaryPasses(t)
		world.kernelPasses(t)
		reaches(t, from, to, port, true, 5*time.Second)
	})
	// The layers drop again after all overrides ended, with the daemons still stopped.
	silent(t)
}

// TestGraphChangeCutsConnections removes a contract that has an established connection between the
// zones, and then only the port of such a connection, once for each layer, while the other layer
// lets everything pass. The connection of another contract continues.
func TestGraphChangeCutsConnections(t *testing.T) {
	const quiet = 2 * time.Second // enough for three retransmissions without an answer
	world.withTestPorts(t)
	svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
	news, weather := world.workload(t, "getaway-app/news-gw", "gcp1"), world.workload(t, "getaway-app/weather-gw", "gcp1")
	graph := world.testPorts(t)
	cut := func(t *testing.T) {
		t.Helper()
		for _, without := range []string{
			withoutContract(t, graph, "news-api"),
			strings.Replace(graph, fmt.Sprintf("[9001, %d]", newsPort), "[9001]", 1),
		} {
			must.NotEq(t, graph, without)
			world.apply(t, graph)
			victim := openStream(t, svc, news, newsPort, "news")
			other := openStream(t, svc, weather, weatherPort, "weather")
			world.apply(t, without)
			victim.mustBeCut(t, other, quiet, 15*time.Second)
			must.False(t, arrives(t, svc, news, newsPort, 700*time.Millisecond), must.Sprint("a new connection"))
			victim.stop()
			other.mustFlow(t, 5*time.Second)
			other.stop()
		}
	}
	t.Run("Open vSwitch", func(t *testing.T) {
		t.Cleanup(func() { world.apply(t, graph) })
		world.kernelPasses(t)
		before := world.boundaryDrops(t)
		_, passed := world.kernelDrops(t, svc.node, bpf.FromWorkload)
		cut(t)
		eventually(t, 5*time.Second, func() error {
			grown := rise(before, world.boundaryDrops(t))
			if sumOf(grown, ovs.DropEntryGone)+sumOf(grown, ovs.DropNoContract)+sumOf(grown, ovs.DropUnknownDestination) == 0 {
				return fmt.Errorf("the switches' drop counters rose by %v", grown)
			}
			return nil
		})
		_, now := world.kernelDrops(t, svc.node, bpf.FromWorkload)
		must.Greater(t, passed, now, must.Sprint("eBPF must let the packets pass"))
	})
	t.Run("eBPF", func(t *testing.T) {
		world.allWell(t, 20*time.Second)
		t.Cleanup(func() { world.apply(t, graph) })
		// The engines would revert the override of the switch, so they are stopped.
		t.Cleanup(func() { world.signalEngines(t, syscall.SIGCONT) })
		world.signalEngines(t, syscall.SIGSTOP)
		world.boundaryPasses(t)
		dropped, _ := world.kernelDrops(t, svc.node, bpf.FromWorkload)
		cut(t)
		now, _ := world.kernelDrops(t, svc.node, bpf.FromWorkload)
		must.Greater(t, dropped, now)
	})
	t.Run("both", func(t *testing.T) {
		world.allWell(t, 20*time.Second)
		t.Cleanup(func() { world.apply(t, graph) })
		cut(t)
	})
}

func (f *fabricUnderTest) signalEngines(t *testing.T, s syscall.Signal) {
	t.Helper()
	for _, n := range f.Topology.Nodes(lab.Processor) {
		must.NoError(t, f.Signal(n.Name, "engine", s))
	}
}
