// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	"github.com/sif-project/sif/internal/wellknown"
)

// edit replaces the bytes from start to end of a job file. Editing bytes instead of the syntax tree
// leaves all other text untouched, whatever its layout.
type edit struct {
	start, end int
	text       string
}

func applyEdits(src []byte, edits []edit) []byte {
	var out bytes.Buffer
	at := 0
	for _, e := range sortedEdits(edits) {
		out.Write(src[at:e.start])
		out.WriteString(e.text)
		at = e.end
	}
	out.Write(src[at:])
	return out.Bytes()
}

func sortedEdits(edits []edit) []edit {
	edits = slices.Clone(edits)
	slices.SortStableFunc(edits, func(a, b edit) int { return cmp.Compare(a.start, b.start) })
	return edits
}

// Line returns the line of the original job file for a line of Plain, so that messages from Nomad
// refer to what the user wrote.
func (j *Job) Line(plain int) int {
	at := 0 // offset of the line in Plain
	for line := 1; line < plain; line++ {
		n := bytes.IndexByte(j.Plain[at:], '\n')
		if n < 0 {
			break
		}
		at += n + 1
	}
	shift := 0 // from an offset in Plain to the offset in the original
	for _, e := range sortedEdits(j.edits) {
		if at+shift < e.start {
			break
		}
		if at+shift < e.start+len(e.text) {
			at = e.start - shift // inside inserted text
			break
		}
		shift += e.end - e.start - len(e.text)
	}
	return 1 + bytes.Count(j.source.Data[:min(at+shift, len(j.source.Data))], []byte("\n"))
}

type pair struct{ key, value string }

func (x *extractor) edit(start, end int, text string) {
	x.job.edits = append(x.job.edits, edit{start, end, text})
}

// rewrite adds to a group what the stanza requests, and removes the stanza. New blocks take its
// place.
func (x *extractor) rewrite(group *hclsyntax.Body, block *hclsyntax.Block, s Stanza) {
	src := x.job.source.Data
	indent := indentAt(src, block.TypeRange.Start.Byte)
	var parts []string
	if network := x.network(group, s); network != "" {
		parts = append(parts, network)
	}
	if meta := x.meta(group, s); meta != "" {
		parts = append(parts, meta)
	}
	if s.WorkloadAPI {
		if volume := x.workloadAPI(group, s); volume != "" {
			parts = append(parts, volume)
		}
	}
	if s.VM {
		x.guests(group)
	}
	start, end := block.TypeRange.Start.Byte, block.CloseBraceRange.End.Byte
	if len(parts) == 0 {
		start, end = wholeLines(src, start, end)
		x.edit(start, end, "")
		return
	}
	x.edit(start, end, indented(strings.Join(parts, "\n\n"), indent))
}

// arguments returns the CNI arguments of the group.
func (s Stanza) arguments() []pair {
	var pairs []pair
	if s.Service != "" {
		pairs = append(pairs, pair{argService, s.Service})
	}
	if s.VM {
		pairs = append(pairs, pair{wellknown.ArgVM, "true"})
	}
	return pairs
}

// network sets the mode of the group's network, or returns a network block if the group has none.
func (x *extractor) network(group *hclsyntax.Body, s Stanza) string {
	cni := ""
	if args := s.arguments(); len(args) > 0 {
		cni = fmt.Sprintf("\n\n  cni {\n    args = {\n      %s\n    }\n  }", joinPairs(args, "\n      "))
	}
	var network *hclsyntax.Block
	for _, b := range group.Blocks {
		if b.Type == "dynamic" && len(b.Labels) == 1 && b.Labels[0] == "network" {
			x.report(errorAt(b.DefRange(), "Write a static network block.", "a group with a connectivity block cannot have a dynamic network block"))
		}
		if b.Type == "network" && network == nil {
			network = b
		}
	}
	if network == nil {
		return fmt.Sprintf("network {\n  mode = %q%s\n}", NetworkMode, cni)
	}
	x.resolver(network)
	mode := network.Body.Attributes["mode"]
	if mode != nil {
		v, diags := mode.Expr.Value(nil)
		switch {
		case diags.HasErrors() || !v.IsWhollyKnown() || v.IsNull() || v.Type() != cty.String:
			x.report(errorAt(mode.Expr.Range(), fmt.Sprintf("Remove the mode, or set it to %q.", NetworkMode),
				"the network mode of a group with a connectivity block must be a literal"))
		case v.AsString() != NetworkMode:
			x.report(errorAt(mode.Expr.Range(), fmt.Sprintf("Remove the mode, or set it to %q; or remove the connectivity block at %s.", NetworkMode, s.Pos),
				"a group with a connectivity block cannot have network mode %q", v.AsString()))
		}
	}
	for _, b := range network.Body.Blocks {
		switch {
		case s.VM && b.Type == "dynamic" && len(b.Labels) == 1 && b.Labels[0] == "cni":
			x.report(errorAt(b.DefRange(), "Write a static cni block.", "the network of a virtual machine cannot have a dynamic cni block"))
		case b.Type == "cni" && cni != "":
			x.joinCNI(b, s)
			cni = "" // the group's own block has it
		}
	}
	indent := indentAt(x.job.source.Data, network.TypeRange.Start.Byte)
	first := fmt.Sprintf("\n  mode = %q", NetworkMode)
	if mode != nil {
		first = ""
	}
	if first+cni == "" {
		return ""
	}
	x.insertInto(network.OpenBraceRange, network.CloseBraceRange, indented(first, indent), indented(cni, indent))
	return ""
}

