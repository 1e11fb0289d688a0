// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/fabric"
)

// kindsVariable set to "all" makes TestKinds run every kind of job and event, and leaves out the
// demo applications. Otherwise TestKinds runs those that are quick and touch no node.
const kindsVariable = "SIF_E2E_KINDS"

// The ports of the kinds' jobs. A contract covers servedPort and streamPort of each kind, and
// helpPort of the service that they call. Somebody listens on the others as well.
const (
	servedPort = 7000
	streamPort = 7002
	secretPort = 7001
	helpPort   = 8080
	otherPort  = 8081
)

// kinds is what all kinds of job share: a graph with a service for each of them, and jobs that call
// them, that they call, and that may not call them.
type kinds struct {
	*fabricUnderTest
	callers  []workload // in each zone
	stranger workload
	helper   workload

	mu    sync.Mutex
	times map[string]time.Duration // from registering a job to its first allowed flow, by kind
}

// kind is a kind of job or an event in the life of one.
type kind struct {
	name  string // of the subtest, of the job and of the service
	quick bool   // it also belongs to the selection of `make test-e2e`
	alone bool   // it takes nodes or servers away, so that it cannot run beside others
	// selector is what selects its instances, if not the ID of its job alone.
	selector string
	run      func(t *testing.T, k *kinds, name string)
}

// allKinds are the rows of the tables in docs/jobs.md.
func allKinds() []kind {
	return slices.Concat(jobKinds, driverKinds, eventKinds, nodeKinds)
}

// TestKinds runs every kind of job, event and driver.
func TestKinds(t *testing.T) {
	k := newKinds(t)
	whole := os.Getenv(kindsVariable) == "all"
	for _, alone := range []bool{false, true} {
		t.Run(map[bool]string{false: "together", true: "alone"}[alone], func(t *testing.T) {
			for _, kind := range allKinds() {
				if kind.alone != alone || !whole && !kind.quick {
					continue
				}
				t.Run(kind.name, func(t *testing.T) {
					if !alone {
						t.Parallel()
					}
					kind.run(t, k, kind.name)
				})
			}
		})
	}
	for _, name := range slices.Sorted(maps.Keys(k.times)) {
		t.Logf("from registering the job to its first allowed flow: %-26s %5.2f s", name, k.times[name].Seconds())
	}
}

// kindCell matches a cell with the name of a kind.
var kindCell = regexp.MustCompile("^`([a-z-]+)`$")

// TestKindsTableIsComplete compares the kinds with the tables in the documentation.
func TestKindsTableIsComplete(t *testing.T) {
	var documented, tested []string
	for line := range strings.Lines(world.file(t, "docs/jobs.md")) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 5 || strings.HasPrefix(line, "|---") {
			continue
		}
		if name := kindCell.FindStringSubmatch(strings.TrimSpace(cells[3])); name != nil {
			documented = append(documented, name[1])
		}
	}
	for _, kind := range allKinds() {
		tested = append(tested, kind.name)
	}
	slices.Sort(documented)
	slices.Sort(tested)
	must.Eq(t, tested, documented)
}

