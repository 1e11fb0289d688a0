// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall_test

import (
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/wellknown"
)

// The kernel tracks what goes in and out of the fabric, and to the node itself, but not what is
// forwarded within the fabric: no workload can fill its table.
func TestTrafficWithinTheFabricIsNotTracked(t *testing.T) {
	s := newSite(t)
	for _, n := range []ns.NetNS{s.node, s.workload, s.second, s.distant} {
		s.echo(n, 80)
		s.echo(n, 53)
	}
	s.apply()
	s.do(func() error {
		return s.fw.SetPorts([]firewall.PortMapping{mapping(fabric.TCP, nodeAddress+":20001", workloadAddress+":80")})
	})
	tracked := func(address string) bool {
		for line := range strings.Lines(s.run(s.node, "cat", "/proc/net/nf_conntrack")) {
			if strings.Contains(line, "src="+address+" ") {
				return true
			}
		}
		return false
	}
	must.True(t, s.reaches(s.second, "tcp", workloadAddress+":80"))
	must.True(t, s.reaches(s.distant, "udp", workloadAddress+":80"))
	must.True(t, s.reaches(s.workload, "tcp", distantAddress+":80"))
	for _, address := range []string{secondAddress, distantAddress, workloadAddress} {
		must.False(t, tracked(address), must.Sprint(address))
	}
	must.True(t, s.reaches(s.outside, "tcp", nodeAddress+":20001"))
	must.True(t, tracked(outsideAddress))
	must.True(t, s.reaches(s.node, "tcp", workloadAddress+":80")) // a health check
	must.True(t, s.reaches(s.second, "tcp", "169.254.1.1:53"))
	must.True(t, tracked(secondAddress))
}

// Connections to published ports beyond their rate are dropped before the kernel's table contains
// them. Those that exist continue, and so does everything else.
func TestPublishedPortsHaveARate(t *testing.T) {
	s := newSite(t)
	limited := config
	limited.Published = 5
	s.fw = firewall.New(limited)
	s.echo(s.workload, 80)
	s.echo(s.second, 80)
	s.apply()
	s.do(func() error {
		return s.fw.SetPorts([]firewall.PortMapping{
			mapping(fabric.UDP, nodeAddress+":20001", workloadAddress+":80"), mapping(fabric.TCP, nodeAddress+":20002", workloadAddress+":80")})
	})
	established, err := s.dial(s.outside, "tcp", nodeAddress+":20002")
	must.NoError(t, err)
	defer established.Close()
	refused := 0
	for range 40 {
		if !s.reaches(s.outside, "udp", nodeAddress+":20001") {
			refused++
		}
		must.True(t, answers(established))
	}
	must.Positive(t, refused)
	must.Eq(t, uint64(refused), s.counter(firewall.Published))
	must.True(t, s.reaches(s.second, "tcp", workloadAddress+":80"))
}

// Connections to the outside by the node beyond their rate are dropped before the kernel's table
// contains them; those that exist continue, and another workload has half of the rate at least.
func TestEgressHasARate(t *testing.T) {
	s := newSite(t)
	limited := config
	limited.Published = 10
	s.fw = firewall.New(limited)
	s.echo(s.outside, 80)
	s.apply()
	s.mark(wellknown.ExitMarkNode)
	s.setEgress(out(workloadAddress, outsideAddress+"/32", fabric.UDP, 80, 80), out(secondAddress, outsideAddress+"/32", fabric.UDP, 80, 80))
	established, err := s.dial(s.workload, "udp", outsideAddress+":80")
	must.NoError(t, err)
	defer established.Close()
	must.True(t, answers(established))
	for s.counter(firewall.ExitFlood) < 20 {
		c, err := s.dial(s.workload, "udp", outsideAddress+":80")
		must.NoError(t, err)
		c.Write([]byte("x"))
		c.Close()
	}
	must.True(t, s.reaches(s.second, "udp", outsideAddress+":80"))
	must.True(t, answers(established))
}

// An address has a share of the kernel's table, and no more.
func TestEgressHasAShare(t *testing.T) {
	s := newSite(t)
	wide := config
	wide.Published = 1_000_000
	s.fw = firewall.New(wide)
	s.echo(s.outside, 80)
	s.apply()
	s.mark(wellknown.ExitMarkNode)
	s.setEgress(out(workloadAddress, outsideAddress+"/32", fabric.UDP, 1, 65535), out(secondAddress, outsideAddress+"/32", fabric.UDP, 80, 80))
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	must.NoError(t, err)
	most, err := strconv.Atoi(strings.TrimSpace(string(text)))
	must.NoError(t, err)
	most /= 32
	must.NoError(t, s.workload.Do(func(ns.NetNS) error {
		c, err := net.ListenUDP("udp4", nil)
		must.NoError(t, err)
		defer c.Close()
		for port := 1; port <= most+200; port++ {
			c.WriteTo([]byte("x"), &net.UDPAddr{IP: net.ParseIP(outsideAddress), Port: port})
		}
		return nil
	}))
	must.Positive(t, s.counter(firewall.ExitFlood))
	tracked := strings.Count(s.run(s.node, "cat", "/proc/net/nf_conntrack"), "src="+workloadAddress+" ")
	must.LessEq(t, most, tracked)
	must.Greater(t, most/2, tracked)
	must.True(t, s.reaches(s.second, "udp", outsideAddress+":80"))
}

// What leaves by the exit of the zone is tracked there, not here.
func TestExitOfTheZoneIsNotTracked(t *testing.T) {
	s := newSite(t)
	s.echo(s.distant, 80)
	s.run(s.distant, "ip", "addr", "add", "203.0.113.1/32", "dev", "eth0")
	s.run(s.node, "ip", "route", "add", "203.0.113.1/32", "dev", "sif-l0")
	s.apply()
	s.mark(wellknown.ExitMark(17))
	must.True(t, s.reaches(s.workload, "tcp", "203.0.113.1:80"))
	must.StrNotContains(t, s.run(s.node, "cat", "/proc/net/nf_conntrack"), "203.0.113.1")
}
