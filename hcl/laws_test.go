// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
)

var netipPrefix = []any{netip.Prefix{}}

var genName = rapid.StringMatching(`[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,8})?`).Filter(func(s string) bool {
	return fabric.CheckName(s) == nil && s != fabric.ReservedDomain && s != "elsewhere"
})

// Strings in HCL are Unicode in normal form C.
var (
	genNormal = rapid.Map(rapid.String(), func(s string) string { return cty.StringVal(s).AsString() })
	genText   = genNormal.Filter(func(s string) bool { return s != "" })
	genTexts  = rapid.SliceOfNDistinct(genText, 0, 2, rapid.ID)
	genMap    = rapid.MapOfN(genText.Filter(func(s string) bool { return s != "domain" && s != "name" }), genText, 0, 2)
	genLabels = rapid.Map(genMap, func(m map[string]string) fabric.Labels { return m })
	genMode   = rapid.SampledFrom([]fabric.Mode{fabric.ModeEnforce, fabric.ModeAudit})
	genRange  = rapid.Custom(func(t *rapid.T) fabric.PortRange {
		from := rapid.Uint16Min(1).Draw(t, "from")
		return fabric.PortRange{From: from, To: rapid.SampledFrom([]uint16{from, 65535}).Draw(t, "to")}
	})
	genType = rapid.Custom(func(t *rapid.T) fabric.PortRange {
		from := rapid.Uint16Max(255).Draw(t, "from")
		return fabric.PortRange{From: from, To: rapid.SampledFrom([]uint16{from, 255}).Draw(t, "to")}
	})
	genPrefix = rapid.Custom(func(t *rapid.T) netip.Prefix {
		if rapid.Bool().Draw(t, "IPv6") {
			addr := [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address"))
			addr[0] = 0x20 // not an IPv4 address
			return netip.PrefixFrom(netip.AddrFrom16(addr), rapid.IntRange(8, 128).Draw(t, "length")).Masked()
		}
		addr := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")))
		return netip.PrefixFrom(addr, rapid.IntRange(0, 32).Draw(t, "length")).Masked()
	})
)

// genOutsideName draws what an external can be named: a DNS name, or all names below one.
var genOutsideName = rapid.StringMatching(`(\*\.)?[a-z0-9_]{1,9}(-[a-z0-9]{1,3})?\.(example\.com|xn--bcher-kva\.example)`)

// genExternal draws the addresses of an external.
func genExternal(t *rapid.T) (e fabric.External) {
	kinds := rapid.IntRange(0, 7).Draw(t, "kinds")
	if kinds == 0 {
		return fabric.External{Node: true}
	}
	if kinds&1 > 0 {
		e.Prefixes = rapid.SliceOfNDistinct(genPrefix, 1, 3, rapid.ID).Draw(t, "prefixes")
	}
	if kinds&2 > 0 {
		e.Names = rapid.SliceOfNDistinct(genOutsideName, 1, 3, rapid.ID).Draw(t, "names")
	}
	if kinds&4 > 0 {
		limited := genPrefix.Filter(func(p netip.Prefix) bool { return p.Bits() > 0 })
		e.Consul = &fabric.ConsulInstances{
			Service:    rapid.StringMatching(`[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?`).Filter(func(s string) bool { return !strings.HasPrefix(s, "sif-") }).Draw(t, "service"),
			Datacenter: rapid.SampledFrom([]string{"", "dc1", "eu_west-2"}).Draw(t, "datacenter"),
			Within:     rapid.SliceOfNDistinct(limited, 1, 2, rapid.ID).Draw(t, "within"),
		}
	}
	e.Exit = rapid.SampledFrom([]fabric.Exit{fabric.ExitZone, fabric.ExitNode}).Draw(t, "exit")
	return e
}

// genRulesTo draws the rules of a contract with these externals among its responders.
func genRulesTo(t *rapid.T, externals []fabric.External) []fabric.Rule {
	rules := genRules(t, 1)
	for i := range rules {
		for _, e := range externals {
			if fault, _ := e.RuleFault(rules[i]); fault != "" {
				rules[i].Protocol, rules[i].Ports = fabric.UDP, []fabric.PortRange{{From: 8125, To: 8125}}
			}
		}
	}
	return rules
}

func genRules(t *rapid.T, least int) []fabric.Rule {
	var rules []fabric.Rule
	count := rapid.IntRange(least, 3).Draw(t, "rules")
	names := rapid.SliceOfNDistinct(genName, count, count, rapid.ID).Draw(t, "names")
	for i := range count {
		r := fabric.Rule{Protocol: rapid.SampledFrom(fabric.Protocols).Draw(t, "protocol")}
		if rapid.Bool().Draw(t, "named") {
			r.Name = names[i]
		}
		ports := genRange
		if !r.Protocol.HasPorts() {
			ports = genType
		}
		r.Ports = rapid.SliceOfNDistinct(ports, 1, 3, rapid.ID).Draw(t, "ports")
		rules = append(rules, r)
	}
	return rules
}

func genSelector(t *rapid.T) fabric.Selector {
	s := fabric.Selector{
		Kind:      rapid.SampledFrom([]fabric.SelectorKind{fabric.SelectNomad, fabric.SelectConsul, fabric.SelectNode}).Draw(t, "kind"),
		Namespace: rapid.SampledFrom([]string{"default", "prod"}).Draw(t, "namespace"),
	}
	switch s.Kind {
	case fabric.SelectNomad:
		s.Job, s.Group, s.Region = genText.Draw(t, "job"), genNormal.Draw(t, "group"), genNormal.Draw(t, "region")
		s.NodeClass, s.NodePool = genNormal.Draw(t, "class"), genNormal.Draw(t, "pool")
		s.Datacenter = genNormal.Draw(t, "datacenter")
	case fabric.SelectConsul:
		s.Service, s.Tags, s.Meta = genText.Draw(t, "service"), genTexts.Draw(t, "tags"), genMap.Draw(t, "meta")
		s.Datacenter = genNormal.Draw(t, "datacenter")
	case fabric.SelectNode:
		s.Namespace, s.Zone, s.Node = "", genText.Draw(t, "zone"), genNormal.Draw(t, "node")
		s.NodeClass, s.NodePool = genNormal.Draw(t, "class"), genNormal.Draw(t, "pool")
	}
	return s
}

func genGraph(t *rapid.T) *fabric.Graph {
	g := &fabric.Graph{Domains: map[string]*fabric.Domain{}}
	domains := rapid.SliceOfNDistinct(genName, 1, 3, rapid.ID).Draw(t, "domains")
	services := []fabric.Ref{{Domain: "elsewhere", Name: "web"}}
	for _, name := range domains {
		d := genNodes(t, name)
		g.Domains[name] = d
		for _, s := range d.Services {
			services = append(services, fabric.Ref{Domain: name, Name: s.Name})
		}
	}
	for _, name := range domains {
		genContracts(t, g.Domains[name], services)
	}
	for _, name := range rapid.SliceOfNDistinct(genName, 0, 2, rapid.ID).Draw(t, "guardrails") {
		r := fabric.Guardrail{Name: name, Description: genNormal.Draw(t, "description")}
		for range rapid.IntRange(1, 2).Draw(t, "denials") {
			from := genLabels.Draw(t, "from")
			from["domain"] = "no-graph-has-it" // so that no contract breaches it
			r.Deny = append(r.Deny, fabric.Denial{From: from, To: genLabels.Draw(t, "to"), Rules: genRules(t, 0)})
		}
		g.Guardrails = append(g.Guardrails, r)
	}
	for _, name := range rapid.SliceOfNDistinct(genName, 0, 2, rapid.ID).Draw(t, "bindings") {
		if g.Domains[name] == nil { // a domain is seldom within a random binding
			g.Bindings = append(g.Bindings, genBinding(t, name))
		}
	}
	if rapid.Bool().Draw(t, "binding of all") {
		g.Bindings = append(g.Bindings, genBinding(t, fabric.EveryDomain))
	}
	for _, name := range rapid.SliceOfNDistinct(genName, 0, 3, rapid.ID).Draw(t, "links") {
		g.Links = append(g.Links, genLink(t, name))
	}
	if len(g.Bindings) > 0 {
		g.Guardrails = nil // their labels are drawn too
		for i := range g.Bindings {
			g.Bindings[i].Labels = nil
		}
	}
	return g
}

func genLink(t *rapid.T, name string) fabric.LinkRule {
	end := rapid.Custom(func(t *rapid.T) fabric.LinkEnd {
		e := fabric.LinkEnd{Zone: genName.Draw(t, "zone")}
		if rapid.Bool().Draw(t, "single") {
			e.Node = genName.Draw(t, "node")
		}
		return e
	})
	every := fabric.LinkEnd{Zone: fabric.EveryZone}
	ends := rapid.SliceOfNDistinct(end, 2, 2, func(e fabric.LinkEnd) string { return e.Zone }).Draw(t, "between")
	for i := range ends {
		if rapid.Bool().Draw(t, "every zone") {
			ends[i] = every
		}
	}
	return fabric.LinkRule{
		Name: name, Description: genNormal.Draw(t, "description"), Between: [2]fabric.LinkEnd(ends),
		Labels: genTexts.Draw(t, "labels"), Cost: rapid.Uint16().Draw(t, "cost"),
		Endpoints: rapid.SampledFrom([]string{"", "private", "ipv6"}).Draw(t, "endpoints"),
		MTU:       rapid.SampledFrom([]int{0, fabric.MinLinkMTU, 1400, fabric.MaxLinkMTU}).Draw(t, "mtu"),
		Disabled:  rapid.Bool().Draw(t, "disabled"),
	}
}

func genBinding(t *rapid.T, domain string) fabric.Binding {
	b := fabric.Binding{Domain: domain, Description: genNormal.Draw(t, "description"), Labels: genLabels.Draw(t, "labels")}
	namespace := rapid.SampledFrom([]string{"default", "prod-*"})
	some := func(what string) bool { return rapid.Bool().Draw(t, what) }
	if domain != fabric.EveryDomain && some("service") {
		b.Services = []fabric.BoundService{{Name: genName.Draw(t, "service"), Labels: fabric.Labels{"pci": "yes"}}}
	}
	if some("nomad") {
		b.Nomad = []fabric.NomadScope{{Namespace: namespace.Draw(t, "namespace"), Jobs: genTexts.Draw(t, "jobs")}}
	}
	if some("consul") {
		b.Consul = []fabric.ConsulScope{{Namespace: namespace.Draw(t, "namespace"), Services: []string{genText.Draw(t, "services")}}}
	}
	if some("node") {
		b.Nodes = []fabric.NodeScope{{Zone: genText.Draw(t, "zone"), Node: genNormal.Draw(t, "node"), NodeClass: genNormal.Draw(t, "class"), NodePool: genNormal.Draw(t, "pool")}}
	}
	if domain != fabric.EveryDomain && some("attach") {
		a := fabric.AttachScope{Services: []string{genText.Draw(t, "services")}, Zone: genNormal.Draw(t, "zone")}
		named := genText.Filter(func(s string) bool { return strings.Trim(s, "*") != "" })
		if a.Node = named.Draw(t, "node"); some("class") {
			a.Node, a.NodeClass = rapid.SampledFrom([]string{"", "*"}).Draw(t, "any node"), named.Draw(t, "class")
		}
		b.Attach = []fabric.AttachScope{a}
	}
	if some("outside") {
		b.Outside = []fabric.OutsideGrants{{
			Prefixes: rapid.SliceOfNDistinct(genPrefix, 0, 2, rapid.ID).Draw(t, "prefixes"), Ports: rapid.SliceOfNDistinct(genRange, 1, 2, rapid.ID).Draw(t, "ports"),
			Names:     rapid.SliceOfNDistinct(rapid.OneOf(genOutsideName, rapid.SampledFrom([]string{"*", "*.com"})), 0, 2, rapid.ID).Draw(t, "names"),
			NodePorts: rapid.SliceOfNDistinct(genRange.Filter(func(r fabric.PortRange) bool { return r.From > 53 }), 0, 2, rapid.ID).Draw(t, "node ports"),
		}}
	}
	return b
}

func genNodes(t *rapid.T, domain string) *fabric.Domain {
	d := &fabric.Domain{Name: domain, Description: genNormal.Draw(t, "description"), Labels: genLabels.Draw(t, "labels"), Mode: genMode.Draw(t, "mode"), Silent: rapid.Bool().Draw(t, "silent")}
	for i, name := range rapid.SliceOfNDistinct(genName, 1, 6, rapid.ID).Draw(t, "nodes") {
		description, labels := genNormal.Draw(t, "description"), genLabels.Draw(t, "labels")
		if i > 0 && rapid.Bool().Draw(t, "external") {
			e := genExternal(t)
			e.Name, e.Description, e.Labels = name, description, labels
			d.Externals = append(d.Externals, e)
			continue
		}
		s := fabric.Service{Name: name, Description: description, Labels: labels}
		for range rapid.IntRange(0, 3).Draw(t, "selectors") {
			s.Selectors = append(s.Selectors, genSelector(t))
		}
		d.Services = append(d.Services, s)
	}
	return d
}

// genContracts adds contracts to a domain, and accept blocks for contracts of another.
func genContracts(t *rapid.T, d *fabric.Domain, services []fabric.Ref) {
	var own, externals, originators []fabric.Ref
	for _, s := range d.Services {
		own = append(own, fabric.Ref{Domain: d.Name, Name: s.Name})
	}
	for _, e := range d.Externals {
		r := fabric.Ref{Domain: d.Name, Name: e.Name}
		externals = append(externals, r)
		if fault, _ := e.OriginatorFault(); fault == "" {
			originators = append(originators, r)
		}
	}
	some := func(label string, least int, refs []fabric.Ref) []fabric.Ref {
		return rapid.SliceOfNDistinct(rapid.SampledFrom(refs), least, len(refs), rapid.ID).Draw(t, label)
	}
	for _, name := range rapid.SliceOfNDistinct(genName, 0, 4, rapid.ID).Draw(t, "contracts") {
		c := fabric.Contract{Name: name, Description: genNormal.Draw(t, "description"), Labels: genLabels.Draw(t, "labels"),
			Disabled: rapid.Bool().Draw(t, "disabled"), Mode: genMode.Draw(t, "mode")}
		if rapid.Bool().Draw(t, "temporary") {
			c.Expires = time.Unix(rapid.Int64Range(0, 1<<32).Draw(t, "expires"), rapid.Int64Range(0, 1e9-1).Draw(t, "nanoseconds")).UTC()
		}
		c.Originators = some("own", 1, own)
		if rapid.Bool().Draw(t, "swap") {
			c.Responders = c.Originators
			c.Originators = some("any", 1, append(slices.Clone(services), originators...))
		} else {
			c.Responders = some("any", 1, append(slices.Clone(services), externals...))
		}
		var outside []fabric.External
		for _, e := range d.Externals {
			if slices.Contains(c.Responders, fabric.Ref{Domain: d.Name, Name: e.Name}) {
				outside = append(outside, e)
			}
		}
		c.Rules = genRulesTo(t, outside)
		c.Path.Require, c.Path.Prefer = genTexts.Draw(t, "require"), genTexts.Draw(t, "prefer")
		c.Path.Avoid = slices.DeleteFunc(genTexts.Draw(t, "avoid"), func(label string) bool { return slices.Contains(c.Path.Require, label) })
		if len(c.Path.Avoid) == 0 {
			c.Path.Avoid = nil
		}
		d.Contracts = append(d.Contracts, c)
	}
	for _, name := range rapid.SliceOfNDistinct(genName, 0, 2, rapid.ID).Draw(t, "accepts") {
		a := fabric.Accept{Contract: fabric.Ref{Domain: "elsewhere", Name: name}}
		for _, r := range some("services", 0, own) {
			a.Services = append(a.Services, r.Name)
		}
		d.Accepts = append(d.Accepts, a)
	}
}

func TestDecodeInvertsEncode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := genGraph(t)
		src := EncodeGraph(g)
		back, diags := DecodeGraph(at, Source{Name: "g.sif.hcl", Data: src})
		if diags.HasErrors() {
			t.Fatalf("%s\n%s", diags.Error(), src)
		}
		if diff := cmp.Diff(g, back, ignorePositions); diff != "" {
			t.Fatalf("(-encoded +decoded)\n%s\n%s", diff, src)
		}
		formatted, diags := Format(Source{Name: "g.sif.hcl", Data: src})
		if diags.HasErrors() || !bytes.Equal(formatted, src) {
			t.Fatalf("encoded graphs are not in canonical layout:\n%s\nbut:\n%s", src, formatted)
		}
	})
}

