// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
)

// reportDelay is how long `sif status` may lag behind: nodes report every two seconds.
const reportDelay = 4 * time.Second

// watchAgreement compares `sif verify` with `sif status` again and again until the returned
// function is called. While nodes differ from what they must enforce, the status must not say that
// all is well for longer than nodes need to report.
func (f *fabricUnderTest) watchAgreement(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	rounds := 0
	running.Go(func() {
		var since time.Time // when the two began to disagree
		for ; ctx.Err() == nil; rounds++ {
			v := f.sif(t, "verify")
			s := f.sif(t, "status")
			switch {
			case v.code != exitDiffers || s.code != 0:
				since = time.Time{}
			case since.IsZero():
				since = time.Now()
			case time.Since(since) > reportDelay:
				t.Errorf("for %s, sif status says that all is well, but sif verify says:\n%s%s", time.Since(since), v.stdout, v.stderr)
				return
			}
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		must.Positive(t, rounds)
	})
	t.Cleanup(stop)
	return stop
}

// records returns all keys below sif/v1/ in Consul with their values.
func (f *fabricUnderTest) records(t *testing.T) consul.KVPairs {
	t.Helper()
	pairs, _, err := f.consul.KV().List("sif/v1/", nil)
	must.NoError(t, err)
	return pairs
}

// restore gives Consul the keys below sif/v1/ that it had earlier, and no others. The controller
// keeps its lock, as it would get it again.
func (f *fabricUnderTest) restore(t *testing.T, pairs consul.KVPairs) {
	t.Helper()
	old := map[string]bool{kvkey.Leader: true}
	for _, p := range pairs {
		if !old[p.Key] {
			old[p.Key] = true
			_, err := f.consul.KV().Put(&consul.KVPair{Key: p.Key, Value: p.Value, Flags: p.Flags}, nil)
			must.NoError(t, err)
		}
	}
	for _, p := range f.records(t) {
		if !old[p.Key] {
			_, err := f.consul.KV().Delete(p.Key, nil)
			must.NoError(t, err)
		}
	}
}

// recordsBack waits until Consul has the record of every node.
func (f *fabricUnderTest) recordsBack(t *testing.T) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		keys, _, err := f.consul.KV().Keys(kvkey.Nodes, "", nil)
		if want := len(f.Topology.Nodes(lab.Processor, lab.Workload)); err == nil && len(keys) != want {
			err = fmt.Errorf("Consul has records of %d of %d nodes", len(keys), want)
		}
		return err
	})
}

