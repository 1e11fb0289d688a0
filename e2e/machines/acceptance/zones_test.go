// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build machines

package acceptance

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/e2e/machines"
)

// TestTwoZones is the first hour in two zones with two machines each, and then all that happens to
// machines: a reboot, a crash of everything of ours, an upgrade and a downgrade, networkd, DHCP,
// the clock, and the goodbye. One zone has Debian 12, the other Debian 13.
func TestTwoZones(t *testing.T) {
	c := newCluster(t, "zones",
		machines.Spec{Name: "aw", Zone: "a", Host: 11, Image: "debian12", Hostname: "ip-10-20-1-11.ec2.internal", MemoryMB: 1536},
		machines.Spec{Name: "ap", Zone: "a", Host: 12, Image: "debian12", Hostname: "IP-10-20-1-12", MemoryMB: 1024},
		machines.Spec{Name: "bw", Zone: "b", Host: 11, Image: "debian13", Hostname: "ip-10-20-2-11.ec2.internal", MemoryMB: 1536},
		machines.Spec{Name: "bp", Zone: "b", Host: 12, Image: "debian13", Hostname: "vm-b-proc.example.internal", MemoryMB: 1024},
	)
	aw, ap, bw, bp := c.machine(t, "aw"), c.machine(t, "ap"), c.machine(t, "bw"), c.machine(t, "bp")
	all := []*machines.Machine{aw, ap, bw, bp}
	c.useController(t, aw) // of an earlier run
	step := func(name string, fn func(t *testing.T)) {
		if !t.Run(name, fn) {
			t.FailNow()
		}
	}
	step("install", func(t *testing.T) {
		c.each(t, func(m *machines.Machine) error {
			_, err := m.Output(testContext(t), "apt-get", "install", "-y", packageFile)
			return err
		})
		for _, m := range all {
			c.remember(t, m, c.state(t, m))
		}
	})
	step("setup", func(t *testing.T) {
		c.do(t, "setup", "-auto-approve")
		must.Eq(t, 0, c.exitCode(t, "setup", "-check"))
	})
	step("join", func(t *testing.T) {
		c.join(t, aw, "a", "controller,workload")
		c.useController(t, aw)
		c.join(t, ap, "a", "processor")
		c.join(t, bp, "b", "processor")
		c.join(t, bw, "b", "workload")
		c.awaitHealthy(t, 4*time.Minute)
		c.do(t, "status", "-verbose")
	})
	var shop, store, thief endpoint
	step("jobs", func(t *testing.T) {
		c.do(t, "graph", "apply", "-auto-approve", c.file(t, "market.sif.hcl", graph))
		for name, m := range map[string]*machines.Machine{"store": bw, "shop": aw, "thief": aw} {
			c.do(t, "job", "run", "-detach", c.file(t, name+".nomad.hcl", job(name, m.Hostname)))
		}
		store, shop, thief = c.endpointOf(t, bw, "store"), c.endpointOf(t, aw, "shop"), c.endpointOf(t, aw, "thief")
	})
	// well checks that just what the graph allows passes.
	well := func(t *testing.T) {
		t.Helper()
		c.awaitHealthy(t, 4*time.Minute)
		c.await(t, time.Minute, "an allowed flow passes", func() error {
			if !c.reaches(t, shop, store) {
				return fmt.Errorf("%s does not reach %s", shop.address, store.address)
			}
			return nil
		})
		must.False(t, c.reaches(t, thief, store))
		c.do(t, "matrix")
		c.do(t, "verify")
	}
	// unbroken fails the test if a packet of an established flow was lost.
	unbroken := func(t *testing.T, r counted) {
		t.Helper()
		must.Eq(t, r.UDP.Sent, r.UDP.Answered, must.Sprint("datagrams were lost"))
		must.Eq(t, r.TCP.Sent, r.TCP.Answered)
		must.Eq(t, "", r.Broken)
	}
	step("well", well)
	t.Run("ratios", func(t *testing.T) { c.ratios(t, shop, store) })
	t.Run("killed", func(t *testing.T) {
		unbroken(t, c.during(t, shop, store, func() {
			c.each(t, func(m *machines.Machine) error {
				_, err := m.Output(testContext(t), "sh", "-c", "systemctl kill -s KILL 'sif-*.service'; sleep 15")
				return err
			})
			must.False(t, c.reaches(t, thief, store))
		}))
		well(t)
	})
	t.Run("upgrade", func(t *testing.T) {
		newer := otherPackage(t, "99.0.0")
		unbroken(t, c.during(t, shop, store, func() { c.installOnAll(t, newer) }))
		must.StrContains(t, c.quietly(t, aw, "sif version"), "99.0.0")
		well(t)
	})
	t.Run("downgrade", func(t *testing.T) {
		unbroken(t, c.during(t, shop, store, func() { c.installOnAll(t, packageUnderTest(t)) }))
		must.StrNotContains(t, c.quietly(t, aw, "sif version"), "99.0.0")
		well(t)
	})
	t.Run("networkd", func(t *testing.T) {
		unbroken(t, c.during(t, shop, store, func() {
			for _, m := range all {
				c.quietly(t, m, "systemctl restart systemd-networkd; networkctl reload")
			}
			time.Sleep(10 * time.Second)
		}))
		well(t)
	})
	t.Run("lease", func(t *testing.T) {
		unbroken(t, c.during(t, shop, store, func() {
			for _, m := range all {
				c.quietly(t, m, "networkctl renew eth0; sleep 3; networkctl forcerenew eth0")
			}
			time.Sleep(5 * time.Second)
		}))
		well(t)
	})
	t.Run("clock", func(t *testing.T) {
		for _, by := range []string{"+1 hour", "-1 hour"} {
			unbroken(t, c.during(t, shop, store, func() {
				c.quietly(t, bw, "systemctl stop chrony; date -s '"+by+"'")
				time.Sleep(15 * time.Second)
			}))
			must.False(t, c.reaches(t, thief, store))
		}
		well(t)
	})
	for _, m := range []*machines.Machine{ap, bp, bw, aw} {
		t.Run("reboot "+m.Name, func(t *testing.T) {
			must.NoError(t, m.Reboot(testContext(t)))
			store, shop, thief = c.endpointOf(t, bw, "store"), c.endpointOf(t, aw, "shop"), c.endpointOf(t, aw, "thief")
			well(t)
		})
	}
	t.Run("leave", func(t *testing.T) {
		c.purge(t, "store", "shop", "thief")
		for _, m := range []*machines.Machine{bw, bp, ap, aw} {
			leave := []string{"env", c.variable("NOMAD_TOKEN"), "sif", "node", "leave"}
			if m == aw {
				leave = append(leave, "-force") // the audit log of its controller goes
			}
			c.on(t, m, leave...)
			unchanged(t, c.remembered(t, m), c.state(t, m))
			c.quietly(t, m, "apt-get purge -y sif")
			after := c.state(t, m)
			for _, section := range []string{"files", "units", "processes"} {
				must.StrNotContains(t, after[section], "sif", must.Sprint(section))
			}
		}
	})
}

