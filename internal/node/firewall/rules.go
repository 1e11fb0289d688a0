// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/wellknown"
)

// resolver is the address of the node's DNS server for workloads.
var resolver = netip.PrefixFrom(wellknown.LinkLocal4, 32)

// The ICMP messages that a node accepts from the underlay: echo requests, errors, and those that
// IPv6 requires (RFC 4890 section 4.4).
var (
	icmp4 = []byte{3, 8, 11, 12}
	icmp6 = []byte{1, 2, 3, 4, 128, 130, 134, 135, 136}
)

const (
	ctOngoing = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED
	ctDNAT    = 1 << 5 // IPS_DST_NAT
)

// chain is a base chain and its rules.
type chain struct {
	*nftables.Chain
	rules func(*Firewall, []portMap) [][]expr.Any
}

func (f *Firewall) chains(table *nftables.Table) []chain {
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		policy := nftables.ChainPolicyAccept // other traffic is not affected
		return &nftables.Chain{Table: table, Name: name, Type: kind, Hooknum: hook, Priority: priority, Policy: &policy}
	}
	return []chain{
		{base("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw), (*Firewall).raw},
		{base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest), (*Firewall).prerouting},
		{base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter), (*Firewall).input},
		{base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter), (*Firewall).forward},
	}
}

// raw drops packets with addresses of the fabric on the underlay: they must come through links. The
// kernel does not track the others that are forwarded within the fabric: the eBPF programs do, and
// no workload shall be able to fill the kernel's table.
func (f *Firewall) raw([]portMap) [][]expr.Any {
	var drops, untracked [][]expr.Any
	for _, r := range f.config.Ranges {
		for _, side := range []side{source, destination} {
			drops = append(drops, rule(name(in, f.config.Underlay), within(side, r), drop(PlainFabricSource)))
		}
		untracked = append(untracked, rule(within(source, r), within(destination, r), toOthers(), []expr.Any{&expr.Notrack{}}))
	}
	return append(drops, untracked...)
}

// prerouting applies port mappings.
func (f *Firewall) prerouting(maps []portMap) [][]expr.Any {
	var rules [][]expr.Any
	for _, m := range maps {
		parts := rule(name(in, f.config.Underlay))
		if !m.addressed {
			parts = append(parts, toNodeItself()...)
		}
		rules = append(rules, append(parts, m.lookUp()...))
	}
	return rules
}

// input filters packets to the node itself.
func (f *Firewall) input([]portMap) [][]expr.Any {
	underlay, workload, link := name(in, f.config.Underlay), veth(in), prefix(in, wellknown.LinkPrefix)
	rules := [][]expr.Any{
		rule(underlay, ongoing(), accept()),
	}
	open := f.open()
	for _, port := range open.links {
		rules = append(rules, rule(underlay, destinationPort(fabric.UDP, port), accept()))
	}
	if open.engine != 0 {
		rules = append(rules, rule(underlay, destinationPort(fabric.TCP, open.engine), accept()))
	}
	for _, p := range f.config.Management {
		rules = append(rules, rule(underlay, destinationPort(p.Protocol, p.Number), accept()))
	}
	for _, kind := range icmp4 {
		rules = append(rules, rule(underlay, icmp(unix.IPPROTO_ICMP, kind), accept()))
	}
	for _, kind := range icmp6 {
		rules = append(rules, rule(underlay, icmp(unix.IPPROTO_ICMPV6, kind), accept()))
	}
	rules = append(rules,
		rule(underlay, note(fabric.TCP)),
		rule(underlay, note(fabric.UDP)),
		rule(underlay, enforced(), drop(UnderlayInput)),
		rule(workload, within(destination, resolver), destinationPort(fabric.UDP, wellknown.DNSPort), beyond(f.config.DNSPackets), drop(DNSFlood)),
		rule(workload, ongoing(), accept()), // replies to the node's health checks
		rule(workload, within(destination, resolver), destinationPort(fabric.UDP, wellknown.DNSPort), accept()),
		rule(workload, within(destination, resolver), destinationPort(fabric.TCP, wellknown.DNSPort), beyond(f.config.DNSPackets), drop(DNSFlood)),
		rule(workload, within(destination, resolver), destinationPort(fabric.TCP, wellknown.DNSPort), accept()),
		rule(workload, drop(WorkloadInput)),
		rule(link, ongoing(), accept()),
	)
	for _, h := range f.config.Health {
		rules = append(rules, rule(link, within(destination, netip.PrefixFrom(h, h.BitLen())),
			sourcePort(fabric.UDP, wellknown.ProbePort), destinationPort(fabric.UDP, wellknown.ProbePort), accept()))
	}
	return append(rules, rule(link, drop(LinkInput)))
}

// forward accepts packets between endpoints and links, which eBPF checks at the endpoints, and
// those of port mappings.
func (f *Firewall) forward([]portMap) [][]expr.Any {
	underlay := f.config.Underlay
	return [][]expr.Any{
		rule(veth(in), veth(out), accept()),
		rule(veth(in), prefix(out, wellknown.LinkPrefix), accept()),
		rule(prefix(in, wellknown.LinkPrefix), veth(out), accept()),
		rule(name(in, underlay), veth(out), mapped(), opening(), faster(f.config.Published), drop(Published)),
		rule(name(in, underlay), veth(out), mapped(), accept()),
		rule(veth(in), name(out, underlay), ongoing(), mapped(), accept()),
		rule(veth(in), drop(Forward)),
		rule(veth(out), drop(Forward)),
		rule(prefix(in, wellknown.LinkPrefix), drop(Forward)),
		rule(prefix(out, wellknown.LinkPrefix), drop(Forward)),
		// The node does not route between others.
		rule(name(in, underlay), name(out, underlay), enforced(), drop(Forward)),
		rule(name(in, underlay), name(out, underlay), count(forwardReported)),
	}
}
