// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// These tests look at what routers between a client and a server say: the client's node, the
// server's node, and the server, which is the third hop.

// socketAddress returns the form of an address that system calls take.
func socketAddress(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// probe sends a packet that as many routers forward as ttl says, less one.
func probe(t *testing.T, protocol string, to netip.Addr, ttl int) {
	t.Helper()
	kind, number, port := unix.SOCK_DGRAM, 0, uint16(datagramPort)
	switch protocol {
	case "tcp":
		kind, port = unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 8080
	case "icmp":
		kind, port = unix.SOCK_RAW, 0
	}
	family, level, option, echo := unix.AF_INET, unix.IPPROTO_IP, unix.IP_TTL, byte(8)
	if to.Is6() {
		family, level, option, echo = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 128
	}
	message := []byte("probe")
	if protocol == "icmp" {
		number = unix.IPPROTO_ICMP
		if to.Is6() {
			number = unix.IPPROTO_ICMPV6
		}
		message = icmp(echo, 0, 77)
		message[2], message[3] = byte(^words(message)>>8), byte(^words(message)) // IPv6: set by the kernel
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, number)
	must.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	must.NoError(t, unix.SetsockoptInt(fd, level, option, ttl))
	if protocol == "tcp" {
		if err := unix.Connect(fd, socketAddress(netip.AddrPortFrom(to, port))); !errors.Is(err, unix.EINPROGRESS) {
			must.NoError(t, err)
		}
		return
	}
	must.NoError(t, unix.Sendto(fd, message, 0, socketAddress(netip.AddrPortFrom(to, port))))
}

// answers listens for ICMP messages in a network namespace, before the probes are sent.
func answers(t *testing.T, v6 bool) net.PacketConn {
	t.Helper()
	network := "ip4:icmp"
	if v6 {
		network = "ip6:ipv6-icmp"
	}
	c, err := net.ListenPacket(network, "")
	must.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// next returns the sender and the type of the next ICMP message that is neither a request nor one
// between neighbours. It waits for as long as it takes, or only for a moment.
func next(t *testing.T, c net.PacketConn, wait time.Duration) string {
	t.Helper()
	b := make([]byte, 2000)
	must.NoError(t, c.SetReadDeadline(time.Now().Add(wait)))
	for {
		_, from, err := c.ReadFrom(b)
		if err != nil {
			return "nothing"
		}
		kind := map[string]map[byte]string{
			"ip4": {0: "reply", 3: "unreachable", 11: "exceeded"}, "ip6": {129: "reply", 1: "unreachable", 3: "exceeded", 2: "too big"},
		}[map[bool]string{false: "ip4", true: "ip6"}[addr(from.String()).Is6()]][b[0]]
		if kind != "" {
			return fmt.Sprint(addr(from.String()).WithZone(""), " ", kind)
		}
	}
}

// Traceroute shows the client's node and the server. The server's node, which is not the client's
// to know, is silent.
func TestTraceroute(t *testing.T) {
	p := twoNodes(t, "", 1500)
	for _, to := range []string{p.server.v4, p.server.v6} {
		v6 := addr(to).Is6()
		p.client.inside(func() {
			c := answers(t, v6)
			near := "169.254.1.1 exceeded"
			if v6 {
				near = "fd00::1 exceeded" // the node has no other address that the whole network may see
			}
			last := map[string]string{"udp": to + " unreachable", "icmp": to + " reply", "tcp": "nothing"}
			for _, protocol := range []string{"udp", "icmp", "tcp"} {
				probe(t, protocol, addr(to), 1)
				must.Eq(t, near, next(t, c, 10*time.Second), must.Sprint(protocol, " 1"))
				// What the second hop says would arrive before what the third one says.
				probe(t, protocol, addr(to), 2)
				probe(t, protocol, addr(to), 3)
				if protocol == "tcp" { // answered by a reset
					probe(t, "icmp", addr(to), 3)
					last[protocol] = last["icmp"]
				}
				must.Eq(t, last[protocol], next(t, c, 10*time.Second), must.Sprint(protocol, " 3"))
			}
		})
	}
	must.Positive(t, p.drops()["node 0 to-workload unknown-source"], must.Sprint("what the second hop said"))
}

// mtu returns what a socket knows of the path.
func mtu(t *testing.T, c *net.UDPConn, v6 bool) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	must.NoError(t, err)
	must.NoError(t, raw.Control(func(fd uintptr) {
		if v6 {
			n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU)
		} else {
			n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU)
		}
	}))
	must.NoError(t, err)
	return n
}

