// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

// drainVariable, if it is set, lets tests drain nodes. Other workloads move with it and do not come
// back, so that most tests that follow would not find them where they need them.
const drainVariable = "SIF_E2E_DRAIN"

// machineJob is the job whose group is a virtual machine.
const machineJob = "voting-vm"

// A virtual machine takes part like any other workload: it answers a container, calls a process in
// another zone by its name, and is kept apart from everybody else; after a reboot of the guest,
// restarts of its task, and on another node.
func TestVirtualMachine(t *testing.T) {
	began := time.Now()
	must.NoError(t, world.PrepareGuests(t.Context()))
	// The driver's socket of QEMU's monitor, by which the test resets the guest.
	text := strings.Replace(world.file(t, "jobs/voting/vm/voting-vm.nomad.hcl"), "image_path =", "graceful_shutdown = true\nimage_path =", 1)
	text = strings.Replace(text, `driver = "qemu"`, "driver = \"qemu\"\nkill_timeout = \"1s\"", 1)
	world.purgeAtEnd(t, "default", machineJob)
	r := world.sif(t, "job", "run", write(t, "voting-vm.nomad.hcl", text))
	must.Zero(t, r.code, must.Sprint(r.stdout, r.stderr))
	must.StrContains(t, r.stdout, `args_allowlist = ["-append", "-cpu", "-device", "-initrd", "-kernel", "-m", "-netdev"]`)
	t.Logf("healthy after %.1f s", time.Since(began).Seconds())

	proxy := world.workload(t, "voting-app/http-proxy", "aws1")
	database := world.workload(t, "voting-app/result-db", "gcp1")
	guest, alloc := world.machine(t)
	calls := func(guest workload) {
		t.Helper()
		for _, address := range []netip.Addr{guest.v4, guest.v6} {
			// It asks its database, of which it knows only the name.
			answer := world.asks(t, proxy, netip.AddrPortFrom(address, 8080), "/results", 90*time.Second)
			must.Eq(t, instance{Service: "result-svc", Node: guest.node, Zone: guest.zone, Alloc: guest.alloc}, answer)
		}
		for _, tc := range []struct {
			from workload
			port uint16
		}{{proxy, 8081}, {database, 8080}, {world.workload(t, "getaway-app/getaway-svc", "aws1"), 8080}} {
			_, err := dial(tc.from.netns, netip.AddrPortFrom(guest.v4, tc.port), time.Second)
			must.True(t, err != nil && unreached(err), must.Sprintf("%s reaches port %d of %s: %v", tc.from, tc.port, guest, err))
		}
	}
	calls(guest)

	t.Run("in the matrix", func(t *testing.T) {
		world.allWell(t, 30*time.Second)
		report := world.matrix(t)
		var originates, responds, silent bool
		for _, o := range report.Outcomes {
			originates = originates || o.From.ID == guest.alloc && o.Declared()
			responds = responds || o.To.ID == guest.alloc && o.Declared()
			silent = silent || o.From.ID == guest.alloc && !o.Declared()
		}
		must.True(t, originates && responds && silent, must.Sprint(originates, responds, silent))
	})

	t.Run("the guest reboots", func(t *testing.T) {
		world.reset(t, guest)
		world.silent(t, proxy, guest)
		calls(guest)
	})

	t.Run("the task restarts", func(t *testing.T) {
		must.NoError(t, world.nomad.Allocations().Restart(alloc, "", nil))
		world.silent(t, proxy, guest)
		calls(guest)
		again, _ := world.machine(t)
		must.Eq(t, guest, again)
	})

	if os.Getenv(drainVariable) != "" {
		t.Run("its node is drained", func(t *testing.T) {
			drain := func(o *nomad.DrainOptions) {
				_, err := world.nomad.Nodes().UpdateDrainOpts(alloc.NodeID, o, nil)
				must.NoError(t, err)
			}
			t.Cleanup(func() {
				drain(&nomad.DrainOptions{MarkEligible: true})
				world.allWell(t, time.Minute)
			})
			drain(&nomad.DrainOptions{DrainSpec: &nomad.DrainSpec{Deadline: time.Second}})
			var moved workload
			eventually(t, 90*time.Second, func() error {
				list := world.machines(t)
				if len(list) != 1 || list[0].node == guest.node {
					return fmt.Errorf("the virtual machine has not moved: %v", list)
				}
				moved = list[0]
				return nil
			})
			must.NotEq(t, guest.v4, moved.v4)
			proxy = world.workload(t, "voting-app/http-proxy", "aws1") // which may have moved as well
			calls(moved)
		})
	}

	t.Run("QEMU runs by raw_exec", func(t *testing.T) {
		text := altered(t, world.file(t, "jobs/voting/vm/voting-vm.nomad.hcl"),
			`driver = "qemu"`, `driver = "raw_exec"`,
			`image_path = "local/disk"`, `command = "qemu-system-x86_64"`,
			`"-cpu", "max",`, fmt.Sprintf(`"-machine", "type=pc,accel=tcg", "-cpu", "max", "-nographic", %q, %q, %q, %q,`,
				"-netdev", "tap,id=sif,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=sif,mac=02:51:f0:00:00:01"))
		r := world.sif(t, "job", "run", write(t, "voting-vm.nomad.hcl", text))
		must.Zero(t, r.code, must.Sprint(r.stdout, r.stderr))
		guest, _ := world.machine(t)
		calls(guest)
	})
}

