// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package health

import (
	"context"
	"net/netip"
	"os/exec"
	"sync"
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
			Node: fabric.NodeID{Zone: "z1", Name: []string{"a", "b"}[i]}, Full: 1420, Space: spaces[1-i].Path(),
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
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for i := range spaces {
		own, far := node(i), node(1-i)
		run(i, "link", "set", "lo", "up")
		connect(i)
		p := New(own.IPv4, own.IPv6)
		p.Follow(View{Processors: []Target{far}, Spaces: []string{spaces[i].Path()}, Known: map[netip.Addr]bool{far.IPv4: true, far.IPv6: true}})
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
	await("up", both(api.WayUp))
	run(1, "link", "set", "eth0", "down")
	await("down", both(api.WayDown))
	connect(1)
	await("up again", both(api.WayUp))
	await("MTU", func(w api.WayStatus) bool { return w.IPv4.State == api.WayMTU || w.IPv6.State == api.WayMTU })
}
