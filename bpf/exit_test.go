// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// newExit makes an exit of the node: what has the mark is led there, and behind it is a host
// outside that forwards.
func (n *node) newExit(name string, mark, table string) *workload {
	n.t.Helper()
	w := &workload{t: n.t, host: "exit" + name, v4: bank4, v6: bank6}
	here, err := netns.Get()
	must.NoError(n.t, err)
	defer here.Close()
	w.ns, err = netns.New() // moves the thread into it
	must.NoError(n.t, err)
	must.NoError(n.t, netns.Set(here))
	n.t.Cleanup(func() { _ = w.ns.Close() })
	must.NoError(n.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: w.host, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}},
		PeerName: "eth0", PeerHardwareAddr: net.HardwareAddr{2, 0, 0, 0, 2, 1}, PeerNamespace: netlink.NsFd(w.ns)}))
	l, err := netlink.LinkByName(w.host)
	must.NoError(n.t, err)
	w.index = uint32(l.Attrs().Index)
	script(n.t, `
		ip link set $DEV up
		sysctl -qw net.ipv4.conf.$DEV.rp_filter=0 net.ipv4.conf.all.rp_filter=0
		for v in 4 6; do
			ip -$v rule add fwmark $MARK lookup $TABLE
			ip -$v route add default dev $DEV table $TABLE
		done
		for a in 198.51.100.7 198.51.100.99 2001:db9::7 2001:db9::99; do
			ip neigh add $a lladdr 02:00:00:00:02:01 dev $DEV nud permanent
		done`, "DEV="+w.host, "MARK="+mark, "TABLE="+table)
	w.inside(func() {
		script(n.t, `
			sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
			ip link set lo up
			ip link set eth0 up
			ip addr add 198.51.100.7/32 dev eth0
			ip addr add 2001:db9::7/128 dev eth0 nodad
			ip neigh add 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
			ip neigh add fe80::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
			ip route add default via 169.254.1.1 dev eth0 onlink
			ip -6 route add default via fe80::1 dev eth0 onlink`)
	})
	for _, prefix := range []string{"198.51.100.0/24", "2001:db9::/32"} {
		must.NoError(n.t, n.PutExternal(External{netip.MustParsePrefix(prefix), 9, 0}))
		must.NoError(n.t, n.PutExternal(External{netip.MustParsePrefix(prefix), 9, w.index}))
	}
	w.serve(":443")
	return w
}

// established returns the connections of a port, in a namespace.
func (w *workload) established(t *testing.T) (n int) {
	w.inside(func() {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			list, err := netlink.SocketDiagTCP(family)
			must.NoError(t, err)
			for _, s := range list {
				if s.State == netlink.TCP_ESTABLISHED && s.ID.SourcePort == 443 {
					n++
				}
			}
		}
	})
	return n
}

// Flows to externals leave by the exit of their endpoint, or by the node, and keep it.
func TestExits(t *testing.T) { byMechanism(t, testExits) }

func testExits(t *testing.T, by Mechanism) {
	n := newNode(t, by)
	one, two, own := n.newExit("one", "0x100", "5100"), n.newExit("two", "0x101", "5101"), n.newExit("own", "0x1", "5001")
	exit := func(mark uint32) {
		must.NoError(t, n.PutEndpoint(Endpoint{Interface: n.client.index, Identity: 1, IPv4: addr(n.client.v4), IPv6: addr(n.client.v6), Exit: mark, Reject: true}))
	}
	zone, byNode := rule(6, 443, 443, 1), rule(6, 443, 443, 1)
	byNode.ExitNode = true
	echo4 := []Rule{zone, rule(17, 33434, 33434, 1), rule(1, 8, 8, 1), rule(58, 128, 128, 1)}
	addresses := []string{bank4 + ":443", "[" + bank6 + "]:443"}

	_, err := n.client.dial(addresses[0])
	must.Error(t, err, must.Sprint("before any rule"))
	must.NoError(t, n.ReplacePair(Pair{1, 9}, echo4))
	_, err = n.client.dial(addresses[0])
	must.Error(t, err, must.Sprint("without an exit"))

	must.NoError(t, n.SetExits([]uint32{exitOne, exitTwo}))
	exit(exitOne)
	var old []net.Conn
	for _, a := range addresses {
		c, err := n.client.dial(a)
		must.NoError(t, err)
		must.NoError(t, transfer(c, 4<<20))
		old = append(old, c)
	}
	must.Eq(t, 2, one.established(t))
	n.traceroute(bank4[:len(bank4)-1] + "99:33434")
	n.traceroute("[2001:db9::99]:33434")

	exit(exitTwo)
	for i, a := range addresses {
		c, err := n.client.dial(a)
		must.NoError(t, err)
		must.NoError(t, echo(c))
		must.NoError(t, echo(old[i]), must.Sprint("by the exit from before"))
	}
	must.Eq(t, 2, one.established(t))
	must.Eq(t, 2, two.established(t))

	// Who loses an exit is told.
	must.NoError(t, n.SetExits([]uint32{exitTwo}))
	for _, c := range old {
		must.NoError(t, c.SetDeadline(time.Now().Add(3*time.Second)))
		_, err := c.Write([]byte("hello"))
		must.NoError(t, err)
		_, err = io.ReadAll(c)
		must.ErrorIs(t, err, unix.ECONNRESET)
	}

	must.NoError(t, n.ReplacePair(Pair{1, 9}, []Rule{byNode}))
	for _, a := range addresses {
		c, err := n.client.dial(a)
		must.NoError(t, err)
		must.NoError(t, echo(c))
	}
	must.Eq(t, 2, own.established(t))

	// An answer must not come from elsewhere.
	must.NoError(t, n.DeleteExternal(External{Prefix: netip.MustParsePrefix("198.51.100.0/24"), Interface: own.index}))
	_, err = n.client.dial(addresses[0])
	must.Error(t, err)
}