// machines returns the running virtual machines of the test's job.
func (f *fabricUnderTest) machines(t *testing.T) []workload {
	t.Helper()
	allocs, _, err := f.nomad.Jobs().Allocations(machineJob, false, nil)
	must.NoError(t, err)
	var list []workload
	for _, n := range f.status(t).Nodes {
		for _, ep := range n.Endpoints {
			runs := func(a *nomad.AllocationListStub) bool {
				return a.ID == ep.Endpoint && a.DesiredStatus == nomad.AllocDesiredStatusRun && a.ClientStatus == nomad.AllocClientStatusRunning
			}
			if slices.ContainsFunc(allocs, runs) {
				list = append(list, workload{alloc: ep.Endpoint, zone: n.Zone, node: n.Node, service: ep.Service, v4: ep.IPv4, v6: ep.IPv6})
			}
		}
	}
	return list
}

// machine returns the only virtual machine, and its allocation.
func (f *fabricUnderTest) machine(t *testing.T) (workload, *nomad.Allocation) {
	t.Helper()
	var list []workload
	eventually(t, 20*time.Second, func() error {
		if list = f.machines(t); len(list) != 1 {
			return fmt.Errorf("%d virtual machines run", len(list))
		}
		return nil
	})
	must.Eq(t, fabric.Ref{Domain: "voting-app", Name: "result-svc"}, list[0].service)
	alloc, _, err := f.nomad.Allocations().Info(list[0].alloc, nil)
	must.NoError(t, err)
	return list[0], alloc
}

// reset resets a guest, as its owner does by QEMU's monitor.
func (f *fabricUnderTest) reset(t *testing.T, guest workload) {
	t.Helper()
	sockets, err := filepath.Glob("/var/lib/sif-lab/" + f.Name + "/" + guest.node + "/nomad/alloc/" + guest.alloc + "/*/qm.sock")
	must.NoError(t, err)
	must.Len(t, 1, sockets)
	conn, err := net.Dial("unix", sockets[0])
	must.NoError(t, err)
	defer conn.Close()
	must.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	// QEMU forgets a command whose sender has gone: the next prompt says that it was carried out.
	said := ""
	prompts := func(n int) {
		for b := make([]byte, 100); strings.Count(said, "\n(qemu)") < n; {
			size, err := conn.Read(b)
			must.NoError(t, err, must.Sprint(said))
			said += string(b[:size])
		}
	}
	prompts(1)
	_, err = io.WriteString(conn, "system_reset\n")
	must.NoError(t, err)
	prompts(2)
}

// silent waits until a guest does not answer any more.
func (f *fabricUnderTest) silent(t *testing.T, from, guest workload) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		conn, err := dial(from.netns, netip.AddrPortFrom(guest.v4, 8080), 500*time.Millisecond)
		if err != nil {
			return nil
		}
		conn.Close()
		return errors.New("the guest still answers")
	})
}

// asks makes an HTTP request from a workload's namespace until it succeeds, and returns which
// instance answered.
func (f *fabricUnderTest) asks(t *testing.T, from workload, to netip.AddrPort, path string, patience time.Duration) instance {
	t.Helper()
	var answer struct{ Instance instance }
	eventually(t, patience, func() error {
		conn, err := dial(from.netns, to, time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
		resp, err := client.Get("http://" + to.String() + path)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answers %s: %s", to, resp.Status, body)
		}
		return json.Unmarshal(body, &answer)
	})
	return answer.Instance
}
