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

	// Rest is the time from one answer to the next query. A change after a quiet time is read at
	// once; those that follow one another more quickly are read together. 0: each is read.
	Rest               time.Duration
	Wait               time.Duration // for a change, in one query
	MinPause, MaxPause time.Duration // after a failure; see retry.Backoff

	mu        sync.Mutex
	interrupt context.CancelFunc // ends the query that is waiting, or the rest; nil between
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
			if w.rest(ctx) {
				index = 0
			}
		}
	}
}

// rest waits until the next query may be made. interrupted reports that Refresh ended it.
func (w *Watch[T]) rest(ctx context.Context) (interrupted bool) {
	if w.Rest == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, w.Rest)
	defer cancel()
	w.begin(cancel)
	<-ctx.Done()
	return w.end()
}

// begin lets Refresh call interrupt until end, which reports whether it did.
func (w *Watch[T]) begin(interrupt context.CancelFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.interrupt = interrupt
}

func (w *Watch[T]) end() (interrupted bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	interrupted = w.interrupt == nil
	w.interrupt = nil
	return interrupted
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
	w.begin(cancel)
	answer, meta, err = w.Query((&api.QueryOptions{WaitIndex: index, WaitTime: wait}).WithContext(ctx))
	return answer, meta, w.end() && err != nil, err
}

// Refresh has what is followed read again now, if Run is waiting for a change or for the next
// query.
func (w *Watch[T]) Refresh() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.interrupt != nil {
		w.interrupt()
		w.interrupt = nil
	}
}
