// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"
)

// jobKinds are the types of job, and how they are written.
var jobKinds = []kind{
	{name: "service", quick: true, run: testService},
	{name: "batch", quick: true, run: testBatch},
	{name: "system", run: testSystem},
	{name: "sysbatch", run: testSysbatch},
	{name: "periodic", quick: true, run: testPeriodic},
	{name: "parameterized", quick: true, selector: `selector "nomad" {
      job = "team/kinds/parameterized"
    }`, run: testParameterized},
	{name: "periodic-parameterized", run: testPeriodicParameterized},
	{name: "groups", selector: `selector "nomad" {
      job   = "kinds-groups"
      group = "front"
    }`, run: testGroups},
	{name: "lifecycle", quick: true, run: testLifecycle},
	{name: "by-hand", run: testByHand},
	{name: "json", run: testJSON},
	{name: "namespace", selector: `selector "nomad" {
      namespace = "kinds-other"
      job       = "kinds-namespace"
    }`, run: testNamespace},
}

// moreGraph is what some of the kinds need beside a service of their own.
const moreGraph = `
  service "groups-back" {
    selector "nomad" {
      job   = "kinds-groups"
      group = "back"
    }
  }
  service "canary-next" {
    selector "consul" {
      service = "kinds-canary"
      tags    = ["next"]
      meta    = { stage = "next" }
    }
  }
  contract "try-canary" {
    originators = ["stranger"]
    responders  = ["canary-next"]
    rule {
      protocol = "tcp"
      ports    = [7000]
    }
  }
  contract "between-groups" {
    originators = ["groups"]
    responders  = ["groups-back"]
    rule {
      protocol = "tcp"
      ports    = [7000]
    }
  }
`

// first notes when the first allowed flow of a job passed, whose tasks make it themselves.
func (k *kinds) first(t *testing.T, name string, registered time.Time, w workload, task string) {
	t.Helper()
	k.took(name, k.came(t, w, "ok-"+task).Sub(registered))
}

func testService(t *testing.T, k *kinds, name string) {
	began := k.submit(t, jobID(name), fmt.Sprintf(`datacenters = ["aws1", "gcp1"]
  type = "service"
  group "g" {
    count = 2
    constraint {
      distinct_property = "${node.datacenter}"
    }
    connectivity {
      service   = "kinds/%s"
      originate = ["help"]
      respond   = ["serve"]
    }
    %s
    %s
  }`, name, small, script("t", calls+serves)))
	list := k.running(t, jobID(name), name, 2)
	k.first(t, name, began, list[0], "t")
	k.came(t, list[1], "ok-t")
	k.connected(t, list...)
	k.known(t, list...)
	reaches(t, list[0], list[1], servedPort, false, 10*time.Second) // two of one service
	_, _, err := k.nomad.Jobs().Deregister(jobID(name), false, nil)
	must.NoError(t, err)
	k.ended(t, nomad.AllocClientStatusComplete, list...)
}

func testBatch(t *testing.T, k *kinds, name string) {
	began := k.submit(t, jobID(name), fmt.Sprintf(`datacenters = ["aws1", "gcp1"]
  type = "batch"
  group "g" {
    count = 2
    connectivity {}
    %s
    %s
  }`, small, script("t", calls+waits)))
	list := k.running(t, jobID(name), name, 2)
	k.first(t, name, began, list[0], "t")
	k.came(t, list[1], "ok-t")
	k.connected(t, list...)
	k.known(t, list...)
	k.letGo(t, list...)
	k.ended(t, nomad.AllocClientStatusComplete, list...)
}

// testSystem runs on the nodes that have a property, and then on one that gets it later.
func testSystem(t *testing.T, k *kinds, name string) {
	for _, node := range []string{"aws1-w1", "gcp1-w1", "gcp1-w2"} {
		k.property(t, name, node)
	}
	began := k.submit(t, jobID(name), fmt.Sprintf(`datacenters = ["*"]
  type = "system"
  constraint {
    attribute = "${meta.kinds-system}"
    value     = "yes"
  }
  group "g" {
    connectivity {}
    %s
    %s
  }`, small, script("t", calls+serves)))
	k.first(t, name, began, k.running(t, jobID(name), name, 3)[0], "t")
	k.property(t, name, "aws1-w2")
	list := k.running(t, jobID(name), name, 4)
	on := map[string]bool{}
	for _, w := range list {
		on[w.node] = true
		k.came(t, w, "ok-t")
	}
	must.MapLen(t, 4, on, must.Sprint("one on each node"))
	k.connected(t, list...)
	k.known(t, list...)
	_, _, err := k.nomad.Jobs().Deregister(jobID(name), false, nil)
	must.NoError(t, err)
	k.ended(t, nomad.AllocClientStatusComplete, list...)
}

