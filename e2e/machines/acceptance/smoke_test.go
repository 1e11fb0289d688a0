// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build machines

package acceptance

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/e2e/machines"
)

// TestOneMachine is the first hour, a crash and the goodbye on the smallest cluster: one machine
// with Debian 12, which is the controller's and a workload node.
func TestOneMachine(t *testing.T) {
	c := newCluster(t, "smoke", machines.Spec{Name: "m1", Zone: "a", Image: "debian12", Hostname: "ip-10-20-1-11.ec2.internal", MemoryMB: 2048})
	m := c.machine(t, "m1")
	c.useController(t, m) // of an earlier run
	step := func(name string, fn func(t *testing.T)) {
		if !t.Run(name, fn) {
			t.FailNow()
		}
	}
	step("install", func(t *testing.T) {
		c.install(t, m)
	})
	step("doctor", func(t *testing.T) {
		before := c.state(t, m)
		_, err := m.Output(testContext(t), "sif", "doctor")
		if err != nil {
			show(err.Error())
		}
		unchanged(t, before, c.state(t, m))
	})
	step("setup", func(t *testing.T) {
		must.Eq(t, 2, c.exitCode(t, "setup", "-check"))
		c.do(t, "setup", "-auto-approve")
		must.Eq(t, 0, c.exitCode(t, "setup", "-check"))
	})
	step("join", func(t *testing.T) {
		c.join(t, m, "a", "controller,processor,workload")
		c.useController(t, m)
		c.awaitHealthy(t, 2*time.Minute)
	})
	step("graph", func(t *testing.T) {
		path := c.file(t, "market.sif.hcl", graph)
		c.do(t, "graph", "plan", path)
		c.do(t, "graph", "apply", "-auto-approve", path)
	})
	var shop, store, thief endpoint
	step("jobs", func(t *testing.T) {
		for _, name := range []string{"store", "shop", "thief"} {
			c.do(t, "job", "run", "-detach", c.file(t, name+".nomad.hcl", job(name, m.Hostname)))
		}
		store, shop, thief = c.endpointOf(t, m, "store"), c.endpointOf(t, m, "shop"), c.endpointOf(t, m, "thief")
	})
	step("flows", func(t *testing.T) {
		must.True(t, c.reaches(t, shop, store))
		must.False(t, c.reaches(t, thief, store))
		must.False(t, c.reaches(t, store, shop))
		c.do(t, "matrix")
		c.do(t, "verify")
	})
	step("killed", func(t *testing.T) {
		r := c.during(t, shop, store, func() {
			c.on(t, m, "sh", "-c", "systemctl kill -s KILL 'sif-*.service'; sleep 10; systemctl is-active 'sif-*.service' || true")
			must.False(t, c.reaches(t, thief, store))
		})
		must.Eq(t, r.UDP.Sent, r.UDP.Answered)
		must.Eq(t, r.TCP.Sent, r.TCP.Answered)
		must.Eq(t, "", r.Broken)
		c.awaitHealthy(t, 2*time.Minute)
	})
	step("leave", func(t *testing.T) {
		c.purge(t, "store", "shop", "thief")
		c.on(t, m, "env", c.variable("NOMAD_TOKEN"), "sif", "node", "leave", "-force")
		c.on(t, m, "sh", "-c", "apt-get purge -y sif 2>&1 | grep -vE 'Reading|database'")
		unchanged(t, c.remembered(t, m), c.state(t, m))
	})
}
