// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fanout

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
)

const limit = 10 * time.Second

// collect returns the outcomes by peer, as text.
func collect(ctx context.Context, peers []time.Duration, do func(context.Context, time.Duration) (string, error)) map[time.Duration]string {
	got := map[time.Duration]string{}
	for o := range Call(ctx, limit, peers, do) {
		got[o.Peer] = o.Reply
		if o.Err != nil {
			got[o.Peer] = o.Err.Error()
		}
	}
	return got
}

// answer returns after d, or when ctx ends.
func answer(ctx context.Context, d time.Duration) (string, error) {
	select {
	case <-time.After(d):
		return "answered", nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func TestLateCallsGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start, late := time.Now(), make(chan error, 2)
		got := collect(ctx, []time.Duration{0, 2 * time.Second, time.Minute}, func(ctx context.Context, d time.Duration) (string, error) {
			reply, err := answer(ctx, d)
			if d > 0 {
				late <- err
			}
			return reply, err
		})
		must.Eq(t, map[time.Duration]string{0: "answered", 2 * time.Second: ErrLate.Error(), time.Minute: ErrLate.Error()}, got)
		must.Eq(t, time.Second, time.Since(start))
		must.NoError(t, <-late) // answered after the caller had gone
		must.Eq(t, 2*time.Second, time.Since(start))
		must.ErrorIs(t, <-late, context.DeadlineExceeded)
		must.Eq(t, limit, time.Since(start))
	})
}

func TestReturnsWithTheLastAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		got := collect(t.Context(), []time.Duration{time.Second, 3 * time.Second}, answer)
		must.Eq(t, map[time.Duration]string{time.Second: "answered", 3 * time.Second: "answered"}, got)
		must.Eq(t, 3*time.Second, time.Since(start))
	})
}

func TestErrorsAndEqualPeers(t *testing.T) {
	broken := errors.New("broken")
	var outcomes []error
	for o := range Call(t.Context(), limit, []string{"a", "a"}, func(context.Context, string) (int, error) { return 0, broken }) {
		outcomes = append(outcomes, o.Err)
	}
	must.Len(t, 2, outcomes)
	must.ErrorIs(t, errors.Join(outcomes...), broken)
}

func TestStopsEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, done := time.Now(), make(chan struct{}, 1)
		for o := range Call(t.Context(), limit, []time.Duration{time.Second, 2 * time.Second}, func(ctx context.Context, d time.Duration) (string, error) {
			defer func() { done <- struct{}{} }()
			return answer(ctx, d)
		}) {
			must.Eq(t, time.Second, o.Peer)
			break
		}
		must.Eq(t, time.Second, time.Since(start))
		<-done
		<-done // the other call was not cut off
		must.Eq(t, 2*time.Second, time.Since(start))
	})
}

func TestNoPeers(t *testing.T) {
	must.MapEmpty(t, collect(t.Context(), nil, answer))
}
