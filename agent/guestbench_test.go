// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/agent/guest"
	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/wellknown"
)

// BenchmarkRealGuest measures, in turn, a container and an emulated guest on one node, joined as
// the fabric does it with policy in between, and the same guest on a Linux bridge with the
// container. Each iteration is a round of both. The metrics are medians of rounds; ratios are
// fabric to bridge.
func BenchmarkRealGuest(b *testing.B) {
	i := guestImage(b)
	r := newRoom(b, "")
	boot(b, i, r.workload, wellknown.GuestTap)
	bridge := newNamespace(b)
	beside := newNamespace(b)
	onBridge(b, r, bridge, beside)
	boot(b, i, bridge, wellknown.GuestTap)
	ways := []*way{{name: "fabric", space: r.container}, {name: "bridge", space: beside}}
	for _, w := range ways {
		eventually(b, w.space, netip.AddrPortFrom(r.guest.IPv4, 9005), "", "web-0a1b2c3d <nil>")
	}
	for b.Loop() {
		for _, w := range ways {
			w.measure(b, r.guest.IPv4)
		}
	}
	b.ReportMetric(0, "ns/op")
	for k, metric := range []string{"to-guest", "from-guest", "latency"} {
		unit := []string{"Mb/s", "Mb/s", "us"}[k]
		values := [2]float64{}
		for j, w := range ways {
			values[j] = median(w.rounds[k])
			b.ReportMetric(values[j], w.name+"-"+metric+"-"+unit)
		}
		b.ReportMetric(values[0]/values[1], metric+"-ratio")
	}
}

// onBridge makes a bridge with a guest's tap interface and a container on it, of the same MTU. The
// container is the gateway that the guest is told.
func onBridge(b *testing.B, r *room, bridge, beside ns.NetNS) {
	mtu := fmt.Sprint(r.a.workloadMTU())
	for _, command := range []struct {
		in   ns.NetNS
		text string
	}{
		{bridge, "ip tuntap add tap0 mode tap vnet_hdr; ip link add br0 type bridge; ip link add c0 mtu $MTU type veth peer name eth0 mtu $MTU netns $BESIDE; " +
			"for i in tap0 c0; do ip link set $i mtu $MTU master br0 up; done; ip link set br0 mtu $MTU up"},
		{beside, "ip link set lo up; ip link set eth0 up; ip addr add 100.64.0.3/32 dev eth0; ip addr add 169.254.1.1/32 dev eth0; ip route add 100.64.0.2/32 dev eth0 src 100.64.0.3"},
	} {
		cmd := exec.Command("nsenter", "--net="+command.in.Path(), "sh", "-ec", command.text)
		cmd.Env = append(os.Environ(), "MTU="+mtu, "BESIDE="+filepath.Base(beside.Path()))
		out, err := cmd.CombinedOutput()
		must.NoError(b, err, must.Sprintf("%s: %s", command.text, out))
	}
	must.NoError(b, bridge.Do(func(ns.NetNS) error {
		answers, err := guest.Open(wellknown.GuestTap, r.a.told(r.guest))
		must.NoError(b, err)
		b.Cleanup(func() { _ = answers.Close() })
		return nil
	}))
}

// way is a way between a container and a guest, and what was measured of it in each round: Mb/s to
// the guest, Mb/s from it, us of a request of 1 KiB.
type way struct {
	name   string
	space  ns.NetNS
	rounds [3][]float64
}

const stretch = time.Second // of one throughput

