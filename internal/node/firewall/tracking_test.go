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
