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
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
	"github.com/sif-project/sif/internal/trust/signature"
)

// noGraph is the message of a fabric without a graph.
const noGraph = "No graph has been applied yet."

// GraphShowCommand is sif graph show.
type GraphShowCommand struct {
	Meta
	anchor anchor
}

// Synopsis implements cli.Command.
func (c *GraphShowCommand) Synopsis() string { return "Print the graph in force" }

func (c *GraphShowCommand) usage() string {
	return `
Usage: sif graph show [options] [<revision>] [<domain>...]

  Prints the graph in force, or the graph of a kept revision, in HCL: all of it
  or the named domains. The output can be applied again. Contracts that wait for
  another domain's consent are listed on standard error.

  If public keys are given, the command verifies that the fabric signed the
  graph, and prints nothing that fails verification. If the token can read only
  part of the graph, only the signature of the revision is verified.

  The exit code is 0 on success, and 1 on an error or if verification fails.
`
}

func (c *GraphShowCommand) options() []*flag.FlagSet {
	o := newOptions("Show Options")
	c.jsonOption(o, "Print the graph and its pointer in JSON.")
	return []*flag.FlagSet{c.generalOptions(), o, c.anchor.options()}
}

func (c *GraphShowCommand) arguments() arguments {
	return arguments{max: -1, predict: complete.PredictAnything}
}

func (c *GraphShowCommand) run(ctx context.Context, args []string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	var reply api.GraphReply
	domains := args
	if len(args) > 0 && strings.Trim(args[0], "0123456789") == "" {
		var sequence uint64
		if sequence, err = parseRevision(args[0]); err != nil {
			return err
		}
		domains = args[1:]
		reply, err = client.GraphAt(ctx, sequence)
	} else {
		reply, err = client.Graph(ctx)
	}
	if err != nil {
		return fmt.Errorf("reading the graph: %w", err)
	}
	if reply.Graph == nil {
		reply.Graph = &fabric.Graph{}
	}
	f, err := c.anchor.checkGraph(ctx, client, reply)
	if err := c.requireTrusted(f, err, reply.Pointer.Sequence); err != nil {
		return err
	}
	if len(domains) > 0 {
		some := &fabric.Graph{Domains: map[string]*fabric.Domain{}}
		for _, name := range domains {
			d := reply.Graph.Domains[name]
			if d == nil {
				return c.report("The graph has no domain %q, or the token may not read it.", name)
			}
			some.Domains[name] = d
		}
		reply.Graph = some
	}
	if !c.json {
		if reply.Pointer.Sequence == 0 {
			c.UI.Warn(noGraph)
			return nil
		}
		c.warnWaiting(reply.Waiting, reply.Graph.Domains)
	}
	return c.outputSigned(f, reply.Pointer.Sequence, struct {
		signature.Finding
		api.GraphReply
	}{f, reply}, func() string { return string(hcl.EncodeGraph(reply.Graph)) })
}