// TestAbsenceIsNoWithdrawal takes away what daemons have stored, in Consul and on disk. What is
// lost is asked for again from its owner; nothing that lives is cut off for longer than that takes.
func TestAbsenceIsNoWithdrawal(t *testing.T) {
	world.withTestPorts(t)
	svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
	near, far := world.workload(t, "getaway-app/news-gw", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1")
	begin := func(t *testing.T) (flows []*attempts) {
		t.Helper()
		world.allWell(t, 30*time.Second)
		world.watchAgreement(t)
		return []*attempts{openAttempts(t, svc, far, 9001), openAttempts(t, svc, near, 9001)}
	}
	well := func(t *testing.T) {
		t.Helper()
		world.allWell(t, 40*time.Second)
		world.verified(t, 20*time.Second)
	}
	// unbroken requires that every attempt succeeded.
	unbroken := func(t *testing.T, flows []*attempts) {
		t.Helper()
		for _, f := range flows {
			f.stop()
			made, err := f.count()
			must.NoError(t, err, must.Sprintf("some of %d new connections failed", made))
			must.Positive(t, made)
		}
	}
	start := func(t *testing.T, nodes ...*lab.Node) {
		t.Helper()
		for _, n := range nodes {
			must.NoError(t, world.Start(n.Name, daemonOf(n)))
		}
	}
	stop := func(t *testing.T, nodes ...*lab.Node) {
		t.Helper()
		t.Cleanup(func() { start(t, nodes...) })
		for _, n := range nodes {
			must.NoError(t, world.Stop(context.Background(), n.Name, daemonOf(n)))
		}
	}
	lose := func(t *testing.T, n *lab.Node, file string) {
		t.Helper()
		must.NoError(t, os.Remove(filepath.Join(world.SIFDataDir(n.Name), file)))
	}
	var agents, engines []*lab.Node // of aws1
	for _, n := range world.Topology.Nodes(lab.Workload) {
		if n.Zone == svc.zone {
			agents = append(agents, n)
		}
	}
	for _, n := range world.Topology.Nodes(lab.Processor) {
		if n.Zone == svc.zone {
			engines = append(engines, n)
		}
	}
	hostOf := func(w workload) (n *lab.Node) {
		for _, n := range agents {
			if n.Name == w.node {
				return n
			}
		}
		t.Fatalf("no node %s", w.node)
		return nil
	}

	t.Run("node records", func(t *testing.T) {
		flows := begin(t)
		_, err := world.consul.KV().Delete(kvkey.Node{Zone: svc.zone, Name: svc.node}.String(), nil)
		must.NoError(t, err)
		world.recordsBack(t)
		_, err = world.consul.KV().DeleteTree(kvkey.Nodes, nil)
		must.NoError(t, err)
		world.recordsBack(t)
		well(t)
		unbroken(t, flows)
	})

	t.Run("an old snapshot of Consul", func(t *testing.T) {
		old := world.records(t)
		node := hostOf(near)
		stop(t, node)
		start(t, node) // its record is newer than the snapshot now
		flows := begin(t)
		world.restore(t, old)
		well(t)
		unbroken(t, flows)
	})

	t.Run("an agent's counterparts", func(t *testing.T) {
		begin(t)
		node := hostOf(svc)
		stop(t, node)
		lose(t, node, "counterparts.json")
		start(t, node)
		reaches(t, svc, far, 9001, true, 15*time.Second)
		reaches(t, svc, near, 9001, true, 5*time.Second)
		well(t)
	})

	t.Run("a release, while the controller is away", func(t *testing.T) {
		const job, group = "places-gw", "gcp1"
		t.Cleanup(func() { world.scale(t, job, group, 1) })
		world.scale(t, job, group, 2)
		before := world.workloads(t, "getaway-app/places-gw", group)
		must.SliceLen(t, 2, before)
		node := world.Topology.Orchestrator().Name
		t.Cleanup(func() { must.NoError(t, world.Start(node, "controller")) })
		must.NoError(t, world.Stop(context.Background(), node, "controller"))
		world.scale(t, job, group, 1)
		eventually(t, 30*time.Second, func() error {
			for _, w := range before {
				log, err := os.ReadFile(world.LogFile(w.node, "agent"))
				if err != nil || strings.Contains(string(log), "tell the controller of the release") {
					return err
				}
			}
			return errors.New("no release was lost")
		})
		must.NoError(t, world.Start(node, "controller"))
		eventually(t, 40*time.Second, func() error {
			live := 0
			for _, w := range before {
				key := kvkey.Admission{Node: fabric.NodeID{Zone: w.zone, Name: w.node}, Endpoint: w.alloc}
				pair, _, err := world.consul.KV().Get(key.String(), nil)
				if err != nil || pair == nil {
					return fmt.Errorf("read %s: %w", key, err)
				}
				var grant struct{ Released time.Time }
				must.NoError(t, json.Unmarshal(pair.Value, &grant))
				if grant.Released.IsZero() {
					live++
				}
			}
			if live != 1 {
				return fmt.Errorf("%d admissions are in force, of one endpoint", live)
			}
			return nil
		})
		well(t)
	})

	t.Run("an engine's leases", func(t *testing.T) {
		flows := begin(t)
		stop(t, agents...)
		stop(t, engines...)
		for _, n := range engines {
			lose(t, n, "leases.json")
		}
		start(t, engines...)
		// The agents of the zone are still away, so that its leases come from the other zone.
		reaches(t, svc, far, 9001, true, 20*time.Second)
		eventually(t, 10*time.Second, func() error {
			if world.sif(t, "status").code == 0 {
				return errors.New("sif status says that all is well while agents are away")
			}
			return nil
		})
		start(t, agents...)
		well(t)
		unbroken(t, flows[1:]) // within the zone
	})
}
