// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/internal/node/firewall"
)

// TestCloudsReachEachOtherThroughTheFabricOnly tries to reach each node of one cloud from each
// workload node of the other, outside the fabric: only gossip passes.
func TestCloudsReachEachOtherThroughTheFabricOnly(t *testing.T) {
	const gossip = 8301
	tcp := []int{22, 53, 80, 443, 4646, 4647, 7701, 8080, 8300, 8500, 9001, 18080, 51820}
	udp := []int{53, 4789, 6081, 9001, 51820, 51821}
	for _, to := range world.Topology.Nodes(lab.Workload, lab.Processor) {
		if to.Zone != "gcp1" {
			continue
		}
		for _, port := range tcp {
			l, err := listen(world.NetNS(to.Name), netip.AddrPortFrom(netip.MustParseAddr(to.Address), uint16(port)))
			if err == nil { // otherwise a daemon listens there already, which serves as well
				t.Cleanup(func() { l.Close() })
			}
		}
	}
	var trying sync.WaitGroup
	for _, from := range world.Topology.Nodes(lab.Workload) {
		if from.Zone != "aws1" {
			continue
		}
		for _, to := range world.Topology.Nodes(lab.Workload, lab.Processor) {
			if to.Zone != "gcp1" {
				continue
			}
			addr := netip.MustParseAddr(to.Address)
			conn, err := dial(world.NetNS(from.Name), netip.AddrPortFrom(addr, gossip), 3*time.Second)
			must.NoError(t, err, must.Sprint("gossip must pass"))
			conn.Close()
			for _, port := range tcp {
				trying.Go(func() {
					conn, err := dial(world.NetNS(from.Name), netip.AddrPortFrom(addr, uint16(port)), time.Second)
					if err == nil {
						conn.Close()
					}
					if err == nil || errors.Is(err, unix.ECONNREFUSED) {
						t.Errorf("%s reaches %s on tcp port %d: %v", from.Name, to.Name, port, err)
					}
				})
			}
			for _, port := range udp {
				trying.Go(func() {
					if err := datagramArrives(world.NetNS(from.Name), world.NetNS(to.Name), netip.AddrPortFrom(addr, uint16(port))); err != nil {
						t.Errorf("%s and %s, udp port %d: %v", from.Name, to.Name, port, err)
					}
				})
			}
			trying.Go(func() {
				ping, err := world.Command(t.Context(), from.Name, "busybox", "ping", "-c", "1", "-W", "1", to.Address)
				if err == nil && ping.Run() == nil {
					t.Errorf("%s reaches %s by ping", from.Name, to.Name)
				}
			})
		}
	}
	trying.Wait()
}

// datagramArrives sends a UDP packet from one namespace and fails if a raw socket in the other one
// receives it.
func datagramArrives(from, to string, at netip.AddrPort) error {
	socket, err := within(to, func() (*net.IPConn, error) {
		return net.ListenIP("ip4:udp", &net.IPAddr{IP: at.Addr().AsSlice()})
	})
	if err != nil {
		return err
	}
	defer socket.Close()
	nonce := []byte(rand.Text())
	conn, err := within(from, func() (net.Conn, error) { return net.Dial("udp", at.String()) })
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write(nonce); err != nil {
		return nil // refused at once, so it does not arrive
	}
	if err := socket.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	for buf := make([]byte, 2048); ; {
		n, err := socket.Read(buf)
		if err != nil {
			return nil
		}
		if bytes.Contains(buf[:n], nonce) {
			return errors.New("the packet arrived")
		}
	}
}

// capture reads every packet of a namespace, on all its interfaces.
type capture struct {
	packets atomic.Uint64 // all packets
	links   atomic.Uint64 // packets of WireGuard
	mu      sync.Mutex
	needles map[string]int    // how often each text was found
	clear   map[string]string // packets with an endpoint's address, by description
	stop    func()
}

