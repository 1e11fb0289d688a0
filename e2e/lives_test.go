// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/hcl"
)

// livesJob is a job whose instances are others of getaway's news gateway, with one task that runs a
// shell script.
func livesJob(id, script string) *nomad.Job {
	job := nomad.NewServiceJob(id, id, "global", 50)
	job.Datacenters = []string{"aws1"}
	group := nomad.NewTaskGroup("g", 1)
	group.EphemeralDisk = &nomad.EphemeralDisk{SizeMB: ptr(110)}
	group.RestartPolicy = &nomad.RestartPolicy{Attempts: ptr(5), Delay: ptr(3 * time.Second), Interval: ptr(time.Hour), Mode: ptr("fail")}
	group.Meta = map[string]string{hcl.MetaService: "getaway-app/news-gw", hcl.MetaRespond: "news-api"}
	group.Networks = []*nomad.NetworkResource{{Mode: hcl.NetworkMode}}
	task := nomad.NewTask("main", "exec").SetConfig("command", "/bin/sh").SetConfig("args", []string{"-c", script})
	group.AddTask(task)
	return job.AddTaskGroup(group)
}

// lived is an instance of a livesJob.
type lived struct {
	alloc   string
	node    string
	address netip.Addr
}

// lives runs a job, and returns its instances as soon as they are admitted.
func (f *fabricUnderTest) lives(t *testing.T, job *nomad.Job) []lived {
	t.Helper()
	_, _, err := f.nomad.Jobs().Register(job, nil)
	must.NoError(t, err)
	f.purgeAtEnd(t, "default", *job.ID)
	var list []lived
	eventually(t, time.Minute, func() error {
		list = nil
		allocs, _, err := f.nomad.Jobs().Allocations(*job.ID, false, nil)
		if err != nil {
			return err
		}
		for _, n := range f.status(t).Nodes {
			for _, e := range n.Endpoints {
				if slices.ContainsFunc(allocs, func(a *nomad.AllocationListStub) bool { return a.ID == e.Endpoint }) {
					list = append(list, lived{e.Endpoint, n.Node, e.IPv4})
				}
			}
		}
		if len(list) != *job.TaskGroups[0].Count {
			return fmt.Errorf("%d instances of job %s are admitted", len(list), *job.ID)
		}
		return nil
	})
	return list
}

const livesName = "news-gw.getaway-app.sif"

// watchAnswers notes when DNS began and ceased to answer svc with addresses, until stop is called.
func watchAnswers(t *testing.T, svc workload) (changes func(netip.Addr, bool) []time.Time, stop func()) {
	type change struct {
		address netip.Addr
		answers bool
		at      time.Time
	}
	var list []change
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		var before []netip.Addr
		for last := false; !last; {
			select {
			case <-end:
				last = true // what was just seen by others is to be seen here as well
			case <-time.After(10 * time.Millisecond):
			}
			now, err := resolve(svc, livesName)
			if err != nil {
				continue
			}
			for _, a := range now {
				if !slices.Contains(before, a) {
					list = append(list, change{a, true, time.Now()})
				}
			}
			for _, a := range before {
				if !slices.Contains(now, a) {
					list = append(list, change{a, false, time.Now()})
				}
			}
			before = now
		}
	}()
	stop = func() { close(end); <-ended }
	changes = func(address netip.Addr, answers bool) (at []time.Time) {
		for _, c := range list {
			if c.address == address && c.answers == answers {
				at = append(at, c.at)
			}
		}
		return at
	}
	return changes, stop
}

// answered waits until DNS answers svc with an address, or does not.
func answered(t *testing.T, svc workload, address netip.Addr, want bool, within time.Duration) {
	t.Helper()
	eventually(t, within, func() error {
		got, err := resolve(svc, livesName)
		if err == nil && slices.Contains(got, address) != want {
			err = fmt.Errorf("%s answers %v; %s is to be among them: %t", livesName, got, address, want)
		}
		return err
	})
}

// withheld waits until status says why DNS does not answer with an instance.
func (f *fabricUnderTest) withheld(t *testing.T, l lived, why string) {
	t.Helper()
	eventually(t, 15*time.Second, func() error {
		for _, n := range f.status(t).Nodes {
			for _, e := range n.Endpoints {
				if e.Endpoint == l.alloc && strings.Contains(e.Withheld, why) {
					return nil
				}
				if e.Endpoint == l.alloc {
					return fmt.Errorf("it is withheld because %q", e.Withheld)
				}
			}
		}
		return fmt.Errorf("no endpoint %s", l.alloc)
	})
}

// median returns the middle one of durations, and the longest.
func median(list []time.Duration) string {
	slices.Sort(list)
	return fmt.Sprintf("p50 %s, longest %s", list[len(list)/2].Round(time.Millisecond), list[len(list)-1].Round(time.Millisecond))
}

