// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall_test

import (
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/firewall"
)

// Published ports are reached from outside, from the node itself, and from its other workloads by
// the node's address, over IPv4 and IPv6. What else workloads may reach stays as it is.
func TestPublishedPortsFromEverywhere(t *testing.T) {
	s := newSite(t)
	s.ipv6()
	s.echo(s.workload, 80)
	s.echo(s.node, 80)
	s.apply()
	s.do(func() error {
		return s.fw.SetPorts([]firewall.PortMapping{
			mapping(fabric.TCP, nodeAddress+":20001", workloadAddress+":80"), mapping(fabric.TCP, "["+node6+"]:20001", "["+workload6+"]:80"),
			mapping(fabric.UDP, "0.0.0.0:20002", workloadAddress+":80"), mapping(fabric.UDP, "[::]:20002", "["+workload6+"]:80"),
		})
	})
	for name, from := range map[string]ns.NetNS{"outside": s.outside, "the node": s.node, "another workload": s.second} {
		for _, p := range []struct {
			network, to string
			open        bool
		}{
			{"tcp", nodeAddress + ":20001", true}, {"tcp", "[" + node6 + "]:20001", true},
			{"udp", nodeAddress + ":20002", true}, {"udp", "[" + node6 + "]:20002", true},
			{"udp", nodeAddress + ":20001", false}, {"tcp", "[" + node6 + "]:20002", false},
			{"udp", "169.254.1.1:20002", false},
		} {
			if p.to == "169.254.1.1:20002" && from == s.outside {
				continue // it has no way there
			}
			must.Eq(t, p.open, s.reaches(from, p.network, p.to), must.Sprint(name, p.network, p.to))
		}
	}
	must.False(t, s.reaches(s.node, "udp", "127.0.0.1:20002"))
	must.False(t, s.reaches(s.second, "tcp", nodeAddress+":80"))
	must.Eq(t, "", s.run(s.node, "sh", "-c", "nft list ruleset 2>&1 >/dev/null"))

	// A workload that uses a published port directly and by the node at once is not confused.
	direct, err := s.dial(s.second, "tcp", workloadAddress+":80")
	must.NoError(t, err)
	defer direct.Close()
	byNode, err := s.dial(s.second, "tcp", nodeAddress+":20001")
	must.NoError(t, err)
	defer byNode.Close()
	for range 3 {
		must.True(t, answers(direct))
		must.True(t, answers(byNode))
	}
	table := s.run(s.node, "cat", "/proc/net/nf_conntrack")
	must.StrNotContains(t, table, "src="+secondAddress+" dst="+workloadAddress)
	must.StrContains(t, table, "src="+secondAddress+" dst="+nodeAddress)
}

// A mapping that goes takes its connections along, from everywhere, and leaves others alone.
func TestConnectionsEndWithTheirMapping(t *testing.T) {
	s := newSite(t)
	s.echo(s.workload, 80)
	s.apply()
	goes, stays := mapping(fabric.TCP, nodeAddress+":20001", workloadAddress+":80"), mapping(fabric.TCP, nodeAddress+":20002", workloadAddress+":80")
	both := []firewall.PortMapping{goes, stays}
	s.do(func() error { return s.fw.SetPorts(both) })
	for _, restart := range []bool{false, true} {
		must.NoError(t, s.node.Do(func(ns.NetNS) error { return s.fw.SetPorts(both) }))
		for _, from := range []ns.NetNS{s.outside, s.node, s.second} {
			gone, err := s.dial(from, "tcp", nodeAddress+":20001")
			must.NoError(t, err)
			defer gone.Close()
			kept, err := s.dial(from, "tcp", nodeAddress+":20002")
			must.NoError(t, err)
			defer kept.Close()
			must.True(t, answers(gone))
			must.True(t, answers(kept))
			if restart {
				s.fw = firewall.New(config)
				s.apply()
				must.True(t, answers(gone))
			}
			s.do(func() error { return s.fw.SetPorts([]firewall.PortMapping{stays}) })
			must.False(t, answers(gone))
			must.True(t, answers(kept))
			table := s.run(s.node, "cat", "/proc/net/nf_conntrack")
			must.Zero(t, strings.Count(table, "dport=20001 "))
			must.Positive(t, strings.Count(table, "dport=20002 "))
			s.do(func() error { return s.fw.SetPorts(both) })
		}
	}
}
