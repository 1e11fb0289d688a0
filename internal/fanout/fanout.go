// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package fanout calls several peers at the same time, for a caller that can wait only so long. It
// does not know what a call does.
package fanout

import (
	"context"
	"errors"
	"iter"
	"time"
)

// ErrLate is the outcome of a call that had not returned when the caller's context ended.
var ErrLate = errors.New("no answer in time")

// Outcome is what came of the call to one peer.
type Outcome[P, R any] struct {
	Peer  P
	Reply R
	Err   error
}

// Call runs do for each peer in a goroutine of its own and yields the outcomes in the order in
// which they arrive. When ctx ends, it yields ErrLate for the peers that have not answered. Their
// calls go on, as do all others when the caller stops early: what do gets is a context with the
// values of ctx, which ends limit after the start.
func Call[P, R any](ctx context.Context, limit time.Duration, peers []P, do func(context.Context, P) (R, error)) iter.Seq[Outcome[P, R]] {
	return func(yield func(Outcome[P, R]) bool) {
		type indexed struct {
			peer int
			Outcome[P, R]
		}
		outcomes := make(chan indexed, len(peers)) // room for all, since late ones are not read
		waiting := make(map[int]bool, len(peers))
		for i, p := range peers {
			waiting[i] = true
			go func() {
				calling, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
				defer cancel()
				reply, err := do(calling, p)
				outcomes <- indexed{i, Outcome[P, R]{p, reply, err}}
			}()
		}
		for len(waiting) > 0 {
			select {
			case o := <-outcomes:
				delete(waiting, o.peer)
				if !yield(o.Outcome) {
					return
				}
			case <-ctx.Done():
				for i := range waiting {
					if !yield(Outcome[P, R]{Peer: peers[i], Err: ErrLate}) {
						return
					}
				}
				return
			}
		}
	}
}

// Start runs do for each peer, as Call does for those that have not answered when its caller stops.
// It does not wait.
func Start[P, R any](ctx context.Context, limit time.Duration, peers []P, do func(context.Context, P) (R, error)) {
	for _, p := range peers {
		go func() {
			calling, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
			defer cancel()
			_, _ = do(calling, p) // the caller does not want to know
		}()
	}
}
