// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/posener/complete"
)

// JobRunCommand is `sif job run`.
type JobRunCommand struct{ jobMeta }

// Synopsis implements cli.Command.
func (c *JobRunCommand) Synopsis() string { return "Run a job or update a running one" }

// Help implements cli.Command.
func (c *JobRunCommand) Help() string {
	return help(`
Usage: sif job run [options] <path>

  Turns the connectivity stanzas of a Nomad job file into plain Nomad, checks
  them against the graph in force if the controller answers, registers the job,
  and follows it until its deployment is healthy, or, for a job without
  deployments, until its allocations are placed. If the path is "-", the job
  file is read from standard input.

  The job may be left alone at any time with Ctrl-C; it runs on.

  The exit code is 0 on success, 2 if not all allocations could be placed, and
  1 for any other failure, an unhealthy deployment among them.
`, `
Run Options:

  -check-index=<index>
    Register the job only if its modify index is still this one, as shown by
    sif job plan; 0 if it must not exist yet.

  -detach
    Return when the job is registered, with the ID of its evaluation.

  -output
    Print the job file as plain Nomad understands it, and do nothing else.
`, jobOptions, controllerOptions)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *JobRunCommand) AutocompleteFlags() complete.Flags {
	return jobPredictions(complete.Flags{
		"-check-index": complete.PredictAnything, "-detach": complete.PredictNothing, "-output": complete.PredictNothing,
	})
}

// Run implements cli.Command.
func (c *JobRunCommand) Run(args []string) int {
	var (
		index          *uint64
		detach, output bool
	)
	flags := c.flagSet("job run")
	c.jobFlags(flags)
	flags.Func("check-index", "", optionalUint(&index))
	flags.BoolVar(&detach, "detach", false, "")
	flags.BoolVar(&output, "output", false, "")
	if code, ok := c.parse(flags, args); !ok {
		return code
	}
	j, ok := c.read(flags)
	if !ok {
		return 1
	}
	if output {
		c.UI.Output(strings.TrimSuffix(string(j.spec.Plain), "\n"))
		return 0
	}
	ctx, stop := interruptible()
	defer stop()
	if !c.parseJob(j) || !c.checkGraph(ctx, j) {
		return 1
	}
	opts := &nomad.RegisterOptions{Submission: &nomad.JobSubmission{
		// What Nomad's own commands and pages can parse again.
		Source: string(j.spec.Plain), Format: "hcl2", Variables: j.variables,
	}}
	if index != nil {
		opts.EnforceIndex, opts.ModifyIndex = true, *index
	}
	resp, _, err := j.client.Jobs().RegisterOpts(j.parsed, opts, nil)
	if err != nil {
		return c.fail("registering the job", j.explain(err))
	}
	if resp.Warnings != "" {
		c.UI.Warn("Job Warnings:\n" + resp.Warnings)
	}
	if detach || resp.EvalID == "" { // a periodic or parameterized job starts nothing by itself
		c.UI.Output(fmt.Sprintf("Job %q is registered in namespace %q.", *j.parsed.ID, j.namespace))
		if resp.EvalID != "" {
			c.UI.Output("Evaluation ID: " + resp.EvalID)
		}
		return 0
	}
	f := &follower{ui: c.UI, nomad: j.client, allocs: map[string]string{}}
	return f.evaluation(ctx, resp.EvalID)
}
