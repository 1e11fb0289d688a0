// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/e2e/lab"
)

// datagramPort is the port of UDP flows of any size.
const datagramPort = 9555

// The largest datagrams: of UDP over IPv4, and through a processor, because the lab's switches
// pass datagrams of up to 32 fragments (docs/operations.md), which towards the outside have up to
// exitMTU bytes.
const (
	largestDatagram = 65507
	largestSwitched = 39000
)

// exitMTU is the MTU of the zone's exit on the lab's switches (docs/operations.md).
const exitMTU = 1280

// withDatagrams adds UDP to all contracts between getaway's services.
func withDatagrams(graph string) string {
	for _, port := range []int{8080, 9001, 9002, 9003} {
		rule := fmt.Sprintf("    rule {\n      protocol = \"tcp\"\n      ports    = [%d]\n    }\n", port)
		graph = strings.ReplaceAll(graph, rule, fmt.Sprintf("%s    rule {\n      protocol = \"udp\"\n      ports    = [%d]\n    }\n", rule, datagramPort))
	}
	return graph
}

// pair is two workloads of which the first may call the second.
type pair struct{ from, to workload }

// pairs finds pairs of getaway's workloads: on one node, in one zone, and in two.
func (f *fabricUnderTest) pairs(t *testing.T) map[string]pair {
	t.Helper()
	found := map[string]pair{}
	for _, c := range [][2]string{{"http-proxy", "getaway-svc"}, {"getaway-svc", "news-gw"}, {"getaway-svc", "places-gw"}, {"getaway-svc", "weather-gw"}} {
		for _, from := range f.workloads(t, "getaway-app/"+c[0], "") {
			for _, to := range f.workloads(t, "getaway-app/"+c[1], "") {
				kind := "two zones"
				if from.node == to.node {
					kind = "one node"
				} else if from.zone == to.zone {
					kind = "one zone"
				}
				found[kind] = pair{from, to}
			}
		}
	}
	return found
}

// echoBig echoes datagrams of any size in a namespace until the test ends.
func echoBig(t *testing.T, path string, at netip.AddrPort) {
	t.Helper()
	socket, err := within(path, func() (net.PacketConn, error) { return net.ListenPacket("udp", at.String()) })
	must.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := socket.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = socket.WriteTo(buf[:n], from)
			}
		}
	})
	t.Cleanup(func() {
		socket.Close()
		running.Wait()
	})
}

// echoed sends datagrams of many sizes, up to the largest, and waits for each to come back. A lost
// one is sent again, because no layer repeats it.
func echoed(path string, to netip.AddrPort, largest int) error {
	conn, err := within(path, func() (net.Conn, error) { return net.Dial("udp", to.String()) })
	if err != nil {
		return err
	}
	defer conn.Close()
	answer := make([]byte, 1<<16)
	for _, size := range []int{1, 2, 512, 1232, 1280, 1340, 1348, 1372, 1376, 1400, 1472, 1473, 1500, 2800, 4096, 8972, 16384, 32768, largestSwitched, 65000, 65507} {
		if size > largest {
			break
		}
		payload := make([]byte, size)
		rand.Read(payload)
		var failure error
		for range 6 {
			if _, err := conn.Write(payload); err != nil {
				failure = fmt.Errorf("send %d bytes to %s: %w", size, to, err)
				continue
			}
			if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				return err
			}
			n, err := conn.Read(answer)
			for err == nil && !bytes.Equal(answer[:n], payload) { // that of an earlier one
				n, err = conn.Read(answer)
			}
			if err == nil {
				failure = nil
				break
			}
			failure = fmt.Errorf("wait for the echo of %d bytes from %s: %w", size, to, err)
		}
		if failure != nil {
			return failure
		}
	}
	return nil
}

