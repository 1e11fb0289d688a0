// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs_test

import (
	"cmp"
	"context"
	"os/exec"
	"slices"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/internal/testhost"
)

// pings reports whether an echo request from a namespace is answered.
func pings(ns, address string, options ...string) bool {
	args := append([]string{"--net=/var/run/netns/" + ns, "ping", "-c1", "-W1"}, options...)
	return exec.Command("nsenter", append(args, address)...).Run() == nil
}

func TestEcho(t *testing.T) {
	testhost.RequireProgram(t, "ping")
	f := newFixture(t)
	ctx := context.Background()
	_, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	must.False(t, pings(f.a, "10.0.0.2"))
	must.False(t, pings(f.a, "fd00::2"))
	four := ovs.Entry{ID: 3, Src: classA, Dst: classB, Protocol: 1, Ports: []ovs.PortRange{{First: 8, Last: 8}}}
	six := ovs.Entry{ID: 4, Src: classA, Dst: classB, Protocol: 58, Ports: []ovs.PortRange{{First: 0, Last: 255}}}
	f.setEntries(append(f.state.Entries, four, six)...)
	must.True(t, pings(f.a, "10.0.0.2"))
	must.True(t, pings(f.a, "fd00::2"))
	must.False(t, pings(f.b, "10.0.0.1"))
	f.setEntries(f.state.Entries[0], six)
	must.False(t, pings(f.a, "10.0.0.2"))
	must.True(t, pings(f.a, "fd00::2"))
}

// Dump returns entries of every protocol as they were written.
func TestDumpOfAllProtocols(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	f.state.Entries = nil
	for i, protocol := range []uint8{1, 6, 17, 58, 132} {
		e := ovs.Entry{ID: uint64(i + 1), Src: classA, Dst: classB, Protocol: protocol, Ports: []ovs.PortRange{{First: 8, Last: 9}, {First: 13, Last: 13}}}
		all := ovs.Entry{ID: uint64(i + 11), Src: classB, Dst: classA, Protocol: protocol, Ports: []ovs.PortRange{{First: 0, Last: 65535}}}
		if protocol == 1 || protocol == 58 {
			all.Ports[0].Last = 255
		}
		f.state.Entries = append(f.state.Entries, e, all)
	}
	_, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	got, diff, err := f.p.Inspect(ctx)
	must.NoError(t, err)
	must.True(t, diff.Empty(), must.Sprintf("%v", diff))
	byID := func(a, b ovs.Entry) int { return cmp.Compare(a.ID, b.ID) }
	f.state.Entries = slices.SortedFunc(slices.Values(f.state.Entries), byID)
	must.Eq(t, f.state, got)
}

func TestInspect(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	wider := ovs.Entry{ID: entryAB2, Src: classA, Dst: classB, Protocol: 6, Ports: []ovs.PortRange{{First: 8000, Last: 9000}}}
	hidden := ovs.Entry{ID: 3, Src: classA, Dst: classB, Protocol: 6, Ports: []ovs.PortRange{{First: 8080, Last: 8080}}}
	f.state.Entries = append(f.state.Entries, wider, hidden)
	_, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	got, diff, err := f.p.Inspect(ctx)
	must.NoError(t, err)
	must.True(t, diff.Empty(), must.Sprintf("%v", diff))
	must.Len(t, 3, got.Entries)
	must.SliceEmpty(t, got.Entries[2].Ports)

	f.instance.Ofctl("add-flow", "table=6,priority=7,actions=goto_table:12")
	f.instance.Ofctl("del-flows", "table=12,reg2=1")
	_, diff, err = f.p.Inspect(ctx)
	must.NoError(t, err)
	must.Len(t, 1, diff.Removed)
	must.Len(t, 1, diff.Added) // the port still has its other flows
	// An endpoint that is a destination only is one with less than it should be.
	f.instance.Ofctl("del-flows", "table=1,ip,nw_dst=10.0.0.2")
	_, diff, err = f.p.Inspect(ctx)
	must.NoError(t, err)
	must.Len(t, 2, diff.Added)
}
