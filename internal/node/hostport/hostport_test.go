// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hostport_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/node/hostport"
	"github.com/sif-project/sif/internal/testhost"
)

const near4, far4, near6, far6 = "169.254.50.3", "169.254.51.3", "fd51:f0c9:7a13:50::3", "fd51:f0c9:7a13:51::3"

// What comes to the endpoint's addresses reaches the process, wherever it listens on the node, and
// nothing but the ports does.
func TestInbound(t *testing.T) {
	s := newSite(t)
	s.ensure(s.one("", "5432", "udp/5353"))
	for _, c := range []struct {
		name, tcp, udp, address string
		v4, v6                  string // what the process sees of a peer
	}{
		{"everywhere", "tcp", "udp", "", far4, far6},
		{"every address of IPv4", "tcp4", "udp4", "0.0.0.0", far4, "refused"},
		{"every address of IPv6", "tcp6", "udp6", "[::]", "refused", far6},
		{"loopback of IPv4", "tcp4", "udp4", "127.0.0.1", far4, "refused"},
		{"loopback of IPv6", "tcp6", "udp6", "[::1]", "refused", far6},
		{"another loopback address", "tcp4", "udp4", "127.0.0.53", far4, "refused"},
		{"the node's address", "tcp4", "udp4", node4, far4, "refused"},
		{"the node's IPv6 address", "tcp6", "udp6", "[" + node6 + "]", "refused", far6},
		{"nowhere", "", "", "", "refused", "refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := *s
			s.t = t
			if c.tcp != "" {
				defer s.serve(s.node, c.tcp, c.address+":5432")()
				defer s.serve(s.node, c.udp, c.address+":5353")()
				defer s.serve(s.node, c.tcp, c.address+":5433")()
				defer s.serve(s.node, c.udp, c.address+":5432")()
			}
			s.do(func() error { return s.host.Refresh(nil) })
			must.Eq(t, c.v4, s.asks(s.workload, "tcp", first4+":5432"))
			must.Eq(t, c.v6, s.asks(s.workload, "tcp", "["+first6+"]:5432"))
			must.Eq(t, c.v4, s.asks(s.workload, "udp", first4+":5353"))
			must.Eq(t, c.v6, s.asks(s.workload, "udp", "["+first6+"]:5353"))
			for _, a := range []string{first4, "[" + first6 + "]"} {
				must.Eq(t, "refused", s.asks(s.workload, "tcp", a+":5433"), must.Sprint("a port that is not given"))
				must.Eq(t, "refused", s.asks(s.workload, "udp", a+":5432"), must.Sprint("the same port of UDP"))
			}
		})
	}
	must.Eq(t, "", s.run(s.node, "nft list ruleset 2>&1 >/dev/null"))
	must.Eq(t, "", s.run(s.first, "nft list ruleset 2>&1 >/dev/null"))
}

// A sender that began before the process listened is answered when it does, wherever that is.
func TestProcessStartsLater(t *testing.T) {
	s := newSite(t)
	s.ensure(s.one("", "5432", "udp/5353"))
	for _, c := range []struct{ network, address, at string }{
		{"udp4", "0.0.0.0", first4}, {"udp4", "127.0.0.1", first4}, {"udp6", "[::]", "[" + first6 + "]"}, {"udp6", "[::1]", "[" + first6 + "]"},
	} {
		u := s.dial(s.workload, "udp", c.at+":5353")
		must.Eq(t, "refused", answers(u))
		stop := s.serve(s.node, c.network, c.address+":5353")
		must.StrNotContains(t, answers(u), "refused", must.Sprint(c))
		must.Eq(t, map[bool]string{false: far4, true: far6}[c.network == "udp6"], answers(u), must.Sprint(c))
		stop()
		must.Eq(t, "refused", answers(u))
	}
	must.Eq(t, "refused", s.asks(s.workload, "tcp", first4+":5432"))
	defer s.serve(s.node, "tcp", ":5432")()
	must.Eq(t, far4, s.asks(s.workload, "tcp", first4+":5432"))
}

