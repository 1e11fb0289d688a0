// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
)

// JobRunCommand is sif job run.
type JobRunCommand struct {
	jobMeta
	index          *uint64
	detach, output bool
}

// Synopsis implements cli.Command.
func (c *JobRunCommand) Synopsis() string { return "Run a new job or update an existing job" }

func (c *JobRunCommand) usage() string {
	return `
Usage: sif job run [options] <path>

  Rewrites the connectivity stanzas of a Nomad job file as plain Nomad, checks
  them against the graph in force if the controller answers, registers the job,
  and monitors it until its deployment is healthy or, for a job without
  deployments, until its allocations are placed. If the path is "-", the job
  file is read from standard input.

  Ctrl-C ends the monitoring; the job continues to run.

  The exit code is 0 on success, 2 if not all allocations could be placed, and 1
  on any other error, including a failed deployment.
`
}

func (c *JobRunCommand) options() []*flag.FlagSet {
	o := newOptions("Run Options")
	o.Func("check-index", "Register the job only if its modify `index`, as shown by sif job plan, is this one; for 0, only if the job does not exist.",
		optionalUint(&c.index))
	o.BoolVar(&c.detach, "detach", false, "Return when the job is registered, and print the ID of the evaluation.")
	o.BoolVar(&c.output, "output", false, "Print the job file as plain Nomad, without submitting it.")
	return append(c.jobOptions(), o)
}

func (c *JobRunCommand) run(ctx context.Context, args []string) error {
	j, err := c.read(ctx, args[0])
	if err != nil {
		return err
	}
	if c.output {
		c.UI.Output(strings.TrimSuffix(string(j.spec.Plain), "\n"))
		return nil
	}
	if err := c.parse(ctx, j); err != nil {
		return err
	}
	if err := c.check(ctx, j); err != nil {
		return err
	}
	opts := &nomad.RegisterOptions{Submission: &nomad.JobSubmission{
		// The rewritten file, which Nomad's own commands and web UI can parse.
		Source: string(j.spec.Plain), Format: "hcl2", Variables: j.variables,
	}}
	if c.index != nil {
		opts.EnforceIndex, opts.ModifyIndex = true, *c.index
	}
	resp, _, err := j.client.Jobs().RegisterOpts(j.parsed, opts, writeOptions(ctx))
	if err != nil {
		return fmt.Errorf("registering the job: %w", j.explain(err))
	}
	c.warn(resp.Warnings)
	if c.detach || resp.EvalID == "" { // a periodic or parameterized job has no evaluation of its own
		c.UI.Output(fmt.Sprintf("Job %q is registered in namespace %q.", *j.parsed.ID, j.namespace))
		if resp.EvalID != "" {
			c.UI.Output("Evaluation ID: " + resp.EvalID)
		}
		return nil
	}
	m := &monitor{Meta: &c.Meta, nomad: j.client, allocs: map[string]string{}}
	return m.evaluation(ctx, resp.EvalID)
}
