// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/wellknown"
)

// Exposed is a port of the node that its workloads reach, at wellknown.LinkLocal4 or LinkLocal6 by
// the family of To. Which of them may is not decided here.
type Exposed struct {
	Protocol fabric.Protocol // TCP or UDP
	Port     uint16
	To       netip.AddrPort // of the node, where the process listens
}

// At returns the address and port that workloads use.
func (e Exposed) At() netip.AddrPort {
	if e.To.Addr().Is4() {
		return netip.AddrPortFrom(wellknown.LinkLocal4, e.Port)
	}
	return netip.AddrPortFrom(wellknown.LinkLocal6, e.Port)
}

// Loopback reports whether packets must be led to an IPv4 loopback address, which the kernel does
// only where route_localnet says so.
func (e Exposed) Loopback() bool { return e.To.Addr().Is4() && e.To.Addr().IsLoopback() }

func (e Exposed) String() string {
	return fmt.Sprintf("%s port %d, which leads to %s", e.Protocol, e.Port, e.To)
}

// Exposed returns what is open to workloads: what is configured, apart from ports of the node's
// daemons.
func (f *Firewall) Exposed() []Exposed {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open().allowed(f.config.Exposed)
}

// allowed returns those that do not lead to a port of the node's daemons.
func (o opened) allowed(list []Exposed) []Exposed {
	return slices.DeleteFunc(slices.Clone(list), func(e Exposed) bool {
		return e.Protocol == fabric.TCP && e.To.Port() == o.engine || e.Protocol == fabric.UDP && slices.Contains(o.links, e.To.Port())
	})
}

// loopback are the addresses that no packet of a workload may have: with route_localnet the kernel
// would take them in.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// at matches packets of workloads to an address and port of the node.
func at(p fabric.Protocol, to netip.AddrPort) []expr.Any {
	return rule(veth(in), within(destination, netip.PrefixFrom(to.Addr(), to.Addr().BitLen())), destinationPort(p, to.Port()))
}

// lead translates what workloads send to a port that is exposed to where the process listens.
func (e Exposed) lead() []expr.Any { return rule(at(e.Protocol, e.At()), translate(e.To)) }

// accept accepts what lead translated.
func (f *Firewall) acceptExposed(e Exposed) [][]expr.Any {
	to := at(e.Protocol, e.To)
	if e.To != e.At() {
		to = rule(to, mapped())
	}
	var rules [][]expr.Any
	for _, c := range callers(nil) {
		if c.ipv6 == e.To.Addr().Is6() {
			rules = append(rules, rule(to, opening(), c.over(connections(exposedPerEndpoint)), drop(NodeFlood)))
		}
	}
	return append(rules, rule(to, accept()))
}

// exposedPerEndpoint is how many connections an address of an endpoint may have to the ports that
// the node exposes.
const exposedPerEndpoint = 512