// Who takes the node's end of the pair after a process listens at loopback does not get its peers.
func TestPortIsNotTaken(t *testing.T) {
	s := newSite(t)
	s.ensure(s.one("", "5432", "udp/5353"))
	for _, c := range []struct{ network, address, near, port, to string }{
		{"tcp4", "127.0.0.1", near4, ":5432", first4}, {"udp4", "127.0.0.1", near4, ":5353", first4},
		{"tcp6", "[::1]", "[" + near6 + "]", ":5432", "[" + first6 + "]"}, {"udp6", "[::1]", "[" + near6 + "]", ":5353", "[" + first6 + "]"},
	} {
		stop := s.serve(s.node, c.network, c.address+c.port)
		taken := 0
		must.NoError(t, s.node.Do(func(ns.NetNS) error {
			if c.network[:3] == "tcp" {
				l, err := net.Listen(c.network, c.near+c.port)
				must.NoError(t, err)
				defer l.Close()
			} else {
				u, err := net.ListenPacket(c.network, c.near+c.port)
				must.NoError(t, err)
				defer u.Close()
			}
			must.NoError(t, s.host.Refresh(nil))
			if !strings.HasPrefix(s.asks(s.workload, c.network, c.to+c.port), map[bool]string{true: far6, false: far4}[c.to[0] == '[']) {
				taken++
			}
			return nil
		}))
		must.Zero(t, taken, must.Sprint(c))
		stop()
	}
}

func TestOutbound(t *testing.T) {
	s := newSite(t)
	group := s.cgroup("sif-test-hostport-out/db")
	for _, n := range []string{"tcp", "udp"} {
		defer s.serve(s.workload, n, ":80")()
		defer s.serve(s.outside, n, ":80")()
	}
	s.ensure(s.one(group, "5432"))
	for _, network := range []string{"tcp", "udp"} {
		must.Eq(t, first4, s.sends(group, network, workload4+":80"))
		must.Eq(t, first6, s.sends(group, network, "["+workload6+"]:80"))
		must.Eq(t, node4, s.sends(group, network, outside4+":80"), must.Sprint("what is not reached by the endpoint goes the node's way"))
		must.Eq(t, node6, s.sends(group, network, "["+outside6+"]:80"))
	}
	must.Eq(t, "", s.run(s.node, "nft list ruleset 2>&1 >/dev/null"))
}

