// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"go/ast"
	"go/types"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/shoenig/test/must"
	"golang.org/x/tools/go/packages"
)

// logged names the methods of hclog.Logger that take keys and values, and how many arguments come
// before the first key.
var logged = map[string]int{
	"Log": 2, "Trace": 1, "Debug": 1, "Info": 1, "Warn": 1, "Error": 1, // a message
	"With": 0,
}

// TestLogKeysAreTheVocabulary checks that each key in a call of a logger is a constant of
// internal/logkey. A slice of keys and values (args...) is refused, because its keys cannot be seen
// in the call.
func TestLogKeysAreTheVocabulary(t *testing.T) {
	const hclog, logkey = "github.com/hashicorp/go-hclog", module + "/internal/logkey"
	var patterns []string
	for _, p := range listPackages(t) {
		if slices.Contains(p.Imports, hclog) || slices.Contains(p.Imports, logkey) {
			patterns = append(patterns, p.ImportPath)
		}
	}
	loaded, err := packages.Load(&packages.Config{
		Mode:       packages.NeedName | packages.NeedFiles | packages.NeedImports | packages.NeedSyntax | packages.NeedTypes | packages.NeedTypesInfo,
		BuildFlags: []string{"-tags=e2e"},
	}, patterns...)
	must.NoError(t, err)
	calls := 0
	for _, p := range loaded {
		must.SliceEmpty(t, p.Errors)
		for _, file := range p.Syntax {
			for n := range ast.Preorder(file) {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					continue
				}
				method, ok := called(p.TypesInfo, call.Fun).(*types.Func)
				if !ok || method.Pkg() == nil || method.Pkg().Path() != hclog || method.Signature().Recv() == nil {
					continue
				}
				first, ok := logged[method.Name()]
				if !ok {
					continue
				}
				calls++
				if call.Ellipsis.IsValid() {
					t.Errorf("%s: keys and values must be written out, not passed as a slice", p.Fset.Position(call.Ellipsis))
					continue
				}
				for i := first; i < len(call.Args); i += 2 {
					key, ok := called(p.TypesInfo, call.Args[i]).(*types.Const)
					if !ok || key.Pkg() == nil || key.Pkg().Path() != logkey {
						t.Errorf("%s: %s is not a key of internal/logkey: use one, or add one that says what it means",
							p.Fset.Position(call.Args[i].Pos()), types.ExprString(call.Args[i]))
					}
				}
			}
		}
	}
	must.Greater(t, 50, calls, must.Sprint("the loggers' calls were not found"))
}

// called returns what an expression names: the X of X or of pkg.X or of value.X.
func called(info *types.Info, e ast.Expr) types.Object {
	switch e := ast.Unparen(e).(type) {
	case *ast.Ident:
		return info.Uses[e]
	case *ast.SelectorExpr:
		return info.Uses[e.Sel]
	}
	return nil
}

// TestCommentsAreAtMost100ColumnsWide checks the lines of Go and C files that are nothing but a
// comment. A tab counts as 4 columns. Directives and an Example's expected output cannot be
// wrapped.
func TestCommentsAreAtMost100ColumnsWide(t *testing.T) {
	const most = 100
	output := regexp.MustCompile(`(?i)^// (unordered )?output:`)
	cmd := exec.Command("git", "ls-files", "*.go", "*.c", "*.h")
	cmd.Stderr = os.Stderr
	files, err := cmd.Output()
	must.NoError(t, err)
	for _, name := range strings.Fields(string(files)) {
		if strings.HasSuffix(name, "_bpfel.go") {
			continue
		}
		text, err := os.ReadFile(name)
		must.NoError(t, err)
		inOutput := false
		for i, line := range strings.Split(string(text), "\n") {
			comment := strings.TrimSpace(line)
			inOutput = strings.HasPrefix(comment, "//") && (inOutput || output.MatchString(comment))
			if !strings.HasPrefix(comment, "//") || strings.HasPrefix(comment, "//go:") || inOutput {
				continue
			}
			if width := utf8.RuneCountInString(strings.ReplaceAll(line, "\t", "    ")); width > most {
				t.Errorf("%s:%d: the comment is %d columns wide, %d is the most", name, i+1, width, most)
			}
		}
	}
}
