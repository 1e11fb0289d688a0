// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"
)

// eventKinds are events in the life of a job that leave its nodes alone.
var eventKinds = []kind{
	{name: "shutdown-delay", quick: true, run: testShutdownDelay},
	{name: "canary", selector: `selector "consul" {
      service = "kinds-canary"
      tags    = ["stable"]
      meta    = { stage = "stable" }
    }`, run: testCanary},
	{name: "blue-green", run: testBlueGreen},
	{name: "alloc-restart", quick: true, run: testAllocRestart},
	{name: "alloc-stop", run: testAllocStop},
	{name: "template", run: testTemplate},
	{name: "scale", run: testScale},
	{name: "restart-policy", run: testRestartPolicy},
	{name: "sticky-disk", run: testStickyDisk},
	{name: "reschedule", run: testReschedule},
}

// one is a job of one group that serves, with what more the group has.
func one(where, more string) string {
	return fmt.Sprintf(`%s
  group "g" {
    connectivity {}
    %s
    %s
    %s
  }`, where, small, more, script("t", calls+serves))
}

const anywhere = `datacenters = ["aws1", "gcp1"]`

// testShutdownDelay stops a job while its connections go on, and so do new ones.
func testShutdownDelay(t *testing.T, k *kinds, name string) {
	const delay = 8 * time.Second
	k.submit(t, jobID(name), one(anywhere, fmt.Sprintf("shutdown_delay = %q", delay)))
	w := k.running(t, jobID(name), name, 1)[0]
	k.came(t, w, "ok-t")
	k.connected(t, w)
	k.known(t, w)
	began := time.Now()
	_, _, err := k.nomad.Jobs().Deregister(jobID(name), false, nil)
	must.NoError(t, err)
	eventually(t, 5*time.Second, func() error {
		a, _, err := k.nomad.Allocations().Info(w.alloc, nil)
		if err == nil && a.DesiredStatus != nomad.AllocDesiredStatusStop {
			err = fmt.Errorf("allocation %s is not stopped", w.alloc)
		}
		return err
	})
	for time.Since(began) < delay-2*time.Second {
		for _, c := range k.callers {
			must.True(t, arrives(t, c, w, servedPort, time.Second), must.Sprintf("%s after the stop", time.Since(began)))
		}
		must.True(t, arrives(t, w, k.helper, helpPort, time.Second), must.Sprintf("%s after the stop", time.Since(began)))
		time.Sleep(200 * time.Millisecond)
	}
	k.ended(t, nomad.AllocClientStatusComplete, w)
}

// update is an update block of jobs that are healthy once their tasks run.
func update(canaries int) string {
	return fmt.Sprintf(`update {
      canary            = %d
      max_parallel      = 1
      health_check      = "task_states"
      min_healthy_time  = "1s"
      healthy_deadline  = "60s"
      progress_deadline = "120s"
    }`, canaries)
}

// deployment waits until the latest deployment of a job has a status.
func (k *kinds) deployment(t *testing.T, id string, version uint64, want func(*nomad.Deployment) bool) *nomad.Deployment {
	t.Helper()
	var d *nomad.Deployment
	eventually(t, 90*time.Second, func() (err error) {
		if d, _, err = k.nomad.Jobs().LatestDeployment(id, nil); err != nil {
			return err
		}
		if d == nil || d.JobVersion != version || !want(d) {
			return fmt.Errorf("deployment of version %d of %s: %+v", version, id, d)
		}
		return nil
	})
	return d
}

func successful(d *nomad.Deployment) bool { return d.Status == nomad.DeploymentStatusSuccessful }

// canariesHealthy reports whether a deployment waits for its promotion.
func canariesHealthy(count int) func(*nomad.Deployment) bool {
	return func(d *nomad.Deployment) bool {
		g := d.TaskGroups["g"]
		return g != nil && len(g.PlacedCanaries) == count && g.HealthyAllocs == count
	}
}

// withService adds a service block to a group, whose canaries have other tags and meta.
const withService = `service {
      name         = "kinds-canary"
      provider     = "consul"
      port         = "7000"
      address_mode = "alloc"
      tags         = ["stable"]
      canary_tags  = ["next"]
      meta {
        stage = "stable"
      }
      canary_meta {
        stage = "next"
      }
    }`

