// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"strings"
	"unicode/utf8"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// readPlain parses a file of plain HCL: blocks, and arguments that are set to
// strings, whole numbers, true, false, null, names such as var.port, and lists
// and maps of these; with comments after # and //. Graphs consist of little
// else, and with HCL's own parser, which is ready for everything, most of the
// time to read a large one would go there.
//
// The law: where readPlain returns a body, hclsyntax.ParseConfig returns one
// that is deeply equal, and no diagnostics. At the first thing that it does not
// know it declines the file, by returning nil. A mistake is such a thing: words
// for mistakes are hclsyntax's alone.
func readPlain(s Source) *hclsyntax.Body {
	r := newPlainReader(s)
	if r == nil {
		return nil
	}
	r.spaces()
	start := r.pos()
	body := &hclsyntax.Body{}
	if !r.items(body, len(r.src)) || r.at < len(r.src) {
		return nil
	}
	r.end(body, start)
	return body
}

// plainReader reads from left to right. Its methods begin at the first byte of
// what they read and end behind its last; nil, false and an empty name mean that
// something else is there.
type plainReader struct {
	file  string
	src   string
	at    int // the next byte
	line  int // its line
	first int // the byte that would be the line's first, if each byte before this one were a column
}

func newPlainReader(s Source) *plainReader {
	if !utf8.Valid(s.Data) {
		return nil // hclsyntax counts the lines of broken text in a way of its own
	}
	return &plainReader{file: s.Name, src: string(s.Data), line: 1}
}

// What a byte may be part of.
const (
	isBlank uint8 = 1 << iota
	isDigit
	isLetter // of an identifier, at its beginning
	isInner  // of an identifier, behind that
	isText   // of a string, where it stands for itself
)

var classes = func() (t [256]uint8) {
	for c := range t {
		switch {
		case c == ' ' || c == '\t':
			t[c] |= isBlank
		case '0' <= c && c <= '9':
			t[c] |= isDigit | isInner
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_':
			t[c] |= isLetter | isInner
		case c == '-':
			t[c] |= isInner
		}
		if ' ' <= c && c <= '~' && !strings.ContainsRune(`"\$%`, rune(c)) {
			t[c] |= isText
		}
	}
	return t
}()

func (r *plainReader) pos() hcl2.Pos {
	return hcl2.Pos{Line: r.line, Column: r.at - r.first + 1, Byte: r.at}
}

func (r *plainReader) since(start hcl2.Pos) hcl2.Range {
	return hcl2.Range{Filename: r.file, Start: start, End: r.pos()}
}

// peek returns the next byte; at the end of the file, one with which nothing
// begins.
func (r *plainReader) peek() byte {
	if r.at == len(r.src) {
		return 0
	}
	return r.src[r.at]
}

// symbol reads one byte.
func (r *plainReader) symbol() hcl2.Range {
	start := r.pos()
	r.at++
	return r.since(start)
}

// skip reads a byte if it is the next.
func (r *plainReader) skip(c byte) bool {
	if r.peek() != c {
		return false
	}
	r.at++
	return true
}

// run reads the bytes of a class.
func (r *plainReader) run(class uint8) string {
	start := r.at
	for r.at < len(r.src) && classes[r.src[r.at]]&class != 0 {
		r.at++
	}
	return r.src[start:r.at]
}

func (r *plainReader) spaces() { r.run(isBlank) }

// newline reads the end of a line with the comment before it.
func (r *plainReader) newline() bool {
	rest, n := r.src[r.at:], -1
	switch {
	case strings.HasPrefix(rest, "\n"):
		n = 0
	case strings.HasPrefix(rest, "\r\n"):
		n = 1
	case strings.HasPrefix(rest, "#"), strings.HasPrefix(rest, "//"):
		n = strings.IndexByte(rest, '\n')
	}
	if n < 0 {
		return false
	}
	r.at += n + 1
	r.line++
	r.first = r.at
	return true
}