// TestPackets sends datagrams of every size between every kind of pair, and to the outside; and
// what is too big for a way to the outside.
func TestPackets(t *testing.T) {
	graph := withDatagrams(world.outsideGraph(t))
	narrow := world.outside(t, "narrow")
	graph = strings.ReplaceAll(graph, `prefixes = ["203.0.113.10", "2001:db8:203::10"]`,
		fmt.Sprintf(`prefixes = ["203.0.113.10", "2001:db8:203::10", %q, %q]`, narrow.Addresses[0], narrow.Addresses[1]))
	world.withGraph(t, graph)
	found := world.pairs(t)
	if _, ok := found["one node"]; !ok {
		t.Cleanup(func() { world.scale(t, "news-gw", "aws1", 1) })
		world.scale(t, "news-gw", "aws1", 5)
		found = world.pairs(t)
	}
	t.Run("datagrams", func(t *testing.T) {
		for _, kind := range []string{"one node", "one zone", "two zones"} {
			p, ok := found[kind]
			must.True(t, ok, must.Sprintf("no pair of %s", kind))
			for _, a := range []netip.Addr{p.to.v4, p.to.v6} {
				at := netip.AddrPortFrom(a, datagramPort)
				echoBig(t, p.to.netns, at)
				largest := largestDatagram
				if kind == "two zones" {
					largest = largestSwitched
				}
				eventually(t, 15*time.Second, func() error { return echoed(p.from.netns, at, largest) })
			}
		}
	})
	// By the exit of the zone, and by that of the node.
	gateways := []workload{world.workload(t, "getaway-app/news-gw", "aws1"), world.workload(t, "getaway-app/weather-gw", "gcp1")}
	byNode := func(w workload) bool { return w.service.Name == "weather-gw" }
	t.Run("datagrams to the outside", func(t *testing.T) {
		for _, w := range gateways {
			largest := largestSwitched
			if byNode(w) {
				largest = largestDatagram
			}
			for _, machine := range []string{"provider", "narrow"} {
				for _, version := range []int{4, 6} {
					at := netip.AddrPortFrom(world.outside(t, machine).Address(version), 443)
					eventually(t, 20*time.Second, func() error { return echoed(w.netns, at, largest) })
				}
			}
		}
	})
	t.Run("bulk to the outside", func(t *testing.T) {
		for _, w := range gateways {
			for _, machine := range []string{"provider", "narrow"} {
				for _, version := range []int{4, 6} {
					at := netip.AddrPortFrom(world.outside(t, machine).Address(version), 443)
					must.NoError(t, bulk(w, at, 2<<20), must.Sprintf("from %s to %s", w, at))
				}
			}
		}
	})
	t.Run("too big", func(t *testing.T) {
		// A datagram that may not be cut: the sender is told that it is too big for the way.
		for _, w := range gateways {
			mtu := narrow.MTU
			if !byNode(w) {
				mtu = min(mtu, exitMTU)
			}
			for version, most := range map[int]int{4: mtu - 28, 6: mtu - 48} {
				conn, err := within(w.netns, func() (net.Conn, error) {
					return net.Dial("udp", netip.AddrPortFrom(narrow.Address(version), 443).String())
				})
				must.NoError(t, err)
				t.Cleanup(func() { conn.Close() })
				raw, err := conn.(*net.UDPConn).SyscallConn()
				must.NoError(t, err)
				must.NoError(t, raw.Control(func(fd uintptr) {
					level, option := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
					if version == 6 {
						level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
					}
					must.NoError(t, unix.SetsockoptInt(int(fd), level, option, unix.IP_PMTUDISC_DO))
				}))
				eventually(t, 10*time.Second, func() error {
					if _, err := conn.Write(make([]byte, most+1)); !errors.Is(err, unix.EMSGSIZE) {
						return fmt.Errorf("%s sends %d bytes to %s: %v", w, most+1, narrow.Name, err)
					}
					return nil
				})
				eventually(t, 5*time.Second, func() error {
					if _, err := conn.Write(make([]byte, most)); err != nil {
						return err
					}
					must.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Second)))
					_, err := conn.Read(make([]byte, 1500))
					return err
				})
			}
		}
	})
	world.verified(t, 30*time.Second)
}

