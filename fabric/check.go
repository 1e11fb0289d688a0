// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"
)

// Problem is one reason why a graph cannot be applied, and what to do about it.
type Problem struct {
	Pos     Position `json:"pos,omitzero"`
	Summary string   `json:"summary"`
	Remedy  string   `json:"remedy,omitempty"`
}

func (p Problem) String() string {
	s := p.Summary
	if p.Pos.File != "" {
		s = p.Pos.String() + ": " + s
	}
	if p.Remedy != "" {
		s += "; " + p.Remedy
	}
	return s
}

// reporter records a problem.
type reporter func(pos Position, remedy, format string, args ...any)

// AuditContract names the implicit contract of a domain in audit mode, which covers every flow
// inside the domain that no declared contract allows. No graph may declare a contract of this name.
const AuditContract = "sif-audit"

// The most that one domain may declare, so that it cannot fill the maps and documents that all
// domains share.
const (
	maxServices  = 10_000 // of a domain
	maxExternals = 1_000  // of a domain
	maxContracts = 50_000 // of a domain
	maxRanges    = 256    // of ports and message types of a contract
)

// Check returns every problem that prevents g from being applied, ordered by domain: unknown and
// duplicate names, contracts that would allow nothing, contracts that breach a guardrail. A
// contract that waits for the consent of another domain is not a problem; see Waiting. What a
// domain declares beyond its binding is not one either; see CheckGrants.
func (g *Graph) Check(now time.Time) []Problem { return g.CheckChange(&Graph{}, now) }

