// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hostport

import (
	"net/netip"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/wellknown"
)

// Priorities of hooks (enum nf_ip_hook_priorities). Ours of translation come before those of
// others.
const (
	priorityRaw    = -300
	priorityMangle = -150
	priorityLead   = -101
	priorityFilter = 0
	priorityAppear = 99
)

// resolver is the node's DNS server, which knows an asker by its endpoint's address.
var (
	resolver  = wellknown.LinkLocal4
	questions = []Port{{fabric.UDP, wellknown.DNSPort}, {fabric.TCP, wellknown.DNSPort}}
)

// placed is an attachment with what was found on the node about it.
type placed struct {
	Attachment
	// group is what the kernel knows its cgroup by; 0: there is none.
	group uint64
	// listens is where, by family, the process of a port listens that does not listen at every
	// address.
	listens map[Port][2]netip.Addr
	// looped is whether, by family, that is the loopback address itself.
	looped map[Port][2]bool
	heard  map[Port]bool // somebody has the port
}

func (p placed) reachedSet(f family) addresses {
	return addresses{"reached" + f.name + "_" + strconv.Itoa(p.Slot), f, disjoint(p.Reached, f)}
}

func (p placed) sparedSet(f family) addresses {
	return addresses{"spared" + f.name + "_" + strconv.Itoa(p.Slot), f, disjoint(p.Spared, f)}
}

// nodeTable returns the table of the node's namespace.
func nodeTable(list []placed) content {
	var c content
	for _, p := range list {
		for _, f := range families {
			c.sets = append(c.sets, p.reachedSet(f), p.sparedSet(f))
		}
	}
	for _, make := range []func([]placed) chain{
		arriving, leading, receiving, unfollowed, choosing, asked, passing, guarding, appearing,
	} {
		c.chains = append(c.chains, make(list))
	}
	return c
}

// arriving lets in by an endpoint's interface only what is for the node's end of the pair, and for
// that only what comes by the interface. It marks the packets, so that reverse-path filters learn
// that all senders are reached by the interface, and the kernel finds the table of the slot, which
// takes in packets to ::1.
func arriving(list []placed) chain {
	var rules [][]expr.Any
	for _, f := range families {
		near, far := wellknown.HostNear4, wellknown.HostFar4
		if f.ipv6 {
			near, far = wellknown.HostNear6, wellknown.HostFar6
		}
		others := rule(from(isNot, wellknown.HostPrefix), from(isNot, "lo"))
		rules = append(rules,
			rule(others, f.at(is, near), drop(Forward)), rule(others, f.at(is, far), drop(Forward)),
			rule(others, f.by(is, near), drop(Forward)), rule(others, f.by(is, far), drop(Forward)),
			rule(from(is, wellknown.HostPrefix), f.by(is, single(f.loopback)), drop(Input)))
	}
	rules = append(rules, rule(from(is, wellknown.HostPrefix), families[0].by(is, netip.MustParsePrefix("127.0.0.0/8")), drop(Input)))
	for _, p := range list {
		for _, f := range families {
			near, _, _ := p.ends(f)
			rules = append(rules, rule(from(is, p.device()), f.at(isNot, single(near)), drop(Input)))
		}
		rules = append(rules, rule(from(is, p.device()), p.mark()))
	}
	return base("arriving", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityRaw, rules)
}

// leading leads what is for a port to where the process listens. Packets to a port at which nobody
// listens are led to loopback, where the kernel refuses them. A process that listens at loopback
// has the port: who comes after it and takes the node's end of the pair does not get its peers.
func leading(list []placed) chain {
	var rules [][]expr.Any
	for _, p := range list {
		for _, port := range p.Ports {
			for i, f := range families {
				near, _, _ := p.ends(f)
				arrived := rule(from(is, p.device()), f.of(), toPort(port))
				// A translation to what it is already keeps the tables of others from translating,
				// such as Docker's.
				for _, form := range received() {
					if !p.looped[port][i] {
						rules = append(rules, rule(arrived, form, f.leadTo(near)))
					}
				}
				rules = append(rules, rule(arrived, f.leadTo(p.listens[port][i])))
			}
		}
	}
	return base("leading", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, priorityLead, rules)
}