// newKinds applies the graph of the kinds and starts the jobs that they share.
func newKinds(t *testing.T) *kinds {
	t.Helper()
	k := &kinds{fabricUnderTest: world, times: map[string]time.Duration{}}
	var services strings.Builder
	var names []string
	for _, kind := range allKinds() {
		selector := kind.selector
		if selector == "" {
			selector = fmt.Sprintf("selector \"nomad\" {\n      job = %q\n    }", jobID(kind.name))
		}
		fmt.Fprintf(&services, "  service %q {\n    %s\n  }\n", kind.name, selector)
		names = append(names, kind.name)
	}
	list, err := json.Marshal(names)
	must.NoError(t, err)
	graph := fmt.Sprintf(`domain "kinds" {
%s  service "caller" {
    selector "nomad" {
      job = "kinds-caller"
    }
  }
  service "stranger" {
    selector "nomad" {
      job = "kinds-stranger"
    }
  }
  service "helper" {
    selector "nomad" {
      job = "kinds-helper"
    }
  }
%s
  contract "serve" {
    originators = ["caller"]
    responders  = %[3]s
    rule {
      protocol = "tcp"
      ports    = [%[4]d, %[6]d]
    }
  }
  contract "help" {
    originators = %[3]s
    responders  = ["helper"]
    rule {
      protocol = "tcp"
      ports    = [%[5]d]
    }
  }
}
`, services.String(), moreGraph, list, servedPort, helpPort, streamPort)
	k.apply(t, graph)
	t.Cleanup(func() {
		eventually(t, time.Minute, func() error { // the jobs have ended
			for _, n := range k.status(t).Nodes {
				for _, ep := range n.Endpoints {
					if ep.Service.Domain == "kinds" {
						return fmt.Errorf("%s still has endpoint %s of %s; %s", n.ID(), ep.Endpoint, ep.Service, k.view(n.Node, ep.Endpoint))
					}
				}
			}
			return nil
		})
		r := k.sif(t, "graph", "apply", "-remove-domain=kinds")
		must.Zero(t, r.code, must.Sprint(r.stderr))
	})
	var zones []string
	for _, n := range k.Topology.Nodes(lab.Workload) {
		if !slices.Contains(zones, n.Zone) {
			zones = append(zones, n.Zone)
		}
	}
	dcs, err := json.Marshal(zones)
	must.NoError(t, err)
	// One in each zone.
	k.submit(t, "kinds-caller", fmt.Sprintf(`datacenters = %s
  type = "service"
  `+on("1")+`group "g" {
    count = %d
    constraint {
      distinct_property = "${node.datacenter}"
    }
    connectivity {}
    %s
    %s
  }`, dcs, len(zones), small, demo("t", 9000)))
	k.submit(t, "kinds-stranger", fmt.Sprintf(`datacenters = %s
  `+on("1")+`group "g" {
    connectivity {}
    %s
    %s
  }`, dcs, small, demo("t", 9000)))
	k.submit(t, "kinds-helper", fmt.Sprintf(`datacenters = %s
  `+on("1")+`group "g" {
    connectivity {}
    %s
    %s
    %s
  }`, dcs, small, demo("t", helpPort), demo("other", otherPort)))
	k.callers = k.running(t, "kinds-caller", "caller", len(zones))
	k.stranger = k.running(t, "kinds-stranger", "stranger", 1)[0]
	k.helper = k.running(t, "kinds-helper", "helper", 1)[0]
	return k
}

// jobID returns the ID of the job of a kind.
func jobID(name string) string { return "kinds-" + name }

// small is what all groups have, so that many of them fit into a lab, and end soon.
const small = `ephemeral_disk {
      size = 15
    }
    restart {
      attempts = 0
      mode     = "fail"
    }`

// task is a task with a driver of which config has the arguments.
func task(name, driver, config string, more ...string) string {
	memory := 64
	if driver == "java" {
		memory = 256
	}
	return fmt.Sprintf(`task %q {
      driver = %q
      config {
        %s
      }
      resources {
        cpu    = 20
        memory = %d
      }
      kill_timeout = "1s"
      logs {
        max_files     = 1
        max_file_size = 1
      }
      %s
    }
`, name, driver, config, memory, strings.Join(more, "\n      "))
}

// demo is a task that listens on a port.
func demo(name string, port int) string {
	return task(name, "exec", fmt.Sprintf(`command = "/usr/local/bin/sif-demo"
        args    = ["provider", "-listen=:%d"]`, port))
}

// The parts of scripts of tasks. A file in the allocation's shared directory says how far it came,
// so that a test knows without asking Nomad. The first connections must pass at once, without
// another attempt.
const (
	// calls makes an allowed call and a forbidden one. Busybox resolves names with nslookup alone.
	calls = `for word in $(nslookup -type=a helper.kinds.sif); do helper=$word; done
nc -w 5 $helper 8080 </dev/null || { touch $NOMAD_ALLOC_DIR/no-help; exit 11; }
! nc -w 1 $helper 8081 </dev/null || { touch $NOMAD_ALLOC_DIR/too-much; exit 12; }
touch $NOMAD_ALLOC_DIR/ok-$NOMAD_TASK_NAME
`
	// waits keeps a task until the test lets it go, which ends it well.
	waits = `while [ ! -e $NOMAD_ALLOC_DIR/go ]; do sleep 0.2; done
`
	// serves listens until the task is stopped.
	serves = `exec /usr/local/bin/sif-demo provider -listen=:7000
`
)

// script is a task that runs a shell script in the chroot of the exec driver.
func script(name, text string, more ...string) string {
	return task(name, "exec", fmt.Sprintf(`command = "/bin/sh"
        args    = ["-c", %q]`, strings.ReplaceAll(text, "${", "$${")), more...)
}

// submit registers a job by `sif job run`, and removes it at the end of the test. It returns when
// it did so.
func (k *kinds) submit(t *testing.T, id, body string, args ...string) time.Time {
	t.Helper()
	return k.submitIn(t, "default", id, body, args...)
}

