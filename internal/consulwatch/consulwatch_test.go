// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package consulwatch

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"
)

// asked is a query as Consul saw it.
type asked struct {
	at    time.Duration // since the start
	index uint64
	wait  time.Duration
}

// reply is what Consul answers, at once or when the query ends.
type reply struct {
	index uint64
	err   error
	late  bool // after the wait
	never bool // Consul accepts the query and does not answer
}

// script runs a watch against a Consul with these replies, and returns the queries, the handled
// answers and the errors. sound says what Handle returns for an answer, which is its number.
func script(t *testing.T, sound func(int) bool, during func(*Watch[int]), replies ...reply) (queries []asked, handled []int, failed []error) {
	return scriptWithRest(t, 0, sound, during, replies...)
}

func scriptWithRest(t *testing.T, rest time.Duration, sound func(int) bool, during func(*Watch[int]), replies ...reply) (queries []asked, handled []int, failed []error) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		start := time.Now()
		w := &Watch[int]{
			Wait: time.Minute, MinPause: time.Second, MaxPause: 4 * time.Second, Rest: rest,
			Query: func(opts *api.QueryOptions) (int, *api.QueryMeta, error) {
				n := len(queries)
				queries = append(queries, asked{time.Since(start), opts.WaitIndex, opts.WaitTime})
				if n == len(replies) {
					cancel()
					return 0, nil, ctx.Err()
				}
				r := replies[n]
				var timer <-chan time.Time
				switch {
				case r.late:
					timer = time.After(opts.WaitTime)
				case !r.never:
					timer = time.After(0)
				}
				select {
				case <-opts.Context().Done():
					return 0, nil, opts.Context().Err()
				case <-timer:
					return n, &api.QueryMeta{LastIndex: r.index}, r.err
				}
			},
			Handle: func(n int) bool { handled = append(handled, n); return sound == nil || sound(n) },
			Failed: func(err error) { failed = append(failed, err) },
		}
		if during != nil {
			go during(w)
		}
		w.Run(ctx)
	})
	return queries, handled, failed
}

func indexes(queries []asked) []uint64 {
	var list []uint64
	for _, q := range queries {
		list = append(list, q.index)
	}
	return list
}

func TestIndexes(t *testing.T) {
	queries, handled, failed := script(t, nil, nil,
		reply{index: 7}, reply{index: 9}, reply{index: 9, late: true}, // nothing new
		reply{index: 3},          // it went backwards
		reply{index: 4}, reply{}, // 0 goes backwards
		reply{}, // 0 is not a valid index
	)
	must.Eq(t, []uint64{0, 7, 9, 9, 0, 4, 0, 1}, indexes(queries))
	must.Eq(t, []int{0, 1, 2, 3, 4, 5, 6}, handled)
	must.SliceEmpty(t, failed)
	for _, q := range queries {
		must.Eq(t, time.Minute, q.wait)
	}
	must.Eq(t, time.Minute, queries[7].at) // without a pause, but for the wait
}

func TestFailures(t *testing.T) {
	broken := errors.New("no cluster leader")
	queries, handled, failed := script(t, nil, nil,
		reply{index: 7}, reply{err: broken}, reply{err: broken}, reply{err: broken}, reply{err: broken}, reply{index: 8}, reply{err: broken})
	must.Eq(t, []uint64{0, 7, 0, 0, 0, 0, 8, 0}, indexes(queries))
	must.Eq(t, []int{0, 5}, handled)
	must.Len(t, 5, failed)
	var pauses []time.Duration
	for i := range queries[1:] {
		pauses = append(pauses, queries[i+1].at-queries[i].at)
	}
	for i, want := range []time.Duration{0, 1, 2, 4, 4, 0, 1} { // the success resets them
		want *= time.Second
		must.Between(t, want/2, pauses[i], want*3/2)
	}
}

func TestUnsoundAnswersAreAskedForAgain(t *testing.T) {
	queries, handled, _ := script(t, func(n int) bool { return n == 0 || n > 2 }, nil,
		reply{index: 7}, reply{index: 8}, reply{index: 8, late: true}, reply{index: 8, late: true})
	must.Eq(t, []uint64{0, 7, 8, 8, 8}, indexes(queries))
	must.Eq(t, []int{0, 1, 2, 3}, handled)
	must.Eq(t, time.Minute, queries[1].wait)
	must.Between(t, time.Second/2, queries[2].wait, 3*time.Second/2)
	must.Between(t, time.Second, queries[3].wait, 3*time.Second)
	must.Eq(t, time.Minute, queries[4].wait) // it is sound again
}

func TestConsulThatNeverAnswers(t *testing.T) {
	queries, handled, failed := script(t, nil, nil, reply{never: true}, reply{index: 5})
	must.Eq(t, []int{1}, handled)
	must.Len(t, 1, failed)
	must.ErrorIs(t, failed[0], context.DeadlineExceeded)
	must.Greater(t, time.Minute, queries[1].at)
	must.Less(t, 2*time.Minute, queries[1].at)
}

func TestRefresh(t *testing.T) {
	refresh := func(w *Watch[int]) {
		time.Sleep(10 * time.Second)
		w.Refresh()
		w.Refresh() // asks once
	}
	queries, handled, failed := script(t, nil, refresh, reply{index: 7}, reply{index: 7, late: true}, reply{index: 7})
	must.Eq(t, []uint64{0, 7, 0, 7}, indexes(queries))
	must.Eq(t, 10*time.Second, queries[2].at)
	must.Eq(t, []int{0, 2}, handled)
	must.SliceEmpty(t, failed)
}

// A change after a quiet time is read at once, and those that come then after the rest.
func TestRest(t *testing.T) {
	const rest = 100 * time.Millisecond
	queries, handled, _ := scriptWithRest(t, rest, nil, nil,
		reply{index: 7}, reply{index: 8, late: true}, reply{index: 9}, reply{index: 10})
	must.Eq(t, []int{0, 1, 2, 3}, handled)
	must.Eq(t, []uint64{0, 7, 8, 9, 10}, indexes(queries))
	for i, want := range []time.Duration{0, rest, rest + time.Minute + rest, time.Minute + 3*rest, time.Minute + 4*rest} {
		must.Eq(t, want, queries[i].at)
	}
}

func TestRefreshEndsTheRest(t *testing.T) {
	queries, handled, failed := scriptWithRest(t, time.Second, nil, func(w *Watch[int]) {
		time.Sleep(time.Second / 2)
		w.Refresh()
	}, reply{index: 7}, reply{index: 8})
	must.Eq(t, []uint64{0, 0, 8}, indexes(queries))
	must.Eq(t, time.Second/2, queries[1].at)
	must.Eq(t, []int{0, 1}, handled)
	must.SliceEmpty(t, failed)
}

func TestEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		w := &Watch[int]{
			Wait: time.Minute, MinPause: time.Second, MaxPause: time.Second,
			Query: func(opts *api.QueryOptions) (int, *api.QueryMeta, error) {
				<-opts.Context().Done()
				return 0, nil, opts.Context().Err()
			},
			Handle: func(int) bool { t.Error("there was no answer"); return true },
			Failed: func(err error) { t.Error(err) },
		}
		start := time.Now()
		w.Run(ctx)
		must.Eq(t, time.Second, time.Since(start))
	})
}
