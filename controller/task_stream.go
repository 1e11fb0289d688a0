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

// maxPending is how many results of one task wait for who reads them. Nodes never wait for that.
const maxPending = 16

// partial passes on the results of a task that has several.
type partial struct {
	results chan api.TaskResult // has room for maxPending
	mu      sync.Mutex
	missed  uint64 // records of flows in results that found no room
}

// add takes an interim result.
func (p *partial) add(r api.TaskResult) {
	select {
	case p.results <- r:
	default:
		if r.Flows != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.missed += uint64(len(r.Flows.Flows)) + r.Flows.Missed
		}
	}
}

// takeMissed returns how much found no room since the last call.
func (p *partial) takeMissed() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.missed
	p.missed = 0
	return n
}

// stream has nodes carry out tasks that have several results, and calls each with all of them, one
// after the other, until all tasks are done or ctx ends. missed counts records that were lost
// because each is slower than they come.
func (b *taskBoard) stream(ctx context.Context, tasks []api.Task, each func(node fabric.NodeID, r api.TaskResult, missed uint64)) {
	pending := make([]*pendingTask, len(tasks))
	for i, t := range tasks {
		t.ID, t.Timeout = rand.Text(), min(max(t.Timeout, 0), maxTaskTimeout)
		pending[i] = &pendingTask{task: t, ready: make(chan struct{}), result: make(chan api.TaskResult, 1),
			partial: &partial{results: make(chan api.TaskResult, maxPending)}}
	}
	defer b.forget(pending)
	b.post(pending, func(api.Task) bool { return true })
	type arrival struct {
		node   fabric.NodeID
		result api.TaskResult
		missed uint64
	}
	arrivals := make(chan arrival)
	var all sync.WaitGroup
	for _, p := range pending {
		all.Go(func() {
			p.await(ctx, func(r api.TaskResult) {
				select {
				case arrivals <- arrival{p.task.Node, r, p.partial.takeMissed()}:
				case <-ctx.Done():
				}
			})
		})
	}
	go func() {
		all.Wait()
		close(arrivals)
	}()
	for a := range arrivals {
		each(a.node, a.result, a.missed)
	}
}

// await calls each with the results of a task, until the last one, which may be that the node does
// not answer.
func (p *pendingTask) await(ctx context.Context, each func(api.TaskResult)) {
	silent := time.NewTimer(taskSlack)
	defer silent.Stop()
	end := time.NewTimer(p.task.Timeout + taskSlack)
	defer end.Stop()
	late := func() {
		each(api.TaskResult{Error: fmt.Sprintf("node %s did not answer in time", p.task.Node)})
	}
	for {
		select {
		case r := <-p.partial.results:
			each(r)
		case r := <-p.result:
			for len(p.partial.results) > 0 {
				each(<-p.partial.results)
			}
			each(r)
			return
		case <-silent.C:
			select {
			case <-p.ready:
			default:
				late()
				return
			}
		case <-end.C:
			late()
			return
		case <-ctx.Done():
			return
		}
	}
}
