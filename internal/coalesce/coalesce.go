// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package coalesce combines concurrent calls of the same function into one run, for functions whose
// result depends on the state that the callers have changed before. It does not know what the
// function does.
package coalesce

import "sync"

// Func runs a function for its callers, one run at a time.
type Func struct {
	do   func() error
	turn chan struct{} // contains an element during a run

	mu   sync.Mutex
	next *run // the run that has not started; nil if there is none
}

// run is one run and its result.
type run struct {
	done chan struct{}
	err  error
}

// New returns a Func that runs do.
func New(do func() error) *Func { return &Func{do: do, turn: make(chan struct{}, 1)} }

// Call returns the error of a run that started after Call was called, so that the run has seen what
// the caller changed before.
func (f *Func) Call() error {
	f.mu.Lock()
	r := f.next
	first := r == nil
	if first {
		r = &run{done: make(chan struct{})}
		f.next = r
	}
	f.mu.Unlock()
	if !first {
		<-r.done
		return r.err
	}
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	f.mu.Lock()
	f.next = nil // later callers may have changed more than this run sees
	f.mu.Unlock()
	r.err = f.do()
	close(r.done)
	return r.err
}
