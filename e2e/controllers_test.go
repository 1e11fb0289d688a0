// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
)

// roundsVariable says how many times TestControllers repeats its events.
const roundsVariable = "SIF_E2E_ROUNDS"

// TestControllers lets the leading controller end in several ways, while graphs are applied and
// allocations start all the time. No apply and no allocation fails, and each apply is made once.
func TestControllers(t *testing.T) {
	nodes := world.Topology.Nodes(lab.Orchestrator)
	if len(nodes) < 3 {
		t.Skipf("the lab has %d controllers; set %s to a topology with three", len(nodes), topologyVariable)
	}
	rounds := 1
	if text := os.Getenv(roundsVariable); text != "" {
		_, err := fmt.Sscan(text, &rounds)
		must.NoError(t, err)
	}
	c := &controllersUnderTest{nodes: nodes}
	c.together(t)
	t.Cleanup(func() {
		for _, n := range nodes {
			_ = world.Signal(n.Name, "controller", syscall.SIGCONT)
			must.NoError(t, world.Start(n.Name, "controller"))
		}
		c.together(t)
	})
	c.answersEverywhere(t)
	w := c.work(t)
	for range rounds {
		t.Run("the leader stops", func(t *testing.T) {
			old := c.leader(t)
			c.event(t, w, func() { must.NoError(t, world.Signal(old.Name, "controller", syscall.SIGTERM)) })
			eventually(t, time.Minute, func() error {
				if world.Alive(old.Name, "controller") {
					return fmt.Errorf("%s runs", old.Name)
				}
				return nil
			})
			c.away(t, old)
			must.NoError(t, world.Start(old.Name, "controller"))
			c.together(t)
		})
		t.Run("the leader is killed", func(t *testing.T) {
			old := c.leader(t)
			c.event(t, w, func() { must.NoError(t, world.Signal(old.Name, "controller", syscall.SIGKILL)) })
			c.away(t, old)
			must.NoError(t, world.Start(old.Name, "controller"))
			c.together(t)
		})
		t.Run("the leader stands still", func(t *testing.T) {
			old := c.leader(t)
			c.event(t, w, func() { must.NoError(t, world.Signal(old.Name, "controller", syscall.SIGSTOP)) })
			// What waits in front of it is the first thing that it sees when it goes on.
			late := c.lateApply(t, old)
			must.NoError(t, world.Signal(old.Name, "controller", syscall.SIGCONT))
			status := <-late
			must.Eq(t, http.StatusServiceUnavailable, status, must.Sprint("the answer of the leader that went on"))
			c.together(t)
		})
		t.Run("all controllers are upgraded one after the other", func(t *testing.T) {
			for _, n := range nodes {
				c.event(t, w, func() {
					must.NoError(t, world.Stop(t.Context(), n.Name, "controller"))
					must.NoError(t, world.Start(n.Name, "controller"))
				})
				c.together(t)
			}
		})
	}
	w.end(t)
	for _, e := range c.report {
		t.Log(e)
	}
	world.allWell(t, time.Minute)
}

type controllersUnderTest struct {
	nodes  []*lab.Node
	report []string // what was measured
}

// leader returns the node whose controller leads.
func (c *controllersUnderTest) leader(t *testing.T) (leader *lab.Node) {
	t.Helper()
	eventually(t, 40*time.Second, func() error {
		s := world.status(t)
		for _, one := range append(s.Controllers, s.Controller) {
			if !one.Leader {
				continue
			}
			for _, n := range c.nodes {
				if strings.HasPrefix(one.Address, n.Address+":") {
					leader = n
					return nil
				}
			}
		}
		return fmt.Errorf("nobody leads: %+v", s.Controllers)
	})
	return leader
}

// together waits until all controllers answer, and one of them leads.
func (c *controllersUnderTest) together(t *testing.T) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		s := world.status(t)
		all, leaders := append(s.Controllers, s.Controller), 0
		for _, one := range all {
			if one.Leader {
				leaders++
			}
			if one.Away != "" || len(one.Degraded) > 0 {
				return fmt.Errorf("controller %s: %s %v", one.Address, one.Away, one.Degraded)
			}
		}
		if len(all) != len(c.nodes) || leaders != 1 {
			return fmt.Errorf("%d controllers, %d lead: %+v", len(all), leaders, all)
		}
		return nil
	})
}

// away waits until sif status says that a controller is away.
func (c *controllersUnderTest) away(t *testing.T, n *lab.Node) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		r := world.sif(t, "status")
		if r.code != 2 || !strings.Contains(r.stdout, "controller "+n.Address+":") {
			return fmt.Errorf("exit code %d of sif status does not say that the controller on %s is away:\n%s%s", r.code, n.Name, r.stdout, r.stderr)
		}
		return nil
	})
}

