// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/ovs/ovstest"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
)

var benchEndpoints = flag.Int("endpoints", 10_000, "endpoints in the switch during benchmarks")

// crowd is n endpoints on two ports, in n/100 classes, each of which may open flows to the next
// one.
func crowd(n int, other fabric.NodeID) SwitchState {
	state := SwitchState{Endpoints: map[string]SwitchEndpoint{}, Entries: map[uint32]SwitchEntry{}}
	v4, v6 := netip.MustParseAddr("100.64.0.0"), netip.MustParseAddr("fd5f::")
	for i := range n {
		v4, v6 = v4.Next(), v6.Next()
		class := uint32(i/100 + 1)
		ep := SwitchEndpoint{IPv4: v4, IPv6: v6, Class: class, Way: desired.ZoneLink}
		if i%2 == 0 {
			ep.Way = desired.Through(other)
		}
		state.Endpoints[fmt.Sprintf("endpoint-%d", i)] = ep
		state.Entries[class] = SwitchEntry{
			Number: class, Src: class, Dst: class + 1, Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 8080, To: 8080}},
		}
	}
	return state
}

func newTestBridge(t testing.TB, other fabric.NodeID) (*bridge, *ovstest.Instance) {
	instance := ovstest.Start(t)
	sw := ovs.NewSwitch(instance.Config)
	must.NoError(t, sw.Create(context.Background()))
	b := newBridge(sw, fixedNames{}, hclog.NewNullLogger())
	must.NoError(t, b.setPort(zoneHop, ovs.Port{No: 1}))
	must.NoError(t, b.setPort(desired.Hop{Processor: other}, ovs.Port{No: 2}))
	return b, instance
}

// A switch that lost its flows is filled again, by the next change or the next comparison.
func TestBridgeFillsASwitchThatRestarted(t *testing.T) {
	other := fabric.NodeID{Zone: "gcp1", Name: "p1"}
	b, instance := newTestBridge(t, other)
	state := crowd(200, other)
	for _, fill := range []func() error{
		func() error { return b.Program(state) },
		func() error { _, err := b.Reconcile(); return err },
	} {
		must.NoError(t, fill())
		have, diff, _, _, err := b.inspect(context.Background())
		must.NoError(t, err)
		must.True(t, diff.Empty())
		must.Len(t, 200, have.Endpoints)
		must.Len(t, 2, have.Entries)
		instance.RestartSwitch()
		<-b.conn.Done()
	}
	// Before anything was programmed, what an earlier process wrote stays.
	must.NoError(t, b.Program(state))
	later := newBridge(b.sw, fixedNames{}, hclog.NewNullLogger())
	_, err := later.Reconcile()
	must.NoError(t, err)
	have, _, _, _, err := b.inspect(context.Background())
	must.NoError(t, err)
	must.Len(t, 200, have.Endpoints)
}

// A switch that restarts is filled again at once, with nobody asking for it, however often.
func TestBridgeFollowsASwitchThatRestarts(t *testing.T) {
	other := fabric.NodeID{Zone: "gcp1", Name: "p1"}
	b, instance := newTestBridge(t, other)
	must.NoError(t, b.Program(crowd(200, other)))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.follow(ctx)
	}()
	go b.keepAsking(ctx, func(bool) {})
	for range 3 {
		instance.RestartSwitch()
		// Not by the bridge, whose own calls would fill it as well.
		flows := func() int {
			out, err := exec.Command("ovs-ofctl", "-O", "OpenFlow14", "dump-aggregate", instance.Management()).Output()
			if err != nil {
				return 0
			}
			_, count, _ := strings.Cut(string(out), "flow_count=")
			n, _ := strconv.Atoi(strings.TrimSpace(count))
			return n
		}
		for deadline := time.Now().Add(20 * time.Second); flows() < 200; time.Sleep(20 * time.Millisecond) {
			must.True(t, time.Now().Before(deadline), must.Sprint("the switch has no flows again"))
		}
		// What is published of it follows.
		for deadline := time.Now().Add(20 * time.Second); !b.enforces(); time.Sleep(5 * time.Millisecond) {
			must.True(t, time.Now().Before(deadline), must.Sprint("the switch does not enforce again"))
		}
	}
	cancel()
	<-ended
}

// Open vSwitch reuses the number of a port whose device is gone. The peer that had it is then
// reached by no port until its own is known again.
func TestPortNumberIsReused(t *testing.T) {
	b := newBridge(ovs.NewSwitch(ovs.Config{}), fixedNames{}, hclog.NewNullLogger())
	first, second := desired.Hop{Processor: fabric.NodeID{Zone: "gcp1", Name: "p1"}}, desired.Hop{Processor: fabric.NodeID{Zone: "gcp2", Name: "p1"}}
	must.NoError(t, b.setPort(first, ovs.Port{No: 3, MAC: ovs.MAC{1}}))
	must.NoError(t, b.setPort(second, ovs.Port{No: 3, MAC: ovs.MAC{2}}))
	must.Eq(t, map[desired.Hop]ovs.Port{second: {No: 3, MAC: ovs.MAC{2}}}, b.ports)
}

