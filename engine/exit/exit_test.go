// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package exit_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/engine/exit"
	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/ovs/ovstest"
	"github.com/sif-project/sif/engine/port"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/wellknown"
)

const mtu = 1394 // of the switch's ports

const (
	classWorkload = 11
	classPartner  = 21 // the outside host
	classWorld    = 22 // every other address
)

// outside is a workload behind a switch, the processor with its exit, a router, and a host beyond
// it. The link between router and host has a smaller MTU than others.
type outside struct {
	t                       testing.TB
	instance                *ovstest.Instance
	processor, router, host string // namespaces
	workload, other         string // namespaces of two workloads
	config                  exit.Config
	exit                    *exit.Exit
	sw                      *ovs.Switch
	pipeline                *ovs.Pipeline
	state                   ovs.State
}

// The addresses of the processor, the router and the host, and of the workloads.
var (
	underlay4, underlay6 = "192.0.2.1", "2001:db8:1::1"
	host4, host6         = "198.51.100.10", "2001:db8:2::10"
	workload4, workload6 = "100.64.0.2", "fd5f:7369:6600::2"
	other4, other6       = "100.64.0.3", "fd5f:7369:6600::3"
)

func (o *outside) ip(ns string, args ...string) string {
	o.t.Helper()
	return ovstest.Run(o.t, "ip", append([]string{"-n", ns}, args...)...)
}

func newOutside(t testing.TB, farMTU int) *outside {
	t.Helper()
	o := &outside{t: t, instance: ovstest.Start(t)}
	o.processor = o.instance.Namespace
	o.router, o.host = ovstest.Namespace(t, "r"), ovstest.Namespace(t, "h")
	o.sw = ovs.NewSwitch(o.instance.Config)
	ovstest.Patiently(t, func() error { return o.sw.Create(t.Context()) })

	o.ip(o.processor, "link", "add", "up0", "type", "veth", "peer", "name", "down0", "netns", o.router)
	o.ip(o.processor, "addr", "add", underlay4+"/24", "dev", "up0")
	o.ip(o.processor, "addr", "add", underlay6+"/64", "dev", "up0", "nodad")
	o.ip(o.processor, "link", "set", "up0", "up")
	o.ip(o.router, "addr", "add", "192.0.2.254/24", "dev", "down0")
	o.ip(o.router, "addr", "add", "2001:db8:1::254/64", "dev", "down0", "nodad")
	o.ip(o.router, "link", "set", "down0", "up")
	o.ip(o.router, "link", "add", "far0", "mtu", fmt.Sprint(farMTU), "type", "veth", "peer", "name", "eth0", "mtu", fmt.Sprint(farMTU), "netns", o.host)
	o.ip(o.router, "addr", "add", "198.51.100.1/24", "dev", "far0")
	o.ip(o.router, "addr", "add", "2001:db8:2::1/64", "dev", "far0", "nodad")
	o.ip(o.router, "link", "set", "far0", "up")
	o.ip(o.host, "addr", "add", host4+"/24", "dev", "eth0")
	o.ip(o.host, "addr", "add", host6+"/64", "dev", "eth0", "nodad")
	o.ip(o.host, "link", "set", "eth0", "up")
	for _, via := range []struct{ ns, gateway4, gateway6 string }{
		{o.processor, "192.0.2.254", "2001:db8:1::254"}, {o.host, "198.51.100.1", "2001:db8:2::1"},
	} {
		o.ip(via.ns, "route", "add", "default", "via", via.gateway4)
		o.ip(via.ns, "-6", "route", "add", "default", "via", via.gateway6)
	}
	ovstest.In(t, o.router, func() {
		must.NoError(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644))
		must.NoError(t, os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0o644))
	})

	o.workload = o.connect("w1", 1, workload4, workload6)
	o.other = o.connect("w2", 2, other4, other6)
	o.config = exit.Config{
		Underlay: "up0", UnderlayAddress: netip.MustParseAddr(underlay4), MTU: exit.MTU(o.instance.Config.Datapath, mtu), PerEndpoint: 1000, NewPerSecond: 1000,
		Ranges: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd5f:7369:6600::/48")},
	}
	o.pipeline = ovs.NewPipeline(1, o.sw.Revalidated)
	conn, err := o.sw.Dial(t.Context())
	must.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	o.pipeline.UseConn(conn)
	o.exit = exit.New(o.config)
	o.plug()
	return o
}

