// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"errors"
	"flag"
	"fmt"
	"strconv"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/hcl"
)

// GraphApplyCommand is `sif graph apply`.
type GraphApplyCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *GraphApplyCommand) Synopsis() string { return "Put a graph in force" }

// Help implements cli.Command.
func (c *GraphApplyCommand) Help() string {
	return help(`
Usage: sif graph apply [options] [<path>...]

  Checks the graph that lies in files and directories (without a path, in the
  current directory) and puts it in force. Each domain in it takes the place of
  the domain of its name; other domains stay as they are. A graph with a
  mistake changes nothing.

  The exit code is 0 if the graph is in force, whether or not it changed
  anything, and 1 if it is not.
`, `
Apply Options:

  -message=<text>
    Why the graph is changed, for the audit log.

  -check-sequence=<number>
    Apply only if the graph in force has this sequence; 0 if there must not be
    one yet. See sif graph show -json.

  -json
    Print the result in JSON.
`, variableOptions, controllerOptions)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *GraphApplyCommand) AutocompleteFlags() complete.Flags {
	return controllerPredictions(variablePredictions(complete.Flags{
		"-message": complete.PredictAnything, "-check-sequence": complete.PredictAnything, "-json": complete.PredictNothing,
	}))
}

// AutocompleteArgs implements cli.CommandAutocomplete.
func (c *GraphApplyCommand) AutocompleteArgs() complete.Predictor { return graphPaths }

// Run implements cli.Command.
func (c *GraphApplyCommand) Run(args []string) int {
	var req api.GraphRequest
	flags := c.flagSet("graph apply")
	c.controllerFlags(flags)
	c.variableFlags(flags)
	c.jsonFlag(flags)
	flags.StringVar(&req.Message, "message", "", "")
	flags.Func("check-sequence", "", optionalUint(&req.CAS))
	if code, ok := c.parse(flags, args); !ok {
		return code
	}
	g, sources, diags := c.loadGraph(flags.Args())
	c.diagnose(diags)
	if diags.HasErrors() {
		return 1
	}
	if len(g.Domains) == 0 {
		c.UI.Error("The files declare no domain; nothing was applied.")
		return 1
	}
	req.Domains = g.Domains

	client, err := c.client()
	if err != nil {
		return c.fail("reaching the controller", err)
	}
	ctx, stop := interruptible()
	defer stop()
	reply, err := client.Apply(ctx, req)
	var refused *api.Error
	if errors.As(err, &refused) && len(refused.Details.Problems) > 0 {
		c.UI.Error("The controller refused the graph; nothing was changed: " + refused.Message)
		c.diagnose(hcl.FromProblems(refused.Details.Problems, sources...))
		return 1
	}
	if err != nil {
		return c.fail("applying the graph", err)
	}
	if c.json {
		return c.outputJSON(struct {
			Sequence uint64 `json:"sequence"`
			Root     string `json:"root"`
			Changed  bool   `json:"changed"`
		}{reply.Pointer.Sequence, reply.Pointer.Root.String(), reply.Changed})
	}
	if reply.Changed {
		c.UI.Output(fmt.Sprintf("Applied %s. The graph has sequence %d.", summary(g), reply.Pointer.Sequence))
	} else {
		c.UI.Output(fmt.Sprintf("Nothing to change. The graph has sequence %d.", reply.Pointer.Sequence))
	}
	return 0
}

// optionalUint parses a flag into a number that is nil unless it was given.
func optionalUint(p **uint64) func(string) error {
	return func(s string) error {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is not a number", s)
		}
		*p = &n
		return nil
	}
}

var _ flag.Value = (*stringList)(nil)

// stringList is a flag that may be given several times.
type stringList []string

func (l *stringList) String() string { return fmt.Sprint(*l) }

// Set implements flag.Value.
func (l *stringList) Set(s string) error {
	*l = append(*l, s)
	return nil
}
