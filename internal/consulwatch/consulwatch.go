// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package consulwatch follows something in Consul by blocking queries. It knows indexes, time
// limits and what to do when Consul does not answer; not what is asked for.
package consulwatch

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/internal/retry"
)

// answerTime is how long Consul may take to answer a query, in addition to the time for which the
// query waits.
const answerTime = 10 * time.Second

// Watch is something to follow.
type Watch[T any] struct {
	// Query asks Consul. It must pass on what opts holds; it may set other options.
	Query func(opts *api.QueryOptions) (T, *api.QueryMeta, error)
	// Handle takes an answer, also when it is the same as the one before. If it returns false, the
	// query is repeated after some time even if nothing has changed in Consul.
	Handle func(T) bool
	// Failed, unless nil, takes the error of each failed query.
	Failed func(error)

	Wait               time.Duration // for a change, in one query
	MinPause, MaxPause time.Duration // after a failure; see retry.Backoff

	mu        sync.Mutex
	interrupt context.CancelFunc // ends the query that is waiting, or nil
}

// Run asks until ctx ends. Query and Handle are called by one goroutine.
func (w *Watch[T]) Run(ctx context.Context) {
	pauses := retry.Backoff(w.MinPause, w.MaxPause)
	var index uint64
	wait := w.Wait
	for ctx.Err() == nil {
		answer, meta, interrupted, err := w.query(ctx, index, wait)
		wait = w.Wait
		switch {
		case ctx.Err() != nil:
			return
		case interrupted:
			index = 0
		case err != nil:
			if w.Failed != nil {
				w.Failed(err)
			}
			index = 0 // another server may answer next
			retry.Sleep(ctx, pauses.NextBackOff())
		default:
			index = next(index, meta.LastIndex)
			if w.Handle(answer) {
				pauses.Reset()
			} else {
				wait = min(pauses.NextBackOff(), w.Wait)
			}
		}
	}
}

// next returns the index to wait for after an answer.
func next(index, answered uint64) uint64 {
	if answered < index { // Consul was restored from a snapshot, or set up anew
		return 0
	}
	return max(answered, 1) // 0 would not wait
}

// query makes one query. interrupted reports that Refresh ended it.
func (w *Watch[T]) query(ctx context.Context, index uint64, wait time.Duration) (answer T, meta *api.QueryMeta, interrupted bool, err error) {
	// Consul adds up to a sixteenth to the wait. The time limit notices a Consul that accepts
	// connections and never answers.
	ctx, cancel := context.WithTimeout(ctx, wait+wait/16+answerTime)
	defer cancel()
	w.mu.Lock()
	w.interrupt = cancel
	w.mu.Unlock()
	answer, meta, err = w.Query((&api.QueryOptions{WaitIndex: index, WaitTime: wait}).WithContext(ctx))
	w.mu.Lock()
	interrupted = w.interrupt == nil && err != nil
	w.interrupt = nil
	w.mu.Unlock()
	return answer, meta, interrupted, err
}

// Refresh has what is followed read again now, if a query is waiting for a change.
func (w *Watch[T]) Refresh() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.interrupt != nil {
		w.interrupt()
		w.interrupt = nil
	}
}
