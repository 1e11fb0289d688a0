// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// EveryDomain names the binding of all domains that have none of their own.
const EveryDomain = "*"

// Binding says what a domain may select and use, and which labels guardrails see in it. Only the
// operators of the fabric change it; the owners of the domain cannot.
//
// What a binding does not list is not granted. The binding of EveryDomain differs: it limits only
// what it lists something of: workloads (Nomad, Consul and Nodes together), prefixes, names, ports,
// ports of the node. A graph without bindings grants everything. In a graph with one, a domain
// without a binding is granted nothing.
type Binding struct {
	Domain      string          `json:"domain"` // or EveryDomain
	Description string          `json:"description,omitempty"`
	Labels      Labels          `json:"labels,omitempty"`   // of the domain and all that is in it
	Services    []BoundService  `json:"services,omitempty"` // labels of single services and externals
	Nomad       []NomadScope    `json:"nomad,omitempty"`
	Consul      []ConsulScope   `json:"consul,omitempty"`
	Nodes       []NodeScope     `json:"nodes,omitempty"`
	Attach      []AttachScope   `json:"attach,omitempty"`
	Outside     []OutsideGrants `json:"outside,omitempty"`
	Pos         Position        `json:"pos,omitzero"`
}

// BoundService has the labels that operators give a service or an external of the domain.
type BoundService struct {
	Name   string `json:"name"`
	Labels Labels `json:"labels"`
}

// NomadScope are the workloads of jobs in a Nomad namespace. Its strings are patterns: "*" stands
// for any characters, also none. Without jobs, it has all jobs of the namespace.
type NomadScope struct {
	Namespace string   `json:"namespace"`
	Jobs      []string `json:"jobs,omitempty"`
}

// ConsulScope are the workloads in a Nomad namespace whose job has a service block with one of the
// names. Its strings are patterns as in NomadScope.
type ConsulScope struct {
	Namespace string   `json:"namespace"`
	Services  []string `json:"services"`
}

// NodeScope are all workloads on nodes that have every property that is set. Its strings are
// patterns as in NomadScope.
type NodeScope struct {
	Zone      string `json:"zone,omitempty"` // of the fabric
	Node      string `json:"node,omitempty"` // of the fabric
	NodeClass string `json:"nodeClass,omitempty"`
	NodePool  string `json:"nodePool,omitempty"`
}

// AttachScope are the workloads outside Nomad that nodes with every property that is set may attach
// for Consul services with one of the names. Its strings are patterns as in NomadScope. It names
// the node or its class: what is registered in Consul, whoever may write there could have
// registered.
type AttachScope struct {
	Services  []string `json:"services"`
	Zone      string   `json:"zone,omitempty"` // of the fabric
	Node      string   `json:"node,omitempty"` // of the fabric
	NodeClass string   `json:"nodeClass,omitempty"`
}

// OutsideGrants are what a domain may use outside the fabric: the prefixes and DNS names in which
// its externals must lie, the ports of nodes that its workloads may publish, and the ports of their
// own node that its workloads may reach.
type OutsideGrants struct {
	Prefixes  []netip.Prefix `json:"prefixes,omitempty"`
	Names     []string       `json:"names,omitempty"` // patterns of MatchName, or "*" for every name
	Ports     []PortRange    `json:"ports,omitempty"`
	NodePorts []PortRange    `json:"nodePorts,omitempty"`
}

// fits reports whether a string matches a pattern, in which "*" stands for any characters.
func fits(pattern, s string) bool {
	first, rest, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == s
	}
	if !strings.HasPrefix(s, first) {
		return false
	}
	s = s[len(first):]
	parts := strings.Split(rest, "*")
	last := parts[len(parts)-1]
	for _, part := range parts[:len(parts)-1] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return strings.HasSuffix(s, last)
}

func fitsAny(patterns []string, s string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return fits(p, s) })
}

// scope is a set of workloads.
type scope interface {
	covers(Workload) bool
	contains(Selector) bool // every workload that the selector matches
	String() string
}

func (n NomadScope) covers(w Workload) bool {
	return !w.Attached && fits(n.Namespace, w.Namespace) && (len(n.Jobs) == 0 || fitsAny(n.Jobs, w.Job))
}

func (n NomadScope) contains(s Selector) bool {
	switch {
	case s.Kind == SelectNode || !fits(n.Namespace, s.namespace()):
		return false
	case len(n.Jobs) == 0:
		return true
	}
	return s.Kind == SelectNomad && fitsAny(n.Jobs, s.Job)
}

