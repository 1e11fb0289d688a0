// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"cmp"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"
)

// Standing says what happens to a flow between two services: it is dropped, it passes because of
// audit mode only, or it is allowed.
type Standing string

// The standings, from least to most permissive.
const (
	StandsDropped Standing = ""
	StandsAudit   Standing = "audit"
	StandsAllowed Standing = "allowed"
)

func (s Standing) rank() int {
	switch s {
	case StandsAllowed:
		return 2
	case StandsAudit:
		return 1
	}
	return 0
}

// Cause is a contract that decides the standing of flows, and where it is declared.
type Cause struct {
	Contract Ref      `json:"contract"`
	Pos      Position `json:"pos,omitzero"`
}

// ReachChange is a change for flows that endpoints of From open to endpoints of To, if both
// requested every role that the graph gives them.
type ReachChange struct {
	From Ref `json:"from"`
	To   Ref `json:"to"`
	// Outside is the end that is an external, and OutsideIs describes it: its names and prefixes.
	Outside   Ref      `json:"outside,omitzero"`
	OutsideIs string   `json:"outsideIs,omitempty"`
	Was       Standing `json:"was"`
	Is        Standing `json:"is"`
	// Rules are canonical: one rule for each protocol, with its ports in order, disjoint and not
	// adjacent.
	Rules []Rule `json:"rules"`
	// Because are the contracts that open what is gained, or opened what is lost.
	Because []Cause `json:"because"`
}

// Gains reports whether the flows are more permitted than before.
func (c ReachChange) Gains() bool { return c.Is.rank() > c.Was.rank() }

// Alteration says how an element of the graph changed.
type Alteration string

// The alterations.
const (
	Added   Alteration = "added"
	Removed Alteration = "removed"
	Altered Alteration = "altered"
)

// ContractChange is a contract that was added, removed or altered. What names the parts that
// differ.
type ContractChange struct {
	Contract Ref        `json:"contract"`
	Pos      Position   `json:"pos,omitzero"`
	Change   Alteration `json:"change"`
	What     []string   `json:"what,omitempty"`
}

// NodeChange is a service or external that was added, removed or altered.
type NodeChange struct {
	Name     Ref        `json:"name"`
	External bool       `json:"external,omitempty"`
	Pos      Position   `json:"pos,omitzero"`
	Change   Alteration `json:"change"`
	What     []string   `json:"what,omitempty"` // "selectors", "prefixes", "names", "labels", ...
	// Gained and Lost are the prefixes and names by which an altered external differs.
	Gained []string `json:"gained,omitempty"`
	Lost   []string `json:"lost,omitempty"`
}

// Delta is the difference between two graphs in terms of its effect. Descriptions and positions do
// not count.
type Delta struct {
	Reach     []ReachChange    `json:"reach,omitempty"`
	Contracts []ContractChange `json:"contracts,omitempty"`
	Nodes     []NodeChange     `json:"nodes,omitempty"`
	Modes     []ModeChange     `json:"modes,omitempty"`
	Silences  []SilenceChange  `json:"silences,omitempty"`
	// Waiting are contracts that now wait for consent, Accepted those that no longer do.
	Waiting    []Waiting         `json:"waiting,omitempty"`
	Accepted   []Ref             `json:"accepted,omitempty"`
	Guardrails []GuardrailChange `json:"guardrails,omitempty"`
	Bindings   []BindingChange   `json:"bindings,omitempty"`
	Links      []LinkChange      `json:"links,omitempty"`
	// Excess is what loses its effect because bindings change.
	Excess []Excess `json:"excess,omitempty"`
}

// ModeChange is a domain that enters or leaves audit mode.
type ModeChange struct {
	Domain string `json:"domain"`
	Was    Mode   `json:"was"`
	Is     Mode   `json:"is"`
}

