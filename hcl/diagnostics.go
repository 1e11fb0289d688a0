// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	hcl2 "github.com/hashicorp/hcl/v2"

	"github.com/sif-project/sif/fabric"
)

// Severity says whether a diagnostic makes the input unusable.
type Severity string

// The severities.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
)

// Diagnostic is a message about a place in a file: what is wrong (Summary), and why and what to do
// about it (Detail).
type Diagnostic struct {
	Severity Severity        `json:"severity"`
	Summary  string          `json:"summary"`
	Detail   string          `json:"detail,omitempty"`
	Pos      fabric.Position `json:"pos,omitzero"`     // zero if it is not about a place in a file
	Source   string          `json:"source,omitempty"` // the line at Pos

	marker string // blanks and carets under Source
}

func (d Diagnostic) String() string {
	s := string(d.Severity) + ": " + d.Summary
	if d.Pos.File != "" {
		s = d.Pos.String() + ": " + s
	}
	if d.Detail != "" {
		s += "; " + d.Detail
	}
	return s
}

// Diagnostics are ordered by position. Diagnostics with errors are an error.
type Diagnostics []Diagnostic

// HasErrors reports whether any diagnostic is an error.
func (ds Diagnostics) HasErrors() bool {
	return slices.ContainsFunc(ds, func(d Diagnostic) bool { return d.Severity == Error })
}

// Error returns the diagnostics, one per line.
func (ds Diagnostics) Error() string {
	lines := make([]string, len(ds))
	for i, d := range ds {
		lines[i] = d.String()
	}
	return strings.Join(lines, "\n")
}

// Err returns ds if it has errors, else nil.
func (ds Diagnostics) Err() error {
	if ds.HasErrors() {
		return ds
	}
	return nil
}

// WriteText writes the diagnostics for people, each with its source line.
func (ds Diagnostics) WriteText(w io.Writer) error {
	var b strings.Builder
	for i, d := range ds {
		if i > 0 {
			b.WriteByte('\n')
		}
		if d.Pos.File != "" {
			b.WriteString(d.Pos.String() + ": ")
		}
		fmt.Fprintf(&b, "%s: %s\n", d.Severity, d.Summary)
		if d.marker != "" {
			fmt.Fprintf(&b, "%5d | %s\n      | %s\n", d.Pos.Line, d.Source, d.marker)
		}
		if d.Detail != "" {
			fmt.Fprintf(&b, "  %s\n", d.Detail)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Source is a file: its name as shown in diagnostics, and its content.
type Source struct {
	Name string
	Data []byte
}

// newDiagnostics sorts diagnostics of the HCL library by position, removes duplicates and adds
// source lines.
func newDiagnostics(list hcl2.Diagnostics, sources ...Source) Diagnostics {
	var ds Diagnostics
	for _, d := range list {
		out := Diagnostic{Severity: Error, Summary: lowerFirst(strings.TrimSuffix(d.Summary, ".")), Detail: d.Detail}
		if d.Severity == hcl2.DiagWarning {
			out.Severity = Warning
		}
		if d.Subject != nil && d.Subject.Filename != "" {
			out.Pos = position(*d.Subject)
			i := slices.IndexFunc(sources, func(s Source) bool { return s.Name == d.Subject.Filename })
			if i >= 0 {
				out.Source, out.marker = snippet(sources[i].Data, *d.Subject)
			}
		}
		ds = append(ds, out)
	}
	slices.SortStableFunc(ds, func(a, b Diagnostic) int {
		return cmp.Or(cmp.Compare(a.Pos.File, b.Pos.File), cmp.Compare(a.Pos.Line, b.Pos.Line),
			cmp.Compare(a.Pos.Column, b.Pos.Column), cmp.Compare(a.Severity, b.Severity))
	})
	return slices.Compact(ds)
}

// snippet returns the line at the start of r, and a marker for the part of the line that r covers.
func snippet(src []byte, r hcl2.Range) (line, marker string) {
	start := r.Start.Byte
	if start < 0 || start > len(src) {
		return "", ""
	}
	first := bytes.LastIndexByte(src[:start], '\n') + 1
	last := len(src)
	if n := bytes.IndexByte(src[start:], '\n'); n >= 0 {
		last = start + n
	}
	end := min(max(r.End.Byte, start), last)
	var b strings.Builder
	for _, c := range string(src[first:start]) {
		if c != '\t' {
			c = ' '
		}
		b.WriteRune(c)
	}
	b.WriteString(strings.Repeat("^", max(1, utf8.RuneCount(src[start:end]))))
	return strings.TrimRight(strings.ToValidUTF8(string(src[first:last]), "\uFFFD"), "\r"), b.String()
}

func position(r hcl2.Range) fabric.Position {
	return fabric.Position{File: r.Filename, Line: r.Start.Line, Column: r.Start.Column}
}

func lowerFirst(s string) string {
	if s == "" || (len(s) > 1 && s[1] >= 'A' && s[1] <= 'Z') {
		return s // an acronym
	}
	return strings.ToLower(s[:1]) + s[1:]
}

// errorAt returns an error: what is wrong, and why and what to do about it.
func errorAt(r hcl2.Range, detail, format string, args ...any) *hcl2.Diagnostic {
	return &hcl2.Diagnostic{Severity: hcl2.DiagError, Summary: fmt.Sprintf(format, args...), Detail: detail, Subject: &r}
}

func warningAt(r hcl2.Range, detail, format string, args ...any) *hcl2.Diagnostic {
	d := errorAt(r, detail, format, args...)
	d.Severity = hcl2.DiagWarning
	return d
}
