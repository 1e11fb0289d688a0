// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

func TestPattern(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"web", "web", true},
		{"web", "web2", false},
		{"web*", "web", true},
		{"web*", "web-2", true},
		{"web*", "aweb", false},
		{"*", "", true},
		{"*web", "a-web", true},
		{"a*b*c", "abbbc", true},
		{"a*b*c", "acb", false},
		{"a*a", "a", false},
		{"a*ab*b", "aab", false},
		{"w?b", "web", false},
		{"", "web", false},
	} {
		must.Eq(t, c.want, fits(c.pattern, c.s), must.Sprintf("%q %q", c.pattern, c.s))
	}
}

// A scope that contains a selector covers every workload that the selector matches.
func TestScopeContains(t *testing.T) {
	nomad := Selector{Kind: SelectNomad, Namespace: "default", Job: "web", NodePool: "spot"}
	consul := Selector{Kind: SelectConsul, Namespace: "default", Service: "news"}
	node := Selector{Kind: SelectNode, Zone: "aws1", Node: "w1"}
	for _, c := range []struct {
		name                string
		scope               scope
		nomad, consul, node bool
	}{
		{"namespace", NomadScope{Namespace: "default"}, true, true, false},
		{"another namespace", NomadScope{Namespace: "prod"}, false, false, false},
		{"namespaces", NomadScope{Namespace: "*"}, true, true, false},
		{"job", NomadScope{Namespace: "default", Jobs: []string{"x", "w*"}}, true, false, false},
		{"another job", NomadScope{Namespace: "default", Jobs: []string{"x"}}, false, false, false},
		{"service", ConsulScope{Namespace: "def*", Services: []string{"news"}}, false, true, false},
		{"service in another namespace", ConsulScope{Namespace: "prod", Services: []string{"news"}}, false, false, false},
		{"another service", ConsulScope{Namespace: "default", Services: []string{"new"}}, false, false, false},
		{"zone", NodeScope{Zone: "aws1"}, false, false, true},
		{"zone and node", NodeScope{Zone: "aws*", Node: "w*"}, false, false, true},
		{"another node", NodeScope{Zone: "aws1", Node: "w2"}, false, false, false},
		{"class that the selector leaves open", NodeScope{Zone: "aws1", NodeClass: "*"}, false, false, false},
		{"pool", NodeScope{NodePool: "spot"}, true, false, false},
		{"no property", NodeScope{}, false, false, false},
		{"attached", AttachScope{Services: []string{"n*"}, Node: "w1"}, false, true, false},
		{"another attached service", AttachScope{Services: []string{"db"}, Node: "w1"}, false, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			must.Eq(t, c.nomad, c.scope.contains(nomad))
			must.Eq(t, c.consul, c.scope.contains(consul))
			must.Eq(t, c.node, c.scope.contains(node))
		})
	}
	rapid.Check(t, func(t *rapid.T) {
		s, sel, w := drawScope(t), drawSelector(t), drawWorkload(t)
		if s.contains(sel) && sel.Matches(w) && !s.covers(w) {
			t.Fatalf("%s contains %s, which matches %+v, but does not cover it", s, sel, w)
		}
	})
}

var few = rapid.SampledFrom([]string{"a", "a", "b"})

func drawScope(t *rapid.T) scope {
	pattern := rapid.SampledFrom([]string{"a", "b", "a*", "*"})
	switch rapid.IntRange(0, 2).Draw(t, "scope") {
	case 0:
		return NomadScope{Namespace: pattern.Draw(t, "namespace"), Jobs: rapid.SliceOfN(pattern, 0, 2).Draw(t, "jobs")}
	case 1:
		return ConsulScope{Namespace: pattern.Draw(t, "namespace"), Services: rapid.SliceOfN(pattern, 1, 2).Draw(t, "services")}
	}
	property := rapid.SampledFrom([]string{"", "", "a", "a*"})
	return NodeScope{Zone: property.Draw(t, "zone"), Node: property.Draw(t, "node"), NodeClass: property.Draw(t, "class"), NodePool: property.Draw(t, "pool")}
}

func drawSelector(t *rapid.T) Selector {
	property := rapid.SampledFrom([]string{"", "", "a", "b"})
	s := Selector{
		Kind:      rapid.SampledFrom([]SelectorKind{SelectNomad, SelectConsul, SelectNode}).Draw(t, "kind"),
		NodeClass: property.Draw(t, "class"), NodePool: property.Draw(t, "pool"),
	}
	switch s.Kind {
	case SelectNomad:
		s.Namespace, s.Job, s.Group = few.Draw(t, "namespace"), few.Draw(t, "job"), property.Draw(t, "group")
	case SelectConsul:
		s.Namespace, s.Service, s.NodeClass, s.NodePool = few.Draw(t, "namespace"), few.Draw(t, "service"), "", ""
	case SelectNode:
		s.Zone, s.Node = few.Draw(t, "zone"), property.Draw(t, "node")
	}
	return s
}

