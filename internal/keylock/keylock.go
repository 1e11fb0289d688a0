// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package keylock provides a mutex for each key, so that work with different keys runs
// concurrently. It does not know what the keys mean.
package keylock

import "sync"

// Locks is a mutex for each key in use. The zero value is ready for use. Locks must not be copied
// after first use.
type Locks[K comparable] struct {
	mu   sync.Mutex
	held map[K]*lock
}

type lock struct {
	mu    sync.Mutex
	users int // goroutines that hold it or wait for it
}

// Lock locks k, and waits if it is locked. The function that it returns unlocks k; it must be
// called once.
func (l *Locks[K]) Lock(k K) (unlock func()) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[K]*lock{}
	}
	own := l.held[k]
	if own == nil {
		own = &lock{}
		l.held[k] = own
	}
	own.users++
	l.mu.Unlock()
	own.mu.Lock()
	return func() {
		own.mu.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if own.users--; own.users == 0 {
			delete(l.held, k)
		}
	}
}

// Busy reports whether somebody holds k, or waits for it.
func (l *Locks[K]) Busy(k K) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[k] != nil
}
