// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"cmp"
	"slices"
)

// opening is a range of ports that a contract opens between two services.
type opening struct {
	protocol Protocol
	ports    PortRange
	audit    bool
	cause    Cause
}

// compareReach records, for every marked pair, the flows whose standing differs.
func (c *comparison) compareReach() {
	if len(c.pairs) == 0 {
		return
	}
	before, after := c.openings(c.was), c.openings(c.is)
	for p := range c.pairs {
		changes := compareOpenings(p, before[p], after[p])
		for i := range changes {
			changes[i].Outside, changes[i].OutsideIs = c.outside(p)
		}
		c.delta.Reach = append(c.delta.Reach, changes...)
	}
	slices.SortFunc(c.delta.Reach, func(a, b ReachChange) int {
		return cmp.Or(CompareRefs(a.From, b.From), CompareRefs(a.To, b.To), cmp.Compare(b.Is.rank(), a.Is.rank()), cmp.Compare(b.Was.rank(), a.Was.rank()))
	})
}

// outside returns the end of a pair that is an external, and describes it.
func (c *comparison) outside(p pairOfRefs) (external Ref, is string) {
	for _, x := range []*index{c.is, c.was} {
		for _, r := range []Ref{p.from, p.to} {
			if e := x.node(r).external; e != nil {
				return r, e.Words()
			}
		}
	}
	return Ref{}, ""
}

// openings returns what the contracts of the indexed graph open between the marked pairs.
func (c *comparison) openings(x *index) map[pairOfRefs][]opening {
	g := x.graph
	froms, tos := map[Ref]bool{}, map[Ref]bool{}
	domains := map[string]bool{}
	audited := map[string]map[Ref]bool{} // services of domains in audit mode, for domains of marked pairs
	for p := range c.pairs {
		froms[p.from], tos[p.to] = true, true
		domains[p.from.Domain], domains[p.to.Domain] = true, true
		for _, r := range []Ref{p.from, p.to} {
			if d := g.Domains[r.Domain]; d != nil && d.Mode == ModeAudit && audited[r.Domain] == nil {
				audited[r.Domain] = map[Ref]bool{}
				for _, s := range d.Services {
					audited[r.Domain][Ref{d.Name, s.Name}] = true
				}
			}
		}
	}
	found := map[pairOfRefs][]opening{}
	for _, d := range g.Domains {
		there := d.among(domains)
		for i := range d.Contracts {
			k := &d.Contracts[i]
			if !slices.ContainsFunc(k.Originators, func(r Ref) bool { return there(r) && froms[r] }) ||
				!slices.ContainsFunc(k.Responders, func(r Ref) bool { return there(r) && tos[r] }) ||
				!k.InForce(c.now) || len(x.missingConsent(d.Name, k)) > 0 {
				continue
			}
			seen := map[pairOfRefs]bool{}
			for _, from := range k.Originators {
				for _, to := range k.Responders {
					p := pairOfRefs{from, to}
					if c.pairs[p] && !seen[p] && !x.nowhere(from) && !x.nowhere(to) {
						seen[p] = true
						found[p] = append(found[p], openingsOf(x.rulesTo(to, k.Rules), k.Mode == ModeAudit, Cause{Ref{d.Name, k.Name}, k.Pos})...)
					}
				}
			}
		}
	}
	for p := range c.pairs {
		if in := audited[p.from.Domain]; p.from.Domain == p.to.Domain && in[p.from] && in[p.to] {
			cause := Cause{Ref{p.from.Domain, AuditContract}, g.Domains[p.from.Domain].Pos}
			found[p] = append(found[p], openingsOf(everything, true, cause)...)
		}
	}
	return found
}

// rulesTo returns what of the rules of a contract can reach a responder: of the workload's node,
// the ports that a binding grants.
func (x *index) rulesTo(responder Ref, rules []Rule) []Rule {
	if e := x.node(responder).external; e != nil && e.Node {
		return narrowed(rules, x.external(responder, e).NodePorts)
	}
	return rules
}

func openingsOf(rules []Rule, audit bool, cause Cause) []opening {
	var list []opening
	for _, r := range rules {
		for _, ports := range r.Ports {
			list = append(list, opening{r.Protocol, ports, audit, cause})
		}
	}
	return list
}

// compareOpenings compares the openings of a pair, protocol by protocol and piece by piece.
func compareOpenings(p pairOfRefs, before, after []opening) []ReachChange {
	type kind struct{ was, is Standing }
	changes := map[kind]*ReachChange{}
	for _, protocol := range Protocols {
		var ranges []PortRange
		of := func(openings []opening) (list []opening) {
			for _, o := range openings {
				if o.protocol == protocol {
					list, ranges = append(list, o), append(ranges, o.ports)
				}
			}
			return list
		}
		old, now := of(before), of(after)
		for _, ports := range SplitPorts(ranges) {
			was, causesBefore := standing(old, ports.From)
			is, causesAfter := standing(now, ports.From)
			if was == is {
				continue
			}
			k := kind{was, is}
			if changes[k] == nil {
				changes[k] = &ReachChange{From: p.from, To: p.to, Was: was, Is: is}
			}
			change := changes[k]
			change.addPorts(protocol, ports)
			if change.Gains() {
				change.Because = append(change.Because, causesAfter...)
			} else {
				change.Because = append(change.Because, causesBefore...)
			}
		}
	}
	var list []ReachChange
	for _, change := range changes {
		slices.SortFunc(change.Because, func(a, b Cause) int { return CompareRefs(a.Contract, b.Contract) })
		change.Because = slices.Compact(change.Because)
		list = append(list, *change)
	}
	return list
}

// standing returns the standing of a port, and the contracts that decide it.
func standing(openings []opening, port uint16) (s Standing, causes []Cause) {
	for _, o := range openings {
		if !o.ports.Contains(port) {
			continue
		}
		mine := StandsAllowed
		if o.audit {
			mine = StandsAudit
		}
		if mine.rank() > s.rank() {
			s, causes = mine, nil
		}
		if mine == s {
			causes = append(causes, o.cause)
		}
	}
	return s, causes
}

// addPorts adds ports beyond those that are already in c.
func (c *ReachChange) addPorts(protocol Protocol, ports PortRange) {
	if n := len(c.Rules); n == 0 || c.Rules[n-1].Protocol != protocol {
		c.Rules = append(c.Rules, Rule{Protocol: protocol})
	}
	r := &c.Rules[len(c.Rules)-1]
	if n := len(r.Ports); n > 0 {
		if joined, ok := r.Ports[n-1].Join(ports); ok {
			r.Ports[n-1] = joined
			return
		}
	}
	r.Ports = append(r.Ports, ports)
}
