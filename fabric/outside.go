// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"net/netip"
	"slices"
	"strings"
)

// Exit says where flows to an external leave the fabric.
type Exit string

// The exits.
const (
	ExitZone Exit = ""     // by a processor of the workload's zone, or by its node if the zone has no switch
	ExitNode Exit = "node" // by the workload's node
)

// ConsulInstances are the instances of a Consul service that are registered outside the fabric.
type ConsulInstances struct {
	Service    string `json:"service"`
	Datacenter string `json:"datacenter,omitempty"` // empty: that of the node's Consul agent
	// Within limits the addresses that count, because whoever may write the catalog could add one.
	Within []netip.Prefix `json:"within"`
}

// Counts reports whether an address is within the limits.
func (c ConsulInstances) Counts(a netip.Addr) bool {
	return slices.ContainsFunc(c.Within, func(p netip.Prefix) bool { return p.Contains(a) })
}

// MatchName reports whether a DNS name is one that a pattern names: itself, or, for "*.suffix", any
// name with one or more labels before the suffix. Both are in lower case and without a final dot.
func MatchName(pattern, name string) bool {
	suffix, wild := strings.CutPrefix(pattern, "*.")
	if !wild {
		return pattern == name
	}
	before, is := strings.CutSuffix(name, "."+suffix)
	return is && before != ""
}

// reserved are addresses that no external reaches unless a binding lists exactly them, wherever the
// fabric is: this host, loopback, link-local with the clouds' metadata, multicast, broadcast.
var reserved = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"),          // unspecified, loopback, IPv4-compatible
	netip.MustParsePrefix("::ffff:0:0/96"),  // IPv4-mapped
	netip.MustParsePrefix("64:ff9b::/96"),   // IPv4 by NAT64
	netip.MustParsePrefix("64:ff9b:1::/48"), // the same, local
	netip.MustParsePrefix("2002::/16"),      // IPv4 by 6to4
	netip.MustParsePrefix("fd00:ec2::/32"),  // metadata of AWS
	// Metadata and machine services of Azure, Alibaba Cloud, Google Cloud and Oracle Cloud that are
	// not link-local.
	netip.MustParsePrefix("168.63.129.16/32"), netip.MustParsePrefix("100.100.100.200/32"),
	netip.MustParsePrefix("fd20:ce::254/128"), netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"),
	netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// Reserved returns the prefixes that are reserved in every fabric. Each fabric has others: its own
// ranges, its nodes, and the servers of Consul, Vault and Nomad.
func Reserved() []netip.Prefix { return slices.Clone(reserved) }

// translated are prefixes of IPv6 in which gateways reach the IPv4 address that follows.
var translated = []netip.Prefix{netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("2002::/16")}

// Translated returns the prefixes and, of those of IPv4, what stands for them behind gateways from
// IPv6: who lists such a gateway lists no reserved address behind it.
func Translated(prefixes []netip.Prefix) []netip.Prefix {
	list := slices.Clone(prefixes)
	for _, p := range prefixes {
		if !p.Addr().Is4() {
			continue
		}
		v4 := p.Addr().As4()
		for _, t := range translated {
			raw := t.Addr().As16()
			copy(raw[t.Bits()/8:], v4[:])
			list = append(list, netip.PrefixFrom(netip.AddrFrom16(raw), t.Bits()+p.Bits()))
		}
	}
	return list
}

// Covers reports whether every address of inner is one of outer.
func Covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// Outside is what a node knows of the outside besides the documents, which name some of its
// addresses only by DNS or by Consul. It is not signed: what it says counts only within what the
// documents grant.
type Outside struct {
	Named      []Named      `json:"named,omitempty"`
	Registered []Registered `json:"registered,omitempty"`
	// Ranges are those of the fabric, and the addresses of a workload's own node. They never belong
	// to an external with prefixes, names or a Consul service.
	Ranges []netip.Prefix `json:"ranges,omitempty"`
	// Reserved are addresses that no external reaches unless a binding lists exactly them, besides
	// those of every fabric (see Reserved): nodes, and servers of Consul, Vault and Nomad.
	Reserved []netip.Prefix `json:"reserved,omitempty"`
}