// A sender that forbids fragments learns the smallest MTU of the way, from its own node and from
// the next one, by UDP and by TCP.
func TestPathMTU(t *testing.T) { byMechanism(t, testPathMTU) }

func testPathMTU(t *testing.T, by Mechanism) {
	for _, test := range []struct {
		name    string
		smaller func(*path)
	}{
		{"the wire", func(p *path) { p.wire(1340) }},
		{"the last hop", func(p *path) {
			(&workload{t: t, ns: p.spaces[1]}).inside(func() { script(t, "ip link set sifserver mtu 1340") })
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := twoNodes(t, by, 1500)
			p.server.echoDatagrams()
			p.server.serve(":8080")
			test.smaller(p)
			for _, to := range []string{p.server.v4, p.server.v6} {
				v6, header := addr(to).Is6(), 28
				if v6 {
					header = 48
				}
				c := p.call(to)
				setDiscovery(t, c, v6, unix.IP_PMTUDISC_DO)
				must.NoError(t, roundTrip(c, 1200))
				must.Eq(t, 1500, mtu(t, c, v6))
				for until := time.Now().Add(10 * time.Second); mtu(t, c, v6) != 1340 && time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
					_, _ = c.Write(make([]byte, 1400))
				}
				must.Eq(t, 1340, mtu(t, c, v6), must.Sprint(to, " ", p.drops()))
				_, err := c.Write(make([]byte, 1400))
				must.ErrorIs(t, err, unix.EMSGSIZE)
				must.NoError(t, roundTrip(c, 1340-header))

				stream, err := p.client.dial(net.JoinHostPort(to, "8080"))
				must.NoError(t, err)
				must.NoError(t, transfer(stream, 4<<20), must.Sprint(to, " ", p.drops()))
			}
		})
	}
}

// Two ends that call each other at once are connected: if both may call, and if only one may.
func TestSimultaneousOpen(t *testing.T) {
	for name, rules := range map[string]map[Pair]Rule{
		"both may":       {Pair{1, 2}: rule(6, 8080, 8080, 1), Pair{2, 1}: rule(6, 4000, 4000, 1)},
		"the client may": {Pair{1, 2}: rule(6, 8080, 8080, 1)},
		"the server may": {Pair{2, 1}: rule(6, 4000, 4000, 1)},
	} {
		p := oneNode(t, "")
		must.NoError(t, p.nodes[0].ReplacePair(Pair{1, 2}, nil))
		for pair, r := range rules {
			must.NoError(t, p.nodes[0].ReplacePair(pair, []Rule{r}))
		}
		// Nothing is forwarded until both have called.
		script(t, "sysctl -qw net.ipv4.ip_forward=0")
		ends := make(chan error, 2)
		open := func(w *workload, local, remote netip.AddrPort) {
			w.inside(func() {
				d := net.Dialer{Timeout: 20 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(local)}
				c, err := d.Dial("tcp", remote.String())
				if err == nil {
					defer c.Close()
					_, err = fmt.Fprintln(c, "hello")
					must.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
					if _, reading := c.Read(make([]byte, 10)); err == nil {
						err = reading
					}
				}
				ends <- err
			})
		}
		a, b := netip.AddrPortFrom(addr(p.client.v4), 4000), netip.AddrPortFrom(addr(p.server.v4), 8080)
		go open(p.client, a, b)
		go open(p.server, b, a)
		for both := 0; both < 2; time.Sleep(10 * time.Millisecond) {
			both = 0
			for _, w := range []*workload{p.client, p.server} {
				w.inside(func() {
					if calling(t) {
						both++
					}
				})
			}
		}
		script(t, "sysctl -qw net.ipv4.ip_forward=1")
		for range 2 {
			must.NoError(t, <-ends, must.Sprint(name, " ", p.drops()))
		}
	}
}

// calling reports whether a socket of the namespace has sent a SYN and waits for its answer.
func calling(t *testing.T) bool {
	text, err := os.ReadFile("/proc/thread-self/net/tcp")
	must.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 3 && fields[3] == "02" {
			return true
		}
	}
	return false
}
