// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package flowlog

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/flow"
)

// add adds records with the numbers from first to last; those with even numbers were refused.
func add(l *Log, first, last uint32) {
	for n := first; n <= last; n++ {
		f := &flow.Flow{Number: n, Verdict: flow.Allow, Source: flow.End{Name: fabric.Ref{Domain: "shop", Name: "web"}},
			Destination: flow.End{Name: fabric.Ref{Domain: "bank", Name: "api"}, Endpoint: "77aa"}}
		if n%2 == 0 {
			f.Verdict = flow.Refuse
		}
		l.Add(f)
	}
}

func task(q api.FlowQuery) api.Task {
	q.Everything = q.Domains == nil
	return api.Task{ID: "t", Kind: api.TaskFlows, Timeout: time.Minute, Flows: &q}
}

// served is what an observer was sent.
type served struct {
	numbers []uint32
	missed  uint64
	next    string
	batches int
	flows   []flow.Flow
}

func (s *served) take(r api.TaskResult) {
	if r.Flows == nil {
		return
	}
	s.batches++
	s.missed += r.Flows.Missed
	s.next = r.Flows.Next
	for _, f := range r.Flows.Flows {
		s.numbers = append(s.numbers, f.Number)
		s.flows = append(s.flows, f)
	}
}

func serve(t *testing.T, l *Log, q api.FlowQuery) (s served) {
	t.Helper()
	var last api.TaskResult
	must.NoError(t, l.Serve(t.Context(), task(q), func(r api.TaskResult) error {
		must.Eq(t, "t", r.ID)
		s.take(r)
		last = r
		return nil
	}))
	must.True(t, last.Done)
	must.False(t, last.Ready)
	must.Eq(t, "", last.Error)
	return s
}

func TestServe(t *testing.T) {
	l := New(10)
	s := serve(t, l, api.FlowQuery{})
	must.Eq(t, served{next: l.cursor(1), batches: 1}, s, must.Sprint("an empty log answers at once"))
	add(l, 1, 5)
	kept, size := l.Len()
	must.Eq(t, []int{5, 10}, []int{kept, size})
	s = serve(t, l, api.FlowQuery{})
	must.Eq(t, []uint32{1, 2, 3, 4, 5}, s.numbers)
	must.Eq(t, []uint32{4, 5}, serve(t, l, api.FlowQuery{Last: 2}).numbers)
	refused := flow.Filter{Terms: []flow.Term{{Field: flow.ByVerdict, Value: "refused"}}}
	must.Eq(t, []uint32{2, 4}, serve(t, l, api.FlowQuery{Filter: refused}).numbers)
	must.Eq(t, []uint32{4}, serve(t, l, api.FlowQuery{Filter: refused, Last: 1}).numbers)

	add(l, 6, 12)
	kept, _ = l.Len()
	must.Eq(t, 10, kept)
	resumed := serve(t, l, api.FlowQuery{After: s.next, Last: 1})
	must.Eq(t, []uint32{6, 7, 8, 9, 10, 11, 12}, resumed.numbers, must.Sprint("all since"))
	must.Zero(t, resumed.missed)
	add(l, 13, 30)
	resumed = serve(t, l, api.FlowQuery{After: resumed.next})
	must.Len(t, 10, resumed.numbers)
	must.Eq(t, 8, resumed.missed)
	must.Zero(t, serve(t, l, api.FlowQuery{}).missed, must.Sprint("nobody asked for the older ones"))

	other := New(10) // an agent that was started again
	add(other, 1, 3)
	for _, cursor := range []string{resumed.next, "x", "x.y", other.id, other.id + ".0", other.id + ".-1"} {
		must.Eq(t, []uint32{1, 2, 3}, serve(t, other, api.FlowQuery{After: cursor}).numbers, must.Sprint(cursor))
	}
}

// Who reads only some domains sees of others what packets show, and cannot find them by a filter.
func TestServeByDomain(t *testing.T) {
	l := New(10)
	add(l, 1, 1)
	s := serve(t, l, api.FlowQuery{Domains: []string{"shop"}})
	must.Len(t, 1, s.flows)
	must.Eq(t, flow.End{Withheld: true}, s.flows[0].Destination)
	must.SliceEmpty(t, serve(t, l, api.FlowQuery{Domains: []string{"news"}}).numbers)
	for value, want := range map[string]int{"bank/api": 0, "77aa": 0, "shop/web": 1} {
		term := flow.Term{Field: flow.Party, Value: value}
		must.Len(t, want, serve(t, l, api.FlowQuery{Domains: []string{"shop"}, Filter: flow.Filter{Terms: []flow.Term{term}}}).numbers, must.Sprint(value))
		term.Not = true
		must.Len(t, 1-want, serve(t, l, api.FlowQuery{Domains: []string{"shop"}, Filter: flow.Filter{Terms: []flow.Term{term}}}).numbers, must.Sprint(value))
	}
}

func TestServeErrors(t *testing.T) {
	l := New(10)
	var got api.TaskResult
	take := func(r api.TaskResult) error { got = r; return nil }
	must.NoError(t, l.Serve(t.Context(), api.Task{ID: "t"}, take))
	must.StrContains(t, got.Error, "no query")
	must.NoError(t, l.Serve(t.Context(), task(api.FlowQuery{Filter: flow.Filter{Terms: []flow.Term{{Field: "colour", Value: "red"}}}}), take))
	must.StrContains(t, got.Error, "there is no such field")
	gone := errors.New("gone")
	must.ErrorIs(t, l.Serve(t.Context(), task(api.FlowQuery{Follow: true}), func(api.TaskResult) error { return gone }), gone)
	must.MapEmpty(t, l.observers)
}

func TestFollow(t *testing.T) {
	l := New(5000)
	add(l, 1, 3)
	ctx, cancel := context.WithCancel(t.Context())
	sent := make(chan api.TaskResult, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- l.Serve(ctx, task(api.FlowQuery{Follow: true}), func(r api.TaskResult) error { sent <- r; return nil })
	}()
	var s served
	s.take(<-sent)
	must.SliceEmpty(t, s.numbers, must.Sprint("from now on"))
	add(l, 4, 1203) // in batches
	for len(s.numbers) < 1200 {
		r := <-sent
		must.True(t, r.Ready)
		must.LessEq(t, batch, len(r.Flows.Flows))
		s.take(r)
	}
	must.Eq(t, 4, s.numbers[0])
	must.Eq(t, 1203, s.numbers[1199])
	cancel()
	must.NoError(t, <-ended)
	must.True(t, (<-sent).Done)
	must.MapEmpty(t, l.observers)
}

// An observer that does not read keeps nobody from adding records, and is told how many it missed.
func TestSlowObserver(t *testing.T) {
	l := New(10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sent := make(chan api.TaskResult)
	go func() {
		_ = l.Serve(ctx, task(api.FlowQuery{Follow: true}), func(r api.TaskResult) error {
			select {
			case sent <- r:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	<-sent
	var s served
	add(l, 1, 1000)
	for total := uint64(0); total < 1000; total = uint64(len(s.numbers)) + s.missed {
		s.take(<-sent)
	}
	must.Eq(t, 1000, s.numbers[len(s.numbers)-1])
	must.Positive(t, s.missed)
}
