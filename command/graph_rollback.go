// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"strings"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
)

// GraphRollbackCommand is `sif graph rollback`.
type GraphRollbackCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *GraphRollbackCommand) Synopsis() string { return "Put an old revision in force again" }

// Help implements cli.Command.
func (c *GraphRollbackCommand) Help() string {
	return help(`
Usage: sif graph rollback [options] <revision>

  Puts the graph of a kept revision in force again, all domains and guardrails,
  under a new sequence. Only operators may do this.

  At a terminal it shows what that does and asks before it does it. When
  standard input is no terminal it does not ask.
`, `
Rollback Options:

  -auto-approve
    Show what is done, but do not ask.

  -message=<text>
    Why, for the history and the audit log.

  -json
    Print the result in JSON; nothing is shown or asked before.
`, controllerOptions)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *GraphRollbackCommand) AutocompleteFlags() complete.Flags {
	return controllerPredictions(complete.Flags{
		"-auto-approve": complete.PredictNothing, "-message": complete.PredictAnything, "-json": complete.PredictNothing,
	})
}

// AutocompleteArgs implements cli.CommandAutocomplete.
func (c *GraphRollbackCommand) AutocompleteArgs() complete.Predictor { return complete.PredictAnything }

// Run implements cli.Command.
func (c *GraphRollbackCommand) Run(args []string) int {
	var req api.RollbackRequest
	var approved bool
	flags := c.flagSet("graph rollback")
	c.controllerFlags(flags)
	c.jsonFlag(flags)
	flags.StringVar(&req.Message, "message", "", "")
	flags.BoolVar(&approved, "auto-approve", false, "")
	if code, ok := c.parse(flags, args); !ok {
		return code
	}
	if flags.NArg() != 1 {
		return c.usage("graph rollback", "One revision is needed.")
	}
	var err error
	if req.Revision, err = parseRevision(flags.Arg(0)); err != nil {
		return c.usage("graph rollback", "%s", err)
	}
	client, err := c.client()
	if err != nil {
		return c.fail("reaching the controller", err)
	}
	ctx, stop := interruptible()
	defer stop()
	if !c.json && (approved || interactive()) {
		req.DryRun = true
		shown, err := client.Rollback(ctx, req)
		if c.refused(err, nil) {
			return 1
		}
		if err != nil {
			return c.fail("planning the rollback", err)
		}
		c.UI.Output(fmt.Sprintf("From revision %d back to %d:\n%s", shown.Pointer.Sequence, req.Revision, strings.TrimSuffix(deltaText(shown.Delta), "\n")))
		if shown.Changed && !approved && !c.confirm("\nRoll back?") {
			return 1
		}
		req.DryRun, req.CAS = false, &shown.Pointer.Sequence
	}
	reply, err := client.Rollback(ctx, req)
	if c.refused(err, nil) {
		return 1
	}
	if err != nil {
		return c.fail("rolling back", err)
	}
	if c.json {
		return c.outputJSON(reply)
	}
	if reply.Changed {
		c.UI.Output(fmt.Sprintf("Revision %d is in force again. The graph has sequence %d.", req.Revision, reply.Pointer.Sequence))
	} else {
		c.UI.Output(fmt.Sprintf("Nothing to change. The graph has sequence %d.", reply.Pointer.Sequence))
	}
	return 0
}
