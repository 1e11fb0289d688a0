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
	"slices"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
)

// nodes returns the output of `sif node list -json`.
func (f *fabricUnderTest) nodes(t *testing.T) api.NodeList {
	t.Helper()
	r := f.sif(t, "node", "list", "-json")
	must.Zero(t, r.code, must.Sprint(r.stderr))
	var list api.NodeList
	must.NoError(t, json.Unmarshal([]byte(r.stdout), &list))
	return list
}

// knows reports whether the status or the list of nodes contains a node.
func (f *fabricUnderTest) knows(t *testing.T, id fabric.NodeID) bool {
	t.Helper()
	return slices.ContainsFunc(f.status(t).Nodes, func(n api.NodeStatus) bool { return n.ID() == id }) ||
		slices.ContainsFunc(f.nodes(t).Nodes, func(n api.NodeInfo) bool { return n.Node.ID() == id })
}

// TestRemovedNodeStaysRemoved removes a workload node, without draining it. Within seconds it is
// gone everywhere, and nobody else loses a packet. Neither old keys in Consul nor a restart of the
// controller brings it back. The machine joins again under its old name as a new node.
func TestRemovedNodeStaysRemoved(t *testing.T) {
	world.withTestPorts(t)
	world.allWell(t, 30*time.Second)
	svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
	near, victim := world.workload(t, "getaway-app/news-gw", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1")
	reaches(t, svc, victim, 9001, true, 10*time.Second)
	id := fabric.NodeID{Zone: victim.zone, Name: victim.node}
	packets, flows := openDatagrams(t, svc, near, newsPort), openAttempts(t, svc, near, 9001)

	r := world.sif(t, "node", "remove", id.Zone+"/"+id.Name+"x")
	must.Eq(t, 1, r.code)
	must.StrContains(t, r.stderr, fmt.Sprintf("did you mean %q?", id))

	old := world.records(t)
	r = world.sif(t, "node", "remove", "-json", "-message=e2e", id.String())
	must.Zero(t, r.code, must.Sprint(r.stderr))
	var removal api.Removal
	must.NoError(t, json.Unmarshal([]byte(r.stdout), &removal))
	must.Positive(t, removal.Endpoints)
	must.StrContains(t, r.stdout, `"deleted": true`, must.Sprint("its credential in Vault"))
	t.Cleanup(func() { world.rejoin(t, id, removal) })
	gone := func() {
		t.Helper()
		eventually(t, 10*time.Second, func() error {
			if world.knows(t, id) {
				return errors.New("the node is still listed")
			}
			for _, n := range world.status(t).Nodes {
				if n.Revocations != removal.Sequence {
					return fmt.Errorf("%s heeds list %d", n.ID(), n.Revocations)
				}
				for _, l := range n.Links {
					if l.Peer == id.String() {
						return fmt.Errorf("%s still has a link to it", n.ID())
					}
				}
			}
			if pair, _, err := world.consul.KV().Get(kvkey.Node(id).String(), nil); err != nil || pair != nil {
				return fmt.Errorf("its record is in Consul: %w", err)
			}
			return nil
		})
		reaches(t, svc, victim, 9001, false, 10*time.Second)
		world.verified(t, 20*time.Second)
	}
	gone()
	eventually(t, 10*time.Second, func() error {
		if r := world.sif(t, "status"); r.code != 0 {
			return errors.New(r.stdout)
		}
		return nil
	})
	must.Len(t, 1, slices.DeleteFunc(world.nodes(t).Removed, func(g fabric.Tombstone) bool { return g.Node != id || g.Reason != "e2e" }))

	// The machine says what happened to it, and is refused when it starts again.
	agent := world.LogFile(id.Name, "agent")
	eventually(t, 10*time.Second, func() error { return contains(agent, "so it has no links any more") })
	must.NoError(t, world.Stop(context.Background(), id.Name, "agent"))
	must.NoError(t, world.Start(id.Name, "agent"))
	eventually(t, 20*time.Second, func() error { return contains(agent, "its certificate is from before that") })

	// All that Consul had before is put back, while the controller runs and while it starts.
	world.restore(t, old)
	gone()
	orchestrator := world.Topology.Orchestrator().Name
	must.NoError(t, world.Stop(context.Background(), orchestrator, "controller"))
	world.restore(t, old)
	must.NoError(t, world.Start(orchestrator, "controller"))
	eventually(t, time.Minute, func() error { // daemons ask for tasks for half a minute
		if r := world.sif(t, "status"); r.code != 0 {
			return errors.New(r.stdout + r.stderr)
		}
		return nil
	})
	gone()

	flows.stop()
	made, err := flows.count()
	must.NoError(t, err, must.Sprintf("some of %d new connections failed", made))
	eventually(t, 5*time.Second, func() error {
		if sent, lost := packets.count(time.Second); lost > 0 {
			return fmt.Errorf("no echo of %d of %d packets, sent from %s", lost, sent, packets.gap(time.Second))
		}
		return nil
	})
	packets.stop()
}

// contains returns an error if a file does not contain a text.
func contains(path, text string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !strings.Contains(string(data), text) {
		return fmt.Errorf("%s does not say %q", path, text)
	}
	return nil
}

// rejoin lets the machine of a removed node join again under its name, when its allocations have
// moved to other nodes.
func (f *fabricUnderTest) rejoin(t *testing.T, id fabric.NodeID, removal api.Removal) {
	t.Helper()
	machines, _, err := f.nomad.Nodes().List(nil)
	must.NoError(t, err)
	i := slices.IndexFunc(machines, func(n *nomad.NodeListStub) bool { return n.Name == id.Name })
	drain := func(o *nomad.DrainOptions) {
		t.Helper()
		_, err := f.nomad.Nodes().UpdateDrainOpts(machines[i].ID, o, nil)
		must.NoError(t, err)
	}
	drain(&nomad.DrainOptions{DrainSpec: &nomad.DrainSpec{Deadline: time.Second}})
	eventually(t, time.Minute, func() error {
		list, _, err := f.nomad.Nodes().Allocations(machines[i].ID, nil)
		for _, a := range list {
			if !a.ClientTerminalStatus() {
				return fmt.Errorf("allocation %s still runs", a.ID)
			}
		}
		return err
	})
	for _, daemon := range []string{"agent", "link"} {
		must.NoError(t, f.Stop(context.Background(), id.Name, daemon))
	}
	must.NoError(t, os.RemoveAll(f.SIFDataDir(id.Name)))
	must.NoError(t, f.RenewCredential(context.Background(), id.Name, "agent"))
	must.NoError(t, f.Start(id.Name, "link"))
	eventually(t, 4*time.Minute, func() error {
		// A certificate that Vault dates back to before the removal is refused, and not used again.
		if err := f.Start(id.Name, "agent"); err != nil {
			return err
		}
		time.Sleep(time.Second)
		if !slices.ContainsFunc(f.status(t).Nodes, func(n api.NodeStatus) bool { return n.ID() == id && !n.Reported.IsZero() }) {
			return errors.New("the node is not back")
		}
		return nil
	})
	drain(&nomad.DrainOptions{MarkEligible: true})
	for _, n := range f.nodes(t).Nodes {
		if n.Node.ID() == id {
			must.NotEq(t, removal.Tombstone.Pool4, n.Node.Pool4, must.Sprint("its pool rests"))
			must.NotEq(t, removal.Tombstone.Key, n.PublicKey)
		}
	}
	f.allWell(t, time.Minute)
	f.verified(t, 30*time.Second)
	svc := f.workload(t, "getaway-app/getaway-svc", "aws1")
	reaches(t, svc, f.workload(t, "getaway-app/news-gw", id.Zone), 9001, true, 30*time.Second)
	must.Eq(t, len(f.Topology.Nodes(lab.Processor, lab.Workload)), len(f.nodes(t).Nodes))
}
