// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadlife

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/setup/setuptest"
	"github.com/sif-project/sif/internal/testhost"
)

const bootstrap = "2b778dd9-f5f1-6f29-b4b4-9a5fa948757a"

// change is a life that an allocation had, and since when.
type change struct {
	Life
	at time.Time
}

// witness is a watcher with a record of what it said.
type witness struct {
	*Watcher
	mu   sync.Mutex
	said map[string][]change
}

func watch(t *testing.T, client func() *nomadapi.Client) *witness {
	w := &witness{said: map[string][]change{}}
	w.Watcher = New(Config{Client: client, Log: hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: logger{t}}), Changed: func(ids []string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, id := range ids {
			w.said[id] = append(w.said[id], change{w.Of(id), time.Now()})
		}
	}})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = w.Run(ctx)
	}()
	t.Cleanup(func() { stop(); <-ended })
	return w
}

type logger struct{ t *testing.T }

func (l logger) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// states returns what was said of an allocation, in order, without repetitions.
func (w *witness) states(id string) (list []State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.said[id] {
		if c.State != Unknown {
			list = append(list, c.State)
		}
	}
	return slices.Compact(list)
}

// becomes waits until an allocation has a state, and returns since when.
func (w *witness) becomes(t *testing.T, id string, want State) time.Time {
	t.Helper()
	var at time.Time
	eventually(t, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if life := w.Of(id); life.State != want {
			return fmt.Errorf("allocation %s is %q (%s), want %q; it was %v", id, life.State, life.Why, want, w.said[id])
		}
		if said := w.said[id]; len(said) > 0 {
			at = said[len(said)-1].at
		}
		return nil
	})
	return at
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// jobOf returns a job with one task that runs a shell script.
func jobOf(namespace, name, script string) *nomadapi.Job {
	job := nomadapi.NewServiceJob(name, name, "global", 50)
	job.Namespace, job.Datacenters = &namespace, []string{"*"}
	g := nomadapi.NewTaskGroup("g", 1)
	g.EphemeralDisk = &nomadapi.EphemeralDisk{SizeMB: pointer(110)}
	g.RestartPolicy = &nomadapi.RestartPolicy{Attempts: pointer(3), Delay: pointer(time.Second), Interval: pointer(time.Hour), Mode: pointer("fail")}
	g.AddTask(nomadapi.NewTask("main", "raw_exec").SetConfig("command", "/bin/sh").SetConfig("args", []string{"-c", script}))
	return job.AddTaskGroup(g)
}

// run registers a job, and returns the ID of its allocation.
func run(t *testing.T, client *nomadapi.Client, job *nomadapi.Job) (id string) {
	t.Helper()
	_, _, err := client.Jobs().Register(job, &nomadapi.WriteOptions{Namespace: *job.Namespace})
	must.NoError(t, err)
	eventually(t, func() error {
		list, _, err := client.Jobs().Allocations(*job.ID, false, &nomadapi.QueryOptions{Namespace: *job.Namespace})
		for _, a := range list {
			if a.DesiredStatus == nomadapi.AllocDesiredStatusRun {
				id = a.ID
				return nil
			}
		}
		return fmt.Errorf("no allocation of job %s yet: %v", *job.ID, err)
	})
	return id
}

const sleeps = "exec sleep 600"

