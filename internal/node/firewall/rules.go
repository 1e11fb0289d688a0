// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"maps"
	"net/netip"
	"slices"

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

const ctOngoing = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED

// chain is a chain and its rules.
type chain struct {
	*nftables.Chain
	rules func(*Firewall, []portMap) [][]expr.Any
}

// Chains to which rules of others go.
const (
	exitChain     = "exit"          // what leaves by the node
	withheldChain = "exit_withheld" // of that, what is for withheld prefixes
	openChain     = "exit_open"     // of that, what is allowed
)

func (f *Firewall) chains(table *nftables.Table) []chain {
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		policy := nftables.ChainPolicyAccept // other traffic is not affected
		return &nftables.Chain{Table: table, Name: name, Type: kind, Hooknum: hook, Priority: priority, Policy: &policy}
	}
	return []chain{
		{&nftables.Chain{Table: table, Name: openChain}, (*Firewall).opening},
		{&nftables.Chain{Table: table, Name: withheldChain}, (*Firewall).withheld},
		{&nftables.Chain{Table: table, Name: exitChain}, (*Firewall).exit},
		{base("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw), (*Firewall).raw},
		{base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest), (*Firewall).prerouting},
		{base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest), (*Firewall).output},
		{base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter), (*Firewall).input},
		{base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter), (*Firewall).forward},
		{base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource), (*Firewall).postrouting},
	}
}

// raw drops packets with addresses of the fabric on the underlay: they must come through links, and
// packets of workloads with addresses of loopback. By a link comes nothing that is not for an
// address of the fabric: a processor can send by it from any address, but not speak in the
// connections that the node has with others. What comes by the link of an exit gets the exit's
// mark, by which reverse-path filters learn that its senders are reached there.
//
// The kernel does not track what is forwarded within the fabric, and between workloads and the exit
// of their zone: the eBPF programs do, and no workload shall be able to fill the kernel's table.
// Answers of published ports to workloads of the same node are the exception.
func (f *Firewall) raw([]portMap) [][]expr.Any {
	var drops, tracked, untracked [][]expr.Any
	notrack := []expr.Any{&expr.Notrack{}}
	link := prefix(in, wellknown.LinkPrefix)
	for _, p := range loopback {
		for _, side := range []side{source, destination} {
			drops = append(drops, rule(veth(in), within(side, p), drop(WorkloadInput)))
		}
	}
	for _, r := range returnings(nil) {
		tracked = append(tracked, rule(veth(in), r.expected(), accept()))
	}
	for _, r := range f.config.Ranges {
		for _, side := range []side{source, destination} {
			drops = append(drops, rule(name(in, f.config.Underlay), within(side, r), drop(PlainFabricSource)))
		}
		untracked = append(untracked, rule(within(source, r), within(destination, r), toOthers(), notrack),
			rule(link, within(destination, r), toOthers(), notrack))
	}
	untracked = append(untracked, rule(veth(in), marked(wellknown.ExitMark(0), ^uint32(wellknown.MaxExits-1)), notrack))
	for _, family := range f.families() {
		foreign := link
		for _, r := range family {
			foreign = rule(foreign, beyondPrefix(destination, r))
		}
		drops = append(drops, rule(foreign, drop(LinkInput)))
	}
	var marks [][]expr.Any
	for _, device := range slices.Sorted(maps.Keys(f.writing.marks)) {
		marks = append(marks, rule(name(in, device), mark(f.writing.marks[device])))
	}
	return slices.Concat(drops, marks, tracked, untracked)
}

// families returns the fabric's ranges of each version of IP that has any.
func (f *Firewall) families() (list [][]netip.Prefix) {
	var v4, v6 []netip.Prefix
	for _, r := range f.config.Ranges {
		if r.Addr().Is4() {
			v4 = append(v4, r)
		} else {
			v6 = append(v6, r)
		}
	}
	return slices.DeleteFunc([][]netip.Prefix{v4, v6}, func(l []netip.Prefix) bool { return len(l) == 0 })
}

