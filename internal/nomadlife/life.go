// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package nomadlife follows the life of allocations in Nomad: whether their tasks have started,
// wait for a restart or are being stopped, and whether the checks of Nomad's own provider pass. It
// knows Nomad's allocations and task states. It does not know the fabric, nor who asks.
package nomadlife

import (
	"fmt"
	"maps"
	"slices"

	nomadapi "github.com/hashicorp/nomad/api"
)

// State says whether an allocation can be called.
type State string

// The states.
const (
	Unknown    State = ""           // Nomad does not say, as while its client is disconnected: what was known before holds
	Ready      State = "ready"      // every task that must run does, and its checks pass
	Waiting    State = "waiting"    // its tasks have not started
	Restarting State = "restarting" // a task that ran waits for its next start
	Unhealthy  State = "unhealthy"  // its tasks run, but a check has not passed
	Stopping   State = "stopping"   // it is being stopped, drained or preempted; its tasks may still run
	Ended      State = "ended"      // its tasks have ended
)

// Life is the state of an allocation, and why it is not Ready, in words that follow "it".
type Life struct {
	State State
	Why   string
}

// shape is what the job of an allocation says about its tasks.
type shape struct {
	must   map[string]bool // the tasks that run all the time
	ends   bool            // of a job whose tasks end by themselves
	checks int             // declared by services of Nomad's own provider
}

// providerNomad is the provider of services that Nomad itself registers and checks.
const providerNomad = "nomad"

func shapeOf(job *nomadapi.Job, group *nomadapi.TaskGroup) *shape {
	s := &shape{must: map[string]bool{}}
	if job.Type != nil {
		s.ends = *job.Type == nomadapi.JobTypeBatch || *job.Type == nomadapi.JobTypeSysbatch
	}
	count := func(services []*nomadapi.Service) {
		for _, service := range services {
			if service.Provider == providerNomad {
				s.checks += len(service.Checks)
			}
		}
	}
	count(group.Services)
	for _, t := range group.Tasks {
		count(t.Services)
		if t.Lifecycle.Empty() || t.Lifecycle.Sidecar {
			s.must[t.Name] = true
		}
	}
	return s
}

// shapeKey says whose shape it is: all allocations of a group of a version of a job have the same.
type shapeKey struct {
	namespace, job string
	version        uint64
	group          string
}

// view is what Nomad's servers say about an allocation.
type view struct {
	index           uint64 // of its last change
	desired, client string
	migrate         bool // it is being drained
	canary          bool // of a deployment that was not promoted yet
	tasks           map[string]task
}

// task is the state of a task.
type task struct {
	state   string
	failed  bool
	started bool   // once
	last    string // the latest of its events that tells of starts and ends
}

// turns are the events that tell of the starts and ends of a task. What follows a start means that
// it is coming to its end, although its state is still that it runs: for as long as its
// shutdown_delay and kill_timeout last.
var turns = []string{
	nomadapi.TaskStarted, nomadapi.TaskTerminated, nomadapi.TaskKilling, nomadapi.TaskKilled, nomadapi.TaskRestarting,
	nomadapi.TaskNotRestarting, nomadapi.TaskRestartSignal, "Waiting for shutdown delay",
}

func tasksOf(states map[string]*nomadapi.TaskState) map[string]task {
	tasks := make(map[string]task, len(states))
	for name, s := range states {
		if s == nil {
			continue
		}
		t := task{state: s.State, failed: s.Failed, started: !s.StartedAt.IsZero()}
		for _, e := range s.Events {
			if e != nil && slices.Contains(turns, e.Type) {
				t.last = e.Type
			}
		}
		tasks[name] = t
	}
	return tasks
}

// Nomad's words for the states of tasks.
const (
	taskRunning = "running"
	taskDead    = "dead"
)

// assess returns the life of an allocation by its tasks alone. Without a shape, it knows only what
// does not depend on one.
func assess(v view, s *shape) Life {
	switch {
	case v.client == nomadapi.AllocClientStatusComplete || v.client == nomadapi.AllocClientStatusFailed:
		return Life{Ended, "has ended in Nomad (" + v.client + ")"}
	case v.desired != nomadapi.AllocDesiredStatusRun:
		return Life{Stopping, fmt.Sprintf("is being stopped: Nomad wants it to %s", v.desired)}
	case v.migrate:
		return Life{Stopping, "is being stopped: Nomad drains its node"}
	case v.client == nomadapi.AllocClientStatusUnknown || v.client == nomadapi.AllocClientStatusLost:
		return Life{Unknown, "is on a Nomad client that is disconnected"}
	case s == nil:
		return Life{Unknown, "is not known yet: its job was not read"}
	}
	running, ended := 0, 0
	for _, name := range slices.Sorted(maps.Keys(s.must)) {
		t := v.tasks[name]
		switch {
		case t.state == taskRunning && (t.last == "" || t.last == nomadapi.TaskStarted):
			running++
		case t.state == taskDead && !t.failed && s.ends:
			ended++
		case t.state == taskRunning:
			return Life{Restarting, fmt.Sprintf("waits for its restart: task %q is being stopped", name)}
		case t.state == taskDead:
			return Life{Ended, fmt.Sprintf("has no task %q any more: it has ended", name)}
		case t.started:
			return Life{Restarting, fmt.Sprintf("waits for its restart: task %q", name)}
		default:
			return Life{Waiting, fmt.Sprintf("waits for its start: task %q", name)}
		}
	}
	if running == 0 {
		return Life{Ended, "has no task that runs"}
	}
	return Life{Ready, ""}
}
