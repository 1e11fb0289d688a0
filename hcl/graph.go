// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"slices"
	"time"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/sif-project/sif/fabric"
)

// DecodeGraph decodes the files of one graph. Blocks of the same domain in several files are one
// domain, in which a name may be declared only once. Variables and locals are shared by all files.
// The graph is nil if the diagnostics contain errors.
func DecodeGraph(o Options, sources ...Source) (*fabric.Graph, Diagnostics) {
	d := &decoder{
		now:     o.now(),
		sources: slices.Clone(sources),
		ctx:     &hcl2.EvalContext{Functions: functions, Variables: map[string]cty.Value{}},
	}
	// Any expression may refer to variables and locals, so they are evaluated first.
	files := inParallel(sources, newFile)
	d.variables(blocksOf(files, "variable"), o)
	d.locals(blocksOf(files, "locals"))
	a := assemble(d, inParallel(files, func(f *file) declarations { return f.decode(d) }))
	if !d.diags.HasErrors() {
		// Only breaches of guardrails, and labels that bindings or guardrails forbid, are expected
		// here: the decoder has already checked the rest, with more precise positions.
		d.report(fromProblems(a.graph.Check(d.now), sources)...)
		d.report(fromProblems(a.withBindings().CheckGrants(&fabric.Graph{}), sources)...)
		a.warnOfWaiting()
		notes := a.graph.ReservedPrefixes()
		if len(a.graph.Links) > 0 { // otherwise the graph in force may have links
			notes = append(notes, a.graph.UnmetPaths()...)
		}
		for _, diag := range fromProblems(notes, sources) {
			diag.Severity = hcl2.DiagWarning
			d.report(diag)
		}
	}
	diags := newDiagnostics(d.diags, d.sources...)
	if diags.HasErrors() {
		return nil, diags
	}
	return a.graph, diags
}

// decoder decodes blocks and collects diagnostics.
type decoder struct {
	diags   hcl2.Diagnostics
	now     time.Time
	sources []Source          // files and values from elsewhere, which diagnostics quote
	ctx     *hcl2.EvalContext // nil: only literals are allowed
	why     string            // why expressions cannot use names (yet), for diagnostics
	scopes  map[string]*scope // by keyword
}

func (d *decoder) report(diags ...*hcl2.Diagnostic) { d.diags = append(d.diags, diags...) }

// apart returns a decoder with the same variables and locals and no diagnostics, for concurrent
// use.
func (d *decoder) apart() *decoder {
	other := *d
	other.diags = nil
	return &other
}

// said returns the diagnostics since the last call.
func (d *decoder) said() hcl2.Diagnostics {
	diags := d.diags
	d.diags = nil
	return diags
}