// Who is not a process of the cgroup does not get to the endpoint, and nothing but the ports of the
// node is reached from its namespace.
func TestNobodyElse(t *testing.T) {
	s := newSite(t)
	group := s.cgroup("sif-test-hostport-alone-db")
	other := s.cgroup("sif-test-hostport-alone-web")
	for _, n := range []string{"tcp", "udp"} {
		defer s.serve(s.workload, n, ":80")()
		defer s.serve(s.node, n, ":5432")()
		defer s.serve(s.node, n, ":22")()
		defer s.serve(s.first, n, ":53")()
	}
	defer s.serve(s.node, "udp", "169.254.1.1:53")()
	s.ensure(s.one(group, "5432"), s.two(other, "5432"))
	must.Eq(t, first4, s.sends(group, "tcp", workload4+":80"))
	must.Eq(t, second4, s.sends(other, "tcp", workload4+":80"))
	must.Eq(t, node6, s.sends("", "tcp", "["+workload6+"]:80"), must.Sprint("the address of the pair is nobody's source"))
	must.Eq(t, "192.0.2.1", s.sends("", "tcp", workload4+":80"), must.Sprint("other processes appear as the node"))

	for _, network := range []string{"tcp", "udp"} {
		for _, far := range []string{far4, "[" + far6 + "]"} {
			for _, port := range []string{":53", ":5432"} {
				for _, from := range []hostport.Group{"", group} {
					must.True(t, s.unanswered(from, network, far+port), must.Sprint(from, network, far+port))
				}
			}
		}
	}
	// Even with the mark: what is not of the cgroup does not leave by the pair.
	s.run(s.node, "ip rule add pref 10 iif lo to "+workload4+" ipproto tcp dport 80 lookup 5403")
	must.True(t, s.unanswered("", "tcp", workload4+":80"))
	must.True(t, s.unanswered(other, "tcp", workload4+":80"))
	must.Eq(t, first4, s.sends(group, "tcp", workload4+":80"))
	s.run(s.node, "ip rule del pref 10")

	// From outside, by the addresses of the pair or of the endpoint.
	for _, to := range []string{near4, far4} {
		s.run(s.outside, "ip route add "+to+" via "+node4)
		must.True(t, s.silent(s.outside, "tcp", to+":5432"))
		must.True(t, s.silent(s.workload, "tcp", to+":5432"))
	}
	for _, to := range []string{"fd51:f0c9:7a13:50::3", far6} {
		must.True(t, s.silent(s.outside, "tcp", "["+to+"]:5432"))
		must.True(t, s.silent(s.workload, "tcp", "["+to+"]:5432"))
	}
	s.run(s.outside, "ip route add "+first4+" via "+node4)
	must.True(t, s.silent(s.outside, "tcp", first4+":5432"))
	must.True(t, s.silent(s.outside, "tcp", "["+first6+"]:5432"))

	// From the endpoint's namespace.
	for _, port := range []string{":22", ":53", ":80"} {
		must.True(t, s.silent(s.first, "tcp", near4+port), must.Sprint(port))
		must.True(t, s.silent(s.first, "udp", near4+port), must.Sprint(port))
	}
	must.True(t, s.silent(s.first, "tcp", near4+":5432"), must.Sprint("the namespace itself sends nothing"))
	s.run(s.first, "nft flush table inet sif_host")
	must.True(t, s.silent(s.first, "tcp", near4+":22"), must.Sprint("the node does not rely on it"))
	must.True(t, s.silent(s.first, "udp", near4+":22"))
	s.run(s.first, "ip route add 127.0.0.2 dev host0; ip route add 192.0.2.0/24 via "+near4+" dev host0 onlink; ip addr add 127.0.0.3/32 dev host0")
	must.True(t, s.silent(s.first, "tcp", node4+":22"))
	must.True(t, s.silent(s.first, "tcp", outside4+":22"))
	counted := map[string]uint64{}
	s.do(func() (err error) {
		counted, err = s.host.Counters()
		return err
	})
	for _, name := range []string{hostport.Input, hostport.Output, hostport.Forward} {
		must.Positive(t, counted[name], must.Sprint(name))
	}
}

// The kernel remembers a flow of UDP longer than its socket lives. Who gets its port then, does not
// get its way.
func TestFlowIsNotInherited(t *testing.T) {
	s := newSite(t)
	group := s.cgroup("sif-test-hostport-flow-db")
	other := s.cgroup("sif-test-hostport-flow-web")
	sub := group + "/worker"
	must.NoError(t, os.Mkdir(s.directory(sub), 0o755))
	defer s.endCgroup(sub)
	defer s.serve(s.workload, "udp", ":80")()
	heard := make(chan string, 100)
	var silent net.PacketConn
	must.NoError(t, s.workload.Do(func(ns.NetNS) (err error) {
		silent, err = net.ListenPacket("udp", ":81") // which answers nothing: the flow stays a new one
		return err
	}))
	defer silent.Close()
	go func() {
		for b := make([]byte, 1); ; {
			_, from, err := silent.ReadFrom(b)
			if err != nil {
				return
			}
			heard <- host(from)
		}
	}()
	s.ensure(s.one(group, "5432"), s.two(other, "5432"))
	for _, to := range []struct{ address, as string }{{workload4, first4}, {"[" + workload6 + "]", first6}} {
		from := func(sender hostport.Group, port string, wait time.Duration) string {
			return s.task(sender, fmt.Sprint("udp ", to.address, port, " ", wait, " 40000"))
		}
		must.Eq(t, to.as, from(group, ":80", patience))
		for _, sender := range []hostport.Group{"", other} {
			must.Eq(t, "silent", from(sender, ":80", brief), must.Sprintf("cgroup %q", sender))
		}
		must.Eq(t, to.as, from(group, ":80", patience))
		must.Eq(t, to.as, from(sub, ":80", patience), must.Sprint("a cgroup below"))

		must.Eq(t, "silent", from(group, ":81", brief))
		must.Eq(t, to.as, <-heard)
		for _, sender := range []hostport.Group{"", other} {
			must.Eq(t, "silent", from(sender, ":81", brief))
		}
		must.Eq(t, "silent", from(group, ":81", brief))
		must.Eq(t, to.as, <-heard)
		must.Eq(t, 0, len(heard), must.Sprint("it heard somebody else"))
	}
}

