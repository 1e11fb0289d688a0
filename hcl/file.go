// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"bytes"
	"runtime"
	"strings"
	"sync"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/dynblock"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	hcljson "github.com/hashicorp/hcl/v2/json"
)

// file is a file of a graph before it is decoded.
type file struct {
	source  Source
	dynamic bool // it may contain dynamic blocks
	parsed  bool
	blocks  hcl2.Blocks
	diags   hcl2.Diagnostics // about syntax and top-level blocks
}

// newFile parses the file if it may declare variables or locals, which all files need before they
// are decoded. JSON files are always parsed, because JSON can escape any letter of a word.
func newFile(s Source) *file {
	has := func(word string) bool { return bytes.Contains(s.Data, []byte(word)) }
	f := &file{source: s, dynamic: has("dynamic")}
	if isJSON(s) || has("variable") || has("locals") {
		f.parse()
	}
	return f
}

// declarations are the decoded contents of a file, before they are checked against other files.
type declarations struct {
	diags      hcl2.Diagnostics // about syntax and top-level blocks
	domains    []domainPart
	guardrails []item
	bindings   []item
	links      []item
}

// item is a decoded part of a domain, a guardrail, a binding or a link.
type item struct {
	kind  string // block type, or "argument"
	name  string
	place hcl2.Range
	value any              // the decoded value
	diags hcl2.Diagnostics // about its content
}

// parse parses the file and finds its top-level blocks.
func (f *file) parse() {
	var d decoder
	body, diags := parse(f.source)
	d.report(diags...)
	if !diags.HasErrors() { // after a syntax error, further errors would be misleading
		f.blocks = d.content(body, graphFile.schema, subject{kind: "a graph"}).Blocks
	}
	f.parsed, f.diags = true, d.diags
}

// decode decodes the file. It drops the syntax tree, which takes many times the memory of the
// declarations.
func (f *file) decode(d *decoder) declarations {
	if !f.parsed {
		f.parse()
	}
	all := declarations{diags: f.diags}
	f.decodeBlocks(d, f.blocks, &all)
	f.blocks = nil
	return all
}

// decodeBlocks decodes the domains, guardrails, bindings and links among blocks side by side.
func (f *file) decodeBlocks(d *decoder, blocks hcl2.Blocks, into *declarations) {
	expand := func(b *hcl2.Block) *hcl2.Block { return b }
	if f.dynamic {
		expand = func(b *hcl2.Block) *hcl2.Block {
			expanded := *b
			expanded.Body = dynblock.Expand(b.Body, d.ctx)
			return &expanded
		}
	}
	into.domains = append(into.domains,
		inParallel(blocks.OfType("domain"), func(b *hcl2.Block) domainPart { return d.apart().domain(expand(b)) })...)
	into.guardrails = append(into.guardrails,
		inParallel(blocks.OfType("guardrail"), func(b *hcl2.Block) item { return d.apart().guardrail(expand(b)) })...)
	into.bindings = append(into.bindings,
		inParallel(blocks.OfType("binding"), func(b *hcl2.Block) item { return d.apart().binding(expand(b)) })...)
	into.links = append(into.links,
		inParallel(blocks.OfType("link"), func(b *hcl2.Block) item { return d.apart().link(expand(b)) })...)
}

// blocksOf returns the blocks of a type, in the order of the files.
func blocksOf(files []*file, kind string) []*hcl2.Block {
	var list []*hcl2.Block
	for _, f := range files {
		list = append(list, f.blocks.OfType(kind)...)
	}
	return list
}

func isJSON(s Source) bool { return strings.HasSuffix(s.Name, ".json") }

func parse(s Source) (hcl2.Body, hcl2.Diagnostics) {
	if isJSON(s) {
		f, diags := hcljson.Parse(s.Data, s.Name)
		return f.Body, diags
	}
	f, diags := hclsyntax.ParseConfig(s.Data, s.Name, hcl2.InitialPos)
	return f.Body, diags
}

// inParallel calls do for each thing, on all cores, and returns the results in order.
func inParallel[T, R any](things []T, do func(T) R) []R {
	results := make([]R, len(things))
	var wg sync.WaitGroup
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i, t := range things {
		slots <- struct{}{}
		wg.Go(func() {
			results[i] = do(t)
			<-slots
		})
	}
	wg.Wait()
	return results
}
