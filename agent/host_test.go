// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/testhost"
)

// TestHostIsRepaired changes the interface of an endpoint, on the node and in the workload, and
// leaves alone one that is being attached.
func TestHostIsRepaired(t *testing.T) {
	testhost.RequireRoot(t)
	node, workload := newNamespace(t), newNamespace(t)
	a, _, _ := hookedAgent(t)
	a.node.Config.BPFDir = "/sys/fs/bpf"
	a.node.Config.CNI = &config.CNI{Socket: filepath.Join(t.TempDir(), "cni.sock")}
	must.NoError(t, os.WriteFile(a.node.Config.CNI.Socket, nil, 0o600))
	run := func(in ns.NetNS, command string) {
		t.Helper()
		out, err := exec.Command("nsenter", "--net="+in.Path(), "sh", "-ec", command).CombinedOutput()
		must.NoError(t, err, must.Sprintf("%s: %s", command, out))
	}
	must.NoError(t, node.Do(func(ns.NetNS) error {
		ep := endpoint{ID: "a", Attachment: at("c1"), HostIf: "sif0123456789a", IPv4: netip.MustParseAddr("100.64.0.2"), IPv6: netip.MustParseAddr("fd5f::2")}
		pair, err := makeVeth(ep.HostIf, "eth0", workload, a.workloadMTU())
		must.NoError(t, err)
		ep.HostIndex = pair.hostIndex
		must.NoError(t, a.endpoints.put(ep)())

		unlock := a.locks.Lock(ep.Attachment)
		must.NoError(t, a.repairHost())
		run(node, "ip link show dev "+ep.HostIf+" | grep -q DOWN") // it has no programs yet
		must.NoError(t, pair.raiseHost(ep.IPv4, ep.IPv6))
		must.NoError(t, pair.raiseWorkload("eth0", workload, ep.IPv4, ep.IPv6))
		unlock()
		works := func() {
			t.Helper()
			must.NoError(t, a.repairHost())
			must.NoError(t, a.repairWorkloads())
			must.SliceEmpty(t, a.findings())
			state := router(a.node.Self)
			state.Interfaces = append(state.Interfaces, a.pairOf(ep).hostSide(ep.IPv4, ep.IPv6))
			changes, err := kernel.Repair(state)
			must.NoError(t, err)
			must.SliceEmpty(t, changes)
			// The kernel takes up to a second to let packets into an interface that came up.
			run(workload, "ping -c 1 -w 4 169.254.1.1; ip link show dev eth0 | grep -q 'mtu 1376'")
		}
		works()
		for _, command := range []string{
			"ip link set dev sif0123456789a down; sysctl -q net.ipv4.ip_forward=0",
			// Kernels before 6.2 rename only an interface that is down.
			"ip link set dev sif0123456789a name strange || { ip link set dev sif0123456789a down; ip link set dev sif0123456789a name strange; }; ip addr del 169.254.1.1/32 dev lo",
			"sysctl -q net.ipv6.conf.all.disable_ipv6=1; ip link set dev sif0123456789a address 02:00:00:00:00:01",
		} {
			run(node, command)
			works()
		}
		for _, command := range []string{"ip link set dev eth0 down", "ip addr flush dev eth0; ip link set dev eth0 mtu 1300", "ip neigh flush dev eth0 nud permanent"} {
			run(workload, command)
			works()
		}
		run(node, "ip rule add pref 5 to 100.64.0.2 lookup 77; ip route add blackhole default table 77")
		found := a.findings()
		must.Len(t, 1, found)
		must.StrContains(t, found[0], "packets to endpoint a at 100.64.0.2 do not reach its interface sif0123456789a")
		run(node, "ip rule del pref 5")
		must.NoError(t, os.Remove(a.node.Config.CNI.Socket))
		found = a.findings()
		must.Len(t, 1, found)
		must.StrContains(t, found[0], "restart the agent")
		return removeVeth(ep.HostIf)
	}))
}

