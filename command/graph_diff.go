// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"strconv"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
)

// GraphDiffCommand is sif graph diff.
type GraphDiffCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *GraphDiffCommand) Synopsis() string { return "Compare two revisions of the graph" }

func (c *GraphDiffCommand) usage() string {
	return `
Usage: sif graph diff [options] <revision> [<revision>]

  Shows how reachability differs between two revisions: what the second one, by
  default the one in force, allows or denies in comparison with the first.
  Contracts that have expired count as disabled in both.

  The exit code is 0 on success, whether or not the revisions differ, and 1 on
  an error.
`
}

func (c *GraphDiffCommand) options() []*flag.FlagSet {
	o := newOptions("Diff Options")
	c.jsonOption(o, "Print the difference in JSON.")
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *GraphDiffCommand) arguments() arguments {
	return arguments{min: 1, max: 2, words: "one or two arguments: <revision> [<revision>]", predict: complete.PredictAnything}
}

func (c *GraphDiffCommand) run(ctx context.Context, args []string) error {
	var revisions [2]uint64
	for i, arg := range args {
		var err error
		if revisions[i], err = parseRevision(arg); err != nil {
			return err
		}
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	reply, err := client.Diff(ctx, api.DiffRequest{From: revisions[0], To: revisions[1]})
	if err != nil {
		return fmt.Errorf("comparing the revisions: %w", err)
	}
	return c.output(reply, func() string {
		if reply.Delta.Empty() {
			return fmt.Sprintf("Revisions %d and %d allow and deny the same.", reply.From, reply.To)
		}
		return fmt.Sprintf("From revision %d to %d:\n%s", reply.From, reply.To, deltaText(reply.Delta))
	})
}

// parseRevision parses the sequence number of a revision.
func parseRevision(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, usagef("%q is not the number of a revision; see sif graph history", s)
	}
	return n, nil
}