// receiving lets the node take in what is for a port, and the answers to what processes sent.
func receiving(list []placed) chain {
	var rules [][]expr.Any
	for _, p := range list {
		for _, port := range p.Ports {
			rules = append(rules, rule(from(is, p.device()), toPort(port), accept()))
		}
		rules = append(rules,
			rule(from(is, p.device()), answering(), state(stateEstablished|stateRelated), accept()),
			rule(from(is, p.device()), state(stateRelated), accept()))
	}
	rules = append(rules, rule(from(is, wellknown.HostPrefix), drop(Input)))
	return base("receiving", nftables.ChainTypeFilter, nftables.ChainHookInput, priorityFilter, rules)
}

// unfollowed keeps the kernel from tracking what processes answer by UDP from any address: while a
// process was not listening, its datagrams were led to loopback, and a sender that goes on keeps
// the kernel's memory of that.
func unfollowed(list []placed) chain {
	var rules [][]expr.Any
	for _, p := range list {
		for _, answer := range p.answersUDP() {
			rules = append(rules, rule(answer, untracked()))
		}
	}
	return base("unfollowed", nftables.ChainTypeFilter, nftables.ChainHookOutput, priorityRaw, rules)
}

// answersUDP matches datagrams from the node's end of the pair and a port of the process.
func (p placed) answersUDP() (matches [][]expr.Any) {
	for _, port := range p.Ports {
		if port.Protocol != fabric.UDP {
			continue
		}
		for _, f := range families {
			near, far, _ := p.ends(f)
			matches = append(matches, rule(f.by(is, single(near)), f.at(is, single(far)), fromPort(port)))
		}
	}
	return matches
}

// choosing chooses what goes by an endpoint: connections that a process of its cgroup opens. The
// kernel looks for the route again when the mark has changed.
//
// Connections of TCP, and the kernel's reports of errors, go on whatever becomes of the cgroup: a
// connection ends with its socket. The kernel remembers other flows longer, and a process that is
// not of the cgroup may have got the port: guarding drops what it sends.
func choosing(list []placed) chain {
	rules := [][]expr.Any{
		rule(ours(), asking(), tcp(), recall(), accept()),
		rule(ours(), asking(), state(stateRelated), recall(), accept()),
	}
	for _, p := range list {
		if p.group != 0 {
			rules = append(rules, rule(p.ours(), asking(), sentBy(p.Group.level(), p.group), recall(), accept()))
		}
	}
	rules = append(rules, rule(state(^uint32(stateNew)&0xff), accept()))
	for _, p := range list {
		if p.group == 0 {
			continue
		}
		for _, f := range families {
			rules = append(rules, rule(f.in(p.reachedSet(f).name, false), f.in(p.sparedSet(f).name, true), unicast(),
				sentBy(p.Group.level(), p.group), p.remember(), p.mark(), accept()))
		}
	}
	return base("choosing", nftables.ChainTypeRoute, nftables.ChainHookOutput, priorityMangle, rules)
}

// asked leads questions that a process of the cgroup asks the node's DNS server by the endpoint.
func asked(list []placed) chain {
	var rules [][]expr.Any
	for _, p := range list {
		if p.group == 0 {
			continue
		}
		f := families[0]
		_, far, _ := p.ends(f)
		for _, q := range questions {
			rules = append(rules, rule(f.at(is, single(resolver)), toPort(q), sentBy(p.Group.level(), p.group), p.remember(), f.leadTo(far)))
		}
	}
	return base("asked", nftables.ChainTypeNAT, nftables.ChainHookOutput, priorityLead, rules)
}

// passing lets nothing go between an endpoint's interface and others by the node's routing.
func passing([]placed) chain {
	return base("passing", nftables.ChainTypeFilter, nftables.ChainHookForward, priorityFilter, [][]expr.Any{
		rule(from(is, wellknown.HostPrefix), drop(Forward)), rule(to(is, wellknown.HostPrefix), drop(Forward)),
	})
}