func drawWorkload(t *rapid.T) Workload {
	w := Workload{
		Namespace: few.Draw(t, "namespace"), Job: few.Draw(t, "job"), Group: few.Draw(t, "group"),
		Zone: few.Draw(t, "zone"), Node: few.Draw(t, "node"), NodeClass: few.Draw(t, "class"), NodePool: few.Draw(t, "pool"),
	}
	for range rapid.IntRange(0, 2).Draw(t, "services") {
		w.Services = append(w.Services, WorkloadService{Name: few.Draw(t, "service")})
	}
	return w
}

// drawScopes adds scopes to a binding.
func drawScopes(t *rapid.T, b *Binding) {
	for range rapid.IntRange(0, 2).Draw(t, "scopes") {
		switch s := drawScope(t).(type) {
		case NomadScope:
			b.Nomad = append(b.Nomad, s)
		case ConsulScope:
			b.Consul = append(b.Consul, s)
		case NodeScope:
			if s != (NodeScope{}) {
				b.Nodes = append(b.Nodes, s)
			}
		}
	}
	if b.Domain != EveryDomain && rapid.Bool().Draw(t, "attach") {
		b.Attach = rapid.SliceOfN(rapid.Custom(drawAttachScope), 1, 2).Draw(t, "attach blocks")
	}
}

func drawAttachScope(t *rapid.T) AttachScope {
	pattern, property := rapid.SampledFrom([]string{"a", "b", "a*", "*"}), rapid.SampledFrom([]string{"", "a", "a*"})
	a := AttachScope{Services: rapid.SliceOfN(pattern, 1, 2).Draw(t, "services"), Zone: property.Draw(t, "zone"), Node: property.Draw(t, "node"), NodeClass: property.Draw(t, "class")}
	if fault, _ := a.NodeFault(); fault != "" {
		a.Node = "a"
	}
	return a
}

// drawAnyWorkload draws a workload in Nomad or outside it.
func drawAnyWorkload(t *rapid.T) Workload {
	w := drawWorkload(t)
	if !rapid.Bool().Draw(t, "attached") {
		return w
	}
	return attachedAs(w, few.Draw(t, "registered"))
}

// attachedAs returns a workload outside Nomad on the node of w.
func attachedAs(w Workload, service string) Workload {
	return Workload{Attached: true, Zone: w.Zone, Node: w.Node, NodeClass: w.NodeClass, NodePool: w.NodePool, Services: []WorkloadService{{Name: service}}}
}

// drawBound draws a graph of three domains, whose namespaces are those of selectors, and with
// bindings if it must have some.
func drawBound(t *rapid.T, least int) *Graph {
	g := &Graph{Domains: map[string]*Domain{}}
	for _, name := range []string{"a", "b", "c"} {
		sel := rapid.Custom(func(t *rapid.T) Selector {
			s := drawSelector(t)
			if s.Kind != SelectNode && rapid.Bool().Draw(t, "in the default namespace") {
				s.Namespace = DefaultNamespace
			}
			return s
		})
		g.Domains[name] = &Domain{Name: name, Services: []Service{{Name: "s", Selectors: rapid.SliceOfN(sel, 1, 2).Draw(t, "selectors of "+name)}}}
	}
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", EveryDomain}), least, 3, rapid.ID).Draw(t, "bindings") {
		b := Binding{Domain: name}
		drawScopes(t, &b)
		g.Bindings = append(g.Bindings, b)
	}
	return g
}

// Whatever a graph has, a workload outside Nomad is let in only by an attach block of the domain's
// own binding that names its service, and its node or the class of that.
func TestOnlyAttachBlocksLetAttachedWorkloadsIn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawBound(t, 0)
		w := attachedAs(drawWorkload(t), few.Draw(t, "registered"))
		says := func(pattern, s string) bool { // as fits, for the patterns that are drawn
			return pattern == "*" || pattern == s || pattern == "a*" && strings.HasPrefix(s, "a")
		}
		names := func(a AttachScope) bool {
			for _, p := range []struct{ pattern, have string }{{a.Zone, w.Zone}, {a.Node, w.Node}, {a.NodeClass, w.NodeClass}} {
				if p.pattern != "" && !says(p.pattern, p.have) {
					return false
				}
			}
			return (a.Node != "" || a.NodeClass != "") && slices.ContainsFunc(a.Services, func(p string) bool { return says(p, w.Services[0].Name) })
		}
		lets := func(domain string) bool {
			return slices.ContainsFunc(g.Bindings, func(b Binding) bool { return b.Domain == domain && slices.ContainsFunc(b.Attach, names) })
		}
		services, barred := g.Select(w)
		for _, r := range services {
			must.True(t, lets(r.Domain), must.Sprint(r))
		}
		for _, b := range barred {
			must.False(t, lets(b.Service.Domain), must.Sprint(b))
			must.StrContains(t, b.Why, "no binding with an attach block that names")
		}
		// What matches is in one of the two lists.
		matches := 0
		for _, d := range g.Domains {
			if slices.ContainsFunc(d.Services[0].Selectors, func(s Selector) bool { return s.Matches(w) }) {
				matches++
			}
		}
		must.Eq(t, matches, len(services)+len(barred))
	})
}

