// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"strings"

	"github.com/sif-project/sif/internal/inspect/enforced"
	"github.com/sif-project/sif/internal/inspect/verify"
	"github.com/sif-project/sif/internal/trust/signature"
)

// VerifyCommand is sif verify.
type VerifyCommand struct {
	Meta
	anchor anchor
}

// Synopsis implements cli.Command.
func (c *VerifyCommand) Synopsis() string { return "Verify that all nodes enforce the graph" }

func (c *VerifyCommand) usage() string {
	return `
Usage: sif verify [options]

  Computes what each node must enforce, from the revision in force, the admitted
  endpoints and the nodes of the fabric. Each node reads back its eBPF maps or
  the flows of its switch, and the command compares the two entry by entry:
  addresses and their identities, guarded endpoints, and which identity may open
  flows to which other, on which ports, under which contract. If public keys are
  given, it also verifies that the fabric signed the revision.

  Each difference is one line: the node, its layer, whether the entry is
  missing, extra or altered, and the expected and the actual value. Errors of
  the revision itself, and nodes that enforce another revision, are listed
  first. A signature that was not checked is a warning, and
  "signature": "unchecked" in JSON.

  The exit code is 0 if all nodes enforce exactly what they must, 2 if they do
  not or if the signature is refused, and 1 on an error.
`
}

func (c *VerifyCommand) options() []*flag.FlagSet {
	o := newOptions("Verify Options")
	c.jsonOption(o, "Print the differences in JSON.")
	return []*flag.FlagSet{c.generalOptions(), o, c.anchor.options()}
}

func (c *VerifyCommand) run(ctx context.Context, _ []string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	keys, err := c.anchor.read(ctx)
	if err != nil {
		return fmt.Errorf("verifying: %w", err)
	}
	f, err := enforced.Read(ctx, enforced.Controller{Client: client}, nil)
	if err != nil {
		return fmt.Errorf("verifying: %w", err)
	}
	f.Anchor = keys
	report := verify.Compare(f)
	if err := c.output(report, func() string { return verifyView(report) }); err != nil {
		return err
	}
	// A refused signature is the first of the differences.
	if !c.json && report.State != signature.Refused {
		c.tellSignature(report.Finding, report.Sequence)
	}
	if !report.Agrees() {
		return exitDisagreement
	}
	return nil
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