// guarding lets out by an endpoint's interface only what its process sends or answers, and that by
// no other interface.
func guarding(list []placed) chain {
	var rules [][]expr.Any
	for _, p := range list {
		out := to(is, p.device())
		rules = append(rules,
			rule(out, asking(), p.ours(), accept()),
			rule(out, answering(), state(stateEstablished), accept()),
			rule(out, state(stateRelated), accept()))
		for _, answer := range p.answersUDP() {
			rules = append(rules, rule(out, state(stateUntracked), answer, accept()))
		}
		for _, f := range families { // neighbours are permanent, and nothing is discovered
			near, _, _ := p.ends(f)
			rules = append(rules, rule(to(isNot, p.device()), to(isNot, "lo"), f.by(is, single(near)), drop(Elsewhere)))
		}
	}
	rules = append(rules,
		rule(to(is, wellknown.HostPrefix), drop(Output)),
		rule(to(isNot, "lo"), ours(), asking(), drop(Elsewhere)))
	return base("guarding", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, priorityFilter, rules)
}

// appearing gives what goes by an endpoint the address of the node's end of the pair.
func appearing(list []placed) chain {
	var rules [][]expr.Any
	for _, p := range list {
		for _, f := range families {
			near, _, _ := p.ends(f)
			rules = append(rules, rule(to(is, p.device()), f.of(), p.ours(), f.appearAs(near)))
		}
	}
	return base("appearing", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, priorityAppear, rules)
}

// endpointTable returns the table of an endpoint's namespace.
func endpointTable(a Attachment) content {
	inner, outer := wellknown.HostPeer, a.Interface
	var lead, through, appear [][]expr.Any
	for _, f := range families {
		near, far, own := a.ends(f)
		for _, port := range a.Ports {
			lead = append(lead, rule(from(is, outer), f.at(is, single(own)), toPort(port), f.leadTo(near)))
		}
		segments := segmentsUpTo(uint16(a.MTU) - f.headers)
		through = append(through, rule(f.of(), segments))
		appear = append(appear,
			rule(to(is, inner), f.of(), f.appearAs(far)),
			rule(to(is, outer), f.by(is, single(near)), f.appearAs(own)))
	}
	f := families[0]
	_, far, _ := a.ends(f)
	for _, q := range questions {
		lead = append(lead, rule(from(is, inner), f.at(is, single(far)), toPort(q), f.leadTo(resolver)))
	}
	inward, outward := rule(from(is, outer), to(is, inner)), rule(from(is, inner), to(is, outer))
	for _, port := range a.Ports {
		through = append(through,
			rule(inward, asking(), led(), toPort(port), accept()),
			rule(outward, answering(), led(), fromPort(port), accept()))
	}
	for _, f := range families {
		near, _, _ := a.ends(f)
		through = append(through, rule(outward, asking(), f.by(is, single(near)), accept()))
	}
	through = append(through,
		rule(inward, state(stateRelated), accept()),
		rule(outward, state(stateRelated), accept()),
		// Answers to what the process sent: of what it received, only its ports are above.
		rule(inward, answering(), state(stateEstablished), accept()),
		rule(drop(Inside)))
	return content{chains: []chain{
		base("leading", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, priorityLead, lead),
		base("passing", nftables.ChainTypeFilter, nftables.ChainHookForward, priorityFilter, through),
		base("receiving", nftables.ChainTypeFilter, nftables.ChainHookInput, priorityFilter, [][]expr.Any{rule(from(is, inner), drop(Inside))}),
		base("sending", nftables.ChainTypeFilter, nftables.ChainHookOutput, priorityFilter, [][]expr.Any{
			rule(to(is, inner), state(stateRelated), accept()), rule(to(is, inner), drop(Inside)),
		}),
		base("appearing", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, priorityAppear, appear),
	}}
}