// Attach blocks change nothing for the workloads of Nomad: neither who has them, nor what a domain
// may declare about them.
func TestAttachBlocksChangeNothingInNomad(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawBound(t, 1)
		without := &Graph{Domains: g.Domains, Bindings: slices.Clone(g.Bindings)}
		for i := range without.Bindings {
			without.Bindings[i].Attach = nil
		}
		w := drawWorkload(t)
		services, barred := g.Select(w)
		servicesWithout, barredWithout := without.Select(w)
		must.Eq(t, servicesWithout, services)
		must.Eq(t, barredWithout, barred)
		sel := drawSelector(t)
		must.Eq(t, newIndex(without).ownerOf(sel), newIndex(g).ownerOf(sel))
		must.Eq(t, without.RefusedPorts("a", []uint16{80}), g.RefusedPorts("a", []uint16{80}))
		for _, name := range []string{"a", "b", "c"} {
			more, less := without.Excess(name), g.Excess(name)
			for _, e := range less {
				must.SliceContains(t, more, e)
			}
			attaches := slices.ContainsFunc(g.Bindings, func(b Binding) bool { return b.Domain == name && len(b.Attach) > 0 })
			if !attaches {
				must.Eq(t, more, less)
			}
			for _, e := range more { // only selectors of Consul services are lifted
				if !slices.Contains(less, e) {
					must.StrContains(t, e.Why, "consul(namespace=default")
				}
			}
		}
	})
}

func TestSelectAttached(t *testing.T) {
	domain := func(name string, selectors ...Selector) *Domain {
		return &Domain{Name: name, Services: []Service{{Name: "x", Selectors: selectors}}}
	}
	db := Selector{Kind: SelectConsul, Namespace: DefaultNamespace, Service: "db"}
	zone := Selector{Kind: SelectNode, Zone: "aws1"}
	job := Selector{Kind: SelectNomad, Namespace: DefaultNamespace, Job: "db"}
	prod := Selector{Kind: SelectConsul, Namespace: "prod", Service: "db"}
	w := Workload{Attached: true, Zone: "aws1", Node: "w1", NodeClass: "data", Services: []WorkloadService{{Name: "db"}}}
	shop, store := Ref{"shop", "x"}, Ref{"store", "x"}
	everything := Binding{Domain: "shop", Nomad: []NomadScope{{Namespace: "*"}}, Consul: []ConsulScope{{Namespace: "*", Services: []string{"*"}}}, Nodes: []NodeScope{{Zone: "*"}}}
	attach := func(domain string, a ...AttachScope) Binding { return Binding{Domain: domain, Attach: a} }
	on := func(node, class string, services ...string) AttachScope {
		return AttachScope{Services: services, Zone: "aws1", Node: node, NodeClass: class}
	}
	why := func(domain string) string {
		return fmt.Sprintf("domain %q has no binding with an attach block that names Consul service \"db\" and node aws1/w1 or its class", domain)
	}
	for _, c := range []struct {
		name     string
		shop     Selector
		bindings []Binding
		services []Ref
		barred   []Barred
	}{
		{"without bindings", db, nil, nil, []Barred{{shop, why("shop")}}},
		{"an empty binding of all", db, []Binding{{Domain: "*"}}, nil, []Barred{{shop, why("shop")}}},
		{"an attach block of all, as no check lets it", db, []Binding{{Domain: "*", Attach: []AttachScope{on("w1", "", "db")}}}, nil, []Barred{{shop, why("shop")}}},
		{"everything in Nomad", db, []Binding{everything}, nil, []Barred{{shop, why("shop")}}},
		{"no binding of its own", db, []Binding{attach("store", on("w1", "", "db"))}, nil, []Barred{{shop, why("shop")}}},
		{"the node", db, []Binding{attach("shop", on("w1", "", "db"))}, []Ref{shop}, nil},
		{"nodes", db, []Binding{attach("shop", on("w*", "", "d*"))}, []Ref{shop}, nil},
		{"the class", db, []Binding{attach("shop", on("", "data", "db"))}, []Ref{shop}, nil},
		{"the node and another class", db, []Binding{attach("shop", on("w1", "web", "db"))}, nil, []Barred{{shop, why("shop")}}},
		{"another node", db, []Binding{attach("shop", on("w2", "", "db"))}, nil, []Barred{{shop, why("shop")}}},
		{"another zone", db, []Binding{attach("shop", AttachScope{Services: []string{"db"}, Zone: "gcp1", Node: "w1"})}, nil, []Barred{{shop, why("shop")}}},
		{"another service", db, []Binding{attach("shop", on("w1", "", "web"))}, nil, []Barred{{shop, why("shop")}}},
		{"a selector of nodes, within an attach block", zone, []Binding{attach("shop", on("w1", "", "db"))}, []Ref{shop}, nil},
		{"a selector of nodes, without", zone, []Binding{everything}, nil, []Barred{{shop, why("shop")}}},
		{"a selector of jobs", job, []Binding{attach("shop", on("w1", "", "db"))}, nil, nil},
		{"a selector of another namespace", prod, []Binding{attach("shop", on("w1", "", "db"))}, nil, nil},
		{"in two domains", db, []Binding{attach("shop", on("w1", "", "db")), attach("store", on("", "d*", "db"))}, []Ref{shop, store}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := &Graph{Domains: map[string]*Domain{"shop": domain("shop", c.shop)}, Bindings: c.bindings}
			if c.name == "in two domains" {
				g.Domains["store"] = domain("store", db)
			}
			services, barred := g.Select(w)
			must.Eq(t, c.services, services)
			must.Eq(t, c.barred, barred)
		})
	}
	unknown := w
	unknown.NodeClass = ""
	g := &Graph{Domains: map[string]*Domain{"shop": domain("shop", db)}, Bindings: []Binding{attach("shop", on("", "*a*", "db"))}}
	services, _ := g.Select(unknown)
	must.SliceEmpty(t, services)
}

