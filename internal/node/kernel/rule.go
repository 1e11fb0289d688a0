// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// families returns the versions of IP for which there is a rule.
func (r Rule) families() []int {
	if r.To.IsValid() {
		return []int{familyOf(r.To.Addr())}
	}
	return []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
}

func (r Rule) subject(family int) string {
	text := fmt.Sprintf("routing rule %d", r.Priority)
	if r.Mask != 0 {
		text += fmt.Sprintf(" for mark %#x", r.Mark)
	}
	if r.To.IsValid() {
		return text + " to " + r.To.String()
	}
	if family == netlink.FAMILY_V6 {
		return text + " (IPv6)"
	}
	return text + " (IPv4)"
}

// is reports whether a rule of the kernel is this one, whoever wrote it.
func (r Rule) is(have netlink.Rule) bool {
	mask := uint32(0)
	if have.Mask != nil {
		mask = *have.Mask
	}
	return have.Priority == r.Priority && have.Table == tableOf(r.Table) && have.IifName == r.Interface && have.Mark == r.Mark && mask == r.Mask &&
		have.Src == nil && prefixOf(have.Dst) == r.To && !have.Invert && have.OifName == "" && have.Goto < 0 && have.SuppressPrefixlen < 0 &&
		have.Tos == 0 && have.IPProto == 0 && have.Sport == nil && have.Dport == nil && have.UIDRange == nil
}

func (r Rule) netlink(family int, protocol netlink.RouteProtocol) *netlink.Rule {
	x := netlink.NewRule()
	x.Family, x.Priority, x.IifName, x.Table, x.Protocol = family, r.Priority, r.Interface, tableOf(r.Table), uint8(protocol)
	if r.Mask != 0 {
		x.Mark, x.Mask = r.Mark, &r.Mask
	}
	if r.To.IsValid() {
		x.Dst = network(r.To)
	}
	return x
}

// prefixOf returns a prefix of a rule of the kernel; the zero prefix stands for any address.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr, bits)
}

func (p *planner) rule(r Rule) {
	for _, family := range r.families() {
		if family == netlink.FAMILY_V6 && !p.ipv6 {
			p.skipped = true
			continue
		}
		there := false
		if p.have != nil {
			for _, have := range p.have.rules[family] {
				switch {
				case r.is(have) && !there:
					there = true
				case r.Alone && have.Priority == r.Priority:
					p.removeRule(r.subject(family), have)
				}
			}
		}
		if there {
			continue
		}
		p.add(KindRule, r.subject(family), "was missing, added", func() error {
			if err := netlink.RuleAdd(r.netlink(family, p.protocol)); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("add %s: %w", r.subject(family), err)
			}
			return nil
		})
	}
}

// surplusRules plans the removal of rules with our mark that are not wanted.
func (p *planner) surplusRules(want []Rule) {
	for _, rules := range p.have.rules {
		for _, have := range rules {
			wanted := slices.ContainsFunc(want, func(r Rule) bool { return r.is(have) })
			if netlink.RouteProtocol(have.Protocol) == p.protocol && !wanted {
				p.removeRule(written(have), have)
			}
		}
	}
}

func (p *planner) removeRule(subject string, r netlink.Rule) {
	p.add(KindRule, subject, "was another one, removed", func() error {
		if err := netlink.RuleDel(&r); err != nil && !isGone(err) {
			return fmt.Errorf("remove %s: %w", subject, err)
		}
		return nil
	})
}

// written describes a rule of the kernel by what an operator recognises it by.
func written(r netlink.Rule) string {
	as := Rule{Priority: r.Priority, To: prefixOf(r.Dst), Mark: r.Mark}
	if r.Mask != nil {
		as.Mask = *r.Mask
	}
	text := as.subject(r.Family)
	if source := prefixOf(r.Src); source.IsValid() {
		text += " from " + source.String()
	}
	if r.IifName != "" {
		text += " by " + r.IifName
	}
	return text
}

// Marked are packets that are forwarded with a mark of ours.
type Marked struct {
	Mark uint32
	From []netip.Prefix
	// By reports whether they can come by an interface.
	By func(name string) bool
}

// Takers describes the rules of others that come before a priority and take some of these packets.
// What their tables contain is not looked at.
func Takers(packets []Marked, priority int) ([]string, error) {
	var list []string
	families := []int{netlink.FAMILY_V4}
	if HasIPv6() {
		families = append(families, netlink.FAMILY_V6)
	}
	for _, family := range families {
		rules, err := netlink.RuleList(family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list the routing rules: %w", err)
		}
		for _, r := range rules {
			if r.Priority < priority && r.Protocol != RouteProtocol && slices.ContainsFunc(packets, func(m Marked) bool { return m.takenBy(r) }) {
				list = append(list, written(r))
			}
		}
	}
	return list, nil
}

// takenBy reports whether a rule decides about some of the packets. A rule for the machine's own
// packets does not, nor one that leads to the addresses of the machine itself. The library does not
// tell rules of VRFs, which have no table, from those that forbid; so both are left out.
func (m Marked) takenBy(r netlink.Rule) bool {
	if r.Table == unix.RT_TABLE_LOCAL || r.Table == 0 && r.Goto < 0 || r.OifName != "" || r.UIDRange != nil {
		return false
	}
	matches := r.Mask == nil || m.Mark&*r.Mask == r.Mark
	matches = matches && (r.IifName == "" || m.By(r.IifName))
	if source := prefixOf(r.Src); source.IsValid() {
		matches = matches && slices.ContainsFunc(m.From, source.Overlaps)
	}
	if r.Invert {
		return !matches || r.Dst != nil
	}
	return matches
}