// testCanary has a canary that is another service than what it is to replace, until it is promoted.
func testCanary(t *testing.T, k *kinds, name string) {
	id := jobID(name)
	body := func(version int) string {
		return fmt.Sprintf(`%s
  group "g" {
    connectivity {}
    meta {
      version = "%d"
    }
    %s
    %s
    %s
    %s
  }`, anywhere, version, small, update(1), withService, script("t", serves)) // a canary may not call
	}
	k.submit(t, id, body(0))
	stable := k.running(t, id, name, 1)[0]
	k.deployment(t, id, 0, successful)
	k.connected(t, stable)

	k.submit(t, id, body(1))
	d := k.deployment(t, id, 1, canariesHealthy(1))
	canary := k.endpointOf(t, d.TaskGroups["g"].PlacedCanaries[0], "canary-next")
	reaches(t, k.callers[0], canary, servedPort, false, 10*time.Second)
	reaches(t, k.stranger, canary, servedPort, true, 10*time.Second)
	reaches(t, canary, k.helper, helpPort, false, 10*time.Second)
	k.connected(t, stable)

	promoted := time.Now()
	_, _, err := k.nomad.Deployments().PromoteAll(d.ID, nil)
	must.NoError(t, err)
	k.deployment(t, id, 1, successful)
	eventually(t, 30*time.Second, func() error {
		for _, w := range k.instancesOf(t, name) {
			if w.alloc == canary.alloc {
				return nil
			}
		}
		return fmt.Errorf("%s was promoted, and is not %s/%s yet", canary, "kinds", name)
	})
	t.Logf("the canary has been the service %.1f s after its promotion", time.Since(promoted).Seconds())
	canary.service = stable.service
	k.connected(t, canary)
	k.known(t, canary)
	k.ended(t, nomad.AllocClientStatusComplete, stable)
}

// instancesOf returns the endpoints of a kind.
func (k *kinds) instancesOf(t *testing.T, name string) (list []workload) {
	t.Helper()
	for _, n := range k.status(t).Nodes {
		for _, ep := range n.Endpoints {
			if ep.Service.Domain == "kinds" && ep.Service.Name == name {
				list = append(list, workload{alloc: ep.Endpoint, zone: n.Zone, node: n.Node, service: ep.Service, v4: ep.IPv4, v6: ep.IPv6})
			}
		}
	}
	return list
}

// testBlueGreen replaces all instances at once, and goes back.
func testBlueGreen(t *testing.T, k *kinds, name string) {
	id := jobID(name)
	body := func(colour string) string {
		return strings.Replace(one(anywhere, update(2)), "connectivity {}", fmt.Sprintf("count = 2\n    connectivity {}\n    meta {\n      colour = %q\n    }", colour), 1)
	}
	k.submit(t, id, body("blue"))
	blue := k.running(t, id, name, 2)
	k.deployment(t, id, 0, successful)
	k.submit(t, id, body("green"))
	d := k.deployment(t, id, 1, canariesHealthy(2))
	both := k.running(t, id, name, 4)
	k.connected(t, both...)
	_, _, err := k.nomad.Deployments().PromoteAll(d.ID, nil)
	must.NoError(t, err)
	k.ended(t, nomad.AllocClientStatusComplete, blue...)
	k.deployment(t, id, 1, successful)
	green := k.running(t, id, name, 2)
	k.connected(t, green...)
	_, _, err = k.nomad.Jobs().Revert(id, 0, nil, nil, "", "")
	must.NoError(t, err)
	d = k.deployment(t, id, 2, canariesHealthy(2))
	_, _, err = k.nomad.Deployments().PromoteAll(d.ID, nil)
	must.NoError(t, err)
	k.ended(t, nomad.AllocClientStatusComplete, green...)
	k.connected(t, k.running(t, id, name, 2)...)
}

// inode returns the identity of a network namespace.
func inode(t *testing.T, w workload) string {
	t.Helper()
	link, err := os.Readlink(w.netns)
	if err == nil {
		return link
	}
	info, err := os.Stat(w.netns)
	must.NoError(t, err)
	return fmt.Sprint(info.Sys())
}

// restarts returns how often a task has been started.
func (k *kinds) restarts(t *testing.T, w workload, task string) uint64 {
	t.Helper()
	a, _, err := k.nomad.Allocations().Info(w.alloc, nil)
	must.NoError(t, err)
	state := a.TaskStates[task]
	if state == nil || state.State != "running" {
		return 0
	}
	return state.Restarts
}

// restarted waits until a task has been restarted as often and runs.
func (k *kinds) restarted(t *testing.T, w workload, task string, times uint64) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		if n := k.restarts(t, w, task); n < times {
			return fmt.Errorf("task %s of %s was restarted %d times and runs, not %d", task, w, n, times)
		}
		return nil
	})
}

