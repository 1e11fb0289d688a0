// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/sif-project/sif/api"
)

// bell lets calls wait until the index of something is greater than the one that they know.
type bell struct {
	mu    sync.Mutex
	index uint64
	rang  chan struct{} // closed and replaced when index grows
}

func newBell() *bell { return &bell{rang: make(chan struct{})} }

// ring raises the index. A lower index is ignored.
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

// wait waits until the index is greater than after, at most for d or until ctx ends, and returns
// the index.
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

// awaitIndex waits until the index of b is greater than the one in the query, and returns it.
func awaitIndex(ctx context.Context, r request, b *bell) (uint64, error) {
	after, wait, err := indexOf(r)
	if err != nil {
		return 0, err
	}
	ctx, cancel := r.untilStop(ctx)
	defer cancel()
	return b.wait(ctx, after, wait), nil
}

// awaitOther is awaitIndex for an index that differs from controller to controller: it does not
// wait if the query has one that this controller never had.
func awaitOther(ctx context.Context, r request, b *bell) (uint64, error) {
	if known, _, err := indexOf(r); err == nil && known > b.wait(ctx, 0, 0) {
		return b.wait(ctx, 0, 0), nil
	}
	return awaitIndex(ctx, r, b)
}

// indexOf returns the index that a caller knows, and how long it would wait for another one.
func indexOf(r request) (index uint64, wait time.Duration, err error) {
	if s := r.URL.Query().Get("index"); s != "" {
		if index, err = strconv.ParseUint(s, 10, 64); err != nil {
			return 0, 0, invalid("index: %q must be a number", s)
		}
	}
	if wait, err = waitOf(r, api.DefaultWait, api.MaxWait); err != nil {
		return 0, 0, err
	}
	if index == 0 {
		wait = 0
	}
	return index, wait, nil
}

// waitOf returns how long a call is willing to wait: at most the given maximum.
func waitOf(r request, otherwise, maximum time.Duration) (time.Duration, error) {
	s := r.URL.Query().Get("wait")
	if s == "" {
		return otherwise, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, invalid("wait: %q must be a duration, for instance 30s", s)
	}
	return min(d, maximum), nil
}

// untilStop returns a context that also ends when the controller stops, or does not lead any more
// if only the leader answers the call.
func (r request) untilStop(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	release := context.AfterFunc(r.stop, cancel)
	if r.term == nil {
		return ctx, func() { release(); cancel() }
	}
	also := context.AfterFunc(r.term, cancel)
	return ctx, func() { also(); release(); cancel() }
}
