// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/e2e/lab"
)

// only lets Nomad place new allocations of a zone on one node, until undo is called or the test
// ends.
func (f *fabricUnderTest) only(t *testing.T, zone, node string) (undo func()) {
	t.Helper()
	list, _, err := f.nomad.Nodes().List(nil)
	must.NoError(t, err)
	set := func(eligible func(name string) bool) {
		for _, n := range list {
			if n.Datacenter == zone {
				_, err := f.nomad.Nodes().ToggleEligibility(n.ID, eligible(n.Name), nil)
				must.NoError(t, err)
			}
		}
	}
	undo = func() { set(func(string) bool { return true }) }
	t.Cleanup(undo)
	set(func(name string) bool { return name == node })
	return undo
}

// another starts one more instance of a group of a job on a node, and returns it.
func (f *fabricUnderTest) another(t *testing.T, job, group, service, node string) (w workload) {
	t.Helper()
	n := f.Topology.Nodes(lab.Workload)[slices.IndexFunc(f.Topology.Nodes(lab.Workload), func(n *lab.Node) bool { return n.Name == node })]
	before := f.workloads(t, service, n.Zone)
	undo := f.only(t, n.Zone, node)
	defer undo()
	info, _, err := f.nomad.Jobs().Info(job, nil)
	must.NoError(t, err)
	count := 0
	for _, g := range info.TaskGroups {
		if *g.Name == group {
			count = *g.Count + 1
		}
	}
	_, _, err = f.nomad.Jobs().Scale(job, group, &count, t.Name(), false, nil, nil)
	must.NoError(t, err)
	eventually(t, 60*time.Second, func() error {
		for _, now := range f.workloads(t, service, n.Zone) {
			if now.node == node && !slices.ContainsFunc(before, func(b workload) bool { return b.alloc == now.alloc }) {
				w = now
				return nil
			}
		}
		return fmt.Errorf("no new endpoint of %s runs on %s", service, node)
	})
	return w
}

// attachedWithin returns how long ADD took for an allocation, by the log of its agent.
func (f *fabricUnderTest) attachedWithin(t *testing.T, w workload) (took time.Duration) {
	t.Helper()
	log, err := os.ReadFile(f.LogFile(w.node, "agent"))
	must.NoError(t, err)
	for line := range strings.SplitSeq(string(log), "\n") {
		if !strings.Contains(line, "workload attached") || !strings.Contains(line, w.alloc) {
			continue
		}
		_, text, found := strings.Cut(line, "duration=")
		must.True(t, found, must.Sprint(line))
		took, err = time.ParseDuration(strings.Trim(strings.Fields(text)[0], `"`))
		must.NoError(t, err, must.Sprint(line))
	}
	must.Positive(t, took)
	return took
}

// TestZoneWithoutEngines takes all engines of a zone away, once by killing and once by stopping
// them. Workloads start there and speak with one another by contract, and by nothing else; the
// other zone learns of them when the engines are back.
func TestZoneWithoutEngines(t *testing.T) {
	world.withTestPorts(t)
	const zone = "aws1"
	var engines, nodes []*lab.Node
	for _, n := range world.Topology.Nodes(lab.Processor) {
		if n.Zone == zone {
			engines = append(engines, n)
		}
	}
	for _, n := range world.Topology.Nodes(lab.Workload) {
		if n.Zone == zone {
			nodes = append(nodes, n)
		}
	}
	must.True(t, len(nodes) >= 2)
	distant := world.workload(t, "getaway-app/news-gw", "gcp1")
	for _, tc := range []struct {
		name       string
		away, back func(t *testing.T, n *lab.Node)
	}{
		{"killed",
			func(t *testing.T, n *lab.Node) { must.NoError(t, world.Signal(n.Name, "engine", syscall.SIGKILL)) },
			func(t *testing.T, n *lab.Node) { must.NoError(t, world.Start(n.Name, "engine")) }},
		{"stopped",
			func(t *testing.T, n *lab.Node) { must.NoError(t, world.Signal(n.Name, "engine", syscall.SIGSTOP)) },
			func(t *testing.T, n *lab.Node) { must.NoError(t, world.Signal(n.Name, "engine", syscall.SIGCONT)) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			world.allWell(t, 60*time.Second)
			first := world.workload(t, "getaway-app/news-gw", zone)
			there := true
			back := func() {
				if !there {
					there = true
					for _, n := range engines {
						tc.back(t, n)
					}
				}
			}
			t.Cleanup(func() {
				back()
				world.scale(t, "news-gw", zone, 1)
				world.scale(t, "getaway", "svc", 1)
			})
			there = false
			for _, n := range engines {
				tc.away(t, n)
			}
			world.tells(t, 30*time.Second, "no engine of zone "+zone+" answers")

			news := world.another(t, "news-gw", zone, "getaway-app/news-gw", nodes[0].Name)
			svc := world.another(t, "getaway", "svc", "getaway-app/getaway-svc", nodes[1].Name)
			t.Logf("ADD took %s and %s", world.attachedWithin(t, news), world.attachedWithin(t, svc))
			// At once, in both directions of the start: the older ones know them, too.
			reaches(t, svc, news, 9001, true, 5*time.Second)
			reaches(t, news, svc, 9001, false, 10*time.Second)
			reaches(t, svc, news, weatherPort, false, 10*time.Second)
			for _, older := range world.workloads(t, "getaway-app/news-gw", zone) {
				reaches(t, svc, older, 9001, true, 5*time.Second)
			}
			for _, older := range world.workloads(t, "getaway-app/getaway-svc", zone) {
				reaches(t, older, news, 9001, true, 5*time.Second)
			}
			must.False(t, arrives(t, svc, distant, 9001, time.Second), must.Sprint("the other zone knows nothing of it"))
			pending := ""
			for _, n := range world.status(t).Nodes {
				for _, ep := range n.Endpoints {
					if ep.Endpoint == svc.alloc {
						pending = strings.Join(ep.Pending, "; ")
					}
				}
			}
			must.StrContains(t, pending, "nothing knows it outside the zone")

			// What ends is forgotten by the nodes of the zone.
			_, err := world.nomad.Allocations().Stop(&nomad.Allocation{ID: news.alloc}, nil)
			must.NoError(t, err)
			eventually(t, 30*time.Second, func() error {
				for _, n := range nodes {
					peers, err := world.kernel(t, n.Name).Peers()
					must.NoError(t, err)
					for _, p := range peers {
						if !p.Gone && (p.Address == news.v4 || p.Address == news.v6) {
							return fmt.Errorf("%s still knows %s", n.Name, p.Address)
						}
					}
				}
				return nil
			})

			began := time.Now()
			connection := openStream(t, svc, first, newsPort, "within the zone")
			back()
			reaches(t, svc, distant, 9001, true, 60*time.Second)
			t.Logf("the other zone knew the new workload %s after the engine was back", time.Since(began).Round(10*time.Millisecond))
			world.allWell(t, 60*time.Second)
			connection.mustFlow(t, 5*time.Second)
			connection.stop()
			world.verified(t, 20*time.Second)
		})
	}
}
