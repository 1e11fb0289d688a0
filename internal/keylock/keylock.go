// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package keylock serialises work on things that have a key: what is done about
// one of them goes on while another is worked on. It knows nothing of what the
// keys stand for.
package keylock

import "sync"

// Locks is a mutex for each key in use. The zero value is ready for use, and
// must not be copied after first use.
type Locks[K comparable] struct {
	mu   sync.Mutex
	held map[K]*lock
}

type lock struct {
	mu    sync.Mutex
	users int // holding it or waiting for it
}

// Lock waits until nobody holds k and takes it. The function that it returns
// gives it back; it is to be called once.
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
