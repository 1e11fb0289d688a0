// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadlife

import (
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"
)

func pointer[T any](v T) *T { return &v }

// group is a group with a main task, and tasks of every lifecycle.
func group() *nomadapi.TaskGroup {
	g := nomadapi.NewTaskGroup("g", 1)
	for _, t := range []struct {
		name      string
		lifecycle *nomadapi.TaskLifecycle
	}{
		{"main", nil},
		{"init", &nomadapi.TaskLifecycle{Hook: nomadapi.TaskLifecycleHookPrestart}},
		{"proxy", &nomadapi.TaskLifecycle{Hook: nomadapi.TaskLifecycleHookPrestart, Sidecar: true}},
		{"note", &nomadapi.TaskLifecycle{Hook: nomadapi.TaskLifecycleHookPoststart}},
		{"clean", &nomadapi.TaskLifecycle{Hook: nomadapi.TaskLifecycleHookPoststop}},
	} {
		task := nomadapi.NewTask(t.name, "exec")
		task.Lifecycle = t.lifecycle
		g.AddTask(task)
	}
	return g
}

// state returns the state of a task after events.
func state(s string, failed bool, events ...string) *nomadapi.TaskState {
	t := &nomadapi.TaskState{State: s, Failed: failed}
	for _, e := range events {
		t.Events = append(t.Events, &nomadapi.TaskEvent{Type: e})
		if e == nomadapi.TaskStarted {
			t.StartedAt = time.Now()
		}
	}
	return t
}

func TestAssess(t *testing.T) {
	run, stop := nomadapi.AllocDesiredStatusRun, nomadapi.AllocDesiredStatusStop
	runs := state("running", false, "Received", "Task Setup", "Started")
	done, waits := state("dead", false, "Started", "Terminated"), state("pending", false, "Received")
	all := func(main, proxy *nomadapi.TaskState) map[string]*nomadapi.TaskState {
		return map[string]*nomadapi.TaskState{"main": main, "proxy": proxy, "init": done, "note": done, "clean": waits}
	}
	for _, tc := range []struct {
		what            string
		desired, client string
		migrate         bool
		jobType         string
		tasks           map[string]*nomadapi.TaskState
		want            State
	}{
		{"placed, nothing known", run, "pending", false, "service", nil, Waiting},
		{"prestart runs", run, "running", false, "service", map[string]*nomadapi.TaskState{"init": runs, "main": waits, "proxy": waits}, Waiting},
		{"sidecar has not started", run, "running", false, "service", all(runs, waits), Waiting},
		{"main has not started", run, "running", false, "service", all(waits, runs), Waiting},
		{"all run", run, "running", false, "service", all(runs, runs), Ready},
		{"all run, the poststart task too", run, "running", false, "service", map[string]*nomadapi.TaskState{"main": runs, "proxy": runs, "init": done, "note": runs}, Ready},
		{"started so long ago that the event is gone", run, "running", false, "service", all(state("running", false, "Template", "Signaling"), runs), Ready},
		{"main crashed", run, "pending", false, "service", all(state("pending", false, "Started", "Terminated", "Restarting"), runs), Restarting},
		{"the sidecar crashed", run, "running", false, "service", all(runs, state("pending", false, "Started", "Terminated", "Restarting")), Restarting},
		{"a restart was asked for", run, "running", false, "service", all(state("running", false, "Started", "Restart Signaled"), runs), Restarting},
		{"a restart with a shutdown_delay", run, "running", false, "service", all(state("running", false, "Started", "Restart Signaled", "Waiting for shutdown delay"), runs), Restarting},
		{"started again", run, "running", false, "service", all(state("running", false, "Started", "Restart Signaled", "Terminated", "Restarting", "Started"), runs), Ready},
		{"crashed for good", run, "failed", false, "service", all(state("dead", true, "Started", "Terminated", "Not Restarting"), done), Ended},
		{"main ended in a service", run, "running", false, "service", all(done, runs), Ended},
		{"stopped, its tasks still run", stop, "running", false, "service", all(runs, runs), Stopping},
		{"preempted", nomadapi.AllocDesiredStatusEvict, "running", false, "service", all(runs, runs), Stopping},
		{"drained", run, "running", true, "service", all(runs, runs), Stopping},
		{"stopped and ended", stop, "complete", false, "service", all(done, done), Ended},
		{"batch, one of two done", run, "running", false, "batch", all(done, runs), Ready},
		{"batch, a main failed and waits", run, "running", false, "sysbatch", all(state("pending", false, "Started", "Restarting"), runs), Restarting},
		{"batch, done", run, "complete", false, "batch", all(done, done), Ended},
		{"batch, all done but it does not say so yet", run, "running", false, "batch", all(done, done), Ended},
		{"disconnected", run, "unknown", false, "service", all(runs, runs), Unknown},
		{"lost, not replaced yet", run, "lost", false, "service", all(runs, runs), Unknown},
		{"lost and replaced", stop, "lost", false, "service", all(runs, runs), Stopping},
		{"a task without a state", run, "running", false, "service", map[string]*nomadapi.TaskState{"main": runs, "proxy": nil}, Waiting},
	} {
		job := &nomadapi.Job{Type: &tc.jobType}
		life := assess(view{desired: tc.desired, client: tc.client, migrate: tc.migrate, tasks: tasksOf(tc.tasks)}, shapeOf(job, group()))
		must.Eq(t, tc.want, life.State, must.Sprint(tc.what, ": ", life.Why))
		must.Eq(t, life.State == Ready, life.Why == "", must.Sprint(tc.what))
	}
	must.Eq(t, Unknown, assess(view{desired: run, client: "running", tasks: tasksOf(all(runs, runs))}, nil).State)
	must.Eq(t, Stopping, assess(view{desired: stop, client: "running"}, nil).State)
}

