// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Guardrail is a rule of the organisation that applies to all domains. It never reaches a data
// path: a graph that breaches it cannot be applied.
type Guardrail struct {
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	Deny        []Denial `json:"deny"`
	Pos         Position `json:"pos,omitzero"`
}

// Denial says between which services and externals no contract may exist. A side matches whatever
// has all of its labels; a side without labels matches everything. Without rules, the denial covers
// all protocols and ports.
type Denial struct {
	From  Labels   `json:"from,omitempty"`
	To    Labels   `json:"to,omitempty"`
	Rules []Rule   `json:"rules,omitempty"`
	Pos   Position `json:"pos,omitzero"`
}

// Breach is a contract that opens what a guardrail denies.
type Breach struct {
	Guardrail string   `json:"guardrail"`
	Deny      Position `json:"deny,omitzero"` // of the denial
	Contract  Ref      `json:"contract"`
	Pos       Position `json:"pos,omitzero"` // of the contract
	From      Ref      `json:"from"`
	To        Ref      `json:"to"`
	Rule      Rule     `json:"rule"` // the first part of the contract that is denied
}

// Problem describes the breach.
func (b Breach) Problem() Problem {
	return Problem{
		Pos:     b.Pos,
		Summary: fmt.Sprintf("contract %s lets %s reach %s on %s, which guardrail %q denies at %s", b.Contract, b.From, b.To, b.Rule, b.Guardrail, b.Deny),
		Remedy:  "narrow the contract, or ask the owners of the guardrail",
	}
}

// breaches returns how contracts of the domains breach guardrails: for each contract and denial,
// the first breach. A contract that waits for consent counts, because it can come into force
// without another check. Disabled and expired contracts do not count.
func (x *index) breaches(domains []*Domain, now time.Time) []Breach {
	if len(x.graph.Guardrails) == 0 {
		return nil
	}
	var breaches []Breach
	for _, d := range domains {
		for i := range d.Contracts {
			c := &d.Contracts[i]
			if !c.InForce(now) {
				continue
			}
			for _, r := range x.graph.Guardrails {
				for _, deny := range r.Deny {
					if b, broken := x.breach(c, deny); broken {
						b.Guardrail, b.Contract, b.Pos = r.Name, Ref{d.Name, c.Name}, c.Pos
						breaches = append(breaches, b)
					}
				}
			}
		}
	}
	return breaches
}

func (x *index) breach(c *Contract, deny Denial) (Breach, bool) {
	opened, denied := overlap(c.Rules, deny.Rules)
	if !denied {
		return Breach{}, false
	}
	matching := func(refs []Ref, want Labels) int {
		return slices.IndexFunc(refs, func(r Ref) bool { return x.hasLabels(r, want) })
	}
	from, to := matching(c.Originators, deny.From), matching(c.Responders, deny.To)
	if from < 0 || to < 0 {
		return Breach{}, false
	}
	return Breach{Deny: deny.Pos, From: c.Originators[from], To: c.Responders[to], Rule: opened}, true
}

// overlap returns the first part of rules that denied covers. Empty denied covers everything.
func overlap(rules, denied []Rule) (Rule, bool) {
	for _, r := range rules {
		if len(denied) == 0 {
			return r, true
		}
		for _, d := range denied {
			if d.Protocol != r.Protocol {
				continue
			}
			for _, p := range r.Ports {
				for _, q := range d.Ports {
					if ports, ok := p.Overlap(q); ok {
						return Rule{Protocol: r.Protocol, Ports: []PortRange{ports}}, true
					}
				}
			}
		}
	}
	return Rule{}, false
}

// Waiting is a contract that is not in force because another domain has not consented to it.
type Waiting struct {
	Contract Ref   `json:"contract"`
	For      []Ref `json:"for"` // services of other domains, unknown ones included
}

// Waiting returns the contracts that wait for consent, ordered by name.
func (g *Graph) Waiting() []Waiting {
	var list []Waiting
	x := newIndex(g)
	for _, d := range g.sortedDomains() {
		for i := range d.Contracts {
			c := &d.Contracts[i]
			if missing := x.missingConsent(d.Name, c); len(missing) > 0 {
				list = append(list, Waiting{Contract: Ref{d.Name, c.Name}, For: missing})
			}
		}
	}
	return list
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// guardedLabels returns the keys of labels that guardrails name, each with the name of a guardrail.
func (g *Graph) guardedLabels() map[string]string {
	named := map[string]string{}
	for _, r := range g.Guardrails {
		for _, deny := range r.Deny {
			for _, side := range []Labels{deny.From, deny.To} {
				for k := range side {
					if named[k] == "" {
						named[k] = r.Name
					}
				}
			}
		}
	}
	return named
}

// Relabelled returns the labels that a guardrail names and that d sets to other values than the
// domain of the same name in g, one phrase each, such as "env of service web". In a graph with
// bindings there are none, because these set such labels.
func (g *Graph) Relabelled(d *Domain) []string {
	if len(g.Bindings) > 0 {
		return nil
	}
	var list []string
	named := g.guardedLabels()
	compare := func(what string, was, is Labels) {
		for _, k := range sortedKeys(named) {
			if was[k] != is[k] {
				list = append(list, fmt.Sprintf("%s of %s", k, what))
			}
		}
	}
	old := g.Domains[d.Name]
	if old == nil {
		old = &Domain{}
	}
	compare("domain "+d.Name, old.Labels, d.Labels)
	labels := map[string]Labels{}
	for _, s := range old.Services {
		labels[s.Name] = s.Labels
	}
	for _, e := range old.Externals {
		labels[e.Name] = e.Labels
	}
	for _, s := range d.Services {
		compare("service "+s.Name, labels[s.Name], s.Labels)
	}
	for _, e := range d.Externals {
		compare("external "+e.Name, labels[e.Name], e.Labels)
	}
	return list
}