// connect makes a workload's namespace at a port of the switch.
func (o *outside) connect(suffix string, n byte, v4, v6 string) string {
	t := o.t
	t.Helper()
	ns := ovstest.Namespace(t, suffix)
	outer := "p" + fmt.Sprint(n)
	mac, peer := ovs.MAC{2, 0, 0, 0, 0, n}, ovs.MAC{2, 0, 0, 0, 1, n}
	o.ip(o.processor, "link", "add", outer, "mtu", fmt.Sprint(mtu), "type", "veth", "peer", "name", "eth0", "mtu", fmt.Sprint(mtu-2), "address", peer.String(), "netns", ns)
	o.ip(o.processor, "link", "set", outer, "up")
	o.ip(ns, "addr", "add", v4+"/32", "dev", "eth0")
	o.ip(ns, "addr", "add", v6+"/128", "dev", "eth0", "nodad")
	o.ip(ns, "link", "set", "eth0", "up")
	o.ip(ns, "neigh", "add", "169.254.1.1", "lladdr", mac.String(), "dev", "eth0", "nud", "permanent")
	o.ip(ns, "neigh", "add", "fe80::1", "lladdr", mac.String(), "dev", "eth0", "nud", "permanent")
	// In a fabric, the namespace of the link before the switch tells of the exit's MTU.
	outsideMTU := fmt.Sprint(exit.MTU(o.instance.Config.Datapath, mtu))
	o.ip(ns, "route", "add", "default", "via", "169.254.1.1", "dev", "eth0", "onlink", "mtu", outsideMTU)
	o.ip(ns, "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0", "mtu", outsideMTU)
	ovstest.In(t, ns, func() { must.NoError(t, port.SplitDatagrams("eth0")) })
	no, err := o.sw.AddPort(t.Context(), outer)
	must.NoError(t, err)
	o.state.Ports = append(o.state.Ports, ovs.Port{No: no, MAC: mac, Peer: peer, Routers: true})
	o.state.Endpoints = append(o.state.Endpoints, ovs.Endpoint{
		ID: uint64(n), Class: classWorkload, OutPort: no, SourcePorts: []uint32{no},
		Prefixes: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(v4), 32), netip.PrefixFrom(netip.MustParseAddr(v6), 128)},
	})
	return ns
}

// plug makes the exit and its port, and admits workloads to the outside.
func (o *outside) plug() {
	t := o.t
	t.Helper()
	var fresh bool
	ovstest.In(t, o.processor, func() {
		var err error
		_, fresh, err = o.exit.Ensure()
		must.NoError(t, err)
	})
	if fresh {
		must.NoError(t, o.sw.DeletePort(t.Context(), wellknown.ExitSwitchInterface))
	}
	no, err := o.sw.AddPort(t.Context(), wellknown.ExitSwitchInterface)
	must.NoError(t, err)
	own, peer := exit.Port()
	o.state.Ports = append(o.state.Ports[:2:2], ovs.Port{No: no, MAC: own, Peer: peer, Outside: true})
	beyond := func(id uint64, class uint32, prefixes ...string) ovs.Endpoint {
		e := ovs.Endpoint{ID: id, Class: class, OutPort: no, SourcePorts: []uint32{no}}
		for _, p := range prefixes {
			e.Prefixes = append(e.Prefixes, netip.MustParsePrefix(p))
		}
		return e
	}
	hole := ovs.Endpoint{ID: 23, Hole: true}
	for _, p := range []string{"100.64.0.0/10", "fd5f:7369:6600::/48", "192.0.2.0/24", "2001:db8:1::/64", "198.51.100.66/32"} {
		hole.Prefixes = append(hole.Prefixes, netip.MustParsePrefix(p))
	}
	o.state.Endpoints = append(o.state.Endpoints[:2:2],
		beyond(21, classPartner, host4+"/32", host6+"/128"), beyond(22, classWorld, "0.0.0.0/0", "::/0"), hole)
	o.state.Entries = nil
	for i, protocol := range []uint8{6, 17} {
		o.state.Entries = append(o.state.Entries, ovs.Entry{
			ID: uint64(101 + i), Src: classWorkload, Dst: classPartner, Protocol: protocol, Ports: []ovs.PortRange{{First: 8000, Last: 8999}},
		})
	}
	for i, protocol := range []uint8{1, 58} {
		o.state.Entries = append(o.state.Entries, ovs.Entry{
			ID: uint64(111 + i), Src: classWorkload, Dst: classPartner, Protocol: protocol, Ports: []ovs.PortRange{{First: 8, Last: 8}, {First: 128, Last: 128}},
		}, ovs.Entry{
			ID: uint64(121 + i), Src: classWorkload, Dst: classWorld, Protocol: protocol, Ports: []ovs.PortRange{{First: 8, Last: 8}, {First: 128, Last: 128}},
		})
	}
	must.NoError(t, o.pipeline.Set(t.Context(), o.state))
}