// CheckChange is Check for a graph that was derived from base, which has passed Check at now or
// earlier. Its cost follows the size of the change. Domains that are the same object in both graphs
// are taken to be equal.
func (g *Graph) CheckChange(base *Graph, now time.Time) []Problem {
	// A contract of an unchanged domain can become a problem only because of a changed domain that
	// it names, or because of a guardrail.
	changed := g.changedSince(base)
	var concerned []*Domain
	for _, d := range g.sortedDomains() {
		there := d.among(changed)
		if changed[d.Name] || slices.ContainsFunc(d.Contracts, func(c Contract) bool { return c.names(there) }) {
			concerned = append(concerned, d)
		}
	}
	var problems []Problem
	report := func(pos Position, remedy, format string, args ...any) {
		problems = append(problems, Problem{Pos: pos, Summary: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	x := newIndex(g)
	for _, d := range concerned {
		x.checkDomain(d, report)
	}
	for i, r := range g.Guardrails {
		if err := CheckName(r.Name); err != nil {
			report(r.Pos, "", "guardrail: %v", err)
		}
		for _, other := range g.Guardrails[:i] {
			if other.Name == r.Name {
				report(r.Pos, "rename one of the two", "guardrail %q: the name is already taken at %s", r.Name, other.Pos)
			}
		}
		if len(r.Deny) == 0 {
			report(r.Pos, "add a deny block", "guardrail %q denies nothing", r.Name)
		}
		for _, d := range r.Deny {
			d.check(r.Name, report)
		}
	}
	g.checkBindings(report)
	g.checkLinks(report)
	if !reflect.DeepEqual(g.Guardrails, base.Guardrails) || !reflect.DeepEqual(g.Bindings, base.Bindings) {
		concerned = g.sortedDomains()
	}
	named := g.guardedLabels()
	for _, d := range concerned {
		x.checkLabelsOf(d, named, report)
	}
	for _, b := range x.breaches(concerned, now) {
		problems = append(problems, b.Problem())
	}
	return problems
}

// changedSince returns the names of the domains that are not the same object in base, removed ones
// included.
func (g *Graph) changedSince(base *Graph) map[string]bool {
	changed := map[string]bool{}
	for name, d := range g.Domains {
		if base.Domains[name] != d {
			changed[name] = true
		}
	}
	for name := range base.Domains {
		if g.Domains[name] == nil {
			changed[name] = true
		}
	}
	return changed
}

func (x *index) checkDomain(d *Domain, report reporter) {
	if err := CheckName(d.Name); err != nil {
		report(d.Pos, "", "domain: %v", err)
	}
	if d.Name == ReservedDomain {
		report(d.Pos, "choose another name", "domain %q is reserved for node identities", d.Name)
	}
	prefixes, names := 0, 0
	for _, e := range d.Externals {
		prefixes, names = prefixes+len(e.within()), names+len(e.Names)
	}
	for _, limit := range []struct {
		what      string
		has, most int
	}{
		{"prefixes of externals", prefixes, maxOutside},
		{"names of externals", names, maxOutsideNames},
		{"services", len(d.Services), maxServices},
		{"externals", len(d.Externals), maxExternals},
		{"contracts", len(d.Contracts), maxContracts},
	} {
		if limit.has > limit.most {
			report(d.Pos, "divide it into several domains", "domain %q has %d %s; the most is %d", d.Name, limit.has, limit.what, limit.most)
		}
	}
	checkMode(d.Mode, d.Pos, report)
	checkOwnLabels(d.Labels, "domain", d.Name, d.Pos, report)
	seen := map[string]Position{}
	declare := func(kind, name string, pos Position) {
		if err := CheckName(name); err != nil {
			report(pos, "", "%s: %v", kind, err)
		}
		if first, dup := seen[name]; dup {
			report(pos, "rename one of the two", "%s %q: the name is already taken at %s", kind, name, first)
			return
		}
		seen[name] = pos
	}
	for _, s := range d.Services {
		declare("service", s.Name, s.Pos)
		checkOwnLabels(s.Labels, "service", s.Name, s.Pos, report)
		for _, sel := range s.Selectors {
			sel.check(s.Name, report)
		}
	}
	for _, e := range d.Externals {
		declare("external", e.Name, e.Pos)
		checkOwnLabels(e.Labels, "external", e.Name, e.Pos, report)
		e.check(report)
	}
	seen = map[string]Position{}
	for i, c := range d.Contracts {
		declare("contract", c.Name, c.Pos)
		if c.Name == AuditContract {
			report(c.Pos, "choose another name", "contract name %q is reserved for domains in audit mode", c.Name)
		}
		x.checkContract(&d.Contracts[i], d.Name, report)
	}
	for _, a := range d.Accepts {
		if err := a.Contract.Check(); err != nil {
			report(a.Pos, "name the contract as domain/contract", "domain %q accepts a contract without a valid name: %v", d.Name, err)
			continue
		}
		if a.Contract.Domain == d.Name {
			report(a.Pos, "remove it", "domain %q accepts its own contract %q; only contracts of other domains need consent", d.Name, a.Contract.Name)
		}
		for _, name := range a.Services {
			if x.node(Ref{d.Name, name}).service == nil {
				report(a.Pos, x.graph.suggest(Ref{d.Name, name}), "the consent to contract %s names an unknown service %q", a.Contract, name)
			}
		}
	}
}

func checkMode(m Mode, pos Position, report reporter) {
	if m != ModeEnforce && m != ModeAudit {
		report(pos, "omit it to enforce", "mode must be %q if it is set, not %q", ModeAudit, m)
	}
}

// checkLabels checks the labels of a block, or those that a guardrail matches.
func checkLabels(labels Labels, kind, name string, pos Position, report reporter) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if key == "" || labels[key] == "" {
			report(pos, "set both or remove the label", "label %q of %s %q has an empty key or value", key, kind, name)
		}
	}
}

// checkOwnLabels checks the labels that a block declares for itself. LabelsOf sets "domain" and
// "name", so a declared value would be ignored or misleading.
func checkOwnLabels(labels Labels, kind, name string, pos Position, report reporter) {
	checkLabels(labels, kind, name, pos, report)
	for _, taken := range []string{"domain", "name"} {
		if _, set := labels[taken]; set {
			report(pos, "choose another key", "label %q of %s %q cannot be set: the fabric sets it", taken, kind, name)
		}
	}
}

// checkRules checks the rules of one contract or one denial.
func checkRules(rules []Rule, kind, name string, pos Position, report reporter) {
	seen := map[string]bool{}
	for _, r := range rules {
		if r.Name != "" {
			if err := CheckName(r.Name); err != nil {
				report(pos, "choose another name for the rule", "a rule of %s %q: %v", kind, name, err)
			}
			if seen[r.Name] {
				report(pos, "rename one of the two", "%s %q has two rules named %q", kind, name, r.Name)
			}
			seen[r.Name] = true
		}
		if _, err := ParseProtocol(r.Protocol.String()); err != nil {
			report(pos, "set the protocol of each rule", "a rule of %s %q has no protocol", kind, name)
			continue
		}
		if len(r.Ports) == 0 {
			report(pos, "list at least one port", "a rule of %s %q has no ports", kind, name)
		}
		bounds := AllPorts
		if !r.Protocol.HasPorts() {
			bounds = AllTypes
		}
		for _, p := range r.Ports {
			if p.From < bounds.From || p.To > bounds.To || p.From > p.To {
				report(pos, "correct the numbers", "a rule of %s %q names %s %s; only %s is allowed", kind, name, r.Protocol, p, bounds)
			}
		}
	}
}

func (d Denial) check(guardrail string, report reporter) {
	if len(d.From)+len(d.To)+len(d.Rules) == 0 {
		report(d.Pos, "set from or to, or add a rule", "a deny block of guardrail %q would deny every contract", guardrail)
	}
	checkLabels(d.From, "guardrail", guardrail, d.Pos, report)
	checkLabels(d.To, "guardrail", guardrail, d.Pos, report)
	checkRules(d.Rules, "guardrail", guardrail, d.Pos, report)
}

func (s Selector) check(service string, report reporter) {
	switch s.Kind {
	case SelectNomad, SelectConsul:
		// An empty namespace would be none: a selector never matches all namespaces.
		if s.Namespace == "" {
			report(s.Pos, fmt.Sprintf("set the namespace, such as %q", DefaultNamespace), "a %s selector of service %q has no namespace", s.Kind, service)
		}
	case SelectNode:
	default:
		report(s.Pos, fmt.Sprintf("use %q, %q or %q", SelectNomad, SelectConsul, SelectNode), "a selector of service %q has the unknown kind %q", service, s.Kind)
	}
}

func (x *index) checkContract(c *Contract, domain string, report reporter) {
	checkMode(c.Mode, c.Pos, report)
	checkOwnLabels(c.Labels, "contract", c.Name, c.Pos, report)
	if year := c.Expires.UTC().Year(); year > 9999 {
		report(c.Pos, "choose an earlier time", "contract %q expires in the year %d, which no timestamp can express", c.Name, year)
	}
	if len(c.Rules) == 0 {
		report(c.Pos, "add a rule block", "contract %q has no rules, so it would allow nothing", c.Name)
	}
	checkRules(c.Rules, "contract", c.Name, c.Pos, report)
	c.Path.check(c.Name, c.Pos, report)
	ranges := 0
	for _, r := range c.Rules {
		ranges += len(r.Ports)
	}
	if ranges > maxRanges {
		report(c.Pos, "use wider ranges or several contracts", "contract %q lists %d ports and ranges; the most is %d", c.Name, ranges, maxRanges)
	}
	own, externals := false, 0
	side := func(role string, refs []Ref) {
		if len(refs) == 0 {
			report(c.Pos, "name at least one service", "contract %q has no %s", c.Name, role)
		}
		external := false
		for _, r := range refs {
			if err := r.Check(); err != nil {
				report(c.Pos, "name a service or external as domain/name", "contract %q has an invalid name among its %s: %v", c.Name, role, err)
				continue
			}
			own = own || r.Domain == domain
			n := x.node(r)
			external = external || n.external != nil
			switch {
			case r.Domain != domain && n.external != nil:
				report(c.Pos, "declare the external in this domain", "contract %q names external %s, which belongs to another domain", c.Name, r)
			case n.external != nil:
				n.external.checkRole(c, role, report)
			case r.Domain == domain && n == (node{}):
				report(c.Pos, x.graph.suggest(r), "contract %q names an unknown service %q among its %s", c.Name, r.Name, role)
			}
		}
		if external {
			externals++
		}
	}
	side(originators, c.Originators)
	side(responders, c.Responders)
	if externals == 2 {
		report(c.Pos, "use a service on one side: the fabric controls neither end of such a flow", "contract %q has externals on both sides", c.Name)
	}
	if !own && len(c.Originators) > 0 && len(c.Responders) > 0 {
		report(c.Pos, "declare it in the domain of one of its services", "contract %q names no service of its own domain %q", c.Name, domain)
	}
}

// suggest returns a remedy for an unknown name: the nearest declared one, if any is near.
func (g *Graph) suggest(r Ref) string {
	var names []string
	if d := g.Domains[r.Domain]; d != nil {
		for _, s := range d.Services {
			names = append(names, s.Name)
		}
		for _, e := range d.Externals {
			names = append(names, e.Name)
		}
	}
	if near := Nearest(r.Name, names); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return fmt.Sprintf("declare service %q or correct the name", r.Name)
}