// answersEverywhere asks each controller for reads.
func (c *controllersUnderTest) answersEverywhere(t *testing.T) {
	t.Helper()
	want := world.sequence(t)
	for _, n := range c.nodes {
		eventually(t, 20*time.Second, func() error {
			body, header, status, err := c.ask(t, n, http.MethodGet, "/v1/status", nil)
			if err != nil {
				return err
			}
			var s api.Status
			if status != http.StatusOK || json.Unmarshal(body, &s) != nil {
				return fmt.Errorf("%s answers %d: %s", n.Name, status, body)
			}
			if header.Get(api.ControllerHeader) != s.Controller.Address || header.Get(api.AgeHeader) == "" {
				return fmt.Errorf("the header does not say who answered and how old that is: %v", header)
			}
			reported := slices.ContainsFunc(s.Nodes, func(n api.NodeStatus) bool { return n.Reported.IsZero() })
			if s.Pointer.Sequence != want || len(s.Nodes) == 0 || reported {
				return fmt.Errorf("%s knows sequence %d of %d, and does not know what all of %d daemons report", n.Name, s.Pointer.Sequence, want, len(s.Nodes))
			}
			return nil
		})
	}
}

// ask asks one controller, whatever the others say.
func (c *controllersUnderTest) ask(t *testing.T, n *lab.Node, method, path string, body []byte) ([]byte, http.Header, int, error) {
	t.Helper()
	return world.call(context.WithoutCancel(t.Context()), n, method, path, body)
}

// event does something to controllers, and measures how long applies stand still.
func (c *controllersUnderTest) event(t *testing.T, w *work, do func()) {
	t.Helper()
	began := time.Now()
	do()
	// Until several applies that began after it are made.
	var gap time.Duration
	eventually(t, 90*time.Second, func() (err error) {
		gap, err = w.since(began)
		return err
	})
	text := fmt.Sprintf("%s: applies stood still for %.1f s", t.Name(), gap.Seconds())
	c.report = append(c.report, text)
	t.Log(text)
	must.Less(t, 40*time.Second, gap)
}

// lateApply applies a graph at a controller that stands still. The channel returns the status of
// the answer.
func (c *controllersUnderTest) lateApply(t *testing.T, n *lab.Node) <-chan int {
	t.Helper()
	name := "late"
	body, err := json.Marshal(api.GraphRequest{Domains: map[string]*fabric.Domain{name: {Name: name, Services: []fabric.Service{{
		Name: "s", Selectors: []fabric.Selector{{Kind: fabric.SelectNomad, Namespace: "default", Job: name}},
	}}}}})
	must.NoError(t, err)
	result := make(chan int, 1)
	go func() {
		_, _, status, _ := c.ask(t, n, http.MethodPut, "/v1/graph", body)
		result <- status
	}()
	time.Sleep(500 * time.Millisecond) // the kernel accepts the connection
	return result
}

// work applies graphs and starts allocations until it is ended.
type work struct {
	stop func()

	mu      sync.Mutex
	applies []applied
	failed  []string
	jobs    []string // dispatched
}

type applied struct {
	message    string
	sequence   uint64
	began, end time.Time
}

const churn = "e2e-churn"

func (c *controllersUnderTest) work(t *testing.T) *work {
	t.Helper()
	graph := func(n int) string {
		return fmt.Sprintf(`
domain %q {
  service "job" {
    selector "nomad" {
      job = %q
    }
  }
  service "peer" {
    selector "nomad" {
      job = "e2e-nobody"
    }
  }
  contract "c" {
    originators = ["job"]
    responders  = ["peer"]
    rule {
      protocol = "tcp"
      ports    = [%d]
    }
  }
}
`, churn, churn, 1000+n%1000)
	}
	world.apply(t, graph(0))
	t.Cleanup(func() { must.Zero(t, world.sif(t, "graph", "apply", "-auto-approve", "-remove-domain="+churn).code) })
	job := churnJob()
	_, _, err := world.nomad.Jobs().Register(job, nil)
	must.NoError(t, err)
	world.purgeAtEnd(t, "default", churn)

	w := &work{}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			a := applied{message: fmt.Sprintf("apply %d", n), began: time.Now()}
			file := write(t, "churn.sif.hcl", graph(n))
			r := world.sif(t, "graph", "apply", "-json", "-message="+a.message, file)
			var reply struct{ Sequence uint64 }
			err := json.Unmarshal([]byte(r.stdout), &reply)
			a.sequence, a.end = reply.Sequence, time.Now()
			w.mu.Lock()
			if r.code != 0 || err != nil {
				w.failed = append(w.failed, fmt.Sprintf("%s of %s: exit code %d: %s", a.message, a.began.Format(time.TimeOnly), r.code, r.stderr))
			} else {
				w.applies = append(w.applies, a)
			}
			w.mu.Unlock()
			sleep(ctx, 300*time.Millisecond)
		}
	})
	running.Go(func() {
		for ctx.Err() == nil {
			d, _, err := world.nomad.Jobs().Dispatch(churn, nil, nil, "", nil)
			w.mu.Lock()
			if err != nil {
				w.failed = append(w.failed, "dispatch: "+err.Error())
			} else {
				w.jobs = append(w.jobs, d.DispatchedJobID)
			}
			w.mu.Unlock()
			sleep(ctx, 1500*time.Millisecond)
		}
	})
	w.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(w.stop)
	return w
}

