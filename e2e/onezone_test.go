// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/hcl"
)

// TestOneZone tests the smallest cluster: one zone, no switch, every machine runs workloads, an
// agent and an engine.
func TestOneZone(t *testing.T) {
	nodes := world.Topology.Nodes(lab.Processor, lab.Workload)
	if slices.ContainsFunc(nodes, func(n *lab.Node) bool { return n.Zone != nodes[0].Zone || !n.Is(lab.Processor) }) {
		t.Skipf("the fabric has other zones or nodes; set %s to a topology of one zone", topologyVariable)
	}
	// Before the tests that end daemons, and after each of them.
	agrees := func(t *testing.T) {
		t.Helper()
		world.allWell(t, time.Minute)
		world.verified(t, 30*time.Second)
		report := world.matrix(t)
		must.Positive(t, report.Probes)
		t.Logf("%d probes agree", report.Probes)
	}
	t.Run("agrees", agrees)
	for _, how := range []struct {
		name       string
		stop, cont syscall.Signal // cont is 0 if the engine must be started again
		longest    time.Duration  // of an ADD, in the agent
	}{
		{"killed", syscall.SIGKILL, 0, time.Second},
		// An engine that takes calls and does not answer: ADD waits for 500 ms, and then goes on.
		{"hung", syscall.SIGSTOP, syscall.SIGCONT, 1500 * time.Millisecond},
	} {
		t.Run("an engine "+how.name, func(t *testing.T) { engineGone(t, nodes, how.stop, how.cont, how.longest) })
		t.Run("agrees again", agrees)
	}
	t.Run("all start at once", func(t *testing.T) { coldStart(t, nodes) })
	t.Run("agrees after that", agrees)
}

// engineGone stops one engine of three while workloads start, policy changes and names are
// resolved. Nothing waits for it, and what happened meanwhile it has when it is back.
func engineGone(t *testing.T, nodes []*lab.Node, stop, cont syscall.Signal, longest time.Duration) {
	const service, job, group = "getaway-app/news-gw", "news-gw", "aws1"
	zone := nodes[0].Zone
	svc := world.workload(t, "getaway-app/getaway-svc", zone)
	t.Cleanup(func() { world.scale(t, job, group, 1) })
	gone := nodes[0].Name
	back := func() error {
		if cont == 0 {
			return world.Start(gone, "engine")
		}
		if err := world.Signal(gone, "engine", cont); err != nil {
			return err
		}
		return nil
	}
	began := time.Now()
	must.NoError(t, world.Signal(gone, "engine", stop))
	t.Cleanup(func() {
		if err := back(); err != nil {
			t.Error(err)
		}
	})

	// New workloads, on all nodes.
	const count = 9
	world.scale(t, job, group, count)
	instances := world.instances(t, service, zone, count)
	durations := attached(t, nodes, began)
	must.GreaterEq(t, count-1, len(durations))
	slices.Sort(durations)
	t.Logf("%d ADDs took %s to %s", len(durations), durations[0], durations[len(durations)-1])
	must.Less(t, longest, durations[len(durations)-1])
	must.SliceEmpty(t, failures(t, nodes, began))

	// They are reached, by address and by name.
	for _, w := range instances {
		eventually(t, 5*time.Second, func() error {
			conn, err := dial(svc.netns, netip.AddrPortFrom(w.v4, 9001), time.Second)
			if err == nil {
				conn.Close()
			}
			return err
		})
	}
	eventually(t, 20*time.Second, func() error {
		got, err := resolve(svc, "news-gw.getaway-app.sif")
		if err == nil && len(got) != count {
			err = fmt.Errorf("%d addresses, want %d", len(got), count)
		}
		return err
	})

	// A change of policy takes effect.
	for _, c := range []struct {
		graph  string
		passes bool
	}{{withoutContract(t, world.getaway(t), "news-api"), false}, {world.getaway(t), true}} {
		changed := time.Now()
		world.apply(t, c.graph)
		for _, w := range instances {
			eventually(t, 5*time.Second, func() error {
				conn, err := dial(svc.netns, netip.AddrPortFrom(w.v4, 9001), 200*time.Millisecond)
				if err == nil {
					conn.Close()
				}
				if (err == nil) != c.passes {
					return fmt.Errorf("a connection passes: %t, want %t", err == nil, c.passes)
				}
				return nil
			})
		}
		t.Logf("contract in force %t: on all nodes within %s", c.passes, time.Since(changed).Round(time.Millisecond))
	}

	// Workloads that end are forgotten, and the engine that comes back hears of it.
	world.scale(t, job, group, 2)
	must.NoError(t, back())
	world.allWell(t, 30*time.Second)
	world.verified(t, 30*time.Second)
	world.instances(t, service, zone, 2)
}

var attachedLine = regexp.MustCompile(`^(\S+) .* workload attached: .*\bduration=(\S+)`)