// A process of the cgroup can ask the node's DNS server as the endpoint, which the server knows by
// its address.
func TestQuestions(t *testing.T) {
	s := newSite(t)
	group := s.cgroup("sif-test-hostport-dns")
	s.serve(s.node, "udp", "169.254.1.1:53")
	s.serve(s.node, "tcp", "169.254.1.1:53")
	s.ensure(s.one(group))
	for _, network := range []string{"tcp", "udp"} {
		must.Eq(t, first4, s.sends(group, network, "169.254.1.1:53"))
		must.Eq(t, "169.254.1.1", s.sends("", network, "169.254.1.1:53"))
	}
}

// What others took away is put back, and connections go on.
func TestRepair(t *testing.T) {
	s := newSite(t)
	group := s.cgroup("sif-test-hostport-repair")
	s.serve(s.node, "tcp", ":5432")
	s.serve(s.workload, "tcp", ":80")
	must.SliceNotEmpty(t, s.ensure(s.one(group, "5432")))
	must.SliceEmpty(t, s.ensure(s.one(group, "5432")))
	c := s.dial(s.workload, "tcp", first4+":5432")
	must.Eq(t, far4, answers(c))
	for _, broken := range []struct {
		in      ns.NetNS
		command string
	}{
		{s.node, "nft flush ruleset"},
		{s.node, "nft delete table inet sif_host"},
		{s.node, "nft flush chain inet sif_host guarding"},
		{s.node, "nft add rule inet sif_host leading accept"},
		{s.node, "nft add element inet sif_host spared4_3 { 100.64.1.9 }"},
		{s.node, "nft add table inet sif_host '{ flags dormant; }'"},
		{s.node, "ip rule del pref 5098"},
		{s.node, "ip -6 rule del pref 5098"},
		{s.node, "ip route flush table 5403"},
		{s.node, "ip -6 route flush table 5403"},
		{s.node, "ip -6 route del local ::1 table 5403"},
		{s.node, "ip route del " + far4},
		{s.node, "ip -6 route del " + far6},
		{s.node, "ip addr flush dev sif-h3"},
		{s.node, "ip addr add 10.9.9.9/32 dev sif-h3"},
		{s.node, "ip link set sif-h3 down"},
		{s.node, "ip link set sif-h3 mtu 1400"},
		{s.node, "ip link set sif-h3 down; ip link set sif-h3 name lost0"},
		{s.node, "ip neigh flush nud permanent dev sif-h3"},
		{s.node, "sysctl -qw net.ipv4.conf.sif-h3.route_localnet=0"},
		{s.node, "sysctl -qw net.ipv4.conf.sif-h3.src_valid_mark=0"},
		{s.node, "sysctl -qw net.ipv6.conf.sif-h3.disable_ipv6=1"},
		{s.first, "nft flush ruleset"},
		{s.first, "nft flush chain inet sif_host appearing"},
		{s.first, "sysctl -qw net.ipv4.ip_forward=0"},
		{s.first, "sysctl -qw net.ipv6.conf.all.forwarding=0"},
		{s.first, "ip link set host0 down"},
		{s.first, "ip addr flush dev host0"},
		{s.first, "ip route del " + near4},
		{s.first, "ip link del host0"},
		{s.node, "ip link del sif-h3"},
	} {
		s.run(broken.in, broken.command)
		must.SliceNotEmpty(t, s.ensure(s.one(group, "5432")), must.Sprint(broken.command))
		must.SliceEmpty(t, s.ensure(s.one(group, "5432")), must.Sprint(broken.command))
		must.Eq(t, far4, s.asks(s.workload, "tcp", first4+":5432"), must.Sprint(broken.command))
		must.Eq(t, far6, s.asks(s.workload, "tcp", "["+first6+"]:5432"), must.Sprint(broken.command))
		must.Eq(t, first4, s.sends(group, "tcp", workload4+":80"), must.Sprint(broken.command))
		must.Eq(t, first6, s.sends(group, "tcp", "["+workload6+"]:80"), must.Sprint(broken.command))
		if !strings.Contains(broken.command, "ip link del") {
			must.Eq(t, far4, answers(c), must.Sprint("an old connection after ", broken.command))
		}
	}
}