// testSysbatch runs on the nodes that have a property, and then on one that gets it later: Nomad
// places it there when the job is evaluated again.
func testSysbatch(t *testing.T, k *kinds, name string) {
	k.property(t, name, "aws1-w2")
	began := k.submit(t, jobID(name), fmt.Sprintf(`datacenters = ["*"]
  type = "sysbatch"
  constraint {
    attribute = "${meta.kinds-sysbatch}"
    value     = "yes"
  }
  group "g" {
    connectivity {}
    %s
    %s
  }`, small, script("t", calls+waits)))
	list := k.running(t, jobID(name), name, 1)
	k.first(t, name, began, list[0], "t")
	k.property(t, name, "gcp1-w1")
	_, _, err := k.nomad.Jobs().ForceEvaluate(jobID(name), nil)
	must.NoError(t, err)
	list = k.running(t, jobID(name), name, 2)
	for _, w := range list {
		k.came(t, w, "ok-t")
	}
	k.connected(t, list...)
	k.known(t, list...)
	k.letGo(t, list...)
	k.ended(t, nomad.AllocClientStatusComplete, list...)
}

// property gives a node a property until the test ends, which is meta kinds-<name>.
func (k *kinds) property(t *testing.T, name, node string) {
	t.Helper()
	key := jobID(name)
	set := func(value *string) {
		t.Helper()
		_, err := k.nomad.Nodes().Meta().Apply(&nomad.NodeMetaApplyRequest{NodeID: k.nomadNode(t, node), Meta: map[string]*string{key: value}}, nil)
		must.NoError(t, err)
	}
	set(ptr("yes"))
	t.Cleanup(func() { set(nil) })
	eventually(t, 30*time.Second, func() error { // the client tells the servers later
		n, _, err := k.nomad.Nodes().Info(k.nomadNode(t, node), nil)
		if err == nil && n.Meta[key] != "yes" {
			err = fmt.Errorf("node %s does not have the property %s yet", node, key)
		}
		return err
	})
}

// nomadNode returns the ID of a node in Nomad.
func (k *kinds) nomadNode(t *testing.T, name string) string {
	t.Helper()
	nodes, _, err := k.nomad.Nodes().List(nil)
	must.NoError(t, err)
	for _, n := range nodes {
		if n.Name == name && n.Status != nomad.NodeStatusDown {
			return n.ID
		}
	}
	t.Fatalf("Nomad has no node %s", name)
	return ""
}

func testPeriodic(t *testing.T, k *kinds, name string) {
	id := jobID(name)
	k.submit(t, id, fmt.Sprintf(`datacenters = ["aws1", "gcp1"]
  type = "batch"
  periodic {
    crons            = ["0 0 1 1 *"]
    prohibit_overlap = false
  }
  group "g" {
    connectivity {
      service = "kinds/%s"
    }
    %s
    %s
  }`, name, small, script("t", calls+waits)))
	began := time.Now()
	_, _, err := k.nomad.Jobs().PeriodicForce(id, nil)
	must.NoError(t, err)
	list := k.running(t, id, name, 1)
	k.first(t, name, began, list[0], "t")
	k.connected(t, list...)
	k.known(t, list...)
	k.letGo(t, list...)
	k.ended(t, nomad.AllocClientStatusComplete, list...)
}

// testParameterized dispatches several children of a job whose ID has slashes.
func testParameterized(t *testing.T, k *kinds, name string) {
	id := "team/kinds/parameterized"
	k.submit(t, id, fmt.Sprintf(`datacenters = ["aws1", "gcp1"]
  type = "batch"
  parameterized {
    payload       = "optional"
    meta_required = ["colour"]
  }
  group "g" {
    connectivity {}
    %s
    %s
  }`, small, script("t", calls+`[ "$NOMAD_META_colour" = blue ] || exit 13
`+waits, "dispatch_payload {\n        file = \"input\"\n      }")))
	began := time.Now()
	for range 2 {
		_, _, err := k.nomad.Jobs().Dispatch(id, map[string]string{"colour": "blue"}, []byte("payload"), "", nil)
		must.NoError(t, err)
	}
	list := k.running(t, id, name, 2)
	k.first(t, name, began, list[0], "t")
	k.came(t, list[1], "ok-t")
	k.connected(t, list...)
	k.known(t, list...)
	k.letGo(t, list...)
	k.ended(t, nomad.AllocClientStatusComplete, list...)
}

