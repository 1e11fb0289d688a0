// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"strings"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
	"github.com/sif-project/sif/internal/trust/signature"
)

// GraphShowCommand is `sif graph show`.
type GraphShowCommand struct {
	Meta
	anchor anchor
}

// Synopsis implements cli.Command.
func (c *GraphShowCommand) Synopsis() string { return "Print the graph in force" }

// Help implements cli.Command.
func (c *GraphShowCommand) Help() string {
	return help(`
Usage: sif graph show [options] [<revision>] [<domain>...]

  Prints the graph in force, or that of a kept revision, in HCL: all of it or
  the named domains. The output can be applied again. Contracts that wait for
  another domain's consent are named on standard error. If public keys are
  given, nothing is printed that is not what the fabric signed; of a graph that
  the token may read in part, only the signature is checked.
`, `
Show Options:

  -json
    Print the graph and its pointer in JSON.
`, signatureOptions, controllerOptions)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *GraphShowCommand) AutocompleteFlags() complete.Flags {
	return controllerPredictions(signaturePredictions(complete.Flags{"-json": complete.PredictNothing}))
}

// AutocompleteArgs implements cli.CommandAutocomplete.
func (c *GraphShowCommand) AutocompleteArgs() complete.Predictor { return complete.PredictAnything }

// Run implements cli.Command.
func (c *GraphShowCommand) Run(args []string) int {
	flags := c.flagSet("graph show")
	c.controllerFlags(flags)
	c.jsonFlag(flags)
	c.anchor.flags(flags)
	if code, ok := c.parse(flags, args); !ok {
		return code
	}
	client, err := c.client()
	if err != nil {
		return c.fail("reaching the controller", err)
	}
	ctx, stop := interruptible()
	defer stop()
	names := flags.Args()
	var reply api.GraphReply
	if len(names) > 0 && strings.Trim(names[0], "0123456789") == "" {
		var sequence uint64
		if sequence, err = parseRevision(names[0]); err != nil {
			return c.usage("graph show", "%s", err)
		}
		names = names[1:]
		reply, err = client.GraphAt(ctx, sequence)
	} else {
		reply, err = client.Graph(ctx)
	}
	if err != nil {
		return c.fail("reading the graph", err)
	}
	if reply.Graph == nil {
		reply.Graph = &fabric.Graph{}
	}
	f, err := c.anchor.checkGraph(ctx, client, reply)
	if err != nil {
		return c.fail("checking the signature", err)
	}
	if f.State == signature.Refused {
		c.tellSignature(f, reply.Pointer.Sequence)
		return 1
	}
	if len(names) > 0 {
		some := &fabric.Graph{Domains: map[string]*fabric.Domain{}}
		for _, name := range names {
			d := reply.Graph.Domains[name]
			if d == nil {
				c.UI.Error(fmt.Sprintf("The graph has no domain %q, or the token may not read it.", name))
				return 1
			}
			some.Domains[name] = d
		}
		reply.Graph = some
	}
	if c.json {
		return c.outputJSON(struct {
			signature.Finding
			api.GraphReply
		}{f, reply})
	}
	if reply.Pointer.Sequence == 0 {
		c.UI.Error("No graph has been applied yet.")
		return 0
	}
	for _, w := range reply.Waiting {
		if reply.Graph.Domains[w.Contract.Domain] != nil {
			for _, service := range w.For {
				c.UI.Error(fmt.Sprintf("Contract %s is not in force: it waits until domain %q accepts it for %s.", w.Contract, service.Domain, service))
			}
		}
	}
	c.UI.Output(strings.TrimSuffix(string(hcl.EncodeGraph(reply.Graph)), "\n"))
	c.tellSignature(f, reply.Pointer.Sequence)
	return 0
}
