// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/testhost"
)

const (
	nodeAddress     = "192.0.2.1" // on the underlay
	outsideAddress  = "192.0.2.9"
	healthAddress   = "100.64.1.1"
	workloadAddress = "100.64.1.2"
	secondAddress   = "100.64.1.3"
	distantAddress  = "100.64.2.2" // beyond a link
	bridgedAddress  = "172.30.0.2" // of another network of the node
)

var config = firewall.Config{
	Underlay: "under0",
	Ranges:   []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd5f::/32")},
	Health:   []netip.Addr{netip.MustParseAddr(healthAddress), netip.MustParseAddr("fd5f:0:1::1")},
	Management: []firewall.Port{
		{Protocol: fabric.TCP, Number: 8301}, {Protocol: fabric.UDP, Number: 8301},
		{Protocol: fabric.TCP, Number: 4646}, {Protocol: fabric.TCP, Number: 7701},
	},
	Published:  1000,
	Links:      func() []uint16 { return []uint16{51820, 51899} },
	DNSPackets: firewall.DNSPacketsPerSecond,
}

// site is a node with all that it meets, each in a namespace of its own.
type site struct {
	t                                               *testing.T
	node, outside, workload, second, distant, other ns.NetNS
	fw                                              *firewall.Firewall
}

func newSite(t *testing.T) *site {
	testhost.RequireRoot(t)
	for _, program := range []string{"ip", "nft", "conntrack", "ping", "sysctl"} {
		testhost.RequireProgram(t, program)
	}
	s := &site{t: t, fw: firewall.New(config)}
	for _, n := range []*ns.NetNS{&s.node, &s.outside, &s.workload, &s.second, &s.distant, &s.other} {
		*n = namespace(t)
	}
	for _, c := range []struct {
		device, nodeAddress, peerAddress, via string
		peer                                  ns.NetNS
	}{
		{"under0", nodeAddress + "/24", outsideAddress + "/24", nodeAddress, s.outside},
		{"sif0123456789a", "169.254.1.1/32", workloadAddress + "/32", "169.254.1.1", s.workload},
		{"sif0123456789b", "", secondAddress + "/32", "169.254.1.1", s.second},
		{"sif-l0", "", distantAddress + "/32", "169.254.1.1", s.distant},
		{"docker0", "172.30.0.1/24", bridgedAddress + "/24", "172.30.0.1", s.other},
	} {
		s.run(s.node, "ip", "link", "add", c.device, "type", "veth", "peer", "name", "eth0", "netns", c.peer.Path())
		s.run(s.node, "ip", "link", "set", c.device, "up")
		if c.nodeAddress != "" {
			s.run(s.node, "ip", "addr", "add", c.nodeAddress, "dev", c.device)
		}
		s.run(c.peer, "ip", "link", "set", "lo", "up")
		s.run(c.peer, "ip", "addr", "add", c.peerAddress, "dev", "eth0")
		s.run(c.peer, "ip", "link", "set", "eth0", "up")
		s.run(c.peer, "ip", "route", "add", "default", "via", c.via, "dev", "eth0", "onlink")
		if to, _, _ := strings.Cut(c.peerAddress, "/"); strings.HasSuffix(c.peerAddress, "/32") {
			s.run(s.node, "ip", "route", "add", to+"/32", "dev", c.device)
		}
		// The node answers for the address that it has on another interface.
		s.run(s.node, "sysctl", "-qw", "net.ipv4.conf."+c.device+".proxy_arp=1")
	}
	s.run(s.node, "ip", "link", "set", "lo", "up")
	s.run(s.node, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0")
	return s
}

func namespace(t *testing.T) ns.NetNS {
	n, err := testutils.NewNS()
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, n.Close())
		must.NoError(t, testutils.UnmountNS(n))
	})
	return n
}

func (s *site) run(n ns.NetNS, args ...string) string {
	s.t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + n.Path()}, args...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// do calls the firewall in the node's namespace.
func (s *site) do(f func() error) {
	s.t.Helper()
	must.NoError(s.t, s.node.Do(func(ns.NetNS) error { return f() }))
}

// apply applies the firewall in the node's namespace, and returns what others had changed.
func (s *site) apply() (repaired []string) {
	s.t.Helper()
	s.do(func() (err error) {
		repaired, err = s.fw.Apply()
		return err
	})
	return repaired
}