// churnJob is a job whose allocations get an interface, and end.
func churnJob() *nomad.Job {
	job := nomad.NewBatchJob(churn, churn, "global", 50)
	job.Datacenters = []string{"gcp1"}
	job.ParameterizedJob = &nomad.ParameterizedJobConfig{}
	group := nomad.NewTaskGroup("g", 1)
	disk, none, no := 110, 0, false
	group.EphemeralDisk = &nomad.EphemeralDisk{SizeMB: &disk}
	// What fails must be seen.
	group.RestartPolicy = &nomad.RestartPolicy{Attempts: &none, Mode: ptr("fail")}
	group.ReschedulePolicy = &nomad.ReschedulePolicy{Attempts: &none, Unlimited: &no}
	group.Networks = []*nomad.NetworkResource{{Mode: hcl.NetworkMode}}
	cpu, memory := 20, 16
	group.AddTask(&nomad.Task{
		Name: "t", Driver: "raw_exec", Config: map[string]any{"command": "/bin/true"},
		Resources: &nomad.Resources{CPU: &cpu, MemoryMB: &memory}, LogConfig: &nomad.LogConfig{MaxFiles: ptr(1), MaxFileSizeMB: ptr(1)},
	})
	return job.AddTaskGroup(group)
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// since returns the longest time without the end of an apply since something began, once three
// applies have ended that began later.
func (w *work) since(began time.Time) (gap time.Duration, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.failed) > 0 {
		return 0, fmt.Errorf("failed: %s", strings.Join(w.failed, "\n"))
	}
	last, after := began, 0
	for _, a := range w.applies {
		if a.end.Before(began) {
			continue
		}
		gap, last = max(gap, a.end.Sub(last)), a.end
		if a.began.After(began) {
			after++
		}
	}
	if after < 3 {
		return 0, fmt.Errorf("%d applies were made since", after)
	}
	return gap, nil
}

// end ends the work and checks what became of it.
func (w *work) end(t *testing.T) {
	t.Helper()
	w.stop()
	must.SliceEmpty(t, w.failed)
	for i, a := range w.applies[1:] {
		must.Greater(t, w.applies[i].sequence, a.sequence, must.Sprint(a.message))
	}
	// Each one was made once.
	r := world.sif(t, "graph", "history", "-json")
	must.Zero(t, r.code, must.Sprint(r.stderr))
	seen := map[string]int{}
	var oldest uint64
	var history struct {
		Changes []struct {
			Sequence uint64
			Message  string
		}
	}
	must.NoError(t, json.Unmarshal([]byte(r.stdout), &history), must.Sprint(r.stdout))
	for _, change := range history.Changes {
		seen[change.Message]++
		oldest = change.Sequence
	}
	for _, a := range w.applies {
		if a.sequence >= oldest {
			must.Eq(t, 1, seen[a.message], must.Sprintf("how often %q is in the history", a.message))
		}
	}
	must.Zero(t, seen["late"])
	// Each allocation got its interface, at the first attempt.
	var slowest time.Duration
	eventually(t, 2*time.Minute, func() error {
		slowest = 0
		allocs := world.allocs(t, churn)
		complete := 0
		for _, a := range allocs {
			switch a.ClientStatus {
			case nomad.AllocClientStatusComplete:
				complete++
			case nomad.AllocClientStatusFailed, nomad.AllocClientStatusLost:
				t.Fatalf("an allocation failed: %s%s", said(a), world.logged(a.NodeName, a.ID))
			}
			for _, state := range a.TaskStates {
				if !state.StartedAt.IsZero() {
					slowest = max(slowest, state.StartedAt.Sub(time.Unix(0, a.CreateTime)))
				}
			}
		}
		if complete < len(w.jobs) {
			return fmt.Errorf("%d of %d allocations are complete", complete, len(w.jobs))
		}
		return nil
	})
	t.Logf("%d applies, %d allocations; none failed; the slowest start of an allocation took %.1f s", len(w.applies), len(w.jobs), slowest.Seconds())
}
