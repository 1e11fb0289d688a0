// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"

	"github.com/sif-project/sif/hcl"
)

// GraphPlanCommand is sif graph plan.
type GraphPlanCommand struct {
	Meta
	change   graphChange
	out      string
	detailed bool
}

// Synopsis implements cli.Command.
func (c *GraphPlanCommand) Synopsis() string {
	return "Show what applying a service graph would change"
}

func (c *GraphPlanCommand) usage() string {
	return `
Usage: sif graph plan [options] [<path>...]

  Shows what sif graph apply would change for the graph in the given files and
  directories, by default in the current directory: which services gain or lose
  reachability, on which ports and by which contract; which contracts would wait
  for another domain's consent; which live endpoints are affected; which
  reported connections would be cut; what bindings grant, and what loses its
  effect by that; how links between zones change, and what no link carries then;
  and the errors, guardrails and bindings for which the graph would be refused.
  The command changes nothing.

  The exit code is 0 if the graph can be applied, and 1 on an error or if it
  would be refused. With -detailed-exitcode it is 2 if applying would make a new
  revision, even one that differs only in descriptions or in positions in files.
`
}

func (c *GraphPlanCommand) options() []*flag.FlagSet {
	o := newOptions("Plan Options")
	o.BoolVar(&c.detailed, "detailed-exitcode", false, "Exit with 0 if nothing would change, 1 on an error, 2 if something would change.")
	c.jsonOption(o, "Print the plan in JSON.")
	o.StringVar(&c.out, "out", "", "The `path` to which the plan is written. sif graph apply applies exactly that plan.")
	return slices.Concat([]*flag.FlagSet{c.generalOptions(), o}, c.change.options())
}

func (c *GraphPlanCommand) arguments() arguments { return graphArguments }

func (c *GraphPlanCommand) run(ctx context.Context, paths []string) error {
	req, sources, err := c.request(ctx, &c.change, paths)
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	plan, err := client.Plan(ctx, req)
	if err != nil {
		return fmt.Errorf("planning the change: %w", err)
	}
	if err := c.output(plan, func() string { return planText(plan) }); err != nil {
		return err
	}
	if len(plan.Problems) > 0 {
		c.UI.Error("The plan cannot be applied. The controller would refuse it:")
		_ = c.diagnose(hcl.FromProblems(plan.Problems, sources...))
		return errReported
	}
	if c.out != "" {
		data, err := json.MarshalIndent(plan, "", "  ")
		if err != nil {
			return fmt.Errorf("encoding the plan: %w", err)
		}
		if err := os.WriteFile(c.out, append(data, '\n'), 0o600); err != nil {
			return fmt.Errorf("writing the plan: %w", err)
		}
		if !c.json {
			c.UI.Output(fmt.Sprintf("\nSaved the plan to %s. To apply exactly this plan, run:\n\n    sif graph apply %s", c.out, c.out))
		}
	}
	if c.detailed && plan.Changed {
		return exitChanges
	}
	return nil
}
