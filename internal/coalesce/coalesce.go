// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package coalesce lets callers who want the same thing done at the same time
// share the doing: bringing something to a state that follows from all they
// have said costs as much for a hundred of them as for one. It does not know
// what is done.
package coalesce

import "sync"

// Func does something for its callers, one run at a time.
type Func struct {
	do   func() error
	turn chan struct{} // holds an element during a run

	mu   sync.Mutex
	next *run // has not begun; nil if nobody waits for one
}

// run is one run, for all who wait for it.
type run struct {
	done chan struct{}
	err  error
}

// New returns a Func that runs do.
func New(do func() error) *Func { return &Func{do: do, turn: make(chan struct{}, 1)} }

// Call returns the outcome of a run that began after Call did, so that it has
// seen whatever the caller changed before.
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
	f.next = nil // who comes from here on may have changed more than this run sees
	f.mu.Unlock()
	r.err = f.do()
	close(r.done)
	return r.err
}
