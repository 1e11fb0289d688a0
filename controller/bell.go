// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"sync"
	"time"
)

// bell lets calls wait until something is newer than an index.
type bell struct {
	mu    sync.Mutex
	index uint64
	rang  chan struct{} // closed, and replaced, when index grows
}

func newBell() *bell { return &bell{rang: make(chan struct{})} }

// ring raises the index; a lower one is ignored.
func (b *bell) ring(index uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.raise(index)
}

// bump raises the index by one.
func (b *bell) bump() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.raise(b.index + 1)
}

func (b *bell) raise(index uint64) {
	if index > b.index {
		b.index = index
		close(b.rang)
		b.rang = make(chan struct{})
	}
}

// wait returns the index as soon as it is greater than after, when d has
// passed, or when ctx ends.
func (b *bell) wait(ctx context.Context, after uint64, d time.Duration) uint64 {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		b.mu.Lock()
		index, rang := b.index, b.rang
		b.mu.Unlock()
		if index > after {
			return index
		}
		select {
		case <-rang:
		case <-timer.C:
			return index
		case <-ctx.Done():
			return index
		}
	}
}
