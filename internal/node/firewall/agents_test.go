// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall_test

import (
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/wellknown"
)

// The agents of the zone come by the link to the nodes of the zone, to the health address; nobody
// comes by a link to a processor, by the underlay, or from an endpoint. A node without an agent has
// no such port.
func TestAgentsOfTheZone(t *testing.T) {
	s := newSite(t)
	processor := namespace(t)
	s.run(s.node, "ip", "link", "add", "sif-l1", "type", "veth", "peer", "name", "eth0", "netns", processor.Path())
	s.run(s.node, "ip", "link", "set", "sif-l1", "up")
	s.run(s.node, "ip", "route", "add", "100.64.3.2/32", "dev", "sif-l1")
	s.run(s.node, "sysctl", "-qw", "net.ipv4.conf.sif-l1.proxy_arp=1")
	for _, args := range [][]string{{"link", "set", "lo", "up"}, {"addr", "add", "100.64.3.2/32", "dev", "eth0"}, {"link", "set", "eth0", "up"}, {"route", "add", "default", "via", "169.254.1.1", "dev", "eth0", "onlink"}} {
		s.run(processor, append([]string{"ip"}, args...)...)
	}
	s.run(s.node, "ip", "addr", "add", healthAddress+"/32", "dev", "lo")
	s.run(s.outside, "ip", "route", "replace", healthAddress+"/32", "via", nodeAddress, "dev", "eth0")
	for _, port := range []int{wellknown.AgentPort, 80} {
		must.NoError(t, s.node.Do(func(ns.NetNS) error {
			l, err := net.Listen("tcp4", net.JoinHostPort(healthAddress, strconv.Itoa(port)))
			must.NoError(t, err)
			t.Cleanup(func() { l.Close() })
			return nil
		}))
	}
	reaches := func(from ns.NetNS, port int) (connected bool) {
		must.NoError(t, from.Do(func(ns.NetNS) error {
			c, err := net.DialTimeout("tcp4", net.JoinHostPort(healthAddress, strconv.Itoa(port)), 700*time.Millisecond)
			if connected = err == nil; connected {
				c.Close()
			}
			return nil
		}))
		return connected
	}
	for _, n := range []ns.NetNS{s.distant, processor, s.workload, s.outside} { // the firewall closes it, nothing else
		must.True(t, reaches(n, wellknown.AgentPort))
	}
	s.apply()
	must.False(t, reaches(s.distant, wellknown.AgentPort))
	c := config
	c.Agents = true
	s.fw = firewall.New(c)
	s.apply()
	must.True(t, reaches(s.distant, wellknown.AgentPort))
	for _, refused := range []struct {
		from       ns.NetNS
		port       int
		droppedFor string
	}{
		{s.distant, 80, firewall.LinkInput},
		{processor, wellknown.AgentPort, firewall.LinkInput},
		{s.workload, wellknown.AgentPort, firewall.WorkloadInput},
		{s.outside, wellknown.AgentPort, firewall.PlainFabricSource},
	} {
		before := s.counter(refused.droppedFor)
		must.False(t, reaches(refused.from, refused.port))
		must.Greater(t, before, s.counter(refused.droppedFor))
	}
}
