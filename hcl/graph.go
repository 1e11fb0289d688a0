// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"bytes"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/dynblock"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	hcljson "github.com/hashicorp/hcl/v2/json"
	"github.com/zclconf/go-cty/cty"

	"github.com/sif-project/sif/fabric"
)

// DecodeGraph decodes the files of one graph. Blocks of the same domain in
// several files are one domain; names may be declared once in it. Variables and
// locals are shared by all files. The graph is nil if the diagnostics have
// errors.
func DecodeGraph(o Options, sources ...Source) (*fabric.Graph, Diagnostics) {
	d := &decoder{
		now:        o.now(),
		sources:    slices.Clone(sources),
		ctx:        &hcl2.EvalContext{Functions: functions, Variables: map[string]cty.Value{}},
		domains:    map[string]*domainDecl{},
		guardrails: map[string]hcl2.Range{},
	}
	files := d.parse(sources)
	blocks := func(kind string) []*hcl2.Block {
		var list []*hcl2.Block
		for _, f := range files {
			list = append(list, f.blocks[kind]...)
		}
		return list
	}
	d.variables(blocks("variable"), o)
	d.locals(blocks("locals"))
	g := &fabric.Graph{Domains: map[string]*fabric.Domain{}}
	for _, f := range files {
		for _, b := range f.blocks["domain"] {
			d.domain(f.expand(b, d.ctx))
		}
		for _, b := range f.blocks["guardrail"] {
			if d.declare(b, d.guardrails) {
				g.Guardrails = append(g.Guardrails, d.guardrail(f.expand(b, d.ctx)))
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.domains)) {
		decl := d.domains[name]
		d.resolve(decl)
		g.Domains[name] = &decl.domain
	}
	if !d.diags.HasErrors() {
		// Guardrails apart, nothing is expected: what fabric checks, the
		// decoder has checked with better places.
		d.report(fromProblems(g.Check(d.now), sources)...)
		d.warnOfWaiting(g)
	}
	diags := newDiagnostics(d.diags, d.sources...)
	if diags.HasErrors() {
		return nil, diags
	}
	return g, diags
}

// decoder collects what the files of one graph declare.
type decoder struct {
	diags      hcl2.Diagnostics
	now        time.Time
	sources    []Source          // files and values from elsewhere, for diagnostics to show
	ctx        *hcl2.EvalContext // nil: only literals are taken
	why        string            // why names mean nothing (yet), for diagnostics
	scopes     map[string]*scope // by keyword
	domains    map[string]*domainDecl
	guardrails map[string]hcl2.Range
}

// domainDecl is a domain with the places that names resolve against.
type domainDecl struct {
	domain    fabric.Domain
	places    []hcl2.Range          // of its blocks
	set       map[string]hcl2.Range // its own arguments
	nodes     map[string]hcl2.Range // services and externals
	externals map[string]bool
	contracts map[string]hcl2.Range
	accepted  map[string]hcl2.Range
	declared  []contractDecl
	accepts   []acceptDecl
}

func (d *decoder) report(diags ...*hcl2.Diagnostic) { d.diags = append(d.diags, diags...) }

// graphBlocks are the blocks of a file, by type.
type graphBlocks struct {
	blocks  map[string][]*hcl2.Block
	dynamic bool // it may have dynamic blocks
}

// expand lets dynamic blocks stand in a block. Files that have none are spared
// the cost.
func (f graphBlocks) expand(b *hcl2.Block, ctx *hcl2.EvalContext) *hcl2.Block {
	if !f.dynamic {
		return b
	}
	expanded := *b
	expanded.Body = dynblock.Expand(b.Body, ctx)
	return &expanded
}

// parse parses files, several at a time.
func (d *decoder) parse(sources []Source) []graphBlocks {
	type parsed struct {
		file  *hcl2.File
		diags hcl2.Diagnostics
	}
	results := make([]parsed, len(sources))
	var wg sync.WaitGroup
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i, s := range sources {
		slots <- struct{}{}
		wg.Go(func() {
			results[i].file, results[i].diags = parse(s)
			<-slots
		})
	}
	wg.Wait()
	var files []graphBlocks
	for i, r := range results {
		d.report(r.diags...)
		if r.file == nil || r.diags.HasErrors() {
			continue // what else is wrong would be guesswork
		}
		f := graphBlocks{blocks: map[string][]*hcl2.Block{}, dynamic: bytes.Contains(sources[i].Data, []byte("dynamic"))}
		for _, b := range d.content(r.file.Body, graphFile.schema, subject{kind: "a graph"}).Blocks {
			f.blocks[b.Type] = append(f.blocks[b.Type], b)
		}
		files = append(files, f)
	}
	return files
}

func parse(s Source) (*hcl2.File, hcl2.Diagnostics) {
	if strings.HasSuffix(s.Name, ".json") {
		return hcljson.Parse(s.Data, s.Name)
	}
	if len(s.Data) > 2*pieceSize {
		if body, ok := parseSplit(s, pieceSize); ok {
			return &hcl2.File{Body: body, Bytes: s.Data}, nil
		}
	}
	return hclsyntax.ParseConfig(s.Data, s.Name, hcl2.InitialPos)
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
			set:       map[string]hcl2.Range{},
			nodes:     map[string]hcl2.Range{},
			externals: map[string]bool{},
			contracts: map[string]hcl2.Range{},
			accepted:  map[string]hcl2.Range{},
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

	content := d.content(b.Body, domainBlock.schema, subject{kind: "domain", label: name})
	d.domainArgs(decl, content)
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
		case "accept":
			d.accept(decl, b)
		}
	}
}