// joinCNI adds the stanza's CNI arguments to those of the group's own cni block.
func (x *extractor) joinCNI(block *hclsyntax.Block, s Stanza) {
	pairs := s.arguments()
	attr := block.Body.Attributes["args"]
	if attr == nil {
		indent := indentAt(x.job.source.Data, block.TypeRange.Start.Byte)
		text := fmt.Sprintf("\n  args = {\n    %s\n  }", joinPairs(pairs, "\n    "))
		x.insertInto(block.OpenBraceRange, block.CloseBraceRange, indented(text, indent), "")
		return
	}
	object, literal := attr.Expr.(*hclsyntax.ObjectConsExpr)
	if !literal {
		if s.VM {
			x.report(errorAt(attr.Expr.Range(), fmt.Sprintf("Write args = { ... }, to which the connectivity block adds %s.", joinPairs(pairs, " and ")),
				"the CNI arguments of a virtual machine must be an object in braces"))
		}
		return // what the others lack is only for people
	}
	for _, item := range object.Items {
		if key, _ := literalText(item.KeyExpr); key == argService {
			pairs = slices.DeleteFunc(pairs, func(p pair) bool { return p.key == argService })
		}
		x.refuseTaken(item.KeyExpr, pairs, "CNI argument", s)
	}
	if len(pairs) == 0 {
		return
	}
	x.insertPairs(pairs, object.OpenRange, object.SrcRange.End.Byte-1, indentAt(x.job.source.Data, attr.NameRange.Start.Byte))
}

// insertInto inserts text after the opening and before the closing brace of a block. Each text
// starts with a newline. A block on one line is split.
func (x *extractor) insertInto(open, shut hcl2.Range, first, last string) {
	src := x.job.source.Data
	start, end := open.End.Byte, shut.Start.Byte
	indent := indentAt(src, open.Start.Byte)
	if open.Start.Line == shut.Start.Line {
		if inside := strings.TrimSpace(string(src[start:end])); inside != "" {
			first += "\n" + indent + "  " + inside
		}
		x.edit(start, end, strings.TrimRight(first+last, " ")+"\n"+indent)
		return
	}
	x.edit(start, start, first)
	if last != "" {
		// The closing brace is on a line of its own: insert at the end of the line before it.
		at := bytes.LastIndexByte(src[:end], '\n')
		x.edit(at, at, last)
	}
}

// meta adds the stanza to the group's meta, or returns a meta attribute if the group has none. The
// keys contain dots, which a meta block does not allow, so a meta block becomes an attribute.
func (x *extractor) meta(group *hclsyntax.Body, s Stanza) string {
	var pairs []pair
	for _, p := range []pair{
		{MetaService, s.Service}, {MetaOriginate, strings.Join(s.Originate, ",")}, {MetaRespond, strings.Join(s.Respond, ",")}, {MetaVM, yes(s.VM)},
	} {
		if p.value != "" {
			pairs = append(pairs, p)
		}
	}
	if len(pairs) == 0 {
		return ""
	}
	src := x.job.source.Data
	if attr := group.Attributes["meta"]; attr != nil {
		object, literal := attr.Expr.(*hclsyntax.ObjectConsExpr)
		if !literal {
			r := attr.Expr.Range()
			x.edit(r.Start.Byte, r.Start.Byte, "merge(")
			x.edit(r.End.Byte, r.End.Byte, ", { "+joinPairs(pairs, ", ")+" })")
			return ""
		}
		for _, item := range object.Items {
			x.refuseTaken(item.KeyExpr, pairs, "meta key", s)
		}
		x.insertPairs(pairs, object.OpenRange, object.SrcRange.End.Byte-1, indentAt(src, attr.NameRange.Start.Byte))
		return ""
	}
	for _, b := range group.Blocks {
		if b.Type == "meta" {
			if len(b.LabelRanges) > 0 { // an attribute cannot have a label
				x.report(errorAt(b.LabelRanges[0], "Remove the label.", "a meta block takes no label"))
				return ""
			}
			x.edit(b.OpenBraceRange.Start.Byte, b.OpenBraceRange.Start.Byte, "= ")
			x.insertPairs(pairs, b.OpenBraceRange, b.CloseBraceRange.Start.Byte, indentAt(src, b.TypeRange.Start.Byte))
			return ""
		}
	}
	return "meta = {\n  " + joinPairs(pairs, "\n  ") + "\n}"
}

