// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/firewall"
)

// listen serves at an address of the node alone.
func (s *site) listen(network, address string) {
	s.t.Helper()
	must.NoError(s.t, s.node.Do(func(ns.NetNS) error {
		if network == "udp" {
			c, err := net.ListenPacket(network, address)
			must.NoError(s.t, err)
			s.t.Cleanup(func() { c.Close() })
			go func() {
				b := make([]byte, 100)
				for {
					n, from, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					c.WriteTo(b[:n], from)
				}
			}()
			return nil
		}
		l, err := net.Listen(network, address)
		must.NoError(s.t, err)
		s.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					b := make([]byte, 100)
					for {
						n, err := c.Read(b)
						if err != nil {
							return
						}
						c.Write(b[:n])
					}
				}()
			}
		}()
		return nil
	}))
}

func exposed(p fabric.Protocol, port uint16, to string) firewall.Exposed {
	return firewall.Exposed{Protocol: p, Port: port, To: netip.MustParseAddrPort(to)}
}

// Workloads reach what the node exposes at its link-local addresses, wherever the process listens,
// and nothing else of the node.
func TestExposed(t *testing.T) {
	s := newSite(t)
	s.ipv6()
	for _, device := range []string{"sif0123456789a", "sif0123456789b"} {
		s.run(s.node, "sysctl", "-qw", "net.ipv4.conf."+device+".route_localnet=1")
	}
	s.listen("tcp", "127.0.0.1:8500")
	s.listen("udp", "127.0.0.1:8125")
	s.listen("tcp", "127.0.0.1:8600")
	s.listen("tcp", nodeAddress+":4317")
	s.listen("tcp", "["+node6+"]:4317")
	s.listen("tcp", ":9100")
	open := config
	open.Exposed = []firewall.Exposed{
		exposed(fabric.TCP, 8500, "127.0.0.1:8500"), exposed(fabric.UDP, 125, "127.0.0.1:8125"),
		exposed(fabric.TCP, 4317, nodeAddress+":4317"), exposed(fabric.TCP, 4317, "["+node6+"]:4317"),
		exposed(fabric.TCP, 9100, "169.254.1.1:9100"), exposed(fabric.TCP, 9100, "[fe80::1]:9100"),
		exposed(fabric.TCP, 81, outsideAddress+":80"), // not an address of the node
	}
	s.fw = firewall.New(open)
	s.echo(s.outside, 80)
	s.apply()
	s.run(s.workload, "ip", "route", "add", "127.0.0.2/32", "via", "169.254.1.1", "dev", "eth0", "onlink", "src", workloadAddress)
	for _, p := range []struct {
		from        ns.NetNS
		network, to string
		open        bool
	}{
		{s.workload, "tcp", "169.254.1.1:8500", true},
		{s.second, "udp", "169.254.1.1:125", true},
		{s.workload, "udp", "169.254.1.1:8500", false},
		{s.workload, "tcp", "169.254.1.1:8600", false},
		{s.workload, "udp", "169.254.1.1:8125", false}, // the port that is exposed is another one
		{s.workload, "tcp", "169.254.1.1:4317", true},
		{s.workload, "tcp", "[fe80::1%eth0]:4317", true},
		{s.second, "tcp", "169.254.1.1:9100", true},
		{s.second, "tcp", "[fe80::1%eth0]:9100", true},
		{s.workload, "tcp", "[fe80::1%eth0]:8500", false},
		{s.workload, "tcp", nodeAddress + ":4317", false}, // at no other address
		{s.workload, "tcp", nodeAddress + ":9100", false},
		{s.workload, "tcp", "[" + node6 + "]:4317", false},
		{s.workload, "tcp", nodeAddress + ":8500", false},
		{s.workload, "tcp", "127.0.0.2:9100", false},
		{s.workload, "tcp", "169.254.1.1:81", false},
		{s.outside, "tcp", nodeAddress + ":8500", false},
		{s.distant, "tcp", "169.254.1.1:9100", false},
		{s.node, "tcp", "127.0.0.1:8500", true},
	} {
		must.Eq(t, p.open, s.reaches(p.from, p.network, p.to), must.Sprint(p.network, p.to))
	}
	must.Eq(t, "", s.run(s.node, "sh", "-c", "nft list ruleset 2>&1 >/dev/null"))

	// A configuration that exposes less ends what goes on.
	c, err := s.dial(s.workload, "tcp", "169.254.1.1:8500")
	must.NoError(t, err)
	defer c.Close()
	must.True(t, answers(c))
	s.fw = firewall.New(open)
	s.apply()
	must.True(t, answers(c))
	s.fw = firewall.New(config)
	s.apply()
	must.False(t, answers(c))
	must.False(t, s.reaches(s.workload, "tcp", "169.254.1.1:8500"))
}

// A workload has a number of connections to what the node exposes, and another one has its own.
func TestExposedHasALimit(t *testing.T) {
	s := newSite(t)
	s.run(s.node, "ip", "addr", "add", "169.254.1.1/32", "dev", "sif0123456789b")
	s.run(s.node, "sysctl", "-qw", "net.ipv4.conf.sif0123456789a.route_localnet=1", "net.ipv4.conf.sif0123456789b.route_localnet=1")
	s.listen("udp", "127.0.0.1:8125")
	open := config
	open.Exposed = []firewall.Exposed{exposed(fabric.UDP, 8125, "127.0.0.1:8125")}
	s.fw = firewall.New(open)
	s.apply()
	for s.counter(firewall.NodeFlood) == 0 {
		c, err := s.dial(s.workload, "udp", "169.254.1.1:8125")
		must.NoError(t, err)
		c.Write([]byte("x"))
		c.Close()
	}
	must.True(t, s.reaches(s.second, "udp", "169.254.1.1:8125"))
}