// dial connects from a namespace.
func (o *outside) dial(ns, network, address string) (c net.Conn, err error) {
	o.t.Helper()
	ovstest.In(o.t, ns, func() { c, err = net.DialTimeout(network, address, 4*time.Second) })
	if err == nil {
		o.t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

func (o *outside) listen(ns, address string) net.Listener {
	o.t.Helper()
	var l net.Listener
	ovstest.In(o.t, ns, func() {
		var err error
		l, err = net.Listen("tcp", address)
		must.NoError(o.t, err)
	})
	o.t.Cleanup(func() { _ = l.Close() })
	return l
}

// tellPeer answers each connection with the address of its peer and then what it is sent.
func tellPeer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			a, _ := netip.ParseAddrPort(c.RemoteAddr().String())
			_, _ = fmt.Fprintf(c, "%s\n", a.Addr().Unmap())
			_, _ = io.Copy(c, c)
		}()
	}
}

func line(t testing.TB, c net.Conn) string {
	t.Helper()
	must.NoError(t, c.SetReadDeadline(time.Now().Add(5*time.Second)))
	var text []byte
	for b := make([]byte, 1); ; text = append(text, b[0]) {
		_, err := c.Read(b)
		must.NoError(t, err)
		if b[0] == '\n' {
			return string(text)
		}
	}
}

// exchange sends a block and reads it back.
func exchange(t testing.TB, c net.Conn, size int) error {
	t.Helper()
	want := bytes.Repeat([]byte("payload!"), size/8)
	go func() { _, _ = c.Write(want) }()
	must.NoError(t, c.SetReadDeadline(time.Now().Add(30*time.Second)))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(want, got) {
		return fmt.Errorf("the payload was damaged")
	}
	return nil
}

func (o *outside) pings(ns, address string, args ...string) bool {
	args = append([]string{"--net=/run/netns/" + ns, "ping", "-c1", "-W2"}, append(args, address)...)
	return exec.Command("nsenter", args...).Run() == nil
}

func (o *outside) counters() map[string]uint64 {
	o.t.Helper()
	var values map[string]uint64
	ovstest.In(o.t, o.processor, func() {
		var err error
		values, err = o.exit.Counters()
		must.NoError(o.t, err)
	})
	return values
}

func join(a, p string) string { return net.JoinHostPort(a, p) }