// Another process of ours takes over what an earlier one made, and nobody notices.
func TestRestart(t *testing.T) {
	s := newSite(t)
	group := s.cgroup("sif-test-hostport-restart")
	s.serve(s.node, "tcp", "127.0.0.1:5432")
	s.ensure(s.one(group, "5432"))
	c := s.dial(s.workload, "tcp", first4+":5432")
	must.Eq(t, far4, answers(c))
	s.host = new(hostport.Host)
	must.Eq(t, far4, answers(c))
	must.SliceEmpty(t, s.ensure(s.one(group, "5432")))
	must.Eq(t, far4, answers(c))
	must.SliceEmpty(t, s.ensure(s.one(group, "5432")))
}

// The cgroup of a service is another one after its restart.
func TestCgroupIsMadeAnew(t *testing.T) {
	s := newSite(t)
	group := s.cgroup("sif-test-hostport-anew/db.service")
	s.serve(s.workload, "tcp", ":80")
	s.ensure(s.one(group, "5432"))
	status := func() (list []hostport.Status) {
		s.do(func() error { return s.host.Refresh(nil) })
		return s.host.Status()
	}
	must.Eq(t, []hostport.Status{{Slot: 3, Silent: ports(t, "5432")}}, status())
	must.Eq(t, first4, s.sends(group, "tcp", workload4+":80"))
	s.endCgroup(group)
	must.Eq(t, []hostport.Status{{Slot: 3, Silent: ports(t, "5432"), NoGroup: true}}, status())
	must.NoError(t, os.Mkdir(s.directory(group), 0o755))
	must.Eq(t, node4, s.sends(group, "tcp", workload4+":80"), must.Sprint("not looked at yet"))
	defer s.serve(s.node, "tcp", "127.0.0.1:5432")()
	must.Eq(t, []hostport.Status{{Slot: 3}}, status())
	must.Eq(t, first4, s.sends(group, "tcp", workload4+":80"))

	sub := hostport.Group(string(group) + "/worker")
	must.NoError(t, os.Mkdir(s.directory(sub), 0o755))
	defer s.endCgroup(sub)
	must.Eq(t, first4, s.sends(sub, "tcp", workload4+":80"), must.Sprint("a cgroup below"))
}