// lines reads blank lines, and the blanks before what comes then.
func (r *plainReader) lines() {
	r.spaces()
	for r.newline() {
		r.spaces()
	}
}

func (r *plainReader) identifier() string {
	if classes[r.peek()]&isLetter == 0 {
		return ""
	}
	return r.run(isInner)
}

// items reads what is in a body, up to its closing brace, or up to the first
// item that begins at limit or behind it.
func (r *plainReader) items(body *hclsyntax.Body, limit int) bool {
	body.Attributes, body.Blocks = hclsyntax.Attributes{}, hclsyntax.Blocks{}
	for r.lines(); r.at < limit && r.peek() != '}'; r.lines() {
		if !r.item(body) {
			return false
		}
		r.spaces()
		if r.at < len(r.src) && !r.newline() {
			return false
		}
	}
	return true
}

// item reads an argument or a block of a body.
func (r *plainReader) item(body *hclsyntax.Body) bool {
	start := r.pos()
	name := r.identifier()
	place := r.since(start)
	r.spaces()
	if name == "" {
		return false
	}
	if r.peek() != '=' {
		b := r.block(name, place)
		body.Blocks = append(body.Blocks, b)
		return b != nil
	}
	equals := r.symbol()
	r.spaces()
	expr := r.expression()
	if expr == nil || body.Attributes[name] != nil {
		return false
	}
	body.Attributes[name] = &hclsyntax.Attribute{Name: name, Expr: expr, SrcRange: r.since(start), NameRange: place, EqualsRange: equals}
	return true
}

// end completes a body that begins at start and ends here.
func (r *plainReader) end(body *hclsyntax.Body, start hcl2.Pos) {
	body.SrcRange, body.EndRange = r.since(start), r.since(r.pos())
}

// block reads a block behind its type.
func (r *plainReader) block(kind string, place hcl2.Range) *hclsyntax.Block {
	b := &hclsyntax.Block{Type: kind, TypeRange: place, Body: &hclsyntax.Body{}}
	for r.peek() != '{' {
		start := r.pos()
		label := r.identifier()
		if label == "" {
			var ok bool
			if label, _, ok = r.quoted(); !ok {
				return nil
			}
		}
		b.Labels, b.LabelRanges = append(b.Labels, label), append(b.LabelRanges, r.since(start))
		r.spaces()
	}
	b.OpenBraceRange = r.symbol()
	r.spaces()
	if r.newline() || r.peek() == '}' {
		if !r.items(b.Body, len(r.src)) || r.peek() != '}' {
			return nil
		}
		b.CloseBraceRange = r.symbol()
		r.end(b.Body, b.OpenBraceRange.Start)
		return b
	}
	// On one line there is one argument, and to HCL that is the whole body.
	start := r.pos()
	b.Body.Attributes = hclsyntax.Attributes{}
	if !r.item(b.Body) || b.Body.Blocks != nil {
		return nil
	}
	r.end(b.Body, start)
	r.spaces()
	if r.peek() != '}' {
		return nil
	}
	b.CloseBraceRange = r.symbol()
	return b
}

func (r *plainReader) expression() hclsyntax.Expression {
	switch c := r.peek(); {
	case c == '"':
		return r.text()
	case c == '[':
		return r.list()
	case c == '{':
		return r.object()
	case classes[c]&isDigit != 0:
		return r.number()
	case classes[c]&isLetter != 0:
		return r.name()
	}
	return nil
}

// quoted reads a string in quotes, if all of it stands for itself; inner is
// the place of what is between the quotes.
func (r *plainReader) quoted() (value string, inner hcl2.Range, ok bool) {
	if !r.skip('"') {
		return "", inner, false
	}
	start := r.pos()
	value = r.run(isText)
	inner = r.since(start)
	return value, inner, r.skip('"')
}

