// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package port_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/ovs/ovstest"
	"github.com/sif-project/sif/engine/port"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/testhost"
)

const (
	linkMTU = 1426
	mtu     = linkMTU - 26
)

// tun makes a TUN device in a namespace, sets it up, and returns the file of its packets. Like a
// user-space WireGuard device it reads and writes TCP, and several UDP datagrams at once, in
// packets of up to 64 KiB.
func tun(t testing.TB, ns, name string) *os.File {
	t.Helper()
	device := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TUN,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR, NonPersist: true, Queues: 1,
	}
	ovstest.In(t, ns, func() {
		must.NoError(t, netlink.LinkAdd(device))
		must.NoError(t, netlink.LinkSetMTU(device, linkMTU))
		must.NoError(t, netlink.LinkSetUp(device))
	})
	t.Cleanup(func() { _ = device.Fds[0].Close() })
	raw, err := device.Fds[0].SyscallConn()
	must.NoError(t, err)
	must.NoError(t, raw.Control(func(fd uintptr) {
		const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
		err = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, tcp|unix.TUN_F_USO4|unix.TUN_F_USO6)
		if errors.Is(err, unix.EINVAL) { // before Linux 6.2
			err = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, tcp)
		}
	}))
	must.NoError(t, err)
	return device.Fds[0]
}

// wire carries packets between two TUN devices, as a link does.
func wire(a, b *os.File) {
	for _, pair := range [][2]*os.File{{a, b}, {b, a}} {
		go func() {
			packet := make([]byte, 1<<17)
			for {
				n, err := pair[0].Read(packet)
				if err != nil {
					return
				}
				_, _ = pair[1].Write(packet[:n]) // fails while the device is down, as on a real link
			}
		}()
	}
}

func ensure(t testing.TB, c port.Config) bool {
	t.Helper()
	_, fresh, err := port.Ensure(c)
	must.NoError(t, err)
	changes, fresh2, err := port.Ensure(c)
	must.NoError(t, err)
	must.False(t, fresh2)
	must.SliceEmpty(t, changes, must.Sprint("what was just made differs"))
	return fresh
}

func inspect(t testing.TB, ns string, args ...string) string {
	t.Helper()
	return ovstest.Run(t, "ip", append([]string{"-n", ns}, args...)...)
}

