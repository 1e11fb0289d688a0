// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/testhost"
)

const datagramPort = 9000

// path is a client and a server between whom datagrams go.
type path struct {
	t              *testing.T
	client, server *workload
	nodes          []*Datapath
	spaces         []netns.NsHandle
}

// within runs f for each node, on a thread in its network namespace.
func (p *path) within(f func(i int)) {
	for i, ns := range p.spaces {
		(&workload{t: p.t, ns: ns}).inside(func() { f(i) })
	}
}

// oneNode is a path between two workloads of a node.
func oneNode(t *testing.T, by Mechanism) *path {
	p := &path{t: t}
	d := p.node(by)
	p.client = newWorkload(t, d, "client", "100.64.0.10", "fd5f::10", 1)
	p.server = newWorkload(t, d, "server", "100.64.0.11", "fd5f::11", 2)
	p.allow()
	return p
}

// node makes a node, whose network namespace is then that of the thread.
func (p *path) node(by Mechanism) *Datapath {
	ns := enterNamespace(p.t)
	script(p.t, "ip link set lo up; sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	d := open(p.t, pinDirectory(p.t), fixtureOptions(by))
	p.nodes, p.spaces = append(p.nodes, d), append(p.spaces, ns)
	return d
}

func (p *path) allow() {
	for _, d := range p.nodes {
		must.NoError(p.t, d.ReplacePair(Pair{1, 2}, []Rule{rule(17, datagramPort, datagramPort, 1), rule(1, 8, 8, 1), rule(58, 128, 128, 1), rule(6, 8080, 8080, 1)}))
	}
}

// twoNodes is a path between workloads of two nodes, over a wire of that MTU.
func twoNodes(t *testing.T, by Mechanism, mtu int) *path {
	p := &path{t: t}
	first := p.node(by)
	p.client = newWorkload(t, first, "client", "100.64.0.10", "fd5f::10", 1)
	second := p.node(by)
	p.server = newWorkload(t, second, "server", "100.64.0.11", "fd5f::11", 2)
	must.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire"}, PeerName: "wire", PeerNamespace: netlink.NsFd(p.spaces[0])}))
	wires := make([]uint32, 2)
	p.within(func(i int) {
		script(t, `
			ip link set wire address 02:00:00:00:02:0$N mtu $MTU up
			ip addr add 192.0.2.$N/24 dev wire
			ip -6 addr add fd00::$N/64 dev wire nodad
			ip neigh add 192.0.2.$M lladdr 02:00:00:00:02:0$M dev wire nud permanent
			ip neigh add fd00::$M lladdr 02:00:00:00:02:0$M dev wire nud permanent`,
			fmt.Sprint("MTU=", mtu), fmt.Sprint("N=", 1+i), fmt.Sprint("M=", 2-i))
		l, err := netlink.LinkByName("wire")
		must.NoError(t, err)
		wires[i] = uint32(l.Attrs().Index)
	})
	for i, far := range []*workload{p.server, p.client} {
		(&workload{t: t, ns: p.spaces[i]}).inside(func() {
			script(t, `ip route add $V4/32 via 192.0.2.$N; ip -6 route add $V6/128 via fd00::$N`, "V4="+far.v4, "V6="+far.v6, fmt.Sprint("N=", 2-i))
		})
		for _, a := range []string{far.v4, far.v6} {
			must.NoError(t, p.nodes[i].PutPeer(Peer{Address: addr(a), Identity: uint32(2 - i), Interface: wires[i]}))
		}
	}
	p.allow()
	return p
}

// track makes the nodes track connections, and therefore reassemble fragments before routing.
func (p *path) track() {
	testhost.RequireProgram(p.t, "nft")
	p.within(func(int) {
		script(p.t, `nft -f - <<-END
			table inet t {
				chain raw { type filter hook prerouting priority raw; ip saddr 100.64.0.0/10 notrack; ip6 saddr fd5f::/16 notrack; }
				chain forward { type filter hook forward priority filter; ct state invalid counter; }
			}
			END`)
	})
}

// echoDatagrams answers each datagram with itself.
func (w *workload) echoDatagrams() {
	w.inside(func() {
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: datagramPort})
		if err != nil {
			w.t.Errorf("listen in the workload: %v", err)
			return
		}
		_ = c.SetReadBuffer(4 << 20)
		w.t.Cleanup(func() { _ = c.Close() })
		go func() {
			b := make([]byte, 1<<16)
			for {
				n, from, err := c.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				_, _ = c.WriteToUDPAddrPort(b[:n], from)
			}
		}()
	})
}

