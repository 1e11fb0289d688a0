// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package resolve

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// maxCached limits the answers that a Cache remembers, and maxAsking the questions that it asks
	// at a time.
	maxCached = 8192
	maxAsking = 512
	// failureRest is how long a Cache repeats an error before it asks again.
	failureRest = time.Second
	// minRest is how long a Cache remembers an answer at least, so that those who ask at the same
	// time ask once.
	minRest = time.Second
)

// ErrBusy is returned for a question that would be one too many at a time.
var ErrBusy = errors.New("too many questions are being asked at this time")

// Cache asks equal questions once at a time and remembers answers while they hold, and errors for a
// moment. It is safe for concurrent use.
type Cache[Q comparable] struct {
	// Life returns how long an answer is remembered of which the records hold for ttl. If it is
	// nil, that long. It must not change once the cache is in use.
	Life func(ttl time.Duration) time.Duration

	ask func(context.Context, Q) (Answer, error)
	now func() time.Time

	mu     sync.Mutex
	known  map[Q]*list.Element // of order
	order  *list.List          // of *entry[Q], the one that was used last in front
	asking map[Q]*flight
}

type entry[Q comparable] struct {
	question Q
	answer   Answer
	err      error
	until    time.Time
}

// flight is a question that is being asked.
type flight struct {
	done   chan struct{}
	answer Answer
	err    error
}

// NewCache returns a cache of what ask answers.
func NewCache[Q comparable](ask func(context.Context, Q) (Answer, error), now func() time.Time) *Cache[Q] {
	return &Cache[Q]{ask: ask, now: now, known: map[Q]*list.Element{}, order: list.New(), asking: map[Q]*flight{}}
}

// Ask answers a question. If it must be asked, and is not being asked already, may decides: its
// error is Ask's. When ctx ends, Ask returns its error, and the answer is still awaited for those
// who ask next.
func (c *Cache[Q]) Ask(ctx context.Context, q Q, may func() error) (Answer, error) {
	c.mu.Lock()
	if e, ok := c.get(q); ok {
		c.mu.Unlock()
		return e.answer, e.err
	}
	f := c.asking[q]
	if f == nil {
		c.mu.Unlock()
		if err := may(); err != nil {
			return Answer{}, err
		}
		c.mu.Lock()
		if f = c.start(q); f == nil {
			c.mu.Unlock()
			return Answer{}, ErrBusy
		}
	}
	c.mu.Unlock()
	select {
	case <-f.done:
		return f.answer, f.err
	case <-ctx.Done():
		return Answer{}, ctx.Err()
	}
}

// Learn asks a question, unless the answer is known, and does not wait.
func (c *Cache[Q]) Learn(q Q) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.get(q); !ok {
		c.start(q)
	}
}

// Forget forgets the answer to a question: it is asked again.
func (c *Cache[Q]) Forget(q Q) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at := c.known[q]; at != nil {
		c.order.Remove(at)
		delete(c.known, q)
	}
}

// start asks a question unless it is being asked. It returns nil if too many are. The caller holds
// c.mu.
func (c *Cache[Q]) start(q Q) *flight {
	if f := c.asking[q]; f != nil {
		return f
	}
	if len(c.asking) >= maxAsking {
		return nil
	}
	f := &flight{done: make(chan struct{})}
	c.asking[q] = f
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), Timeout)
		defer cancel()
		f.answer, f.err = c.ask(ctx, q)
		now := c.now()
		life := f.answer.Expires.Sub(now)
		if c.Life != nil {
			life = c.Life(life)
		}
		until := now.Add(max(life, minRest))
		if f.err != nil {
			until = now.Add(failureRest)
		}
		c.mu.Lock()
		delete(c.asking, q)
		c.put(&entry[Q]{question: q, answer: f.answer, err: f.err, until: until})
		c.mu.Unlock()
		close(f.done)
	}()
	return f
}

// get returns what is remembered of a question. The caller holds c.mu.
func (c *Cache[Q]) get(q Q) (*entry[Q], bool) {
	at := c.known[q]
	if at == nil {
		return nil, false
	}
	e := at.Value.(*entry[Q])
	if !c.now().Before(e.until) {
		c.order.Remove(at)
		delete(c.known, q)
		return nil, false
	}
	c.order.MoveToFront(at)
	return e, true
}

// put remembers an answer. The caller holds c.mu.
func (c *Cache[Q]) put(e *entry[Q]) {
	if at := c.known[e.question]; at != nil {
		c.order.Remove(at)
	}
	c.known[e.question] = c.order.PushFront(e)
	for c.order.Len() > maxCached {
		last := c.order.Back()
		delete(c.known, c.order.Remove(last).(*entry[Q]).question)
	}
}