// TestLinksThroughSwitch joins two hosts by two links that meet in a switch.
func TestLinksThroughSwitch(t *testing.T) {
	ctx := context.Background()
	instance := ovstest.Start(t)
	sw := ovs.NewSwitch(instance.Config)
	must.NoError(t, sw.Create(ctx))
	// The kernel of the switch's node is a router, which must not route around the switch.
	ovstest.In(t, instance.Namespace, func() {
		must.NoError(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644))
	})

	var configs []port.Config
	var state ovs.State
	hosts := []string{ovstest.Namespace(t, "h1"), ovstest.Namespace(t, "h2")}
	files := make([]*os.File, 2)
	for i, host := range hosts {
		n := i + 1
		files[i] = tun(t, host, "link0")
		inspect(t, host, "addr", "add", fmt.Sprintf("100.64.%d.1/32", n), "dev", "link0")
		inspect(t, host, "addr", "add", fmt.Sprintf("fd5f:0:0:%d::1/128", n), "dev", "link0", "nodad")
		inspect(t, host, "route", "add", "default", "dev", "link0")
		inspect(t, host, "-6", "route", "add", "default", "dev", "link0")
		device := fmt.Sprintf("wg%d", n)
		wire(files[i], tun(t, instance.Namespace, device))
		c := port.Config{
			Namespace: fmt.Sprintf("sifovs-%d-p%d", os.Getpid(), n),
			Home:      instance.Namespace, Outer: fmt.Sprintf("sifp-%d", n), Device: device, MTU: mtu,
			Prefixes: []netip.Prefix{
				netip.MustParsePrefix(fmt.Sprintf("100.64.%d.0/24", n)),
				netip.MustParsePrefix(fmt.Sprintf("fd5f:0:0:%d::/64", n)),
			},
			Addrs: []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd5f::1")},
		}
		t.Cleanup(func() { must.NoError(t, port.Remove(c)) })
		must.True(t, ensure(t, c))
		must.False(t, ensure(t, c))
		no, err := sw.AddPort(ctx, c.Outer)
		must.NoError(t, err)
		own, peer := port.MACs(c.Outer)
		state.Ports = append(state.Ports, ovs.Port{No: no, MAC: own, Peer: peer, Routers: true})
		state.Endpoints = append(state.Endpoints, ovs.Endpoint{
			ID: uint64(n), Class: uint32(n), SourcePorts: []uint32{no}, OutPort: no,
			Prefixes: []netip.Prefix{
				netip.MustParsePrefix(fmt.Sprintf("100.64.%d.1/32", n)),
				netip.MustParsePrefix(fmt.Sprintf("fd5f:0:0:%d::1/128", n)),
			},
		})
		configs = append(configs, c)
	}
	state.Entries = []ovs.Entry{
		{ID: 1, Src: 1, Dst: 2, Protocol: 6, Ports: []ovs.PortRange{{First: 80, Last: 80}}},
		{ID: 2, Src: 1, Dst: 2, Protocol: 17, Ports: []ovs.PortRange{{First: 53, Last: 53}}},
	}
	p := ovs.NewPipeline(1, sw.Revalidated)
	conn, err := sw.Dial(ctx)
	must.NoError(t, err)
	defer conn.Close()
	p.UseConn(conn)
	must.NoError(t, p.Set(ctx, state))

	works := func(network, address string) error {
		var l, c net.Conn
		var listener net.Listener
		ovstest.In(t, hosts[1], func() {
			listener, err = net.Listen("tcp", address)
			must.NoError(t, err)
		})
		defer listener.Close()
		ovstest.In(t, hosts[0], func() { c, err = net.DialTimeout(network, address, 1500*time.Millisecond) })
		if err != nil {
			return err
		}
		defer c.Close()
		if l, err = listener.Accept(); err != nil {
			return err
		}
		defer l.Close()
		// Enough to fill segments of the full size.
		want := bytes.Repeat([]byte("payload!"), 1<<15)
		go func() { _, _ = c.Write(want) }()
		_ = l.SetReadDeadline(time.Now().Add(5 * time.Second))
		got := make([]byte, len(want))
		for n := 0; n < len(got); {
			k, err := l.Read(got[n:])
			if err != nil {
				return err
			}
			n += k
		}
		if !bytes.Equal(want, got) {
			return fmt.Errorf("payload was damaged")
		}
		return nil
	}

	must.NoError(t, works("tcp", "100.64.2.1:80"))
	must.NoError(t, works("tcp", "[fd5f:0:0:2::1]:80"))
	must.Error(t, works("tcp", "100.64.2.1:81"))

	t.Run("merged datagrams arrive one by one", func(t *testing.T) {
		for _, address := range []string{"100.64.2.1:53", "[fd5f:0:0:2::1]:53"} {
			var there, here net.PacketConn
			ovstest.In(t, hosts[1], func() { there, err = net.ListenPacket("udp", address) })
			must.NoError(t, err)
			defer there.Close()
			ovstest.In(t, hosts[0], func() { here, err = net.ListenPacket("udp", ":0") })
			must.NoError(t, err)
			defer here.Close()
			const size, count = 100, 20
			raw, err := here.(*net.UDPConn).SyscallConn()
			must.NoError(t, err)
			must.NoError(t, raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size)
			}))
			must.NoError(t, err)
			_, err = here.WriteTo(make([]byte, size*count), there.LocalAddr())
			must.NoError(t, err)
			must.NoError(t, there.SetReadDeadline(time.Now().Add(3*time.Second)))
			for i := range count {
				n, _, err := there.ReadFrom(make([]byte, 2*size))
				must.NoError(t, err, must.Sprintf("datagram %d of %d to %s", i+1, count, address))
				must.Eq(t, size, n)
			}
		}
	})
	t.Run("too big packets are refused before the switch", func(t *testing.T) {
		testhost.RequireProgram(t, "ping")
		c := configs[0]
		c.MTU = 1300
		must.False(t, ensure(t, c))
		must.Error(t, exec.Command("ip", "netns", "exec", hosts[0], "ping", "-c1", "-W1", "-Mdo", "-s1330", "100.64.2.1").Run())
		must.StrContains(t, inspect(t, hosts[0], "route", "get", "100.64.2.1"), "mtu 1300")
		_ = exec.Command("ip", "netns", "exec", hosts[0], "ping", "-6", "-c1", "-W1", "-Mdo", "-s1330", "fd5f:0:0:2::1").Run()
		must.StrContains(t, inspect(t, hosts[0], "-6", "route", "get", "fd5f:0:0:2::1"), "mtu 1300")
		must.False(t, ensure(t, configs[0]))
	})
	t.Run("so are those that are too big for the outside", func(t *testing.T) {
		testhost.RequireProgram(t, "ping")
		c := configs[0]
		c.Ranges, c.OutsideMTU = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd5f::/48")}, 1280
		must.False(t, ensure(t, c))
		must.Error(t, exec.Command("ip", "netns", "exec", hosts[0], "ping", "-c1", "-W1", "-Mdo", "-s1330", "198.51.100.1").Run())
		must.StrContains(t, inspect(t, hosts[0], "route", "get", "198.51.100.1"), "mtu 1280")
		_ = exec.Command("ip", "netns", "exec", hosts[0], "ping", "-6", "-c1", "-W1", "-Mdo", "-s1330", "2001:db8::1").Run()
		must.StrContains(t, inspect(t, hosts[0], "-6", "route", "get", "2001:db8::1"), "mtu 1280")
		must.NoError(t, works("tcp", "100.64.2.1:80"))
		must.StrNotContains(t, inspect(t, hosts[0], "route", "get", "100.64.2.1"), "mtu 1280")
		must.False(t, ensure(t, configs[0]))
	})
	t.Run("peers of one link meet only in the switch", func(t *testing.T) {
		testhost.RequireProgram(t, "ping")
		// Both addresses are behind the first link.
		before := transmitted(t, configs[0].Namespace, "wg1")
		must.Error(t, exec.Command("ip", "netns", "exec", hosts[0], "ping", "-c3", "-i0.1", "-W1", "100.64.1.77").Run())
		must.Eq(t, before, transmitted(t, configs[0].Namespace, "wg1"))
		drops, err := p.Drops(ctx)
		must.NoError(t, err)
		must.Positive(t, drops[ovs.DropUnknownDestination])
	})
	t.Run("the switch's kernel does not route", func(t *testing.T) {
		out := ovstest.Run(t, "nsenter", "--net=/var/run/netns/"+instance.Namespace, "cat", "/proc/net/snmp")
		// Third line's sixth number: datagrams forwarded.
		fields := strings.Fields(strings.Split(out, "\n")[1])
		must.Eq(t, "0", fields[6])
	})
	t.Run("repair", func(t *testing.T) {
		for name, damage := range map[string]func(){
			"routes":    func() { inspect(t, configs[0].Namespace, "route", "flush", "table", "102") },
			"rules":     func() { inspect(t, configs[0].Namespace, "rule", "del", "prio", "101") },
			"neighbour": func() { inspect(t, configs[0].Namespace, "neigh", "flush", "nud", "permanent", "dev", "switch0") },
			"veth down": func() { inspect(t, configs[0].Namespace, "link", "set", "switch0", "down") },
			"moved out": func() { inspect(t, configs[0].Namespace, "link", "set", "wg1", "netns", instance.Namespace) },
			"a stray route": func() {
				inspect(t, configs[0].Namespace, "route", "add", "100.64.2.0/24", "dev", "wg1")
			},
		} {
			damage()
			must.False(t, ensure(t, configs[0]), must.Sprint(name))
			must.NoError(t, works("tcp", "100.64.2.1:80"), must.Sprint(name))
			must.NoError(t, works("tcp", "[fd5f:0:0:2::1]:80"), must.Sprint(name))
			must.StrNotContains(t, inspect(t, configs[0].Namespace, "route"), "100.64.2.0")
		}
		inspect(t, instance.Namespace, "link", "del", configs[0].Outer)
		must.True(t, ensure(t, configs[0]))
		must.NoError(t, sw.DeletePort(ctx, configs[0].Outer))
		no, err := sw.AddPort(ctx, configs[0].Outer)
		must.NoError(t, err)
		state.Ports, state.Endpoints = slices.Clone(state.Ports), slices.Clone(state.Endpoints)
		state.Ports[0].No, state.Endpoints[0].OutPort, state.Endpoints[0].SourcePorts = no, no, []uint32{no}
		must.NoError(t, p.Set(ctx, state))
		must.NoError(t, works("tcp", "100.64.2.1:80"))
	})
	t.Run("what others change is put back and named", func(t *testing.T) {
		c := configs[0]
		for _, x := range []struct{ command, subject string }{
			{"ip rule del pref 101", "routing rule 101 (IPv4)"},
			{"ip -6 rule del pref 102", "routing rule 102 (IPv6)"},
			{"ip route flush table 101", "0.0.0.0/0 of table 101 to switch0"},
			{"ip route flush table 102", "blackhole 0.0.0.0/0 of table 102"},
			{"ip neigh flush dev switch0 nud permanent", "169.254.1.1 on switch0"},
			{"ip addr flush dev lo", c.Addrs[0].String() + "/32 on lo"},
			{"sysctl -q net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.all.rp_filter"},
			{"sysctl -q net.ipv4.ip_forward=0", "net.ipv4.ip_forward"},
			{"sysctl -q net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.all.disable_ipv6"},
			{"ip link set switch0 down", "switch0"},
			{"ip link set switch0 address 02:00:00:00:00:77", "switch0"},
		} {
			ovstest.Run(t, "nsenter", append([]string{"--net=/run/netns/" + c.Namespace}, strings.Fields(x.command)...)...)
			changes, fresh, err := port.Ensure(c)
			must.NoError(t, err, must.Sprint(x.command))
			must.False(t, fresh)
			must.True(t, slices.ContainsFunc(changes, func(have kernel.Change) bool {
				return have.Subject == x.subject+" in the namespace of "+c.Device
			}), must.Sprint(x.command, changes))
			must.False(t, ensure(t, c))
		}
		must.NoError(t, works("tcp", "100.64.2.1:80"))
	})
	t.Run("a missing device is an error", func(t *testing.T) {
		c := configs[0]
		c.Namespace, c.Outer, c.Device = c.Namespace+"x", "sifp-x", "wg-none"
		_, fresh, err := port.Ensure(c)
		must.ErrorIs(t, err, port.ErrNoDevice)
		must.True(t, fresh)
		must.NoError(t, port.Remove(c))
		must.NoError(t, port.Remove(c))
	})
	t.Run("remove gives the device back", func(t *testing.T) {
		must.NoError(t, sw.DeletePort(ctx, configs[1].Outer))
		must.NoError(t, port.Remove(configs[1]))
		inspect(t, instance.Namespace, "link", "show", "wg2")
		must.StrNotContains(t, inspect(t, instance.Namespace, "link"), configs[1].Outer)
		must.StrNotContains(t, ovstest.Run(t, "ip", "netns"), configs[1].Namespace)
	})
}

func transmitted(t testing.TB, ns, device string) string {
	t.Helper()
	lines := strings.Split(inspect(t, ns, "-s", "link", "show", device), "\n")
	return strings.Fields(lines[len(lines)-2])[1]
}
