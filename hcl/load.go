// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	hcl2 "github.com/hashicorp/hcl/v2"

	"github.com/sif-project/sif/fabric"
)

// Extensions are the file extensions of a graph: HCL, then its JSON form.
var Extensions = []string{".sif.hcl", ".sif.json", ".sif.hcl.json"}

// ReadSources reads the files of a graph: those that GraphFiles lists.
func ReadSources(paths ...string) ([]Source, error) {
	files, err := GraphFiles(paths...)
	if err != nil {
		return nil, err
	}
	sources := make([]Source, 0, len(files))
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read graph: %w", err)
		}
		sources = append(sources, Source{Name: name, Data: data})
	}
	return sources, nil
}

// GraphFiles lists the files of the graph in the given files and directories. In a directory these
// are the files with one of Extensions, subdirectories excluded. A file that is named itself may be
// called anything; it is JSON if it ends in ".json".
func GraphFiles(paths ...string) ([]string, error) {
	var files []string
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, fmt.Errorf("read graph: %w", err)
		}
		if !info.IsDir() {
			files = append(files, filepath.Clean(p))
			continue
		}
		entries, err := os.ReadDir(p)
		if err != nil {
			return nil, fmt.Errorf("read graph: %w", err)
		}
		var found []string
		for _, e := range entries {
			if !e.IsDir() && isGraphFile(e) {
				found = append(found, filepath.Join(p, e.Name()))
			}
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("read graph: directory %s contains no graph file; their names end in %s", p, strings.Join(Extensions, ", "))
		}
		files = append(files, found...)
	}
	slices.Sort(files)
	return slices.Compact(files), nil
}

func isGraphFile(e fs.DirEntry) bool {
	// Editors leave hidden files behind.
	return !strings.HasPrefix(e.Name(), ".") &&
		slices.ContainsFunc(Extensions, func(x string) bool { return strings.HasSuffix(e.Name(), x) })
}

// FromProblems converts problems of a graph into diagnostics that quote the lines of its files.
func FromProblems(problems []fabric.Problem, sources ...Source) Diagnostics {
	return newDiagnostics(fromProblems(problems, sources), sources...)
}

func fromProblems(problems []fabric.Problem, sources []Source) hcl2.Diagnostics {
	var diags hcl2.Diagnostics
	for _, p := range problems {
		pos := hcl2.Pos{Line: p.Pos.Line, Column: p.Pos.Column, Byte: -1}
		for _, s := range sources {
			if s.Name == p.Pos.File {
				pos.Byte = offset(s.Data, p.Pos)
			}
		}
		diags = append(diags, errorAt(hcl2.Range{Filename: p.Pos.File, Start: pos, End: pos}, sentence(p.Remedy), "%s", p.Summary))
	}
	return diags
}

// sentence turns a phrase into a sentence.
func sentence(s string) string {
	if s == "" {
		return s
	}
	s = strings.ToUpper(s[:1]) + s[1:]
	if strings.ContainsAny(s[len(s)-1:], ".?!") {
		return s
	}
	return s + "."
}

// offset returns the byte offset of pos. It only selects the line to show: it is inexact in a line
// with wide characters.
func offset(src []byte, pos fabric.Position) int {
	at := 0
	for line := 1; line < pos.Line; line++ {
		n := bytes.IndexByte(src[at:], '\n')
		if n < 0 {
			return -1
		}
		at += n + 1
	}
	return min(at+pos.Column-1, len(src))
}