func (n NomadScope) String() string {
	return properties("nomad", "namespace", n.Namespace, "jobs", strings.Join(n.Jobs, "+"))
}

func (c ConsulScope) covers(w Workload) bool {
	return !w.Attached && fits(c.Namespace, w.Namespace) &&
		slices.ContainsFunc(w.Services, func(s WorkloadService) bool { return fitsAny(c.Services, s.Name) })
}

func (c ConsulScope) contains(s Selector) bool {
	return s.Kind == SelectConsul && fits(c.Namespace, s.namespace()) && fitsAny(c.Services, s.Service)
}

func (c ConsulScope) String() string {
	return properties("consul", "namespace", c.Namespace, "services", strings.Join(c.Services, "+"))
}

func (n NodeScope) covers(w Workload) bool {
	return !w.Attached && n.of(w.Zone, w.Node, w.NodeClass, w.NodePool)
}

func (n NodeScope) contains(s Selector) bool { return n.of(s.Zone, s.Node, s.NodeClass, s.NodePool) }

// of reports whether a node has the properties. An empty property is unknown, so that it does not
// match one that is set.
func (n NodeScope) of(zone, node, class, pool string) bool {
	agree := func(pattern, have string) bool { return pattern == "" || have != "" && fits(pattern, have) }
	return n != (NodeScope{}) &&
		agree(n.Zone, zone) && agree(n.Node, node) && agree(n.NodeClass, class) && agree(n.NodePool, pool)
}

func (n NodeScope) String() string {
	return properties("node", "zone", n.Zone, "node", n.Node, "node_class", n.NodeClass, "node_pool", n.NodePool)
}

func (a AttachScope) covers(w Workload) bool {
	on := NodeScope{Zone: a.Zone, Node: a.Node, NodeClass: a.NodeClass}
	return w.Attached && on.of(w.Zone, w.Node, w.NodeClass, w.NodePool) &&
		slices.ContainsFunc(w.Services, func(s WorkloadService) bool { return fitsAny(a.Services, s.Name) })
}

// contains reports whether a selector may name the scope's services, although it matches workloads
// of Nomad as well, which are not in the scope.
func (a AttachScope) contains(s Selector) bool {
	return s.Kind == SelectConsul && s.namespace() == DefaultNamespace && fitsAny(a.Services, s.Service)
}

func (a AttachScope) String() string {
	return properties("attach", "services", strings.Join(a.Services, "+"), "zone", a.Zone, "node", a.Node, "node_class", a.NodeClass)
}

// properties formats names and values, given in turn, without those that are not set.
func properties(kind string, pairs ...string) string {
	var parts []string
	for pair := range slices.Chunk(pairs, 2) {
		if pair[1] != "" {
			parts = append(parts, pair[0]+"="+pair[1])
		}
	}
	return fmt.Sprintf("%s(%s)", kind, strings.Join(parts, ", "))
}

// The bindings of a domain that no binding covers, and of all domains in a graph without bindings.
var (
	grantsNothing    = &Binding{}
	grantsEverything = &Binding{Domain: EveryDomain}
)

// scopes are the workloads that the domain may select; limited is false if it may select all.
func (b *Binding) scopes() (list []scope, limited bool) {
	for _, s := range b.Nomad {
		list = append(list, s)
	}
	for _, s := range b.Consul {
		list = append(list, s)
	}
	for _, s := range b.Nodes {
		list = append(list, s)
	}
	limited = b.limits(len(list))
	for _, s := range b.Attach {
		list = append(list, s)
	}
	return list, limited
}

// limits reports whether the binding limits something of which it lists that many.
func (b *Binding) limits(listed int) bool { return listed > 0 || b.Domain != EveryDomain }

func (b *Binding) prefixes() (list []netip.Prefix, limited bool) {
	for _, o := range b.Outside {
		list = append(list, o.Prefixes...)
	}
	return list, b.limits(len(list))
}

func (b *Binding) names() (list []string, limited bool) {
	for _, o := range b.Outside {
		list = append(list, o.Names...)
	}
	return list, b.limits(len(list))
}

func (b *Binding) nodePorts() (list []PortRange, limited bool) {
	for _, o := range b.Outside {
		list = append(list, o.NodePorts...)
	}
	return list, b.limits(len(list))
}

func (b *Binding) ports() (list []PortRange, limited bool) {
	for _, o := range b.Outside {
		list = append(list, o.Ports...)
	}
	return list, b.limits(len(list))
}