// SilenceChange is a domain whose workloads are no longer told that their flows are refused, or are
// told again.
type SilenceChange struct {
	Domain string `json:"domain"`
	Silent bool   `json:"silent"`
}

// GuardrailChange is a guardrail that was added, removed or altered.
type GuardrailChange struct {
	Name   string     `json:"name"`
	Pos    Position   `json:"pos,omitzero"`
	Change Alteration `json:"change"`
}

// BindingChange is a binding that was added, removed or altered. A graph without bindings counts as
// one with a binding of EveryDomain that grants everything, without a position.
type BindingChange struct {
	Domain string     `json:"domain"`
	Pos    Position   `json:"pos,omitzero"`
	Change Alteration `json:"change"`
	Gained []string   `json:"gained,omitempty"` // phrases such as "may publish port 80"
	Lost   []string   `json:"lost,omitempty"`
}

// Empty reports whether nothing differs.
func (d Delta) Empty() bool { return reflect.ValueOf(d).IsZero() }

// Compare returns the difference between two graphs at now. It skips domains that are the same
// object in both, so its cost follows the size of the change, apart from one pass over all
// contracts.
func Compare(before, after *Graph, now time.Time) Delta {
	c := comparison{before: before, after: after, was: newIndex(before), is: newIndex(after), now: now, pairs: map[pairOfRefs]bool{}}
	return c.run()
}

type pairOfRefs struct{ from, to Ref }

type comparison struct {
	before, after *Graph
	was, is       *index // of before and after
	now           time.Time
	delta         Delta
	pairs         map[pairOfRefs]bool // whose standing may differ
}

func (c *comparison) run() Delta {
	changed := map[string]bool{}         // domains with a difference that has an effect
	consent := map[string]bool{}         // domains whose consents may differ
	altered := map[string]map[Ref]bool{} // externals by domain
	none := &Domain{}
	for _, name := range sortedKeys(c.after.changedSince(c.before)) {
		was, is := cmp.Or(c.before.Domains[name], none), cmp.Or(c.after.Domains[name], none)
		nodes, externals := c.compareNodes(name, was, is)
		if was.Mode != is.Mode {
			c.delta.Modes = append(c.delta.Modes, ModeChange{Domain: name, Was: was.Mode, Is: is.Mode})
		}
		if was.Silent != is.Silent {
			c.delta.Silences = append(c.delta.Silences, SilenceChange{Domain: name, Silent: is.Silent})
		}
		if (was.Mode == ModeAudit || is.Mode == ModeAudit) && (nodes || was.Mode != is.Mode) {
			c.allPairs(name, was, is)
		}
		if nodes || !slices.EqualFunc(was.Accepts, is.Accepts, sameAccept) {
			consent[name] = true
		}
		changed[name] = true
		altered[name] = externals
	}
	touched := map[Ref]bool{}
	for name := range changed {
		c.compareContracts(name, touched)
		// What a binding admits of an external may have become nothing, or something.
		c.contractsOfExternals(name, altered[name], touched)
	}
	if len(consent) > 0 {
		c.contractsNaming(consent, touched)
	}
	c.compareBindings(touched)
	for r := range touched {
		c.compareContract(r)
	}
	c.compareGuardrails()
	c.delta.Links = compareLinks(c.before.Links, c.after.Links)
	c.compareReach()
	slices.SortFunc(c.delta.Contracts, func(a, b ContractChange) int { return CompareRefs(a.Contract, b.Contract) })
	slices.SortFunc(c.delta.Waiting, func(a, b Waiting) int { return CompareRefs(a.Contract, b.Contract) })
	slices.SortFunc(c.delta.Accepted, CompareRefs)
	return c.delta
}

func sameAccept(a, b Accept) bool {
	return a.Contract == b.Contract && slices.Equal(a.Services, b.Services)
}

