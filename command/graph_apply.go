// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"slices"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
)

// GraphApplyCommand is sif graph apply.
type GraphApplyCommand struct {
	Meta
	change   graphChange
	approved bool
	sequence *uint64
}

// Synopsis implements cli.Command.
func (c *GraphApplyCommand) Synopsis() string { return "Apply a service graph or a plan" }

func (c *GraphApplyCommand) usage() string {
	return `
Usage: sif graph apply [options] [<path>...]
       sif graph apply [options] <plan>

  Validates the graph in the given files and directories, by default in the
  current directory, and puts it in force. Each domain, guardrail, binding and
  link in it replaces the one of the same name; all others stay as they are. If
  the graph has an error, nothing is changed.

  If standard input is a terminal, the command shows the plan and asks for
  approval. Otherwise it applies the graph without asking.

  A plan file of sif graph plan -out is applied without asking, exactly as it
  was shown. If the graph has changed since the plan was made, the plan is
  refused.

  The exit code is 0 if the graph is in force, whether or not it was changed,
  and 1 if it is not.
`
}

func (c *GraphApplyCommand) options() []*flag.FlagSet {
	o := newOptions("Apply Options")
	o.BoolVar(&c.approved, "auto-approve", false, "Show the plan, and apply it without asking.")
	o.Func("check-sequence", "Apply only if the graph in force has this sequence `number`, or, for 0, if no graph was applied yet. "+
		"See sif graph show -json.", optionalUint(&c.sequence))
	c.jsonOption(o, "Print the result in JSON. No plan is shown and no approval is asked for.")
	return slices.Concat([]*flag.FlagSet{c.generalOptions(), o}, c.change.options())
}

func (c *GraphApplyCommand) arguments() arguments {
	return arguments{max: -1, predict: complete.PredictOr(graphArguments.predict, complete.PredictFiles("*"))}
}

func (c *GraphApplyCommand) run(ctx context.Context, args []string) error {
	var plan *api.Plan
	if len(args) == 1 {
		var err error
		if plan, err = readPlan(args[0]); err != nil {
			return err
		}
	}
	var req api.GraphRequest
	var sources []hcl.Source
	if plan != nil {
		if c.change.given() {
			return usagef("A plan is applied as it is: it takes no variables and no removals.")
		}
		req = plan.Apply()
		req.Message = cmp.Or(c.change.message, req.Message)
	} else {
		var err error
		if req, sources, err = c.request(ctx, &c.change, args); err != nil {
			return err
		}
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	if plan == nil && !c.json && (c.approved || interactive()) {
		shown, err := client.Plan(ctx, req)
		if err != nil {
			return fmt.Errorf("planning the change: %w", err)
		}
		c.UI.Output(planText(shown))
		if len(shown.Problems) == 0 {
			if shown.Changed && !c.approved {
				if err := c.confirm("\nApply this plan?"); err != nil {
					return err
				}
			}
			req = shown.Apply() // exactly the plan that was shown
		}
	}
	if c.sequence != nil {
		req.CAS = c.sequence
	}
	reply, err := client.Apply(ctx, req)
	if err != nil {
		return c.refused("applying the graph", err, sources)
	}
	result := struct {
		Sequence uint64           `json:"sequence"`
		Root     string           `json:"root"`
		Changed  bool             `json:"changed"`
		Waiting  []fabric.Waiting `json:"waiting,omitempty"`
	}{reply.Pointer.Sequence, reply.Pointer.Root.String(), reply.Changed, reply.Waiting}
	err = c.output(result, func() string {
		if !reply.Changed {
			return fmt.Sprintf("Nothing to change. The graph has sequence %d.", reply.Pointer.Sequence)
		}
		return fmt.Sprintf("Applied %s. The graph has sequence %d.", summary(&fabric.Graph{Domains: req.Domains, Guardrails: req.Guardrails, Bindings: req.Bindings, Links: req.Links}), reply.Pointer.Sequence)
	})
	if !c.json {
		c.warnWaiting(reply.Waiting, req.Domains)
	}
	return err
}
