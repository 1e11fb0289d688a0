// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/posener/complete"
)

// exitPlanFailed is the exit code of a plan that could not be made; 1 says that
// the plan changes something.
const exitPlanFailed = 255

// JobPlanCommand is `sif job plan`.
type JobPlanCommand struct{ jobMeta }

// Synopsis implements cli.Command.
func (c *JobPlanCommand) Synopsis() string { return "Show what running a job would do" }

// Help implements cli.Command.
func (c *JobPlanCommand) Help() string {
	return help(`
Usage: sif job plan [options] <path>

  Turns the connectivity stanzas of a Nomad job file into plain Nomad, checks
  them against the graph in force if the controller answers, and has Nomad
  tell what registering the job would change. It changes nothing. If the path is
  "-", the job file is read from standard input.

  The exit code is 0 if no allocation would be created or destroyed, 1 if some
  would, and 255 if the plan could not be made.
`, `
Plan Options:

  -diff=<bool>
    Show the difference to the job that runs. Default: true
`, jobOptions, controllerOptions)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *JobPlanCommand) AutocompleteFlags() complete.Flags {
	return jobPredictions(complete.Flags{"-diff": complete.PredictSet("true", "false")})
}

// Run implements cli.Command.
func (c *JobPlanCommand) Run(args []string) int {
	diff := true
	flags := c.flagSet("job plan")
	c.jobFlags(flags)
	flags.BoolVar(&diff, "diff", true, "")
	if code, ok := c.parse(flags, args); !ok {
		if code == 1 {
			code = exitPlanFailed
		}
		return code
	}
	j, ok := c.read(flags)
	if !ok || !c.parseJob(j) {
		return exitPlanFailed
	}
	ctx, stop := interruptible()
	defer stop()
	if !c.checkGraph(ctx, j) {
		return exitPlanFailed
	}
	resp, _, err := j.client.Jobs().Plan(j.parsed, diff, nil)
	if err != nil {
		c.fail("planning the job", j.explain(err))
		return exitPlanFailed
	}
	if resp.Warnings != "" {
		c.UI.Warn("Job Warnings:\n" + resp.Warnings)
	}
	if diff && resp.Diff != nil {
		c.UI.Output(strings.Join(diffJob(resp.Diff), "\n") + "\n")
	}
	if len(resp.FailedTGAllocs) == 0 {
		c.UI.Output("All allocations can be placed.")
	} else {
		for _, line := range unplacedGroups(resp.FailedTGAllocs) {
			c.UI.Output(line)
		}
	}
	c.UI.Output(fmt.Sprintf("\nJob Modify Index: %d\nTo register just this version of the job, run:\n\n  sif job run -check-index=%d %s",
		resp.JobModifyIndex, resp.JobModifyIndex, strings.Join(c.again(flags.Arg(0)), " ")))
	return planCode(resp)
}

// again is the arguments that lead to the same job.
func (c *JobPlanCommand) again(path string) []string {
	var args []string
	for _, f := range c.varFiles {
		args = append(args, "-var-file="+quote(f))
	}
	for _, v := range c.vars {
		args = append(args, "-var "+quote(v))
	}
	return append(args, quote(path))
}

// quote quotes an argument for the shell if need be.
func quote(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return strings.ContainsRune(" \t\n'\"\\$`*?[]{}()<>|&;!#~", r) }) {
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	return s
}

func planCode(resp *nomad.JobPlanResponse) int {
	if resp.Annotations == nil {
		return 0
	}
	for _, u := range resp.Annotations.DesiredTGUpdates {
		if u.Stop+u.Place+u.Migrate+u.DestructiveUpdate+u.Canary > 0 {
			return 1
		}
	}
	return 0
}

const edited = "Edited"

// diffSigns mark what is added, deleted and edited.
var diffSigns = map[string]string{"Added": "+", "Deleted": "-", edited: "+/-"}

// diffJob shows a difference as lines, what stays the same left out.
func diffJob(d *nomad.JobDiff) []string {
	w := &diffWriter{}
	w.line(0, d.Type, "Job: %q", d.ID)
	if d.Type == edited { // what is new or gone as a whole needs no details
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