// prerouting applies port mappings, for the underlay and for workloads of the node, and leads what
// workloads send to ports that the node exposes.
func (f *Firewall) prerouting(maps []portMap) [][]expr.Any {
	var rules [][]expr.Any
	for _, m := range maps {
		parts := rule(name(in, f.config.Underlay))
		if !m.addressed {
			parts = append(parts, toNodeItself()...)
		}
		rules = append(rules, rule(parts, m.match(), m.lead()))
	}
	for _, e := range f.writing.allowed(f.config.Exposed) {
		if e.To != e.At() {
			rules = append(rules, e.lead())
		}
	}
	for _, m := range maps {
		local := rule(veth(in), f.toHost(m.ipv6))
		for _, n := range neighbours(nil) {
			if n.ipv6 == m.ipv6 {
				rules = append(rules, rule(local, m.match(), n.over(connections(f.writing.tracking)), drop(Published)))
			}
		}
		for _, r := range returnings(nil) {
			if r.ipv6 == m.ipv6 {
				rules = append(rules, rule(local, m.match(), r.expect(m.free()), m.lead()))
			}
		}
	}
	return rules
}

// output applies port mappings to what the node itself sends to its own addresses.
func (f *Firewall) output(maps []portMap) [][]expr.Any {
	var rules [][]expr.Any
	for _, m := range maps {
		rules = append(rules, rule(f.toHost(m.ipv6), m.match(), m.lead()))
	}
	return rules
}

// toHost matches packets to the addresses of the node by which others know it.
func (f *Firewall) toHost(ipv6 bool) []expr.Any {
	exprs := toNodeItself()
	for _, p := range slices.Concat(loopback, linkLocal, f.config.Ranges) {
		if p.Addr().Is6() == ipv6 {
			exprs = append(exprs, beyondPrefix(destination, p)...)
		}
	}
	return exprs
}

var linkLocal = []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10")}

// input filters packets to the node itself.
func (f *Firewall) input([]portMap) [][]expr.Any {
	underlay, workload, link := name(in, f.config.Underlay), veth(in), prefix(in, wellknown.LinkPrefix)
	rules := [][]expr.Any{
		rule(underlay, ongoing(), accept()),
	}
	open := f.writing
	for _, port := range open.links {
		rules = append(rules, rule(underlay, destinationPort(fabric.UDP, port), accept()))
	}
	if open.engine != 0 {
		rules = append(rules, rule(underlay, destinationPort(fabric.TCP, open.engine), accept()))
	}
	for _, p := range f.config.Management {
		match := protocol(byte(p.Protocol))
		if p.Number != 0 {
			match = destinationPort(p.Protocol, p.Number)
		}
		rules = append(rules, rule(underlay, match, accept()))
	}
	for _, kind := range icmp4 {
		rules = append(rules, rule(underlay, icmp(unix.IPPROTO_ICMP, kind), accept()))
	}
	for _, kind := range icmp6 {
		rules = append(rules, rule(underlay, icmp(unix.IPPROTO_ICMPV6, kind), accept()))
	}
	asking := within(destination, resolver)
	rules = append(rules,
		rule(underlay, protocol(unix.IPPROTO_IGMP), accept()), // as MLD of IPv6: without it a switch forgets which groups the node is in
		rule(underlay, note(fabric.TCP)),
		rule(underlay, note(fabric.UDP)),
		rule(underlay, noteOthers()),
		rule(underlay, enforced(), drop(UnderlayInput)),
		rule(workload, asking, destinationPort(fabric.UDP, wellknown.DNSPort), f.tooMuchDNS(), drop(DNSFlood)),
		rule(workload, ongoing(), accept()), // replies to the node's health checks
		rule(workload, asking, destinationPort(fabric.UDP, wellknown.DNSPort), accept()),
		rule(workload, asking, destinationPort(fabric.TCP, wellknown.DNSPort), f.tooMuchDNS(), drop(DNSFlood)),
		rule(workload, asking, destinationPort(fabric.TCP, wellknown.DNSPort), accept()),
	)
	for _, e := range f.writing.allowed(f.config.Exposed) {
		rules = append(rules, f.acceptExposed(e)...)
	}
	rules = append(rules,
		rule(workload, drop(WorkloadInput)),
		rule(link, ongoing(), accept()),
	)
	for _, h := range f.config.Health {
		rules = append(rules, rule(link, within(destination, netip.PrefixFrom(h, h.BitLen())),
			sourcePort(fabric.UDP, wellknown.ProbePort), destinationPort(fabric.UDP, wellknown.ProbePort), accept()))
		if f.config.Agents { // by no link of a processor: what comes there may be from anywhere
			rules = append(rules, rule(name(in, wellknown.ZoneLink), within(destination, netip.PrefixFrom(h, h.BitLen())),
				destinationPort(fabric.TCP, wellknown.AgentPort), accept()))
		}
	}
	return append(rules, rule(link, drop(LinkInput)))
}

