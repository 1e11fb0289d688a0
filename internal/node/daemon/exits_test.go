// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/link"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/trust/roster"
	"github.com/sif-project/sif/internal/wellknown"
)

// Somebody outside, whom the node could reach by its own default route, too.
var (
	outside4 = netip.MustParseAddr("203.0.113.1")
	outside6 = netip.MustParseAddr("2001:db8::1")
)

// way is a port of the outside and the mark that the workload's packets to it get, as the eBPF
// programs mark them.
type way struct {
	port uint16
	mark uint32
	by   string // who must be reached; empty: nobody
}

// exitSite is a workload node with a workload, two processors, and a router to which the node's
// default route leads, each in a namespace. All three have the outside's addresses and say who they
// are.
type exitSite struct {
	t                              *testing.T
	node, workload, p1, p2, router ns.NetNS
	self                           roster.Member
	members                        []roster.Member
	n                              *Node
	stopped                        map[ns.NetNS]func()
	dir                            map[ns.NetNS]string
}

func (s *exitSite) space() ns.NetNS {
	namespace, err := testutils.NewNS()
	must.NoError(s.t, err)
	s.t.Cleanup(func() {
		must.NoError(s.t, namespace.Close())
		must.NoError(s.t, testutils.UnmountNS(namespace))
	})
	return namespace
}

func (s *exitSite) run(in ns.NetNS, script string) string {
	s.t.Helper()
	out, err := exec.Command("nsenter", "--net="+in.Path(), "sh", "-ec", script).CombinedOutput()
	must.NoError(s.t, err, must.Sprintf("%s\n%s", script, out))
	return string(out)
}

func newExitSite(t *testing.T, device string) *exitSite {
	testhost.RequireRoot(t)
	for _, program := range []string{"nsenter", "ip", "nft", "sysctl"} {
		testhost.RequireProgram(t, program)
	}
	s := &exitSite{t: t, stopped: map[ns.NetNS]func(){}, dir: map[ns.NetNS]string{}}
	bridge := s.space()
	s.run(bridge, "ip link add br0 up type bridge")
	for i, n := range []*ns.NetNS{&s.node, &s.p1, &s.p2, &s.router, &s.workload} {
		*n = s.space()
		s.run(*n, "ip link set lo up; sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0")
		if *n != s.workload {
			s.run(bridge, fmt.Sprintf("ip link add u%d up master br0 type veth peer name eth0 netns %s", i, (*n).Path()))
			s.run(*n, fmt.Sprintf("ip addr add 192.0.2.%d/24 dev eth0; ip addr add 2001:db8:1::%d/64 dev eth0 nodad; ip link set eth0 up", i+1, i+1))
		}
	}
	s.run(s.node, "ip route add default via 192.0.2.4; ip -6 route add default via 2001:db8:1::4; "+
		"sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; "+
		"ip link add sif0123456789a type veth peer name eth0 netns "+s.workload.Path()+"; ip link set sif0123456789a up; "+
		"ip addr add 169.254.1.1/32 dev sif0123456789a; ip addr add fe80::1/64 dev sif0123456789a nodad; "+
		"ip route add 100.64.1.2 dev sif0123456789a; ip -6 route add fd00:0:0:100::2 dev sif0123456789a")
	s.run(s.workload, "ip addr add 100.64.1.2/32 dev eth0; ip addr add fd00:0:0:100::2/128 dev eth0 nodad; ip link set eth0 up; "+
		"ip route add 169.254.1.1 dev eth0; ip route add default via 169.254.1.1; ip -6 route add default via fe80::1 dev eth0")
	s.run(s.router, "ip route add 100.64.0.0/10 via 192.0.2.1; ip -6 route add fd00::/16 via 2001:db8:1::1")
	s.member(device)
	for n, name := range map[ns.NetNS]string{s.p1: "p1", s.p2: "p2", s.router: "router"} {
		s.run(n, fmt.Sprintf("ip addr add %s/32 dev lo; ip addr add %s/128 dev lo nodad", outside4, outside6))
		s.say(n, name, 1, 2, 3, 4)
	}
	return s
}

