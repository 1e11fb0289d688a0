// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"strings"

	"github.com/posener/complete"

	"github.com/sif-project/sif/internal/inspect/enforced"
	"github.com/sif-project/sif/internal/inspect/verify"
	"github.com/sif-project/sif/internal/trust/signature"
)

// VerifyCommand is `sif verify`.
type VerifyCommand struct {
	Meta
	anchor anchor
}

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
  under which contract. It checks that the fabric signed that revision, if it
  is given public keys.

  Each difference is a line: the node, its layer, whether the entry is missing,
  extra or altered, and what it must be and is. What is wrong with the revision
  itself, and nodes that follow another one, come first.

  Exits with 0 if every node enforces what it must and nothing else, with 2 if
  not or if the signature is refused, and with 1 if the controller or the keys
  cannot be read. A signature that nobody checked is a warning, and
  "signature": "unchecked" in JSON.
`, `
Verify Options:

  -json
    Print the differences in JSON.
`, signatureOptions, controllerOptions)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *VerifyCommand) AutocompleteFlags() complete.Flags {
	return controllerPredictions(signaturePredictions(complete.Flags{"-json": complete.PredictNothing}))
}

// AutocompleteArgs implements cli.CommandAutocomplete.
func (c *VerifyCommand) AutocompleteArgs() complete.Predictor { return complete.PredictNothing }

// Run implements cli.Command.
func (c *VerifyCommand) Run(args []string) int {
	flags := c.flagSet("verify")
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
	keys, err := c.anchor.read(ctx)
	if err != nil {
		return c.fail("verifying", err)
	}
	f, err := enforced.Read(ctx, enforced.Controller{Client: client}, nil)
	if err != nil {
		return c.fail("verifying", err)
	}
	f.Anchor = keys
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
	if report.State != signature.Refused { // else it is the first difference
		c.tellSignature(report.Finding, report.Sequence)
	}
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
		fmt.Fprintf(&b, "Revision %d: %s among %d entries of %s.", r.Sequence, count(len(r.Differences), "difference"), r.Entries, count(r.Nodes, "node"))
	}
	return b.String()
}