func (s *site) counter(name string) uint64 {
	s.t.Helper()
	var n uint64
	s.do(func() error {
		c, err := s.fw.Counters()
		n = c[name]
		return err
	})
	return n
}

// echo serves TCP, and UDP, at a port in a namespace.
func (s *site) echo(n ns.NetNS, port int) {
	s.t.Helper()
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
				go func() { io.Copy(c, c); c.Close() }()
			}
		}()
		u, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		must.NoError(s.t, err)
		s.t.Cleanup(func() { u.Close() })
		go func() {
			b := make([]byte, 2000)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				u.WriteTo(b[:n], from)
			}
		}()
		return nil
	}))
}

func (s *site) dial(n ns.NetNS, network, address string) (conn net.Conn, err error) {
	n.Do(func(ns.NetNS) error {
		conn, err = net.DialTimeout(network, testhost.Zoned(address), patience)
		return nil
	})
	return conn, err
}

// patience is how long an answer may take. An emulated machine is slow.
var patience = func() time.Duration {
	if os.Getenv("SIF_TEST_MACHINE") != "" {
		return 3 * time.Second
	}
	return 300 * time.Millisecond
}()

// reaches reports whether an echo comes back.
func (s *site) reaches(n ns.NetNS, network, address string) bool {
	c, err := s.dial(n, network, address)
	if err != nil {
		return false
	}
	defer c.Close()
	return answers(c)
}

func answers(c net.Conn) bool {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("x")); err != nil {
		return false
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err == nil
}

func TestRules(t *testing.T) {
	s := newSite(t)
	for _, n := range []ns.NetNS{s.node, s.outside, s.workload, s.second, s.distant, s.other} {
		for _, port := range []int{53, 80, 8301, 51820, 51821, 51899} {
			s.echo(n, port)
		}
	}
	s.run(s.other, "ip", "addr", "add", "172.30.0.3/24", "dev", "eth0")
	type probe struct {
		name    string
		from    ns.NetNS
		network string
		to      string
		open    bool
		counter string
	}
	probes := []probe{
		{"management, tcp", s.outside, "tcp", nodeAddress + ":8301", true, ""},
		{"management, udp", s.outside, "udp", nodeAddress + ":8301", true, ""},
		{"a link", s.outside, "udp", nodeAddress + ":51820", true, ""},
		{"another link", s.outside, "udp", nodeAddress + ":51899", true, ""},
		{"WireGuard of somebody else", s.outside, "udp", nodeAddress + ":51821", false, firewall.UnderlayInput},
		{"links speak no TCP", s.outside, "tcp", nodeAddress + ":51820", false, firewall.UnderlayInput},
		{"the node's port, from outside", s.outside, "tcp", nodeAddress + ":80", false, firewall.UnderlayInput},
		{"an endpoint from outside, in the clear", s.outside, "tcp", workloadAddress + ":80", false, firewall.PlainFabricSource},
		{"another network, from outside", s.outside, "tcp", bridgedAddress + ":80", true, ""},
		{"the resolver, udp", s.workload, "udp", "169.254.1.1:53", true, ""},
		{"the resolver, tcp", s.workload, "tcp", "169.254.1.1:53", true, ""},
		{"another port of the resolver", s.workload, "tcp", "169.254.1.1:80", false, firewall.WorkloadInput},
		{"another address of the node", s.workload, "tcp", nodeAddress + ":53", false, firewall.WorkloadInput},
		{"endpoint to endpoint", s.workload, "tcp", secondAddress + ":80", true, ""},
		{"endpoint to a distant one", s.workload, "udp", distantAddress + ":80", true, ""},
		{"a distant one to an endpoint", s.distant, "tcp", workloadAddress + ":80", true, ""},
		{"a distant one to the node", s.distant, "tcp", "169.254.1.1:80", false, firewall.LinkInput},
		{"an endpoint to the outside", s.workload, "tcp", outsideAddress + ":80", false, firewall.Forward},
		{"an endpoint to another network", s.workload, "tcp", bridgedAddress + ":80", false, firewall.Forward},
		{"another network to an endpoint", s.other, "tcp", workloadAddress + ":80", false, firewall.Forward},
		{"a distant one to the outside", s.distant, "tcp", outsideAddress + ":80", false, firewall.LinkInput},
		{"another network to the outside", s.other, "tcp", outsideAddress + ":80", true, ""},
		{"another network to the node", s.other, "tcp", nodeAddress + ":80", true, ""},
		{"the node to an endpoint", s.node, "tcp", workloadAddress + ":80", true, ""},
		{"the node to the outside", s.node, "tcp", outsideAddress + ":80", true, ""},
		{"the node to itself", s.node, "tcp", nodeAddress + ":80", true, ""},
	}
	// Without the firewall all ways are open, so what is closed below is its doing.
	for _, p := range probes {
		if !s.reaches(p.from, p.network, p.to) {
			t.Errorf("without the firewall: %s (%s %s) is closed", p.name, p.network, p.to)
		}
	}
	s.run(s.node, "conntrack", "-F")
	s.apply()
	for _, p := range probes {
		t.Run(p.name, func(t *testing.T) {
			s := *s
			s.t = t
			before := s.counter(p.counter)
			must.Eq(t, p.open, s.reaches(p.from, p.network, p.to))
			if p.counter != "" {
				must.Greater(t, before, s.counter(p.counter))
			}
		})
	}
	s.run(s.outside, "ping", "-c1", "-W1", nodeAddress)
	must.Eq(t, "", s.run(s.node, "sh", "-c", "nft list ruleset 2>&1 >/dev/null")) // the tool can read what we wrote
}