// compareNodes records which services and externals of a domain differ. It reports whether any was
// added, removed or changed between service and external, and which externals were altered.
func (c *comparison) compareNodes(domain string, was, is *Domain) (set bool, altered map[Ref]bool) {
	type node struct {
		external  *External
		pos       Position
		labels    Labels
		selectors []Selector
	}
	index := func(d *Domain) map[string]node {
		m := make(map[string]node, len(d.Services)+len(d.Externals))
		for _, s := range d.Services {
			m[s.Name] = node{pos: s.Pos, labels: s.Labels, selectors: s.Selectors}
		}
		for i := range d.Externals {
			e := &d.Externals[i]
			m[e.Name] = node{external: e, pos: e.Pos, labels: e.Labels}
		}
		return m
	}
	note := func(name string, n node, change NodeChange) {
		change.Name, change.External, change.Pos = Ref{domain, name}, n.external != nil, n.pos
		c.delta.Nodes = append(c.delta.Nodes, change)
	}
	another := func(o, n node) bool { return (o.external == nil) != (n.external == nil) }
	olds, news := index(was), index(is)
	for _, name := range slices.Sorted(maps.Keys(olds)) {
		if n, stays := news[name]; !stays || another(olds[name], n) {
			set = true
			note(name, olds[name], NodeChange{Change: Removed})
		}
	}
	altered = map[Ref]bool{}
	for _, name := range slices.Sorted(maps.Keys(news)) {
		o, n := olds[name], news[name]
		if _, was := olds[name]; !was || another(o, n) {
			set = true
			note(name, n, NodeChange{Change: Added})
			continue
		}
		change := NodeChange{Change: Altered}
		if !slices.EqualFunc(o.selectors, n.selectors, sameSelector) {
			change.What = append(change.What, "selectors")
		}
		if n.external != nil {
			o.external.compare(n.external, &change)
			altered[Ref{domain, name}] = len(change.What) > 0
		}
		if !maps.Equal(o.labels, n.labels) {
			change.What = append(change.What, "labels")
		}
		if len(change.What) > 0 {
			note(name, n, change)
		}
	}
	return set, altered
}

// compare records in change what differs between two versions of an external, labels excluded.
func (e *External) compare(is *External, change *NodeChange) {
	differ := func(what string, was, is []string) {
		if !slices.Equal(was, is) {
			change.What = append(change.What, what)
			change.Gained = append(change.Gained, missing(is, was)...)
			change.Lost = append(change.Lost, missing(was, is)...)
		}
	}
	texts := func(prefixes []netip.Prefix) (list []string) {
		for _, p := range prefixes {
			list = append(list, prefixText(p))
		}
		return list
	}
	differ("prefixes", texts(e.Prefixes), texts(is.Prefixes))
	differ("names", e.Names, is.Names)
	if !reflect.DeepEqual(e.Consul, is.Consul) {
		change.What = append(change.What, "consul")
	}
	if e.Node != is.Node {
		change.What = append(change.What, "node")
	}
	if e.Exit != is.Exit {
		change.What = append(change.What, "exit")
	}
}

// missing returns what is in list and not in other.
func missing(list, other []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(other, s) })
}

func sameSelector(a, b Selector) bool {
	a.Pos, b.Pos = Position{}, Position{}
	return reflect.DeepEqual(a, b)
}

// allPairs marks every pair of services of a domain.
func (c *comparison) allPairs(domain string, was, is *Domain) {
	var all []Ref
	for _, s := range slices.Concat(was.Services, is.Services) {
		all = append(all, Ref{domain, s.Name})
	}
	for _, from := range all {
		for _, to := range all {
			c.pairs[pairOfRefs{from, to}] = true
		}
	}
}