func TestChecks(t *testing.T) {
	g := group()
	g.Services = []*nomadapi.Service{{Provider: "nomad", Checks: make([]nomadapi.ServiceCheck, 1)}, {Checks: make([]nomadapi.ServiceCheck, 4)}}
	g.Tasks[0].Services = []*nomadapi.Service{{Provider: "nomad", Checks: make([]nomadapi.ServiceCheck, 1)}, {Provider: "consul", Checks: make([]nomadapi.ServiceCheck, 4)}}
	must.Eq(t, 2, shapeOf(&nomadapi.Job{}, g).checks)

	result := func(status string) nomadapi.AllocCheckStatus {
		return nomadapi.AllocCheckStatus{Check: "up", Service: "web", Status: status}
	}
	for _, tc := range []struct {
		what    string
		results nomadapi.AllocCheckStatuses
		want    State
		why     string
	}{
		{"none yet", nil, Unhealthy, "has passed only 0 of the 2 checks that its job declares in Nomad"},
		{"one yet", nomadapi.AllocCheckStatuses{"a": result("success")}, Unhealthy, "has passed only 1 of"},
		{"both", nomadapi.AllocCheckStatuses{"a": result("success"), "b": result("success")}, Ready, ""},
		{"one pending", nomadapi.AllocCheckStatuses{"a": result("success"), "b": result("pending")}, Unhealthy, `has not passed check "up" of service "web" in Nomad (pending)`},
		{"one fails", nomadapi.AllocCheckStatuses{"a": result("failure"), "b": result("success")}, Unhealthy, `(failure)`},
		{"one fails beside enough that pass", nomadapi.AllocCheckStatuses{"a": result("failure"), "b": result("success"), "c": result("success")}, Unhealthy, `(failure)`},
	} {
		life := resultsOf(tc.results).judge(2)
		must.Eq(t, tc.want, life.State, must.Sprint(tc.what))
		must.StrContains(t, life.Why, tc.why, must.Sprint(tc.what))
	}
	must.Eq(t, Unknown, checks{}.judge(2).State)
}

// An older word never replaces a newer one.
func TestLearnIsInOrder(t *testing.T) {
	w := New(Config{Changed: func([]string) {}, Log: hclog.NewNullLogger()})
	w.Follow([]string{"a"})
	f := w.followed["a"]
	stopped := view{index: 9, desired: nomadapi.AllocDesiredStatusStop, client: "running"}
	must.True(t, w.learn("a", f, stopped))
	must.False(t, w.learn("a", f, view{index: 8, desired: nomadapi.AllocDesiredStatusRun, client: "complete"}))
	must.Eq(t, Stopping, w.Of("a").State)
	must.Eq(t, Unknown, w.Of("b").State)
	w.Follow(nil)
	must.Eq(t, Unknown, w.Of("a").State)
}