// A packet in the clear with an endpoint's source address is dropped and counted, whatever it is
// for.
func TestPlainFabricSource(t *testing.T) {
	s := newSite(t)
	s.echo(s.node, 8301)
	s.echo(s.node, 51820)
	s.run(s.outside, "ip", "addr", "add", "100.64.9.9/32", "dev", "eth0")
	s.run(s.outside, "ip", "addr", "add", "fd5f::9/128", "dev", "eth0", "nodad")
	s.run(s.outside, "ip", "route", "add", nodeAddress+"/32", "dev", "eth0", "src", "100.64.9.9")
	s.run(s.node, "ip", "route", "add", "100.64.9.9/32", "dev", "under0")
	must.True(t, s.reaches(s.outside, "tcp", nodeAddress+":8301"))
	s.apply()
	before := s.counter(firewall.PlainFabricSource)
	must.False(t, s.reaches(s.outside, "tcp", nodeAddress+":8301"))
	must.False(t, s.reaches(s.outside, "udp", nodeAddress+":51820"))
	must.Greater(t, before+1, s.counter(firewall.PlainFabricSource))

	s.run(s.node, "ip", "addr", "add", "2001:db8::1/64", "dev", "under0", "nodad")
	s.run(s.outside, "ip", "route", "add", "2001:db8::/64", "dev", "eth0")
	before = s.counter(firewall.PlainFabricSource)
	s.run(s.outside, "sh", "-c", "! ping -6 -c1 -W1 -I fd5f::9 2001:db8::1 >/dev/null")
	must.Greater(t, before, s.counter(firewall.PlainFabricSource))
}

// A workload that floods the resolver does not keep another one from its answers.
func TestDNSFlood(t *testing.T) {
	s := newSite(t)
	s.run(s.node, "ip", "addr", "add", "169.254.1.1/32", "dev", "sif0123456789b") // so that answers come from there
	s.echo(s.node, 53)
	s.echo(s.second, 80)
	few := config
	few.DNSPackets = 64
	s.fw = firewall.New(few)
	s.apply()
	c, err := s.dial(s.workload, "udp", "169.254.1.1:53")
	must.NoError(t, err)
	defer c.Close()
	must.True(t, answers(c))
	for s.counter(firewall.DNSFlood) < 1000 {
		for range 100 {
			c.Write([]byte("x"))
		}
	}
	must.True(t, s.reaches(s.second, "udp", "169.254.1.1:53"))
	must.True(t, s.reaches(s.second, "tcp", "169.254.1.1:53"))
	must.True(t, s.reaches(s.workload, "tcp", secondAddress+":80")) // what is not for the resolver is not limited
	must.Eq(t, "", s.run(s.node, "sh", "-c", "nft list ruleset 2>&1 >/dev/null"))
	s.apply() // it repairs a table with askers
	must.True(t, s.reaches(s.second, "udp", "169.254.1.1:53"))
}

