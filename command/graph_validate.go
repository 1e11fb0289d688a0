// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"strings"

	"github.com/posener/complete"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
)

// GraphValidateCommand is `sif graph validate`.
type GraphValidateCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *GraphValidateCommand) Synopsis() string { return "Check graph files" }

// Help implements cli.Command.
func (c *GraphValidateCommand) Help() string {
	return help(`
Usage: sif graph validate [options] [<path>...]

  Checks the graph that lies in files and directories; without a path, in the
  current directory. It needs no fabric.

  The exit code is 0 if the graph is valid, 1 if it is not.
`, `
Validate Options:

  -json
    Print the result in JSON.
`, variableOptions)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *GraphValidateCommand) AutocompleteFlags() complete.Flags {
	return variablePredictions(complete.Flags{"-json": complete.PredictNothing})
}

// AutocompleteArgs implements cli.CommandAutocomplete.
func (c *GraphValidateCommand) AutocompleteArgs() complete.Predictor { return graphPaths }

// Run implements cli.Command.
func (c *GraphValidateCommand) Run(args []string) int {
	flags := c.flagSet("graph validate")
	c.variableFlags(flags)
	c.jsonFlag(flags)
	if code, ok := c.parse(flags, args); !ok {
		return code
	}
	g, _, diags := c.loadGraph(flags.Args())
	code := 0
	if diags.HasErrors() {
		code = 1
	}
	if c.json {
		if diags == nil {
			diags = hcl.Diagnostics{}
		}
		return max(code, c.outputJSON(struct {
			Valid       bool            `json:"valid"`
			Diagnostics hcl.Diagnostics `json:"diagnostics"`
		}{code == 0, diags}))
	}
	c.diagnose(diags)
	if code == 0 {
		c.UI.Output("The graph is valid: " + summary(g) + ".")
	}
	return code
}

func summary(g *fabric.Graph) string {
	services, contracts := 0, 0
	for _, d := range g.Domains {
		services += len(d.Services)
		contracts += len(d.Contracts)
	}
	var parts []string
	if len(g.Domains) > 0 || len(g.Guardrails) == 0 {
		parts = append(parts, count(len(g.Domains), "domain"), count(services, "service"), count(contracts, "contract"))
	}
	if len(g.Guardrails) > 0 {
		parts = append(parts, count(len(g.Guardrails), "guardrail"))
	}
	return strings.Join(parts, ", ")
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