// openCapture captures until the test ends and counts packets that contain any of the needles.
func openCapture(t *testing.T, node string, needles ...string) *capture {
	t.Helper()
	fd, err := within(world.NetNS(node), func() (int, error) {
		return unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
	})
	must.NoError(t, err)
	must.NoError(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20))
	must.NoError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
	c := &capture{needles: map[string]int{}, clear: map[string]string{}}
	pools := []netip.Prefix{netip.MustParsePrefix(world.Topology.Pools.IPv4), netip.MustParsePrefix(world.Topology.Pools.IPv6)}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 1<<16)
		for {
			select {
			case <-done:
				return
			default:
			}
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				continue // no packet arrived in time
			}
			c.look(buf[:n], needles, pools)
		}
	}()
	c.stop = sync.OnceFunc(func() {
		close(done)
		<-ended
		unix.Close(fd)
	})
	t.Cleanup(c.stop)
	return c
}

func (c *capture) look(packet []byte, needles []string, pools []netip.Prefix) {
	c.packets.Add(1)
	src, dst, ok := addresses(packet)
	if ok && packet[0]>>4 == 4 && packet[9] == unix.IPPROTO_UDP {
		if header := int(packet[0]&15) * 4; len(packet) > header+4 {
			if port := binary.BigEndian.Uint16(packet[header+2:]); port >= 51820 && port <= 51899 {
				c.links.Add(1)
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range pools {
		if ok && (p.Contains(src) || p.Contains(dst)) {
			c.clear[src.String()+" to "+dst.String()] = fmt.Sprintf("%x", packet[:min(len(packet), 64)])
		}
	}
	for _, n := range needles {
		if bytes.Contains(packet, []byte(n)) {
			c.needles[n]++
		}
	}
}

// addresses returns the source and destination of an IP packet.
func addresses(packet []byte) (src, dst netip.Addr, ok bool) {
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20])), true
	case len(packet) >= 40 && packet[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40])), true
	}
	return src, dst, false
}

func (c *capture) seen(needle string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.needles[needle]
}

func htons(n uint16) uint16 { return n<<8 | n>>8 }

// TestInternetSeesNoPlainByte captures in the namespace that connects all nodes, while applications
// and a connection with a known payload run, within and between clouds.
func TestInternetSeesNoPlainByte(t *testing.T) {
	world.withTestPorts(t)
	svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
	secret, plain := "payload-"+rand.Text(), "plain-"+rand.Text()
	c := openCapture(t, "internet", secret, plain)
	for _, zone := range []string{"aws1", "gcp1"} {
		s := openStream(t, svc, world.workload(t, "getaway-app/news-gw", zone), newsPort, secret)
		world.page(t, nil)
		eventually(t, 10*time.Second, func() error {
			if s.returned.Load() < 50*pieceSize {
				return errors.New("the payload has not passed yet")
			}
			return nil
		})
		s.stop()
	}
	// Traffic in the clear does show up in the capture.
	conn, err := world.Dial("aws1-p1")(t.Context(), "udp", world.Topology.Node("gcp1-p1").Address+":51899")
	must.NoError(t, err)
	defer conn.Close()
	eventually(t, 10*time.Second, func() error {
		if _, err := conn.Write([]byte(plain)); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return err
		}
		if c.seen(plain) == 0 {
			return fmt.Errorf("a plain packet was not captured, among %d", c.packets.Load())
		}
		return nil
	})
	c.stop()
	must.Positive(t, c.links.Load(), must.Sprint("packets of encrypted links"))
	must.Zero(t, c.seen(secret), must.Sprint("the payload was captured in the clear"))
	must.MapEmpty(t, c.clear, must.Sprint("packets with addresses of endpoints were captured in the clear"))
}

