// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// NodeBindCommand is sif node bind.
type NodeBindCommand struct {
	Meta
	nomadNode string
	message   string
}

// Synopsis implements cli.Command.
func (c *NodeBindCommand) Synopsis() string { return "Say which Nomad node a node is" }

func (c *NodeBindCommand) usage() string {
	return `
Usage: sif node bind [options] <zone>/<node>

  Says which Nomad node a node of the fabric is. The controller admits on a node
  only what Nomad placed on that Nomad node. It finds the Nomad node of a new
  node by itself. This command is for a node whose Nomad client was set up
  again, and so has another ID: the workloads of the new one are refused until
  an operator says that it is the same machine.

  Without -nomad-node it is the Nomad node that has the underlay address of the
  node and is not down. The names and datacenters of Nomad do not matter. The
  token must be an operator's.
`
}

func (c *NodeBindCommand) options() []*flag.FlagSet {
	o := newOptions("Bind Options")
	c.jsonOption(o, "Print the result in JSON.")
	o.StringVar(&c.message, "message", "", "A `message` that says why, for the audit log.")
	o.StringVar(&c.nomadNode, "nomad-node", "", "The whole `ID` of the Nomad node.")
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *NodeBindCommand) arguments() arguments {
	return arguments{min: 1, max: 1, words: "one argument: <zone>/<node>", predict: complete.PredictAnything}
}

func (c *NodeBindCommand) run(ctx context.Context, args []string) error {
	id, err := fabric.ParseNodeID(args[0])
	if err != nil {
		return usagef("%v", err)
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	reply, err := client.BindNode(ctx, id, api.BindRequest{NomadNode: c.nomadNode}, c.message)
	if err != nil {
		return fmt.Errorf("binding node %s: %w", id, err)
	}
	return c.output(reply, func() string {
		text := fmt.Sprintf("Node %s is Nomad node %s (%q in datacenter %q).", id, reply.NomadNode, reply.Name, reply.Datacenter)
		switch reply.Before {
		case "":
		case reply.NomadNode:
			text += " It was before."
		default:
			text += fmt.Sprintf("\nIt was Nomad node %s before.", reply.Before)
		}
		return text
	})
}