// covers reports whether the domain may select w. A workload outside Nomad needs a scope that names
// it, in a binding of the domain's own.
func (b *Binding) covers(w Workload) bool {
	list, limited := b.scopes()
	if w.Attached {
		limited = true
	}
	return !limited || slices.ContainsFunc(list, func(s scope) bool { return s.covers(w) })
}

func (b *Binding) contains(sel Selector) bool {
	list, limited := b.scopes()
	return !limited || slices.ContainsFunc(list, func(s scope) bool { return s.contains(sel) })
}

// owns reports whether every workload that the selector matches is bound to the domain.
func (b *Binding) owns(sel Selector) bool {
	list, limited := b.scopes()
	return !limited || slices.ContainsFunc(list, func(s scope) bool {
		_, some := s.(AttachScope)
		return !some && s.contains(sel)
	})
}

// admits returns those of the prefixes that the domain may use.
func (b *Binding) admits(prefixes []netip.Prefix) []netip.Prefix {
	list, limited := b.prefixes()
	inside := func(p netip.Prefix) bool {
		return slices.ContainsFunc(list, func(outer netip.Prefix) bool { return outer.Bits() <= p.Bits() && outer.Contains(p.Addr()) })
	}
	if !limited || !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return !inside(p) }) {
		return prefixes
	}
	var some []netip.Prefix
	for _, p := range prefixes {
		if inside(p) {
			some = append(some, p)
		}
	}
	return some
}

// admitsName reports whether the domain may use every name of a pattern.
func (b *Binding) admitsName(pattern string) bool {
	list, limited := b.names()
	return !limited || slices.ContainsFunc(list, func(granted string) bool {
		// A pattern is narrower than another if that matches it as if it were a name.
		return granted == "*" || MatchName(granted, pattern) || granted == pattern
	})
}

// external returns what the binding admits of an external; not an external if that is nothing.
func (b *Binding) external(name Ref, e *External) Peer {
	p := Peer{Name: name, Prefixes: b.admits(e.Prefixes), Exit: e.Exit}
	for _, n := range e.Names {
		if b.admitsName(n) {
			p.Names = append(p.Names, n)
		}
	}
	if e.Consul != nil {
		if within := b.admits(e.Consul.Within); len(within) > 0 {
			c := *e.Consul
			c.Within = within
			p.Consul = &c
		}
	}
	if e.Node {
		ports, limited := b.nodePorts()
		if !limited {
			ports = []PortRange{AllPorts}
		}
		p.NodePorts = MergePorts(slices.Clone(ports))
	}
	prefixes, _ := b.prefixes()
	p.Listed = p.listed(lifts(prefixes))
	return p
}

// label returns the value that the binding gives a label of a service or external; of the domain
// itself if name is empty.
func (b *Binding) label(name, key string) (value string, set bool) {
	for _, s := range b.Services {
		if value, set := s.Labels[key]; set && s.Name == name {
			return value, true
		}
	}
	value, set = b.Labels[key]
	return value, set
}

// grants lists what the binding grants and sets, one phrase each.
func (b *Binding) grants() []string {
	var list []string
	scopes, limited := b.scopes()
	for _, s := range scopes {
		list = append(list, "may select "+s.String())
	}
	if !limited {
		list = append(list, "may select every workload of Nomad")
	}
	prefixes, limited := b.prefixes()
	for _, p := range prefixes {
		list = append(list, "may use prefix "+p.String())
	}
	if !limited {
		list = append(list, "may use every prefix")
	}
	names, limited := b.names()
	for _, n := range names {
		list = append(list, "may use name "+n)
	}
	if !limited {
		list = append(list, "may use every name")
	}
	ports, limited := b.ports()
	for _, p := range ports {
		list = append(list, "may publish port "+p.String())
	}
	if !limited {
		list = append(list, "may publish every port")
	}
	ports, limited = b.nodePorts()
	for _, p := range ports {
		list = append(list, "may reach port "+p.String()+" of its node")
	}
	if !limited {
		list = append(list, "may reach every port of its node")
	}
	for _, k := range sortedKeys(b.Labels) {
		list = append(list, fmt.Sprintf("has label %s=%s", k, b.Labels[k]))
	}
	for _, s := range b.Services {
		for _, k := range sortedKeys(s.Labels) {
			list = append(list, fmt.Sprintf("has label %s=%s on %s", k, s.Labels[k], s.Name))
		}
	}
	return list
}