// spread cuts a list into n parts at random places.
func spread[T any](t *rapid.T, list []T, n int) [][]T {
	cuts := rapid.SliceOfN(rapid.IntRange(0, len(list)), n-1, n-1).Draw(t, "cuts")
	slices.Sort(cuts)
	var parts [][]T
	from := 0
	for _, to := range append(cuts, len(list)) {
		parts = append(parts, list[from:to])
		from = to
	}
	return parts
}

// A graph means the same however it is spread over files.
func TestSeveralFilesAreOneGraph(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := genGraph(t)
		n := rapid.IntRange(1, 4).Draw(t, "files")
		files := make([]*fabric.Graph, n)
		guardrails, bindings, links := spread(t, g.Guardrails, n), spread(t, g.Bindings, n), spread(t, g.Links, n)
		for i := range files {
			files[i] = &fabric.Graph{Domains: map[string]*fabric.Domain{}, Guardrails: guardrails[i], Bindings: bindings[i], Links: links[i]}
		}
		for _, name := range slices.Sorted(maps.Keys(g.Domains)) {
			d := g.Domains[name]
			services, externals, contracts, accepts := spread(t, d.Services, n), spread(t, d.Externals, n), spread(t, d.Contracts, n), spread(t, d.Accepts, n)
			for i := range files {
				files[i].Domains[name] = &fabric.Domain{Name: name, Services: services[i], Externals: externals[i], Contracts: contracts[i], Accepts: accepts[i]}
			}
			first := files[rapid.IntRange(0, n-1).Draw(t, "arguments")].Domains[name]
			first.Description, first.Labels, first.Mode, first.Silent = d.Description, d.Labels, d.Mode, d.Silent
		}
		var sources []Source
		for i, f := range files {
			sources = append(sources, Source{Name: fmt.Sprintf("%d.sif.hcl", i), Data: EncodeGraph(f)})
		}
		back, diags := DecodeGraph(at, sources...)
		if diags.HasErrors() {
			t.Fatal(diags.Error())
		}
		if diff := cmp.Diff(g, back, ignorePositions); diff != "" {
			t.Fatalf("(-one +several)\n%s", diff)
		}
	})
}