// Of several tunnels to one processor, the first by the name of its link is taken until it is gone.
func TestPortOfSeveralTunnels(t *testing.T) {
	b := newBridge(ovs.NewSwitch(ovs.Config{}), fixedNames{}, hclog.NewNullLogger())
	far := fabric.NodeID{Zone: "gcp1", Name: "p1"}
	for i, link := range []string{"c", "a", "b"} {
		must.NoError(t, b.setPort(desired.Hop{Processor: far, Link: link}, ovs.Port{No: uint32(i + 2)}))
	}
	for _, want := range []uint32{3, 4, 2} {
		port, ok := b.portTo(far)
		must.True(t, ok)
		must.Eq(t, want, port.No)
		must.NoError(t, b.removePort(want))
	}
	_, ok := b.portTo(far)
	must.False(t, ok)
}

// What the switch refuses to add does not keep it from removing what is no longer allowed.
func TestBridgeRemovesEvenIfTheSwitchRefusesToAdd(t *testing.T) {
	other := fabric.NodeID{Zone: "gcp1", Name: "p1"}
	b, instance := newTestBridge(t, other)
	state := crowd(200, other)
	must.NoError(t, b.Program(state))
	count := len(strings.Split(strings.TrimSpace(instance.Ofctl("dump-flows", "table=6")), "\n")) - 1
	ovstest.Run(t, "ovs-vsctl", "--db=unix:"+instance.Config.RunDir+"/db.sock", "--timeout=10", "--", "--id=@full", "create", "Flow_Table", fmt.Sprintf("flow_limit=%d", count), "overflow_policy=refuse",
		"--", "set", "Bridge", instance.Config.Bridge, "flow_tables:6=@full")
	delete(state.Entries, 1)
	for n := range uint32(10) {
		state.Entries[100+n] = SwitchEntry{Number: 100 + n, Src: 2, Dst: 100 + n, Protocol: fabric.TCP, Ports: state.Entries[2].Ports}
	}
	must.Error(t, b.Program(state))
	have, _, _, _, err := b.inspect(context.Background())
	must.NoError(t, err)
	must.Len(t, 1, have.Entries)
	must.Eq(t, 2, have.Entries[0].Src)
}

// BenchmarkProgram has the switch programmed with one endpoint more, and then with one less.
func BenchmarkProgram(b *testing.B) {
	other := fabric.NodeID{Zone: "gcp1", Name: "p1"}
	bridge, _ := newTestBridge(b, other)
	state := crowd(*benchEndpoints, other)
	more := SwitchState{Endpoints: maps.Clone(state.Endpoints), Entries: state.Entries}
	more.Endpoints["one more"] = SwitchEndpoint{IPv4: netip.MustParseAddr("10.9.9.9"), IPv6: netip.MustParseAddr("fd00::9"), Class: 1, Way: desired.ZoneLink}
	must.NoError(b, bridge.Program(state))
	var added, removed []time.Duration
	for b.Loop() {
		start := time.Now()
		must.NoError(b, bridge.Program(more))
		added = append(added, time.Since(start))
		start = time.Now()
		must.NoError(b, bridge.Program(state))
		removed = append(removed, time.Since(start))
	}
	for name, took := range map[string][]time.Duration{"add": added, "remove": removed} {
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), name+"-us-p50")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), name+"-us-p99")
	}
}

// An endpoint or entry that the switch cannot have is left out and named, by the name that people
// know. The change succeeds for everything else.
func TestBridgeLeavesOutWhatTheSwitchCannotHave(t *testing.T) {
	other := fabric.NodeID{Zone: "gcp1", Name: "p1"}
	b, _ := newTestBridge(t, other)
	state := crowd(200, other)
	must.NoError(t, b.Program(state))
	// One endpoint claims an address of another, one has a reserved class.
	thief := state.Endpoints["endpoint-3"]
	thief.IPv4 = state.Endpoints["endpoint-4"].IPv4
	thief.IPv6 = netip.MustParseAddr("fd5f::ffff")
	state.Endpoints["thief"] = thief
	odd := state.Endpoints["endpoint-5"]
	odd.IPv4, odd.IPv6, odd.Class = netip.MustParseAddr("100.65.0.1"), netip.MustParseAddr("fd5f::fffe"), 0
	state.Endpoints["odd"] = odd
	good := odd
	good.IPv4, good.IPv6, good.Class = netip.MustParseAddr("100.65.0.2"), netip.MustParseAddr("fd5f::fffd"), 1
	state.Endpoints["good"] = good
	delete(state.Endpoints, "endpoint-0")
	must.NoError(t, b.Program(state))
	have, _, _, _, err := b.inspect(context.Background())
	must.NoError(t, err)
	must.Len(t, 200, have.Endpoints) // one is gone, one has come
	repaired, err := b.Reconcile()
	must.SliceEmpty(t, repaired)
	must.ErrorContains(t, err, "endpoint thief: ")
	must.ErrorContains(t, err, "100.64.0.5/32 belongs to endpoint ")
	must.ErrorContains(t, err, "endpoint odd: ")
	delete(state.Endpoints, "thief")
	delete(state.Endpoints, "odd")
	must.NoError(t, b.Program(state))
	_, err = b.Reconcile()
	must.NoError(t, err)
}
