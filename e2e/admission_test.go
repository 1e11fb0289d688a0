// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/hcl"
)

// intruder is a job with one task in gcp1 that tries to join the fabric.
func intruder(id, namespace string, meta, args map[string]string) *nomad.Job {
	job := nomad.NewServiceJob(id, id, "global", 50)
	job.Datacenters, job.Namespace = []string{"gcp1"}, &namespace
	group := nomad.NewTaskGroup("gcp1", 1)
	disk, none, no := 110, 0, false
	group.EphemeralDisk = &nomad.EphemeralDisk{SizeMB: &disk}
	group.RestartPolicy = &nomad.RestartPolicy{Attempts: &none, Mode: ptr("fail")}
	group.ReschedulePolicy = &nomad.ReschedulePolicy{Attempts: &none, Unlimited: &no}
	group.Meta = meta
	network := &nomad.NetworkResource{Mode: hcl.NetworkMode}
	if args != nil {
		network.CNI = &nomad.CNIConfig{Args: args}
	}
	group.Networks = []*nomad.NetworkResource{network}
	group.AddTask(&nomad.Task{Name: "intruder", Driver: "exec", Config: map[string]any{
		"command": "/usr/local/bin/sif-demo", "args": []string{"news-gw"},
	}})
	return job.AddTaskGroup(group)
}

func ptr[T any](v T) *T { return &v }

// TestUnadmittedWorkloadGetsNothing starts workloads that no selector matches, with every kind of
// claim that a job can make: a stanza, forged CNI arguments, the name of another namespace's job.
// Each one fails and says which selectors were tried.
func TestUnadmittedWorkloadGetsNothing(t *testing.T) {
	_, err := world.nomad.Namespaces().Register(&nomad.Namespace{Name: "e2e-other"}, nil)
	must.NoError(t, err)
	t.Cleanup(func() {
		_, err := world.nomad.Namespaces().Delete("e2e-other", nil)
		must.NoError(t, err)
	})
	victim := world.workload(t, "getaway-app/news-gw", "gcp1")
	outsider := intruder("e2e-outsider", "default", nil, nil)
	outsider.Datacenters = []string{"aws1"} // where docker is
	outsider.TaskGroups[0].Tasks[0].Driver = "docker"
	outsider.TaskGroups[0].Tasks[0].Config = map[string]any{"image": "sif-demo:local", "args": []string{"news-gw"}, "network_mode": "host"}
	taker := intruder("e2e-taker", "default", nil, nil)
	taker.TaskGroups[0].Networks[0].ReservedPorts = []nomad.Port{{Label: "p", Value: 4646, To: 9400}}
	claim := map[string]string{hcl.MetaService: "getaway-app/news-gw", hcl.MetaRespond: "news-api"}
	for name, tc := range map[string]struct {
		job  *nomad.Job
		want []string // in the allocation's events
	}{
		"no claim": {
			intruder("e2e-stranger", "default", nil, nil),
			[]string{"e2e-stranger", "matches no selector", "tried: ", "job="},
		},
		"a stanza's claim": {
			intruder("e2e-claimant", "default", claim, nil),
			[]string{"e2e-claimant", "no selector of service getaway-app/news-gw", "nomad(namespace=default, job=news-gw)"},
		},
		"forged CNI arguments": {
			intruder("e2e-forger", "default", nil, map[string]string{
				"SIF_SERVICE": "getaway-app/news-gw", "NOMAD_ALLOC_ID": victim.alloc, "NOMAD_JOB_ID": "news-gw", "NOMAD_NAMESPACE": "default",
			}),
			[]string{"e2e-forger", "matches no selector"},
		},
		"the name of another namespace's job": {
			intruder("news-gw", "e2e-other", claim, nil),
			[]string{`namespace "e2e-other"`, "no selector of service getaway-app/news-gw", "nomad(namespace=default, job=news-gw)"},
		},
		"a port of the node": {
			taker,
			[]string{"tcp port 4646 is the node's own: it is in underlay.management"},
		},
		"a network of its own": {
			outsider,
			[]string{"e2e-outsider", `task "intruder" has a network of its own`, `Remove "network_mode"`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id, query := *tc.job.ID, &nomad.QueryOptions{Namespace: *tc.job.Namespace}
			write := &nomad.WriteOptions{Namespace: *tc.job.Namespace}
			_, _, err := world.nomad.Jobs().Register(tc.job, write)
			must.NoError(t, err)
			world.purgeAtEnd(t, *tc.job.Namespace, id)
			var alloc *nomad.AllocationListStub
			eventually(t, 60*time.Second, func() error {
				allocs, _, err := world.nomad.Jobs().Allocations(id, true, query)
				if err != nil {
					return err
				}
				if len(allocs) == 0 {
					return fmt.Errorf("job %s was not placed", id)
				}
				alloc = allocs[0]
				if alloc.ClientStatus != nomad.AllocClientStatusFailed {
					return fmt.Errorf("the allocation of %s is %s", id, alloc.ClientStatus)
				}
				return nil
			})
			said := alloc.ClientDescription
			for _, state := range alloc.TaskStates {
				must.True(t, state.StartedAt.IsZero(), must.Sprint("the task was started"))
				for _, e := range state.Events {
					said += "\n" + e.DisplayMessage
				}
			}
			for _, want := range tc.want {
				must.StrContains(t, said, want)
			}
			world.knowsNothingOf(t, alloc.ID)
		})
	}
}

// knowsNothingOf checks that an allocation has no endpoint, no namespace and no record.
func (f *fabricUnderTest) knowsNothingOf(t *testing.T, alloc string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		for _, n := range f.status(t).Nodes {
			for _, ep := range n.Endpoints {
				if ep.Endpoint == alloc {
					return fmt.Errorf("%s has an endpoint %s of allocation %s", n.ID(), ep.IPv4, alloc)
				}
			}
		}
		if _, err := os.Stat(filepath.Join("/var/run/netns", alloc)); err == nil {
			return fmt.Errorf("allocation %s still has a network namespace", alloc)
		}
		services, _, err := f.consul.Catalog().Services(nil)
		if err != nil {
			return err
		}
		for service := range services {
			if !strings.HasPrefix(service, "sif-") {
				continue
			}
			records, _, err := f.consul.Catalog().Service(service, "", nil)
			if err != nil {
				return err
			}
			for _, r := range records {
				if strings.Contains(r.ServiceID, alloc) {
					return fmt.Errorf("Consul has a record %s", r.ServiceID)
				}
			}
		}
		return nil
	})
}