// agentLog calls take for the lines of the agents' logs since a time.
func agentLog(t *testing.T, nodes []*lab.Node, since time.Time, take func(line string)) {
	t.Helper()
	for _, n := range nodes {
		file, err := os.Open(world.LogFile(n.Name, "agent"))
		must.NoError(t, err)
		defer file.Close()
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			stamp, _, _ := strings.Cut(lines.Text(), " ")
			at, err := time.Parse("2006-01-02T15:04:05.000Z0700", stamp)
			if err == nil && at.After(since.Truncate(time.Millisecond)) {
				take(lines.Text())
			}
		}
		must.NoError(t, lines.Err())
	}
}

// attached returns how long the agents took for each workload that they attached since then.
func attached(t *testing.T, nodes []*lab.Node, since time.Time) (list []time.Duration) {
	t.Helper()
	agentLog(t, nodes, since, func(line string) {
		if found := attachedLine.FindStringSubmatch(line); found != nil {
			took, err := time.ParseDuration(found[2])
			must.NoError(t, err)
			list = append(list, took)
		}
	})
	return list
}

// failures returns the attempts to attach a workload that failed since then.
func failures(t *testing.T, nodes []*lab.Node, since time.Time) (list []string) {
	t.Helper()
	agentLog(t, nodes, since, func(line string) {
		if strings.Contains(line, "cannot attach workload") {
			list = append(list, line)
		}
	})
	return list
}

// coldStart ends all daemons of ours, as a power cut does, has Nomad start a system job, and starts
// the daemons in the worst order, one kind after the other. Nomad does not reschedule an allocation
// of a system job that failed: none may fail.
func coldStart(t *testing.T, nodes []*lab.Node) {
	const service = "case/server"
	world.apply(t, world.getaway(t)+`
domain "case" {
  service "server" {
    selector "nomad" {
      job = "case-server"
    }
  }
}
`)
	t.Cleanup(func() {
		r := world.sif(t, "graph", "apply", "-remove-domain=case")
		must.Zero(t, r.code, must.Sprint(r.stderr))
	})
	world.allWell(t, 30*time.Second)

	kill := func(node, daemon string) {
		t.Helper()
		must.NoError(t, world.Signal(node, daemon, syscall.SIGKILL))
		t.Cleanup(func() {
			if err := world.Start(node, daemon); err != nil {
				t.Error(err)
			}
		})
	}
	kill(world.Topology.Orchestrator().Name, "controller")
	for _, n := range nodes {
		kill(n.Name, "agent")
		kill(n.Name, "engine")
	}
	job := systemJob("case-server", nodes[0].Zone)
	began := time.Now()
	_, _, err := world.nomad.Jobs().Register(job, nil)
	must.NoError(t, err)
	world.purgeAtEnd(t, "default", *job.ID)
	start := func(daemon string, nodes ...*lab.Node) {
		t.Helper()
		for _, n := range nodes {
			must.NoError(t, world.Start(n.Name, daemon))
		}
		t.Logf("%s: started after %s", daemon, time.Since(began).Round(time.Second))
	}
	const pause = 7 * time.Second
	time.Sleep(pause)
	start("agent", nodes...)
	time.Sleep(pause)
	start("controller", world.Topology.Orchestrator())
	time.Sleep(pause)
	start("engine", nodes...)
	eventually(t, time.Minute, func() error {
		allocs, _, err := world.nomad.Jobs().Allocations(*job.ID, true, (&nomad.QueryOptions{}).WithContext(context.Background()))
		if err != nil {
			return err
		}
		running := 0
		for _, a := range allocs {
			switch a.ClientStatus {
			case nomad.AllocClientStatusRunning:
				running++
			case nomad.AllocClientStatusFailed:
				t.Fatalf("an allocation failed: %s", a.ClientDescription)
			}
		}
		if running != len(nodes) || len(allocs) != len(nodes) {
			return fmt.Errorf("%d of %d allocations run, of %d", running, len(allocs), len(nodes))
		}
		return nil
	})
	t.Logf("all run after %s; ADDs in the agents took %s", time.Since(began).Round(time.Second), attached(t, nodes, began))
	must.SliceEmpty(t, failures(t, nodes, began), must.Sprint("no call failed, so none was repeated"))
	world.instances(t, service, nodes[0].Zone, len(nodes))
}

// systemJob is a job with an instance on each node, whose failed allocations stay failed.
func systemJob(id, zone string) *nomad.Job {
	job := nomad.NewSystemJob(id, id, "global", 50)
	job.Datacenters = []string{zone}
	group := nomad.NewTaskGroup("server", 1)
	group.EphemeralDisk = &nomad.EphemeralDisk{SizeMB: ptr(110)}
	group.RestartPolicy = &nomad.RestartPolicy{Attempts: ptr(0), Mode: ptr("fail")}
	group.Networks = []*nomad.NetworkResource{{Mode: hcl.NetworkMode}}
	group.AddTask(&nomad.Task{Name: "main", Driver: "exec", Config: map[string]any{
		"command": "/usr/local/bin/sif-demo", "args": []string{"news-gw"},
	}})
	return job.AddTaskGroup(group)
}
