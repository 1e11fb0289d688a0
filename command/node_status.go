// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// NodeStatusCommand is sif node status.
type NodeStatusCommand struct {
	Meta
	verbose bool
}

// Synopsis implements cli.Command.
func (c *NodeStatusCommand) Synopsis() string { return "Show the state of a node" }

func (c *NodeStatusCommand) usage() string {
	return `
Usage: sif node status [options] <zone>/<node>

  Shows what sif status shows, of one node.

  The exit code is 0 if nothing of the node is degraded, 2 if something is, and
  1 on an error.
`
}

func (c *NodeStatusCommand) options() []*flag.FlagSet {
	o := newOptions("Status Options")
	c.jsonOption(o, "Print the status in JSON, with \"healthy\" and \"problems\".")
	o.BoolVar(&c.verbose, "verbose", false, "Show what sif status shows with -verbose.")
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *NodeStatusCommand) arguments() arguments {
	return arguments{min: 1, max: 1, words: "one argument: <zone>/<node>", predict: complete.PredictAnything}
}

func (c *NodeStatusCommand) run(ctx context.Context, args []string) error {
	id, err := fabric.ParseNodeID(args[0])
	if err != nil {
		return usagef("%v", err)
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	status, err := client.Status(ctx)
	if err != nil {
		return fmt.Errorf("reading the status: %w", err)
	}
	now := time.Now()
	problems := slices.DeleteFunc(statusProblems(status, now), func(p string) bool {
		return !strings.HasPrefix(p, id.String()+": ") && !strings.HasPrefix(p, id.String()+" (")
	})
	var names []string
	for _, n := range status.Nodes {
		names = append(names, n.ID().String())
	}
	if !slices.Contains(names, id.String()) {
		remedy := "`sif node list` lists the nodes"
		if near := fabric.Nearest(id.String(), names); near != "" {
			remedy = fmt.Sprintf("did you mean %q?", near)
		}
		return fmt.Errorf("reading the status: there is no node %q; %s", id, remedy)
	}
	status.Nodes = slices.DeleteFunc(status.Nodes, func(n api.NodeStatus) bool { return n.ID() != id })
	return c.showStatus(status, problems, c.verbose, now)
}