// testPeriodicParameterized runs a child of a child: what is dispatched of a job that is periodic
// as well is periodic itself.
func testPeriodicParameterized(t *testing.T, k *kinds, name string) {
	id := jobID(name)
	k.submit(t, id, fmt.Sprintf(`datacenters = ["aws1", "gcp1"]
  type = "batch"
  periodic {
    crons = ["0 0 1 1 *"]
  }
  parameterized {
    payload = "forbidden"
  }
  group "g" {
    connectivity {}
    %s
    %s
  }`, small, script("t", calls+waits)))
	reply, _, err := k.nomad.Jobs().Dispatch(id, nil, nil, "", nil)
	must.NoError(t, err)
	k.purgeAtEnd(t, "default", reply.DispatchedJobID)
	began := time.Now()
	_, _, err = k.nomad.Jobs().PeriodicForce(reply.DispatchedJobID, nil)
	must.NoError(t, err)
	list := k.running(t, id, name, 1)
	k.first(t, name, began, list[0], "t")
	k.connected(t, list...)
	k.known(t, list...)
	k.letGo(t, list...)
	k.ended(t, nomad.AllocClientStatusComplete, list...)
}

// testGroups runs a job of which two groups are different services, with sidecars, and a third is
// not connected.
func testGroups(t *testing.T, k *kinds, name string) {
	began := k.submit(t, jobID(name), fmt.Sprintf(`datacenters = ["aws1", "gcp1"]
  group "front" {
    connectivity {
      service = "kinds/groups"
    }
    %[1]s
    %[2]s
    %[3]s
  }
  group "back" {
    connectivity {
      service = "kinds/groups-back"
      respond = ["between-groups"]
    }
    %[1]s
    %[4]s
    %[3]s
  }
  group "apart" {
    %[1]s
    %[5]s
  }`, small, script("t", calls+serves), script("sidecar", "exec sleep 600"), demo("t", servedPort), script("alone", "exec sleep 600")))
	var front, back workload
	var apart string
	eventually(t, 90*time.Second, func() error {
		up := map[string]string{}
		text := ""
		for _, a := range k.allocs(t, jobID(name)) {
			text += "\n" + said(a)
			if a.ClientStatus == nomad.AllocClientStatusRunning {
				up[a.TaskGroup] = a.ID
			}
		}
		if len(up) != 3 {
			return fmt.Errorf("not all groups run:%s", text)
		}
		front.alloc, back.alloc, apart = up["front"], up["back"], up["apart"]
		return nil
	})
	front, back = k.endpointOf(t, front.alloc, name), k.endpointOf(t, back.alloc, "groups-back")
	k.first(t, name, began, front, "t")
	k.connected(t, front)
	k.known(t, front)
	reaches(t, front, back, servedPort, true, 10*time.Second)
	reaches(t, back, front, servedPort, false, 10*time.Second)
	reaches(t, k.callers[0], back, servedPort, false, 10*time.Second)
	for _, n := range k.status(t).Nodes {
		for _, ep := range n.Endpoints {
			must.NotEq(t, apart, ep.Endpoint, must.Sprint("a group without a stanza"))
		}
	}
	_, _, err := k.nomad.Jobs().Deregister(jobID(name), false, nil)
	must.NoError(t, err)
	k.gone(t, front, back)
}

