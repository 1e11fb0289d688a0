// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// The most that externals may have, so that no domain fills what all domains share. Each name can
// have many addresses.
const (
	maxPrefixes      = 1_000 // of an external, with those of its Consul service
	maxOutside       = 4_000 // prefixes of a domain together
	maxNames         = 100   // of an external
	maxOutsideNames  = 1_000 // of a domain together
	maxConsulService = 128   // characters of the name of a Consul service
)

// dnsPort is the port of the node's DNS server, which is no port of an external.
const dnsPort = 53

// echoRequests are the only messages of ICMP and ICMPv6 that externals can get: others cannot be
// translated, because their answers cannot be told apart.
var echoRequests = map[Protocol]PortRange{ICMP: {From: 8, To: 8}, ICMPv6: {From: 128, To: 128}}

// Words describes for people what the external stands for, such as "api.example.com, 192.0.2.0/24
// and 3 more".
func (e External) Words() string {
	var list []string
	list = append(list, e.Names...)
	for _, p := range e.Prefixes {
		list = append(list, prefixText(p))
	}
	if e.Consul != nil {
		list = append(list, "Consul service "+e.Consul.String())
	}
	if e.Node {
		list = append(list, "the workload's node")
	}
	const most = 3
	if len(list) > most+1 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
	}
	return strings.Join(list, ", ")
}

// prefixText is a prefix as written in a graph: a single address has no length.
func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func (c ConsulInstances) String() string {
	if c.Datacenter == "" {
		return c.Service
	}
	return c.Service + " of " + c.Datacenter
}

// within returns the prefixes by which addresses may be the external's.
func (e External) within() []netip.Prefix {
	if e.Consul == nil {
		return e.Prefixes
	}
	return slices.Concat(e.Prefixes, e.Consul.Within)
}

// listed returns those of a binding's exact prefixes that can have an address of the external. A
// name can have any.
func (p Peer) listed(exact []netip.Prefix) []netip.Prefix {
	if len(p.Names) > 0 {
		return exact
	}
	within := p.Prefixes
	if p.Consul != nil {
		within = slices.Concat(within, p.Consul.Within)
	}
	var list []netip.Prefix
	for _, l := range exact {
		if slices.ContainsFunc(within, l.Overlaps) {
			list = append(list, l)
		}
	}
	return list
}

// OriginatorFault says why the external cannot open flows to services, and what to do about it;
// both are empty if it can.
func (e External) OriginatorFault() (fault, remedy string) {
	what := ""
	switch {
	case e.Node:
		what = "is the workload's node"
	case len(e.Names) > 0:
		what = "has names"
	case e.Consul != nil:
		what = "is a Consul service"
	default:
		return "", ""
	}
	return what + ", so it can only be a responder", "name an external that has nothing but prefixes"
}

// RuleFault says what of a rule no flow to the external can have, and what to do about it; both are
// empty if all of it can.
func (e External) RuleFault(r Rule) (fault, remedy string) {
	if e.Node {
		switch {
		case r.Protocol != TCP && r.Protocol != UDP:
			return fmt.Sprintf("%s does not reach the workload's node", r.Protocol), "use tcp or udp"
		}
		for _, p := range r.Ports {
			if fault, remedy := NodePortFault(p); fault != "" {
				return fault, remedy
			}
		}
		return "", ""
	}
	switch r.Protocol {
	case SCTP:
		return "sctp cannot be translated at the exit: its packets contain the addresses of both ends", "use tcp or udp"
	case ICMP, ICMPv6:
		echo := echoRequests[r.Protocol]
		if slices.ContainsFunc(r.Ports, func(p PortRange) bool { return p != echo }) {
			return fmt.Sprintf("messages of %s other than echo requests cannot be translated at the exit", r.Protocol),
				`write types = ["echo-request"]; answers and errors belong to flows and need no rule`
		}
	}
	return "", ""
}

// NodePortFault says why ports of the workload's node cannot be an external's, and what to do about
// it; both are empty if they can.
func NodePortFault(ports PortRange) (fault, remedy string) {
	if !ports.Contains(dnsPort) {
		return "", ""
	}
	remedy = fmt.Sprintf("leave out port %d", dnsPort)
	if below, above := (PortRange{ports.From, dnsPort - 1}), (PortRange{dnsPort + 1, ports.To}); ports.From < dnsPort && ports.To > dnsPort {
		remedy = fmt.Sprintf("write %q and %q", below, above)
	}
	return fmt.Sprintf("port %d of the node is its DNS server, which needs no contract", dnsPort), remedy
}

// Fault says what is wrong with the combination of what the external has, and what to do about it;
// both are empty if it is right.
func (e External) Fault() (fault, remedy string) {
	others := len(e.Prefixes) > 0 || len(e.Names) > 0 || e.Consul != nil
	switch {
	case e.Node && others:
		return "has a node block besides others: node stands alone", "declare two externals"
	case e.Node && e.Exit != ExitZone:
		return "has an exit, but what listens on the node has none", "remove the argument exit"
	case !e.Node && !others:
		return "has no addresses", `list prefixes or names, or add a consul or a node block`
	}
	return "", ""
}

// ExitFault says what is wrong with an exit, and what to do about it; both are empty if it is
// right.
func ExitFault(e Exit) (fault, remedy string) {
	if e != ExitZone && e != ExitNode {
		return fmt.Sprintf("unknown exit %q", e), fmt.Sprintf("write %q for the workload's node, or leave it out for the exit of the zone", ExitNode)
	}
	return "", ""
}