func TestPortMappings(t *testing.T) {
	s := newSite(t)
	s.echo(s.workload, 80)
	s.echo(s.second, 8080)
	s.apply()
	must.False(t, s.reaches(s.outside, "tcp", nodeAddress+":20001"))

	first := mapping(fabric.TCP, nodeAddress+":20001", workloadAddress+":80")
	every := mapping(fabric.UDP, "0.0.0.0:20002", secondAddress+":8080")
	s.do(func() error { return s.fw.SetPorts([]firewall.PortMapping{first, every}) })
	must.True(t, s.reaches(s.outside, "tcp", nodeAddress+":20001"))
	must.True(t, s.reaches(s.outside, "udp", nodeAddress+":20002"))
	must.False(t, s.reaches(s.outside, "udp", nodeAddress+":20001"))
	must.False(t, s.reaches(s.outside, "tcp", nodeAddress+":20002"))

	established, err := s.dial(s.outside, "tcp", nodeAddress+":20001")
	must.NoError(t, err)
	defer established.Close()
	must.True(t, answers(established))

	// A second process keeps the table and its mappings, and replaces a table of another form.
	// Established connections continue.
	s.fw = firewall.New(config)
	s.apply()
	must.True(t, s.reaches(s.outside, "tcp", nodeAddress+":20001"))
	must.True(t, answers(established))
	s.run(s.node, "nft", "add chain inet sif strange { type filter hook input priority 5; policy drop; }")
	s.do(func() error { return s.fw.SetPorts([]firewall.PortMapping{first}) })
	s.apply()
	must.StrNotContains(t, s.run(s.node, "nft", "list", "table", "inet", "sif"), "strange")
	must.True(t, s.reaches(s.outside, "tcp", nodeAddress+":20001"))
	must.False(t, s.reaches(s.outside, "udp", nodeAddress+":20002"))
	must.True(t, answers(established))

	s.do(func() error { return s.fw.SetPorts(nil) })
	must.False(t, s.reaches(s.outside, "tcp", nodeAddress+":20001"))

	many := make([]firewall.PortMapping, 3000)
	for i := range many {
		many[i] = first
		many[i].From = netip.AddrPortFrom(first.From.Addr(), uint16(20001+i))
	}
	s.do(func() error { return s.fw.SetPorts(many) })
	must.True(t, s.reaches(s.outside, "tcp", nodeAddress+":23000"))
}

func mapping(protocol fabric.Protocol, from, to string) firewall.PortMapping {
	return firewall.PortMapping{Protocol: protocol, From: netip.MustParseAddrPort(from), To: netip.MustParseAddrPort(to)}
}

