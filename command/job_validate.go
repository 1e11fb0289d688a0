// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"errors"

	"github.com/posener/complete"
)

// JobValidateCommand is `sif job validate`.
type JobValidateCommand struct{ jobMeta }

// Synopsis implements cli.Command.
func (c *JobValidateCommand) Synopsis() string { return "Check a job" }

// Help implements cli.Command.
func (c *JobValidateCommand) Help() string {
	return help(`
Usage: sif job validate [options] <path>

  Checks a Nomad job file with connectivity stanzas: the stanzas themselves,
  the rest with Nomad, and, if the controller answers, the stanzas against the
  graph in force. If the path is "-", the job file is read from standard input.

  The exit code is 0 if the job is valid, 1 if it is not.
`, jobOptions, controllerOptions)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *JobValidateCommand) AutocompleteFlags() complete.Flags { return jobPredictions(nil) }

// Run implements cli.Command.
func (c *JobValidateCommand) Run(args []string) int {
	flags := c.flagSet("job validate")
	c.jobFlags(flags)
	if code, ok := c.parse(flags, args); !ok {
		return code
	}
	j, ok := c.read(flags)
	if !ok || !c.parseJob(j) {
		return 1
	}
	ctx, stop := interruptible()
	defer stop()
	valid := c.checkGraph(ctx, j)
	resp, _, err := j.client.Jobs().Validate(j.parsed, nil)
	if err != nil {
		return c.fail("validating the job", j.explain(err))
	}
	if resp.Warnings != "" {
		c.UI.Warn("Job Warnings:\n" + resp.Warnings)
	}
	if resp.Error != "" {
		return c.fail("validating the job", errors.New(resp.Error))
	}
	if !valid {
		return 1
	}
	c.UI.Output("The job is valid.")
	return 0
}
