// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/fabric"
)

// scale makes Nomad run another number of instances of a group, and waits until the deployment is
// healthy.
func (f *fabricUnderTest) scale(t *testing.T, job, group string, count int) {
	t.Helper()
	f.deployed(t, job)
	resp, _, err := f.nomad.Jobs().Scale(job, group, &count, t.Name(), false, nil, nil)
	must.NoError(t, err)
	must.NotEq(t, "", resp.EvalID)
	f.deployed(t, job)
}

// deployed waits until all groups of a job have all their instances healthy and no deployment is in
// progress.
func (f *fabricUnderTest) deployed(t *testing.T, job string) {
	t.Helper()
	eventually(t, 90*time.Second, func() error {
		info, _, err := f.nomad.Jobs().Info(job, nil)
		if err != nil {
			return err
		}
		d, _, err := f.nomad.Jobs().LatestDeployment(job, nil)
		switch {
		case err != nil:
			return err
		case d == nil:
			return fmt.Errorf("job %s has no deployment", job)
		case d.Status == nomad.DeploymentStatusFailed:
			t.Fatalf("the deployment of %s failed: %s", job, d.StatusDescription)
		case d.Status != nomad.DeploymentStatusSuccessful:
			return fmt.Errorf("the deployment of %s is %s: %s", job, d.Status, d.StatusDescription)
		}
		allocs, _, err := f.nomad.Jobs().Allocations(job, false, nil)
		if err != nil {
			return err
		}
		healthy := map[string]int{}
		for _, a := range allocs {
			if a.DesiredStatus == nomad.AllocDesiredStatusRun && a.ClientStatus == nomad.AllocClientStatusRunning &&
				a.DeploymentStatus != nil && a.DeploymentStatus.Healthy != nil && *a.DeploymentStatus.Healthy {
				healthy[a.TaskGroup]++
			}
		}
		for _, g := range info.TaskGroups {
			if healthy[*g.Name] != *g.Count {
				return fmt.Errorf("group %s of job %s has %d healthy instances of %d", *g.Name, job, healthy[*g.Name], *g.Count)
			}
		}
		return nil
	})
}

// instances waits until a service has that many endpoints in a zone and returns them.
func (f *fabricUnderTest) instances(t *testing.T, service, zone string, count int) []workload {
	t.Helper()
	var list []workload
	eventually(t, 30*time.Second, func() error {
		if list = f.workloads(t, service, zone); len(list) != count {
			return fmt.Errorf("%d endpoints of %s run in %s, not %d", len(list), service, zone, count)
		}
		return nil
	})
	return list
}

// traces lists where an endpoint is still known: in the eBPF maps of workload nodes, in the
// switches of processors, in Consul.
func (f *fabricUnderTest) traces(t *testing.T, w workload) []string {
	t.Helper()
	var found []string
	for _, n := range f.Topology.Nodes(lab.Workload) {
		peers, err := f.kernel(t, n.Name).Peers()
		must.NoError(t, err)
		for _, p := range peers {
			if !p.Gone && (p.Address == w.v4 || p.Address == w.v6) { // what is known to be gone is refused
				found = append(found, fmt.Sprintf("eBPF of %s: %s", n.Name, p.Address))
			}
		}
	}
	for _, n := range f.Topology.Nodes(lab.Processor) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		state, err := f.boundary(t, n.Name).Dump(ctx)
		cancel()
		must.NoError(t, err)
		for _, e := range state.Endpoints {
			for _, addr := range []netip.Addr{w.v4, w.v6} {
				if slices.Contains(e.Prefixes, netip.PrefixFrom(addr, addr.BitLen())) {
					found = append(found, fmt.Sprintf("switch of %s: %s", n.Name, addr))
				}
			}
		}
	}
	records, _, err := f.consul.Catalog().Service(fabric.CatalogName(w.service), "", nil)
	must.NoError(t, err)
	for _, r := range records {
		if r.ServiceID == fabric.CatalogID(w.zone, w.alloc) || r.ServiceAddress == w.v4.String() {
			found = append(found, "Consul: "+r.ServiceID)
		}
	}
	return found
}

// TestNewInstanceIsFoundAndStoppedOneForgotten makes Nomad start a gateway's second instance in the
// other cloud, and stop it again, without a change of any configuration.
func TestNewInstanceIsFoundAndStoppedOneForgotten(t *testing.T) {
	const (
		service = "getaway-app/news-gw"
		name    = "gcp1.news-gw.getaway-app.sif"
	)
	svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
	first := world.instances(t, service, "gcp1", 1)[0]
	t.Cleanup(func() { world.scale(t, "news-gw", "gcp1", 1) })
	world.scale(t, "news-gw", "gcp1", 2)

	both := world.instances(t, service, "gcp1", 2)
	want := []netip.Addr{both[0].v4, both[1].v4}
	slices.SortFunc(want, netip.Addr.Compare)
	eventually(t, 20*time.Second, func() error {
		got, err := resolve(svc, name)
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("%s is %v, want %v", name, got, want)
		}
		return err
	})
	for _, w := range both {
		eventually(t, 10*time.Second, func() error {
			reply, err := ask[any](svc.netns, fmt.Sprintf("http://%s:9001/health", w.v4), nil)
			if err == nil && reply.Instance.Alloc != w.alloc {
				err = fmt.Errorf("%s answers as %s", w, reply.Instance.Alloc)
			}
			return err
		})
		must.SliceNotEmpty(t, world.traces(t, w))
	}

	world.scale(t, "news-gw", "gcp1", 1)
	left := world.instances(t, service, "gcp1", 1)[0]
	gone := both[0]
	if gone.alloc == left.alloc {
		gone = both[1]
	}
	eventually(t, 30*time.Second, func() error {
		got, err := resolve(svc, name)
		if err == nil && !slices.Equal(got, []netip.Addr{left.v4}) {
			err = fmt.Errorf("%s is %v, want %s", name, got, left.v4)
		}
		return err
	})
	eventually(t, 30*time.Second, func() error {
		if found := world.traces(t, gone); len(found) > 0 {
			return fmt.Errorf("%s was stopped and is still known: %v", gone, found)
		}
		return nil
	})
	must.SliceNotEmpty(t, world.traces(t, left))
	if first.alloc != left.alloc {
		t.Logf("Nomad stopped %s and kept the new one", first)
	}
}

// TestTrafficMovesToTheOtherCloud stops the only instance of a gateway in the nearest zone: the
// page uses the instance in the other cloud, and returns to the nearest zone when that has an
// instance again.
func TestTrafficMovesToTheOtherCloud(t *testing.T) {
	from := func(zone string) func(page) error {
		return func(p page) error {
			if p.News.From.Zone != zone {
				return fmt.Errorf("the news came from zone %s, expected %s", p.News.From.Zone, zone)
			}
			return nil
		}
	}
	world.page(t, from("aws1"))
	t.Cleanup(func() {
		world.scale(t, "news-gw", "aws1", 1)
		world.page(t, from("aws1"))
	})
	world.scale(t, "news-gw", "aws1", 0)
	world.page(t, from("gcp1"))
}