// The programs of an endpoint come back however they are attached. Where others keep them away, the
// interface is down until they go.
func TestProgramsComeBack(t *testing.T) {
	testhost.RequireRoot(t)
	_, missing, err := bpf.Probe()
	must.NoError(t, err)
	must.SliceEmpty(t, missing)
	for by, row := range map[bpf.Mechanism]struct{ takeOff, inTheWay, remove string }{
		bpf.TCX: {takeOff: "bpftool link detach pinned $BPF/sif/links/$IF/to_workload"},
		bpf.Clsact: {takeOff: "tc qdisc del dev $IF clsact",
			inTheWay: "tc filter del dev $IF egress prio 1; tc filter add dev $IF egress prio 1 protocol all u32 match u32 0 0 classid 1:1",
			remove:   "tc filter del dev $IF egress prio 1"},
	} {
		t.Run(string(by), func(t *testing.T) {
			node, workload, dir := newNamespace(t), newNamespace(t), filepath.Join(t.TempDir(), "bpf")
			_, err := bpf.MountBPFFS(dir)
			must.NoError(t, err)
			t.Cleanup(func() { must.NoError(t, unix.Unmount(dir, 0)) })
			a, _, _ := hookedAgent(t)
			a.node.Config.BPFDir = dir
			d, err := bpf.Open(filepath.Join(dir, "sif"), bpf.Options{Mechanism: by})
			if errors.Is(err, ebpf.ErrNotSupported) {
				t.Skip(err)
			}
			must.NoError(t, err)
			defer d.Close()
			a.data = d
			run := func(command string) error {
				command = strings.NewReplacer("$BPF", dir, "$IF", "sif0123456789a").Replace(command)
				out, err := exec.Command("nsenter", "--net="+node.Path(), "sh", "-ec", command).CombinedOutput()
				if err != nil {
					err = fmt.Errorf("%s: %w: %s", command, err, out)
				}
				return err
			}
			up, down := "ip link show dev $IF | grep -q ,UP", "! ip link show dev $IF | grep -q ,UP"
			must.NoError(t, node.Do(func(ns.NetNS) error {
				ep := endpoint{ID: "a", Attachment: at("c1"), HostIf: "sif0123456789a", IPv4: netip.MustParseAddr("100.64.0.2"), IPv6: netip.MustParseAddr("fd5f::2")}
				pair, err := makeVeth(ep.HostIf, "eth0", workload, a.workloadMTU())
				must.NoError(t, err)
				ep.HostIndex = pair.hostIndex
				must.NoError(t, a.endpoints.put(ep)())
				must.NoError(t, a.repairHost())
				must.NoError(t, run(up))
				must.NoError(t, d.Guarded(ep.HostIf))

				must.NoError(t, run(row.takeOff))
				must.ErrorIs(t, d.Guarded(ep.HostIf), bpf.ErrNotGuarded)
				must.NoError(t, a.repairHost())
				must.NoError(t, d.Guarded(ep.HostIf))
				must.NoError(t, run(up))
				if row.inTheWay != "" {
					must.NoError(t, run(row.inTheWay))
					must.ErrorContains(t, a.repairHost(), "endpoint a is cut off, its interface sif0123456789a was set down")
					must.NoError(t, run(down))
					must.NoError(t, run(row.remove))
					must.NoError(t, a.repairHost())
					must.NoError(t, d.Guarded(ep.HostIf))
					must.NoError(t, run(up))
					must.NoError(t, run("ip route show dev $IF | grep -q 100.64.0.2; ip neigh show dev $IF | grep -q PERMANENT"))
				}
				return a.dismantle(ep.HostIf)
			}))
		})
	}
}

// BenchmarkIdle looks once at a node with 200 endpoints where nothing has changed, as the agent
// does every 5 s. cpu-ms/op is the processor time of this process, the kernel's for it included.
func BenchmarkIdle(b *testing.B) {
	testhost.RequireRoot(b)
	for _, by := range []bpf.Mechanism{bpf.TCX, bpf.Clsact} {
		b.Run(string(by), func(b *testing.B) { benchmarkIdle(b, by) })
	}
}

