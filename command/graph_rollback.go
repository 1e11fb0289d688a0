// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"strings"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
)

// GraphRollbackCommand is sif graph rollback.
type GraphRollbackCommand struct {
	Meta
	message        string
	approved       bool
	operatorBlocks bool
}

// Synopsis implements cli.Command.
func (c *GraphRollbackCommand) Synopsis() string { return "Roll back to a kept revision of the graph" }

func (c *GraphRollbackCommand) usage() string {
	return `
Usage: sif graph rollback [options] <revision>

  Applies all domains of a kept revision again, as a new revision. What only
  operators declare, guardrails, bindings and links, stays as it is, unless
  -with-operator-blocks is given. The domains must keep to it. The token must be
  an operator's.

  If standard input is a terminal, the command shows what would change and asks
  for approval. Otherwise it rolls back without asking.

  The exit code is 0 if the domains of the revision are in force, and 1 if they
  are not.
`
}

func (c *GraphRollbackCommand) options() []*flag.FlagSet {
	o := newOptions("Rollback Options")
	o.BoolVar(&c.approved, "auto-approve", false, "Show what would change, and roll back without asking.")
	c.jsonOption(o, "Print the result in JSON. Nothing is shown before, and no approval is asked for.")
	o.StringVar(&c.message, "message", "", "A `message` that says why, for the history and the audit log.")
	o.BoolVar(&c.operatorBlocks, "with-operator-blocks", false, "Restore the guardrails, bindings and links of the revision too. They concern all domains.")
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *GraphRollbackCommand) arguments() arguments {
	return arguments{min: 1, max: 1, words: "one argument: <revision>", predict: complete.PredictAnything}
}

func (c *GraphRollbackCommand) run(ctx context.Context, args []string) error {
	revision, err := parseRevision(args[0])
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	req := api.RollbackRequest{Revision: revision, Message: c.message, OperatorBlocks: c.operatorBlocks}
	if !c.json && (c.approved || interactive()) {
		req.DryRun = true
		shown, err := client.Rollback(ctx, req)
		if err != nil {
			return c.refused("planning the rollback", err, nil)
		}
		c.UI.Output(fmt.Sprintf("From revision %d back to %d:\n%s", shown.Pointer.Sequence, revision, strings.TrimSuffix(deltaText(shown.Delta), "\n")))
		if shown.Changed && !c.approved {
			if err := c.confirm("\nRoll back?"); err != nil {
				return err
			}
		}
		req.DryRun, req.CAS = false, &shown.Pointer.Sequence
	}
	reply, err := client.Rollback(ctx, req)
	if err != nil {
		return c.refused("rolling back", err, nil)
	}
	return c.output(reply, func() string {
		if !reply.Changed {
			return fmt.Sprintf("Nothing to change. The graph has sequence %d.", reply.Pointer.Sequence)
		}
		what := "The domains"
		if c.operatorBlocks {
			what = "The domains, guardrails, bindings and links"
		}
		return fmt.Sprintf("%s of revision %d are in force again. The graph has sequence %d.", what, revision, reply.Pointer.Sequence)
	})
}
