// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

const (
	// taskSlack is added to a task's own timeout, for the time in which the node fetches it and
	// returns the result.
	taskSlack = 5 * time.Second
	// maxTaskTimeout bounds a task's own timeout.
	maxTaskTimeout = time.Minute
	// maxWait bounds a long poll.
	maxWait = 2 * time.Minute
)

// taskBoard passes tasks to the nodes that ask for them, and passes the results to the callers of
// run.
type taskBoard struct {
	mu     sync.Mutex
	queues map[fabric.NodeID]*taskQueue
	open   map[string]*pendingTask // by the task's ID
}

type taskQueue struct {
	tasks []api.Task
	added chan struct{} // closed and replaced when tasks are added
}

type pendingTask struct {
	task   api.Task
	ready  chan struct{} // closed when an observation has begun, or at the latest with the result
	result chan api.TaskResult
	once   sync.Once

	partial *partial // nil: the task has one result
}

func (p *pendingTask) setReady() { p.once.Do(func() { close(p.ready) }) }

func newTaskBoard() *taskBoard {
	return &taskBoard{queues: map[fabric.NodeID]*taskQueue{}, open: map[string]*pendingTask{}}
}

// queue returns the queue of a node. The caller holds b.mu.
func (b *taskBoard) queue(node fabric.NodeID) *taskQueue {
	q := b.queues[node]
	if q == nil {
		q = &taskQueue{added: make(chan struct{})}
		b.queues[node] = q
	}
	return q
}

// next waits at most wait for tasks of a node, and removes them from its queue.
func (b *taskBoard) next(ctx context.Context, node fabric.NodeID, wait time.Duration) []api.Task {
	timer := time.NewTimer(min(max(wait, 0), maxWait))
	defer timer.Stop()
	for {
		b.mu.Lock()
		q := b.queue(node)
		tasks, added := q.tasks, q.added
		q.tasks = nil
		b.mu.Unlock()
		if len(tasks) > 0 {
			return tasks
		}
		select {
		case <-ctx.Done():
			return []api.Task{}
		case <-timer.C:
			return []api.Task{}
		case <-added:
		}
	}
}

// done accepts the result of a task, or the report that an observation has begun, from the node of
// the task.
func (b *taskBoard) done(node fabric.NodeID, r api.TaskResult) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.open[r.ID]
	if p == nil || p.task.Node != node {
		return notFound("node %s has no task %q; its result may be too late", node, r.ID)
	}
	p.setReady()
	if r.Ready {
		if p.partial != nil {
			p.partial.add(r)
		}
		return nil
	}
	delete(b.open, r.ID)
	p.result <- r // cannot block: the channel has room for one, and the task is not open any more
	return nil
}

// run has nodes carry out tasks, and returns the results in the order of the tasks. It starts the
// observations first, and the other tasks when all observations have begun.
func (b *taskBoard) run(ctx context.Context, tasks []api.Task) []api.TaskResult {
	pending := make([]*pendingTask, len(tasks))
	longest := time.Duration(0)
	for i, t := range tasks {
		t.ID = rand.Text()
		t.Timeout = min(max(t.Timeout, 0), maxTaskTimeout)
		longest = max(longest, t.Timeout)
		pending[i] = &pendingTask{task: t, ready: make(chan struct{}), result: make(chan api.TaskResult, 1)}
	}
	defer b.forget(pending)
	begin, cancel := context.WithTimeout(ctx, taskSlack)
	defer cancel()
	b.post(pending, func(t api.Task) bool { return t.Kind == api.TaskObserve })
	for _, p := range pending {
		if p.task.Kind == api.TaskObserve {
			select {
			case <-p.ready:
			case <-begin.Done():
			}
		}
	}
	b.post(pending, func(t api.Task) bool { return t.Kind != api.TaskObserve })
	end, cancel := context.WithTimeout(ctx, longest+taskSlack)
	defer cancel()
	results := make([]api.TaskResult, len(tasks))
	for i, p := range pending {
		select {
		case results[i] = <-p.result:
		case <-end.Done():
			select {
			case results[i] = <-p.result: // it arrived at the same moment
			default:
				results[i] = api.TaskResult{Error: fmt.Sprintf("node %s did not answer in time", p.task.Node)}
			}
		}
		results[i].ID = p.task.ID
	}
	return results
}

// post queues the tasks that pick selects.
func (b *taskBoard) post(pending []*pendingTask, pick func(api.Task) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	extended := map[*taskQueue]bool{}
	for _, p := range pending {
		if !pick(p.task) {
			continue
		}
		b.open[p.task.ID] = p
		q := b.queue(p.task.Node)
		q.tasks = append(q.tasks, p.task)
		extended[q] = true
	}
	for q := range extended {
		close(q.added)
		q.added = make(chan struct{})
	}
}

// forget removes the tasks when run returns.
func (b *taskBoard) forget(pending []*pendingTask) {
	b.mu.Lock()
	defer b.mu.Unlock()
	gone := map[string]bool{}
	for _, p := range pending {
		delete(b.open, p.task.ID)
		gone[p.task.ID] = true
	}
	for _, q := range b.queues {
		var rest []api.Task
		for _, t := range q.tasks {
			if !gone[t.ID] {
				rest = append(rest, t)
			}
		}
		q.tasks = rest
	}
}
