// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// Place is what a message about a parsed job is about.
type Place struct {
	Group string
	Task  string // empty: the group itself
	// Blocks are nested blocks in the group or task, and Argument is an argument or a block in the
	// innermost. Both may be empty.
	Blocks   []Block
	Argument string
}

// Block is the index-th block of a type in its body.
type Block struct {
	Type  string
	Index int
}

// Diagnose returns a diagnostic about a place in the job file: at the argument if it can be found,
// else at the innermost block that contains it. What a dynamic block or an expression makes cannot
// be found.
func (j *Job) Diagnose(severity Severity, p Place, summary, detail string) Diagnostic {
	d := errorAt(j.find(p), detail, "%s", summary)
	if severity == Warning {
		d.Severity = hcl2.DiagWarning
	}
	return newDiagnostics(hcl2.Diagnostics{d}, j.source)[0]
}

func (j *Job) find(p Place) hcl2.Range {
	at := j.body.SrcRange
	at.End = at.Start
	body := j.body
	enter := func(b *hclsyntax.Block) bool {
		if b == nil {
			return false
		}
		body, at = b.Body, b.DefRange()
		return true
	}
	labelled := func(kind, label string) *hclsyntax.Block {
		for _, b := range body.Blocks {
			if b.Type == kind && len(b.Labels) == 1 && b.Labels[0] == label {
				return b
			}
		}
		return nil
	}
	if !enter(nth(body, Block{Type: "job"})) || !enter(labelled("group", p.Group)) {
		return at
	}
	if p.Task != "" && !enter(labelled("task", p.Task)) {
		return at
	}
	for _, b := range p.Blocks {
		if !enter(nth(body, b)) {
			return at
		}
	}
	if a := body.Attributes[p.Argument]; a != nil {
		return a.Range()
	}
	enter(nth(body, Block{Type: p.Argument}))
	return at
}

// nth returns a block of a body, or nil if there is none or a dynamic block makes some of its type.
func nth(body *hclsyntax.Body, want Block) *hclsyntax.Block {
	var found *hclsyntax.Block
	n := 0
	for _, b := range body.Blocks {
		switch {
		case b.Type == "dynamic" && len(b.Labels) == 1 && b.Labels[0] == want.Type:
			return nil
		case b.Type == want.Type:
			if n == want.Index {
				found = b
			}
			n++
		}
	}
	return found
}
