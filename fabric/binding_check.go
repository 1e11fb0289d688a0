// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"slices"
	"strings"
)

// checkBindings checks what holds for each binding whatever the domains declare.
func (g *Graph) checkBindings(report reporter) {
	for i := range g.Bindings {
		b := &g.Bindings[i]
		if b.Domain != EveryDomain {
			if err := CheckName(b.Domain); err != nil {
				report(b.Pos, `name a domain, or "*" for all that have no binding of their own`, "binding: %v", err)
			}
			if b.Domain == ReservedDomain {
				report(b.Pos, "name another domain", "domain %q is reserved for node identities", b.Domain)
			}
		}
		for _, other := range g.Bindings[:i] {
			if other.Domain == b.Domain {
				report(b.Pos, "merge the two blocks", "domain %q already has a binding at %s", b.Domain, other.Pos)
			}
		}
		b.check(report)
	}
}

func (b *Binding) check(report reporter) {
	patterns := func(what string, list []string) {
		for i, p := range list {
			switch {
			case p == "":
				report(b.Pos, "set a value or remove it", "binding %q lists an empty name among its %s", b.Domain, what)
			case slices.Index(list, p) != i:
				report(b.Pos, "remove one of the two", "binding %q lists %q twice among its %s", b.Domain, p, what)
			}
		}
	}
	namespace := func(kind, name string) {
		if name == "" {
			report(b.Pos, fmt.Sprintf("set the namespace, such as %q", DefaultNamespace), "a %s block of binding %q has no namespace", kind, b.Domain)
		}
	}
	checkOwnLabels(b.Labels, "binding", b.Domain, b.Pos, report)
	seen := map[string]bool{}
	for _, s := range b.Services {
		if err := CheckName(s.Name); err != nil {
			report(b.Pos, "name a service or an external of the domain", "binding %q: service: %v", b.Domain, err)
		}
		if seen[s.Name] {
			report(b.Pos, "merge the two blocks", "binding %q has two blocks for service %q", b.Domain, s.Name)
		}
		seen[s.Name] = true
		if b.Domain == EveryDomain {
			report(b.Pos, "write it in the binding of a domain", "binding %q names service %q, but it is of no single domain", b.Domain, s.Name)
		}
		if len(s.Labels) == 0 {
			report(b.Pos, "set labels or remove the block", "binding %q sets no labels of service %q", b.Domain, s.Name)
		}
		checkOwnLabels(s.Labels, "service", s.Name, b.Pos, report)
	}
	for _, n := range b.Nomad {
		namespace("nomad", n.Namespace)
		patterns("jobs", n.Jobs)
	}
	for _, c := range b.Consul {
		namespace("consul", c.Namespace)
		patterns("services", c.Services)
		if len(c.Services) == 0 {
			report(b.Pos, "list at least one", "a consul block of binding %q names no service", b.Domain)
		}
	}
	for _, n := range b.Nodes {
		if n == (NodeScope{}) {
			report(b.Pos, "set at least one property of the nodes", "a node block of binding %q would cover every node", b.Domain)
		}
	}
	for _, a := range b.Attach {
		a.check(b, report)
		patterns("services", a.Services)
	}
	for _, o := range b.Outside {
		o.check(b, report)
	}
}

func (a AttachScope) check(b *Binding, report reporter) {
	if b.Domain == EveryDomain {
		report(b.Pos, "write it in the binding of a domain", "binding %q has an attach block, but what a node attaches is bound to a domain of its own", b.Domain)
	}
	if len(a.Services) == 0 {
		report(b.Pos, "list at least one Consul service", "an attach block of binding %q names no service", b.Domain)
	}
	if fault, remedy := a.NodeFault(); fault != "" {
		report(b.Pos, remedy, "an attach block of binding %q %s", b.Domain, fault)
	}
}

// NodeFault says why the scope cannot let a node attach anything, and what to do about it; both are
// empty if it can. A name or class of any characters names none.
func (a AttachScope) NodeFault() (fault, remedy string) {
	if strings.Trim(a.Node+a.NodeClass, "*") != "" {
		return "", ""
	}
	return "names neither a node nor a class of nodes", `set node or node_class, to more than "*"`
}

func (o OutsideGrants) check(b *Binding, report reporter) {
	if len(o.Prefixes)+len(o.Names)+len(o.Ports)+len(o.NodePorts) == 0 {
		report(b.Pos, "list prefixes, names, ports or node_ports", "an outside block of binding %q grants nothing", b.Domain)
	}
	checkPrefixes(o.Prefixes, "binding", b.Domain, b.Pos, report)
	checkNames(o.Names, GrantedNameFault, "binding", b.Domain, b.Pos, report)
	b.checkPorts("port", o.Ports, report)
	b.checkPorts("node port", o.NodePorts, report)
	for _, p := range o.NodePorts {
		if fault, remedy := NodePortFault(p); fault != "" {
			report(b.Pos, remedy, "binding %q: %s", b.Domain, fault)
		}
	}
}

func (b *Binding) checkPorts(what string, ports []PortRange, report reporter) {
	for i, p := range ports {
		switch {
		case p.From < AllPorts.From || p.From > p.To:
			report(b.Pos, "correct the numbers", "binding %q names %s %s; only %s is allowed", b.Domain, what, p, AllPorts)
		case slices.Index(ports, p) != i:
			report(b.Pos, "remove one of the two", "binding %q lists %s %s twice", b.Domain, what, p)
		}
	}
}

// checkLabelsOf checks the labels of a domain and of what is in it against its binding. In a graph
// with bindings, labels that a binding sets or that a guardrail names are the operators': whoever
// could set or drop them himself would decide which guardrails he has to keep.
func (x *index) checkLabelsOf(d *Domain, named map[string]string, report reporter) {
	b := x.binding(d.Name)
	if b == grantsNothing || b == grantsEverything {
		return
	}
	check := func(kind, name string, own Labels, pos Position) {
		inside := name
		if kind == "domain" {
			inside = ""
		}
		for _, k := range sortedKeys(own) {
			want, set := b.label(inside, k)
			remedy := fmt.Sprintf("remove the label, or ask the operators of the fabric to set it in binding %q", d.Name)
			switch guardrail, is := named[k]; {
			case set && want != own[k]:
				report(pos, remedy, "label %q of %s %q is %q, but binding %q sets it to %q", k, kind, name, own[k], b.Domain, want)
			case !set && is:
				report(pos, remedy, "label %q of %s %q is named by guardrail %q, so only a binding can set it", k, kind, name, guardrail)
			}
		}
	}
	check("domain", d.Name, d.Labels, d.Pos)
	for _, s := range d.Services {
		check("service", s.Name, s.Labels, s.Pos)
	}
	for _, e := range d.Externals {
		check("external", e.Name, e.Labels, e.Pos)
	}
}
