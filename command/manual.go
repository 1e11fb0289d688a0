// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"flag"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/cli"
)

// Page is what a manual says of a command: its help, in parts.
type Page struct {
	Name     string   // "sif graph plan"
	Synopsis string   // a line
	Usage    string   // "sif graph plan [options] <path>..."
	Text     string   // paragraphs; lines that are indented further than the first are to be kept as they are
	Sections []Titled // of options
}

// Titled is a section of options.
type Titled struct {
	Title   string
	Options []Option
}

// Option is an option of a command.
type Option struct{ Name, Value, Usage string } // Value is empty for a switch

// Pages returns the pages of all commands, ordered by name.
func Pages() []Page {
	all := commands(&cli.BasicUi{})
	var pages []Page
	for _, name := range slices.Sorted(maps.Keys(all)) {
		c, err := all[name]()
		if err != nil {
			panic(err) // no factory fails
		}
		text, sections := c.Help(), []*flag.FlagSet(nil)
		if r, ok := c.(*runner); ok {
			text, sections = strings.TrimSpace(r.usage()), r.options()
		}
		usage, rest, _ := strings.Cut(text, "\n\n")
		page := Page{Name: "sif " + name, Synopsis: c.Synopsis(), Usage: strings.Join(strings.Fields(strings.TrimPrefix(usage, "Usage:")), " "), Text: rest}
		for _, s := range sections {
			t := Titled{Title: s.Name()}
			s.VisitAll(func(f *flag.Flag) {
				value, usage := unquoteUsage(f)
				t.Options = append(t.Options, Option{f.Name, value, usage})
			})
			page.Sections = append(page.Sections, t)
		}
		pages = append(pages, page)
	}
	return pages
}