// testAllocRestart restarts a task, and then all tasks of an allocation, which keeps its namespace.
func testAllocRestart(t *testing.T, k *kinds, name string) {
	body := strings.Replace(one(anywhere, ""), "task ", script("setup", calls, "lifecycle {\n        hook = \"prestart\"\n      }")+"    task ", 1)
	k.submit(t, jobID(name), body)
	w := k.running(t, jobID(name), name, 1)[0]
	k.came(t, w, "ok-t")
	before := inode(t, w)
	alloc, _, err := k.nomad.Allocations().Info(w.alloc, nil)
	must.NoError(t, err)
	for i, restart := range []func() error{
		func() error { return k.nomad.Allocations().Restart(alloc, "t", nil) },
		func() error { return k.nomad.Allocations().RestartAllTasks(alloc, nil) },
	} {
		must.NoError(t, os.Remove(k.shared(w, "ok-t")))
		must.NoError(t, restart())
		k.restarted(t, w, "t", uint64(i+1))
		k.came(t, w, "ok-t") // its calls passed again, at once
		again := k.endpointOf(t, w.alloc, name)
		must.Eq(t, w, again)
		must.Eq(t, before, inode(t, again))
		k.connected(t, w)
	}
	k.known(t, w)
}

// testAllocStop stops an allocation, which Nomad replaces.
func testAllocStop(t *testing.T, k *kinds, name string) {
	k.submit(t, jobID(name), one(anywhere, ""))
	w := k.running(t, jobID(name), name, 1)[0]
	k.came(t, w, "ok-t")
	alloc, _, err := k.nomad.Allocations().Info(w.alloc, nil)
	must.NoError(t, err)
	_, err = k.nomad.Allocations().Stop(alloc, nil)
	must.NoError(t, err)
	k.ended(t, nomad.AllocClientStatusComplete, w)
	next := k.running(t, jobID(name), name, 1)[0]
	must.NotEq(t, w.alloc, next.alloc)
	must.NotEq(t, w.v4, next.v4, must.Sprint("an address rests"))
	k.connected(t, next)
	k.known(t, next)
}

// testTemplate changes a variable of Nomad, with which templates restart one task and send a signal
// to another.
func testTemplate(t *testing.T, k *kinds, name string) {
	path := "nomad/jobs/" + jobID(name)
	set := func(value string) {
		t.Helper()
		_, _, err := k.nomad.Variables().Update(&nomad.Variable{Namespace: "default", Path: path, Items: nomad.VariableItems{"colour": value}}, nil)
		must.NoError(t, err)
	}
	set("blue")
	t.Cleanup(func() {
		_, err := k.nomad.Variables().Delete(path, nil)
		must.NoError(t, err)
	})
	template := func(mode string) string {
		return fmt.Sprintf(`template {
        data        = <<EOT
{{ with nomadVar %q }}{{ .colour }}{{ end }}
EOT
        destination = "local/colour"
        change_mode = %q
        %s
      }`, path, mode, map[bool]string{true: `change_signal = "SIGHUP"`}[mode == "signal"])
	}
	k.submit(t, jobID(name), fmt.Sprintf(`%s
  group "g" {
    connectivity {}
    %s
    %s
    %s
  }`, anywhere, small, script("t", calls+serves, template("restart")),
		script("signalled", "trap 'touch $NOMAD_ALLOC_DIR/signalled' HUP\n"+calls+"while true; do sleep 0.2; done\n", template("signal"))))
	w := k.running(t, jobID(name), name, 1)[0]
	for _, task := range []string{"t", "signalled"} {
		k.came(t, w, "ok-"+task)
	}
	before := inode(t, w)
	k.connected(t, w)
	must.NoError(t, os.Remove(k.shared(w, "ok-t")))
	set("green")
	k.came(t, w, "signalled")
	k.restarted(t, w, "t", 1)
	k.came(t, w, "ok-t")
	must.Eq(t, before, inode(t, w))
	must.Eq(t, w, k.endpointOf(t, w.alloc, name))
	k.connected(t, w)
}