// TestHandedOutWhileItLives runs instances of a service that start slowly, restart, stop slowly and
// fail their checks, and asks DNS about them all the time. Packets pass all the while: health is
// not policy.
func TestHandedOutWhileItLives(t *testing.T) {
	graph := world.getaway(t)
	const selector = `selector "nomad" {
      job = "news-gw"
    }`
	must.StrContains(t, graph, selector)
	more := selector
	for _, job := range []string{"e2e-slow", "e2e-restarts", "e2e-checked-nomad", "e2e-checked-consul"} {
		more += fmt.Sprintf("\n    selector \"nomad\" {\n      job = %q\n    }", job)
	}
	world.withGraph(t, strings.Replace(graph, selector, more, 1))
	svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
	const sleeps = `trap "sleep 2; exit" INT TERM; while :; do sleep 1; done`

	t.Run("slow start and stop, no checks", func(t *testing.T) {
		job := livesJob("e2e-slow", sleeps)
		group := job.TaskGroups[0]
		group.Count, group.ShutdownDelay = ptr(5), ptr(5*time.Second)
		before := nomad.NewTask("before", "exec").SetConfig("command", "/bin/sh").SetConfig("args", []string{"-c", "sleep 10"})
		before.Lifecycle = &nomad.TaskLifecycle{Hook: nomad.TaskLifecycleHookPrestart}
		group.AddTask(before)
		changes, stop := watchAnswers(t, svc)
		instances := world.lives(t, job)
		world.withheld(t, instances[0], "waits for its start")
		for _, l := range instances {
			answered(t, svc, l.address, true, time.Minute)
		}
		var starts, stops []time.Duration
		var started []time.Time
		for _, l := range instances {
			a, _, err := world.nomad.Allocations().Info(l.alloc, nil)
			must.NoError(t, err)
			started = append(started, a.TaskStates["main"].StartedAt)
		}
		stopped := time.Now()
		_, _, err := world.nomad.Jobs().Deregister("e2e-slow", false, nil)
		must.NoError(t, err)
		for _, l := range instances {
			answered(t, svc, l.address, false, 5*time.Second)
			a, _, err := world.nomad.Allocations().Info(l.alloc, nil)
			must.NoError(t, err)
			must.Eq(t, nomad.AllocClientStatusRunning, a.ClientStatus, must.Sprint("it still runs, for its shutdown_delay"))
		}
		stop()
		for i, l := range instances {
			on, off := changes(l.address, true), changes(l.address, false)
			must.Len(t, 1, on, must.Sprint("it was handed out once"))
			must.Len(t, 1, off)
			must.True(t, on[0].After(started[i]), must.Sprintf("handed out at %s, started at %s", on[0], started[i]))
			starts, stops = append(starts, on[0].Sub(started[i])), append(stops, off[0].Sub(stopped))
		}
		t.Logf("from a task's start to its address in an answer: %s", median(starts))
		t.Logf("from stopping a job to answers without it: %s", median(stops))
	})

	t.Run("a restart", func(t *testing.T) {
		l := world.lives(t, livesJob("e2e-restarts", sleeps))[0]
		answered(t, svc, l.address, true, time.Minute)
		changes, stop := watchAnswers(t, svc)
		time.Sleep(100 * time.Millisecond)
		alloc, _, err := world.nomad.Allocations().Info(l.alloc, nil)
		must.NoError(t, err)
		must.NoError(t, world.nomad.Allocations().Restart(alloc, "", nil))
		answered(t, svc, l.address, false, 20*time.Second)
		answered(t, svc, l.address, true, time.Minute)
		stop()
		must.Len(t, 1, changes(l.address, false))
		t.Logf("not handed out for %s", changes(l.address, true)[1].Sub(changes(l.address, false)[0]).Round(time.Millisecond))

		// Nobody can be asked, and the agent begins anew: what was known holds.
		orchestrator := world.Topology.Orchestrator().Name
		must.NoError(t, world.Stop(t.Context(), orchestrator, "controller"))
		t.Cleanup(func() {
			must.NoError(t, world.Start(orchestrator, "controller"))
			eventually(t, time.Minute, func() error {
				if r := world.sif(t, "status", "-json"); r.stdout == "" {
					return errors.New(r.stderr)
				}
				return nil
			})
			world.allWell(t, time.Minute)
		})
		changes, stop = watchAnswers(t, svc)
		must.NoError(t, world.Stop(t.Context(), l.node, "agent"))
		must.NoError(t, world.Start(l.node, "agent"))
		for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(time.Second) {
			answered(t, svc, l.address, true, 5*time.Second) // svc may be on the same node, whose agent starts
		}
		stop()
		must.SliceEmpty(t, changes(l.address, false))
	})

	for _, provider := range []string{"nomad", "consul"} {
		t.Run("checks of "+provider, func(t *testing.T) {
			job := livesJob("e2e-checked-"+provider, "sleep 8; exec /usr/local/bin/sif-demo news-gw")
			service := &nomad.Service{Name: "e2e-checked", Provider: provider, PortLabel: "9001", AddressMode: "alloc", Checks: []nomad.ServiceCheck{
				{Name: "up", Type: "http", Path: "/health", AddressMode: "alloc", Interval: time.Second, Timeout: time.Second},
			}}
			job.TaskGroups[0].Services = []*nomad.Service{service}
			changes, stop := watchAnswers(t, svc)
			l := world.lives(t, job)[0]
			answered(t, svc, l.address, true, time.Minute)
			a, _, err := world.nomad.Allocations().Info(l.alloc, nil)
			must.NoError(t, err)
			stop()
			on := changes(l.address, true)
			must.Len(t, 1, on)
			after := on[0].Sub(a.TaskStates["main"].StartedAt)
			must.GreaterEq(t, 8*time.Second, after, must.Sprint("before its check could pass"))
			t.Logf("handed out %s after the service was up", (after - 8*time.Second).Round(time.Millisecond))
		})
	}
}
