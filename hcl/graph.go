// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	hcljson "github.com/hashicorp/hcl/v2/json"

	"github.com/sif-project/sif/fabric"
)

// DecodeGraph decodes the files of one graph. Blocks of the same domain in
// several files are one domain; names may be declared once in it. The graph is
// nil if the diagnostics have errors.
func DecodeGraph(sources ...Source) (*fabric.Graph, Diagnostics) {
	d := &decoder{why: "This version takes literal values only.", domains: map[string]*domainDecl{}}
	for _, s := range sources {
		if body := d.parse(s); body != nil {
			d.file(body)
		}
	}
	g := &fabric.Graph{Domains: map[string]*fabric.Domain{}}
	for _, name := range slices.Sorted(maps.Keys(d.domains)) {
		decl := d.domains[name]
		d.resolve(decl)
		g.Domains[name] = &decl.domain
	}
	if !d.diags.HasErrors() {
		// Not expected: what fabric checks, the decoder has checked with better places.
		d.report(fromProblems(g.Check(), sources)...)
	}
	diags := newDiagnostics(d.diags, sources...)
	if diags.HasErrors() {
		return nil, diags
	}
	return g, diags
}

// decoder collects what the files of one graph declare.
type decoder struct {
	diags   hcl2.Diagnostics
	why     string // why only literals are taken, for diagnostics
	domains map[string]*domainDecl
}

// domainDecl is a domain with the places that names resolve against.
type domainDecl struct {
	domain    fabric.Domain
	places    []hcl2.Range          // of its blocks
	nodes     map[string]hcl2.Range // services and externals
	externals map[string]bool
	contracts map[string]hcl2.Range
	refs      []refDecl
}

// refDecl is a name that a contract mentions.
type refDecl struct {
	text
	ref       fabric.Ref
	responder bool
}

func (d *decoder) report(diags ...*hcl2.Diagnostic) { d.diags = append(d.diags, diags...) }

func (d *decoder) parse(s Source) hcl2.Body {
	var (
		file  *hcl2.File
		diags hcl2.Diagnostics
	)
	if strings.HasSuffix(s.Name, ".json") {
		file, diags = hcljson.Parse(s.Data, s.Name)
	} else {
		file, diags = hclsyntax.ParseConfig(s.Data, s.Name, hcl2.InitialPos)
	}
	d.report(diags...)
	if file == nil || diags.HasErrors() {
		return nil // what else is wrong would be guesswork
	}
	return file.Body
}

var (
	fileSchema = &hcl2.BodySchema{Blocks: []hcl2.BlockHeaderSchema{{Type: "domain", LabelNames: []string{"name"}}}}

	domainSchema = &hcl2.BodySchema{Blocks: []hcl2.BlockHeaderSchema{
		{Type: "service", LabelNames: []string{"name"}},
		{Type: "external", LabelNames: []string{"name"}},
		{Type: "contract", LabelNames: []string{"name"}},
	}}

	serviceSchema = &hcl2.BodySchema{Blocks: []hcl2.BlockHeaderSchema{{Type: "selector", LabelNames: []string{"kind"}}}}

	selectorSchemas = map[fabric.SelectorKind]*hcl2.BodySchema{
		fabric.SelectNomad: {Attributes: []hcl2.AttributeSchema{
			{Name: "namespace"}, {Name: "job", Required: true}, {Name: "group"},
		}},
		fabric.SelectConsul: {Attributes: []hcl2.AttributeSchema{{Name: "service", Required: true}}},
	}

	externalSchema = &hcl2.BodySchema{Attributes: []hcl2.AttributeSchema{{Name: "prefixes", Required: true}}}
)

func (d *decoder) file(body hcl2.Body) {
	for _, b := range d.content(body, fileSchema, "a graph").Blocks {
		d.domain(b)
	}
}

func (d *decoder) domain(b *hcl2.Block) {
	name, place := b.Labels[0], labelRange(b)
	if err := fabric.CheckName(name); err != nil {
		d.report(errorAt(place, "Choose another name for the domain.", "%s", err))
		return
	}
	if name == fabric.ReservedDomain {
		d.report(errorAt(place, "Choose another name for the domain.", "domain %q is reserved for the identities of nodes", name))
		return
	}
	decl := d.domains[name]
	if decl == nil {
		decl = &domainDecl{
			domain:    fabric.Domain{Name: name, Pos: position(place)},
			nodes:     map[string]hcl2.Range{},
			externals: map[string]bool{},
			contracts: map[string]hcl2.Range{},
		}
		d.domains[name] = decl
	}
	for _, p := range decl.places {
		if p.Filename == place.Filename {
			d.report(errorAt(place, "Merge the two blocks. A domain may be spread over several files, but not within one.",
				"domain %q: it is already declared in this file at %s", name, position(p)))
			break
		}
	}
	decl.places = append(decl.places, place)

	content := d.content(b.Body, domainSchema, fmt.Sprintf("domain %q", name))
	for _, b := range content.Blocks {
		switch b.Type {
		case "service":
			if d.declare(b, decl.nodes) {
				decl.domain.Services = append(decl.domain.Services, d.service(b))
			}
		case "external":
			if d.declare(b, decl.nodes) {
				decl.externals[b.Labels[0]] = true
				decl.domain.Externals = append(decl.domain.Externals, d.external(b))
			}
		case "contract":
			if d.declare(b, decl.contracts) {
				decl.domain.Contracts = append(decl.domain.Contracts, d.contract(decl, b))
			}
		}
	}
}