func TestCheckAttachScopes(t *testing.T) {
	for _, c := range []struct {
		domain string
		scope  AttachScope
		want   string
	}{
		{"shop", AttachScope{Services: []string{"db"}, Node: "w1"}, ""},
		{"shop", AttachScope{Services: []string{"*"}, NodeClass: "db-*"}, ""},
		{"shop", AttachScope{Services: []string{"db"}, Node: "*", NodeClass: "db"}, ""},
		{"shop", AttachScope{Services: []string{"db"}, Zone: "aws1"}, `a.hcl:9:1: an attach block of binding "shop" names neither a node nor a class of nodes; set node or node_class, to more than "*"`},
		{"shop", AttachScope{Services: []string{"db"}, Node: "*", NodeClass: "**"}, `a.hcl:9:1: an attach block of binding "shop" names neither a node nor a class of nodes; set node or node_class, to more than "*"`},
		{"shop", AttachScope{Node: "w1"}, `a.hcl:9:1: an attach block of binding "shop" names no service; list at least one Consul service`},
		{"shop", AttachScope{Services: []string{"db", "db"}, Node: "w1"}, `a.hcl:9:1: binding "shop" lists "db" twice among its services; remove one of the two`},
		{"shop", AttachScope{Services: []string{""}, Node: "w1"}, `a.hcl:9:1: binding "shop" lists an empty name among its services; set a value or remove it`},
		{"*", AttachScope{Services: []string{"db"}, Node: "w1"}, `a.hcl:9:1: binding "*" has an attach block, but what a node attaches is bound to a domain of its own; write it in the binding of a domain`},
	} {
		g := &Graph{Bindings: []Binding{{Domain: c.domain, Attach: []AttachScope{c.scope}, Pos: Position{File: "a.hcl", Line: 9, Column: 1}}}}
		var said []string
		for _, p := range g.Check(reachNow) {
			said = append(said, p.String())
		}
		must.Eq(t, c.want, strings.Join(said, "\n"), must.Sprintf("%+v", c.scope))
	}
}

func TestCheckAttached(t *testing.T) {
	good := Attached{Name: "db-1", ConsulService: "db", ConsulNode: "ip-10-0-0-1.eu.internal", Service: "shop/db", Originate: []string{"a"}, Respond: []string{"shop/b"}}
	must.NoError(t, good.Check())
	for want, spoil := range map[string]func(*Attached){
		"is no name of a workload":          func(a *Attached) { a.Name = "a/b" },
		`"" is no name of a workload`:       func(a *Attached) { a.Name = "" },
		"at most 64":                        func(a *Attached) { a.Name = strings.Repeat("a", 65) },
		"a letter or digit at both ends":    func(a *Attached) { a.Name = ".." },
		"is no name of a Consul agent":      func(a *Attached) { a.ConsulNode = "a\nb" },
		"at most 128":                       func(a *Attached) { a.ConsulNode = strings.Repeat("a", 129) },
		"a Consul service must have a name": func(a *Attached) { a.ConsulService = "" },
		"is of the fabric itself":           func(a *Attached) { a.ConsulService = "sif-shop--db" },
		"is a pattern":                      func(a *Attached) { a.ConsulService = "d*" },
		"requests 1001 contracts":           func(a *Attached) { a.Originate = make([]string, 1000) },
		"longer than any name":              func(a *Attached) { a.Service = strings.Repeat("a", 58) },
	} {
		a := good
		spoil(&a)
		must.ErrorContains(t, a.Check(), want)
	}
}