// What is reached by the endpoint can be replaced, and parts of it be spared.
func TestReached(t *testing.T) {
	s := newSite(t)
	group := s.cgroup("sif-test-hostport-reached")
	for _, n := range []string{"tcp", "udp"} {
		s.serve(s.outside, n, ":80")
		s.serve(s.workload, n, ":80")
	}
	s.serve(s.node, "tcp", node4+":9000")
	all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	p := s.one(group)
	p.Reached = append(slices.Clone(all), ranges...)
	s.ensure(p)
	must.Eq(t, first4, s.sends(group, "tcp", workload4+":80"))
	// Without policy the firewall of the node is what says no.
	must.True(t, s.unanswered(group, "tcp", outside4+":80"))
	must.True(t, s.unanswered(group, "udp", "["+outside6+"]:80"))
	must.Eq(t, node4, s.sends(group, "tcp", node4+":9000"), must.Sprint("the node itself"))
	served := s.dial(s.outside, "tcp", node4+":9000")
	must.Eq(t, outside4, answers(served), must.Sprint("what the process answers on the underlay goes there"))
	refresh := func(a hostport.Addresses) {
		s.do(func() error { return s.host.Refresh(map[int]hostport.Addresses{3: a}) })
	}
	refresh(hostport.Addresses{Reached: all, Spared: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28"), netip.MustParsePrefix(outside6 + "/128")}})
	must.Eq(t, node4, s.sends(group, "tcp", outside4+":80"))
	must.Eq(t, node6, s.sends(group, "udp", "["+outside6+"]:80"))
	must.Eq(t, first4, s.sends(group, "tcp", workload4+":80"))
	refresh(hostport.Addresses{})
	must.Eq(t, node4, s.sends(group, "tcp", workload4+":80"))
	must.Eq(t, node4, s.sends(group, "tcp", outside4+":80"))
}

// Large transfers pass both ways, of TCP and of UDP, whose datagrams learn the size of the way.
func TestSizes(t *testing.T) {
	s := newSite(t)
	s.ensure(s.one("", "5432", "udp/5432"))
	for _, p := range []struct{ to, at string }{{first4, "127.0.0.1"}, {"[" + first6 + "]", "[::1]"}, {first4, ""}, {"[" + first6 + "]", ""}} {
		s.echo(p.at + ":5432")
		c := s.dial(s.workload, "tcp", p.to+":5432")
		must.NoError(t, roundTrip(c, 4<<20))
		u := s.dial(s.workload, "udp", p.to+":5432")
		must.NoError(t, roundTrip(u, 5000))
		s.stop()
	}
}

// Nothing stays when the last attachment goes, and the others stay as they are while one goes.
func TestRemoval(t *testing.T) {
	s := newSite(t)
	group := s.cgroup("sif-test-hostport-removal")
	s.serve(s.node, "tcp", ":5432")
	s.serve(s.workload, "udp", ":80")
	look := func() string {
		return s.run(s.node, "ip -o link | cut -d: -f2; ip rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all | grep -ve multicast -e fe80; nft list tables; ip addr show | grep inet | grep -v fe80")
	}
	s.run(s.node, "sleep 0.1")
	before := look()
	s.ensure(s.one(group, "5432"), s.two("", "5432"))
	must.Eq(t, far4, s.asks(s.workload, "tcp", first4+":5432"))
	must.Eq(t, "169.254.51.200", s.asks(s.workload, "tcp", second4+":5432"))
	must.Eq(t, first4, s.sends(group, "udp", workload4+":80"))
	c := s.dial(s.workload, "tcp", second4+":5432")
	must.Eq(t, "169.254.51.200", answers(c))
	s.ensure(s.two("", "5432"))
	must.Eq(t, "169.254.51.200", answers(c))
	must.Eq(t, "169.254.51.200", s.asks(s.workload, "tcp", second4+":5432"))
	must.Eq(t, "", s.run(s.node, "ip -o link show type veth | grep sif-h3 || true"))
	must.Eq(t, "", s.run(s.node, "conntrack -L 2>/dev/null | grep -e 169.254.50.3 -e 169.254.51.3 || true"))
	must.Eq(t, node4, s.sends(group, "udp", workload4+":80"))
	s.ensure()
	must.Eq(t, before, look())

	// The same by what is left over, without the daemon.
	s.host = new(hostport.Host)
	s.ensure(s.one(group, "5432"), s.two("", "5432"))
	s.do(func() error {
		list, err := hostport.Leftovers()
		must.NoError(t, err)
		must.SliceNotEmpty(t, list)
		for _, l := range list {
			must.NoError(t, l.Remove(t.Context()), must.Sprint(l))
		}
		list, err = hostport.Leftovers()
		must.SliceEmpty(t, list)
		return err
	})
	must.Eq(t, before, look())
}

// The tables of others, and strict kernel parameters, do not stand in the way of what the node's
// firewall admits.
func TestHardenedHost(t *testing.T) {
	for _, program := range []string{"iptables-nft", "iptables-legacy"} {
		testhost.RequireProgram(t, program)
	}
	s := newSite(t)
	group := s.cgroup("sif-test-hostport-hardened")
	s.serve(s.node, "tcp", "127.0.0.1:5432")
	s.serve(s.node, "udp", ":5432")
	s.serve(s.workload, "tcp", ":80")
	all := func() {
		t.Helper()
		s.do(func() error { _, _, err := s.fw.Admit(); return err })
		s.ensure(s.one(group, "5432", "udp/5432"))
		must.Eq(t, far4, s.asks(s.workload, "tcp", first4+":5432"))
		must.Eq(t, far6, s.asks(s.workload, "udp", "["+first6+"]:5432"))
		must.Eq(t, first4, s.sends(group, "tcp", workload4+":80"))
		must.Eq(t, first6, s.sends(group, "tcp", "["+workload6+"]:80"))
	}
	all()
	for _, program := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
		s.run(s.node, program+" -P INPUT DROP; "+program+" -P FORWARD DROP; "+program+" -P OUTPUT DROP")
		all()
	}
	// As Docker publishes ports.
	s.run(s.node, "iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport 5432 -j DNAT --to 172.17.0.2")
	s.run(s.node, "iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -p udp --dport 5432 -j DNAT --to 172.17.0.2")
	s.run(s.node, "iptables-nft -t nat -A POSTROUTING -j MASQUERADE")
	all()
	// As firewalld filters reverse paths of IPv6, and the same of IPv4.
	s.run(s.node, "nft 'add table inet strict; add chain inet strict pre { type filter hook prerouting priority -290; }; add rule inet strict pre fib saddr . mark . iif oif missing drop'")
	all()
	s.run(s.node, "sysctl -qw net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.all.arp_ignore=2 net.ipv4.conf.all.arp_announce=2 net.ipv4.conf.all.send_redirects=0 net.ipv4.tcp_l3mdev_accept=0")
	all()
}

// What is wrong with one attachment is told, and the others are made.
func TestBadAttachments(t *testing.T) {
	s := newSite(t)
	s.serve(s.node, "tcp", ":5432")
	for name, spoil := range map[string]func(*hostport.Placed){
		"slot":           func(p *hostport.Placed) { p.Slot = 256 },
		"negative slot":  func(p *hostport.Placed) { p.Slot = -1 },
		"taken":          func(p *hostport.Placed) { p.Slot = 3 },
		"addresses":      func(p *hostport.Placed) { p.IPv4 = p.IPv6 },
		"no use":         func(p *hostport.Placed) { p.Ports = nil },
		"given twice":    func(p *hostport.Placed) { p.Ports = ports(t, "80", "tcp/80") },
		"other protocol": func(p *hostport.Placed) { p.Ports = []hostport.Port{{Protocol: 1, Number: 8}} },
		"port 0":         func(p *hostport.Placed) { p.Ports = []hostport.Port{{Protocol: 6}} },
	} {
		bad := s.two("", "5432")
		spoil(&bad)
		err := error(nil)
		s.do(func() error {
			_, err = s.host.Ensure([]hostport.Placed{s.one("", "5432"), bad})
			return nil
		})
		must.Error(t, err, must.Sprint(name))
		must.Eq(t, far4, s.asks(s.workload, "tcp", first4+":5432"), must.Sprint(name))
	}
}

func TestTry(t *testing.T) {
	testhost.RequireRoot(t)
	must.NoError(t, hostport.Try(false))
	_, err := hostport.ParseGroup("a")
	must.Eq(t, err, hostport.Try(true))
}

func TestParsePort(t *testing.T) {
	for text, want := range map[string]string{
		"5432": "tcp/5432", "tcp/1": "tcp/1", "udp/65535": "udp/65535",
		"": "", "0": "", "65536": "", "udp": "", "sctp/5": "", "udp/": "", "/5": "", "tcp/05": "", "tcp/+5": "", "TCP/5": "", "5432/tcp": "", " 5": "",
	} {
		p, err := hostport.ParsePort(text)
		if want == "" {
			must.Error(t, err, must.Sprint(text))
			continue
		}
		must.NoError(t, err)
		must.Eq(t, want, p.String())
	}
}

func FuzzParsePort(f *testing.F) {
	for _, s := range []string{"5432", "udp/53", "tcp/0", "/", "tcp/65536"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := hostport.ParsePort(text)
		if err != nil {
			return
		}
		again, err := hostport.ParsePort(p.String())
		must.NoError(t, err)
		must.Eq(t, p, again)
	})
}