// domainArgs decodes the arguments of a domain, of which each may stand in one
// of its files.
func (d *decoder) domainArgs(decl *domainDecl, content *hcl2.BodyContent) {
	for _, a := range sortedAttributes(content.Attributes) {
		if first, dup := decl.set[a.Name]; dup {
			d.report(errorAt(a.NameRange, "Keep one of the two.", "argument %q of domain %q is already set at %s", a.Name, decl.domain.Name, position(first)))
			continue
		}
		decl.set[a.Name] = a.NameRange
		switch a.Name {
		case "description":
			decl.domain.Description = d.description(content)
		case "labels":
			decl.domain.Labels = d.labels(content)
		case "mode":
			decl.domain.Mode = d.mode(content)
		}
	}
}

func (d *decoder) description(content *hcl2.BodyContent) string {
	t, _ := d.stringAttr(content, "description")
	return t.value
}

// labels decodes labels that a block gives to itself.
func (d *decoder) labels(content *hcl2.BodyContent) fabric.Labels {
	m, places := d.stringMap(content, "labels")
	for _, taken := range []string{"domain", "name"} {
		if place, set := places[taken]; set {
			d.report(errorAt(place, "Choose another key.", "label %q cannot be set: it always is the name of the %s", taken, map[string]string{"domain": "domain", "name": "block"}[taken]))
		}
	}
	return m
}

func (d *decoder) mode(content *hcl2.BodyContent) fabric.Mode {
	t, ok := d.stringAttr(content, "mode")
	if !ok || t.value == modeEnforce {
		return fabric.ModeEnforce
	}
	if t.value != string(fabric.ModeAudit) {
		d.report(errorAt(t.rng, strings.TrimSpace(fmt.Sprintf("Write %q or %q. %s", fabric.ModeAudit, modeEnforce, didYouMean(t.value, modes))), "unknown mode %q", t.value))
	}
	return fabric.Mode(t.value)
}

// declare notes the name of a block. It reports whether the name is new and
// may be used.
func (d *decoder) declare(b *hcl2.Block, names map[string]hcl2.Range) bool {
	name, place := b.Labels[0], labelRange(b)
	if err := fabric.CheckName(name); err != nil {
		d.report(errorAt(place, fmt.Sprintf("Choose another name for the %s.", b.Type), "%s", err))
		return false
	}
	if b.Type == "contract" && name == fabric.AuditContract {
		d.report(errorAt(place, "Choose another name for the contract.", "contract %q is reserved for domains in audit mode", name))
		return false
	}
	if first, dup := names[name]; dup {
		what := "Rename one of the two."
		if b.Type == "service" || b.Type == "external" {
			what = "Services and externals of a domain share one space of names. Rename one of the two."
		}
		d.report(errorAt(place, what, "%s %q: the name is already taken at %s", b.Type, name, position(first)))
		return false
	}
	names[name] = place
	return true
}

// labelRange is the place of a block's first label: unlike the block's
// keyword, it is the block's own in JSON too.
func labelRange(b *hcl2.Block) hcl2.Range { return b.LabelRanges[0] }