func benchmarkIdle(b *testing.B, by bpf.Mechanism) {
	const endpoints = 200
	node, dir := newNamespace(b), filepath.Join(b.TempDir(), "bpf")
	_, err := bpf.MountBPFFS(dir)
	must.NoError(b, err)
	b.Cleanup(func() { must.NoError(b, unix.Unmount(dir, 0)) })
	a, _, _ := hookedAgent(b)
	a.node.Config.BPFDir = dir
	a.node.Config.CNI = &config.CNI{Socket: filepath.Join(b.TempDir(), "cni.sock")}
	must.NoError(b, os.WriteFile(a.node.Config.CNI.Socket, nil, 0o600))
	d, err := bpf.Open(filepath.Join(dir, "sif"), bpf.Options{Mechanism: by})
	if errors.Is(err, ebpf.ErrNotSupported) {
		b.Skip(err)
	}
	must.NoError(b, err)
	defer d.Close()
	a.data = d
	inside := func(do func()) { must.NoError(b, node.Do(func(ns.NetNS) error { do(); return nil })) }
	inside(func() {
		for i := range endpoints {
			workload := newNamespace(b)
			ep := endpoint{
				ID: fmt.Sprint(i), Attachment: at(fmt.Sprint(i)), HostIf: fmt.Sprintf("sif%011x", i),
				IPv4: netip.AddrFrom4([4]byte{100, 64, 0, byte(i)}), IPv6: netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x5f, 15: byte(i)}),
			}
			pair, err := makeVeth(ep.HostIf, "eth0", workload, a.workloadMTU())
			must.NoError(b, err)
			ep.HostIndex = pair.hostIndex
			must.NoError(b, a.endpoints.put(ep)())
			must.NoError(b, pair.raiseWorkload("eth0", workload, ep.IPv4, ep.IPv6))
		}
		must.NoError(b, a.repairHost())
		for range endpoints/namespacesAtOnce + 1 {
			must.NoError(b, a.repairWorkloads()) // it searches for a namespace only once
		}
	})
	for _, part := range []struct {
		name string
		do   func()
	}{
		{"host", func() { must.NoError(b, a.repairHost()) }},
		{"workloads", func() { must.NoError(b, a.repairWorkloads()) }},
		{"findings", func() { must.SliceEmpty(b, a.findings()) }},
		{"sweep", func() { a.sweep(b.Context()) }},
	} {
		// Each part is a goroutine of its own.
		b.Run(part.name, func(b *testing.B) {
			inside(func() {
				part.do()
				before := processorTime(b)
				for b.Loop() {
					part.do()
				}
				b.ReportMetric(float64((processorTime(b)-before).Nanoseconds())/1e6/float64(b.N), "cpu-ms/op")
			})
		})
	}
	must.Len(b, endpoints, a.endpoints.all())
	inside(func() {
		for _, ep := range a.endpoints.all() {
			must.NoError(b, a.dismantle(ep.HostIf))
		}
	})
}

// processorTime returns the processor time that this process has used.
func processorTime(t testing.TB) time.Duration {
	var r unix.Rusage
	must.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &r))
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// TestEndpointWithoutInterface: an agent that starts after the interface of an endpoint is gone
// knows no index of it, and detaches the endpoint.
func TestEndpointWithoutInterface(t *testing.T) {
	testhost.RequireRoot(t)
	a, _, _ := hookedAgent(t)
	must.NoError(t, newNamespace(t).Do(func(ns.NetNS) error {
		ep := endpoint{ID: "a", Attachment: at("c1"), HostIf: "sif0123456789a"}
		there, err := a.present(ep)
		must.NoError(t, err)
		must.False(t, there)
		must.NoError(t, a.endpoints.put(ep)())
		a.sweep(t.Context())
		must.SliceEmpty(t, a.endpoints.all())
		return nil
	}))
}