// bulk sends bytes to a machine outside and reads its echo.
func bulk(w workload, to netip.AddrPort, size int) error {
	conn, err := dial(w.netns, to, 2*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	data := make([]byte, size)
	rand.Read(data)
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(data)
		if err == nil {
			err = conn.(*net.TCPConn).CloseWrite()
		}
		sent <- err
	}()
	back, err := io.ReadAll(conn)
	if err := errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("%d of %d bytes came back: %w", len(back), size, err)
	}
	_, back, _ = bytes.Cut(back, []byte("\n")) // whom it saw
	if !bytes.Equal(back, data) {
		return fmt.Errorf("%d bytes came back, not the %d that were sent", len(back), size)
	}
	return nil
}

// TestRefused shows that what the graph denies for certain is refused at once, and what is
// uncertain is not: it passes later, without a reset.
func TestRefused(t *testing.T) {
	world.withTestPorts(t)
	svc, proxy := world.workload(t, "getaway-app/getaway-svc", "aws1"), world.workload(t, "getaway-app/http-proxy", "aws1")
	t.Run("at once", func(t *testing.T) {
		for _, zone := range []string{"aws1", "gcp1"} {
			news := world.workload(t, "getaway-app/news-gw", zone)
			for _, a := range []netip.Addr{news.v4, news.v6} {
				refusedAtOnce(t, svc, netip.AddrPortFrom(a, 9002))
				conn, err := within(svc.netns, func() (net.Conn, error) { return net.Dial("udp", netip.AddrPortFrom(a, 9002).String()) })
				must.NoError(t, err)
				t.Cleanup(func() { conn.Close() })
				eventually(t, atOnce, func() error {
					_, err := conn.Write([]byte("x"))
					if err == nil {
						must.NoError(t, conn.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
						_, err = conn.Read(make([]byte, 1))
					}
					if !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.EACCES) {
						return fmt.Errorf("a datagram from %s to %s: %v", svc, a, err)
					}
					return nil
				})
			}
			unreachable(t, proxy, netip.AddrPortFrom(news.v4, 9001))
		}
	})
	t.Run("withdrawn", func(t *testing.T) {
		news, weather := world.workload(t, "getaway-app/news-gw", "gcp1"), world.workload(t, "getaway-app/weather-gw", "gcp1")
		victim, other := openStream(t, svc, news, newsPort, "news"), openStream(t, svc, weather, weatherPort, "weather")
		world.apply(t, withoutContract(t, world.testPorts(t), "news-api"))
		eventually(t, 5*time.Second, func() error {
			err := victim.failure.Load()
			if err == nil {
				return errors.New("the connection has no error")
			}
			if !errors.Is(*err, syscall.ECONNRESET) && !errors.Is(*err, syscall.EPIPE) {
				t.Fatalf("not reset: %v", *err)
			}
			return nil
		})
		other.mustFlow(t, 5*time.Second)
		world.apply(t, world.testPorts(t))
		world.allWell(t, 30*time.Second)
	})
	// How many of news-gw run in each zone; one again at the end.
	many := func(count int, groups ...string) {
		t.Helper()
		for _, group := range groups {
			world.scale(t, "news-gw", group, count)
		}
	}
	t.Cleanup(func() {
		many(1, "aws1", "gcp1")
		world.allWell(t, time.Minute)
	})
	fresh := map[string]workload{} // by zone
	second := func(zone string, first workload) {
		t.Helper()
		many(2, zone)
		for _, w := range world.instances(t, "getaway-app/news-gw", zone, 2) {
			if w.alloc != first.alloc {
				fresh[zone] = w
			}
		}
	}
	t.Run("not yet", func(t *testing.T) {
		// An instance starts while nobody can tell the other zone of it.
		first := world.workload(t, "getaway-app/news-gw", "gcp1")
		var engines []string
		for _, n := range world.Topology.Nodes(lab.Processor) {
			if n.Zone == svc.zone {
				engines = append(engines, n.Name)
			}
		}
		start := func() {
			for _, n := range engines {
				must.NoError(t, world.Start(n, "engine"))
			}
		}
		t.Cleanup(start)
		for _, n := range engines {
			must.NoError(t, world.Signal(n, "engine", syscall.SIGKILL))
		}
		second("gcp1", first)
		for i := 0; ; i++ {
			if i == 4 {
				start()
			}
			conn, err := dial(svc.netns, netip.AddrPortFrom(fresh["gcp1"].v4, 9001), time.Second)
			if err == nil {
				conn.Close()
				must.Less(t, i, 3, must.Sprint("nobody told the zone of the new instance, and it is reached"))
				break
			}
			must.True(t, isTimeout(err), must.Sprintf("what is uncertain was refused: %v", err))
			must.Less(t, 60, i, must.Sprint("the new instance is never reached"))
		}
	})
	t.Run("gone", func(t *testing.T) {
		second("aws1", world.workload(t, "getaway-app/news-gw", "aws1"))
		streams := map[string]*stream{}
		for zone, w := range fresh {
			streams[zone] = openStream(t, svc, w, newsPort, "gone")
		}
		many(1, "aws1", "gcp1") // Nomad stops the younger ones
		for zone, w := range fresh {
			eventually(t, 40*time.Second, func() error {
				if streams[zone].failure.Load() == nil {
					return fmt.Errorf("the connection to %s, which has gone, has no error", w)
				}
				return nil
			})
			eventually(t, 10*time.Second, func() error {
				conn, err := dial(svc.netns, netip.AddrPortFrom(w.v4, newsPort), atOnce)
				if err == nil {
					conn.Close()
				}
				if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EHOSTUNREACH) {
					return fmt.Errorf("a connection to %s, which has gone: %v", w, err)
				}
				return nil
			})
		}
	})
}

