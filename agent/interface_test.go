// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/testhost"
)

func TestVeth(t *testing.T) {
	testhost.RequireRoot(t)
	node, workload := newNamespace(t), newNamespace(t)
	v4, v6 := netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("fd5f::2")
	must.NoError(t, node.Do(func(ns.NetNS) error {
		must.NoError(t, kernel.Set(router(fabric.Node{})))
		for range 2 { // the second time there is something to replace
			must.NoError(t, removeVeth("sif0123456789a"))
			must.NoError(t, vacate("eth0", workload))
			pair, err := makeVeth("sif0123456789a", "eth0", workload, 1376)
			must.NoError(t, err)
			must.NoError(t, pair.raiseHost(v4, v6))
			must.NoError(t, pair.raiseWorkload("eth0", workload, v4, v6))
			host, err := netlink.LinkByName(pair.host)
			must.NoError(t, err)
			must.Eq(t, 1376, host.Attrs().MTU)
			must.Eq(t, pair.hostIndex, host.Attrs().Index)
			must.Eq(t, pair.hostMAC, host.Attrs().HardwareAddr)
		}
		// What a node exposes on loopback, its interfaces lead there; nothing else changes.
		pair := veth{host: "sif0123456789a", mtu: 1376, loopback: true}
		pair.hostMAC, pair.peerMAC = macs(pair.host)
		for _, want := range [][]string{{"net.ipv4.conf.sif0123456789a.route_localnet: was 0, set to 1"}, nil} {
			changes, err := kernel.Repair(kernel.State{Interfaces: []kernel.Interface{pair.hostSide(v4, v6)}})
			must.NoError(t, err)
			var said []string
			for _, c := range changes {
				said = append(said, c.String())
			}
			must.Eq(t, want, said)
		}
		addresses, err := netlink.AddrList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: pair.host}}, netlink.FAMILY_V6)
		must.NoError(t, err)
		must.Len(t, 1, addresses)
		must.Eq(t, "fe80::1/128", addresses[0].IPNet.String())
		return nil
	}))
	must.NoError(t, workload.Do(func(ns.NetNS) error {
		inside, err := netlink.LinkByName("eth0")
		must.NoError(t, err)
		must.Eq(t, 1376, inside.Attrs().MTU)
		for _, l := range []struct{ network, address string }{{"udp4", "100.64.0.9:1"}, {"udp6", "[fd5f::9]:1"}, {"udp4", "169.254.1.1:1"}, {"udp6", "[fe80::1%eth0]:1"}} {
			c, err := net.Dial(l.network, testhost.Zoned(l.address))
			must.NoError(t, err)
			must.True(t, slices.Contains([]netip.Addr{v4, v6}, netip.MustParseAddrPort(c.LocalAddr().String()).Addr()))
			must.NoError(t, c.Close())
		}
		return nil
	}))
	must.NoError(t, vacate("eth0", workload))
	must.NoError(t, node.Do(func(ns.NetNS) error {
		must.NoError(t, removeVeth("sif0123456789a"))
		index, err := linkIndex("sif0123456789a")
		must.Zero(t, index)
		return err
	}))
}

func newNamespace(t testing.TB) ns.NetNS {
	namespace, err := testutils.NewNS()
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, namespace.Close())
		must.NoError(t, testutils.UnmountNS(namespace))
	})
	return namespace
}

// makeVeth makes the pair of a container.
func makeVeth(host, ifName string, namespace ns.NetNS, mtu int) (veth, error) {
	v := veth{host: host, mtu: mtu}
	v.hostMAC, v.peerMAC = macs(host)
	return v.make(ifName, namespace)
}