// Ports of the node's IPv6 addresses lead to the endpoint's IPv6 address.
func TestPortMappingsOfIPv6(t *testing.T) {
	s := newSite(t)
	const node, outside, workload = "2001:db8::1", "2001:db8::9", "fd5f::2"
	s.run(s.node, "ip", "addr", "add", node+"/64", "dev", "under0", "nodad")
	s.run(s.outside, "ip", "addr", "add", outside+"/64", "dev", "eth0", "nodad")
	s.run(s.node, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
	s.run(s.node, "ip", "addr", "add", "fe80::1/64", "dev", "sif0123456789a", "nodad")
	s.run(s.node, "ip", "route", "add", workload+"/128", "dev", "sif0123456789a")
	s.run(s.workload, "ip", "addr", "add", workload+"/128", "dev", "eth0", "nodad")
	s.run(s.workload, "ip", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
	mac := func(n ns.NetNS, device string) string {
		_, after, _ := strings.Cut(s.run(n, "ip", "-o", "link", "show", "dev", device), "link/ether ")
		return strings.Fields(after)[0]
	}
	s.run(s.node, "ip", "neigh", "replace", workload, "lladdr", mac(s.workload, "eth0"), "dev", "sif0123456789a", "nud", "permanent")
	s.run(s.workload, "ip", "neigh", "replace", "fe80::1", "lladdr", mac(s.node, "sif0123456789a"), "dev", "eth0", "nud", "permanent")
	s.echo(s.workload, 80)
	s.apply()
	s.do(func() error {
		return s.fw.SetPorts([]firewall.PortMapping{
			mapping(fabric.TCP, "["+node+"]:20001", "["+workload+"]:80"),
			mapping(fabric.UDP, "[::]:20002", "["+workload+"]:80"),
			mapping(fabric.TCP, nodeAddress+":20001", workloadAddress+":80"),
		})
	})
	must.True(t, s.reaches(s.outside, "tcp", "["+node+"]:20001"))
	must.True(t, s.reaches(s.outside, "udp", "["+node+"]:20002"))
	must.True(t, s.reaches(s.outside, "tcp", nodeAddress+":20001"))
	must.False(t, s.reaches(s.outside, "udp", "["+node+"]:20001"))
	must.False(t, s.reaches(s.outside, "tcp", "["+node+"]:20002"))
	must.False(t, s.reaches(s.outside, "udp", nodeAddress+":20002"))
	must.False(t, s.reaches(s.outside, "tcp", "["+workload+"]:80"))
	must.Eq(t, "", s.run(s.node, "sh", "-c", "nft list ruleset 2>&1 >/dev/null"))
}

func TestPortMappingCheck(t *testing.T) {
	ok := mapping(fabric.TCP, "192.0.2.1:80", "100.64.1.2:80")
	must.NoError(t, ok.Check())
	must.NoError(t, mapping(fabric.UDP, "[::]:80", "[fd5f::2]:80").Check())
	for want, m := range map[string]firewall.PortMapping{
		"only TCP and UDP":      mapping(fabric.ICMP, "192.0.2.1:80", "100.64.1.2:80"),
		"of one family":         mapping(fabric.TCP, "192.0.2.1:80", "[fd5f::2]:80"),
		"addresses must be":     {Protocol: fabric.TCP, To: ok.To},
		"a port is missing":     mapping(fabric.TCP, "192.0.2.1:0", "100.64.1.2:80"),
		"it leads to no endpoi": mapping(fabric.TCP, "192.0.2.1:80", "0.0.0.0:80"),
	} {
		must.ErrorContains(t, m.Check(), want)
	}
}

func TestPortMappingOverlaps(t *testing.T) {
	m := mapping(fabric.TCP, "192.0.2.1:80", "100.64.1.2:80")
	for from, want := range map[string]bool{
		"192.0.2.1:80": true, "192.0.2.2:80": false, "192.0.2.1:81": false, "0.0.0.0:80": true, "[::]:80": false,
	} {
		other := m
		other.From = netip.MustParseAddrPort(from)
		must.Eq(t, want, m.Overlaps(other), must.Sprint(from))
		must.Eq(t, want, other.Overlaps(m), must.Sprint(from))
	}
	must.False(t, m.Overlaps(mapping(fabric.UDP, "192.0.2.1:80", "100.64.1.2:80")))
}

func TestApplyRepairsAndRemoveLeavesNothing(t *testing.T) {
	s := newSite(t)
	before := s.run(s.node, "nft", "list", "ruleset")
	s.do(s.fw.Remove) // nothing there: no error
	s.apply()
	want := s.run(s.node, "nft", "-s", "list", "ruleset")
	s.apply()
	must.Eq(t, want, s.run(s.node, "nft", "-s", "list", "ruleset"))
	must.False(t, s.reaches(s.outside, "tcp", workloadAddress+":80"))
	dropped := s.counter(firewall.PlainFabricSource)
	must.Positive(t, dropped)

	s.run(s.node, "nft", "flush table inet sif")
	s.apply()
	must.Eq(t, want, s.run(s.node, "nft", "-s", "list", "ruleset"))
	must.Eq(t, dropped, s.counter(firewall.PlainFabricSource)) // counters stay
	s.run(s.node, "nft", "delete table inet sif")
	s.do(func() error {
		_, err := s.fw.Counters()
		must.Error(t, err)
		return nil
	})
	s.apply()
	must.Eq(t, want, s.run(s.node, "nft", "-s", "list", "ruleset"))

	s.do(s.fw.Remove)
	must.Eq(t, before, s.run(s.node, "nft", "list", "ruleset"))
}