// otherPackage builds the package of this source with another version.
func otherPackage(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(testContext(t), filepath.Join(repository, "packaging/build.sh"), dir)
	cmd.Env = append(os.Environ(), "VERSION="+version, "ARCHITECTURES=amd64")
	out, err := cmd.CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	return filepath.Join(dir, "sif_"+version+"_amd64.deb")
}

// installOnAll installs a package on all machines, one after the other.
func (c *cluster) installOnAll(t *testing.T, path string) {
	t.Helper()
	for _, m := range c.world.Machines {
		must.NoError(t, m.Copy(testContext(t), machines.File{From: path, To: "/root/other.deb"}))
		c.on(t, m, "sh", "-c", "apt-get install -y --allow-downgrades /root/other.deb 2>&1 | grep -vE 'Reading|database'")
	}
}

// ratios prints the throughput between two workloads of two zones against plain routing over the
// same links, which carry the nodes' health addresses, too: emulated, so only the ratio says
// something.
func (c *cluster) ratios(t *testing.T, from, to endpoint) {
	t.Helper()
	ctx := testContext(t)
	bulk := func(prefix []string, address string) float64 {
		best := 0.0
		for range 3 {
			out, err := from.machine.Output(ctx, append(prefix, traffic, "bulk", "-for", "8s", "-to", address)...)
			must.NoError(t, err)
			bits, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
			must.NoError(t, err)
			best = max(best, bits)
		}
		return best
	}
	fabric := bulk([]string{"nsenter", "--net=/var/run/netns/" + from.alloc}, to.address+":9000")
	c.quietly(t, to.machine, "systemd-run -q --collect --unit plain-serve "+traffic+" serve -listen :9999 && sleep 2")
	t.Cleanup(func() { c.quietly(t, to.machine, "systemctl stop plain-serve") })
	bare := bulk(nil, to.machine.Address.String()+":9999")
	c.logf(t, "emulated: two zones through the fabric %.1f Mb/s, the machines' plain network %.1f Mb/s, ratio %.2f", fabric/1e6, bare/1e6, fabric/bare)
}
