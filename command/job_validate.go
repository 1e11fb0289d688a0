// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
)

// JobValidateCommand is sif job validate.
type JobValidateCommand struct{ jobMeta }

// Synopsis implements cli.Command.
func (c *JobValidateCommand) Synopsis() string { return "Check a job file" }

func (c *JobValidateCommand) usage() string {
	return `
Usage: sif job validate [options] <path>

  Checks a Nomad job file with connectivity stanzas: the stanzas themselves, the
  rest of the file with Nomad, and, if the controller answers, the stanzas
  against the graph in force. If the path is "-", the job file is read from
  standard input.

  The exit code is 0 if the job is valid, and 1 if it is not.
`
}

func (c *JobValidateCommand) options() []*flag.FlagSet { return c.jobOptions() }

func (c *JobValidateCommand) run(ctx context.Context, args []string) error {
	j, err := c.read(ctx, args[0])
	if err != nil {
		return err
	}
	if err := c.parse(ctx, j); err != nil {
		return err
	}
	invalid := c.check(ctx, j)
	if invalid != nil && !errors.Is(invalid, errReported) {
		return invalid
	}
	// Nomad checks the job even if the stanzas are not valid, to report all errors at once.
	resp, _, err := j.client.Jobs().Validate(j.parsed, writeOptions(ctx))
	if err != nil {
		return fmt.Errorf("validating the job: %w", j.explain(err))
	}
	c.warn(resp.Warnings)
	if resp.Error != "" {
		return fmt.Errorf("validating the job: %s", resp.Error)
	}
	if invalid != nil {
		return invalid
	}
	c.UI.Output("The job is valid.")
	return nil
}
