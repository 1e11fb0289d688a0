// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/trust/signature"
)

// GraphHistoryCommand is `sif graph history`.
type GraphHistoryCommand struct {
	Meta
	anchor anchor
}

// Synopsis implements cli.Command.
func (c *GraphHistoryCommand) Synopsis() string { return "List the revisions that are kept" }

// Help implements cli.Command.
func (c *GraphHistoryCommand) Help() string {
	return help(`
Usage: sif graph history [options]

  Lists the revisions of the graph that are kept, the newest first: who applied
  them, when and why. Each entry names the one before by its hash, and the
  newest is named by the signed pointer, so none can be altered or left out.
  This is checked if public keys are given, and then nothing is listed that
  does not verify.
`, `
History Options:

  -json
    Print the history in JSON, with the digests of the files.
`, signatureOptions, controllerOptions)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *GraphHistoryCommand) AutocompleteFlags() complete.Flags {
	return controllerPredictions(signaturePredictions(complete.Flags{"-json": complete.PredictNothing}))
}

// AutocompleteArgs implements cli.CommandAutocomplete.
func (c *GraphHistoryCommand) AutocompleteArgs() complete.Predictor { return complete.PredictNothing }

// Run implements cli.Command.
func (c *GraphHistoryCommand) Run(args []string) int {
	flags := c.flagSet("graph history")
	c.controllerFlags(flags)
	c.jsonFlag(flags)
	c.anchor.flags(flags)
	if code, ok := c.parseOptions(flags, args); !ok {
		return code
	}
	client, err := c.client()
	if err != nil {
		return c.fail("reaching the controller", err)
	}
	ctx, stop := interruptible()
	defer stop()
	history, err := client.History(ctx)
	if err != nil {
		return c.fail("reading the history", err)
	}
	f, err := c.anchor.checkHistory(ctx, history)
	if err != nil {
		return c.fail("checking the signature", err)
	}
	if f.State == signature.Refused {
		c.tellSignature(f, history.Pointer.Sequence)
		return 1
	}
	if c.json {
		return c.outputJSON(struct {
			signature.Finding
			api.History
		}{f, history})
	}
	if len(history.Changes) == 0 {
		c.UI.Error("No graph has been applied yet.")
		return 0
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "REVISION\tTIME\tROOT\tAUTHOR\tMESSAGE")
	for _, h := range history.Changes {
		message := strings.Join(strings.Fields(h.Message), " ")
		if h.Rollback > 0 {
			message = strings.TrimSpace(fmt.Sprintf("(rollback to %d) %s", h.Rollback, message))
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", h.Sequence, h.Time.UTC().Format(time.RFC3339), h.Root.String()[:12], h.Author, message)
	}
	w.Flush()
	for line := range strings.Lines(b.String()) {
		c.UI.Output(strings.TrimRight(line, " \n"))
	}
	c.tellSignature(f, history.Pointer.Sequence)
	return 0
}