func TestSelectKeepsToBindings(t *testing.T) {
	domain := func(name string, selectors ...Selector) *Domain {
		return &Domain{Name: name, Services: []Service{{Name: "x", Selectors: selectors}}}
	}
	web := Selector{Kind: SelectNomad, Namespace: "default", Job: "web"}
	zone := Selector{Kind: SelectNode, Zone: "aws1"}
	g := &Graph{Domains: map[string]*Domain{"shop": domain("shop", web), "greedy": domain("greedy", zone)}}
	w := Workload{Namespace: "default", Job: "web", Zone: "aws1"}
	other := Workload{Namespace: "default", Job: "other", Zone: "aws1"}
	shop, greedy := Ref{"shop", "x"}, Ref{"greedy", "x"}
	bound := Binding{Domain: "shop", Nomad: []NomadScope{{Namespace: "default", Jobs: []string{"web"}}}}
	node := Binding{Domain: "greedy", Nodes: []NodeScope{{Zone: "aws1"}}}
	for _, c := range []struct {
		name     string
		bindings []Binding
		w        Workload
		services []Ref
		barred   []Barred
	}{
		{"without bindings, it is ambiguous", nil, w, []Ref{greedy, shop}, nil},
		{"an empty binding of all", []Binding{{Domain: "*"}}, w, []Ref{greedy, shop}, nil},
		{"bound, and the other has none", []Binding{bound}, w, []Ref{shop}, []Barred{{greedy, `no binding covers domain "greedy"`}}},
		{"unclaimed, and the other has none", []Binding{bound}, other, nil, []Barred{{greedy, `no binding covers domain "greedy"`}}},
		{"bound, and the other has what is left", []Binding{bound, {Domain: "*"}}, w, []Ref{shop}, []Barred{{greedy, `it is bound to domain shop`}}},
		{"what is left", []Binding{bound, {Domain: "*"}}, other, []Ref{greedy}, nil},
		{"bound to both", []Binding{bound, node}, w, []Ref{greedy, shop}, nil},
		{"bound to a domain that does not exist yet", []Binding{{Domain: "later", Nodes: []NodeScope{{Zone: "aws1"}}}, {Domain: "*"}}, w, nil,
			[]Barred{{greedy, `it is bound to domain later`}, {shop, `it is bound to domain later`}}},
		{"outside its own binding", []Binding{{Domain: "shop"}, {Domain: "*"}}, w, []Ref{greedy}, []Barred{{shop, `binding "shop" does not let domain "shop" select it`}}},
		{"all, within limits", []Binding{{Domain: "*", Nomad: []NomadScope{{Namespace: "default", Jobs: []string{"o*"}}}}}, w, nil,
			[]Barred{{greedy, `binding "*" does not let domain "greedy" select it`}, {shop, `binding "*" does not let domain "shop" select it`}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			services, barred := (&Graph{Domains: g.Domains, Bindings: c.bindings}).Select(c.w)
			must.Eq(t, c.services, services)
			must.Eq(t, c.barred, barred)
		})
	}
}

// Whatever the owners of other domains write, it changes nothing for a workload that is bound to a
// domain and to no other.
func TestNobodyElseSelectsWhatIsBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		domain := func(name string) *Domain {
			d := &Domain{Name: name}
			for i := range rapid.IntRange(1, 3).Draw(t, "services of "+name) {
				d.Services = append(d.Services, Service{Name: fmt.Sprint("s", i), Selectors: rapid.SliceOfN(rapid.Custom(drawSelector), 1, 2).Draw(t, "selectors")})
			}
			return d
		}
		g := &Graph{Domains: map[string]*Domain{}}
		for _, name := range []string{"a", "b", "c"} {
			g.Domains[name] = domain(name)
		}
		owners := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", EveryDomain}), 1, 3, rapid.ID).Draw(t, "bindings")
		for _, name := range owners {
			b := Binding{Domain: name}
			drawScopes(t, &b)
			g.Bindings = append(g.Bindings, b)
		}
		w := drawAnyWorkload(t)
		boundTo := map[string]bool{}
		for _, b := range g.Bindings {
			if b.Domain != EveryDomain && b.covers(w) {
				boundTo[b.Domain] = true
			}
		}
		before, _ := g.Select(w)
		for _, r := range before {
			if len(boundTo) > 0 && !boundTo[r.Domain] {
				t.Fatalf("%s selects a workload that is bound to %v", r, boundTo)
			}
		}
		attacker := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "attacker")
		if len(boundTo) == 0 || boundTo[attacker] {
			return
		}
		attacked := &Graph{Domains: maps.Clone(g.Domains), Bindings: g.Bindings}
		attacked.Domains[attacker] = domain(attacker)
		after, _ := attacked.Select(w)
		must.Eq(t, before, after)
	})
}

// A domain without an excess selects whatever its selectors match, unless that is bound to others.
func TestNoExcessMeansFullEffect(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sel, w := drawSelector(t), drawWorkload(t)
		g := &Graph{Domains: map[string]*Domain{"a": {Name: "a", Services: []Service{{Name: "s", Selectors: []Selector{sel}}}}}}
		b := Binding{Domain: "a"}
		switch s := drawScope(t).(type) {
		case NomadScope:
			b.Nomad = []NomadScope{s}
		case ConsulScope:
			b.Consul = []ConsulScope{s}
		case NodeScope:
			b.Nodes = []NodeScope{s}
		}
		g.Bindings = []Binding{b}
		if services, barred := g.Select(w); len(g.Excess("a")) == 0 {
			must.SliceEmpty(t, barred)
			must.Eq(t, sel.Matches(w), len(services) == 1)
		}
	})
}

