// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall_test

import (
	"net"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/wellknown"
)

// Probes come to the health address through links only, from the port for probes to that port, and
// never from an endpoint or the underlay.
func TestProbes(t *testing.T) {
	s := newSite(t)
	s.run(s.node, "ip", "addr", "add", healthAddress+"/32", "dev", "lo")
	for _, port := range []int{wellknown.ProbePort, 80} {
		must.NoError(t, s.node.Do(func(ns.NetNS) error {
			c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(healthAddress), Port: port})
			must.NoError(t, err)
			t.Cleanup(func() { c.Close() })
			go func() {
				b := make([]byte, 10)
				for {
					n, from, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					c.WriteTo(b[:n], from)
				}
			}()
			return nil
		}))
	}
	s.run(s.outside, "ip", "route", "replace", healthAddress+"/32", "via", nodeAddress, "dev", "eth0")
	probe := func(n ns.NetNS, from, to int) bool {
		var c *net.UDPConn
		must.NoError(t, n.Do(func(ns.NetNS) (err error) {
			c, err = net.DialUDP("udp4", &net.UDPAddr{Port: from}, &net.UDPAddr{IP: net.ParseIP(healthAddress), Port: to})
			return err
		}))
		defer c.Close()
		return answers(c)
	}
	for _, n := range []ns.NetNS{s.distant, s.workload, s.outside} { // the firewall closes it, nothing else
		must.True(t, probe(n, wellknown.ProbePort, wellknown.ProbePort))
	}
	s.run(s.node, "conntrack", "-F")
	s.apply()
	must.True(t, probe(s.distant, wellknown.ProbePort, wellknown.ProbePort))
	for _, c := range []struct {
		from       ns.NetNS
		port, to   int
		droppedFor string
	}{
		{s.distant, wellknown.ProbePort + 1, wellknown.ProbePort, firewall.LinkInput},
		{s.distant, wellknown.ProbePort, 80, firewall.LinkInput},
		{s.workload, wellknown.ProbePort, wellknown.ProbePort, firewall.WorkloadInput},
		{s.outside, wellknown.ProbePort, wellknown.ProbePort, firewall.PlainFabricSource},
	} {
		before := s.counter(c.droppedFor)
		must.False(t, probe(c.from, c.port, c.to))
		must.Greater(t, before, s.counter(c.droppedFor))
	}
}
