// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/sif-project/sif/hcl"
)

// GraphFmtCommand is sif graph fmt.
type GraphFmtCommand struct {
	Meta
	check, write bool
}

// Synopsis implements cli.Command.
func (c *GraphFmtCommand) Synopsis() string { return "Rewrite graph files in canonical format" }

func (c *GraphFmtCommand) usage() string {
	return `
Usage: sif graph fmt [options] [<path>...]

  Rewrites HCL files in canonical format, and prints the names of the files that
  changed. A path is a file, or a directory in which all *.sif.hcl files are
  formatted; the default is the current directory. If the path is "-", standard
  input is formatted to standard output.

  The exit code is 0 on success, and 1 if a file cannot be formatted or -check
  finds a file that is not in canonical format.
`
}

func (c *GraphFmtCommand) options() []*flag.FlagSet {
	o := newOptions("Fmt Options")
	o.BoolVar(&c.check, "check", false, "Print the names of the files that would change, and change nothing.")
	o.BoolVar(&c.write, "write", true, "Write the result to the files; otherwise, to standard output. Default: true")
	return []*flag.FlagSet{o}
}

func (c *GraphFmtCommand) arguments() arguments { return graphArguments }

func (c *GraphFmtCommand) run(ctx context.Context, paths []string) error {
	if slices.Equal(paths, []string{"-"}) {
		source, err := readSource(ctx, "-")
		if err != nil {
			return fmt.Errorf("reading standard input: %w", err)
		}
		c.write = false
		return c.format(source)
	}
	if len(paths) == 0 {
		paths = []string{"."}
	}
	sources, err := hcl.ReadSources(paths...)
	if err != nil {
		return fmt.Errorf("reading files: %w", err)
	}
	var failed error
	for _, s := range sources {
		if strings.HasSuffix(s.Name, ".json") && !named(s.Name, paths) {
			continue // JSON has no canonical format; a directory may contain it
		}
		if err := c.format(s); err != nil {
			failed = err
		}
	}
	return failed
}

// named reports whether one of paths is the file itself, not a directory that contains it.
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

// format formats a file, and shows what is wrong with it.
func (c *GraphFmtCommand) format(s hcl.Source) error {
	out, diags := hcl.Format(s)
	if err := c.diagnose(diags); err != nil {
		return err
	}
	changed := !bytes.Equal(out, s.Data)
	switch {
	case c.check && changed:
		c.UI.Output(s.Name)
		return errReported
	case c.check:
	case !c.write:
		c.UI.Output(strings.TrimSuffix(string(out), "\n"))
	case changed:
		if err := os.WriteFile(s.Name, out, 0o644); err != nil {
			return c.report("Error writing the formatted file: %s", err)
		}
		c.UI.Output(s.Name)
	}
	return nil
}