func TestCheckGrants(t *testing.T) {
	at := func(line int) Position { return Position{File: "a.hcl", Line: line, Column: 1} }
	d := &Domain{Name: "shop", Pos: at(1), Services: []Service{{Name: "web", Selectors: []Selector{
		{Kind: SelectNode, Zone: "aws1", Pos: at(2)},
		{Kind: SelectNomad, Namespace: "default", Job: "web", Pos: at(3)},
	}}}, Externals: []External{{Name: "users", Pos: at(4), Prefixes: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24"), netip.MustParsePrefix("10.0.0.0/8")}}}}
	base := &Graph{Domains: map[string]*Domain{"shop": d}}
	says := func(g, base *Graph) (list []string) {
		for _, p := range g.CheckGrants(base) {
			list = append(list, p.String())
		}
		return list
	}
	g := &Graph{Domains: base.Domains, Bindings: []Binding{{Domain: "shop", Pos: at(9),
		Nomad:   []NomadScope{{Namespace: "default", Jobs: []string{"w*"}}},
		Outside: []OutsideGrants{{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")}, Ports: []PortRange{{80, 80}, {8000, 8100}}}},
	}}}
	remedy := `; narrow it, or ask the operators of the fabric for a wider binding "shop"`
	want := []string{
		`a.hcl:2:1: a selector of service "web" of domain "shop", node(zone=aws1), selects beyond binding "shop" at a.hcl:9:1` + remedy,
		`a.hcl:4:1: prefix 10.0.0.0/8 of external "users" of domain "shop" lies beyond binding "shop" at a.hcl:9:1` + remedy,
	}
	must.Eq(t, want, says(g, &Graph{}))
	must.SliceEmpty(t, says(g, base)) // an operator may narrow a binding
	again := *d
	must.SliceEmpty(t, says(&Graph{Domains: map[string]*Domain{"shop": &again}, Bindings: g.Bindings}, base))
	changed := *d
	changed.Description = "x"
	must.Eq(t, want, says(&Graph{Domains: map[string]*Domain{"shop": &changed}, Bindings: g.Bindings}, base))
	must.Eq(t, []uint16{22, 8101}, g.RefusedPorts("shop", []uint16{22, 80, 8000, 8101}))
	must.SliceEmpty(t, base.RefusedPorts("shop", []uint16{22}))

	none := &Graph{Domains: base.Domains, Bindings: []Binding{{Domain: "other"}}}
	must.Eq(t, []string{`a.hcl:1:1: no binding covers domain "shop", so its services select nothing and its externals are nowhere; ask the operators of the fabric for a binding "shop"`}, says(none, &Graph{}))
	must.SliceEmpty(t, says(&Graph{Domains: base.Domains, Bindings: []Binding{{Domain: EveryDomain}}}, &Graph{}))

	taken := &Graph{Domains: base.Domains, Bindings: []Binding{{Domain: EveryDomain}, {Domain: "other", Nomad: []NomadScope{{Namespace: "default"}}}}}
	must.Eq(t, []string{`a.hcl:3:1: a selector of service "web" of domain "shop", nomad(namespace=default, job=web), selects only what is bound to domain "other"` + remedy}, says(taken, &Graph{}))
}

// Documents leave out the prefixes that a domain may not use.
func TestDocumentsKeepToBindings(t *testing.T) {
	in, out := netip.MustParsePrefix("10.99.0.0/24"), netip.MustParsePrefix("10.0.0.0/8")
	users, web := Ref{"shop", "users"}, Ref{"shop", "web"}
	g := &Graph{Domains: map[string]*Domain{"shop": {
		Name: "shop", Services: []Service{{Name: "web"}}, Externals: []External{{Name: "users", Prefixes: []netip.Prefix{in, out}}},
		Contracts: []Contract{{Name: "c", Originators: []Ref{users}, Responders: []Ref{web}, Rules: []Rule{{Protocol: TCP, Ports: []PortRange{{80, 80}}}}}},
	}}}
	peers := func(bindings ...Binding) []Peer {
		g.Bindings = bindings
		return Documents(g)[0].Responds[0].Peers
	}
	must.Eq(t, []Peer{{Name: users, Prefixes: []netip.Prefix{in, out}}}, peers())
	must.Eq(t, []Peer{{Name: users, Prefixes: []netip.Prefix{in}}}, peers(Binding{Domain: "shop", Outside: []OutsideGrants{{Prefixes: []netip.Prefix{in}}}}))
	must.Eq(t, []Peer{}, peers(Binding{Domain: "shop"}))
	must.Eq(t, []Peer{}, peers(Binding{Domain: "other"}))
}

// Whatever a domain declares, what its binding does not grant never appears in a document, and what
// lists reserved addresses comes from the binding alone.
func TestDocumentsHaveNothingThatNoBindingGrants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{rapid.SampledFrom([]byte{10, 169}).Draw(t, "first"), 254}), rapid.SampledFrom([]int{0, 8, 16, 24, 32}).Draw(t, "length")).Masked()
		})
		ports := rapid.Custom(func(t *rapid.T) PortRange {
			from := rapid.Uint16Range(1, 9).Draw(t, "from")
			return PortRange{from, from + rapid.Uint16Range(0, 3).Draw(t, "width")}
		})
		e := External{Name: "x"}
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			e.Node = true
		case 1:
			e.Consul = &ConsulInstances{Service: "pg", Within: rapid.SliceOfN(prefix, 1, 2).Draw(t, "within")}
			fallthrough
		default:
			e.Prefixes, e.Names = rapid.SliceOfN(prefix, 0, 2).Draw(t, "prefixes"), rapid.SliceOfN(drawNames, 0, 2).Draw(t, "names")
		}
		b := Binding{Domain: rapid.SampledFrom([]string{"d", EveryDomain, "other"}).Draw(t, "bound")}
		for range rapid.IntRange(0, 2).Draw(t, "blocks") {
			b.Outside = append(b.Outside, OutsideGrants{
				Prefixes: rapid.SliceOfN(prefix, 0, 2).Draw(t, "granted prefixes"), Names: rapid.SliceOfN(drawNames, 0, 2).Draw(t, "granted names"),
				NodePorts: rapid.SliceOfN(ports, 0, 2).Draw(t, "granted ports"),
			})
		}
		contract := Contract{Name: "c", Originators: []Ref{{"d", "web"}}, Responders: []Ref{{"d", "x"}}, Rules: []Rule{{Protocol: TCP, Ports: []PortRange{{1, 20}}}}}
		d := &Domain{Name: "d", Services: []Service{{Name: "web"}}, Externals: []External{e}, Contracts: []Contract{contract}}
		g := &Graph{Domains: map[string]*Domain{"d": d}, Bindings: []Binding{b}}
		doc := Documents(g)[0]
		peers := doc.Originates[0].Peers
		if b.Domain == "other" {
			must.SliceEmpty(t, peers)
			return
		}
		var all OutsideGrants
		for _, o := range b.Outside {
			all.Prefixes, all.Names, all.NodePorts = append(all.Prefixes, o.Prefixes...), append(all.Names, o.Names...), append(all.NodePorts, o.NodePorts...)
		}
		unlimited := func(listed int) bool { return b.Domain == EveryDomain && listed == 0 }
		granted := func(p netip.Prefix) bool {
			return slices.ContainsFunc(all.Prefixes, func(outer netip.Prefix) bool { return Covers(outer, p) })
		}
		for _, p := range peers {
			must.True(t, p.IsExternal())
			prefixes := p.Prefixes
			if p.Consul != nil {
				prefixes = slices.Concat(prefixes, p.Consul.Within)
			}
			for _, prefix := range prefixes {
				must.True(t, granted(prefix) || unlimited(len(all.Prefixes)))
			}
			for _, name := range p.Names {
				must.True(t, unlimited(len(all.Names)) || slices.ContainsFunc(all.Names, func(n string) bool {
					return n == name || strings.HasPrefix(n, "*.") && strings.HasSuffix(name, n[1:])
				}))
			}
			for _, l := range p.Listed {
				must.True(t, slices.Contains(all.Prefixes, l))
				must.True(t, l.IsSingleIP() || slices.ContainsFunc(Reserved(), func(r netip.Prefix) bool { return Covers(r, l) }))
			}
		}
		for _, grant := range EgressGrants(Identity{Service: Ref{"d", "web"}, Roles: doc.Roles()}, doc) {
			for port := uint16(1); e.Node && port < 25; port++ {
				open := slices.ContainsFunc(grant.Rules, func(r Rule) bool { return r.Matches(TCP, port) })
				in := unlimited(len(all.NodePorts)) || slices.ContainsFunc(all.NodePorts, func(r PortRange) bool { return r.Contains(port) })
				must.Eq(t, in && port <= 20, open, must.Sprint(port))
			}
		}
		// What is left out is named, and nothing else is.
		whole := len(peers) == 1 && len(peers[0].Prefixes) == len(e.Prefixes) && len(peers[0].Names) == len(e.Names) &&
			(e.Consul == nil || peers[0].Consul != nil && len(peers[0].Consul.Within) == len(e.Consul.Within)) &&
			(!e.Node || unlimited(len(all.NodePorts)) || len(without(contract.Rules, all.NodePorts)) == 0)
		empty := !e.Node && len(e.Prefixes)+len(e.Names) == 0 && e.Consul == nil
		must.Eq(t, whole || empty, len(g.Excess("d")) == 0)
	})
}