// Named is a DNS name in force, for the service that asked.
type Named struct {
	Service   Ref          `json:"service"`
	Name      string       `json:"name"` // in lower case, without a final dot
	Addresses []netip.Addr `json:"addresses"`
}

// Registered are the addresses of a Consul service's instances.
type Registered struct {
	Service    string       `json:"service"`
	Datacenter string       `json:"datacenter,omitempty"`
	Addresses  []netip.Addr `json:"addresses"`
}

// ReservedBy returns a reserved prefix that keeps an external from having a prefix, and false if
// none does.
func (o Outside) ReservedBy(x Peer, p netip.Prefix) (netip.Prefix, bool) {
	for _, r := range Translated(o.Ranges) {
		if Covers(r, p) {
			return r, true
		}
	}
	for _, list := range [][]netip.Prefix{Reserved(), o.Reserved} {
		for _, r := range Translated(list) {
			if Covers(r, p) && !Lifted(x.Listed, r, p) {
				return r, true
			}
		}
	}
	return netip.Prefix{}, false
}

// Lifted reports whether one of the listed prefixes opens p, which is in a reserved prefix.
func Lifted(listed []netip.Prefix, reserved, p netip.Prefix) bool {
	return slices.ContainsFunc(listed, func(l netip.Prefix) bool { return Covers(reserved, l) && Covers(l, p) })
}

// lifts returns those of a binding's prefixes that can list reserved addresses exactly: single
// addresses, and what lies within reserved prefixes.
func lifts(prefixes []netip.Prefix) (list []netip.Prefix) {
	for _, p := range prefixes {
		if p.IsSingleIP() || slices.ContainsFunc(reserved, func(r netip.Prefix) bool { return Covers(r, p) }) {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list)
}

// EgressGrant is a permission of endpoints of Originator to open flows to an external.
type EgressGrant struct {
	Contract   Ref
	Originator Identity
	External   Peer
	Rules      []Rule
	Audit      bool
}

// EgressGrants returns what endpoints of a may open to externals, where doc is the document of a's
// service. An external requests nothing: it has every role that the graph gives it. For the
// workload's own node, the rules have just the ports that the binding grants.
func EgressGrants(a Identity, doc Document) []EgressGrant {
	var grants []EgressGrant
	for _, e := range doc.Originates {
		if !slices.Contains(a.Roles.Originate, e.Contract) {
			continue
		}
		for _, p := range e.Peers {
			if !p.IsExternal() {
				continue
			}
			rules := e.Rules
			if p.IsNode() {
				rules = narrowed(rules, p.NodePorts)
			}
			if len(rules) > 0 {
				grants = append(grants, EgressGrant{Contract: e.Contract, Originator: a, External: p, Rules: rules, Audit: e.Audit})
			}
		}
	}
	return grants
}

// narrowed returns the rules with those of their ports that are in ranges, without rules that have
// none left. Protocols without ports are left out.
func narrowed(rules []Rule, ranges []PortRange) (list []Rule) {
	for _, r := range rules {
		if !r.Protocol.HasPorts() {
			continue
		}
		var ports []PortRange
		for _, p := range r.Ports {
			for _, other := range ranges {
				if common, ok := p.Overlap(other); ok {
					ports = append(ports, common)
				}
			}
		}
		if r.Ports = MergePorts(ports); len(ports) > 0 {
			list = append(list, r)
		}
	}
	return list
}

// without returns the rules with those of their ports that are in none of the ranges, and without
// rules that have none left. Protocols without ports are left out.
func without(rules []Rule, ranges []PortRange) (list []Rule) {
	for _, r := range rules {
		if !r.Protocol.HasPorts() {
			continue
		}
		var ports []PortRange
		for _, piece := range SplitPorts(slices.Concat(r.Ports, ranges)) {
			in := func(list []PortRange) bool {
				return slices.ContainsFunc(list, func(p PortRange) bool { return p.Contains(piece.From) })
			}
			if in(r.Ports) && !in(ranges) {
				ports = append(ports, piece)
			}
		}
		if r.Ports = MergePorts(ports); len(r.Ports) > 0 {
			list = append(list, r)
		}
	}
	return list
}
