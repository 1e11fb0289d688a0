// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
)

// GraphDiffCommand is `sif graph diff`.
type GraphDiffCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *GraphDiffCommand) Synopsis() string { return "Compare two revisions of the graph" }

// Help implements cli.Command.
func (c *GraphDiffCommand) Help() string {
	return help(`
Usage: sif graph diff [options] <revision> [<revision>]

  Shows what the second revision (without it, the one in force) allows and
  denies otherwise than the first. Contracts that have expired by now are off
  in both.

  The exit code is 0, or 1 if there was an error.
`, `
Diff Options:

  -json
    Print the difference in JSON.
`, controllerOptions)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *GraphDiffCommand) AutocompleteFlags() complete.Flags {
	return controllerPredictions(complete.Flags{"-json": complete.PredictNothing})
}

// AutocompleteArgs implements cli.CommandAutocomplete.
func (c *GraphDiffCommand) AutocompleteArgs() complete.Predictor { return complete.PredictAnything }

// Run implements cli.Command.
func (c *GraphDiffCommand) Run(args []string) int {
	flags := c.flagSet("graph diff")
	c.controllerFlags(flags)
	c.jsonFlag(flags)
	if code, ok := c.parse(flags, args); !ok {
		return code
	}
	if flags.NArg() < 1 || flags.NArg() > 2 {
		return c.usage("graph diff", "One or two revisions are needed.")
	}
	revisions := [2]uint64{}
	for i, arg := range flags.Args() {
		n, err := parseRevision(arg)
		if err != nil {
			return c.usage("graph diff", "%s", err)
		}
		revisions[i] = n
	}
	client, err := c.client()
	if err != nil {
		return c.fail("reaching the controller", err)
	}
	ctx, stop := interruptible()
	defer stop()
	reply, err := client.Diff(ctx, api.DiffRequest{From: revisions[0], To: revisions[1]})
	if err != nil {
		return c.fail("comparing the revisions", err)
	}
	if c.json {
		return c.outputJSON(reply)
	}
	if reply.Delta.Empty() {
		c.UI.Output(fmt.Sprintf("Revisions %d and %d allow and deny the same.", reply.From, reply.To))
		return 0
	}
	c.UI.Output(fmt.Sprintf("From revision %d to %d:\n%s", reply.From, reply.To, strings.TrimSuffix(deltaText(reply.Delta), "\n")))
	return 0
}

// parseRevision parses the sequence of a revision.
func parseRevision(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not the number of a revision; see sif graph history", s)
	}
	return n, nil
}
