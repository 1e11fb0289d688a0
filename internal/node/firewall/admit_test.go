// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/node/firewall"
)

// admit calls Admit in the node's namespace. Look finds the same before, and changes nothing.
func (s *site) admit() (repaired, findings []string) {
	s.t.Helper()
	var seen []string
	var obstacles, before []firewall.Obstacle
	s.do(func() (err error) {
		for range 2 {
			if seen, before, err = s.fw.Look(); err != nil {
				return err
			}
		}
		repaired, obstacles, err = s.fw.Admit()
		return err
	})
	must.Eq(s.t, repaired, seen)
	must.Eq(s.t, obstacles, before)
	for _, o := range obstacles {
		findings = append(findings, o.String())
	}
	return repaired, findings
}

// TestOtherFirewalls drops what the fabric forwards in the tables of others.
func TestOtherFirewalls(t *testing.T) {
	for _, c := range []struct {
		what     string
		commands []string
		repaired int    // rules that are inserted
		finding  string // part of what is reported
		remedy   bool   // the finding contains commands that help
	}{
		{what: "nothing there"},
		{what: "policy accept", commands: []string{"iptables -P FORWARD ACCEPT", "iptables -A FORWARD -i docker0 -j DROP"}},
		{what: "docker", commands: []string{"iptables -P FORWARD DROP"}, repaired: 2},
		{what: "docker, IPv6", commands: []string{"ip6tables -P FORWARD DROP"}, repaired: 2},
		{what: "reject at the end", commands: []string{"iptables -A FORWARD -j REJECT --reject-with icmp-host-prohibited"}, repaired: 2},
		{what: "input and output", commands: []string{"iptables -P INPUT DROP", "iptables -P OUTPUT DROP"}, repaired: 6},
		{what: "the older iptables", commands: []string{"iptables-legacy -P FORWARD DROP"}, repaired: 2},
		{what: "the older ip6tables", commands: []string{"ip6tables-legacy -P FORWARD DROP"}, repaired: 2},
		{what: "nftables, policy", commands: []string{`nft add table inet hardened; add chain inet hardened f { type filter hook forward priority 0; policy drop; }`},
			finding: "nftables chain inet hardened f has the policy drop", remedy: true},
		{what: "nftables, rule", commands: []string{`nft add table ip hardened; add chain ip hardened f { type filter hook forward priority 0; }; add rule ip hardened f counter reject`},
			finding: "nftables chain ip hardened f ends by dropping everything", remedy: true},
		{what: "firewalld", commands: []string{`nft add table inet firewalld; add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; }; add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited`},
			finding: "firewall-cmd --permanent --zone=trusted --add-interface=sif+"},
		{what: "nftables that knows us", commands: []string{`nft add table inet own; add chain inet own f { type filter hook forward priority 0; policy drop; }; add rule inet own f iifname "sif*" accept`}},
		{what: "not forwarding", commands: []string{`nft add table inet own; add chain inet own i { type filter hook input priority 0; policy drop; }`}},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := newSite(t)
			s.apply()
			run := func(command string) {
				t.Helper()
				if rest, is := strings.CutPrefix(command, "nft "); is {
					s.run(s.node, "nft", rest)
					return
				}
				s.run(s.node, strings.Fields(command)...)
			}
			for _, command := range c.commands {
				run(command)
			}
			repaired, findings := s.admit()
			must.Len(t, c.repaired, repaired, must.Sprint(repaired))
			again, _ := s.admit()
			must.SliceEmpty(t, again)
			if c.finding == "" {
				must.SliceEmpty(t, findings)
			} else {
				must.Len(t, 1, findings)
				must.StrContains(t, findings[0], c.finding)
			}
			if c.remedy {
				_, remedy, _ := strings.Cut(findings[0], ": nft ")
				run("nft " + strings.Trim(remedy, "'"))
				_, findings := s.admit()
				must.SliceEmpty(t, findings)
			}
			for _, program := range []string{"iptables", "iptables-legacy"} {
				if c.repaired > 0 && strings.HasPrefix(c.commands[0], program+" -P FORWARD") {
					must.StrContains(t, s.run(s.node, program, "-S", "FORWARD"), "-A FORWARD -i sif+ -m comment --comment sif-fabric -j ACCEPT")
				}
			}
			s.do(s.fw.Remove)
			if out, err := exec.Command("nsenter", "--net="+s.node.Path(), "nft", "list", "ruleset").Output(); err == nil {
				must.StrNotContains(t, string(out), "sif-fabric")
			}
			must.StrNotContains(t, s.run(s.node, "iptables-legacy", "-S"), "sif-fabric")
		})
	}
}

// TestApplySeesWhatOthersChange alters the table in each way, and leaves it alone otherwise.
func TestApplySeesWhatOthersChange(t *testing.T) {
	s := newSite(t)
	must.SliceEmpty(t, s.apply())
	for _, command := range []string{
		"flush ruleset",
		"delete table inet sif",
		"flush chain inet sif forward",
		"insert rule inet sif forward accept",
		"add rule inet sif input accept",
		"add chain inet sif extra",
		"add chain inet sif input { policy drop; }",
		"add table inet sif { flags dormant; }",
		"add element inet sif ports { tcp . 8080 : 100.64.1.2 . 80 }",
	} {
		s.run(s.node, "nft", command)
		must.Len(t, 1, s.apply(), must.Sprint(command))
		// Without what the counters hold: packets pass meanwhile.
		before := s.run(s.node, "nft", "-as", "list", "ruleset")
		must.SliceEmpty(t, s.apply())
		must.Eq(t, before, s.run(s.node, "nft", "-as", "list", "ruleset"), must.Sprint("it was written again"))
		must.StrNotContains(t, before, "dormant")
	}
}