func (k *kinds) submitIn(t *testing.T, namespace, id, body string, args ...string) time.Time {
	t.Helper()
	k.purgeAtEnd(t, namespace, id)
	file := write(t, "job.nomad.hcl", fmt.Sprintf("job %q {\n  %s\n}\n", id, body))
	began := time.Now()
	r := k.sif(t, append([]string{"job", "run", "-detach", "-namespace=" + namespace}, append(args, file)...)...)
	must.Zero(t, r.code, must.Sprintf("sif job run: %s%s", r.stdout, r.stderr))
	return began
}

// running waits until a job has as many allocations that run and are wanted, and returns their
// endpoints, which must be those of a service.
func (k *kinds) running(t *testing.T, id, service string, count int) []workload {
	t.Helper()
	var list []workload
	eventually(t, 90*time.Second, func() error {
		list = nil
		text := ""
		for _, a := range k.allocs(t, id) {
			text += "\n" + said(a)
			if a.ClientStatus == nomad.AllocClientStatusRunning && a.DesiredStatus == nomad.AllocDesiredStatusRun {
				list = append(list, workload{alloc: a.ID})
			}
		}
		if len(list) != count {
			return fmt.Errorf("%d allocations of %s run, not %d:%s", len(list), id, count, text)
		}
		return nil
	})
	for i := range list {
		list[i] = k.endpointOf(t, list[i].alloc, service)
	}
	return list
}

// endpointOf waits for the endpoint of an allocation. It must be an instance of the service.
func (k *kinds) endpointOf(t *testing.T, alloc, service string) workload {
	t.Helper()
	var w workload
	eventually(t, 30*time.Second, func() error {
		for _, n := range k.status(t).Nodes {
			for _, ep := range n.Endpoints {
				if ep.Endpoint == alloc {
					w = workload{alloc: alloc, zone: n.Zone, node: n.Node, service: ep.Service, v4: ep.IPv4, v6: ep.IPv6, netns: netnsOf(alloc)}
					return nil
				}
			}
		}
		return fmt.Errorf("no node has an endpoint of allocation %s", alloc)
	})
	must.Eq(t, fabric.Ref{Domain: "kinds", Name: service}, w.service)
	must.NotEq(t, "", w.netns, must.Sprintf("allocation %s has no network namespace", alloc))
	return w
}

