// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package listener_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/listener"
	"github.com/sif-project/sif/internal/testhost"
)

func TestAll(t *testing.T) {
	testhost.RequireRoot(t)
	namespace, err := testutils.NewNS()
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, namespace.Close())
		must.NoError(t, testutils.UnmountNS(namespace))
	})
	const node = "192.0.2.1"
	must.NoError(t, namespace.Do(func(ns.NetNS) error {
		for _, command := range []string{"link set lo up", "addr add " + node + "/32 dev lo", "addr add 2001:db8::1/128 dev lo nodad"} {
			if out, err := exec.Command("sh", "-c", "ip "+command).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %s", command, out)
			}
		}
		for _, l := range []struct{ network, address string }{
			{"tcp4", ":22"}, {"tcp", ":8301"}, {"tcp6", ":443"}, {"tcp4", node + ":4646"}, {"tcp4", "127.0.0.1:8500"},
		} {
			l, err := net.Listen(l.network, l.address)
			must.NoError(t, err)
			t.Cleanup(func() { l.Close() })
		}
		u, err := net.ListenPacket("udp4", ":51820")
		must.NoError(t, err)
		t.Cleanup(func() { u.Close() })
		connected, err := net.DialUDP("udp4", &net.UDPAddr{Port: 51821}, &net.UDPAddr{IP: net.ParseIP(node), Port: 1})
		must.NoError(t, err)
		t.Cleanup(func() { connected.Close() })
		open, err := net.Dial("tcp4", node+":4646")
		must.NoError(t, err)
		t.Cleanup(func() { open.Close() })
		own := open.LocalAddr().(*net.TCPAddr).AddrPort().Port()

		all, err := listener.All()
		must.NoError(t, err)
		for _, tc := range []struct {
			protocol fabric.Protocol
			at       string
			want     bool
		}{
			{fabric.TCP, node + ":22", true},
			{fabric.UDP, node + ":22", false},
			{fabric.TCP, "[2001:db8::1]:22", false},
			{fabric.TCP, node + ":8301", true}, // an IPv6 socket that receives IPv4 as well
			{fabric.TCP, "[2001:db8::1]:8301", true},
			{fabric.TCP, node + ":443", false}, // IPv6 only
			{fabric.TCP, "[2001:db8::1]:443", true},
			{fabric.TCP, node + ":4646", true},
			{fabric.TCP, "192.0.2.2:4646", false}, // another address
			{fabric.TCP, "0.0.0.0:4646", true},
			{fabric.TCP, node + ":8500", false}, // reachable from the node alone
			{fabric.TCP, "0.0.0.0:8500", false},
			{fabric.UDP, node + ":51820", true},
			{fabric.UDP, node + ":51821", false}, // it receives from its peer alone
			{fabric.TCP, fmt.Sprintf("%s:%d", node, own), false},
		} {
			var found *listener.Socket
			for _, s := range all {
				if s.Receives(tc.protocol, netip.MustParseAddrPort(tc.at)) {
					found = &s
				}
			}
			must.Eq(t, tc.want, found != nil, must.Sprintf("%s %s", tc.protocol, tc.at))
			if found != nil {
				must.StrContains(t, found.String(), fmt.Sprintf("(process %d) listens on %s port ", os.Getpid(), tc.protocol))
			}
		}
		return nil
	}))
}