func TestOutside(t *testing.T) {
	testhost.RequireProgram(t, "ping")
	o := newOutside(t, 1280)
	for _, f := range []struct{ host, seen string }{{host4, underlay4}, {host6, underlay6}} {
		go tellPeer(o.listen(o.host, join(f.host, "8080")))
		go tellPeer(o.listen(o.host, join(f.host, "9080")))
		c, err := o.dial(o.workload, "tcp", join(f.host, "8080"))
		must.NoError(t, err)
		must.Eq(t, f.seen, line(t, c), must.Sprint("the address that the outside sees"))
		// The path beyond the router carries 1280 bytes only, of which its errors tell both ends.
		must.NoError(t, exchange(t, c, 8<<20), must.Sprint(f.host))
		_, err = o.dial(o.workload, "tcp", join(f.host, "9080"))
		must.Error(t, err)

		var u net.PacketConn
		ovstest.In(t, o.host, func() { u, err = net.ListenPacket("udp", join(f.host, "8053")) })
		must.NoError(t, err)
		defer u.Close()
		go func() {
			b := make([]byte, 1<<16)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(b[:n], from)
			}
		}()
		d, err := o.dial(o.workload, "udp", join(f.host, "8053"))
		must.NoError(t, err)
		must.NoError(t, exchange(t, d, 800))

		must.True(t, o.pings(o.workload, f.host))
		must.True(t, o.pings(o.workload, f.host, "-s20000"), must.Sprint("fragments ", f.host))
	}
	var addresses []exit.Address
	ovstest.In(t, o.processor, func() { addresses = o.exit.Addresses() })
	must.Eq(t, []exit.Address{{"up0", netip.MustParseAddr(underlay4)}, {"up0", netip.MustParseAddr(underlay6)}}, addresses)
	must.SliceEmpty(t, o.exit.Findings())

	t.Run("holes", func(t *testing.T) {
		o.ip(o.host, "addr", "add", "198.51.100.66/24", "dev", "eth0")
		o.ip(o.host, "addr", "add", "198.51.100.67/24", "dev", "eth0")
		must.True(t, o.pings(o.workload, "198.51.100.67"))
		must.False(t, o.pings(o.workload, "198.51.100.66"))
		must.False(t, o.pings(o.workload, underlay4), must.Sprint("the processor itself"))
		must.False(t, o.pings(o.workload, "192.0.2.254"), must.Sprint("its neighbours"))
	})
	t.Run("routers show themselves", func(t *testing.T) {
		for _, f := range []struct{ host, hop string }{{host4, "192.0.2.254"}, {host6, "2001:db8:1::254"}} {
			args := []string{"--net=/run/netns/" + o.workload, "ping", "-c1", "-W2", "-t2", f.host}
			out, err := exec.Command("nsenter", args...).CombinedOutput()
			must.Error(t, err)
			must.StrContains(t, strings.ToLower(string(out)), "from "+f.hop)
		}
	})
	t.Run("unreachable ports are told", func(t *testing.T) {
		for _, host := range []string{host4, host6} {
			d, err := o.dial(o.workload, "udp", join(host, "8999"))
			must.NoError(t, err)
			_, err = d.Write([]byte("x"))
			must.NoError(t, err)
			must.NoError(t, d.SetReadDeadline(time.Now().Add(5*time.Second)))
			_, err = d.Read(make([]byte, 1))
			must.ErrorContains(t, err, "refused")
		}
	})
	t.Run("nobody outside reaches a workload or goes through", func(t *testing.T) {
		before := o.counters()
		o.ip(o.router, "route", "add", "100.64.0.0/10", "via", underlay4)
		o.ip(o.router, "-6", "route", "add", "fd5f:7369:6600::/48", "via", underlay6)
		go tellPeer(o.listen(o.workload, join(workload4, "8080")))
		go tellPeer(o.listen(o.workload, join(workload6, "8080")))
		for _, a := range []string{workload4, workload6} {
			_, err := o.dial(o.router, "tcp", join(a, "8080"))
			must.Error(t, err)
			must.False(t, o.pings(o.processor, a), must.Sprint("the processor itself"))
		}
		after := o.counters()
		must.Greater(t, before[exit.Unasked], after[exit.Unasked])
		must.Greater(t, before[exit.ToHost], after[exit.ToHost])
	})
	t.Run("what the switch should not have passed", func(t *testing.T) {
		o.ip(o.processor, "link", "add", "docker0", "type", "bridge")
		o.ip(o.processor, "addr", "add", "172.17.0.1/16", "dev", "docker0")
		o.ip(o.processor, "link", "set", "docker0", "up")
		o.state.Endpoints = slices.Clone(o.state.Endpoints)
		i := slices.IndexFunc(o.state.Endpoints, func(e ovs.Endpoint) bool { return e.Hole })
		hole := o.state.Endpoints[i]
		o.state.Endpoints = slices.Delete(o.state.Endpoints, i, i+1)
		must.NoError(t, o.pipeline.Set(t.Context(), o.state))
		before := o.counters()
		must.False(t, o.pings(o.workload, underlay4))
		must.False(t, o.pings(o.workload, underlay6))
		must.Eq(t, before[exit.ToHost]+2, o.counters()[exit.ToHost])
		must.False(t, o.pings(o.workload, "172.17.0.9"))
		must.False(t, o.pings(o.workload, "100.64.7.7"), must.Sprint("back into the fabric"))
		must.Eq(t, before[exit.Inside]+1, o.counters()[exit.Inside])
		must.Eq(t, before[exit.Spoofed]+1, o.counters()[exit.Spoofed])
		o.state.Endpoints = append(o.state.Endpoints, hole)
		must.NoError(t, o.pipeline.Set(t.Context(), o.state))
		o.ip(o.processor, "link", "del", "docker0")
	})
	t.Run("an entry that goes cuts a flow", func(t *testing.T) {
		c, err := o.dial(o.workload, "tcp", join(host4, "8080"))
		must.NoError(t, err)
		line(t, c)
		must.NoError(t, exchange(t, c, 800))
		whole := o.state.Entries
		o.state.Entries = o.state.Entries[1:]
		must.NoError(t, o.pipeline.Set(t.Context(), o.state))
		go func() { _, _ = c.Write([]byte("more")) }()
		must.NoError(t, c.SetReadDeadline(time.Now().Add(time.Second)))
		_, err = c.Read(make([]byte, 4))
		must.ErrorIs(t, err, os.ErrDeadlineExceeded)
		o.state.Entries = whole
		must.NoError(t, o.pipeline.Set(t.Context(), o.state))
		must.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
		_, err = io.ReadFull(c, make([]byte, 4))
		must.NoError(t, err, must.Sprint("it goes on with its entry"))
	})
	t.Run("a workload that floods leaves room for others", func(t *testing.T) {
		config := o.config
		config.PerEndpoint, config.NewPerSecond = 20, 1000
		few := exit.New(config)
		ovstest.In(t, o.processor, func() {
			_, fresh, err := few.Ensure()
			must.NoError(t, err)
			must.False(t, fresh)
		})
		opened := 0
		for range 40 {
			var c net.Conn
			var err error
			ovstest.In(t, o.workload, func() { c, err = net.DialTimeout("tcp", join(host4, "8080"), 300*time.Millisecond) })
			if err == nil {
				defer c.Close()
				opened++
			}
		}
		must.Between(t, 10, opened, 20)
		must.Positive(t, o.counters()[exit.Flood])
		c, err := o.dial(o.other, "tcp", join(host4, "8080"))
		must.NoError(t, err)
		must.Eq(t, underlay4, line(t, c))

		config.PerEndpoint, config.NewPerSecond = 1000, 5
		slow := exit.New(config)
		ovstest.In(t, o.processor, func() {
			_, _, err := slow.Ensure()
			must.NoError(t, err)
		})
		before := o.counters()[exit.Flood]
		u, err := o.dial(o.other, "udp", join(host4, "8053"))
		must.NoError(t, err)
		must.NoError(t, exchange(t, u, 8))
		for i := range 50 {
			u, err := o.dial(o.other, "udp", join(host4, fmt.Sprint(8100+i)))
			must.NoError(t, err)
			_, err = u.Write([]byte("x"))
			must.NoError(t, err)
		}
		for deadline := time.Now().Add(10 * time.Second); o.counters()[exit.Flood] <= before; time.Sleep(20 * time.Millisecond) {
			must.True(t, time.Now().Before(deadline))
		}
		// What others write is replaced: that of a further process.
		ovstest.In(t, o.processor, func() {
			changes, _, err := o.exit.Ensure()
			must.NoError(t, err)
			must.Len(t, 1, changes)
		})
		must.GreaterEq(t, before, o.counters()[exit.Flood], must.Sprint("counters go on"))
	})
}

