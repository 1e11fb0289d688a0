// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/posener/complete"

	"github.com/sif-project/sif/hcl"
)

// GraphPlanCommand is `sif graph plan`.
type GraphPlanCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *GraphPlanCommand) Synopsis() string { return "Show what applying a graph would do" }

// Help implements cli.Command.
func (c *GraphPlanCommand) Help() string {
	return help(`
Usage: sif graph plan [options] [<path>...]

  Shows what sif graph apply would do with the graph that lies in files and
  directories (without a path, in the current directory): which service gains
  or loses which other on which ports and by which contract, what begins to
  wait for another domain's consent, the live endpoints that this touches, the
  connections that nodes last reported and that would be cut, and the
  guardrails and mistakes that stand against it. Nothing is changed.

  The exit code is 0 unless there is an error or applying would be refused,
  which is 1. With -detailed-exitcode it is 2 if applying would make another
  revision; one that only moves lines or words descriptions otherwise is one.
`, `
Plan Options:

  -out=<path>
    Write the plan to a file, for sif graph apply to apply just that.

  -detailed-exitcode
    0: nothing would change; 1: error; 2: something would change.

  -json
    Print the plan in JSON.
`, changeOptions, variableOptions, controllerOptions)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *GraphPlanCommand) AutocompleteFlags() complete.Flags {
	return controllerPredictions(variablePredictions(changePredictions(complete.Flags{
		"-out": complete.PredictFiles("*"), "-detailed-exitcode": complete.PredictNothing, "-json": complete.PredictNothing,
	})))
}

// AutocompleteArgs implements cli.CommandAutocomplete.
func (c *GraphPlanCommand) AutocompleteArgs() complete.Predictor { return graphPaths }

// Run implements cli.Command.
func (c *GraphPlanCommand) Run(args []string) int {
	var change graphChange
	var out string
	var detailed bool
	flags := c.flagSet("graph plan")
	c.controllerFlags(flags)
	c.variableFlags(flags)
	c.jsonFlag(flags)
	change.flags(flags)
	flags.StringVar(&out, "out", "", "")
	flags.BoolVar(&detailed, "detailed-exitcode", false, "")
	if code, ok := c.parse(flags, args); !ok {
		return code
	}
	req, sources, ok := c.request(change, flags.Args())
	if !ok {
		return 1
	}
	client, err := c.client()
	if err != nil {
		return c.fail("reaching the controller", err)
	}
	ctx, stop := interruptible()
	defer stop()
	plan, err := client.Plan(ctx, req)
	if err != nil {
		return c.fail("planning the change", err)
	}
	if c.json {
		if code := c.outputJSON(plan); code != 0 {
			return code
		}
	} else {
		c.UI.Output(planText(plan))
	}
	if len(plan.Problems) > 0 {
		c.UI.Error("This stands against the plan; applying it would be refused:")
		c.diagnose(hcl.FromProblems(plan.Problems, sources...))
		return 1
	}
	if out != "" {
		data, err := json.MarshalIndent(plan, "", "  ")
		if err != nil {
			return c.fail("encoding the plan", err)
		}
		if err := os.WriteFile(out, append(data, '\n'), 0o600); err != nil {
			return c.fail("writing the plan", err)
		}
		if !c.json {
			c.UI.Output(fmt.Sprintf("\nThe plan is in %s. Apply just this:\n\n    sif graph apply %s", out, out))
		}
	}
	if detailed && plan.Changed {
		return 2
	}
	return 0
}
