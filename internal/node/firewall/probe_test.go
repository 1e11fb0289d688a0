// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall_test

import (
	"net"
	"testing"
	"time"

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

// A processor can send from any address by its link. It cannot take part in what the node talks
// about with others by the underlay, for which the kernel would let it pass.
func TestLinksDoNotSpeakForTheUnderlay(t *testing.T) {
	s := newSite(t)
	s.apply()
	// The distant one takes the address of the outside one, and knows both ports.
	s.run(s.distant, "ip", "addr", "add", outsideAddress+"/32", "dev", "lo")
	var own, outside, forger net.PacketConn
	open := func(n ns.NetNS, c *net.PacketConn, at string) {
		must.NoError(t, n.Do(func(ns.NetNS) (err error) {
			*c, err = net.ListenPacket("udp4", at)
			return err
		}))
		t.Cleanup(func() { (*c).Close() })
	}
	open(s.node, &own, nodeAddress+":5000")
	open(s.outside, &outside, outsideAddress+":6000")
	open(s.distant, &forger, outsideAddress+":6000")
	send := func(c net.PacketConn, text, to string, port int) {
		_, err := c.WriteTo([]byte(text), &net.UDPAddr{IP: net.ParseIP(to), Port: port})
		must.NoError(t, err)
	}
	receive := func(c net.PacketConn) string {
		b := make([]byte, 10)
		c.SetReadDeadline(time.Now().Add(2 * time.Second))
		n, _, err := c.ReadFrom(b)
		must.NoError(t, err)
		return string(b[:n])
	}
	send(own, "question", outsideAddress, 6000)
	must.Eq(t, "question", receive(outside))
	before := s.counter(firewall.LinkInput)
	send(forger, "forged", nodeAddress, 5000)
	for s.counter(firewall.LinkInput) == before { // it was dropped; the test ends at its limit if not
		time.Sleep(10 * time.Millisecond)
	}
	send(outside, "answer", nodeAddress, 5000)
	must.Eq(t, "answer", receive(own))
}
