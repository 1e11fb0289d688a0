// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"strings"

	"github.com/sif-project/sif/internal/version"
)

// VersionCommand is sif version.
type VersionCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *VersionCommand) Synopsis() string { return "Print the version of sif" }

func (c *VersionCommand) usage() string {
	return `
Usage: sif version [options]

  Prints the version of sif, and the commit that it was built from. The versions
  of the daemons that run are in the output of "sif status".
`
}

func (c *VersionCommand) options() []*flag.FlagSet {
	o := newOptions("Options")
	c.jsonOption(o, "Print the version in JSON.")
	return []*flag.FlagSet{o}
}

func (c *VersionCommand) run(context.Context, []string) error {
	info := version.Current()
	return c.output(info, func() string {
		var b strings.Builder
		fmt.Fprintf(&b, "sif v%s\n", info.Version)
		if info.Commit != "" {
			fmt.Fprintf(&b, "Commit    %s, %s\n", info.Commit, info.Date)
		}
		fmt.Fprintf(&b, "Platform  %s, %s\n", info.System, info.Go)
		return b.String()
	})
}