// compareContracts marks the contracts of a domain that were added, removed or altered.
func (c *comparison) compareContracts(domain string, touched map[Ref]bool) {
	index := func(g *Graph) map[string]*Contract {
		m := map[string]*Contract{}
		if d := g.Domains[domain]; d != nil {
			for i := range d.Contracts {
				m[d.Contracts[i].Name] = &d.Contracts[i]
			}
		}
		return m
	}
	olds, news := index(c.before), index(c.after)
	for name, o := range olds {
		n := news[name]
		if n == nil || len(differences(o, n)) > 0 {
			touched[Ref{domain, name}] = true
		}
	}
	for name := range news {
		if olds[name] == nil {
			touched[Ref{domain, name}] = true
		}
	}
}

// contractsOfExternals marks the contracts of a domain that name one of its externals.
func (c *comparison) contractsOfExternals(domain string, externals, touched map[Ref]bool) {
	d := c.after.Domains[domain]
	if d == nil || len(externals) == 0 {
		return
	}
	for i := range d.Contracts {
		if d.Contracts[i].names(func(r Ref) bool { return externals[r] }) {
			touched[Ref{domain, d.Contracts[i].Name}] = true
		}
	}
}

// contractsNaming marks the contracts that name services of the domains, other than their own.
func (c *comparison) contractsNaming(domains map[string]bool, touched map[Ref]bool) {
	for _, g := range []*Graph{c.before, c.after} {
		for _, d := range g.Domains {
			for i := range d.Contracts {
				foreign := func(r Ref) bool { return r.Domain != d.Name && domains[r.Domain] }
				if k := &d.Contracts[i]; k.names(foreign) {
					touched[Ref{d.Name, k.Name}] = true
				}
			}
		}
	}
}

// differences names the parts of a contract that differ in effect between two versions.
func differences(a, b *Contract) []string {
	var what []string
	differ := func(name string, same bool) {
		if !same {
			what = append(what, name)
		}
	}
	differ("enabled", a.Disabled == b.Disabled)
	differ("mode", a.Mode == b.Mode)
	differ("expires", a.Expires.Equal(b.Expires))
	differ("originators", slices.Equal(a.Originators, b.Originators))
	differ("responders", slices.Equal(a.Responders, b.Responders))
	differ("rules", slices.EqualFunc(a.Rules, b.Rules, func(a, b Rule) bool {
		return a.Protocol == b.Protocol && slices.Equal(a.Ports, b.Ports)
	}))
	differ("path", a.Path.same(b.Path))
	return what
}

// compareContract records how a contract differs, and which pairs that may affect.
func (c *comparison) compareContract(r Ref) {
	was, is := c.before.contract(r), c.after.contract(r)
	var missingBefore, missingAfter []Ref
	if was != nil {
		missingBefore = c.was.missingConsent(r.Domain, was)
	}
	if is != nil {
		missingAfter = c.is.missingConsent(r.Domain, is)
	}
	switch {
	case was == nil:
		c.delta.Contracts = append(c.delta.Contracts, ContractChange{Contract: r, Pos: is.Pos, Change: Added})
	case is == nil:
		c.delta.Contracts = append(c.delta.Contracts, ContractChange{Contract: r, Pos: was.Pos, Change: Removed})
	default:
		if what := differences(was, is); len(what) > 0 {
			c.delta.Contracts = append(c.delta.Contracts, ContractChange{Contract: r, Pos: is.Pos, Change: Altered, What: what})
		}
	}
	switch {
	case len(missingAfter) > 0 && !slices.Equal(missingAfter, missingBefore):
		c.delta.Waiting = append(c.delta.Waiting, Waiting{Contract: r, For: missingAfter})
	case len(missingBefore) > 0 && is != nil && len(missingAfter) == 0:
		c.delta.Accepted = append(c.delta.Accepted, r)
	}
	for _, k := range []*Contract{was, is} {
		if k == nil || !k.InForce(c.now) {
			continue
		}
		for _, from := range k.Originators {
			for _, to := range k.Responders {
				c.pairs[pairOfRefs{from, to}] = true
			}
		}
	}
}