// testScale changes the number of instances by `nomad job scale`.
func testScale(t *testing.T, k *kinds, name string) {
	id := jobID(name)
	k.submit(t, id, one(anywhere, update(0)))
	k.running(t, id, name, 1)
	scale := func(count int) []workload {
		t.Helper()
		eventually(t, time.Minute, func() error { // Nomad refuses while a deployment is active
			d, _, err := k.nomad.Jobs().LatestDeployment(id, nil)
			if err == nil && !successful(d) {
				err = fmt.Errorf("the deployment of %s is %s", id, d.Status)
			}
			return err
		})
		k.nomadCommand(t, "", "job", "scale", "-detach", id, "g", strconv.Itoa(count))
		return k.running(t, id, name, count)
	}
	three := scale(3)
	k.connected(t, three...)
	left := scale(1)
	for _, w := range three {
		if w.alloc != left[0].alloc {
			k.ended(t, nomad.AllocClientStatusComplete, w)
		}
	}
	k.connected(t, left...)
	scale(0)
	k.ended(t, nomad.AllocClientStatusComplete, left...)
	back := scale(1)
	k.connected(t, back...)
}

// testRestartPolicy has a task that fails twice before it serves.
func testRestartPolicy(t *testing.T, k *kinds, name string) {
	body := strings.Replace(one(anywhere, ""), small, `ephemeral_disk {
      size = 15
    }
    restart {
      attempts = 3
      interval = "5m"
      delay    = "1s"
      mode     = "fail"
    }`, 1)
	body = strings.Replace(body, strconv.Quote(calls+serves), strconv.Quote(calls+`[ -e $NOMAD_ALLOC_DIR/second ] || { [ -e $NOMAD_ALLOC_DIR/first ] && touch $NOMAD_ALLOC_DIR/second; touch $NOMAD_ALLOC_DIR/first; exit 9; }
`+serves), 1)
	k.submit(t, jobID(name), body)
	w := k.running(t, jobID(name), name, 1)[0]
	before := inode(t, w)
	k.came(t, w, "second")
	k.restarted(t, w, "t", 2)
	must.Eq(t, before, inode(t, w))
	must.Eq(t, w, k.endpointOf(t, w.alloc, name))
	k.connected(t, w)
	k.known(t, w)
}

// testStickyDisk replaces an instance, which keeps its data and gets another address.
func testStickyDisk(t *testing.T, k *kinds, name string) {
	id := jobID(name)
	body := func(version int) string {
		text := strings.Replace(one(anywhere, fmt.Sprintf("meta {\n      version = \"%d\"\n    }", version)), "size = 15", "size    = 15\n      sticky  = true\n      migrate = true", 1)
		return strings.Replace(text, strconv.Quote(calls+serves), strconv.Quote(calls+"[ -e $NOMAD_ALLOC_DIR/data/kept ] && touch $NOMAD_ALLOC_DIR/found\ntouch $NOMAD_ALLOC_DIR/data/kept\n"+serves), 1)
	}
	k.submit(t, id, body(0))
	first := k.running(t, id, name, 1)[0]
	k.came(t, first, "data/kept")
	k.submit(t, id, body(1))
	k.ended(t, nomad.AllocClientStatusComplete, first)
	next := k.running(t, id, name, 1)[0]
	k.came(t, next, "found")
	must.NotEq(t, first.v4, next.v4)
	k.connected(t, next)
	k.known(t, next)
}

// testReschedule has a task that fails in one zone, so that Nomad takes it to the other.
func testReschedule(t *testing.T, k *kinds, name string) {
	body := strings.Replace(one(anywhere, `reschedule {
      delay          = "5s"
      delay_function = "constant"
      unlimited      = true
    }
    affinity {
      attribute = "${node.datacenter}"
      value     = "aws1"
      weight    = 100
    }`), strconv.Quote(calls+serves), strconv.Quote(`[ $NOMAD_DC = gcp1 ] || { touch $NOMAD_ALLOC_DIR/failed; exit 9; }
`+calls+serves), 1)
	k.submit(t, jobID(name), body)
	var failed []workload
	var w workload
	eventually(t, 90*time.Second, func() error {
		failed, w = nil, workload{}
		text := ""
		for _, a := range k.allocs(t, jobID(name)) {
			text += "\n" + said(a)
			switch a.ClientStatus {
			case nomad.AllocClientStatusFailed:
				failed = append(failed, workload{alloc: a.ID, node: a.NodeName, zone: k.Topology.Node(a.NodeName).Zone})
			case nomad.AllocClientStatusRunning:
				w.alloc = a.ID
			}
		}
		if w.alloc == "" {
			return fmt.Errorf("it was not taken to the other zone:%s", text)
		}
		return nil
	})
	must.SliceNotEmpty(t, failed)
	w = k.endpointOf(t, w.alloc, name)
	must.Eq(t, "gcp1", w.zone)
	k.connected(t, w)
	k.known(t, w)
	for _, f := range failed {
		must.Eq(t, "aws1", f.zone)
		k.knowsNothingOf(t, f.alloc)
	}
}
