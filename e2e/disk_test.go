// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/internal/testhost"
)

// smallDisk moves the state of a node's daemons to a disk that can be filled, until the test ends.
func (f *fabricUnderTest) smallDisk(t *testing.T, n *lab.Node) *testhost.Disk {
	t.Helper()
	dir := f.SIFDataDir(n.Name)
	run := func(name string, args ...string) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
	}
	disk := testhost.NewDisk(t, 24)
	must.NoError(t, f.Stop(t.Context(), n.Name, daemonOf(n)))
	run("cp", "-a", dir+"/.", disk.Dir)
	run("mount", "--bind", disk.Dir, dir)
	t.Cleanup(func() {
		if err := f.Stop(t.Context(), n.Name, daemonOf(n)); err != nil {
			t.Error(err)
		}
		for _, command := range [][]string{{"umount", "-l", dir}, {"cp", "-a", disk.Dir + "/.", dir}} {
			if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", command, err, out)
			}
		}
		if err := f.Start(n.Name, daemonOf(n)); err != nil {
			t.Error(err)
		}
	})
	must.NoError(t, f.Start(n.Name, daemonOf(n)))
	return disk
}

// TestFullDisksKeepNothingFromBeingRemoved fills the disks of all nodes of a zone. A contract that
// is removed stops passing, one that comes back passes, status says what is wrong, and with room
// all is well.
func TestFullDisksKeepNothingFromBeingRemoved(t *testing.T) {
	svc, near, far := world.workload(t, "getaway-app/getaway-svc", "aws1"), world.workload(t, "getaway-app/news-gw", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1")
	t.Cleanup(func() { // when all daemons have their own disks again
		world.verified(t, 30*time.Second)
		for range 5 { // each time with new reports: the restarted daemons find one another one by one
			world.allWell(t, 60*time.Second)
		}
	})
	var disks []*testhost.Disk
	for _, n := range world.Topology.Nodes(lab.Processor, lab.Workload) {
		if n.Zone == "aws1" {
			disks = append(disks, world.smallDisk(t, n))
		}
	}
	t.Cleanup(func() { world.apply(t, world.getaway(t)) })
	world.allWell(t, 60*time.Second)
	for _, to := range []workload{near, far} {
		reaches(t, svc, to, 9001, true, 10*time.Second)
	}
	for _, d := range disks {
		d.Fill()
	}
	world.apply(t, withoutContract(t, world.getaway(t), "news-api"))
	for _, to := range []workload{near, far} {
		reaches(t, svc, to, 9001, false, 15*time.Second)
	}
	eventually(t, 20*time.Second, func() error {
		for _, n := range world.status(t).Nodes {
			if n.Zone == "aws1" && !slices.ContainsFunc(n.Degraded, func(s string) bool { return strings.Contains(s, "no space left on device") }) {
				return errors.New(n.ID().String() + " does not say that its disk is full")
			}
		}
		return nil
	})
	world.apply(t, world.getaway(t))
	for _, to := range []workload{near, far} {
		reaches(t, svc, to, 9001, true, 15*time.Second)
	}
	for _, d := range disks {
		d.Free()
	}
	world.apply(t, world.testPorts(t))
	world.allWell(t, 60*time.Second)
	world.verified(t, 30*time.Second)
}
