// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"
)

// nodeKinds are events that take away nodes, Nomad's clients or its servers.
var nodeKinds = []kind{
	{name: "drain", alone: true, selector: `selector "nomad" {
      job = "kinds-drain"
    }
    selector "nomad" {
      job = "kinds-drain-system"
    }`, run: testDrain},
	{name: "preemption", alone: true, selector: `selector "nomad" {
      job = "kinds-preemption"
    }
    selector "nomad" {
      job = "kinds-preemption-high"
    }`, run: testPreemption},
	{name: "client-restart", alone: true, selector: `selector "nomad" {
      job = "kinds-client-restart"
    }
    selector "nomad" {
      job = "kinds-client-restart-batch"
    }`, run: testClientRestart},
	{name: "client-disconnect", alone: true, selector: `selector "nomad" {
      job = "kinds-keep-original"
    }
    selector "nomad" {
      job = "kinds-keep-replacement"
    }
    selector "nomad" {
      job = "kinds-lost"
    }`, run: testClientDisconnect},
	{name: "server-restart", alone: true, run: testServerRestart},
}

// eligible lets a node take allocations again.
func (k *kinds) eligible(t *testing.T, node string) {
	t.Helper()
	_, err := k.nomad.Nodes().UpdateDrain(k.nomadNode(t, node), nil, true, nil)
	must.NoError(t, err)
}

// testDrain drains a node, first without system jobs and then with all and at once.
func testDrain(t *testing.T, k *kinds, name string) {
	service, system := jobID(name), jobID(name)+"-system"
	k.submit(t, service, one(anywhere+"\n  "+on("2"), ""))
	k.submit(t, system, one("datacenters = [\"*\"]\n  type = \"system\"\n  "+on("2"), ""))
	w := k.running(t, service, name, 1)[0]
	stays := k.running(t, system, name, 2)
	k.connected(t, append(stays, w)...)
	drained := w.node
	t.Cleanup(func() { k.eligible(t, drained) })
	node := k.nomadNode(t, drained)
	_, err := k.nomad.Nodes().UpdateDrain(node, &nomad.DrainSpec{Deadline: 20 * time.Second, IgnoreSystemJobs: true}, false, nil)
	must.NoError(t, err)
	k.ended(t, nomad.AllocClientStatusComplete, w)
	moved := k.running(t, service, name, 1)[0]
	must.NotEq(t, drained, moved.node)
	k.connected(t, append(k.running(t, system, name, 2), moved)...)
	k.eligible(t, drained)

	drained = moved.node
	var leaves []workload
	for _, w := range stays {
		if w.node == drained {
			leaves = append(leaves, w)
		}
	}
	must.Len(t, 1, leaves)
	other := w.node
	t.Cleanup(func() { k.eligible(t, other) })
	_, err = k.nomad.Nodes().UpdateDrain(k.nomadNode(t, drained), &nomad.DrainSpec{Deadline: -1}, false, nil) // -force
	must.NoError(t, err)
	k.ended(t, nomad.AllocClientStatusComplete, append(leaves, moved)...)
	back := k.running(t, service, name, 1)[0]
	must.NotEq(t, drained, back.node)
	k.connected(t, append(k.running(t, system, name, 1), back)...)
	k.known(t, back)
	k.eligible(t, drained)
	k.connected(t, k.running(t, system, name, 2)...)
}

// testPreemption has a job of a higher priority take the place of another.
func testPreemption(t *testing.T, k *kinds, name string) {
	was, _, err := k.nomad.Operator().SchedulerGetConfiguration(nil)
	must.NoError(t, err)
	set := func(config nomad.SchedulerConfiguration) {
		t.Helper()
		_, _, err := k.nomad.Operator().SchedulerSetConfiguration(&config, nil)
		must.NoError(t, err)
	}
	config := *was.SchedulerConfig
	config.PreemptionConfig.ServiceSchedulerEnabled = true
	set(config)
	t.Cleanup(func() { set(*was.SchedulerConfig) })
	large := func(priority int) string {
		return strings.Replace(one(fmt.Sprintf("%s\n  priority = %d\n  %s", anywhere, priority, at("aws1-w2")), ""), "cpu    = 20", "cpu    = 5000", 1)
	}
	k.submit(t, jobID(name), large(20))
	low := k.running(t, jobID(name), name, 1)[0]
	k.connected(t, low)
	k.submit(t, jobID(name)+"-high", large(80))
	high := k.running(t, jobID(name)+"-high", name, 1)[0]
	a, _, err := k.nomad.Allocations().Info(low.alloc, nil)
	must.NoError(t, err)
	must.Eq(t, nomad.AllocDesiredStatusEvict, a.DesiredStatus)
	k.ended(t, nomad.AllocClientStatusComplete, low)
	k.connected(t, high)
	k.known(t, high)
}