// say tells everybody who asks at ports of the outside who is there.
func (s *exitSite) say(n ns.NetNS, name string, ports ...int) {
	for _, port := range ports {
		must.NoError(s.t, n.Do(func(ns.NetNS) error {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
			must.NoError(s.t, err)
			s.t.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					_, _ = io.WriteString(c, name)
					c.Close()
				}
			}()
			return nil
		}))
	}
}

// ask returns who answers the workload at an address, or nothing.
func (s *exitSite) ask(addr netip.Addr, port uint16) (who string) {
	must.NoError(s.t, s.workload.Do(func(ns.NetNS) error {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(addr, port).String(), 500*time.Millisecond)
		if err != nil {
			return nil
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(2 * time.Second))
		b, _ := io.ReadAll(c)
		who = string(b)
		return nil
	}))
	return who
}

// expect asks at each port, with both versions of IP.
func (s *exitSite) expect(what string, ways ...way) {
	s.t.Helper()
	for _, w := range ways {
		for _, addr := range []netip.Addr{outside4, outside6} {
			got := ""
			for range 6 { // the first handshakes of WireGuard may be lost
				if got = s.ask(addr, w.port); got != "" || w.by == "" {
					break
				}
			}
			must.Eq(s.t, w.by, got, must.Sprintf("%s: mark %#x, %s", what, w.mark, addr))
		}
	}
}

// expectClosed runs a command after which nothing may pass by a way, until it has seen that. Where
// sif link owns the devices it puts back by itself what the command took away, at any time.
func (s *exitSite) expectClosed(command string, w way) {
	s.t.Helper()
	for _, addr := range []netip.Addr{outside4, outside6} {
		got := s.ask(addr, w.port)
		for tries := 0; got == w.by && tries < 10; tries++ {
			s.run(s.node, "set +e; "+command+"; true")
			got = s.ask(addr, w.port)
		}
		must.Eq(s.t, "", got, must.Sprintf("%s: mark %#x, %s", command, w.mark, addr))
	}
}

// member makes the nodes and their links. device is the kind of those of the node.
func (s *exitSite) member(device string) {
	t := s.t
	for _, n := range []ns.NetNS{s.node, s.p1, s.p2} {
		s.dir[n] = t.TempDir()
	}
	c := &config.Config{DataDir: s.dir[s.node], Link: &config.Link{Socket: filepath.Join(s.dir[s.node], "run", "link.sock"), MTU: 1420, Device: device}}
	s.n = &Node{Kind: fabric.KindWorkload, Log: hclog.NewNullLogger()}
	must.NoError(t, s.node.Do(func(ns.NetNS) (err error) {
		s.n.Links, err = openLinks(c, fabric.KindWorkload, hclog.NewNullLogger())
		return err
	}))
	s.self = roster.Member{Node: fabric.Node{
		Kind: fabric.KindWorkload, Zone: "z1", Name: "w1", Underlay: netip.MustParseAddr("192.0.2.1"),
		Pool4: netip.MustParsePrefix("100.64.1.0/24"), Pool6: netip.MustParsePrefix("fd00:0:0:100::/64"),
		Ranges: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd00::/16")},
	}}
	s.n.Self = s.self.Node
	own := link.Key(s.n.Links.publicKey())
	for i, p := range []ns.NetNS{s.p1, s.p2} {
		key, err := link.GenerateKey()
		must.NoError(t, err)
		public := key.Public()
		m := roster.Member{Node: fabric.Node{
			Kind: fabric.KindProcessor, Zone: "z1", Name: fmt.Sprintf("p%d", i+1), Underlay: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 2)}),
			Pool4: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(i + 2), 0}), 24),
			Pool6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 7: byte(i + 2)}), 64),
		}, Link: fabric.Link{PublicKey: public[:], Ports: map[fabric.NodeID]uint16{{}: 51820}}}
		s.members = append(s.members, m)
		s.stopped[p] = startLink(t, p, s.dir[p])
		must.NoError(t, link.NewClient(filepath.Join(s.dir[p], "run")).Apply(t.Context(), []link.Device{{
			Name: "sif-l0", Interface: link.Interface{MTU: 1420, Routes: true}, ListenPort: 51820, PrivateKey: key,
			Peers: []link.Peer{{PublicKey: own, AllowedIPs: pools(s.self), Endpoint: netip.AddrPortFrom(s.self.Underlay, uint16(51821+i))}},
		}}))
	}
	if device == config.DeviceUserspace {
		s.stopped[s.node] = startLink(t, s.node, s.dir[s.node])
	}
}