func (w *way) measure(b *testing.B, address netip.Addr) {
	connect := func(port uint16) net.Conn {
		c, err := dial(w.space, netip.AddrPortFrom(address, port), 10*time.Second)
		must.NoError(b, err)
		must.NoError(b, c.SetDeadline(time.Now().Add(time.Minute)))
		return c
	}
	buffer := make([]byte, 256<<10)
	for k, port := range []uint16{9001, 9002} {
		c := connect(port)
		move := c.Write
		if port == 9002 {
			move = c.Read
		}
		bytes := 0
		began := time.Now()
		for time.Since(began) < stretch {
			n, err := move(buffer)
			must.NoError(b, err)
			bytes += n
		}
		w.rounds[k] = append(w.rounds[k], float64(bytes)*8/1e6/time.Since(began).Seconds())
		must.NoError(b, c.Close())
	}
	c := connect(9003)
	defer c.Close()
	var took []float64
	for range 300 {
		began := time.Now()
		_, err := c.Write(buffer[:1024])
		must.NoError(b, err)
		_, err = io.ReadFull(c, buffer[:1024])
		must.NoError(b, err)
		took = append(took, float64(time.Since(began).Nanoseconds())/1e3)
	}
	w.rounds[2] = append(w.rounds[2], median(took))
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

// BenchmarkGuestCost attaches a hundred endpoints, as containers and as virtual machines, and
// reports what one of the latter costs the agent beyond one of the former: the time of its part of
// ADD, and memory of the process. guest-ms is the time for the tap interface, the programs and the
// answers of one.
func BenchmarkGuestCost(b *testing.B) {
	testhost.RequireRoot(b)
	const count = 100
	node, dir := newNamespace(b), filepath.Join(b.TempDir(), "bpf")
	_, err := bpf.MountBPFFS(dir)
	must.NoError(b, err)
	b.Cleanup(func() { must.NoError(b, unix.Unmount(dir, 0)) })
	a, _, _ := hookedAgent(b)
	a.node.Config.BPFDir = dir
	d, err := bpf.Open(filepath.Join(dir, "sif"), bpf.Options{})
	must.NoError(b, err)
	defer d.Close()
	a.data = d
	spaces := make([]ns.NetNS, count)
	for i := range spaces {
		spaces[i] = newNamespace(b)
	}
	for b.Loop() {
		var resident [2]int
		var took []float64
		for k, vm := range []bool{false, true} {
			must.NoError(b, node.Do(func(ns.NetNS) error {
				before := residentMemory(b)
				var list []endpoint
				for i := range count {
					ep := endpoint{ID: fmt.Sprintf("%08x", i), VM: vm, Attachment: at(fmt.Sprint(i)), HostIf: fmt.Sprintf("sif%011x", i),
						IPv4: netip.AddrFrom4([4]byte{100, 64, 1, byte(i)}), IPv6: netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x5f, 15: byte(i)})}
					adding := &attachment{namespace: spaces[i], endpoint: ep}
					must.NoError(b, a.makeInterfaces(adding))
					ep = adding.endpoint
					_, err := a.attachPrograms(ep.HostIf)
					must.NoError(b, err)
					began := time.Now()
					if vm {
						_, err := a.joinGuest(ep, spaces[i])
						must.NoError(b, err)
					}
					must.NoError(b, adding.pair.raiseWorkload("eth0", spaces[i], ep.IPv4, ep.IPv6))
					if vm {
						must.NoError(b, a.answerGuest(ep, spaces[i]))
						took = append(took, float64(time.Since(began).Nanoseconds())/1e6)
					}
					list = append(list, ep)
				}
				resident[k] = residentMemory(b) - before
				for i, ep := range list {
					must.NoError(b, interfaceHook{a}.detach(b.Context(), &detachment{endpoint: ep, namespace: spaces[i]}))
				}
				return nil
			}))
		}
		b.ReportMetric(median(took), "guest-ms")
		b.ReportMetric(float64(resident[1]-resident[0])/count/1024, "guest-KiB")
	}
	b.ReportMetric(0, "ns/op")
}

// residentMemory returns the resident memory of this process, in bytes.
func residentMemory(b *testing.B) int {
	runtime.GC()
	text, err := os.ReadFile("/proc/self/statm")
	must.NoError(b, err)
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	must.NoError(b, err)
	return pages * os.Getpagesize()
}