// clientBack starts a node's Nomad client again and waits until the servers know it.
func (k *kinds) clientBack(t *testing.T, node string) {
	t.Helper()
	must.NoError(t, k.Start(node, "nomad"))
	eventually(t, time.Minute, func() error {
		nodes, _, err := k.nomad.Nodes().List(nil)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if n.Name == node && n.Status == nomad.NodeStatusReady {
				return nil
			}
		}
		return fmt.Errorf("the Nomad client of %s is not ready", node)
	})
}

// testClientRestart kills Nomad's client under tasks of several drivers, which go on without it,
// and has it take them over again. A task that ends meanwhile is cleaned up then.
func testClientRestart(t *testing.T, k *kinds, name string) {
	const node = "aws1-w2"
	group := func(name, task string) string {
		return fmt.Sprintf("group %q {\n    connectivity {}\n    %s\n    %s\n  }\n  ", name, small, task)
	}
	k.submit(t, jobID(name), fmt.Sprintf("%s\n  %s%s%s%s", anywhere, at(node),
		group("exec", script("t", calls+serves)), group("docker", dockerTask()), group("raw", rawTask(k))))
	batch := jobID(name) + "-batch"
	k.submit(t, batch, fmt.Sprintf("%s\n  type = \"batch\"\n  %s%s", anywhere, at(node), group("g", script("t", calls+waits))))
	tasks := k.running(t, jobID(name), name, 3)
	ends := k.running(t, batch, name, 1)[0]
	k.connected(t, append(tasks, ends)...)
	var flows []*stream
	var attempts []*attempts
	for _, w := range tasks {
		flows = append(flows, openStream(t, k.callers[1], w, streamPort, "kinds"))
		attempts = append(attempts, openAttempts(t, k.callers[0], w, servedPort), openAttempts(t, w, k.helper, helpPort))
	}
	flow := func() {
		t.Helper()
		for _, f := range flows {
			f.mustFlow(t, 5*time.Second)
		}
	}
	flow()
	t.Cleanup(func() { k.clientBack(t, node) })
	must.NoError(t, k.Signal(node, "nomad", syscall.SIGKILL))
	flow()
	k.letGo(t, ends)
	time.Sleep(2 * time.Second)
	flow()
	k.connected(t, tasks...)
	k.clientBack(t, node)
	flow()
	k.ended(t, nomad.AllocClientStatusComplete, ends)
	flow()
	for _, a := range attempts {
		a.stop()
		made, err := a.count()
		must.NoError(t, err, must.Sprintf("some of %d connections failed", made))
	}
	must.Eq(t, tasks, k.running(t, jobID(name), name, 3))
	k.connected(t, tasks...)
	k.known(t, tasks...)
	_, _, err := k.nomad.Jobs().Deregister(jobID(name), false, nil)
	must.NoError(t, err)
	k.ended(t, nomad.AllocClientStatusComplete, tasks...)
}