// In a graph with bindings, an owner can neither set nor drop a label by which a guardrail knows
// him.
func TestGuardrailLabelsAreTheOperators(t *testing.T) {
	graph := func(own, service Labels, b ...Binding) *Graph {
		return &Graph{
			Domains: map[string]*Domain{
				"dev":   {Name: "dev", Labels: own, Services: []Service{{Name: "web", Labels: service}}},
				"cards": {Name: "cards", Services: []Service{{Name: "db"}}, Accepts: []Accept{{Contract: Ref{"dev", "c"}}}},
			},
			Guardrails: []Guardrail{{Name: "g", Deny: []Denial{{From: Labels{"env": "dev"}, To: Labels{"pci": "yes"}}}}},
			Bindings:   b,
		}
	}
	dev := Binding{Domain: "dev", Labels: Labels{"env": "dev"}}
	cards := Binding{Domain: "cards", Services: []BoundService{{Name: "db", Labels: Labels{"pci": "yes"}}}}
	says := func(g *Graph) (list []string) {
		for _, p := range g.Check(reachNow) {
			list = append(list, p.Summary)
		}
		return list
	}
	must.SliceEmpty(t, says(graph(Labels{"env": "prod"}, nil)))
	must.SliceEmpty(t, says(graph(nil, Labels{"tier": "edge"}, dev, cards)))
	must.SliceEmpty(t, says(graph(Labels{"env": "dev"}, nil, dev)))
	must.Eq(t, []string{`label "env" of domain "dev" is "prod", but binding "dev" sets it to "dev"`}, says(graph(Labels{"env": "prod"}, nil, dev)))
	must.Eq(t, []string{`label "env" of service "web" is "prod", but binding "dev" sets it to "dev"`}, says(graph(nil, Labels{"env": "prod"}, dev)))
	must.Eq(t, []string{`label "pci" of service "web" is named by guardrail "g", so only a binding can set it`}, says(graph(nil, Labels{"pci": "no"}, dev)))
	must.Eq(t, []string{`label "env" of domain "dev" is named by guardrail "g", so only a binding can set it`}, says(graph(Labels{"env": "prod"}, nil, Binding{Domain: EveryDomain})))

	// The labels of bindings are what guardrails see.
	g := graph(nil, nil, dev, cards)
	must.Eq(t, Labels{"domain": "cards", "name": "db", "pci": "yes"}, g.LabelsOf(Ref{"cards", "db"}))
	contract := Contract{Name: "c", Originators: []Ref{{"dev", "web"}}, Responders: []Ref{{"cards", "db"}}, Rules: []Rule{{Protocol: TCP, Ports: []PortRange{{80, 80}}}}}
	g.Domains["dev"].Contracts = []Contract{contract}
	must.Len(t, 1, says(g))
	g.Bindings = g.Bindings[:1]
	must.SliceEmpty(t, says(g))
	g.Domains["dev"].Contracts = nil
	without := graph(nil, nil, dev)
	without.Domains["dev"].Contracts = []Contract{contract}
	bound := &Graph{Domains: without.Domains, Guardrails: without.Guardrails, Bindings: []Binding{dev, cards}}
	must.Len(t, 1, bound.CheckChange(without, reachNow)) // a binding that makes a contract a breach
}

