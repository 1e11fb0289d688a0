// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"maps"
	"slices"

	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"

	"github.com/sif-project/sif/fabric"
)

// EncodeGraph writes a graph as HCL, domains in the order of their names.
// Decoding it gives the same graph, but for positions.
func EncodeGraph(g *fabric.Graph) []byte {
	f := hclwrite.NewEmptyFile()
	for i, name := range slices.Sorted(maps.Keys(g.Domains)) {
		if i > 0 {
			f.Body().AppendNewline()
		}
		encodeDomain(f.Body(), g.Domains[name])
	}
	return hclwrite.Format(f.Bytes())
}

func encodeDomain(file *hclwrite.Body, d *fabric.Domain) {
	body := file.AppendNewBlock("domain", []string{d.Name}).Body()
	first := true
	block := func(kind, name string) *hclwrite.Body {
		if !first {
			body.AppendNewline()
		}
		first = false
		return body.AppendNewBlock(kind, []string{name}).Body()
	}
	for _, s := range d.Services {
		b := block("service", s.Name)
		for _, sel := range s.Selectors {
			encodeSelector(b.AppendNewBlock("selector", []string{string(sel.Kind)}).Body(), sel)
		}
	}
	for _, e := range d.Externals {
		var prefixes []string
		for _, p := range e.Prefixes {
			prefixes = append(prefixes, p.String())
		}
		setStrings(block("external", e.Name), "prefixes", prefixes)
	}
	for _, c := range d.Contracts {
		encodeContract(block("contract", c.Name), d.Name, c)
	}
}

func encodeSelector(b *hclwrite.Body, s fabric.Selector) {
	namespace := s.Namespace
	if s.Kind == fabric.SelectNomad && namespace == "default" {
		namespace = ""
	}
	for _, a := range []struct{ name, value string }{
		{"namespace", namespace}, {"job", s.Job}, {"group", s.Group}, {"service", s.Service},
	} {
		if a.value != "" {
			b.SetAttributeValue(a.name, cty.StringVal(a.value))
		}
	}
}

func encodeContract(b *hclwrite.Body, domain string, c fabric.Contract) {
	if c.Disabled {
		b.SetAttributeValue("enabled", cty.False)
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
	setStrings(b, "originators", names(c.Originators))
	setStrings(b, "responders", names(c.Responders))
	for _, r := range c.Rules {
		rb := b.AppendNewBlock("rule", nil).Body()
		rb.SetAttributeValue("protocol", cty.StringVal(r.Protocol.String()))
		ports := []cty.Value{}
		for _, p := range r.Ports {
			if p.From == p.To {
				ports = append(ports, cty.NumberUIntVal(uint64(p.From)))
			} else {
				ports = append(ports, cty.StringVal(p.String()))
			}
		}
		rb.SetAttributeValue("ports", cty.TupleVal(ports))
	}
	if len(c.Path.Require)+len(c.Path.Prefer) > 0 {
		pb := b.AppendNewBlock("path", nil).Body()
		if len(c.Path.Require) > 0 {
			setStrings(pb, "require", c.Path.Require)
		}
		if len(c.Path.Prefer) > 0 {
			setStrings(pb, "prefer", c.Path.Prefer)
		}
	}
}

func setStrings(b *hclwrite.Body, name string, list []string) {
	vals := []cty.Value{}
	for _, s := range list {
		vals = append(vals, cty.StringVal(s))
	}
	b.SetAttributeValue(name, cty.TupleVal(vals))
}
