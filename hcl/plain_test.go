// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/internal/graphgen"
)

// samePlain checks the law of readPlain for a file, and reports whether the file
// is plain.
func samePlain(t interface{ Fatalf(string, ...any) }, data []byte) bool {
	body := readPlain(Source{Name: "g.sif.hcl", Data: data})
	if body == nil {
		return false
	}
	file, diags := hclsyntax.ParseConfig(data, "g.sif.hcl", hcl2.InitialPos)
	if len(diags) > 0 {
		t.Fatalf("read as plain, but: %v\n%q", diags, data)
	}
	if want := file.Body.(*hclsyntax.Body); !reflect.DeepEqual(want, body) {
		t.Fatalf("HCL's %# v\nplain %# v\n%q", want, body, data)
	}
	return true
}

func TestPlainTable(t *testing.T) {
	for _, c := range []struct {
		src   string
		plain bool
	}{
		{"", true},
		{"\n\n", true},
		{"# only a comment\n", true},
		{"# without an end", false},
		{"a = 1", true},
		{"a=1\n", true},
		{"a = 1 // why\nb = 2 # and\n", true},
		{"a = 1\r\nb = 2\r\n", true},
		{"a = 1\rb = 2\n", false},
		{"\xef\xbb\xbfa = 1\n", false},
		{"a = 007\n", true},
		{"a = 123456789012345678901234567890\n", true},
		{"a = -1\n", false},
		{"a = 1.5\n", false},
		{"a = 1e3\n", false},
		{"a = true\nb = false\nc = null\n", true},
		{"a = var.b.c-d\n", true},
		{"a = var.b[0]\n", false},
		{"a = var.b.0\n", false},
		{"a = var.*.b\n", false},
		{"a = upper(\"b\")\n", false},
		{"a = 1 + 1\n", false},
		{"a = b ? 1 : 2\n", false},
		{"a = (1)\n", false},
		{"a = \"\"\n", true},
		{"a = \"b\"\n", true},
		{"a = \"ä\\u00df\\n\" # ö\nb = 1\n", true},
		{"a = [\"o\u0308\", \"👩\u200d🚀\", 1]\n", true},
		{"a = \"${b}\"\n", true},
		{"a = \"$${b} %%{c}\"\n", true},
		{"a = \"b ${c} %{ if d }e%{ endif }\"\n", true},
		{"a = \"${\"b\"}\"\n", false},
		{"a = \"b\nc\"\n", false},
		{"a = \"b\n", false},
		{"a = <<EOT\nb\nEOT\n", false},
		{"a = /* b */ 1\n", false},
		{"a = []\nb = [ ]\nc = [\n]\n", true},
		{"a = [1, 2,]\n", true},
		{"a = [\n  1, # one\n  [2],\n]\n", true},
		{"a = [1 2]\n", false},
		{"a = [, 1]\n", false},
		{"a = [for b in c : b]\n", false},
		{"a = {}\nb = {\n}\n", true},
		{"a = { b = 1, \"c\" : 2 }\n", true},
		{"a = {\n  b = 1\n  c = [\n  2]\n\n  # more\n  d = { e = 3 }\n}\n", true},
		{"a = { b = 1 c = 2 }\n", false},
		{"a = { b\n= 1 }\n", false},
		{"a = { (b) = 1 }\n", false},
		{"a {}\n", true},
		{"a {\n}\n", true},
		{"a { # why\n  b = 1\n}\n", true},
		{"a { b = 1 }\n", true},
		{"a { b = [\n1\n] } # why\n", true},
		{"a { b = 1, c = 2 }\n", false},
		{"a { b {} }\n", false},
		{"a \"b\" c {\n  d \"e\" {\n  }\n}\n", true},
		{"a \"\" {}\n", true},
		{"a \"ä\" {}\n", false},
		{"a \"b\" = 1\n", false},
		{"a {\n", false},
		{"a {}\n}\n", false},
		{"a {} b {}\n", false},
		{"a = 1\na = 2\n", false},
		{"= 1\n", false},
		{"a\n", false},
		{"a =\n", false},
	} {
		must.Eq(t, c.plain, samePlain(t, []byte(c.src)), must.Sprintf("%q", c.src))
	}
}

// TestPlainFiles holds the reader to its law on every file that is here, and
// requires that it reads graphs as people and generators write them.
func TestPlainFiles(t *testing.T) {
	for pattern, plain := range map[string]bool{
		"../jobs/*/*.sif.hcl":            true,
		"testdata/valid/getaway.sif.hcl": true,
		"../jobs/*/*.nomad.hcl":          false, // not always
		"testdata/*/*.hcl":               false,
	} {
		paths, err := filepath.Glob(pattern)
		must.NoError(t, err)
		for _, p := range paths {
			data, err := os.ReadFile(p)
			must.NoError(t, err)
			if read := samePlain(t, data); plain {
				must.True(t, read, must.Sprint(p))
			}
		}
	}
	g := graphgen.Generate(graphgen.Shape{Services: 100, Contracts: 300})
	must.True(t, samePlain(t, EncodeGraph(g)))
}