// follow sets up the node's links and routing as keepLinks does.
func (s *exitSite) follow(members ...roster.Member) error {
	return s.node.Do(func(ns.NetNS) error {
		_, _, err := s.n.followLinks(s.t.Context(), members)
		return err
	})
}

// mark marks the workload's packets by their port.
func (s *exitSite) mark(ways ...way) {
	script := "nft add table inet marks; nft add chain inet marks pre '{ type filter hook prerouting priority -400; }'\n"
	for _, w := range ways {
		script += fmt.Sprintf("nft add rule inet marks pre iifname sif0123456789a tcp dport %d meta mark set %#x\n", w.port, w.mark)
	}
	s.run(s.node, script)
}

// Packets with the mark of a processor leave by its link, and by no other way, whatever happens to
// the links, to the rules, and whatever the host's reverse-path filter is.
func TestMarkedPacketsTakeTheirExit(t *testing.T) {
	t.Run(config.DeviceUserspace, func(t *testing.T) { markedPackets(t, config.DeviceUserspace) })
	t.Run(config.DeviceKernel, func(t *testing.T) {
		testhost.RequireRoot(t)
		if err := link.KernelSupport(); err != nil {
			testhost.UnmetHere(t, err.Error())
		}
		markedPackets(t, config.DeviceKernel)
	})
}

