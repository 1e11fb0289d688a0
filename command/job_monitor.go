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

	nomad "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/hcl"
)

// monitorInterval is the interval at which a monitor asks Nomad.
const monitorInterval = 500 * time.Millisecond

// monitor shows what happens to a registered job, each change once.
type monitor struct {
	*Meta
	nomad  *nomad.Client
	allocs map[string]string // the state of each allocation as last shown
}

func (m *monitor) printf(format string, args ...any) {
	m.UI.Output(time.Now().Format("15:04:05") + " " + fmt.Sprintf(format, args...))
}

// evaluation monitors an evaluation, those that follow it, and the deployment.
func (m *monitor) evaluation(ctx context.Context, id string) error {
	m.printf("Evaluation %s", shortID(id))
	unplaced := false
	var deployment string
	for id != "" {
		eval, err := m.finished(ctx, id)
		if err != nil {
			return fmt.Errorf("monitoring evaluation %s: %w", shortID(id), err)
		}
		if deployment == "" {
			deployment = eval.DeploymentID
		}
		if len(eval.FailedTGAllocs) > 0 {
			unplaced = true
			m.unplaced(eval)
		} else if eval.Status != nomad.EvalStatusComplete {
			return m.report("Evaluation %s is %s: %s", shortID(id), eval.Status, eval.StatusDescription)
		}
		id = eval.NextEval
	}
	if deployment != "" {
		return m.deployment(ctx, deployment)
	}
	if unplaced {
		return exitUnplaced
	}
	m.printf("All allocations are placed.")
	return nil
}

// finished waits until the scheduler has finished an evaluation.
func (m *monitor) finished(ctx context.Context, id string) (*nomad.Evaluation, error) {
	for {
		q := (&nomad.QueryOptions{}).WithContext(ctx)
		eval, _, err := m.nomad.Evaluations().Info(id, q)
		if err != nil {
			return nil, err
		}
		allocs, _, err := m.nomad.Evaluations().Allocations(id, q)
		if err != nil {
			return nil, err
		}
		m.allocations(allocs)
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
func (m *monitor) deployment(ctx context.Context, id string) error {
	m.printf("Deployment %s", shortID(id))
	shown := ""
	for {
		q := (&nomad.QueryOptions{}).WithContext(ctx)
		d, _, err := m.nomad.Deployments().Info(id, q)
		if err == nil {
			var allocs []*nomad.AllocationListStub
			if allocs, _, err = m.nomad.Deployments().Allocations(id, q); err == nil {
				m.allocations(allocs)
			}
		}
		if ctx.Err() != nil {
			return m.report("Monitoring of deployment %s was interrupted. The deployment continues.", shortID(id))
		}
		if err != nil {
			return fmt.Errorf("monitoring deployment %s: %w", shortID(id), err)
		}
		if s := deploymentState(d); s != shown {
			m.printf("%s", s)
			shown = s
		}
		switch d.Status {
		case nomad.DeploymentStatusSuccessful:
			return nil
		case nomad.DeploymentStatusFailed, nomad.DeploymentStatusCancelled, nomad.DeploymentStatusBlocked, nomad.DeploymentStatusPaused:
			return m.report("Deployment %s is %s: %s", shortID(id), d.Status, d.StatusDescription)
		}
		_ = pause(ctx) // an interruption is reported above
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

// allocations shows which allocations changed, and why they failed if they did.
func (m *monitor) allocations(list []*nomad.AllocationListStub) {
	for _, a := range list {
		state := a.ClientStatus
		if a.DeploymentStatus != nil && a.DeploymentStatus.Healthy != nil && a.ClientStatus == nomad.AllocClientStatusRunning {
			if state = "healthy"; !*a.DeploymentStatus.Healthy {
				state = "unhealthy"
			}
		}
		why := failures(a)
		key := state + strings.Join(why, "\n")
		if m.allocs[a.ID] == key {
			continue
		}
		m.allocs[a.ID] = key
		m.printf("Allocation %s of group %q on node %s is %s", shortID(a.ID), a.TaskGroup, a.NodeName, state)
		for _, w := range why {
			m.UI.Error("           " + w)
		}
	}
}

// failureEvents are the task events that say why a task does not run.
var failureEvents = []string{
	nomad.TaskSetupFailure, nomad.TaskDriverFailure, nomad.TaskFailedValidation, nomad.TaskArtifactDownloadFailed,
	nomad.TaskNotRestarting, nomad.TaskSiblingFailed, nomad.TaskTerminated,
}

// failures returns why an allocation failed, from the events of its tasks. A network that the
// fabric refused is such an event.
func failures(a *nomad.AllocationListStub) []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(a.TaskStates)) {
		for _, e := range a.TaskStates[name].Events {
			if !slices.Contains(failureEvents, e.Type) || (e.Type == nomad.TaskTerminated && e.ExitCode == 0) {
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

// unplaced shows why allocations could not be placed.
func (m *monitor) unplaced(eval *nomad.Evaluation) {
	for _, line := range unplacedGroups(eval.FailedTGAllocs) {
		m.UI.Error(line)
	}
	if eval.BlockedEval != "" {
		m.printf("Evaluation %s waits for nodes with capacity for the remaining allocations", shortID(eval.BlockedEval))
	}
}

// missingNetwork is Nomad's name for the constraint on a node's CNI networks.
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
				why("the sif agent installs network %q on its node: check that it runs", hcl.NetworkMode)
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
	case <-time.After(monitorInterval):
		return nil
	}
}