// testClientDisconnect stops the Nomad client of a node on which there is an instance each of three
// jobs: one whose original is kept, one whose replacement is kept, and one that is lost.
func testClientDisconnect(t *testing.T, k *kinds, name string) {
	const away = "gcp1-w2"
	body := func(disconnect string) string {
		return one(anywhere+"\n  "+on("2")+`affinity {
    attribute = "${node.unique.name}"
    value     = "gcp1-w2"
    weight    = 100
  }`, disconnect)
	}
	reconcile := func(which string) string {
		return fmt.Sprintf("disconnect {\n      lost_after = \"10m\"\n      replace    = true\n      reconcile  = %q\n    }", which)
	}
	jobs := []string{"kinds-keep-original", "kinds-keep-replacement", "kinds-lost"}
	for i, text := range []string{reconcile("keep_original"), reconcile("keep_replacement"), ""} {
		k.submit(t, jobs[i], body(update(0)+"\n    "+text))
	}
	var originals []workload
	for _, id := range jobs {
		k.deployment(t, id, 0, successful)
		w := k.running(t, id, name, 1)[0]
		must.Eq(t, away, w.node)
		k.came(t, w, "ok-t")
		originals = append(originals, w)
	}
	flow := openStream(t, k.callers[0], originals[0], streamPort, "original")
	t.Cleanup(func() { k.clientBack(t, away) })
	must.NoError(t, k.Signal(away, "nomad", syscall.SIGKILL))
	replaced := func(i int, status string) (w workload) {
		t.Helper()
		eventually(t, 90*time.Second, func() error {
			text := ""
			old, next := "", ""
			for _, a := range k.allocs(t, jobs[i]) {
				text += "\n" + said(a)
				switch {
				case a.ID == originals[i].alloc:
					old = a.ClientStatus
				case a.ClientStatus == nomad.AllocClientStatusRunning:
					next = a.ID
				}
			}
			if old != status || next == "" {
				return fmt.Errorf("%s was not replaced:%s", jobs[i], text)
			}
			w.alloc = next
			return nil
		})
		return k.endpointOf(t, w.alloc, name)
	}
	replacements := []workload{
		replaced(0, nomad.AllocClientStatusUnknown), replaced(1, nomad.AllocClientStatusUnknown), replaced(2, nomad.AllocClientStatusLost),
	}
	k.connected(t, replacements...)
	// The originals run on, and Nomad wants two of them to.
	k.connected(t, originals...)
	renew := func(w workload) int {
		t.Helper()
		status, text := k.as(t, k.Topology.Node(away)).call(t, http.MethodPost, "/v1/node/admission", fmt.Sprintf(`{"allocation": %q, "ipv4": %q, "ipv6": %q}`, w.alloc, w.v4, w.v6))
		if status == http.StatusForbidden {
			must.StrContains(t, text, "must not run")
		}
		return status
	}
	for i, want := range []int{http.StatusOK, http.StatusOK, http.StatusForbidden} {
		must.Eq(t, want, renew(originals[i]), must.Sprint("renewing the admission of the original of ", jobs[i]))
	}

	k.clientBack(t, away)
	k.ended(t, nomad.AllocClientStatusComplete, replacements[0], originals[1])
	k.gone(t, originals[2])
	kept := k.running(t, jobs[0], name, 1)[0]
	must.Eq(t, originals[0], kept)
	flow.mustFlow(t, 5*time.Second)
	must.Eq(t, []workload{replacements[1]}, k.running(t, jobs[1], name, 1))
	must.Eq(t, []workload{replacements[2]}, k.running(t, jobs[2], name, 1))
	k.connected(t, kept, replacements[1], replacements[2])
	k.known(t, kept, replacements[1], replacements[2])
	for _, w := range []workload{originals[1], originals[2]} {
		must.Eq(t, http.StatusForbidden, renew(w))
	}
}

// testServerRestart kills Nomad's server while allocations are being attached. Each of them waits
// for it, and none fails.
func testServerRestart(t *testing.T, k *kinds, name string) {
	const count = 8
	id := jobID(name)
	server := k.Topology.Orchestrator().Name
	k.submit(t, id, strings.Replace(one(anywhere, ""), "connectivity {}", fmt.Sprintf("count = %d\n    connectivity {}", count), 1))
	eventually(t, 10*time.Second, func() error {
		if n := len(k.allocs(t, id)); n != count {
			return fmt.Errorf("%d allocations of %s are placed, not %d", n, id, count)
		}
		return nil
	})
	t.Cleanup(func() {
		must.NoError(t, k.Start(server, "nomad"))
		eventually(t, time.Minute, func() error {
			_, err := k.nomad.Status().Leader()
			return err
		})
	})
	must.NoError(t, k.Signal(server, "nomad", syscall.SIGKILL))
	time.Sleep(2 * time.Second) // ADDs are under way, and cannot know where they are placed
	must.NoError(t, k.Start(server, "nomad"))
	eventually(t, time.Minute, func() error {
		_, err := k.nomad.Status().Leader()
		return err
	})
	list := k.running(t, id, name, count)
	must.Len(t, count, k.allocs(t, id), must.Sprint("none failed"))
	for _, w := range list {
		k.came(t, w, "ok-t")
	}
	k.connected(t, list[0], list[count-1])
}
