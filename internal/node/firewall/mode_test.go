// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall_test

import (
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/firewall"
)

// hits returns how many packets the firewall counted at a port.
func (s *site) hits(p fabric.Protocol, port uint16) (packets uint64) {
	s.t.Helper()
	s.do(func() error {
		list, _, err := s.fw.Hits()
		for _, h := range list {
			if h.Port == (firewall.Port{Protocol: p, Number: port}) {
				packets = h.Packets
			}
		}
		return err
	})
	return packets
}

// In mode Report what comes from the underlay passes and is counted; what the fabric and its
// workloads must never see is dropped as ever.
func TestReport(t *testing.T) {
	s := newSite(t)
	for _, n := range []ns.NetNS{s.node, s.outside, s.workload, s.second, s.distant} {
		for _, port := range []int{53, 80, 8301} {
			s.echo(n, port)
		}
	}
	s.fw.SetMode(firewall.Report, time.Time{})
	s.apply()
	for _, p := range []struct {
		name    string
		from    ns.NetNS
		network string
		to      string
		passes  bool
		counter string
	}{
		{"management", s.outside, "tcp", nodeAddress + ":8301", true, ""},
		{"another port, tcp", s.outside, "tcp", nodeAddress + ":80", true, ""},
		{"another port, udp", s.outside, "udp", nodeAddress + ":80", true, ""},
		{"an endpoint, in the clear", s.outside, "tcp", workloadAddress + ":80", false, firewall.PlainFabricSource},
		{"a workload to the node", s.workload, "tcp", nodeAddress + ":80", false, firewall.WorkloadInput},
		{"a workload to the outside", s.workload, "tcp", outsideAddress + ":80", false, firewall.Forward},
		{"a distant one to the node", s.distant, "tcp", "169.254.1.1:80", false, firewall.LinkInput},
		{"endpoint to endpoint", s.workload, "tcp", secondAddress + ":80", true, ""},
	} {
		before := s.counter(p.counter)
		must.Eq(t, p.passes, s.reaches(p.from, p.network, p.to), must.Sprint(p.name))
		if p.counter != "" {
			must.Greater(t, before, s.counter(p.counter), must.Sprint(p.name))
		}
	}
	must.Positive(t, s.hits(fabric.TCP, 80))
	must.Positive(t, s.hits(fabric.UDP, 80))
	must.Zero(t, s.hits(fabric.TCP, 8301))
	must.Zero(t, s.counter(firewall.UnderlayInput))

	// What is on its way goes on when the mode changes.
	conn, err := s.dial(s.outside, "tcp", nodeAddress+":80")
	must.NoError(t, err)
	defer conn.Close()
	must.True(t, answers(conn))
	s.fw.SetMode(firewall.Enforce, time.Time{})
	must.SliceEmpty(t, s.apply())
	must.SliceEmpty(t, s.apply())
	before := s.hits(fabric.TCP, 80)
	must.False(t, s.reaches(s.outside, "tcp", nodeAddress+":80"))
	must.Greater(t, before, s.hits(fabric.TCP, 80))
	must.True(t, answers(conn))
	must.True(t, s.reaches(s.outside, "tcp", nodeAddress+":8301"))

	// Who takes the mode away is noticed.
	s.run(s.node, "nft", "flush set inet sif enforcing")
	must.True(t, s.reaches(s.outside, "tcp", nodeAddress+":80"))
	must.SliceLen(t, 1, s.apply())
	must.False(t, s.reaches(s.outside, "tcp", nodeAddress+":80"))
	s.fw.SetMode(firewall.Report, time.Time{})
	must.SliceEmpty(t, s.apply())
	must.True(t, s.reaches(s.outside, "tcp", nodeAddress+":80"))
}

// What is enforced for a time only ends by itself, although nobody calls the firewall again, and
// another process, which takes over in between, does not make it longer.
func TestEnforcedForATime(t *testing.T) {
	s := newSite(t)
	s.echo(s.node, 80)
	s.fw.SetMode(firewall.Report, time.Time{})
	s.apply()
	until := time.Now().Add(3 * time.Second)
	s.fw.SetMode(firewall.Enforce, until)
	s.apply()
	must.False(t, s.reaches(s.outside, "tcp", nodeAddress+":80"))
	must.SliceEmpty(t, s.apply())

	s.fw = firewall.New(config)
	s.fw.SetMode(firewall.Enforce, until)
	s.apply()
	must.False(t, s.reaches(s.outside, "tcp", nodeAddress+":80"))
	time.Sleep(time.Until(until) + 100*time.Millisecond)
	must.True(t, s.reaches(s.outside, "tcp", nodeAddress+":80"))
	must.SliceEmpty(t, s.apply(), must.Sprint("nobody changed anything"))
	must.True(t, s.reaches(s.outside, "tcp", nodeAddress+":80"))
}
