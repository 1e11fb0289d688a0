// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
)

// JobPlanCommand is sif job plan.
type JobPlanCommand struct {
	jobMeta
	diff bool
}

// Synopsis implements cli.Command.
func (c *JobPlanCommand) Synopsis() string { return "Show what running a job would change" }

func (c *JobPlanCommand) usage() string {
	return `
Usage: sif job plan [options] <path>

  Rewrites the connectivity stanzas of a Nomad job file as plain Nomad, checks
  them against the graph in force if the controller answers, and shows the plan
  that Nomad's scheduler makes for the job. The command changes nothing. If the
  path is "-", the job file is read from standard input.

  The exit code is 0 if no allocation would be created or destroyed, 1 if some
  would, and 255 on an error.
`
}

func (c *JobPlanCommand) options() []*flag.FlagSet {
	o := newOptions("Plan Options")
	o.BoolVar(&c.diff, "diff", true, "Show the difference to the job that is registered. Default: true")
	return append(c.jobOptions(), o)
}

func (c *JobPlanCommand) failure() exitCode { return exitPlanFailed }

func (c *JobPlanCommand) run(ctx context.Context, args []string) error {
	j, err := c.read(ctx, args[0])
	if err != nil {
		return err
	}
	if err := c.parse(ctx, j); err != nil {
		return err
	}
	if err := c.check(ctx, j); err != nil {
		return err
	}
	resp, _, err := j.client.Jobs().Plan(j.parsed, c.diff, writeOptions(ctx))
	if err != nil {
		return fmt.Errorf("planning the job: %w", j.explain(err))
	}
	c.warn(resp.Warnings)
	if c.diff && resp.Diff != nil {
		c.UI.Output(strings.Join(diffJob(resp.Diff), "\n") + "\n")
	}
	if len(resp.FailedTGAllocs) == 0 {
		c.UI.Output("All allocations can be placed.")
	} else {
		for _, line := range unplacedGroups(resp.FailedTGAllocs) {
			c.UI.Output(line)
		}
	}
	c.UI.Output(fmt.Sprintf("\nJob Modify Index: %d\nTo register exactly this version of the job, run:\n\n  sif job run -check-index=%d %s",
		resp.JobModifyIndex, resp.JobModifyIndex, strings.Join(c.again(args[0]), " ")))
	if changesAllocations(resp) {
		return exitJobChanges
	}
	return nil
}

// again returns the arguments of sif job run for the same job.
func (c *JobPlanCommand) again(path string) []string {
	var args []string
	for _, f := range c.variables.paths {
		args = append(args, "-var-file="+quote(f))
	}
	for _, v := range c.variables.settings {
		args = append(args, "-var "+quote(v))
	}
	return append(args, quote(path))
}

// quote quotes an argument for the shell if it needs to be.
func quote(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return strings.ContainsRune(" \t\n'\"\\$`*?[]{}()<>|&;!#~", r) }) {
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	return s
}

// changesAllocations reports whether a plan would create or destroy allocations.
func changesAllocations(resp *nomad.JobPlanResponse) bool {
	if resp.Annotations == nil {
		return false
	}
	for _, u := range resp.Annotations.DesiredTGUpdates {
		if u.Stop+u.Place+u.Migrate+u.DestructiveUpdate+u.Canary > 0 {
			return true
		}
	}
	return false
}

const edited = "Edited"

// diffSigns are the marks of the types of a difference.
var diffSigns = map[string]string{"Added": "+", "Deleted": "-", edited: "+/-"}

// diffJob formats a difference as lines, without what stays the same.
func diffJob(d *nomad.JobDiff) []string {
	w := &diffWriter{}
	w.line(0, d.Type, "Job: %q", d.ID)
	if d.Type == edited { // an added or deleted job is not listed field by field
		w.fields(1, d.Fields)
		w.objects(1, d.Objects)
	}
	for _, g := range d.TaskGroups {
		var updates []string
		for _, kind := range slices.Sorted(maps.Keys(g.Updates)) {
			updates = append(updates, fmt.Sprintf("%d %s", g.Updates[kind], kind))
		}
		suffix := ""
		if len(updates) > 0 {
			suffix = " (" + strings.Join(updates, ", ") + ")"
		}
		if g.Type == "None" && suffix == "" {
			continue
		}
		w.line(1, g.Type, "Group: %q%s", g.Name, suffix)
		if g.Type == edited {
			w.fields(2, g.Fields)
			w.objects(2, g.Objects)
		}
		for _, t := range g.Tasks {
			if t.Type == "None" && len(t.Annotations) == 0 {
				continue
			}
			suffix := ""
			if len(t.Annotations) > 0 {
				suffix = " (" + strings.Join(t.Annotations, ", ") + ")"
			}
			w.line(2, t.Type, "Task: %q%s", t.Name, suffix)
			if t.Type == edited {
				w.fields(3, t.Fields)
				w.objects(3, t.Objects)
			}
		}
	}
	return w.lines
}

type diffWriter struct{ lines []string }

func (w *diffWriter) line(depth int, kind, format string, args ...any) {
	w.lines = append(w.lines, fmt.Sprintf("%-4s", diffSigns[kind])+strings.Repeat("  ", depth)+fmt.Sprintf(format, args...))
}

func (w *diffWriter) fields(depth int, fields []*nomad.FieldDiff) {
	for _, f := range fields {
		switch f.Type {
		case "Added":
			w.line(depth, f.Type, "%s: %q", f.Name, f.New)
		case "Deleted":
			w.line(depth, f.Type, "%s: %q", f.Name, f.Old)
		case edited:
			w.line(depth, f.Type, "%s: %q => %q", f.Name, f.Old, f.New)
		}
	}
}

func (w *diffWriter) objects(depth int, objects []*nomad.ObjectDiff) {
	for _, o := range objects {
		if o.Type == "None" {
			continue
		}
		w.line(depth, o.Type, "%s", o.Name)
		w.fields(depth+1, o.Fields)
		w.objects(depth+1, o.Objects)
	}
}
