// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"

	"github.com/sif-project/sif/hcl"
)

// GraphValidateCommand is sif graph validate.
type GraphValidateCommand struct {
	Meta
	variables variables
}

// Synopsis implements cli.Command.
func (c *GraphValidateCommand) Synopsis() string { return "Check the files of a service graph" }

func (c *GraphValidateCommand) usage() string {
	return `
Usage: sif graph validate [options] [<path>...]

  Checks the graph in the given files and directories, by default in the current
  directory. It does not contact the controller.

  The exit code is 0 if the graph is valid, and 1 if it is not.
`
}

func (c *GraphValidateCommand) options() []*flag.FlagSet {
	o := newOptions("Validate Options")
	c.jsonOption(o, "Print the result in JSON.")
	return []*flag.FlagSet{o, c.variables.options()}
}

func (c *GraphValidateCommand) arguments() arguments { return graphArguments }

func (c *GraphValidateCommand) run(ctx context.Context, paths []string) error {
	g, _, diags := loadGraph(ctx, &c.variables, paths)
	var invalid error
	if diags.HasErrors() {
		invalid = errReported
	}
	if !c.json {
		_ = c.diagnose(diags)
		if invalid == nil {
			c.UI.Output("The graph is valid: " + summary(g) + ".")
		}
		return invalid
	}
	if diags == nil {
		diags = hcl.Diagnostics{}
	}
	if err := c.output(struct {
		Valid       bool            `json:"valid"`
		Diagnostics hcl.Diagnostics `json:"diagnostics"`
	}{invalid == nil, diags}, nil); err != nil {
		return err
	}
	return invalid
}
