// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"

	"github.com/sif-project/sif/fabric"
)

// EncodeGraph encodes a graph as HCL: domains ordered by name, then guardrails, bindings and
// links. Decoding the result gives the same graph, except for positions.
func EncodeGraph(g *fabric.Graph) []byte { return EncodeCommented(g, Comments{}) }

// Comments are comments on blocks, a line each. Services and contracts are named with their domain.
type Comments struct {
	Domains, Bindings   map[string][]string
	Services, Contracts map[fabric.Ref][]string
}

// EncodeCommented is EncodeGraph with comments before blocks.
func EncodeCommented(g *fabric.Graph, comments Comments) []byte {
	f := hclwrite.NewEmptyFile()
	e := encoder{body: f.Body()}
	for _, name := range slices.Sorted(maps.Keys(g.Domains)) {
		encodeDomain(e.block("domain", name, comments.Domains[name]...), g.Domains[name], comments)
	}
	for _, r := range g.Guardrails {
		encodeGuardrail(e.block("guardrail", r.Name), r)
	}
	for _, bound := range g.Bindings {
		encodeBinding(e.block("binding", bound.Domain, comments.Bindings[bound.Domain]...), bound)
	}
	for _, l := range g.Links {
		encodeLink(e.block("link", l.Name), l)
	}
	return hclwrite.Format(f.Bytes())
}

// encoder writes blocks with blank lines between them.
type encoder struct {
	body *hclwrite.Body
	some bool // the next block needs a blank line before it
}

func (e *encoder) block(kind, label string, comment ...string) *hclwrite.Body {
	if e.some {
		e.body.AppendNewline()
	}
	e.some = true
	for _, line := range comment {
		// A comment ends with its line, whatever is in it.
		line = strings.Join(strings.FieldsFunc(line, unicode.IsControl), " ")
		e.body.AppendUnstructuredTokens(hclwrite.Tokens{{Type: hclsyntax.TokenComment, Bytes: []byte("# " + line + "\n")}})
	}
	return e.body.AppendNewBlock(kind, []string{label}).Body()
}

func encodeDomain(b *hclwrite.Body, d *fabric.Domain, comments Comments) {
	setString(b, "description", d.Description)
	setMap(b, "labels", d.Labels)
	setString(b, "mode", string(d.Mode))
	if d.Silent {
		b.SetAttributeValue("reject", cty.False)
	}
	e := encoder{body: b, some: len(b.Attributes()) > 0}
	for _, s := range d.Services {
		b := e.block("service", s.Name, comments.Services[fabric.Ref{Domain: d.Name, Name: s.Name}]...)
		setString(b, "description", s.Description)
		setMap(b, "labels", s.Labels)
		for _, sel := range s.Selectors {
			encodeSelector(b.AppendNewBlock("selector", []string{string(sel.Kind)}).Body(), sel)
		}
	}
	for _, x := range d.Externals {
		b := e.block("external", x.Name)
		setString(b, "description", x.Description)
		setMap(b, "labels", x.Labels)
		encodeExternal(b, x)
	}
	for _, c := range d.Contracts {
		encodeContract(e.block("contract", c.Name, comments.Contracts[fabric.Ref{Domain: d.Name, Name: c.Name}]...), d.Name, c)
	}
	for _, a := range d.Accepts {
		setStrings(e.block("accept", a.Contract.String()), "services", a.Services)
	}
}

func encodeExternal(b *hclwrite.Body, x fabric.External) {
	setStrings(b, "prefixes", prefixList(x.Prefixes))
	setStrings(b, "names", x.Names)
	setString(b, "exit", string(x.Exit))
	if c := x.Consul; c != nil {
		cb := b.AppendNewBlock("consul", nil).Body()
		setString(cb, "service", c.Service)
		setString(cb, "datacenter", c.Datacenter)
		setList(cb, "within", prefixList(c.Within))
	}
	if x.Node {
		b.AppendNewBlock("node", nil)
	}
}

func encodeSelector(b *hclwrite.Body, s fabric.Selector) {
	setNamespace(b, s.Namespace)
	setString(b, "region", s.Region)
	setString(b, "job", s.Job)
	setString(b, "group", s.Group)
	setString(b, "service", s.Service)
	setStrings(b, "tags", s.Tags)
	setMap(b, "meta", s.Meta)
	setString(b, "datacenter", s.Datacenter)
	setString(b, "zone", s.Zone)
	setString(b, "node", s.Node)
	setString(b, "node_class", s.NodeClass)
	setString(b, "node_pool", s.NodePool)
}

func encodeContract(b *hclwrite.Body, domain string, c fabric.Contract) {
	setString(b, "description", c.Description)
	setMap(b, "labels", c.Labels)
	if c.Disabled {
		b.SetAttributeValue("enabled", cty.False)
	}
	setString(b, "mode", string(c.Mode))
	if !c.Expires.IsZero() {
		setString(b, "expires", c.Expires.UTC().Format(time.RFC3339Nano))
	}
	names := func(refs []fabric.Ref) []string {
		var s []string
		for _, r := range refs {
			if r.Domain == domain {
				s = append(s, r.Name)
			} else {
				s = append(s, r.String())
			}
		}
		return s
	}
	setList(b, "originators", names(c.Originators))
	setList(b, "responders", names(c.Responders))
	encodeRules(b, c.Rules)
	if len(c.Path.Require)+len(c.Path.Prefer)+len(c.Path.Avoid) > 0 {
		pb := b.AppendNewBlock("path", nil).Body()
		setStrings(pb, "require", c.Path.Require)
		setStrings(pb, "prefer", c.Path.Prefer)
		setStrings(pb, "avoid", c.Path.Avoid)
	}
}