func TestCompareBindings(t *testing.T) {
	d := &Domain{Name: "a", Services: []Service{{Name: "web", Selectors: []Selector{{Kind: SelectNomad, Namespace: "default", Job: "web"}}}}}
	graph := func(b ...Binding) *Graph { return &Graph{Domains: map[string]*Domain{"a": d}, Bindings: b} }
	job := Binding{Domain: "a", Nomad: []NomadScope{{Namespace: "default", Jobs: []string{"web"}}}}
	delta := Compare(graph(), graph(job), reachNow)
	must.Eq(t, []BindingChange{
		{Domain: "*", Change: Removed, Lost: []string{"may select every workload of Nomad", "may use every prefix", "may use every name", "may publish every port", "may reach every port of its node"}},
		{Domain: "a", Change: Added, Gained: []string{"may select nomad(namespace=default, jobs=web)"}},
	}, delta.Bindings)
	must.SliceEmpty(t, delta.Excess)
	moved := job
	moved.Pos, moved.Description = Position{File: "x", Line: 1, Column: 1}, "text"
	must.True(t, Compare(graph(job), graph(moved), reachNow).Empty())
	wider := job
	wider.Outside, wider.Nomad = []OutsideGrants{{Ports: []PortRange{{80, 90}}}}, nil
	delta = Compare(graph(job), graph(wider), reachNow)
	must.Eq(t, []BindingChange{{Domain: "a", Change: Altered, Gained: []string{"may publish port 80-90"}, Lost: []string{"may select nomad(namespace=default, jobs=web)"}}}, delta.Bindings)
	must.Eq(t, []Excess{{Domain: "a", Name: "web", Why: `a selector of service "web" of domain "a", nomad(namespace=default, job=web), selects beyond binding "a"`}}, delta.Excess)
	attached := job
	attached.Attach = []AttachScope{{Services: []string{"db", "web"}, Node: "w*", NodeClass: "data"}}
	delta = Compare(graph(job), graph(attached), reachNow)
	must.Eq(t, []string{"may select attach(services=db+web, node=w*, node_class=data)"}, delta.Bindings[0].Gained)
	must.SliceEmpty(t, delta.Bindings[0].Lost)
	must.SliceEmpty(t, delta.Excess)
	outside := job
	outside.Outside = []OutsideGrants{{Prefixes: []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32")}, Names: []string{"*.example.com"}, NodePorts: []PortRange{{8125, 8125}}}}
	delta = Compare(graph(job), graph(outside), reachNow)
	must.Eq(t, []string{"may use prefix 169.254.169.254/32", "may use name *.example.com", "may reach port 8125 of its node"}, delta.Bindings[0].Gained)
	must.True(t, slices.ContainsFunc(Compare(graph(job), graph(), reachNow).Bindings, func(c BindingChange) bool { return c.Domain == "*" && c.Change == Added }))
}