// netnsOf returns the network namespace of an allocation: the one that Nomad made, or that of one
// of its processes, for drivers that make it themselves.
func netnsOf(alloc string) string {
	if path := filepath.Join("/run/netns", alloc); exists(path) {
		return path
	}
	variable := []byte("NOMAD_ALLOC_ID=" + alloc)
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environs {
		environ, err := os.ReadFile(path)
		if err == nil && slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(v []byte) bool { return bytes.Equal(v, variable) }) {
			return filepath.Dir(path) + "/ns/net"
		}
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// shared returns the path of a file in the directory that the tasks of an allocation share.
func (k *kinds) shared(w workload, name string) string {
	return filepath.Join("/var/lib/sif-lab", k.Name, w.node, "nomad/alloc", w.alloc, "alloc", name)
}

// came waits until a task has written a file, and returns when it did.
func (k *kinds) came(t *testing.T, w workload, name string) time.Time {
	t.Helper()
	var at time.Time
	eventually(t, time.Minute, func() error {
		for _, failure := range []string{"no-help", "too-much"} {
			if exists(k.shared(w, failure)) {
				t.Fatalf("a task of %s failed: %s", w, failure)
			}
		}
		info, err := os.Stat(k.shared(w, name))
		if err == nil {
			at = info.ModTime()
		}
		return err
	})
	return at
}

// letGo lets the scripts of an allocation go on.
func (k *kinds) letGo(t *testing.T, list ...workload) {
	t.Helper()
	for _, w := range list {
		must.NoError(t, os.WriteFile(k.shared(w, "go"), nil, 0o644))
	}
}

// took notes how long a kind of job took to its first allowed flow.
func (k *kinds) took(name string, took time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, known := k.times[name]; !known {
		k.times[name] = took
	}
}

// connected checks that workloads have just the connectivity of a kind.
func (k *kinds) connected(t *testing.T, list ...workload) {
	t.Helper()
	for _, w := range list {
		var running sync.WaitGroup
		for _, c := range k.callers {
			running.Go(func() { reaches(t, c, w, servedPort, true, 15*time.Second) })
			running.Go(func() { reaches(t, c, w, secretPort, false, 15*time.Second) })
		}
		running.Go(func() { reaches(t, k.stranger, w, servedPort, false, 15*time.Second) })
		running.Go(func() { reaches(t, w, k.helper, helpPort, true, 15*time.Second) })
		running.Go(func() { reaches(t, w, k.helper, otherPort, false, 15*time.Second) })
		running.Wait()
	}
}

// known checks what people are told of workloads: `sif explain` and Consul's catalog.
func (k *kinds) known(t *testing.T, list ...workload) {
	t.Helper()
	for _, w := range list {
		answer := k.explain(t, 0, k.callers[0].alloc, w.alloc, fmt.Sprint(servedPort))
		must.Len(t, 1, answer.Flows)
		must.Eq(t, fabric.Ref{Domain: "kinds", Name: "serve"}, answer.Flows[0].Declared.Contract)
		must.Eq(t, w.service, answer.Flows[0].To.Service)
		k.explain(t, exitDropped, w.alloc, k.helper.alloc, fmt.Sprint(otherPort))
		eventually(t, 10*time.Second, func() error {
			records, _, err := k.consul.Catalog().Service(fabric.CatalogName(w.service), "", nil)
			if err != nil {
				return err
			}
			for _, r := range records {
				if r.ServiceID == fabric.CatalogID(w.zone, w.alloc) && r.ServiceAddress == w.v4.String() {
					return nil
				}
			}
			return fmt.Errorf("consul has no record of %s among %d of its service", w, len(records))
		})
	}
}

// gone checks that nothing is left of workloads that have ended.
func (k *kinds) gone(t *testing.T, list ...workload) {
	t.Helper()
	for _, w := range list {
		eventually(t, 40*time.Second, func() error {
			if left := k.traces(t, w); len(left) > 0 {
				return fmt.Errorf("%s has ended and is still known: %v", w, left)
			}
			return nil
		})
		k.knowsNothingOf(t, w.alloc)
		eventually(t, 10*time.Second, func() error {
			kv, _, err := k.consul.KV().Get("sif/v1/admission/"+w.zone+"/"+w.node+"/"+w.alloc, nil)
			if err != nil || kv == nil {
				return err
			}
			var grant struct{ Released time.Time }
			if err := json.Unmarshal(kv.Value, &grant); err != nil {
				return err
			}
			if grant.Released.IsZero() {
				return fmt.Errorf("the admission of %s is not released", w)
			}
			return nil
		})
		out, err := k.tryHostCommand(w.node, nil, "ip route show "+w.v4.String()+"; ip -6 route show "+w.v6.String())
		must.NoError(t, err)
		must.Eq(t, "", out, must.Sprintf("routes to %s", w))
	}
}

// ended waits until allocations have ended, and checks that nothing is left of them.
func (k *kinds) ended(t *testing.T, status string, list ...workload) {
	t.Helper()
	for _, w := range list {
		eventually(t, time.Minute, func() error {
			a, _, err := k.nomad.Allocations().Info(w.alloc, nil)
			if err != nil {
				return err
			}
			if a.ClientStatus != status {
				return fmt.Errorf("allocation %s of %s is %s, not %s", w.alloc[:8], a.JobID, a.ClientStatus, status)
			}
			return nil
		})
	}
	k.gone(t, list...)
}

// on returns a constraint to nodes whose names end in a number: the jobs that the kinds share are
// on the first nodes of zones, and events of nodes take the second ones.
func on(number string) string {
	return fmt.Sprintf("constraint {\n    attribute = \"${node.unique.name}\"\n    operator  = \"regexp\"\n    value     = \"%s$\"\n  }\n  ", number)
}

// at returns a constraint to one node.
func at(node string) string {
	return fmt.Sprintf("constraint {\n    attribute = \"${node.unique.name}\"\n    value     = %q\n  }\n", node)
}

// addressOf returns the address and port at which a workload serves.
func addressOf(w workload, port uint16) netip.AddrPort { return netip.AddrPortFrom(w.v4, port) }

// nomadCommand runs the nomad command as the operator.
func (k *kinds) nomadCommand(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd, err := k.Command(ctx, "client", filepath.Join(k.Bin, "servers/nomad"), args...)
	must.NoError(t, err)
	cmd.Env = append(append(cmd.Env, k.Environment()...), "NOMAD_TOKEN="+k.Secrets.NomadManagement)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	must.NoError(t, err, must.Sprintf("nomad %s: %s", strings.Join(args, " "), out))
	return string(out)
}