var genOddName = rapid.SampledFrom([]string{"", "a.example.com", "a.example.com", "*.example.com", "*", "*.com", "com", "A.example.com", "a.example.com.", "http://a.example.com", "1.2.3.4"})

// genOddExternal draws an external that is often invalid.
func genOddExternal(t *rapid.T) fabric.External {
	prefixes := rapid.SliceOfN(rapid.SampledFrom([]netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.0.0.1/8")}), 0, 2)
	e := fabric.External{
		Name: "x-x-x", Node: rapid.IntRange(0, 2).Draw(t, "node") == 0, Prefixes: prefixes.Draw(t, "prefixes"), Names: rapid.SliceOfN(genOddName, 0, 2).Draw(t, "names"),
		Exit: rapid.SampledFrom([]fabric.Exit{fabric.ExitZone, fabric.ExitZone, fabric.ExitNode, "zone"}).Draw(t, "exit"),
	}
	if rapid.Bool().Draw(t, "consul") {
		e.Consul = &fabric.ConsulInstances{
			Service:    rapid.SampledFrom([]string{"", "pg", "pg", "sif-a--b", "pg*", "-"}).Draw(t, "service"),
			Datacenter: rapid.SampledFrom([]string{"", "dc1", "*"}).Draw(t, "datacenter"),
			Within:     prefixes.Draw(t, "within"),
		}
	}
	return e
}

// A graph that comes by the API is checked as strictly as its text: fabric finds a problem with
// labels or rules if and only if the decoder does.
func TestCheckIsAsStrictAsTheLanguage(t *testing.T) {
	genLabel := rapid.MapOfN(rapid.SampledFrom([]string{"", "a", "domain", "name"}), rapid.SampledFrom([]string{"", "b", "c"}), 1, 2)
	genRule := rapid.Custom(func(t *rapid.T) fabric.Rule {
		return fabric.Rule{
			Name:     rapid.SampledFrom([]string{"", "a", "a", "b", "A", "a--b"}).Draw(t, "name"),
			Protocol: rapid.SampledFrom([]fabric.Protocol{fabric.TCP, fabric.ICMP}).Draw(t, "protocol"),
			Ports:    rapid.SliceOfNDistinct(rapid.SampledFrom([]fabric.PortRange{{From: 0, To: 0}, {From: 1, To: 255}, {From: 1, To: 256}}), 0, 1, rapid.ID).Draw(t, "ports"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		g := genGraph(t)
		d := g.Domains[rapid.SampledFrom(slices.Sorted(maps.Keys(g.Domains))).Draw(t, "domain")]
		rules := rapid.SliceOfN(genRule, 1, 2).Draw(t, "rules")
		labels := genLabel.Draw(t, "labels")
		switch rapid.IntRange(0, 10).Draw(t, "where") {
		case 9:
			d.Externals = append(d.Externals, genOddExternal(t))
		case 10:
			web, x := []fabric.Ref{{Domain: d.Name, Name: d.Services[0].Name}}, []fabric.Ref{{Domain: d.Name, Name: "x-x-x"}}
			e := genExternal(t)
			e.Name = "x-x-x"
			d.Externals = append(d.Externals, e)
			c := fabric.Contract{Name: "x-x-x", Originators: web, Responders: x, Rules: genRules(t, 1)}
			if rapid.Bool().Draw(t, "originates") {
				c.Originators, c.Responders = x, web
			}
			d.Contracts = append(d.Contracts, c)
		case 0:
			d.Labels = labels
		case 1:
			d.Services[0].Labels = labels
		case 2:
			d.Externals = append(d.Externals, fabric.External{Name: "x-x-x", Labels: labels, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}})
		case 3, 4:
			web := []fabric.Ref{{Domain: d.Name, Name: d.Services[0].Name}}
			d.Contracts = append(d.Contracts, fabric.Contract{Name: "x-x-x", Labels: labels, Originators: web, Responders: web, Rules: rules})
		case 5:
			g.Guardrails = append(g.Guardrails, fabric.Guardrail{Name: "x-x-x", Deny: []fabric.Denial{{From: fabric.Labels{"domain": "no-graph-has-it"}, To: labels, Rules: rules}}})
		case 6:
			g.Guardrails = append(g.Guardrails, fabric.Guardrail{Name: "x-x-x", Deny: []fabric.Denial{{}}})
		case 7:
			g.Bindings = append(g.Bindings, fabric.Binding{Domain: rapid.SampledFrom([]string{"x-x-x", "", "A", "node"}).Draw(t, "bound"), Labels: labels})
		case 8:
			name := rapid.SampledFrom([]string{"", "a", "a"})
			list := rapid.SliceOfN(name, 0, 2)
			b := fabric.Binding{Domain: "x-x-x"}
			for range rapid.IntRange(1, 2).Draw(t, "blocks") {
				switch rapid.IntRange(0, 5).Draw(t, "block") {
				case 5:
					nodes := rapid.SampledFrom([]string{"", "a", "*", "**", "a*"})
					b.Attach = append(b.Attach, fabric.AttachScope{Services: list.Draw(t, "services"), Zone: name.Draw(t, "zone"), Node: nodes.Draw(t, "node"), NodeClass: nodes.Draw(t, "class")})
					b.Domain = rapid.SampledFrom([]string{"x-x-x", "x-x-x", fabric.EveryDomain}).Draw(t, "bound")
				case 0:
					b.Services = append(b.Services, fabric.BoundService{Name: name.Draw(t, "service"), Labels: labels})
				case 1:
					b.Nomad = append(b.Nomad, fabric.NomadScope{Namespace: "default", Jobs: list.Draw(t, "jobs")})
				case 2:
					b.Consul = append(b.Consul, fabric.ConsulScope{Namespace: "default", Services: list.Draw(t, "services")})
				case 3:
					b.Nodes = append(b.Nodes, fabric.NodeScope{Zone: name.Draw(t, "zone")})
				case 4:
					p := rapid.SampledFrom([]fabric.PortRange{{From: 1, To: 1}, {From: 0, To: 1}, {From: 53, To: 54}})
					b.Outside = append(b.Outside, fabric.OutsideGrants{
						Ports: rapid.SliceOfN(p, 0, 2).Draw(t, "ports"), NodePorts: rapid.SliceOfN(p, 0, 1).Draw(t, "node ports"),
						Names: rapid.SliceOfN(genOddName, 0, 2).Draw(t, "names"),
					})
				}
			}
			g.Bindings = append(g.Bindings, b)
		}
		problems := g.Check(at.Now)
		_, diags := DecodeGraph(at, Source{Name: "g.sif.hcl", Data: EncodeGraph(g)})
		if (len(problems) > 0) != diags.HasErrors() {
			t.Fatalf("fabric: %v\ndecoder: %v\n%s", problems, diags, EncodeGraph(g))
		}
	})
}

// unformat changes the layout of HCL without changing its meaning.
func unformat(t *rapid.T, src []byte) []byte {
	var b strings.Builder
	for _, line := range strings.Split(string(src), "\n") {
		line = strings.TrimSpace(line)
		b.WriteString(strings.Repeat(" ", rapid.IntRange(0, 5).Draw(t, "indent")))
		b.WriteString(line)
		if rapid.IntRange(0, 4).Draw(t, "comment") == 0 {
			b.WriteString(fmt.Sprintf(" # %d", rapid.Uint8().Draw(t, "text")))
		}
		b.WriteString(strings.Repeat("\n", rapid.IntRange(1, 3).Draw(t, "newlines")))
	}
	return []byte(b.String())
}

// Layout and comments do not change what a graph means.
func TestLayoutMeansNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := genGraph(t)
		src := unformat(t, EncodeGraph(g))
		if rapid.Bool().Draw(t, "CRLF") {
			src = bytes.ReplaceAll(src, []byte("\n"), []byte("\r\n"))
		}
		back, diags := DecodeGraph(at, Source{Name: "g.sif.hcl", Data: src})
		if diags.HasErrors() {
			t.Fatalf("%s\n%s", diags.Error(), src)
		}
		if diff := cmp.Diff(g, back, ignorePositions); diff != "" {
			t.Fatalf("(-tidy +untidy)\n%s\n%s", diff, src)
		}
	})
}

func TestFormatIsIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		src := unformat(t, EncodeGraph(genGraph(t)))
		once, diags := Format(Source{Name: "g.sif.hcl", Data: src})
		if diags.HasErrors() {
			t.Fatal(diags.Error())
		}
		twice, _ := Format(Source{Name: "g.sif.hcl", Data: once})
		if !bytes.Equal(once, twice) {
			t.Fatalf("once:\n%s\ntwice:\n%s", once, twice)
		}
		if a, b := bytes.Count(src, []byte("#")), bytes.Count(once, []byte("#")); a != b {
			t.Fatalf("%d of %d comments are left:\n%s", b, a, once)
		}
	})
}

func FuzzDecodeGraph(f *testing.F) {
	for _, pattern := range []string{"testdata/valid/*.sif.*", "testdata/invalid/*.sif.*"} {
		for _, s := range seeds(f, pattern) {
			f.Add(s.Data, strings.HasSuffix(s.Name, ".json"))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, json bool) {
		name := "g.sif.hcl"
		if json {
			name = "g.sif.json"
		}
		g, diags := DecodeGraph(at, Source{Name: name, Data: data})
		_ = diags.WriteText(&bytes.Buffer{})
		if g == nil {
			if !diags.HasErrors() {
				t.Fatal("no graph and no error")
			}
			return
		}
		if problems := g.Check(at.Now); len(problems) > 0 {
			t.Fatalf("decoded, but: %v", problems)
		}
		back, diags := DecodeGraph(at, Source{Name: "g.sif.hcl", Data: EncodeGraph(g)})
		if diags.HasErrors() {
			t.Fatalf("%s\n%s", diags.Error(), EncodeGraph(g))
		}
		if diff := cmp.Diff(g, back, ignorePositions); diff != "" {
			t.Fatal(diff)
		}
		if !json {
			Format(Source{Name: name, Data: data})
		}
	})
}

