// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/cli"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/hcl"
)

// followInterval is the pause between looks at what a job is doing.
const followInterval = 500 * time.Millisecond

// follower tells what becomes of a registered job, each change once.
type follower struct {
	ui     cli.Ui
	nomad  *nomad.Client
	allocs map[string]string // what was last said of each allocation
}

func (f *follower) say(format string, args ...any) {
	f.ui.Output(time.Now().Format("15:04:05") + " " + fmt.Sprintf(format, args...))
}

// evaluation follows an evaluation, those that come of it, and the deployment,
// and returns the exit code of the command.
func (f *follower) evaluation(ctx context.Context, id string) int {
	f.say("Evaluation %s", short(id))
	unplaced := false
	var deployment string
	for id != "" {
		eval, err := f.finished(ctx, id)
		if err != nil {
			f.ui.Error(fmt.Sprintf("Error following evaluation %s: %s", short(id), err))
			return 1
		}
		if deployment == "" {
			deployment = eval.DeploymentID
		}
		if len(eval.FailedTGAllocs) > 0 {
			unplaced = true
			f.unplaced(eval)
		} else if eval.Status != nomad.EvalStatusComplete {
			f.ui.Error(fmt.Sprintf("Evaluation %s is %s: %s", short(id), eval.Status, eval.StatusDescription))
			return 1
		}
		id = eval.NextEval
	}
	if deployment != "" {
		return f.deployment(ctx, deployment)
	}
	if unplaced {
		return 2
	}
	f.say("All allocations are placed.")
	return 0
}

// finished waits until the scheduler is done with an evaluation.
func (f *follower) finished(ctx context.Context, id string) (*nomad.Evaluation, error) {
	for {
		q := (&nomad.QueryOptions{}).WithContext(ctx)
		eval, _, err := f.nomad.Evaluations().Info(id, q)
		if err != nil {
			return nil, err
		}
		allocs, _, err := f.nomad.Evaluations().Allocations(id, q)
		if err != nil {
			return nil, err
		}
		f.allocations(allocs)
		switch eval.Status {
		case nomad.EvalStatusComplete, nomad.EvalStatusFailed, nomad.EvalStatusCancelled:
			return eval, nil
		}
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
}

// deployment waits until a deployment ends.
func (f *follower) deployment(ctx context.Context, id string) int {
	f.say("Deployment %s", short(id))
	said := ""
	for {
		q := (&nomad.QueryOptions{}).WithContext(ctx)
		d, _, err := f.nomad.Deployments().Info(id, q)
		if err == nil {
			var allocs []*nomad.AllocationListStub
			if allocs, _, err = f.nomad.Deployments().Allocations(id, q); err == nil {
				f.allocations(allocs)
			}
		}
		if err != nil {
			f.ui.Error(fmt.Sprintf("Error following deployment %s: %s", short(id), err))
			return 1
		}
		if s := deploymentState(d); s != said {
			f.say("%s", s)
			said = s
		}
		switch d.Status {
		case nomad.DeploymentStatusSuccessful:
			return 0
		case nomad.DeploymentStatusFailed, nomad.DeploymentStatusCancelled, nomad.DeploymentStatusBlocked, nomad.DeploymentStatusPaused:
			f.ui.Error(fmt.Sprintf("Deployment %s is %s: %s", short(id), d.Status, d.StatusDescription))
			return 1
		}
		if err := pause(ctx); err != nil {
			f.ui.Error(fmt.Sprintf("Stopped following deployment %s; it goes on.", short(id)))
			return 1
		}
	}
}

func deploymentState(d *nomad.Deployment) string {
	var groups []string
	for _, name := range slices.Sorted(maps.Keys(d.TaskGroups)) {
		g := d.TaskGroups[name]
		s := fmt.Sprintf("%s %d/%d healthy", name, g.HealthyAllocs, max(g.DesiredTotal, g.DesiredCanaries))
		if g.UnhealthyAllocs > 0 {
			s += fmt.Sprintf(", %d unhealthy", g.UnhealthyAllocs)
		}
		groups = append(groups, s)
	}
	return fmt.Sprintf("Deployment %s: %s", d.Status, strings.Join(groups, "; "))
}

// allocations tells what changed of allocations, and why those failed that did.
func (f *follower) allocations(list []*nomad.AllocationListStub) {
	for _, a := range list {
		state := a.ClientStatus
		if a.DeploymentStatus != nil && a.DeploymentStatus.Healthy != nil && a.ClientStatus == nomad.AllocClientStatusRunning {
			if state = "healthy"; !*a.DeploymentStatus.Healthy {
				state = "unhealthy"
			}
		}
		trouble := troubles(a)
		key := state + strings.Join(trouble, "\n")
		if f.allocs[a.ID] == key {
			continue
		}
		f.allocs[a.ID] = key
		f.say("Allocation %s of group %q on node %s is %s", short(a.ID), a.TaskGroup, a.NodeName, state)
		for _, t := range trouble {
			f.ui.Error("           " + t)
		}
	}
}

// troubleEvents are the events of tasks that tell why something does not run.
var troubleEvents = []string{
	nomad.TaskSetupFailure, nomad.TaskDriverFailure, nomad.TaskFailedValidation, nomad.TaskArtifactDownloadFailed,
	nomad.TaskNotRestarting, nomad.TaskSiblingFailed, nomad.TaskTerminated,
}

// troubles says what went wrong with an allocation, in the words of the events
// of its tasks: a network that the fabric refused is one of them.
func troubles(a *nomad.AllocationListStub) []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(a.TaskStates)) {
		for _, e := range a.TaskStates[name].Events {
			if !slices.Contains(troubleEvents, e.Type) || (e.Type == nomad.TaskTerminated && e.ExitCode == 0) {
				continue
			}
			list = append(list, fmt.Sprintf("task %q: %s: %s", name, e.Type, e.DisplayMessage))
		}
	}
	if len(list) == 0 && a.ClientStatus == nomad.AllocClientStatusFailed {
		list = append(list, a.ClientDescription)
	}
	return list
}

