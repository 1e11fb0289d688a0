// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall_test

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/wellknown"
)

// Addresses of the families' second half.
const (
	node6     = "2001:db8::1"
	outside6  = "2001:db8::9"
	workload6 = "fd5f::2"
	second6   = "fd5f::3"
)

// ipv6 gives the node, the outside and two workloads IPv6 addresses, and the node the link-local
// one at which workloads reach it.
func (s *site) ipv6() {
	s.t.Helper()
	s.run(s.node, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
	s.run(s.node, "ip", "addr", "add", node6+"/64", "dev", "under0", "nodad")
	s.run(s.outside, "ip", "addr", "add", outside6+"/64", "dev", "eth0", "nodad")
	for device, w := range map[string]struct {
		ns.NetNS
		address string
	}{"sif0123456789a": {s.workload, workload6}, "sif0123456789b": {s.second, second6}} {
		s.run(s.node, "ip", "addr", "add", "fe80::1/128", "dev", device, "nodad")
		s.run(s.node, "ip", "route", "add", w.address+"/128", "dev", device)
		s.run(w, "ip", "addr", "add", w.address+"/128", "dev", "eth0", "nodad")
		s.run(w, "ip", "route", "add", "fe80::1/128", "dev", "eth0", "src", w.address)
		s.run(w, "ip", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
		s.run(s.node, "ip", "neigh", "replace", w.address, "lladdr", s.mac(w, "eth0"), "dev", device, "nud", "permanent")
		s.run(w, "ip", "neigh", "replace", "fe80::1", "lladdr", s.mac(s.node, device), "dev", "eth0", "nud", "permanent")
	}
	s.settle(s.node, s.outside, s.workload, s.second)
}

// settle waits for the link-local addresses of namespaces, from which neighbours are asked.
func (s *site) settle(namespaces ...ns.NetNS) {
	s.t.Helper()
	for _, n := range namespaces {
		for s.run(n, "ip", "-6", "addr", "show", "tentative") != "" {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func (s *site) mac(n ns.NetNS, device string) string {
	s.t.Helper()
	_, after, _ := strings.Cut(s.run(n, "ip", "-o", "link", "show", "dev", device), "link/ether ")
	return strings.Fields(after)[0]
}

// mark does what the eBPF programs do with packets of workloads that leave by the node.
func (s *site) mark(mark uint32) {
	s.t.Helper()
	s.run(s.node, "nft", fmt.Sprintf(`
		add table inet programs
		delete table inet programs
		add table inet programs
		add chain inet programs ingress { type filter hook prerouting priority -350; }
		add rule inet programs ingress iifname "sif0*" meta mark set %d`, mark))
}

// source returns the address that a peer has for an echo server.
func (s *site) source(n ns.NetNS, address string, listener net.Listener) string {
	s.t.Helper()
	c, err := s.dial(n, "tcp", address)
	must.NoError(s.t, err)
	defer c.Close()
	at, err := listener.Accept()
	must.NoError(s.t, err)
	defer at.Close()
	return at.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().String()
}

func out(endpoint, prefix string, p fabric.Protocol, from, to uint16) firewall.Egress {
	return firewall.Egress{Endpoint: netip.MustParseAddr(endpoint), Prefix: netip.MustParsePrefix(prefix), Protocol: p, Ports: fabric.PortRange{From: from, To: to}}
}

func (s *site) setEgress(list ...firewall.Egress) {
	s.t.Helper()
	s.do(func() error { return s.fw.SetEgress(list, nil) })
}

func (s *site) setEgressBut(withheld []string, list ...firewall.Egress) {
	s.t.Helper()
	var prefixes []netip.Prefix
	for _, p := range withheld {
		prefixes = append(prefixes, netip.MustParsePrefix(p))
	}
	s.do(func() error { return s.fw.SetEgress(list, prefixes) })
}

func TestEgress(t *testing.T) {
	s := newSite(t)
	s.ipv6()
	for _, port := range []int{80, 81, 443} {
		s.echo(s.outside, port)
	}
	s.run(s.outside, "ip", "addr", "add", "192.0.2.10/24", "dev", "eth0")
	var listener net.Listener
	must.NoError(t, s.outside.Do(func(ns.NetNS) (err error) {
		listener, err = net.Listen("tcp", ":90")
		return err
	}))
	defer listener.Close()
	ping := func(n ns.NetNS, to string) bool {
		err := exec.Command("nsenter", "--net="+n.Path(), "ping", "-c1", "-W1", to).Run()
		return err == nil
	}
	for _, mode := range []firewall.Mode{firewall.Enforce, firewall.Report} {
		s.fw.SetMode(mode, time.Time{})
		s.apply()
		s.mark(wellknown.ExitMarkNode)
		s.setEgress()
		before := s.counter(firewall.Exit)
		must.False(t, s.reaches(s.workload, "tcp", outsideAddress+":80"))
		must.False(t, s.reaches(s.workload, "udp", "["+outside6+"]:80"))
		must.False(t, ping(s.workload, outsideAddress))
		must.Greater(t, before, s.counter(firewall.Exit))
		s.setEgress(
			out(workloadAddress, outsideAddress+"/32", fabric.TCP, 80, 90),
			out(workloadAddress, "192.0.2.0/24", fabric.TCP, 81, 81), // overlaps
			out(workloadAddress, outsideAddress+"/32", fabric.UDP, 443, 443),
			out(workloadAddress, "0.0.0.0/0", fabric.ICMP, 8, 8),
			out(workload6, "2001:db8::/32", fabric.TCP, 80, 90),
			out(workload6, "::/0", fabric.ICMPv6, 128, 128),
			out(secondAddress, "192.0.2.10/32", fabric.TCP, 443, 443),
		)
		for _, p := range []struct {
			from        ns.NetNS
			network, to string
			open        bool
		}{
			{s.workload, "tcp", outsideAddress + ":80", true},
			{s.workload, "tcp", outsideAddress + ":81", true},
			{s.workload, "tcp", outsideAddress + ":443", false},
			{s.workload, "tcp", "192.0.2.10:80", false},
			{s.workload, "tcp", "192.0.2.10:81", true},
			{s.workload, "udp", outsideAddress + ":80", false},
			{s.workload, "udp", outsideAddress + ":443", true},
			{s.workload, "tcp", "[" + outside6 + "]:80", true},
			{s.workload, "udp", "[" + outside6 + "]:80", false},
			{s.workload, "tcp", bridgedAddress + ":80", false}, // not by the underlay
			{s.second, "tcp", "192.0.2.10:443", true},
			{s.second, "tcp", outsideAddress + ":443", false},
			{s.second, "tcp", outsideAddress + ":80", false},
			{s.second, "tcp", "[" + outside6 + "]:80", false},
		} {
			must.Eq(t, p.open, s.reaches(p.from, p.network, p.to), must.Sprint(mode, p.network, p.to))
		}
		must.True(t, ping(s.workload, outsideAddress))
		must.True(t, ping(s.workload, outside6))
		must.False(t, ping(s.second, outsideAddress))
		must.Eq(t, nodeAddress, s.source(s.workload, outsideAddress+":90", listener))
		must.Eq(t, node6, s.source(s.workload, "["+outside6+"]:90", listener))
		must.False(t, s.reaches(s.outside, "tcp", workloadAddress+":80"))

		// A second process keeps what is there, and writes what differs.
		s.fw = firewall.New(config)
		s.fw.SetMode(mode, time.Time{})
		s.apply()
		must.True(t, s.reaches(s.workload, "tcp", outsideAddress+":80"))
		must.Eq(t, "", s.run(s.node, "sh", "-c", "nft list ruleset 2>&1 >/dev/null"))

		// Without the mark nothing leaves, whatever the sets say.
		s.mark(0)
		must.False(t, s.reaches(s.workload, "tcp", outsideAddress+":80"))
		must.False(t, ping(s.workload, outsideAddress))
	}
}

// What is withdrawn ends: no packet passes in either direction, and the kernel forgets it. Others
// go on.
func TestWithdrawnEgressEnds(t *testing.T) {
	s := newSite(t)
	s.ipv6()
	s.echo(s.outside, 80)
	s.echo(s.outside, 81)
	s.apply()
	s.mark(wellknown.ExitMarkNode)
	to := func(port uint16) []firewall.Egress {
		return []firewall.Egress{
			out(workloadAddress, outsideAddress+"/32", fabric.TCP, port, port), out(workload6, outside6+"/128", fabric.TCP, port, port)}
	}
	goes, stays := to(80), to(81)
	open := func(port string) (conns []net.Conn) {
		for _, host := range []string{outsideAddress, outside6} {
			c, err := s.dial(s.workload, "tcp", net.JoinHostPort(host, port))
			must.NoError(t, err)
			t.Cleanup(func() { c.Close() })
			conns = append(conns, c)
		}
		return conns
	}
	answer := func(want bool, conns []net.Conn) {
		t.Helper()
		for _, c := range conns {
			must.Eq(t, want, answers(c), must.Sprint(c.RemoteAddr()))
		}
	}
	s.setEgress(slices.Concat(goes, stays)...)
	gone, kept := open("80"), open("81")
	answer(true, gone)
	answer(true, kept)
	s.setEgress(stays...)
	answer(false, gone)
	answer(true, kept)
	table := s.run(s.node, "cat", "/proc/net/nf_conntrack")
	must.StrNotContains(t, table, "dport=80 ")
	must.Eq(t, 2, strings.Count(table, "dport=81 "))

	// A process that starts ends what nothing allows any more.
	s.fw = firewall.New(config)
	s.apply()
	answer(true, kept)
	s.setEgress(goes...)
	answer(false, kept)
	must.StrNotContains(t, s.run(s.node, "cat", "/proc/net/nf_conntrack"), "dport=81 ")
	must.True(t, s.reaches(s.workload, "tcp", outsideAddress+":80"))
}

// Wide prefixes do not reach into what is withheld, whatever the mark says: only what is listed for
// just that does. Connections to what is withheld later end.
func TestWithheldEgress(t *testing.T) {
	s := newSite(t)
	s.ipv6()
	s.echo(s.outside, 80)
	s.echo(s.outside, 81)
	for _, a := range []string{"192.0.2.10/24", "192.0.2.11/24", "192.0.2.12/24", "2001:db8::a/64", "2001:db8::b/64"} {
		args := []string{"ip", "addr", "add", a, "dev", "eth0"}
		if strings.Contains(a, ":") {
			args = append(args, "nodad")
		}
		s.run(s.outside, args...)
	}
	s.apply()
	s.mark(wellknown.ExitMarkNode)
	all := []firewall.Egress{
		out(workloadAddress, "0.0.0.0/0", fabric.TCP, 1, 65535), out(workload6, "::/0", fabric.TCP, 1, 65535),
		out(workloadAddress, "192.0.2.11/32", fabric.TCP, 81, 81), out(workload6, "2001:db8::b/128", fabric.TCP, 81, 81),
	}
	s.setEgress(all...)
	var conns []net.Conn
	for _, to := range []string{"192.0.2.10:80", "192.0.2.12:80", "[2001:db8::a]:80"} {
		c, err := s.dial(s.workload, "tcp", to)
		must.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		must.True(t, answers(c))
		conns = append(conns, c)
	}
	withheld := []string{"240.0.0.0/4", "192.0.2.10/31", "192.0.2.10/32", "2001:db8::a/127", "ff00::/8"}
	check := func() {
		t.Helper()
		for to, open := range map[string]bool{
			outsideAddress + ":80": true, outsideAddress + ":81": true, "192.0.2.10:80": false, "192.0.2.10:81": false, "192.0.2.11:80": false, "192.0.2.11:81": true, "192.0.2.12:80": true,
			"[" + outside6 + "]:80": true, "[2001:db8::a]:80": false, "[2001:db8::a]:81": false, "[2001:db8::b]:80": false, "[2001:db8::b]:81": true,
		} {
			must.Eq(t, open, s.reaches(s.workload, "tcp", to), must.Sprint(to))
		}
	}
	s.setEgressBut(withheld, all...)
	for i, goesOn := range []bool{false, true, false} {
		must.Eq(t, goesOn, answers(conns[i]), must.Sprint(conns[i].RemoteAddr()))
	}
	check()
	must.Eq(t, "", s.run(s.node, "sh", "-c", "nft list ruleset 2>&1 >/dev/null"))

	// What others do to the sets is put back, and a second process keeps them.
	for _, command := range []string{
		"flush set inet sif withheld4", "delete element inet sif withheld6 { 2001:db8::a-2001:db8::b }", "flush set inet sif listed6", "flush chain inet sif exit_withheld",
	} {
		s.run(s.node, "nft", command)
		must.Len(t, 1, s.apply(), must.Sprint(command))
		must.SliceEmpty(t, s.apply())
		check()
	}
	s.fw = firewall.New(config)
	s.apply()
	check()
	s.setEgressBut(withheld, all...)
	must.SliceEmpty(t, s.apply())
	check()
	s.setEgress(all...)
	must.True(t, s.reaches(s.workload, "tcp", "192.0.2.10:80"))
}

// What others do to the sets is noticed and put back.
func TestApplySeesWhatOthersLetOut(t *testing.T) {
	s := newSite(t)
	s.ipv6()
	s.echo(s.outside, 80)
	s.apply()
	s.mark(wellknown.ExitMarkNode)
	s.setEgress(out(workloadAddress, outsideAddress+"/32", fabric.TCP, 80, 80), out(workload6, outside6+"/128", fabric.ICMPv6, 128, 128))
	must.SliceEmpty(t, s.apply())
	for _, command := range []string{
		"flush set inet sif egress4",
		"add element inet sif egress4 { 100.64.1.3 . 192.0.2.9 . tcp . 1-65535 }",
		"flush set inet sif egress_icmp6",
		"flush chain inet sif exit",
		"delete table inet sif",
	} {
		s.run(s.node, "nft", command)
		must.Len(t, 1, s.apply(), must.Sprint(command))
		must.SliceEmpty(t, s.apply())
		must.True(t, s.reaches(s.workload, "tcp", outsideAddress+":80"))
		must.False(t, s.reaches(s.second, "tcp", outsideAddress+":80"))
	}
	// SetEgress finds sets that others changed, and writes them anew.
	s.run(s.node, "nft", "flush set inet sif egress4")
	s.setEgress(out(secondAddress, outsideAddress+"/32", fabric.TCP, 80, 80))
	must.True(t, s.reaches(s.second, "tcp", outsideAddress+":80"))
	must.False(t, s.reaches(s.workload, "tcp", outsideAddress+":80"))
}

// Ten thousand entries are written at once, and after that differences only.
func TestManyEgress(t *testing.T) {
	s := newSite(t)
	s.ipv6()
	s.echo(s.outside, 80)
	s.apply()
	s.mark(wellknown.ExitMarkNode)
	var many []firewall.Egress
	for i := range 5000 {
		many = append(many,
			out(workloadAddress, fmt.Sprintf("203.%d.%d.0/28", i>>8, i&255), fabric.TCP, 80, 8080),
			out(workload6, fmt.Sprintf("2001:db8:%x::/48", i+1), fabric.UDP, 53, 53))
	}
	took := func(what string, do func()) {
		begin := time.Now()
		do()
		t.Logf("%s: %s", what, time.Since(begin).Round(100*time.Microsecond))
	}
	took("10000 entries", func() { s.setEgress(many...) })
	took("one more", func() {
		s.setEgress(append(many, out(workloadAddress, outsideAddress+"/32", fabric.TCP, 80, 80))...)
	})
	must.True(t, s.reaches(s.workload, "tcp", outsideAddress+":80"))
	took("one less", func() { s.setEgress(many...) })
	must.False(t, s.reaches(s.workload, "tcp", outsideAddress+":80"))
	took("compared, unchanged", func() { must.SliceEmpty(t, s.apply()) })
	s.run(s.node, "nft", "add table inet other")
	took("compared in full", func() { must.SliceEmpty(t, s.apply()) })
	s.run(s.node, "nft", "delete table inet sif")
	took("written anew", func() { must.Len(t, 1, s.apply()) })
	must.SliceEmpty(t, s.apply())
}

// Errors about connections that leave by the node reach the workload, and nothing else does.
func TestErrorsAboutEgress(t *testing.T) {
	s := newSite(t)
	s.ipv6()
	s.apply()
	s.mark(wellknown.ExitMarkNode)
	s.setEgress(out(workloadAddress, outsideAddress+"/32", fabric.UDP, 9, 9), out(workload6, outside6+"/128", fabric.UDP, 9, 9))
	for _, to := range []string{outsideAddress + ":9", "[" + outside6 + "]:9"} {
		c, err := s.dial(s.workload, "udp", to)
		must.NoError(t, err)
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		c.Write([]byte("x"))
		_, err = c.Read(make([]byte, 1))
		must.ErrorContains(t, err, "connection refused", must.Sprint(to))
	}
}

func TestEgressCheck(t *testing.T) {
	must.NoError(t, out(workloadAddress, "0.0.0.0/0", fabric.ICMP, 0, 255).Check())
	for want, e := range map[string]firewall.Egress{
		"of one family":      out(workloadAddress, "::/0", fabric.TCP, 1, 1),
		"has host bits":      out(workloadAddress, "192.0.2.1/24", fabric.TCP, 1, 1),
		"is not of this fam": out(workloadAddress, "192.0.2.1/32", fabric.ICMPv6, 128, 128),
		"does not know":      out(workloadAddress, "192.0.2.1/32", 47, 0, 0),
		"this is no range":   out(workloadAddress, "192.0.2.1/32", fabric.ICMP, 0, 256),
	} {
		must.ErrorContains(t, e.Check(), want)
	}
}
