// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/engine/ovs"
)

// waits lets a test count how often a pipeline waits for the datapath, and break it.
type waits struct {
	count  int
	broken error
}

func (f *fixture) countWaits() *waits {
	w := &waits{}
	f.p = ovs.NewPipeline(7, func(ctx context.Context) error {
		w.count++
		if w.broken != nil {
			return w.broken
		}
		return f.sw.Revalidated(ctx)
	})
	f.connect()
	return w
}

// A wait is two passes over the datapath's cache.
const passes = 2

func TestSetWaitsOnce(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	waits := f.countWaits()
	must.NoError(t, f.p.Set(ctx, f.state))
	set := func(change func(*ovs.State)) int {
		t.Helper()
		f.state.Endpoints, f.state.Entries = slices.Clone(f.state.Endpoints), slices.Clone(f.state.Entries)
		change(&f.state)
		before := waits.count
		must.NoError(t, f.p.Set(ctx, f.state))
		diff, err := f.p.Reconcile(ctx, f.state)
		must.NoError(t, err)
		must.True(t, diff.Empty(), must.Sprintf("%v", diff))
		return waits.count - before
	}
	must.Eq(t, 0, set(func(s *ovs.State) {}))
	more := f.state.Endpoints[0]
	more.ID, more.Prefixes = 9, prefixes("10.0.0.9/32")
	must.Eq(t, 0, set(func(s *ovs.State) { s.Endpoints = append(s.Endpoints, more) }))
	must.Eq(t, passes, set(func(s *ovs.State) {
		for i := range 1000 {
			port := uint16(9000 + i)
			s.Entries = append(s.Entries, ovs.Entry{ID: uint64(100 + i), Src: classA, Dst: classB, Protocol: 6, Ports: []ovs.PortRange{{First: port, Last: port}}})
		}
	}))
	must.Eq(t, passes, set(func(s *ovs.State) { s.Entries = s.Entries[:1] }))
	must.Eq(t, passes, set(func(s *ovs.State) { s.Endpoints[0].Class = classC }))
	// An endpoint's old class must be gone before the policy grows.
	must.Eq(t, 2*passes, set(func(s *ovs.State) {
		s.Endpoints[0].Class = classA
		s.Entries = append(s.Entries, ovs.Entry{ID: entryAB2, Src: classC, Dst: classB, Protocol: 6, Ports: []ovs.PortRange{{First: 1, Last: 1}}})
	}))
	// Ways decide nothing, so that they may change together with endpoints.
	must.Eq(t, passes, set(func(s *ovs.State) {
		s.Ways = []ovs.Way{{Course: ovs.Course{From: 1, To: 2, Bucket: ovs.AllBuckets}, Port: 1}}
		s.Moved = []ovs.Course{{From: 2, To: 1, Bucket: ovs.AllBuckets}}
	}))
	more.ID, more.Prefixes = 10, prefixes("10.0.0.10/32")
	must.Eq(t, passes, set(func(s *ovs.State) {
		s.Ways = []ovs.Way{{Course: ovs.Course{From: 1, To: 2, Bucket: 5}, Port: 2}}
		s.Moved = nil
		s.Endpoints = append(s.Endpoints, more)
	}))
}

// A Set whose wait failed has not returned before the datapath follows, and neither does the next
// one.
func TestFailedWait(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	waits := f.countWaits()
	must.NoError(t, f.p.Set(ctx, f.state))
	entry := f.state.Entries[0]
	f.state.Entries = nil
	waits.broken = errors.New("no answer")
	must.ErrorIs(t, f.p.Set(ctx, f.state), waits.broken)
	// What is removed leaves the tables at once, but nothing is added before the datapath followed.
	have, err := f.p.Dump(ctx)
	must.NoError(t, err)
	must.SliceEmpty(t, have.Entries)
	entry.ID = entryAB2
	with := f.state
	with.Entries = []ovs.Entry{entry}
	must.ErrorIs(t, f.p.Set(ctx, with), waits.broken)
	have, err = f.p.Dump(ctx)
	must.NoError(t, err)
	must.SliceEmpty(t, have.Entries)

	must.ErrorIs(t, f.p.Set(ctx, f.state), waits.broken)
	waits.broken = nil
	before := waits.count
	must.NoError(t, f.p.Set(ctx, f.state))
	must.Eq(t, passes, waits.count-before)
	must.NoError(t, f.p.Set(ctx, f.state))
	must.Eq(t, passes, waits.count-before)
}

// A Set that failed leaves open what the switch has; the next one looks.
func TestSetReadsBackAfterAnError(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	must.NoError(t, f.p.Set(ctx, f.state))
	with := f.state
	more := f.state.Endpoints[0]
	more.ID, more.Prefixes = 9, prefixes("10.0.0.9/32")
	with.Endpoints = append(slices.Clone(f.state.Endpoints), more)
	gone, cancel := context.WithTimeout(ctx, time.Nanosecond)
	defer cancel()
	must.ErrorIs(t, f.p.Set(gone, with), context.DeadlineExceeded)
	f.instance.Ofctl("del-flows", "table=12,reg2=1")
	must.NoError(t, f.p.Set(ctx, with))
	have, err := f.p.Dump(ctx)
	must.NoError(t, err)
	must.Eq(t, with, have)
	diff, err := f.p.Reconcile(ctx, with)
	must.NoError(t, err)
	must.True(t, diff.Empty(), must.Sprintf("%v", diff))
}

func TestNotConnected(t *testing.T) {
	p := ovs.NewPipeline(7, func(context.Context) error { return nil })
	must.ErrorIs(t, p.Set(context.Background(), ovs.State{}), ovs.ErrNotConnected)
	_, err := p.Dump(context.Background())
	must.ErrorIs(t, err, ovs.ErrNotConnected)
}
