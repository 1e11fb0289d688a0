// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package flowlog keeps the last records of flows of a node, and hands them to observers. It knows
// how many there are and who is behind. It must not know how flows are recorded, nor who observes.
// Nobody who adds a record ever waits for an observer: one that is slower than the records come is
// told how many it missed.
package flowlog

import (
	"context"
	"crypto/rand"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric/flow"
	"github.com/sif-project/sif/internal/retry"
)

const (
	// batch is the most records that are sent at once.
	batch = 500
	// pause is the time in which records are gathered, so that each does not cost a call.
	pause = 250 * time.Millisecond
)

// Log is the last records of a node. It is safe for concurrent use.
type Log struct {
	id string // of this log; another one has other cursors

	mu        sync.Mutex
	ring      []*flow.Flow
	next      uint64                     // number of the next record, from 1; record n is at n modulo the size
	observers map[chan struct{}]struct{} // each is told of new records, and has room for one
}

// New returns a log that keeps so many records.
func New(size int) *Log {
	return &Log{id: rand.Text(), ring: make([]*flow.Flow, max(size, 1)), next: 1, observers: map[chan struct{}]struct{}{}}
}

// Add adds a record, which must not be modified any more. The oldest one goes if there is no room.
func (l *Log) Add(f *flow.Flow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ring[l.next%uint64(len(l.ring))] = f
	l.next++
	for o := range l.observers {
		select {
		case o <- struct{}{}:
		default: // it was told and has not looked yet
		}
	}
}

// Len returns how many records are kept, and how many may be.
func (l *Log) Len() (kept, size int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(min(l.next-1, uint64(len(l.ring)))), len(l.ring)
}

// after returns the records from number from on, the number after the last of them, and how many
// are gone already.
func (l *Log) after(from uint64) (list []*flow.Flow, next, missed uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	oldest := uint64(1)
	if size := uint64(len(l.ring)); l.next > size {
		oldest = l.next - size
	}
	if from < oldest {
		missed, from = oldest-from, oldest
	}
	for n := from; n < l.next; n++ {
		list = append(list, l.ring[n%uint64(len(l.ring))])
	}
	return list, l.next, missed
}

func (l *Log) cursor(next uint64) string { return l.id + "." + strconv.FormatUint(next, 10) }

// position returns the number that a cursor stands for, if it is one of this log.
func (l *Log) position(cursor string) (uint64, bool) {
	id, number, ok := strings.Cut(cursor, ".")
	n, err := strconv.ParseUint(number, 10, 64)
	if !ok || err != nil || id != l.id || n == 0 {
		return 0, false
	}
	return n, true
}

// Serve carries out a task: it sends what the query selects, and goes on until the task's time is
// over or ctx ends if the query says so. The first batch is sent at once, also if it is empty. An
// error of send, which means that nobody observes any more, ends it.
func (l *Log) Serve(ctx context.Context, t api.Task, send func(api.TaskResult) error) error {
	result := api.TaskResult{ID: t.ID}
	if t.Flows == nil {
		result.Error = "the task has no query of flows"
		return send(result)
	}
	m, err := t.Flows.Filter.Compile()
	if err != nil {
		result.Error = err.Error()
		return send(result)
	}
	ctx, cancel := context.WithTimeout(ctx, t.Timeout)
	defer cancel()
	fresh := make(chan struct{}, 1)
	l.observe(fresh)
	defer l.leave(fresh)
	from, resumed := l.position(t.Flows.After)
	last := t.Flows.Last
	if resumed {
		last = 0 // all since
	}
	for first := true; ; first = false {
		list, next, missed := l.after(from)
		selected := l.choose(list, m, *t.Flows)
		if last > 0 && len(selected) > last {
			selected = selected[len(selected)-last:]
		}
		if !resumed && first {
			missed = 0 // nobody asked for them
			if last == 0 && t.Flows.Follow && t.Flows.Filter.Since.IsZero() && t.Flows.After == "" {
				selected = nil // from now on
			}
		}
		last = 0
		from = next
		for first || len(selected) > 0 || missed > 0 {
			n := min(len(selected), batch)
			err := send(api.TaskResult{ID: t.ID, Ready: true, Flows: &api.FlowBatch{Flows: selected[:n], Next: l.cursor(next), Missed: missed}})
			if err != nil {
				return err
			}
			selected, missed, first = selected[n:], 0, false
		}
		if !t.Flows.Follow || !retry.Sleep(ctx, pause) {
			break
		}
		select {
		case <-fresh:
			continue
		case <-ctx.Done():
		}
		break
	}
	result.Done = true
	return send(result)
}

func (l *Log) observe(o chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.observers[o] = struct{}{}
}

func (l *Log) leave(o chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.observers, o)
}

// choose returns what the observer may see of what it has asked for.
func (l *Log) choose(list []*flow.Flow, m *flow.Matcher, q api.FlowQuery) (selected []flow.Flow) {
	reads := q.Reads()
	for _, f := range list {
		seen, visible := f.For(reads)
		if visible && m.Match(&seen) {
			selected = append(selected, seen)
		}
	}
	return selected
}