// ensure repairs the exit, and checks that nothing differs then.
func (o *outside) ensure(x *exit.Exit) (changes []kernel.Change, fresh bool) {
	o.t.Helper()
	ovstest.In(o.t, o.processor, func() {
		var err error
		changes, fresh, err = x.Ensure()
		must.NoError(o.t, err)
		again, more, err := x.Ensure()
		must.NoError(o.t, err)
		must.SliceEmpty(o.t, again)
		must.False(o.t, more)
	})
	return changes, fresh
}

func TestRepair(t *testing.T) {
	o := newOutside(t, 1500)
	go tellPeer(o.listen(o.host, ":8080"))
	works := func(what string) {
		t.Helper()
		for _, f := range []struct{ host, seen string }{{host4, underlay4}, {host6, underlay6}} {
			c, err := o.dial(o.workload, "tcp", join(f.host, "8080"))
			must.NoError(t, err, must.Sprint(what))
			must.Eq(t, f.seen, line(t, c))
			must.NoError(t, c.Close())
		}
	}
	works("at first")
	testhost.RequireProgram(t, "nft")
	must.StrContains(t, ovstest.Run(t, "nsenter", "--net=/run/netns/"+o.processor, "nft", "list", "set", "inet", "sif_exit", "outside6"), `{ "up0" }`)
	for _, x := range []struct{ command, subject string }{
		{"ip route del 100.64.0.0/10", "100.64.0.0/10 to sif-exit"},
		{"ip -6 route del fd5f:7369:6600::/48", "fd5f:7369:6600::/48 to sif-exit"},
		{"ip route add 10.9.0.0/16 dev sif-exit", "10.9.0.0/16 to sif-exit"},
		{"ip neigh flush dev sif-exit nud permanent", "169.254.1.1 on sif-exit"},
		{"ip addr add 10.9.9.9/32 dev sif-exit", "10.9.9.9/32 on sif-exit"},
		{"ip link set sif-exit down", "sif-exit"},
		{"ip link set sif-exit address 02:00:00:00:00:77", "sif-exit"},
		{"ip link set sif-oexit mtu 1500", "sif-oexit"},
		{"sysctl -q net.ipv4.ip_forward=0", "net.ipv4.ip_forward"},
		{"sysctl -q net.ipv4.conf.up0.forwarding=0", "net.ipv4.conf.up0.forwarding"},
		{"sysctl -q net.ipv6.conf.all.forwarding=0", "net.ipv6.conf.all.forwarding"},
		{"nft delete table inet sif_exit", "the nftables table inet sif_exit"},
		{"nft flush chain inet sif_exit postrouting", "the nftables table inet sif_exit"},
		{"nft insert rule inet sif_exit forward accept", "the nftables table inet sif_exit"},
		{"nft add element inet sif_exit outside4 {docker0}", "the nftables table inet sif_exit"},
		{"nft add table inet sif_exit { flags dormant; }", "the nftables table inet sif_exit"},
	} {
		ovstest.Run(t, "nsenter", append([]string{"--net=/run/netns/" + o.processor}, strings.Fields(x.command)...)...)
		changes, fresh := o.ensure(o.exit)
		must.False(t, fresh)
		must.True(t, slices.ContainsFunc(changes, func(c kernel.Change) bool { return c.Subject == x.subject }), must.Sprint(x.command, changes))
		works(x.command)
	}
	o.ip(o.processor, "link", "del", "sif-exit")
	o.plug()
	works("a new veth pair")

	// A further process takes over, and connections go on.
	c, err := o.dial(o.workload, "tcp", join(host4, "8080"))
	must.NoError(t, err)
	line(t, c)
	o.exit = exit.New(o.config)
	changes, fresh := o.ensure(o.exit)
	must.False(t, fresh)
	must.SliceEmpty(t, changes)
	must.NoError(t, exchange(t, c, 800))
	// The switch starts again, which forgets connections, and TCP goes on.
	o.instance.RestartSwitch()
	conn, err := o.sw.Dial(t.Context())
	must.NoError(t, err)
	defer conn.Close()
	o.pipeline.UseConn(conn)
	must.NoError(t, o.pipeline.Set(t.Context(), o.state))
	must.NoError(t, exchange(t, c, 800))
	works("a switch that started again")

	var list []string
	ovstest.In(t, o.processor, func() {
		left, err := exit.Leftovers()
		must.NoError(t, err)
		for _, l := range left {
			list = append(list, l.String())
			must.NoError(t, l.Remove(t.Context()))
			must.NoError(t, l.Remove(t.Context()))
		}
		left, err = exit.Leftovers()
		must.NoError(t, err)
		must.SliceEmpty(t, left)
	})
	must.Eq(t, []string{"interface sif-exit", "nftables table inet sif_exit"}, list)
	must.StrNotContains(t, o.ip(o.processor, "route"), "100.64")
}

