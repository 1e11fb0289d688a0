// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/hcl"
)

// jobPrefix is how the names of the jobs begin.
const jobPrefix = "chaos-"

// endpoint is a workload: an allocation of one of the jobs.
type endpoint struct {
	service, node string
	alloc         string
	netns         string // path
	addr          netip.Addr
}

func (e *endpoint) String() string { return fmt.Sprintf("%s (%s on %s)", e.service, e.addr, e.node) }

// place is where each job runs. Guests are in the other zone: their packets pass processors, too.
var places = map[string]string{originator: "aws1-w1", near: "aws1-w2", far: "gcp1-w1", guest: "gcp1-w1"}

// job returns the job of a service, which does nothing: the run opens sockets in its namespace.
func job(service string) *nomad.Job {
	node := places[service]
	zone, _, _ := strings.Cut(node, "-")
	j := nomad.NewServiceJob(jobPrefix+service, jobPrefix+service, "global", 50)
	j.Datacenters = []string{zone}
	g := nomad.NewTaskGroup("g", 1)
	g.Constraints = []*nomad.Constraint{nomad.NewConstraint("${node.unique.name}", "=", node)}
	disk, cpu, memory, no := 110, 20, 16, false
	g.EphemeralDisk = &nomad.EphemeralDisk{SizeMB: &disk}
	// A client that Nomad's server does not hear of keeps its workloads.
	away, keep := time.Hour, "keep_original"
	g.Disconnect = &nomad.DisconnectStrategy{LostAfter: &away, Replace: &no, Reconcile: &keep}
	g.Networks = []*nomad.NetworkResource{{Mode: hcl.NetworkMode}}
	files := 1
	g.AddTask(&nomad.Task{
		Name: "t", Driver: "raw_exec", Config: map[string]any{"command": "/bin/sleep", "args": []string{"1000000"}},
		Resources: &nomad.Resources{CPU: &cpu, MemoryMB: &memory}, LogConfig: &nomad.LogConfig{MaxFiles: &files, MaxFileSizeMB: &files},
	})
	return j.AddTaskGroup(g)
}

// netnsDir is where Nomad keeps the network namespaces of allocations.
const netnsDir = "/var/run/netns"

// find returns the endpoint of a service that runs, other than the allocation old.
func (r *run) find(ctx context.Context, service, old string) (*endpoint, error) {
	q := (&nomad.QueryOptions{}).WithContext(ctx)
	list, _, err := r.nomad.Jobs().Allocations(jobPrefix+service, false, q)
	if err != nil {
		return nil, fmt.Errorf("list the allocations of %s: %w", service, err)
	}
	for _, a := range list {
		r.remember(a.ID)
		if a.ID == old || a.ClientStatus != nomad.AllocClientStatusRunning || a.DesiredStatus != nomad.AllocDesiredStatusRun {
			continue
		}
		info, _, err := r.nomad.Allocations().Info(a.ID, q)
		if err != nil {
			return nil, fmt.Errorf("read the allocation of %s: %w", service, err)
		}
		if info.NetworkStatus == nil {
			continue
		}
		e := &endpoint{service: service, node: a.NodeName, alloc: a.ID, netns: filepath.Join(netnsDir, a.ID)}
		if e.addr, err = netip.ParseAddr(info.NetworkStatus.Address); err != nil {
			return nil, fmt.Errorf("address of %s: %w", service, err)
		}
		return e, nil
	}
	return nil, fmt.Errorf("no allocation of %s runs", service)
}

// await calls probe until it succeeds.
func await(ctx context.Context, within time.Duration, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not after %s: %w", within, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