func markedPackets(t *testing.T, device string) {
	s := newExitSite(t, device)
	first, second := way{1, wellknown.ExitMark(0), "p1"}, way{2, wellknown.ExitMark(1), "p2"}
	nobody, plain := way{3, wellknown.ExitMark(77), ""}, way{4, 0, "router"}
	s.mark(first, second, nobody)
	cut := func(w way) way { return way{w.port, w.mark, ""} }
	before := s.run(s.node, "(ip rule; ip -6 rule; ip route show table all; ip -6 route show table all) | grep -Ev 'table local|fe80'")

	must.NoError(t, s.follow(s.members...))
	s.expect("at first", first, second, nobody, plain)
	exits := s.n.Links.exits(s.n.Self, s.members)
	must.Eq(t, []Exit{
		{Processor: fabric.NodeID{Zone: "z1", Name: "p1"}, Mark: wellknown.ExitMark(0), Interface: "sif-l1"},
		{Processor: fabric.NodeID{Zone: "z1", Name: "p2"}, Mark: wellknown.ExitMark(1), Interface: "sif-l2"},
	}, exits)
	// Answers pass the reverse-path filter, whatever it is, because the firewall marks them.
	fw := firewall.New(firewall.Config{
		Underlay: "eth0", Ranges: s.n.Self.Ranges, Links: s.n.Links.Ports, Marks: s.n.Links.marks, DNSPackets: firewall.DNSPacketsPerSecond, Published: 1000,
		Health: []netip.Addr{s.n.Self.Health4(), s.n.Self.Health6()},
	})
	must.NoError(t, s.node.Do(func(ns.NetNS) error { _, err := fw.Apply(); return err }))
	for _, settings := range []string{"rp_filter=1", "rp_filter=2", "src_valid_mark=1", "rp_filter=0"} {
		s.run(s.node, "sysctl -qw net.ipv4.conf.all."+settings)
		s.expect(settings, first, second, nobody)
		s.run(s.node, "ip route del default; ip -6 route del default")
		s.expect(settings+" without a default route", first, second, nobody)
		s.run(s.node, "ip route add default via 192.0.2.4; ip -6 route add default via 2001:db8:1::4")
	}
	s.run(s.node, "sysctl -qw net.ipv4.conf.all.rp_filter=1; nft add table ip6 strict; nft add chain ip6 strict pre '{ type filter hook prerouting priority -140; }'; "+
		"nft add rule ip6 strict pre fib saddr . mark . iif oif missing drop") // firewalld's
	s.expect("firewalld", first, second)
	s.run(s.node, "nft delete table ip6 strict; sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.all.src_valid_mark=0")
	must.NoError(t, s.node.Do(func(ns.NetNS) error { return fw.Remove() }))

	// Probes from the node's own address in the pool go where the fabric's routes lead.
	s.run(s.node, "ip addr add 100.64.1.1/32 dev lo")
	must.StrContains(t, s.run(s.node, "ip route get 100.64.2.1 from 100.64.1.1"), "dev sif-l1")

	// What others take away fails closed, and is put back. Others' rules stay.
	s.run(s.node, "ip rule add pref 5100 fwmark 0x99 lookup main")
	for _, c := range []struct {
		command string
		closed  bool // nothing passes by the first exit meanwhile
	}{
		{"ip route flush table 5100; ip -6 route flush table 5100", true},
		{"ip rule del pref 5100 fwmark 0x51f00100; ip -6 rule del pref 5100 fwmark 0x51f00100", true},
		{"ip route add 203.0.113.0/24 dev eth0 table 5100 proto 205; ip route del 203.0.113.0/24 table 5100", false},
		{"ip rule del pref 5101; ip -6 rule del pref 5101; ip rule del pref 5099; ip route flush table 5356", false},
	} {
		s.run(s.node, c.command)
		if c.closed {
			s.expectClosed(c.command, first)
			s.expect(c.command, second, nobody)
		}
		must.NoError(t, s.follow(s.members...))
		s.expect("after "+c.command, first, second, nobody, plain)
	}
	must.StrContains(t, s.run(s.node, "ip rule"), "fwmark 0x99 lookup main")
	s.run(s.node, "ip rule del pref 5100 fwmark 0x99")

	// A flow goes on while the links are applied again.
	must.NoError(t, s.follow(s.members...))

	// A link that is gone leads nowhere, and comes back with its routes.
	s.run(s.node, "ip link del sif-l1")
	s.expectClosed("ip link del sif-l1", first)
	s.expect("without the first link", second, nobody, plain)
	must.NoError(t, s.follow(s.members...))
	deadline := time.Now().Add(20 * time.Second) // `sif link` makes it again by itself
	for s.ask(outside4, 1) != "p1" || s.ask(outside6, 1) != "p1" {
		must.True(t, time.Now().Before(deadline))
	}
	must.NoError(t, s.follow(s.members...))
	s.expect("with the first link again", first, second, nobody)

	// So does a processor that has left; the slot of the other is its own.
	must.NoError(t, s.follow(s.members[1]))
	s.expect("without the first processor", cut(first), second, nobody, plain)
	must.NoError(t, s.follow(s.members...))
	s.expect("with both processors", first, second, nobody)

	// Who comes before our rules is reported.
	must.SliceEmpty(t, s.n.findings["exits"])
	s.run(s.node, "ip rule add pref 100 from 100.64.0.0/10 lookup main")
	must.NoError(t, s.follow(s.members...))
	must.Len(t, 1, s.n.findings["exits"])
	must.StrContains(t, s.n.findings["exits"][0], "routing rule 100 (IPv4) from 100.64.0.0/10 comes before")
	s.run(s.node, "ip rule del pref 100")

	// Nothing stays behind.
	must.NoError(t, s.node.Do(func(ns.NetNS) error {
		list, err := Leftovers(&config.Config{DataDir: t.TempDir()})
		must.NoError(t, err)
		for _, l := range list {
			err = errors.Join(err, l.Remove(t.Context()))
		}
		return err
	}))
	s.run(s.node, "ip addr del 100.64.1.1/32 dev lo; ip route flush cache")
	after := s.run(s.node, "(ip rule; ip -6 rule; ip route show table all; ip -6 route show table all) | grep -Ev 'table local|fe80'")
	must.Eq(t, sorted(before), sorted(after))
}

func sorted(lines string) map[string]int {
	count := map[string]int{}
	for _, l := range strings.Split(lines, "\n") {
		count[l]++
	}
	return count
}
