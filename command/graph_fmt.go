// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"bytes"
	"io"
	"os"
	"strings"

	"github.com/posener/complete"

	"github.com/sif-project/sif/hcl"
)

// GraphFmtCommand is `sif graph fmt`.
type GraphFmtCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *GraphFmtCommand) Synopsis() string { return "Bring graph files into canonical layout" }

// Help implements cli.Command.
func (c *GraphFmtCommand) Help() string {
	return help(`
Usage: sif graph fmt [options] [<path>...]

  Rewrites files of HCL in the canonical layout and prints the names of those
  that changed. A path is a file, or a directory whose *.sif.hcl files are
  meant; without a path it is the current directory. If the path is "-",
  standard input is formatted to standard output.

  The exit code is 0 on success, 1 if a file cannot be formatted, or if -check
  finds files that are not in canonical layout.
`, `
Fmt Options:

  -check
    Change nothing; print the names of the files that would change.

  -write=<bool>
    Write the result back to the file. With -write=false it goes to standard
    output. Default: true
`)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *GraphFmtCommand) AutocompleteFlags() complete.Flags {
	return complete.Flags{"-check": complete.PredictNothing, "-write": complete.PredictSet("true", "false")}
}

// AutocompleteArgs implements cli.CommandAutocomplete.
func (c *GraphFmtCommand) AutocompleteArgs() complete.Predictor { return graphPaths }

// Run implements cli.Command.
func (c *GraphFmtCommand) Run(args []string) int {
	var check, write bool
	flags := c.flagSet("graph fmt")
	flags.BoolVar(&check, "check", false, "")
	flags.BoolVar(&write, "write", true, "")
	if code, ok := c.parse(flags, args); !ok {
		return code
	}
	paths := flags.Args()
	if len(paths) == 0 {
		paths = []string{"."}
	}
	if len(paths) == 1 && paths[0] == "-" {
		data, err := io.ReadAll(os.Stdin)
		if err != nil {
			return c.fail("reading standard input", err)
		}
		return c.format(hcl.Source{Name: "<stdin>", Data: data}, check, false)
	}
	sources, err := hcl.ReadSources(paths...)
	if err != nil {
		return c.fail("reading files", err)
	}
	code := 0
	for _, s := range sources {
		if strings.HasSuffix(s.Name, ".json") && !named(s.Name, paths) {
			continue // a directory's JSON has no layout of ours
		}
		code = max(code, c.format(s, check, write))
	}
	return code
}

// named reports whether the user named the file itself.
func named(name string, paths []string) bool {
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil && !info.IsDir() {
			if other, err := os.Stat(name); err == nil && os.SameFile(info, other) {
				return true
			}
		}
	}
	return false
}

func (c *GraphFmtCommand) format(s hcl.Source, check, write bool) int {
	out, diags := hcl.Format(s)
	c.diagnose(diags)
	if diags.HasErrors() {
		return 1
	}
	changed := !bytes.Equal(out, s.Data)
	switch {
	case check && changed:
		c.UI.Output(s.Name)
		return 1
	case check:
	case !write:
		c.UI.Output(strings.TrimSuffix(string(out), "\n"))
	case changed:
		if err := os.WriteFile(s.Name, out, 0o644); err != nil {
			return c.fail("writing the formatted file", err)
		}
		c.UI.Output(s.Name)
	}
	return 0
}