// text reads a string.
func (r *plainReader) text() hclsyntax.Expression {
	start := r.pos()
	value, inner, ok := r.quoted()
	if !ok || value == "" { // HCL has a range of its own for nothing
		r.at = start.Byte
		return r.template()
	}
	// In one piece, because most of a graph is strings.
	s := &struct {
		template hclsyntax.TemplateExpr
		literal  hclsyntax.LiteralValueExpr
		parts    [1]hclsyntax.Expression
	}{}
	s.literal = hclsyntax.LiteralValueExpr{Val: cty.StringVal(value), SrcRange: inner}
	s.parts[0] = &s.literal
	s.template = hclsyntax.TemplateExpr{Parts: s.parts[:], SrcRange: r.since(start)}
	return &s.template
}

// template has HCL read a string with other characters than ASCII, whose
// columns are not its bytes, with escapes or with templates. The string ends at
// the first quote that is not escaped, or HCL says that it does not.
func (r *plainReader) template() hclsyntax.Expression {
	for i := r.at + 1; i < len(r.src); i++ {
		switch r.src[i] {
		case '\\':
			i++
		case '\n':
			return nil
		case '"':
			expr, diags := hclsyntax.ParseExpression([]byte(r.src[r.at:i+1]), r.file, r.pos())
			if len(diags) > 0 {
				return nil
			}
			r.at = i + 1
			r.first = r.at - expr.Range().End.Column + 1
			return expr
		}
	}
	return nil
}

func (r *plainReader) number() hclsyntax.Expression {
	start := r.pos()
	value, err := cty.ParseNumberVal(r.run(isDigit))
	if err != nil {
		return nil
	}
	return &hclsyntax.LiteralValueExpr{Val: value, SrcRange: r.since(start)}
}

// name reads a keyword or a traversal, such as var.port.
func (r *plainReader) name() hclsyntax.Expression {
	start := r.pos()
	name := r.identifier()
	place := r.since(start)
	switch name {
	case "true":
		return &hclsyntax.LiteralValueExpr{Val: cty.True, SrcRange: place}
	case "false":
		return &hclsyntax.LiteralValueExpr{Val: cty.False, SrcRange: place}
	case "null":
		return &hclsyntax.LiteralValueExpr{Val: cty.NullVal(cty.DynamicPseudoType), SrcRange: place}
	case "for":
		return nil
	}
	steps := hcl2.Traversal{hcl2.TraverseRoot{Name: name, SrcRange: place}}
	for r.peek() == '.' {
		dot := r.symbol()
		name := r.identifier()
		if name == "" {
			return nil
		}
		steps = append(steps, hcl2.TraverseAttr{Name: name, SrcRange: r.since(dot.Start)})
	}
	return &hclsyntax.ScopeTraversalExpr{Traversal: steps, SrcRange: r.since(start)}
}

func (r *plainReader) list() hclsyntax.Expression {
	open := r.symbol()
	var members []hclsyntax.Expression
	for r.lines(); r.peek() != ']'; r.lines() {
		member := r.expression()
		if member == nil {
			return nil
		}
		members = append(members, member)
		r.lines()
		if !r.skip(',') && r.peek() != ']' {
			return nil
		}
	}
	r.skip(']')
	return &hclsyntax.TupleConsExpr{Exprs: members, SrcRange: r.since(open.Start), OpenRange: open}
}

func (r *plainReader) object() hclsyntax.Expression {
	open := r.symbol()
	var members []hclsyntax.ObjectConsItem
	for r.lines(); r.peek() != '}'; r.lines() {
		key := r.expression()
		r.spaces()
		if key == nil || !r.skip('=') && !r.skip(':') {
			return nil
		}
		r.spaces()
		value := r.expression()
		if value == nil {
			return nil
		}
		members = append(members, hclsyntax.ObjectConsItem{KeyExpr: &hclsyntax.ObjectConsKeyExpr{Wrapped: key}, ValueExpr: value})
		r.spaces()
		if !r.skip(',') && !r.newline() && r.peek() != '}' {
			return nil
		}
	}
	r.skip('}')
	return &hclsyntax.ObjectConsExpr{Items: members, SrcRange: r.since(open.Start), OpenRange: open}
}
