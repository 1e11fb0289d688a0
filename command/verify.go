// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"strings"

	"github.com/posener/complete"

	"github.com/sif-project/sif/internal/verify"
)

// VerifyCommand is `sif verify`.
type VerifyCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *VerifyCommand) Synopsis() string {
	return "Compare what nodes must enforce with what they do"
}

// Help implements cli.Command.
func (c *VerifyCommand) Help() string {
	return help(`
Usage: sif verify [options]

  Computes from the revision in force, the admitted endpoints and the nodes of
  the fabric what every node must enforce, has every node read its eBPF maps or
  the flows of its switch back, and compares the two entry by entry: addresses
  and whose they are, guarded endpoints, and who may call whom on which ports
  under which contract.

  Each difference is a line: the node, its layer, whether the entry is missing,
  extra or altered, and what it must be and is.

  Exits with 0 if every node enforces what it must and nothing else, with 2 if
  not, and with 1 if the controller cannot be asked.
`, `
Verify Options:

  -json
    Print the differences in JSON.
`, controllerOptions)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *VerifyCommand) AutocompleteFlags() complete.Flags {
	return controllerPredictions(complete.Flags{"-json": complete.PredictNothing})
}

// AutocompleteArgs implements cli.CommandAutocomplete.
func (c *VerifyCommand) AutocompleteArgs() complete.Predictor { return complete.PredictNothing }

// Run implements cli.Command.
func (c *VerifyCommand) Run(args []string) int {
	flags := c.flagSet("verify")
	c.controllerFlags(flags)
	c.jsonFlag(flags)
	if code, ok := c.parseOptions(flags, args); !ok {
		return code
	}
	client, err := c.client()
	if err != nil {
		return c.fail("reaching the controller", err)
	}
	ctx, stop := interruptible()
	defer stop()
	f, err := gather(ctx, client, nil)
	if err != nil {
		return c.fail("verifying", err)
	}
	report := verify.Compare(f)
	code := 0
	if !report.Agrees() {
		code = exitDisagreement
	}
	if c.json {
		if failed := c.outputJSON(report); failed != 0 {
			return failed
		}
		return code
	}
	c.UI.Output(verifyView(report))
	return code
}

// verifyView shows a report to people.
func verifyView(r verify.Report) string {
	var b strings.Builder
	for _, d := range r.Differences {
		fmt.Fprintln(&b, d)
	}
	if r.Agrees() {
		fmt.Fprintf(&b, "Revision %d: all %d nodes enforce what they must and nothing else: %d entries.", r.Sequence, r.Nodes, r.Entries)
	} else {
		fmt.Fprintf(&b, "Revision %d: %d differences among %d entries of %d nodes.", r.Sequence, len(r.Differences), r.Entries, r.Nodes)
	}
	return b.String()
}