// contract returns the contract of that name, or nil.
func (g *Graph) contract(r Ref) *Contract {
	if d := g.Domains[r.Domain]; d != nil {
		for i := range d.Contracts {
			if d.Contracts[i].Name == r.Name {
				return &d.Contracts[i]
			}
		}
	}
	return nil
}

func (c *comparison) compareGuardrails() {
	sameDenial := func(a, b Denial) bool {
		return maps.Equal(a.From, b.From) && maps.Equal(a.To, b.To) && slices.EqualFunc(a.Rules, b.Rules, func(a, b Rule) bool {
			return a.Protocol == b.Protocol && slices.Equal(a.Ports, b.Ports)
		})
	}
	find := func(g *Graph, name string) *Guardrail {
		for i := range g.Guardrails {
			if g.Guardrails[i].Name == name {
				return &g.Guardrails[i]
			}
		}
		return nil
	}
	for _, o := range c.before.Guardrails {
		n := find(c.after, o.Name)
		switch {
		case n == nil:
			c.delta.Guardrails = append(c.delta.Guardrails, GuardrailChange{Name: o.Name, Pos: o.Pos, Change: Removed})
		case !slices.EqualFunc(o.Deny, n.Deny, sameDenial):
			c.delta.Guardrails = append(c.delta.Guardrails, GuardrailChange{Name: o.Name, Pos: n.Pos, Change: Altered})
		}
	}
	for _, n := range c.after.Guardrails {
		if find(c.before, n.Name) == nil {
			c.delta.Guardrails = append(c.delta.Guardrails, GuardrailChange{Name: n.Name, Pos: n.Pos, Change: Added})
		}
	}
	slices.SortFunc(c.delta.Guardrails, func(a, b GuardrailChange) int { return cmp.Compare(a.Name, b.Name) })
}

// compareBindings records how bindings differ, and what loses its effect. It marks the contracts
// that name externals of domains in both graphs: these may gain or lose all their prefixes.
func (c *comparison) compareBindings(touched map[Ref]bool) {
	if reflect.DeepEqual(c.before.Bindings, c.after.Bindings) {
		return
	}
	for name, d := range c.after.Domains {
		all := map[Ref]bool{}
		for _, e := range d.Externals {
			all[Ref{name, e.Name}] = true
		}
		c.contractsOfExternals(name, all, touched)
	}
	all := func(g *Graph) map[string]*Binding {
		if len(g.Bindings) == 0 {
			return map[string]*Binding{EveryDomain: grantsEverything}
		}
		m := map[string]*Binding{}
		for i := range g.Bindings {
			m[g.Bindings[i].Domain] = &g.Bindings[i]
		}
		return m
	}
	was, is := all(c.before), all(c.after)
	for _, name := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(sortedKeys(was), sortedKeys(is))))) {
		o, n := was[name], is[name]
		switch {
		case o == nil:
			c.delta.Bindings = append(c.delta.Bindings, BindingChange{Domain: name, Pos: n.Pos, Change: Added, Gained: n.grants()})
		case n == nil:
			c.delta.Bindings = append(c.delta.Bindings, BindingChange{Domain: name, Pos: o.Pos, Change: Removed, Lost: o.grants()})
		default:
			gained, lost := missing(n.grants(), o.grants()), missing(o.grants(), n.grants())
			if len(gained)+len(lost) > 0 {
				c.delta.Bindings = append(c.delta.Bindings, BindingChange{Domain: name, Pos: n.Pos, Change: Altered, Gained: gained, Lost: lost})
			}
		}
	}
	for _, d := range c.after.sortedDomains() {
		var before []Excess
		if old := c.before.Domains[d.Name]; old != nil {
			before = c.was.excess(old)
		}
		for _, e := range c.is.excess(d) {
			if !slices.ContainsFunc(before, func(o Excess) bool { return o.Name == e.Name && o.Pos == e.Pos }) {
				c.delta.Excess = append(c.delta.Excess, e)
			}
		}
	}
}