// TestNomad follows allocations of a real Nomad with the rights that the controller has.
func TestNomad(t *testing.T) {
	testhost.RequireRoot(t)
	server, _ := testhost.Nomad(t, "acl {\n  enabled = true\n}")
	as := func(token string) *nomadapi.Client {
		c, err := nomadapi.NewClient(&nomadapi.Config{Address: "http://" + server.Address, SecretID: token})
		must.NoError(t, err)
		return c
	}
	root := as(bootstrap)
	eventually(t, func() error {
		_, _, err := root.ACLTokens().BootstrapOpts(bootstrap, nil)
		return err
	})
	token := setuptest.Nomad(t, root, setuptest.Settings("life", "life.example"))
	w := watch(t, func() *nomadapi.Client { return as(token) })

	// A slow start, by a task before the main one, which takes its time to end.
	slow := jobOf("default", "slow", `trap "sleep 2; exit" INT TERM; while :; do sleep 0.1; done`)
	before := nomadapi.NewTask("before", "raw_exec").SetConfig("command", "/bin/sleep").SetConfig("args", []string{"3"})
	before.Lifecycle = &nomadapi.TaskLifecycle{Hook: nomadapi.TaskLifecycleHookPrestart}
	slow.TaskGroups[0].AddTask(before)
	slow.TaskGroups[0].ShutdownDelay = pointer(2 * time.Second)
	id := run(t, root, slow)
	w.Follow([]string{id})
	w.becomes(t, id, Waiting)
	ready := w.becomes(t, id, Ready)
	alloc, _, err := root.Allocations().Info(id, nil)
	must.NoError(t, err)
	started := alloc.TaskStates["main"].StartedAt
	must.True(t, ready.After(started), must.Sprint(ready, started))
	t.Logf("known to be ready %v after its task started", ready.Sub(started).Round(time.Millisecond))

	// A restart by hand: it is not ready while the task that runs is being stopped. (What Nomad's
	// client has restarted before its next report, after at most a second, its servers never know.)
	must.NoError(t, root.Allocations().Restart(alloc, "", nil))
	eventually(t, func() error {
		if s := w.states(id); !slices.Contains(s, Restarting) {
			return fmt.Errorf("states %v", s)
		}
		return nil
	})
	w.becomes(t, id, Ready)

	// Stopped: at once, although the task goes on for its shutdown_delay.
	began := time.Now()
	_, _, err = root.Jobs().Deregister("slow", false, nil)
	must.NoError(t, err)
	stopping := w.becomes(t, id, Stopping)
	t.Logf("known to be stopping %v after the job was stopped", stopping.Sub(began).Round(time.Millisecond))
	w.becomes(t, id, Ended)
	must.Eq(t, []State{Waiting, Ready, Restarting, Ready, Stopping, Ended}, w.states(id))

	// A crash, in a namespace that is younger than the event stream.
	_, err = root.Namespaces().Register(&nomadapi.Namespace{Name: "other"}, nil)
	must.NoError(t, err)
	dir := t.TempDir()
	crash := jobOf("other", "crash", fmt.Sprintf("until [ -e %s/now ]; do sleep 0.05; done; rm %s/now; exit 1", dir, dir))
	id = run(t, root, crash)
	w.Follow([]string{id})
	w.becomes(t, id, Ready)
	must.NoError(t, os.WriteFile(filepath.Join(dir, "now"), nil, 0o600))
	w.becomes(t, id, Restarting)
	w.becomes(t, id, Ready)

	// Checks of Nomad's own provider.
	var well atomic.Bool
	web := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		if !well.Load() {
			rw.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(web.Close)
	_, port, err := net.SplitHostPort(web.Listener.Addr().String())
	must.NoError(t, err)
	checked := jobOf("default", "checked", sleeps)
	checked.TaskGroups[0].Networks = []*nomadapi.NetworkResource{{Mode: "host"}}
	checked.TaskGroups[0].Services = []*nomadapi.Service{{
		Name: "web", Provider: "nomad", PortLabel: port, Address: "127.0.0.1", AddressMode: "auto",
		Checks: []nomadapi.ServiceCheck{{Name: "up", Type: "http", Path: "/", Interval: time.Second, Timeout: time.Second}},
	}}
	id = run(t, root, checked)
	w.Follow([]string{id})
	w.becomes(t, id, Unhealthy)
	eventually(t, func() error {
		if life := w.Of(id); !strings.Contains(life.Why, `check "up" of service "web"`) {
			return fmt.Errorf("%v", life)
		}
		return nil
	})
	well.Store(true)
	w.becomes(t, id, Ready)
	well.Store(false)
	w.becomes(t, id, Unhealthy)

	// One that Nomad does not know is unknown, not ended.
	w.Follow([]string{"00000000-0000-4000-8000-000000000000"})
	eventually(t, func() error {
		if life := w.Of("00000000-0000-4000-8000-000000000000"); life != (Life{Unknown, "is not known to Nomad"}) {
			return fmt.Errorf("%v", life)
		}
		return nil
	})
	must.NoError(t, w.Trouble())
}

// TestWithoutEventStream follows a Nomad whose servers have no event broker, and one that is away
// for some time.
func TestWithoutEventStream(t *testing.T) {
	testhost.RequireRoot(t)
	_, client := testhost.Nomad(t, "server {\n  enable_event_broker = false\n}")
	var away atomic.Bool
	nowhere, err := nomadapi.NewClient(&nomadapi.Config{Address: "http://127.0.0.1:1"})
	must.NoError(t, err)
	w := watch(t, func() *nomadapi.Client {
		if away.Load() {
			return nowhere
		}
		return client
	})
	id := run(t, client, jobOf("default", "plain", sleeps))
	w.Follow([]string{id})
	w.becomes(t, id, Ready)
	must.NoError(t, w.Trouble())

	away.Store(true)
	alloc, _, err := client.Allocations().Info(id, nil)
	must.NoError(t, err)
	must.NoError(t, client.Allocations().Restart(alloc, "", nil)) // wakes the list that waits
	eventually(t, func() error {
		if w.Trouble() == nil {
			return fmt.Errorf("no trouble")
		}
		return nil
	})
	must.NotEq(t, Unknown, w.Of(id).State)
	_, _, err = client.Jobs().Deregister("plain", false, nil)
	must.NoError(t, err)
	away.Store(false)
	eventually(t, func() error {
		if s := w.Of(id).State; s != Stopping && s != Ended {
			return fmt.Errorf("state %q", s)
		}
		return w.Trouble()
	})
}