// TestPlainGraphs holds the reader to its law, and to not declining, on graphs
// whose strings are anything.
func TestPlainGraphs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		src := EncodeGraph(genGraph(t))
		if rapid.Bool().Draw(t, "untidy") {
			src = unformat(t, src)
		}
		if !samePlain(t, src) {
			t.Fatalf("declined:\n%s", src)
		}
	})
}

// genPlain makes the tokens of what the reader knows, mostly in places where
// they may stand.
type genPlain struct {
	*rapid.T
	b bytes.Buffer
}

func (g *genPlain) any(of ...string) { g.b.WriteString(rapid.SampledFrom(of).Draw(g.T, "token")) }

func (g *genPlain) blank() { g.any("", "", " ", " ", "\t", "  ") }

func (g *genPlain) newline() { g.any("\n", "\n", "\n\n", "\r\n", "# why\n", "// ö \"{\n", " \n\t\n") }

func (g *genPlain) name() { g.any("a", "b", "c-d", "_e", "f1", "for", "true", "null") }

func (g *genPlain) items(depth int) {
	for i := range rapid.IntRange(0, 4).Draw(g.T, "items") {
		g.blank()
		if depth > 3 || rapid.Bool().Draw(g.T, "argument") {
			g.any("a", "b", "c", "d")
			fmt.Fprint(&g.b, i)
			g.argument(depth)
		} else {
			g.block(depth)
		}
		g.blank()
		g.newline()
	}
	g.blank()
}

func (g *genPlain) argument(depth int) {
	g.blank()
	g.any("=")
	g.blank()
	g.expression(depth)
}

func (g *genPlain) block(depth int) {
	g.name()
	for range rapid.IntRange(0, 2).Draw(g.T, "labels") {
		g.any(` "x"`, ` ""`, " y", ` "a b"`, `"z"`)
	}
	g.blank()
	g.any("{")
	g.blank()
	switch rapid.IntRange(0, 3).Draw(g.T, "form") {
	case 0:
	case 1:
		g.name()
		g.argument(depth)
		g.blank()
	default:
		g.newline()
		g.items(depth + 1)
	}
	g.any("}")
}

func (g *genPlain) expression(depth int) {
	kind := rapid.IntRange(0, 9).Draw(g.T, "kind")
	switch {
	case kind == 0 && depth < 4:
		g.any("[")
		for range rapid.IntRange(0, 3).Draw(g.T, "members") {
			g.any("", " ", "\n", "# why\n")
			g.expression(depth + 1)
			g.any("", " ", "\n")
			g.any(",", ",", ",", ",", ",", ",", " ")
		}
		g.any("", " ", "\n")
		g.any("]")
	case kind == 1 && depth < 4:
		g.any("{")
		for range rapid.IntRange(0, 3).Draw(g.T, "members") {
			g.any("", " ", "\n", "# why\n")
			g.any("a", "b", `"c"`, `"ü"`, "1", "true", "a.b", "[]")
			g.blank()
			g.any("=", "=", "=", ":")
			g.blank()
			g.expression(depth + 1)
			g.blank()
			g.any(",", ",\n", "\n", "# why\n", ", ", ",", " ")
		}
		g.any("}")
	case kind == 2:
		g.name()
		g.any("", "", ".x", ".x.y-z", ".0", "[0]", ".")
	case kind == 3:
		g.any("0", "1", "8080", "007", "18446744073709551616", "1.5", "-1", "1e3")
	default:
		g.any(`""`, `"a"`, `"a b/c"`, `"ä"`, `"o\u0308"`, `"\\n"`, `"\\\\"`, `"\\""`, `"${a}"`, `"$${"`, `"%%{"`, `"x ${a.b} y"`, `"%"`, `"$"`, `"👩\u200d🚀"`, "\"o\u0308\"", "\"\u0308👩\u200d🚀\"")
	}
}

// TestPlainSyntax holds the reader to its law on the syntax that it knows and
// on what is near it.
func TestPlainSyntax(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := genPlain{T: t}
		g.items(0)
		src := g.b.Bytes()
		if rapid.IntRange(0, 3).Draw(t, "mistake") == 0 && len(src) > 0 {
			at := rapid.IntRange(0, len(src)-1).Draw(t, "at")
			with := rapid.SampledFrom([]string{"", "{", "}", "[", "]", "=", ",", ".", "\"", "\n", "\r", "#", "\\", "$", "é", "<<A", "/*", "*"}).Draw(t, "with")
			src = slices.Concat(src[:at], []byte(with), src[at+1:])
		}
		samePlain(t, src)
	})
}

func FuzzPlain(f *testing.F) {
	for _, pattern := range []string{"testdata/*/*.hcl", "../jobs/*/*.hcl"} {
		for _, s := range seeds(f, pattern) {
			f.Add(s.Data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) { samePlain(t, data) })
}