// traceroute sends a datagram that a router outside does not forward any more, and expects its
// word.
func (n *node) traceroute(address string) {
	n.t.Helper()
	must.NoError(n.t, n.ReplacePair(Pair{1, 9}, []Rule{rule(6, 443, 443, 1), rule(17, 33434, 33434, 1)}))
	err := n.client.send(address, func(fd int) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1), unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, 2),
			ignoring(unix.ENOPROTOOPT, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)),
			ignoring(unix.ENOPROTOOPT, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 2)))
	})
	must.ErrorIs(n.t, err, unix.EHOSTUNREACH, must.Sprint(address))
}

func ignoring(what, err error) error {
	if errors.Is(err, what) {
		return nil
	}
	return err
}

// send sends a datagram from a socket with options and returns the error that its answer is.
func (w *workload) send(address string, options func(fd int) error) (err error) {
	w.t.Helper()
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		return errors.Join(c.Control(func(fd uintptr) { set = options(int(fd)) }), set)
	}}
	w.inside(func() {
		var c net.Conn
		if c, err = d.Dial("udp", address); err != nil {
			return
		}
		defer c.Close()
		if _, err = c.Write([]byte("question")); err != nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(time.Second))
		_, err = c.Read(make([]byte, 16))
	})
	return err
}

// A workload reaches ports of its node, and ports of its node that are another workload's; the node
// reaches an endpoint as whoever calls a published port does. All by contract.
func TestNodeAndItsPorts(t *testing.T) { byMechanism(t, testNodeAndItsPorts) }

func testNodeAndItsPorts(t *testing.T, by Mechanism) {
	n := newNode(t, by)
	script(t, `
		ip addr add 192.0.2.1/32 dev lo
		ip addr add 2001:db8::1/128 dev lo nodad
		ip addr add fe80::1/64 dev sifclient nodad
		nft -f - <<-'.'
			table inet published {
				chain forwarded {
					type nat hook prerouting priority dstnat
					ip daddr 192.0.2.1 tcp dport 443 dnat ip to 100.64.0.11:8080
					ip6 daddr 2001:db8::1 tcp dport 443 dnat ip6 to [fd5f::11]:8080
				}
				chain local {
					type nat hook output priority -100
					ip daddr 192.0.2.1 tcp dport 443 dnat ip to 100.64.0.11:8080
					ip6 daddr 2001:db8::1 tcp dport 443 dnat ip6 to [fd5f::11]:8080
				}
			}
		.`)
	n.client.inside(func() { script(t, "ip -6 route add fe80::1/128 dev eth0 src $V6", "V6="+n.client.v6) })
	here := &workload{t: t}
	var err error
	here.ns, err = netns.Get()
	must.NoError(t, err)
	defer here.ns.Close()
	here.serve("169.254.1.1:8500")
	here.serve("[fe80::1%sifclient]:8500")

	ports := []string{"192.0.2.1:443", "[2001:db8::1]:443"}
	nodes := []string{"169.254.1.1:8500", "[fe80::1%eth0]:8500"}
	refused := func(w *workload, addresses []string) {
		t.Helper()
		for _, a := range addresses {
			_, err := w.dial(a)
			must.Error(t, err, must.Sprint(a))
		}
	}
	reached := func(w *workload, addresses []string) {
		t.Helper()
		for _, a := range addresses {
			c, err := w.dial(a)
			must.NoError(t, err, must.Sprint(a))
			must.NoError(t, transfer(c, 1<<20), must.Sprint(a))
		}
	}
	refused(n.client, nodes)
	for _, a := range []string{"169.254.1.1/32", "fe80::1/128"} {
		must.NoError(t, n.PutExternal(External{netip.MustParsePrefix(a), 9, 0}))
	}
	refused(n.client, nodes)
	must.NoError(t, n.ReplacePair(Pair{1, 9}, []Rule{rule(6, 8500, 8500, 1)}))
	reached(n.client, nodes)

	refused(n.client, ports)
	n.allow()
	refused(n.client, ports)
	for i, to := range []string{"100.64.0.11:8080", "[fd5f::11]:8080"} {
		must.NoError(t, n.PutPublished(Published{6, netip.MustParseAddrPort(ports[i]), netip.MustParseAddrPort(to)}))
	}
	reached(n.client, ports)
	must.NoError(t, n.ReplacePair(Pair{1, 2}, nil))
	refused(n.client, ports)

	refused(here, ports)
	for _, a := range []string{"192.0.2.0/24", "2001:db8::/64"} {
		must.NoError(t, n.PutExternal(External{netip.MustParsePrefix(a), 10, FromNode}))
	}
	refused(here, ports)
	must.NoError(t, n.ReplacePair(Pair{10, 2}, []Rule{rule(6, 8080, 8080, 1)}))
	reached(here, ports)
}