// declare notes the name of a block. It reports whether the name is new and
// may be used.
func (d *decoder) declare(b *hcl2.Block, names map[string]hcl2.Range) bool {
	name, place := b.Labels[0], labelRange(b)
	if err := fabric.CheckName(name); err != nil {
		d.report(errorAt(place, fmt.Sprintf("Choose another name for the %s.", b.Type), "%s", err))
		return false
	}
	if first, dup := names[name]; dup {
		what := "Services and externals of a domain share one space of names. Rename one of the two."
		if b.Type == "contract" {
			what = "Rename one of the two."
		}
		d.report(errorAt(place, what, "%s %q: the name is already taken at %s", b.Type, name, position(first)))
		return false
	}
	names[name] = place
	return true
}

func (d *decoder) service(b *hcl2.Block) fabric.Service {
	s := fabric.Service{Name: b.Labels[0], Pos: position(labelRange(b))}
	content := d.content(b.Body, serviceSchema, fmt.Sprintf("service %q", s.Name))
	for _, b := range content.Blocks {
		if sel, ok := d.selector(b); ok {
			s.Selectors = append(s.Selectors, sel)
		}
	}
	if len(content.Blocks) == 0 {
		d.report(warningAt(labelRange(b), `Add a block such as: selector "nomad" { job = "..." }.`,
			"service %q has no selector, so no workload can be an instance of it", s.Name))
	}
	return s
}

func (d *decoder) selector(b *hcl2.Block) (fabric.Selector, bool) {
	kind := fabric.SelectorKind(b.Labels[0])
	schema, ok := selectorSchemas[kind]
	if !ok {
		detail := strings.TrimSpace(`The kinds are "consul" and "nomad". ` + didYouMean(string(kind), []string{"consul", "nomad"}))
		d.report(errorAt(labelRange(b), detail, "unknown kind of selector %q", kind))
		return fabric.Selector{}, false
	}
	content := d.content(b.Body, schema, fmt.Sprintf("selector %q", kind))
	s := fabric.Selector{
		Kind:      kind,
		Namespace: d.nameAttr(content, "namespace"),
		Job:       d.nameAttr(content, "job"),
		Group:     d.nameAttr(content, "group"),
		Service:   d.nameAttr(content, "service"),
		Pos:       position(labelRange(b)),
	}
	if kind == fabric.SelectNomad && s.Namespace == "" {
		s.Namespace = "default"
	}
	return s, true
}

func (d *decoder) external(b *hcl2.Block) fabric.External {
	e := fabric.External{Name: b.Labels[0], Pos: position(labelRange(b))}
	content := d.content(b.Body, externalSchema, fmt.Sprintf("external %q", e.Name))
	for _, t := range d.stringList(content, "prefixes") {
		if p, ok := d.prefix(t); ok {
			e.Prefixes = append(e.Prefixes, p)
		}
	}
	if attr := content.Attributes["prefixes"]; attr != nil && isEmptyList(attr) {
		d.report(errorAt(attr.Expr.Range(), `List at least one, such as "192.0.2.0/24".`, "external %q has no prefixes", e.Name))
	}
	return e
}

func (d *decoder) prefix(t text) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(t.value)
	if err != nil {
		detail := `Write an address and a length, such as "192.0.2.0/24".`
		if a, err := netip.ParseAddr(t.value); err == nil && a.Zone() == "" {
			detail = fmt.Sprintf("For this one address, write %q.", netip.PrefixFrom(a, a.BitLen()))
		}
		d.report(errorAt(t.rng, detail, "%q is not an address prefix", t.value))
		return p, false
	}
	if p.Addr().Is4In6() {
		d.report(errorAt(t.rng, "Write the IPv4 prefix.", "prefix %q is IPv4 written as IPv6", t.value))
		return p, false
	}
	if m := p.Masked(); m != p {
		d.report(errorAt(t.rng, fmt.Sprintf("Write %q, or %q for the one address.", m, netip.PrefixFrom(p.Addr(), p.Addr().BitLen())),
			"prefix %q has bits set beyond its length", t.value))
		return p, false
	}
	return p, true
}

// labelRange is the place of a block's first label: unlike the block's
// keyword, it is the block's own in JSON too.
func labelRange(b *hcl2.Block) hcl2.Range { return b.LabelRanges[0] }

func isEmptyList(attr *hcl2.Attribute) bool {
	exprs, diags := hcl2.ExprList(attr.Expr)
	return !diags.HasErrors() && len(exprs) == 0
}
