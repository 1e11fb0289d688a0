// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/e2e/lab"
)

// Nodes of topology.hcl.
const (
	clientNode = "east-w1"
	nextNode   = "east-w2" // in the same zone
	farNode    = "west-w1" // in the other zone
	exitNode   = "east-p1" // the exit of clientNode's zone
	provider   = "provider"
)

// Ports of the contracts, of lab.FreePorts.
const (
	throughputPort = 7001
	latencyPort    = 7002
)

// netnsDir is where `ip netns` and Nomad keep named network namespaces.
const netnsDir = "/var/run/netns/"

//go:embed topology.hcl
var topology []byte

// fabric is a lab and the workloads that run on it.
type fabric struct {
	*lab.Lab
	nomad *nomad.Client
	dir   string // directory for graphs and jobs

	placed []string // IDs of all allocations

	client, near, next, far endpoint
}

// endpoint is a namespace with an address: a workload's, or one to compare it with.
type endpoint struct {
	netns string // path
	addr  netip.Addr
}

// bringUp starts a lab, and one workload at each end of the measured paths. change adapts the
// topology to what is measured.
func bringUp(ctx context.Context, o lab.Options, change func(*lab.Topology)) (_ *fabric, err error) {
	t, err := lab.ParseTopology("topology.hcl", topology)
	if err != nil {
		return nil, err
	}
	change(t)
	o.Topology = t
	l, err := lab.Up(ctx, o)
	if err != nil {
		return nil, err
	}
	f := &fabric{Lab: l}
	if f.nomad, err = l.Nomad(l.Secrets.NomadManagement); err != nil {
		return nil, err
	}
	if f.dir, err = os.MkdirTemp("", "sif-bench-*"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(f.dir)
		}
	}()
	if err := f.write("bench.sif.hcl", graph(0)); err != nil {
		return nil, err
	}
	jobs := []struct {
		name, node, role string
		at               *endpoint
	}{
		{"client", clientNode, "client", &f.client},
		{"near", clientNode, "server", &f.near},
		{"next", nextNode, "server", &f.next},
		{"far", farNode, "server", &f.far},
	}
	for _, j := range jobs {
		if err := f.write(j.name+".nomad.hcl", job(j.name, j.node, j.role, 1)); err != nil {
			return nil, err
		}
	}
	if err := l.RunApplications(ctx, f.dir); err != nil {
		return nil, err
	}
	for _, j := range jobs {
		if *j.at, err = f.endpointOf(ctx, j.name); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *fabric) write(name, text string) error {
	return os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o644)
}

// endpointOf returns the endpoint of a job's only allocation.
func (f *fabric) endpointOf(ctx context.Context, job string) (endpoint, error) {
	var e endpoint
	allocs, _, err := f.nomad.Jobs().Allocations(job, false, (&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil || len(allocs) != 1 {
		return e, fmt.Errorf("job %s has %d allocations: %w", job, len(allocs), err)
	}
	alloc, _, err := f.nomad.Allocations().Info(allocs[0].ID, (&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return e, fmt.Errorf("read the allocation of %s: %w", job, err)
	}
	if alloc.NetworkStatus == nil {
		return e, fmt.Errorf("the allocation of %s has no network", job)
	}
	e.netns = netnsDir + alloc.ID
	e.addr, err = netip.ParseAddr(alloc.NetworkStatus.Address)
	return e, err
}

// graph returns the domain that is measured. Editions differ in the ports of a contract that
// concerns every endpoint and that none of them uses.
func graph(edition int) string {
	return fmt.Sprintf(`domain "bench" {
  service "client" {
    selector "nomad" {
      job = "client"
    }
  }
  service "many" {
    selector "nomad" {
      job = "many"
    }
  }
  service "server" {
    selector "nomad" {
      job = "near"
    }
    selector "nomad" {
      job = "next"
    }
    selector "nomad" {
      job = "far"
    }
  }
  contract "traffic" {
    originators = ["client", "many"]
    responders  = ["server"]
    rule {
      protocol = "tcp"
      ports    = [%[1]d, %[2]d]
    }
  }
  external "by-zone" {
    prefixes = [%[3]q]
    names    = ["*.%[4]s"]
  }
  external "by-node" {
    prefixes = [%[5]q]
    names    = ["*.%[6]s"]
    exit     = "node"
  }
  contract "outside" {
    originators = ["client"]
    responders  = ["by-zone", "by-node"]
    rule {
      protocol = "tcp"
      ports    = [%[1]d, %[2]d]
    }
  }
  contract "edition" {
    originators = ["client", "many"]
    responders  = ["server"]
    rule {
      protocol = "tcp"
      ports    = [%[7]d]
    }
  }
}
`, throughputPort, latencyPort, byZone.addr+"/32", byZone.domain, byNode.addr+"/32", byNode.domain, 6000+edition)
}

// job returns a job with count idle workloads of a service on one node.
func job(name, node, service string, count int) string {
	datacenter, _, _ := strings.Cut(node, "-")
	return fmt.Sprintf(`job %q {
  datacenters = [%q]
  type        = "service"

  update {
    health_check     = "task_states"
    min_healthy_time = "0s"
  }

  group "g" {
    count = %d

    constraint {
      attribute = "${node.unique.name}"
      value     = %q
    }
    connectivity {
      service = "bench/%s"
    }
    ephemeral_disk {
      size = 10
    }

    task "idle" {
      driver = "exec"
      config {
        command = "/bin/sleep"
        args    = ["100000"]
      }
      resources {
        cpu    = 20
        memory = 16
      }
      logs {
        max_files     = 1
        max_file_size = 1
      }
    }
  }
}
`, name, datacenter, count, node, service)
}

// applyGraph puts an edition of the graph in force with the sif command and returns its sequence.
func (f *fabric) applyGraph(ctx context.Context, edition int) (uint64, error) {
	file := filepath.Join(f.dir, "bench.sif.hcl")
	if err := f.write("bench.sif.hcl", graph(edition)); err != nil {
		return 0, err
	}
	out, err := f.SIF(ctx, "graph", "apply", "-json", "-message=bench", file)
	if err != nil {
		return 0, fmt.Errorf("apply edition %d: %w: %s", edition, err, out)
	}
	var reply struct{ Sequence uint64 }
	if err := json.Unmarshal([]byte(out), &reply); err != nil {
		return 0, fmt.Errorf("read what sif graph apply said: %w", err)
	}
	return reply.Sequence, nil
}