// binding returns what is granted to a domain; never nil.
func (x *index) binding(domain string) *Binding {
	if len(x.graph.Bindings) == 0 {
		return grantsEverything
	}
	if x.bindings == nil {
		x.bindings = make(map[string]*Binding, len(x.graph.Bindings))
		for i := range x.graph.Bindings {
			b := &x.graph.Bindings[i]
			if x.bindings[b.Domain] == nil { // Check reports duplicates
				x.bindings[b.Domain] = b
			}
		}
	}
	for _, name := range []string{domain, EveryDomain} {
		if b := x.bindings[name]; b != nil {
			return b
		}
	}
	return grantsNothing
}

// Barred is a service whose selectors match a workload that its domain may not select.
type Barred struct {
	Service Ref
	Why     string
}

// bar returns a function that says why a domain may not select w; empty if it may. A workload that
// the own binding of a domain covers is bound to it: only domains to which it is bound may select
// it.
func (x *index) bar(w Workload) func(domain string) string {
	var owners []string
	for i := range x.graph.Bindings {
		if b := &x.graph.Bindings[i]; b.Domain != EveryDomain && b.covers(w) {
			owners = append(owners, b.Domain)
		}
	}
	slices.Sort(owners)
	return func(domain string) string {
		switch b := x.binding(domain); {
		case w.Attached && (b == grantsNothing || b == grantsEverything || b.Domain == EveryDomain || !b.covers(w)):
			return fmt.Sprintf("domain %q has no binding with an attach block that names Consul service %s and node %s/%s or its class",
				domain, serviceNames(w), w.Zone, w.Node)
		case b == grantsNothing:
			return fmt.Sprintf("no binding covers domain %q", domain)
		case !b.covers(w):
			return fmt.Sprintf("binding %q does not let domain %q select it", b.Domain, domain)
		case b.Domain == EveryDomain && len(owners) > 0:
			return fmt.Sprintf("it is bound to domain %s", strings.Join(owners, " and domain "))
		}
		return ""
	}
}

// MayAttach reports whether a domain may have what a node attaches as a Consul service, if the node
// is of a class that the domain's binding names.
func (g *Graph) MayAttach(domain string, node NodeID, service string) bool {
	return slices.ContainsFunc(g.Bindings, func(b Binding) bool {
		return b.Domain == domain && domain != EveryDomain && slices.ContainsFunc(b.Attach, func(a AttachScope) bool {
			return fitsAny(a.Services, service) && (a.Zone == "" || fits(a.Zone, node.Zone)) && (a.Node == "" || fits(a.Node, node.Name))
		})
	})
}

func serviceNames(w Workload) string {
	var names []string
	for _, s := range w.Services {
		names = append(names, strconv.Quote(s.Name))
	}
	return strings.Join(names, " or ")
}

// nowhere reports whether r is an external of which the binding admits nothing.
func (x *index) nowhere(r Ref) bool {
	e := x.node(r).external
	return e != nil && !x.external(r, e).IsExternal()
}

// RefusedPorts returns those of the ports of a node that the workloads of a domain may not publish.
func (g *Graph) RefusedPorts(domain string, ports []uint16) (refused []uint16) {
	granted, limited := newIndex(g).binding(domain).ports()
	if !limited {
		return nil
	}
	for _, port := range ports {
		if !slices.ContainsFunc(granted, func(r PortRange) bool { return r.Contains(port) }) {
			refused = append(refused, port)
		}
	}
	return refused
}

// JoinPorts formats ports for people.
func JoinPorts(ports []uint16) string {
	list := make([]string, len(ports))
	for i, p := range ports {
		list[i] = strconv.Itoa(int(p))
	}
	return strings.Join(list, ", ")
}

// Excess is what a domain declares beyond what it is granted. It has no effect.
type Excess struct {
	Domain string   `json:"domain"`
	Name   string   `json:"name,omitempty"` // the service or external; empty: all of the domain
	Pos    Position `json:"pos,omitzero"`
	Why    string   `json:"why"`
}