// TestOutsideSurvives kills agents and engines while workloads call the outside. What is open goes
// on, nothing is lost, and new connections pass.
func TestOutsideSurvives(t *testing.T) {
	world.withGraph(t, world.outsideGraph(t))
	provider := world.outside(t, "provider")
	at := netip.AddrPortFrom(provider.Address(4), 443)
	gateways := []workload{world.workload(t, "getaway-app/news-gw", "aws1"), world.workload(t, "getaway-app/weather-gw", "gcp1")}
	var streams []*outsideStream
	for _, w := range gateways {
		streams = append(streams, openOutsideStream(t, w, at))
	}
	each := func(signal func(node, daemon string) error) {
		t.Helper()
		for _, n := range world.Topology.Nodes(lab.Processor, lab.Workload) {
			for _, d := range n.Daemons() {
				must.NoError(t, signal(n.Name, d))
			}
		}
	}
	t.Cleanup(func() {
		each(world.Start)
		world.allWell(t, time.Minute)
	})
	each(func(node, daemon string) error { return world.Signal(node, daemon, syscall.SIGKILL) })
	for range 3 {
		for _, s := range streams {
			s.mustFlow(t, 5*time.Second)
		}
		for _, w := range gateways {
			_, err := seen(w, at, 2*time.Second)
			must.NoError(t, err)
			unreachable(t, w, netip.AddrPortFrom(world.outside(t, "cdn").Address(4), 443))
		}
	}
	each(world.Start)
	world.allWell(t, time.Minute)
	for i, s := range streams {
		s.mustFlow(t, 5*time.Second)
		_, err := seen(gateways[i], at, 2*time.Second)
		must.NoError(t, err)
	}
	world.verified(t, 30*time.Second)
}