func TestTry(t *testing.T) {
	testhost.RequireRoot(t)
	must.NoError(t, exit.Try())
}

func TestAddresses(t *testing.T) {
	testhost.RequireRoot(t)
	ns := ovstest.Namespace(t, "p")
	ip := func(args ...string) { ovstest.Run(t, "ip", append([]string{"-n", ns}, args...)...) }
	ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
	ip("link", "add", "nat0", "type", "veth", "peer", "name", "nat1")
	for _, l := range []string{"up0", "up1", "nat0", "nat1"} {
		ip("link", "set", l, "up")
	}
	ip("addr", "add", "10.1.0.7/24", "dev", "up0")
	ip("addr", "add", "10.1.0.8/24", "dev", "up0")
	ip("addr", "add", "203.0.113.5/24", "dev", "nat0")
	ip("addr", "add", "fd00::5/64", "dev", "nat0", "nodad")
	ip("addr", "add", "2001:db8::5/64", "dev", "nat0", "nodad")
	config := exit.Config{Underlay: "up0", UnderlayAddress: netip.MustParseAddr("10.1.0.8"), MTU: mtu, PerEndpoint: 10, NewPerSecond: 10,
		Ranges: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}}
	ensure := func(x *exit.Exit) (list []string) {
		t.Helper()
		ovstest.In(t, ns, func() {
			_, _, err := x.Ensure()
			must.NoError(t, err)
		})
		for _, a := range x.Addresses() {
			list = append(list, a.Interface+" "+a.Addr.String())
		}
		return list
	}
	x := exit.New(config)
	must.Eq(t, []string{"up0 10.1.0.8"}, ensure(x))
	must.False(t, x.Leads())
	ip("route", "add", "default", "via", "203.0.113.1")
	both := []string{"nat0 203.0.113.5", "nat0 2001:db8::5", "up0 10.1.0.8"}
	must.Eq(t, both, ensure(x))
	// A further address changes nothing, and one that goes is told.
	ip("addr", "add", "203.0.113.4/32", "dev", "nat0")
	must.Eq(t, both, ensure(x))
	must.SliceEmpty(t, x.Findings())
	must.True(t, x.Leads())
	ip("addr", "del", "2001:db8::5/64", "dev", "nat0")
	must.Eq(t, []string{"nat0 203.0.113.5", "nat0 fd00::5", "up0 10.1.0.8"}, ensure(x))
	must.Len(t, 1, x.Findings())
	must.StrContains(t, x.Findings()[0], "have had the address 2001:db8::5 and now have fd00::5")
	// A default route by which nothing can be sent is none, and one of IPv6 is enough.
	ip("link", "set", "nat1", "down")
	ensure(x)
	must.False(t, x.Leads())
	ip("link", "set", "nat1", "up")
	ensure(x)
	must.True(t, x.Leads())
	ip("route", "del", "default")
	ensure(x)
	must.False(t, x.Leads())
	ip("-6", "route", "add", "default", "via", "fd00::1", "dev", "nat0")
	ensure(x)
	must.True(t, x.Leads())
	ip("-6", "route", "del", "default")
	ip("route", "add", "default", "via", "203.0.113.1")

	config.Address4, config.Address6 = netip.MustParseAddr("203.0.113.4"), netip.MustParseAddr("2001:db8::77")
	config.Interfaces = []string{"nat1", "none0"}
	x = exit.New(config)
	must.Eq(t, []string{"nat0 203.0.113.4", "nat0 fd00::5", "nat1 203.0.113.4", "up0 203.0.113.4"}, ensure(x))
	must.Len(t, 2, x.Findings())
	must.StrContains(t, x.Findings()[0], "2001:db8::77, which is exit.address6 of the engine's configuration, is no address of this machine")
	must.StrContains(t, x.Findings()[1], "interface none0")
	ip("route", "del", "default")
	must.Eq(t, []string{"nat1 203.0.113.4", "up0 203.0.113.4"}, ensure(x))
	must.True(t, x.Leads(), must.Sprint("by the interface that the configuration names"))
}