// excess returns what a domain declares beyond what it is granted.
func (x *index) excess(d *Domain) []Excess {
	var list []Excess
	b := x.binding(d.Name)
	note := func(name string, pos Position, format string, args ...any) {
		list = append(list, Excess{Domain: d.Name, Name: name, Pos: pos, Why: fmt.Sprintf(format, args...)})
	}
	selects := func(s Service) bool { return len(s.Selectors) > 0 }
	if b == grantsNothing {
		if slices.ContainsFunc(d.Services, selects) || len(d.Externals) > 0 {
			note("", d.Pos, "no binding covers domain %q, so its services select nothing and its externals are nowhere", d.Name)
		}
		return list
	}
	grant := fmt.Sprintf("beyond binding %q", b.Domain)
	if b.Pos.File != "" {
		grant += " at " + b.Pos.String()
	}
	for _, s := range d.Services {
		for _, sel := range s.Selectors {
			if !b.contains(sel) {
				note(s.Name, sel.Pos, "a selector of service %q of domain %q, %s, selects %s", s.Name, d.Name, sel, grant)
			} else if b.Domain == EveryDomain {
				if owner := x.ownerOf(sel); owner != "" {
					note(s.Name, sel.Pos, "a selector of service %q of domain %q, %s, selects only what is bound to domain %q", s.Name, d.Name, sel, owner)
				}
			}
		}
	}
	for i := range d.Externals {
		e := &d.Externals[i]
		admitted := x.external(Ref{d.Name, e.Name}, e)
		for _, p := range e.Prefixes {
			if !slices.Contains(admitted.Prefixes, p) {
				note(e.Name, e.Pos, "prefix %s of external %q of domain %q lies %s", p, e.Name, d.Name, grant)
			}
		}
		for _, n := range e.Names {
			if !slices.Contains(admitted.Names, n) {
				note(e.Name, e.Pos, "name %q of external %q of domain %q lies %s", n, e.Name, d.Name, grant)
			}
		}
		if e.Consul != nil {
			for _, p := range e.Consul.Within {
				if admitted.Consul == nil || !slices.Contains(admitted.Consul.Within, p) {
					note(e.Name, e.Pos, "prefix %s, in which external %q of domain %q has instances of Consul service %q, lies %s", p, e.Name, d.Name, e.Consul.Service, grant)
				}
			}
		}
		if e.Node && !admitted.IsNode() {
			note(e.Name, e.Pos, "external %q of domain %q is the workload's node, of which no port is granted: it lies %s", e.Name, d.Name, grant)
		}
	}
	for i := range d.Contracts {
		x.excessAtNode(&d.Contracts[i], d.Name, func(external string, beyond []Rule) {
			c := &d.Contracts[i]
			note(external, c.Pos, "contract %q of domain %q opens %s of external %q, the workload's node, %s", c.Name, d.Name, rulesText(beyond), external, grant)
		})
	}
	return list
}

// excessAtNode reports the ports of the workload's node that a contract opens beyond what is
// granted, for each external that is the node, unless nothing of it is granted.
func (x *index) excessAtNode(c *Contract, domain string, report func(external string, beyond []Rule)) {
	for _, r := range c.Responders {
		e := x.node(r).external
		if e == nil || !e.Node || r.Domain != domain {
			continue
		}
		granted, limited := x.binding(domain).nodePorts()
		if !limited || len(granted) == 0 {
			continue
		}
		if beyond := without(c.Rules, granted); len(beyond) > 0 {
			report(r.Name, beyond)
		}
	}
}

// rulesText formats rules for people.
func rulesText(rules []Rule) string {
	texts := make([]string, len(rules))
	for i, r := range rules {
		texts[i] = r.String()
	}
	return strings.Join(texts, " ")
}

// ownerOf returns a domain to which every workload is bound that the selector matches; empty if
// there is none.
func (x *index) ownerOf(s Selector) string {
	for i := range x.graph.Bindings {
		if b := &x.graph.Bindings[i]; b.Domain != EveryDomain && b.owns(s) {
			return b.Domain
		}
	}
	return ""
}

// Excess returns what the domains of these names declare beyond what they are granted.
func (g *Graph) Excess(domains ...string) []Excess {
	var list []Excess
	x := newIndex(g)
	for _, name := range domains {
		if d := g.Domains[name]; d != nil {
			list = append(list, x.excess(d)...)
		}
	}
	return list
}

// CheckGrants returns a problem for each excess of a domain that differs from base. A domain that a
// change of bindings leaves with an excess is not a problem, because operators must be able to
// narrow what others use: the excess just loses its effect.
func (g *Graph) CheckGrants(base *Graph) []Problem {
	var problems []Problem
	x := newIndex(g)
	for _, name := range sortedKeys(g.changedSince(base)) {
		d := g.Domains[name]
		if d == nil {
			continue
		}
		list := x.excess(d)
		if len(list) > 0 && reflect.DeepEqual(d, base.Domains[name]) {
			continue
		}
		for _, e := range list {
			remedy := fmt.Sprintf("narrow it, or ask the operators of the fabric for a wider binding %q", name)
			if e.Name == "" {
				remedy = fmt.Sprintf("ask the operators of the fabric for a binding %q", name)
			}
			problems = append(problems, Problem{Pos: e.Pos, Summary: e.Why, Remedy: remedy})
		}
	}
	return problems
}
