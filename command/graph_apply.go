// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"flag"
	"fmt"
	"strconv"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
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
       sif graph apply [options] <plan>

  Checks the graph that lies in files and directories (without a path, in the
  current directory) and puts it in force. Each domain and guardrail in it
  takes the place of the one of its name; others stay as they are. A graph with
  a mistake changes nothing.

  At a terminal it shows what that does and asks before it does it. When
  standard input is no terminal it does not ask.

  A plan that sif graph plan -out wrote is applied without a question: just as
  it was shown, or not at all if the graph was changed since.

  The exit code is 0 if the graph is in force, whether or not it changed
  anything, and 1 if it is not.
`, `
Apply Options:

  -auto-approve
    Show what is done, but do not ask.

  -check-sequence=<number>
    Apply only if the graph in force has this sequence; 0 if there must not be
    one yet. See sif graph show -json.

  -json
    Print the result in JSON; nothing is shown or asked before.
`, changeOptions, variableOptions, controllerOptions)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *GraphApplyCommand) AutocompleteFlags() complete.Flags {
	return controllerPredictions(variablePredictions(changePredictions(complete.Flags{
		"-auto-approve": complete.PredictNothing, "-check-sequence": complete.PredictAnything, "-json": complete.PredictNothing,
	})))
}

// AutocompleteArgs implements cli.CommandAutocomplete.
func (c *GraphApplyCommand) AutocompleteArgs() complete.Predictor {
	return complete.PredictOr(graphPaths, complete.PredictFiles("*"))
}

// Run implements cli.Command.
func (c *GraphApplyCommand) Run(args []string) int {
	var change graphChange
	var cas *uint64
	var approved bool
	flags := c.flagSet("graph apply")
	c.controllerFlags(flags)
	c.variableFlags(flags)
	c.jsonFlag(flags)
	change.flags(flags)
	flags.Func("check-sequence", "", optionalUint(&cas))
	flags.BoolVar(&approved, "auto-approve", false, "")
	if code, ok := c.parse(flags, args); !ok {
		return code
	}
	var plan *api.Plan
	if flags.NArg() == 1 {
		var err error
		if plan, err = readPlan(flags.Arg(0)); err != nil {
			return c.fail("reading the plan", err)
		}
	}
	var req api.GraphRequest
	var sources []hcl.Source
	if plan != nil {
		if len(change.domains)+len(change.guardrails)+len(c.vars)+len(c.varFiles) > 0 {
			return c.usage("graph apply", "A plan is applied as it is; it takes no variables and no removals.")
		}
		req = plan.Apply()
		req.Message = cmp.Or(change.message, req.Message)
	} else {
		var ok bool
		if req, sources, ok = c.request(change, flags.Args()); !ok {
			return 1
		}
	}
	client, err := c.client()
	if err != nil {
		return c.fail("reaching the controller", err)
	}
	ctx, stop := interruptible()
	defer stop()
	if plan == nil && !c.json && (approved || interactive()) {
		shown, err := client.Plan(ctx, req)
		if err != nil {
			return c.fail("planning the change", err)
		}
		c.UI.Output(planText(shown))
		if len(shown.Problems) == 0 {
			if shown.Changed && !approved && !c.confirm("\nApply this?") {
				return 1
			}
			req = shown.Apply() // what was shown, and nothing else
		}
	}
	if cas != nil {
		req.CAS = cas
	}
	reply, err := client.Apply(ctx, req)
	if c.refused(err, sources) {
		return 1
	}
	if err != nil {
		return c.fail("applying the graph", err)
	}
	if c.json {
		return c.outputJSON(struct {
			Sequence uint64           `json:"sequence"`
			Root     string           `json:"root"`
			Changed  bool             `json:"changed"`
			Waiting  []fabric.Waiting `json:"waiting,omitempty"`
		}{reply.Pointer.Sequence, reply.Pointer.Root.String(), reply.Changed, reply.Waiting})
	}
	if reply.Changed {
		c.UI.Output(fmt.Sprintf("Applied %s. The graph has sequence %d.", summary(&fabric.Graph{Domains: req.Domains, Guardrails: req.Guardrails}), reply.Pointer.Sequence))
	} else {
		c.UI.Output(fmt.Sprintf("Nothing to change. The graph has sequence %d.", reply.Pointer.Sequence))
	}
	for _, w := range reply.Waiting {
		if req.Domains[w.Contract.Domain] != nil {
			for _, service := range w.For {
				c.UI.Warn(fmt.Sprintf("Contract %s is not in force: it waits until domain %q accepts it for %s.", w.Contract, service.Domain, service))
			}
		}
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