// TestPlainPacketOfEndpointIsDropped sends a packet in the clear, over the underlay of the
// destination's node. Its source is the address of an endpoint that may call the destination.
func TestPlainPacketOfEndpointIsDropped(t *testing.T) {
	world.withTestPorts(t)
	svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
	for _, zone := range []string{"aws1", "gcp1"} {
		t.Run(zone, func(t *testing.T) {
			gateway := world.workload(t, "getaway-app/news-gw", zone)
			socket, err := within(gateway.netns, func() (net.PacketConn, error) {
				return net.ListenPacket("udp", netip.AddrPortFrom(gateway.v4, newsPort).String())
			})
			must.NoError(t, err)
			defer socket.Close()
			received := func(within time.Duration) bool {
				must.NoError(t, socket.SetReadDeadline(time.Now().Add(within)))
				_, _, err := socket.ReadFrom(make([]byte, 64))
				return err == nil
			}
			// The same packet passes through the fabric.
			conn, err := within(svc.netns, func() (net.Conn, error) {
				return net.Dial("udp", netip.AddrPortFrom(gateway.v4, newsPort).String())
			})
			must.NoError(t, err)
			defer conn.Close()
			eventually(t, 10*time.Second, func() error {
				if _, err := conn.Write([]byte("through the fabric")); err != nil {
					return err
				}
				if !received(300 * time.Millisecond) {
					return errors.New("the packet that a contract allows did not arrive")
				}
				return nil
			})
			for received(100 * time.Millisecond) {
			}

			before := world.plainDrops(t, gateway.node)
			const forged = 5
			for range forged {
				// Another node of the zone sends it over the underlay.
				world.inject(t, zone+"-p1", gateway.node, datagram(svc.v4, gateway.v4, newsPort, "past the fabric"))
			}
			must.False(t, received(500*time.Millisecond), must.Sprint("the forged packet arrived"))
			must.GreaterEq(t, before+forged, world.plainDrops(t, gateway.node))
		})
	}
}

// plainDrops reads a node's firewall counter of packets in the clear with the fabric's addresses.
func (f *fabricUnderTest) plainDrops(t *testing.T, node string) uint64 {
	t.Helper()
	cmd, err := f.Command(t.Context(), node, "nft", "-j", "list", "counter", "inet", "sif", firewall.PlainFabricSource)
	must.NoError(t, err)
	out, err := cmd.Output()
	must.NoError(t, err, must.Sprint(string(out)))
	var reply struct {
		NFTables []struct {
			Counter *struct {
				Name    string
				Packets uint64
			}
		}
	}
	must.NoError(t, json.Unmarshal(out, &reply))
	for _, o := range reply.NFTables {
		if o.Counter != nil && o.Counter.Name == firewall.PlainFabricSource {
			return o.Counter.Packets
		}
	}
	t.Fatalf("the firewall of %s has no counter %s: %s", node, firewall.PlainFabricSource, out)
	return 0
}

// datagram makes an IPv4 packet (RFC 791) with a UDP datagram (RFC 768), without the optional UDP
// checksum.
func datagram(src, dst netip.Addr, port uint16, payload string) []byte {
	p := make([]byte, 28, 28+len(payload))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(28+len(payload)))
	copy(p[12:], src.AsSlice())
	copy(p[16:], dst.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(p[20:], 40000)
	binary.BigEndian.PutUint16(p[22:], port)
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload)))
	return append(p, payload...)
}

// inject sends an IPv4 packet over the underlay from one node to the underlay interface of another
// node of its zone.
func (f *fabricUnderTest) inject(t *testing.T, at, to string, packet []byte) {
	t.Helper()
	link := func(node string) netlink.Link {
		l, err := within(f.NetNS(node), func() (netlink.Link, error) { return netlink.LinkByName("eth0") })
		must.NoError(t, err)
		return l
	}
	target := unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: link(at).Attrs().Index, Halen: 6}
	copy(target.Addr[:], link(to).Attrs().HardwareAddr)
	fd, err := within(f.NetNS(at), func() (int, error) {
		return unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_IP)))
	})
	must.NoError(t, err)
	defer unix.Close(fd)
	must.NoError(t, unix.Sendto(fd, packet, 0, &target))
}