// testLifecycle runs tasks of all lifecycle hooks, each of which makes an allowed and a forbidden
// call.
func testLifecycle(t *testing.T, k *kinds, name string) {
	hook := func(name, when string, sidecar bool, text string) string {
		return script(name, text, fmt.Sprintf("lifecycle {\n        hook    = %q\n        sidecar = %t\n      }", when, sidecar))
	}
	began := k.submit(t, jobID(name), fmt.Sprintf(`datacenters = ["aws1", "gcp1"]
  group "g" {
    connectivity {}
    %s
    %s
    %s
    %s
    %s
    %s
    %s
  }`, small, script("main", calls+serves), hook("init", "prestart", false, calls), hook("beside", "prestart", true, calls+"exec sleep 600"),
		hook("started", "poststart", false, calls), hook("started-beside", "poststart", true, calls+"exec sleep 600"), hook("stopped", "poststop", false, calls)))
	w := k.running(t, jobID(name), name, 1)[0]
	k.first(t, name, began, w, "init")
	for _, task := range []string{"init", "beside", "main", "started", "started-beside"} {
		k.came(t, w, "ok-"+task)
	}
	k.connected(t, w)
	k.known(t, w)
	must.False(t, exists(k.shared(w, "ok-stopped")))
	_, _, err := k.nomad.Jobs().Deregister(jobID(name), false, nil)
	must.NoError(t, err)
	k.came(t, w, "ok-stopped")
	k.ended(t, nomad.AllocClientStatusComplete, w)
}

// byHand is a connected job in the form that plain Nomad understands.
func byHand(id, service string) string {
	return fmt.Sprintf(`job %q {
  datacenters = ["aws1", "gcp1"]
  group "g" {
    network {
      mode = "cni/sif"
    }
    meta = {
      "sif.service"   = "kinds/%s"
      "sif.originate" = "help"
      "sif.respond"   = "serve"
    }
    %s
    %s
  }
}
`, id, service, small, script("t", calls+serves))
}

// testByHand runs a job without a stanza by `nomad job run`.
func testByHand(t *testing.T, k *kinds, name string) {
	k.purgeAtEnd(t, "default", jobID(name))
	began := time.Now()
	k.nomadCommand(t, byHand(jobID(name), name), "job", "run", "-detach", "-")
	k.served(t, name, began)
}

// served checks a job of one instance that serves, stops it, and checks that nothing is left.
func (k *kinds) served(t *testing.T, name string, began time.Time) {
	t.Helper()
	w := k.running(t, jobID(name), name, 1)[0]
	k.first(t, name, began, w, "t")
	k.connected(t, w)
	k.known(t, w)
	_, _, err := k.nomad.Jobs().Deregister(jobID(name), false, nil)
	must.NoError(t, err)
	k.ended(t, nomad.AllocClientStatusComplete, w)
}

// testJSON runs a job in the JSON of Nomad's API by `nomad job run -json`.
func testJSON(t *testing.T, k *kinds, name string) {
	k.purgeAtEnd(t, "default", jobID(name))
	text := k.nomadCommand(t, byHand(jobID(name), name), "job", "run", "-output", "-")
	must.True(t, json.Valid([]byte(text)))
	must.StrContains(t, text, `"sif.service"`)
	began := time.Now()
	k.nomadCommand(t, text, "job", "run", "-json", "-detach", "-")
	k.served(t, name, began)
}

// testNamespace runs a job in a Nomad namespace that its selector names, and one of the same ID in
// another, which is nobody's.
func testNamespace(t *testing.T, k *kinds, name string) {
	_, err := k.nomad.Namespaces().Register(&nomad.Namespace{Name: "kinds-other"}, nil)
	must.NoError(t, err)
	t.Cleanup(func() {
		eventually(t, 30*time.Second, func() error {
			_, err := k.nomad.Namespaces().Delete("kinds-other", nil)
			return err
		})
	})
	body := fmt.Sprintf(`datacenters = ["aws1", "gcp1"]
  type = "batch"
  group "g" {
    connectivity {}
    %s
    reschedule {
      attempts  = 0
      unlimited = false
    }
    %s
  }`, small, script("t", calls+waits))
	began := k.submitIn(t, "kinds-other", jobID(name), body)
	w := k.running(t, jobID(name), name, 1)[0]
	k.first(t, name, began, w, "t")
	k.connected(t, w)
	k.known(t, w)
	k.letGo(t, w)
	k.ended(t, nomad.AllocClientStatusComplete, w)

	// sif job run refuses what would not be admitted, so it is run by hand.
	k.purgeAtEnd(t, "default", jobID(name))
	text := strings.Replace(byHand(jobID(name), name), "group ", "type = \"batch\"\n  group ", 1)
	k.nomadCommand(t, text, "job", "run", "-detach", "-")
	eventually(t, time.Minute, func() error {
		for _, a := range k.allocs(t, jobID(name)) {
			if a.Namespace == "default" && a.ClientStatus == nomad.AllocClientStatusFailed && strings.Contains(said(a), "matches no selector") {
				return nil
			}
		}
		return os.ErrNotExist
	})
}