// call opens a socket for datagrams to the server.
func (p *path) call(to string) (c *net.UDPConn) {
	p.t.Helper()
	p.client.inside(func() {
		var err error
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr(to), datagramPort)))
		must.NoError(p.t, err)
		must.NoError(p.t, c.SetReadBuffer(4<<20))
	})
	p.t.Cleanup(func() { _ = c.Close() })
	return c
}

// roundTrip sends a datagram until its echo comes, at most five times.
func roundTrip(c *net.UDPConn, size int) error {
	sent, got := make([]byte, size), make([]byte, 1<<16)
	for i := range sent {
		sent[i] = byte(i*7 + size)
	}
	err := errors.New("nothing was sent")
	for range 5 {
		if _, err = c.Write(sent); err != nil {
			continue
		}
		_ = c.SetReadDeadline(time.Now().Add(400 * time.Millisecond))
		for err == nil {
			var n int
			if n, err = c.Read(got); err == nil && bytes.Equal(got[:n], sent) {
				return nil // others are late echoes
			}
		}
	}
	return fmt.Errorf("%d bytes: %w", size, err)
}

// setDiscovery says what a socket makes of packets that are too big: unix.IP_PMTUDISC_DO and
// others.
func setDiscovery(t *testing.T, c *net.UDPConn, v6 bool, how int) {
	raw, err := c.SyscallConn()
	must.NoError(t, err)
	must.NoError(t, raw.Control(func(fd uintptr) {
		if v6 {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, how)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, how)
		}
	}))
	must.NoError(t, err)
}

func (p *path) drops() map[string]uint64 {
	all := map[string]uint64{}
	for i, d := range p.nodes {
		counters, err := d.Counters()
		must.NoError(p.t, err)
		for _, c := range counters.Verdicts {
			if !c.Reason.Allowed() {
				all[fmt.Sprintf("node %d %s %s", i, c.Direction, c.Reason)] += c.Packets
			}
		}
	}
	return all
}

// Datagrams of all sizes arrive, on one node and between two, whether the nodes reassemble
// fragments on the way or not.
func TestDatagrams(t *testing.T) { byMechanism(t, testDatagrams) }

func testDatagrams(t *testing.T, by Mechanism) {
	t.Run("one node", func(t *testing.T) {
		p := oneNode(t, by)
		p.server.echoDatagrams()
		p.exchange("untracked")
		p.track()
		p.exchange("tracked")
		p.capture()
		p.exchange("captured")
	})
	t.Run("two nodes", func(t *testing.T) {
		p := twoNodes(t, by, 1500)
		p.server.echoDatagrams()
		p.exchange("untracked")
		p.wire(1380)
		p.exchange("untracked, small wire")
		p.track()
		p.exchange("tracked, small wire")
		p.wire(9000)
		p.exchange("tracked, jumbo wire")
		p.capture()
		p.exchange("captured")
	})
}

// exchange sends datagrams of many sizes and expects their echoes.
func (p *path) exchange(when string) {
	p.t.Helper()
	for _, to := range []string{p.server.v4, p.server.v6} {
		for _, how := range []int{unix.IP_PMTUDISC_DONT, unix.IP_PMTUDISC_WANT} {
			c := p.call(to)
			setDiscovery(p.t, c, addr(to).Is6(), how)
			for _, size := range []int{1, 1232, 1353, 1453, 1473, 2000, 8973, 40000, 65507} {
				if err := roundTrip(c, size); err != nil {
					p.t.Errorf("%s, to %s, discovery %d: %v; dropped: %v", when, to, how, err, p.drops())
					break
				}
			}
		}
	}
}

// wire sets the MTU of the wire between two nodes.
func (p *path) wire(mtu int) {
	p.within(func(int) { script(p.t, "ip link set wire mtu $MTU", fmt.Sprint("MTU=", mtu)) })
}