// refuseTaken reports a key of the job's own that the stanza sets, too.
func (x *extractor) refuseTaken(expr hclsyntax.Expression, pairs []pair, what string, s Stanza) {
	key, known := literalText(expr)
	if known && slices.ContainsFunc(pairs, func(p pair) bool { return p.key == key }) {
		x.report(errorAt(expr.Range(), "Remove one of the two.", "%s %q is also set by the connectivity block at %s", what, key, s.Pos))
	}
}

// literalText returns the value of an expression that is a string whatever the job's variables are.
func literalText(expr hclsyntax.Expression) (string, bool) {
	v, diags := expr.Value(nil)
	if diags.HasErrors() || v.IsNull() || !v.IsWhollyKnown() || v.Type() != cty.String {
		return "", false
	}
	return v.AsString(), true
}

// insertPairs inserts members into an object that is written in braces.
func (x *extractor) insertPairs(pairs []pair, open hcl2.Range, shut int, indent string) {
	start := open.End.Byte
	inside := x.job.source.Data[start:shut]
	if n := bytes.IndexByte(inside, '\n'); n >= 0 {
		text := "\n" + indent + "  " + joinPairs(pairs, "\n"+indent+"  ")
		if rest := bytes.TrimSpace(inside[:n]); len(rest) > 0 && rest[0] != '#' && !bytes.HasPrefix(rest, []byte("//")) {
			text += "," // another member follows on this line
		}
		x.edit(start, start, text)
		return
	}
	text := " " + joinPairs(pairs, ", ")
	if rest := bytes.TrimSpace(inside); len(rest) > 0 {
		text += ", " + string(rest)
	}
	x.edit(start, shut, text+" ")
}

// joinPairs formats members of an object, aligned if each is on a line of its own. Values are names
// and commas, which need no escaping.
func joinPairs(pairs []pair, sep string) string {
	width := 0
	if strings.Contains(sep, "\n") {
		for _, p := range pairs {
			width = max(width, len(p.quoted()))
		}
	}
	var list []string
	for _, p := range pairs {
		list = append(list, fmt.Sprintf("%-*s = %q", width, p.quoted(), p.value))
	}
	return strings.Join(list, sep)
}

// quoted returns the key as an object has it: in quotes if it is no identifier.
func (p pair) quoted() string {
	if hclsyntax.ValidIdentifier(p.key) {
		return p.key
	}
	return strconv.Quote(p.key)
}

// indented indents all lines of text except the first and blank lines.
func indented(text, indent string) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if i > 0 && l != "" {
			lines[i] = indent + l
		}
	}
	return strings.Join(lines, "\n")
}

// indentAt returns the white space at the start of the line that contains the byte.
func indentAt(src []byte, at int) string {
	line := src[bytes.LastIndexByte(src[:at], '\n')+1 : at]
	return string(line[:len(line)-len(bytes.TrimLeft(line, " \t"))])
}

// wholeLines extends a range to whole lines if nothing else is on them, and over one of two blank
// lines that would become adjacent.
func wholeLines(src []byte, start, end int) (int, int) {
	first := bytes.LastIndexByte(src[:start], '\n') + 1
	n := bytes.IndexByte(src[end:], '\n')
	if n < 0 || len(bytes.TrimSpace(src[first:start])) > 0 || len(bytes.TrimSpace(src[end:end+n])) > 0 {
		return start, end
	}
	start, end = first, end+n+1
	if n := bytes.IndexByte(src[end:], '\n'); n >= 0 && len(bytes.TrimSpace(src[end:end+n])) == 0 {
		end += n + 1
	}
	return start, end
}
