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
	// taskWait is how long the node waits for tasks in one question.
	taskWait = 30 * time.Second
	// taskRetry is the pause after the controller could not be asked.
	taskRetry = time.Second
)

// ServeTasks asks the controller for tasks and hands them to take until ctx
// ends. It does not ask again before take returns.
func (n *Node) ServeTasks(ctx context.Context, take func([]api.Task)) error {
	for ctx.Err() == nil {
		tasks, err := n.Controller.Tasks(ctx, taskWait)
		if ctx.Err() != nil {
			return nil
		}
		n.Degrade("tasks", err)
		if err != nil {
			retry.Sleep(ctx, taskRetry)
			continue
		}
		take(tasks)
	}
	return nil
}

// TaskDone hands in the result of a task.
func (n *Node) TaskDone(ctx context.Context, result api.TaskResult) {
	if err := n.Controller.TaskDone(ctx, result); err != nil && ctx.Err() == nil {
		n.Log.Warn("the controller did not take a task's result", logkey.Task, result.ID, logkey.Error, err)
	}
}

// DumpTask makes a task's result of what a node reads back of its data path.
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