// inject sends IP packets from the first node to the server, as they are. They stay in order,
// because one processor carries them all.
func (p *path) inject(packets ...[]byte) {
	(&workload{t: p.t, ns: p.spaces[0]}).inside(func() {
		var first unix.CPUSet
		first.Set(0)
		must.NoError(p.t, unix.SchedSetaffinity(0, &first))
		wire, err := netlink.LinkByName("wire")
		must.NoError(p.t, err)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		must.NoError(p.t, err)
		defer unix.Close(fd)
		for _, packet := range packets {
			frame := with(ethernet(packet), 0, 2, 0, 0, 0, 2, 2, 2, 0, 0, 0, 2, 1)
			must.NoError(p.t, unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: wire.Attrs().Index}))
		}
	})
}

// A node that tracks connections puts fragments in order before the programs see them; on another,
// what comes before the first is lost.
func TestFragmentsOutOfOrder(t *testing.T) {
	p := twoNodes(t, "", 1500)
	var got net.PacketConn
	p.server.inside(func() {
		var err error
		got, err = net.ListenPacket("udp", fmt.Sprint(":", datagramPort))
		must.NoError(t, err)
	})
	defer got.Close()
	id := uint32(100)
	// arrives sends a datagram in three parts, in an order, then a short one, and reports whether
	// the first one arrived.
	arrives := func(from, to string, order ...int) (first bool) {
		id++
		datagram, end := datagram(from, to, byte(id), 4000), datagram(from, to, byte(id), 9)
		parts := cut(from, to, 17, id, 1400, datagram)
		for _, i := range order {
			p.inject(checked(parts[i]))
		}
		p.inject(checked(ip(from, to, 17, end)))
		b := make([]byte, 5000)
		for {
			must.NoError(t, got.SetReadDeadline(time.Now().Add(10*time.Second)))
			n, _, err := got.ReadFrom(b)
			must.NoError(t, err)
			first = first || bytes.Equal(b[:n], datagram[8:])
			if bytes.Equal(b[:n], end[8:]) {
				return first
			}
		}
	}
	lost := func() uint64 { return p.drops()["node 1 to-workload no-first-fragment"] }
	for _, tracked := range []bool{false, true} {
		for _, a := range [][2]string{{p.client.v4, p.server.v4}, {p.client.v6, p.server.v6}} {
			must.True(t, arrives(a[0], a[1], 0, 1, 2))
			must.True(t, arrives(a[0], a[1], 0, 2, 1), must.Sprint("the last before the middle"))
			for _, order := range [][]int{{1, 0, 2}, {2, 1, 0}} {
				before := lost()
				arrived := arrives(a[0], a[1], order...)
				// Others than we may have made the node track.
				must.True(t, arrived == (lost() == before), must.Sprint(order, " arrived: ", arrived))
				must.True(t, arrived || !tracked, must.Sprint(order))
			}
			must.True(t, arrives(a[0], a[1], 0, 1, 1, 2), must.Sprint("one part twice"))
		}
		if !tracked {
			p.track()
		}
	}
}

// datagram returns a UDP datagram of that size with a checksum, filled with a byte.
func datagram(from, to string, filling byte, size int) []byte {
	d := long(append(be16(7, datagramPort, uint16(size), 0), filling), size)
	pseudo := slices.Concat(be16(17, uint16(size)), addr(from).AsSlice(), addr(to).AsSlice())
	binary.BigEndian.PutUint16(d[6:], ^words(append(pseudo, d...)))
	return d
}

// words is the one's complement sum of 16-bit words.
func words(b []byte) uint16 {
	var n uint32
	for i := 0; i+1 < len(b); i += 2 {
		n += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		n += uint32(b[len(b)-1]) << 8
	}
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return uint16(n)
}

// checked sets the checksum of an IPv4 header.
func checked(packet []byte) []byte {
	if packet[0]>>4 == 6 {
		return packet
	}
	c := with(packet, 10, 0, 0)
	binary.BigEndian.PutUint16(c[10:], ^words(c[:20]))
	return c
}

// capture keeps a copy of every packet of the nodes, as a capturing program does: the kernel then
// cannot take the packets that it reassembled apart again, and makes new ones.
func (p *path) capture() {
	p.within(func(int) {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(binary.NativeEndian.Uint16(be16(unix.ETH_P_ALL))))
		must.NoError(p.t, err)
		must.NoError(p.t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20))
		p.t.Cleanup(func() { _ = unix.Close(fd) })
	})
}