func encodeRules(b *hclwrite.Body, rules []fabric.Rule) {
	for _, r := range rules {
		rb := b.AppendNewBlock("rule", nil).Body()
		setString(rb, "name", r.Name)
		setString(rb, "protocol", r.Protocol.String())
		name := "ports"
		if !r.Protocol.HasPorts() {
			name = "types"
		}
		rb.SetAttributeValue(name, portList(r.Ports))
	}
}

func portList(ports []fabric.PortRange) cty.Value {
	list := []cty.Value{}
	for _, p := range ports {
		if p.From == p.To {
			list = append(list, cty.NumberUIntVal(uint64(p.From)))
		} else {
			list = append(list, cty.StringVal(p.String()))
		}
	}
	return cty.TupleVal(list)
}

func prefixList(prefixes []netip.Prefix) []string {
	var list []string
	for _, p := range prefixes {
		list = append(list, p.String())
	}
	return list
}

func encodeGuardrail(b *hclwrite.Body, g fabric.Guardrail) {
	setString(b, "description", g.Description)
	for _, deny := range g.Deny {
		db := b.AppendNewBlock("deny", nil).Body()
		setMap(db, "from", deny.From)
		setMap(db, "to", deny.To)
		encodeRules(db, deny.Rules)
	}
}

func encodeBinding(b *hclwrite.Body, bound fabric.Binding) {
	setString(b, "description", bound.Description)
	setMap(b, "labels", bound.Labels)
	for _, s := range bound.Services {
		setMap(b.AppendNewBlock("service", []string{s.Name}).Body(), "labels", s.Labels)
	}
	for _, n := range bound.Nomad {
		nb := b.AppendNewBlock("nomad", nil).Body()
		setNamespace(nb, n.Namespace)
		setStrings(nb, "jobs", n.Jobs)
	}
	for _, c := range bound.Consul {
		cb := b.AppendNewBlock("consul", nil).Body()
		setNamespace(cb, c.Namespace)
		setStrings(cb, "services", c.Services)
	}
	for _, n := range bound.Nodes {
		nb := b.AppendNewBlock("node", nil).Body()
		setString(nb, "zone", n.Zone)
		setString(nb, "node", n.Node)
		setString(nb, "node_class", n.NodeClass)
		setString(nb, "node_pool", n.NodePool)
	}
	for _, a := range bound.Attach {
		ab := b.AppendNewBlock("attach", nil).Body()
		setStrings(ab, "services", a.Services)
		setString(ab, "zone", a.Zone)
		setString(ab, "node", a.Node)
		setString(ab, "node_class", a.NodeClass)
	}
	for _, o := range bound.Outside {
		ob := b.AppendNewBlock("outside", nil).Body()
		setStrings(ob, "prefixes", prefixList(o.Prefixes))
		setStrings(ob, "names", o.Names)
		if len(o.Ports) > 0 {
			ob.SetAttributeValue("ports", portList(o.Ports))
		}
		if len(o.NodePorts) > 0 {
			ob.SetAttributeValue("node_ports", portList(o.NodePorts))
		}
	}
}

func encodeLink(b *hclwrite.Body, l fabric.LinkRule) {
	setString(b, "description", l.Description)
	setList(b, "between", []string{l.Between[0].String(), l.Between[1].String()})
	setStrings(b, "labels", l.Labels)
	if l.Cost != fabric.DefaultLinkCost {
		b.SetAttributeValue("cost", cty.NumberUIntVal(uint64(l.Cost)))
	}
	setString(b, "endpoints", l.Endpoints)
	if l.MTU != 0 {
		b.SetAttributeValue("mtu", cty.NumberIntVal(int64(l.MTU)))
	}
	if l.Disabled {
		b.SetAttributeValue("enabled", cty.False)
	}
}

// setNamespace sets the namespace unless it is the one that is implied.
func setNamespace(b *hclwrite.Body, namespace string) {
	if namespace != fabric.DefaultNamespace {
		setString(b, "namespace", namespace)
	}
}

// setString, setStrings and setMap set an attribute unless the value is empty.

func setString(b *hclwrite.Body, name, value string) {
	if value != "" {
		b.SetAttributeValue(name, cty.StringVal(value))
	}
}

func setStrings(b *hclwrite.Body, name string, list []string) {
	if len(list) > 0 {
		setList(b, name, list)
	}
}

func setMap(b *hclwrite.Body, name string, m map[string]string) {
	if len(m) == 0 {
		return
	}
	var members []hclwrite.ObjectAttrTokens
	for _, k := range slices.Sorted(maps.Keys(m)) {
		key := hclwrite.TokensForValue(cty.StringVal(k))
		if plainKey.MatchString(k) && k != "for" {
			key = hclwrite.TokensForIdentifier(k)
		}
		members = append(members, hclwrite.ObjectAttrTokens{Name: key, Value: hclwrite.TokensForValue(cty.StringVal(m[k]))})
	}
	b.SetAttributeRaw(name, hclwrite.TokensForObject(members))
}

// plainKey matches keys that need no quotes. HCL allows more, but its writer leaves some keys
// unquoted that need quotes.
var plainKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`)

func setList(b *hclwrite.Body, name string, list []string) {
	vals := []cty.Value{}
	for _, s := range list {
		vals = append(vals, cty.StringVal(s))
	}
	b.SetAttributeValue(name, cty.TupleVal(vals))
}