var (
	consulServices    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)
	consulDatacenters = regexp.MustCompile(`^[a-z0-9_-]+$`)
)

// catalogPrefix begins the names of services under which the fabric registers its own endpoints.
const catalogPrefix = "sif-"

// ConsulServiceFault says why an external cannot follow a Consul service of that name, and what to
// do about it; both are empty if it can.
func ConsulServiceFault(name string) (fault, remedy string) {
	switch {
	case name == "":
		return "a Consul service must have a name", "set it to the name under which the instances are registered"
	case strings.Contains(name, "*"):
		return fmt.Sprintf("the Consul service %q is a pattern", name), "name one service; use several externals for several services"
	case strings.HasPrefix(name, catalogPrefix):
		return fmt.Sprintf("the Consul service %q is of the fabric itself", name), `name the service of the fabric in the contract, as "domain/service"`
	case len(name) > maxConsulService || !consulServices.MatchString(name):
		return fmt.Sprintf("%q is no name of a Consul service", name), fmt.Sprintf(`use letters, digits, "-", "_" and ".", at most %d`, maxConsulService)
	}
	return "", ""
}

// ConsulDatacenterFault says why a Consul datacenter cannot have that name, and what to do about
// it; both are empty if it can. An empty name stands for the datacenter of the node's agent.
func ConsulDatacenterFault(name string) (fault, remedy string) {
	if name != "" && !consulDatacenters.MatchString(name) {
		return fmt.Sprintf("%q is no name of a Consul datacenter", name), `use lower-case letters, digits, "-" and "_"`
	}
	return "", ""
}

// WithinFault says why a prefix cannot limit the instances of a Consul service, and what to do
// about it; both are empty if it can.
func WithinFault(p netip.Prefix) (fault, remedy string) {
	if p.Bits() == 0 {
		return fmt.Sprintf("%s limits nothing, so whoever may write the catalog could add any address", p), "list the prefixes in which the instances are"
	}
	return "", ""
}

// check checks what holds for the external whatever its contracts are.
func (e External) check(report reporter) {
	say := func(fault, remedy string) {
		if fault != "" {
			report(e.Pos, remedy, "external %q %s", e.Name, fault)
		}
	}
	colon := func(fault, remedy string) {
		if fault != "" {
			report(e.Pos, remedy, "external %q: %s", e.Name, fault)
		}
	}
	say(e.Fault())
	colon(ExitFault(e.Exit))
	if n := len(e.within()); n > maxPrefixes {
		report(e.Pos, "use wider prefixes or several externals", "external %q has %d prefixes; the most is %d", e.Name, n, maxPrefixes)
		return
	}
	if n := len(e.Names); n > maxNames {
		report(e.Pos, "use several externals, or a name such as \"*.example.com\"", "external %q has %d names; the most is %d", e.Name, n, maxNames)
		return
	}
	checkPrefixes(e.Prefixes, "external", e.Name, e.Pos, report)
	checkNames(e.Names, NameFault, "external", e.Name, e.Pos, report)
	if c := e.Consul; c != nil {
		colon(ConsulServiceFault(c.Service))
		colon(ConsulDatacenterFault(c.Datacenter))
		if len(c.Within) == 0 {
			report(e.Pos, "list the prefixes in which the instances are: whoever may write the catalog could add any address", "the consul block of external %q has no prefixes within which addresses count", e.Name)
		}
		checkPrefixes(c.Within, "the consul block of external", e.Name, e.Pos, report)
		for _, p := range c.Within {
			if p.IsValid() {
				colon(WithinFault(p))
			}
		}
	}
}

// The roles in a contract, in the words of problems.
const (
	originators = "originators"
	responders  = "responders"
)

// checkRole checks whether the external can have a role in a contract.
func (e External) checkRole(c *Contract, role string, report reporter) {
	if role == originators {
		if fault, remedy := e.OriginatorFault(); fault != "" {
			report(c.Pos, remedy, "external %q among the originators of contract %q %s", e.Name, c.Name, fault)
		}
		return
	}
	for _, r := range c.Rules {
		if fault, remedy := e.RuleFault(r); fault != "" {
			report(c.Pos, remedy, "a rule of contract %q opens what external %q cannot have: %s", c.Name, e.Name, fault)
		}
	}
}

// checkNames checks the DNS names of a block.
func checkNames(names []string, fault func(string) (fault, remedy string), kind, name string, pos Position, report reporter) {
	for i, n := range names {
		if wrong, remedy := fault(n); wrong != "" {
			report(pos, remedy, "name %q of %s %q %s", n, kind, name, wrong)
		} else if slices.Index(names, n) != i {
			report(pos, "remove one of the two", "%s %q lists name %q twice", kind, name, n)
		}
	}
}

// checkPrefixes checks the prefixes of a block.
func checkPrefixes(prefixes []netip.Prefix, kind, name string, pos Position, report reporter) {
	for i, p := range prefixes {
		switch {
		case !p.IsValid() || p.Addr().Zone() != "":
			report(pos, `write each prefix as an address and a length, such as "192.0.2.0/24"`, "prefix %d of %s %q is not an address prefix", i+1, kind, name)
		case p.Addr().Is4In6():
			report(pos, "write the IPv4 prefix", "prefix %s of %s %q is an IPv4-mapped IPv6 prefix", p, kind, name)
		case p.Masked() != p:
			report(pos, fmt.Sprintf("write %q", p.Masked()), "prefix %s of %s %q has bits set beyond its length", p, kind, name)
		case slices.Index(prefixes, p) != i:
			report(pos, "remove one of the two", "%s %q lists prefix %s twice", kind, name, p)
		}
	}
}
