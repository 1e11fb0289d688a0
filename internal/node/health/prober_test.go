// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package health

import (
	"context"
	"net/netip"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/testhost"
)

// Two nodes probe one another over a link of the kernel, whose MTU is too small, and which is cut
// and comes back.
func TestProbersOverALink(t *testing.T) {
	testhost.RequireRoot(t)
	testhost.RequireProgram(t, "ip")
	var spaces [2]ns.NetNS
	for i := range spaces {
		space, err := testutils.NewNS()
		must.NoError(t, err)
		t.Cleanup(func() {
			must.NoError(t, space.Close())
			must.NoError(t, testutils.UnmountNS(space))
		})
		spaces[i] = space
	}
	run := func(i int, args ...string) {
		t.Helper()
		out, err := exec.Command("nsenter", append([]string{"--net=" + spaces[i].Path(), "ip"}, args...)...).CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
	}
	node := func(i int) Target {
		return Target{
			Node: fabric.NodeID{Zone: "z1", Name: []string{"a", "b"}[i]}, Full: 1420, Space: spaces[1-i].Path(), Interface: "eth0",
			IPv4: netip.AddrFrom4([4]byte{100, 64, byte(i), 1}), IPv6: netip.AddrFrom16([16]byte{0xfd, 7: byte(i), 15: 1}),
		}
	}
	run(0, "link", "add", "eth0", "mtu", "1400", "type", "veth", "peer", "name", "eth0", "mtu", "1400", "netns", spaces[1].Path())
	connect := func(i int) {
		own, far := node(i), node(1-i)
		run(i, "link", "set", "eth0", "up")
		for f := range familyCount {
			a, to := own.addr(f), far.addr(f)
			run(i, "addr", "replace", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "eth0", "nodad")
			run(i, "route", "replace", netip.PrefixFrom(to, to.BitLen()).String(), "dev", "eth0")
		}
	}
	var probers [2]*Prober
	var changes atomic.Int32
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for i := range spaces {
		own, far := node(i), node(1-i)
		run(i, "link", "set", "lo", "up")
		connect(i)
		p := New(own.IPv4, own.IPv6)
		p.Follow(View{
			Processors: []Target{far}, Pulsed: []Target{far}, Spaces: []string{spaces[i].Path()},
			Known: map[netip.Addr][]string{far.IPv4: {"eth0"}, far.IPv6: {"eth0"}},
		})
		p.OnLife(func() { changes.Add(1) })
		probers[i] = p
		running.Go(func() { must.NoError(t, p.Run(ctx)) })
	}
	await := func(what string, is func(api.WayStatus) bool) {
		t.Helper()
		deadline := time.Now().Add(90 * time.Second)
		for {
			good := true
			var seen [2][]api.WayStatus
			for i, p := range probers {
				ways, err := p.Status()
				must.NoError(t, err)
				seen[i] = ways
				good = good && len(ways) == 1 && is(ways[0])
			}
			if good {
				return
			}
			must.True(t, time.Now().Before(deadline), must.Sprintf("%s: %+v", what, seen))
			time.Sleep(100 * time.Millisecond)
		}
	}
	both := func(s api.WayState) func(api.WayStatus) bool {
		return func(w api.WayStatus) bool { return w.IPv4.State == s && w.IPv6.State == s }
	}
	alive := func(want bool) {
		t.Helper()
		for i, p := range probers {
			deadline := time.Now().Add(30 * time.Second)
			for p.Live()[node(1-i).hop()] != want {
				must.True(t, time.Now().Before(deadline), must.Sprintf("prober %d: not %t", i, want))
				time.Sleep(10 * time.Millisecond)
			}
		}
	}
	alive(true)
	await("up", both(api.WayUp))
	run(1, "link", "set", "eth0", "down")
	cut := time.Now()
	alive(false)
	t.Logf("both were found dead after %s", time.Since(cut))
	must.Positive(t, changes.Load())
	await("down", both(api.WayDown))
	connect(1)
	alive(true)
	await("up again", both(api.WayUp))
	await("MTU", func(w api.WayStatus) bool { return w.IPv4.State == api.WayMTU || w.IPv6.State == api.WayMTU })
}

// Packets in the name of a node that come by another interface than its own are nobody's, whatever
// they contain: what follows from probes cannot be forged by a node to which another link leads.
func TestProbesCountByInterface(t *testing.T) {
	testhost.RequireRoot(t)
	testhost.RequireProgram(t, "ip")
	space, err := testutils.NewNS()
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, space.Close())
		must.NoError(t, testutils.UnmountNS(space))
	})
	forger, err := testutils.NewNS()
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, forger.Close())
		must.NoError(t, testutils.UnmountNS(forger))
	})
	own, far := targets("z1", 2)[0], targets("z1", 2)[1]
	script := func(in ns.NetNS, text string) {
		t.Helper()
		out, err := exec.Command("nsenter", "--net="+in.Path(), "sh", "-ec", text).CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
	}
	// The far node is behind l0; the forger has its addresses, and is behind l1.
	script(space, "ip link set lo up; sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0; "+
		"ip link add l0 type veth peer name x; ip link set l0 up; ip link set x up; "+
		"ip link add l1 type veth peer name eth0 netns "+forger.Path()+"; ip link set l1 up; "+
		"ip addr add 100.64.0.1/32 dev lo; ip addr add fd00::1/128 dev lo nodad; "+
		"ip route add 100.64.1.1 dev l1; ip -6 route add fd00:0:0:100::1 dev l1")
	script(forger, "ip link set lo up; ip link set eth0 up; ip addr add 100.64.1.1/32 dev lo; ip addr add fd00:0:0:100::1/128 dev lo nodad; "+
		"ip route add 100.64.0.1 dev eth0; ip -6 route add fd00::1 dev eth0")
	for _, by := range []string{"l0", "l1"} {
		t.Run(by, func(t *testing.T) {
			p := New(own.IPv4, own.IPv6)
			far.Space, far.Interface = space.Path(), by
			p.Follow(View{Processors: []Target{far}, Pulsed: []Target{far}, Spaces: []string{space.Path()}, Known: map[netip.Addr][]string{far.IPv4: {by}, far.IPv6: {by}}})
			other := New(far.IPv4, far.IPv6)
			own.Space, own.Interface = forger.Path(), ""
			other.Follow(View{Pulsed: []Target{own}, Spaces: []string{forger.Path()}, Known: map[netip.Addr][]string{own.IPv4: {""}, own.IPv6: {""}}})
			ctx, cancel := context.WithCancel(context.Background())
			var running sync.WaitGroup
			running.Go(func() { must.NoError(t, p.Run(ctx)) })
			running.Go(func() { must.NoError(t, other.Run(ctx)) })
			defer running.Wait()
			defer cancel()
			honest := by == "l1"
			deadline := time.Now().Add(20 * time.Second)
			for until := time.Now().Add(3 * time.Second); honest || time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
				answers, answered := p.Live()[far.hop()], other.Live()[own.hop()]
				if !honest {
					must.False(t, answers || answered)
				} else if answers && answered {
					break
				}
				must.True(t, time.Now().Before(deadline))
			}
		})
	}
}