// FuzzVariables sets the variables of a graph to values of all kinds.
func FuzzVariables(f *testing.F) {
	f.Fuzz(func(t *testing.T, setting string, file []byte, json bool) {
		o := Options{Now: at.Now, Settings: []string{setting}, Environment: []string{EnvironmentPrefix + setting}, Files: []Source{{Name: "v.hcl", Data: file}}}
		if json {
			o.Files[0].Name = "v.json"
		}
		g, diags := DecodeGraph(o, Source{Name: "g.sif.hcl", Data: []byte(withVariables)})
		_ = diags.WriteText(&bytes.Buffer{})
		if (g == nil) != diags.HasErrors() {
			t.Fatalf("graph %v with %v", g, diags)
		}
		for _, d := range diags {
			if d.Pos.Line == 0 || d.Detail == "" {
				t.Fatalf("no place or no remedy: %v", d)
			}
		}
	})
}

func FuzzExtractConnectivity(f *testing.F) {
	for _, pattern := range []string{"testdata/stanza/*.nomad.hcl", "testdata/invalid/*.nomad.hcl"} {
		for _, s := range seeds(f, pattern) {
			f.Add(s.Data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		job, diags := ExtractConnectivity(Source{Name: "j.nomad.hcl", Data: data})
		_ = diags.WriteText(&bytes.Buffer{})
		if job == nil {
			return
		}
		if len(job.Stanzas) == 0 && !bytes.Equal(job.Plain, data) {
			t.Fatal("a job without stanzas was changed")
		}
		if _, diags := hclsyntax.ParseConfig(job.Plain, "plain.hcl", hcl.InitialPos); diags.HasErrors() {
			t.Fatalf("the plain job does not parse: %s\n%s", diags.Error(), job.Plain)
		}
		again, diags := ExtractConnectivity(Source{Name: "plain.hcl", Data: job.Plain})
		if diags.HasErrors() || len(again.Stanzas) > 0 {
			t.Fatalf("the plain job has stanzas: %v\n%s", diags, job.Plain)
		}
		for line := range bytes.Count(job.Plain, []byte("\n")) + 2 {
			job.Line(line)
		}
	})
}
