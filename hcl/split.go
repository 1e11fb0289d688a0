// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"bytes"
	"runtime"
	"slices"
	"sync"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// pieceSize is how much of a large file is parsed at once. HCL's parser keeps
// all tokens of what it parses, each far larger than its text, so that pieces
// that fit a processor's cache take less than half of the time.
const pieceSize = 4 << 10

// piece is a part of a file, from the beginning of a line to the end of one,
// that holds whole items of the body around it.
type piece struct {
	src    []byte
	start  hcl2.Pos
	block  *split          // not nil: the piece is the first line of this block
	parsed *hclsyntax.Body // nil if there is an error
}

// split is a block that is parsed in pieces.
type split struct {
	pieces []*piece
	shut   hcl2.Range // its closing brace
}

// parseSplit parses native syntax in pieces, at the same time. It gives the
// same as parsing all at once, or reports false: then the file has an error,
// or something that reaches over lines in other ways than by brackets.
func parseSplit(s Source, size int) (*hclsyntax.Body, bool) {
	if bytes.HasPrefix(s.Data, []byte("\xef\xbb\xbf")) {
		return nil, false
	}
	for _, reaches := range []string{"<<", "/*", "${", "%{"} {
		if bytes.Contains(s.Data, []byte(reaches)) {
			return nil, false
		}
	}
	c := cutter{name: s.Name, size: size}
	if !c.cut(s.Data) {
		return nil, false
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for _, p := range c.all {
		slots <- struct{}{}
		wg.Go(func() {
			p.parse(s.Name)
			<-slots
		})
	}
	wg.Wait()
	body := &hclsyntax.Body{EndRange: hcl2.Range{Filename: s.Name, Start: c.at, End: c.at}}
	if !join(body, c.root.pieces) {
		return nil, false
	}
	body.SrcRange = body.EndRange
	if len(c.root.pieces) > 0 {
		body.SrcRange.Start = c.root.pieces[0].parsed.SrcRange.Start
	}
	return body, true
}

func (p *piece) parse(name string) {
	src := p.src
	if p.block != nil {
		src = slices.Concat(bytes.TrimRight(src, "\r\n"), []byte("\n}\n"))
	}
	file, diags := hclsyntax.ParseConfig(src, name, p.start)
	if len(diags) == 0 {
		p.parsed = file.Body.(*hclsyntax.Body)
	}
}

// join puts what pieces hold into the body around them.
func join(body *hclsyntax.Body, pieces []*piece) bool {
	body.Attributes = hclsyntax.Attributes{}
	body.Blocks = hclsyntax.Blocks{}
	for _, p := range pieces {
		if p.parsed == nil {
			return false
		}
		for name, a := range p.parsed.Attributes {
			if body.Attributes[name] != nil {
				return false
			}
			body.Attributes[name] = a
		}
		if p.block != nil {
			if len(p.parsed.Blocks) != 1 {
				return false
			}
			b := p.parsed.Blocks[0]
			b.CloseBraceRange = p.block.shut
			b.Body.SrcRange = hcl2.RangeBetween(b.OpenBraceRange, b.CloseBraceRange)
			b.Body.EndRange = hcl2.Range{Filename: p.block.shut.Filename, Start: p.block.shut.End, End: p.block.shut.End}
			if !join(b.Body, p.block.pieces) {
				return false
			}
		}
		body.Blocks = append(body.Blocks, p.parsed.Blocks...)
	}
	return true
}

// cutter cuts a file into pieces, at lines that are in no bracket, or in that
// of one block of the file.
type cutter struct {
	name string
	size int
	at   hcl2.Pos
	all  []*piece
	root split
}

func (c *cutter) cut(src []byte) bool {
	c.at = hcl2.InitialPos
	in := &c.root
	from := c.at // of the piece that is being collected
	flush := func(into *split, block *split) {
		if data := src[from.Byte:c.at.Byte]; len(data) > 0 {
			p := &piece{src: data, start: from, block: block}
			into.pieces = append(into.pieces, p)
			c.all = append(c.all, p)
		}
		from = c.at
	}
	depth := 0
	for c.at.Byte < len(src) {
		line := src[c.at.Byte:]
		if n := bytes.IndexByte(line, '\n'); n >= 0 {
			line = line[:n+1]
		}
		code, change, ok := brackets(line)
		if !ok {
			return false
		}
		opens := depth == 0 && change == 1 && len(code) > 0 && code[len(code)-1] == '{'
		shuts := depth == 1 && in != &c.root && string(code) == "}"
		if opens {
			flush(&c.root, nil)
		}
		if shuts {
			flush(in, nil)
			column := bytes.IndexByte(line, '}')
			brace := hcl2.Pos{Line: c.at.Line, Column: column + 1, Byte: c.at.Byte + column}
			in.shut = hcl2.Range{Filename: c.name, Start: brace, End: hcl2.Pos{Line: brace.Line, Column: brace.Column + 1, Byte: brace.Byte + 1}}
		}
		depth += change
		if depth < 0 || depth == 0 && in != &c.root && !shuts {
			return false
		}
		c.at.Byte += len(line)
		c.at.Line++
		switch {
		case opens:
			in = &split{}
			flush(&c.root, in)
		case shuts:
			in, from = &c.root, c.at
		case depth == 0 && in == &c.root, depth == 1 && in != &c.root:
			if c.at.Byte-from.Byte >= c.size {
				flush(in, nil)
			}
		}
	}
	if len(src) > 0 && src[len(src)-1] != '\n' {
		return false
	}
	flush(&c.root, nil)
	return depth == 0
}

// brackets returns a line without its comment and the blanks around, and by
// how much more it opens than it closes. It reports false if a string does not
// end on the line.
func brackets(line []byte) (code []byte, change int, ok bool) {
	text := false
	end := len(line)
scan:
	for i := 0; i < len(line); i++ {
		switch b := line[i]; {
		case text && b == '\\':
			i++
		case b == '"':
			text = !text
		case text:
		case b == '#', b == '/' && i+1 < len(line) && line[i+1] == '/':
			end = i
			break scan
		case b == '{', b == '[', b == '(':
			change++
		case b == '}', b == ']', b == ')':
			change--
		}
	}
	return bytes.TrimSpace(line[:end]), change, !text
}