func (f *Firewall) tooMuchDNS() []expr.Any {
	return dnsAskers(nil).over(perSecond(f.config.DNSPackets, f.config.DNSPackets/8))
}

// forward accepts packets between endpoints and links, which eBPF checks at the endpoints, those of
// port mappings, and what leaves by the node.
func (f *Firewall) forward([]portMap) [][]expr.Any {
	underlay := f.config.Underlay
	return [][]expr.Any{
		rule(veth(in), veth(out), accept()),
		rule(veth(in), prefix(out, wellknown.LinkPrefix), accept()),
		rule(prefix(in, wellknown.LinkPrefix), veth(out), accept()),
		rule(name(in, underlay), veth(out), mapped(), opening(), faster(f.config.Published), drop(Published)),
		rule(name(in, underlay), veth(out), mapped(), accept()),
		rule(veth(in), name(out, underlay), ongoing(), mapped(), answering(), accept()),
		rule(veth(in), name(out, underlay), byNode(), jump(exitChain)),
		rule(veth(in), name(out, underlay), related(), hidden(), accept()), // errors about answers
		rule(name(in, underlay), veth(out), ongoing(), hidden(), accept()),
		rule(veth(in), drop(Forward)),
		rule(veth(out), drop(Forward)),
		rule(prefix(in, wellknown.LinkPrefix), drop(Forward)),
		rule(prefix(out, wellknown.LinkPrefix), drop(Forward)),
		// The node does not route between others.
		rule(name(in, underlay), name(out, underlay), enforced(), drop(Forward)),
		rule(name(in, underlay), name(out, underlay), count(forwardReported)),
	}
}

// exit judges what eBPF lets out with the node as exit: each packet again, not only the first of a
// connection, so that what is withdrawn ends.
func (f *Firewall) exit([]portMap) [][]expr.Any {
	rules := [][]expr.Any{
		rule(untraceable(), drop(Exit)),
		rule(related(), hidden(), accept()),
		rule(answering(), drop(Exit)),
	}
	for _, s := range withheldSets(nil) {
		rules = append(rules, rule(s.lookUp(), jump(withheldChain)))
	}
	return append(rules, allowed(false)...)
}

// withheld judges what entries for wider prefixes do not let out.
func (f *Firewall) withheld([]portMap) [][]expr.Any { return allowed(true) }

// allowed goes on with what is in the sets, and drops the rest.
func allowed(listed bool) (rules [][]expr.Any) {
	for _, s := range egressSets(nil) {
		if s.listed == listed {
			rules = append(rules, rule(s.lookUp(), jump(openChain)))
		}
	}
	return append(rules, rule(drop(Exit)))
}

// opening bounds how fast and how many connections leave by the node: all together, and those of an
// address, which never gets more than half of the rate.
func (f *Firewall) opening([]portMap) [][]expr.Any {
	var rules [][]expr.Any
	rate := uint32(max(f.config.Published/2, 1))
	for _, s := range outRates(nil) {
		rules = append(rules, rule(opening(), s.over(perSecond(rate, rate)), drop(ExitFlood)))
	}
	for _, s := range outgoing(nil) {
		rules = append(rules, rule(opening(), s.over(connections(f.writing.tracking)), drop(ExitFlood)))
	}
	return append(rules,
		rule(opening(), faster(f.config.Published), drop(ExitFlood)),
		rule(opening(), remember()),
		rule(accept()))
}

// postrouting gives what leaves by the node the node's address.
func (f *Firewall) postrouting([]portMap) [][]expr.Any {
	var rules [][]expr.Any
	for _, r := range f.config.Ranges {
		rules = append(rules, rule(name(out, f.config.Underlay), byNode(), within(source, r), masquerade()))
	}
	return rules
}
