// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"context"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
)

const (
	// taskWait is how long a request for tasks waits.
	taskWait = 30 * time.Second
	// taskRetry is the pause after a failed request.
	taskRetry = time.Second
)

// ServeTasks requests tasks from the controller and passes them to take until ctx ends. It requests
// the next ones after take has returned. A request after a failed one does not wait: its answer
// tells that the controller is back.
func (n *Node) ServeTasks(ctx context.Context, take func([]api.Task)) error {
	wait := taskWait
	for ctx.Err() == nil {
		tasks, err := n.Controller.Tasks(ctx, wait)
		if ctx.Err() != nil {
			return nil
		}
		n.Degrade("tasks", err)
		if err != nil {
			wait = 0
			retry.Sleep(ctx, taskRetry)
			continue
		}
		wait = taskWait
		take(tasks)
	}
	return nil
}

// TaskDone sends the result of a task to the controller.
func (n *Node) TaskDone(ctx context.Context, result api.TaskResult) {
	if err := n.Controller.TaskDone(ctx, result); err != nil && ctx.Err() == nil {
		n.Log.Warn("cannot send the result of a task to the controller", logkey.Task, result.ID, logkey.Error, err)
	}
}

// DumpTask runs a dump task: it returns what the node reads back from its data path.
func DumpTask(ctx context.Context, t api.Task, dump func(context.Context) (api.Dump, error)) api.TaskResult {
	ctx, cancel := context.WithTimeout(ctx, t.Timeout)
	defer cancel()
	start := time.Now()
	result := api.TaskResult{ID: t.ID}
	d, err := dump(ctx)
	if err != nil {
		result.Error = err.Error()
	} else {
		result.Dump, result.Done = &d, true
	}
	result.Duration = time.Since(start)
	return result
}
