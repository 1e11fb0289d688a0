// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/testhost"
)

// TestNodeInsideThePool gives a node a resolver, a gateway and an address of the fabric's pool.
func TestNodeInsideThePool(t *testing.T) {
	testhost.RequireRoot(t)
	space, err := testutils.NewNS()
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, space.Close())
		must.NoError(t, testutils.UnmountNS(space))
	})
	must.NoError(t, space.Do(func(ns.NetNS) error {
		c := &config.Config{Zone: "z1", Node: "w1", DataDir: t.TempDir(), DNS: &config.DNS{Upstream: []string{"100.100.2.136:53"}}}
		n := &Node{Config: c, Log: hclog.NewNullLogger()}
		n.Self.Ranges = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}
		out, err := exec.Command("sh", "-ec", `
			ip link set lo up; ip addr add 100.64.0.1/32 dev lo
			ip link add name eth0 type veth peer name far; ip link set dev eth0 up; ip link set dev far up
			ip addr add 192.0.2.2/24 dev eth0; ip addr add 100.70.0.2/24 dev eth0
			ip route add default via 100.70.0.1
			ip link add name sif0123456789a type veth peer name sif-x; ip addr add 100.64.0.2/32 dev sif0123456789a`).CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
		found, err := n.conflicts()
		must.NoError(t, err)
		must.Len(t, 3, found)
		for i, want := range []string{"the node's gateway 100.70.0.1", "the node's own address (on eth0) 100.70.0.2", "the node's resolver 100.100.2.136"} {
			must.StrContains(t, found[i], want+" lies in the fabric's pool 100.64.0.0/10")
		}
		must.ErrorContains(t, n.refuse(), "node z1/w1 does not join: the node's gateway 100.70.0.1")
		n.Report("pools", found)
		must.Len(t, 3, n.Degraded())
		n.Report("pools", nil)
		must.SliceEmpty(t, n.Degraded())
		n.Self.Ranges = []netip.Prefix{netip.MustParsePrefix("100.80.0.0/16")}
		must.NoError(t, n.refuse())
		return nil
	}))
}

// TestContestedRepairs shows that what others change again and again is reported.
func TestContestedRepairs(t *testing.T) {
	var r repairs
	now := time.Now()
	change := []kernel.Change{{Kind: "sysctl", Subject: "net.ipv4.ip_forward"}, {Kind: "route", Subject: "a"}}
	r.add(now, change)
	must.MapEmpty(t, r.total()) // at the start
	r.begin()
	for i := range 3 {
		must.SliceEmpty(t, r.contested(now))
		r.add(now.Add(time.Duration(i)*5*time.Second), change[:1+i/2])
	}
	must.Eq(t, map[string]uint64{"sysctl": 3, "route": 1}, r.total())
	found := r.contested(now.Add(10 * time.Second))
	must.Len(t, 1, found)
	must.StrContains(t, found[0], "host: something on this node keeps changing sysctl net.ipv4.ip_forward: it was put back 3 times within a minute")
	must.SliceEmpty(t, r.contested(now.Add(2*time.Minute)))
}

// TestHostThatFails takes from a node the room on its disk and the address of its underlay.
func TestHostThatFails(t *testing.T) {
	disk := testhost.NewDisk(t, 16)
	n := &Node{Config: &config.Config{Zone: "z1", Node: "w1", DataDir: disk.Dir, Underlay: &config.Underlay{Address: "127.0.0.1"}}, Log: hclog.NewNullLogger()}
	must.SliceEmpty(t, n.lookAtHost())
	disk.Fill()
	n.Config.Underlay.Address = "192.0.2.77"
	found := n.lookAtHost()
	must.Len(t, 2, found)
	must.StrContains(t, found[0], disk.Dir+" has ")
	must.StrContains(t, found[0], "KiB free: make room there")
	must.StrHasPrefix(t, "the underlay address 192.0.2.77 is not an address of this machine", found[1])
	n.Report("host", found)
	must.StrHasPrefix(t, "host: /", n.Degraded()[0])
}