// unplaced tells why allocations have no node.
func (f *follower) unplaced(eval *nomad.Evaluation) {
	for _, line := range unplacedGroups(eval.FailedTGAllocs) {
		f.ui.Error(line)
	}
	if eval.BlockedEval != "" {
		f.say("Evaluation %s waits for nodes that can take the rest", short(eval.BlockedEval))
	}
}

// missingNetwork is what Nomad calls the lack of a CNI network on a node.
const missingNetwork = "missing network"

func unplacedGroups(failed map[string]*nomad.AllocationMetric) []string {
	var lines []string
	for _, group := range slices.Sorted(maps.Keys(failed)) {
		m := failed[group]
		lines = append(lines, fmt.Sprintf("Group %q: %s cannot be placed:", group, count(m.CoalescedFailures+1, "allocation")))
		why := func(format string, args ...any) { lines = append(lines, "  * "+fmt.Sprintf(format, args...)) }
		if m.NodesEvaluated == 0 {
			why("no nodes were eligible for evaluation")
		}
		for _, dc := range slices.Sorted(maps.Keys(m.NodesAvailable)) {
			if m.NodesAvailable[dc] == 0 {
				why("no nodes are available in datacenter %q", dc)
			}
		}
		for _, c := range slices.Sorted(maps.Keys(m.ClassFiltered)) {
			why("class %q excludes %s", c, count(m.ClassFiltered[c], "node"))
		}
		for _, c := range slices.Sorted(maps.Keys(m.ConstraintFiltered)) {
			why("constraint %q excludes %s", c, count(m.ConstraintFiltered[c], "node"))
			if c == missingNetwork {
				why("the sif agent of a node installs network %q there; see whether it runs", hcl.NetworkMode)
			}
		}
		if m.NodesExhausted > 0 {
			why("%s without enough resources", count(m.NodesExhausted, "node"))
		}
		for _, d := range slices.Sorted(maps.Keys(m.DimensionExhausted)) {
			why("dimension %q is exhausted on %s", d, count(m.DimensionExhausted[d], "node"))
		}
		for _, q := range m.QuotaExhausted {
			why("quota limit %q is reached", q)
		}
	}
	return lines
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(followInterval):
		return nil
	}
}

// short is the first part of an ID, as Nomad shows it.
func short(id string) string { return id[:min(8, len(id))] }
