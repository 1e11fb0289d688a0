// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"
)

// RunApplications deploys applications as their owners would, with the sif command: it applies the
// graphs in the directories (*.sif.hcl), runs the jobs (*.nomad.hcl) and the units of what Nomad
// does not run (*.service), and waits until all deployments are healthy.
func (l *Lab) RunApplications(ctx context.Context, dirs ...string) error {
	graphs := slices.DeleteFunc(slices.Clone(dirs), func(dir string) bool { // some have only jobs
		files, _ := filepath.Glob(filepath.Join(dir, "*.sif.hcl"))
		return len(files) == 0
	})
	if out, err := l.SIF(ctx, append([]string{"graph", "apply", "-message=sif-lab"}, graphs...)...); err != nil {
		return fmt.Errorf("apply the graphs: %w\n%s", err, out)
	}
	l.progress.line("the graphs of %s are in force", strings.Join(graphs, ", "))
	var jobs []string
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.nomad.hcl"))
		if err != nil {
			return err
		}
		jobs = append(jobs, files...)
	}
	if len(jobs) == 0 {
		return fmt.Errorf("no jobs (*.nomad.hcl) in %s", strings.Join(dirs, ", "))
	}
	for _, file := range jobs {
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), "${meta.guest}") {
			if err := l.PrepareGuests(ctx); err != nil {
				return err
			}
			break
		}
	}
	g, running := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, file := range jobs {
		g.Go(func() error {
			if out, err := l.SIF(running, "job", "run", "-detach", file); err != nil {
				return fmt.Errorf("run %s: %w\n%s", file, err, out)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := l.leaveOut(ctx); err != nil {
		return err
	}
	for _, dir := range dirs {
		units, err := filepath.Glob(filepath.Join(dir, "*.service"))
		if err != nil {
			return err
		}
		for _, file := range units {
			if err := l.RunUnit(ctx, file); err != nil {
				return err
			}
		}
	}
	return l.awaitDeployments(ctx, 2*time.Minute)
}

// leaveOut takes the groups out of jobs that are for a zone which the lab does not have: they could
// never be placed.
func (l *Lab) leaveOut(ctx context.Context) error {
	client, err := l.Nomad(l.Secrets.NomadManagement)
	if err != nil {
		return err
	}
	jobs, _, err := client.Jobs().List((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("list jobs: %w", err)
	}
	elsewhere := func(c *api.Constraint) bool {
		return c.LTarget == "${node.datacenter}" && !slices.ContainsFunc(l.Topology.Zones, func(z *Zone) bool { return z.Name == c.RTarget })
	}
	for _, j := range jobs {
		job, _, err := client.Jobs().Info(j.ID, (&api.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return fmt.Errorf("read job %s: %w", j.ID, err)
		}
		groups := len(job.TaskGroups)
		job.TaskGroups = slices.DeleteFunc(job.TaskGroups, func(g *api.TaskGroup) bool { return slices.ContainsFunc(g.Constraints, elsewhere) })
		if len(job.TaskGroups) == groups {
			continue
		}
		if _, _, err := client.Jobs().Register(job, (&api.WriteOptions{}).WithContext(ctx)); err != nil {
			return fmt.Errorf("take the groups of other zones out of job %s: %w", j.ID, err)
		}
	}
	return nil
}

// SIF runs the sif command as the operator, outside the fabric, and returns what it printed.
func (l *Lab) SIF(ctx context.Context, args ...string) (string, error) {
	cmd, err := l.Command(ctx, clientNS, filepath.Join(l.Bin, "sif"), args...)
	if err != nil {
		return "", err
	}
	cmd.Env = append(cmd.Env, l.Environment()...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// awaitDeployments waits until the latest deployment of every job is successful. Its error
// describes the deployments that are not.
func (l *Lab) awaitDeployments(parent context.Context, within time.Duration) error {
	client, err := l.Nomad(l.Secrets.NomadOperator)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(parent, within)
	defer cancel()
	healthy := map[string]bool{}
	for {
		jobs, _, err := client.Jobs().List((&api.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return fmt.Errorf("list jobs: %w", err)
		}
		var waiting []string
		for _, j := range jobs {
			if healthy[j.ID] || j.Type != api.JobTypeService { // others have no deployments
				continue
			}
			d, _, err := client.Jobs().LatestDeployment(j.ID, (&api.QueryOptions{}).WithContext(ctx))
			switch {
			case err != nil:
				return fmt.Errorf("read the deployment of %s: %w", j.ID, err)
			case d != nil && d.Status == api.DeploymentStatusSuccessful:
				healthy[j.ID] = true
				l.progress.line("%s is healthy", j.ID)
				continue
			case d != nil && d.Status == api.DeploymentStatusFailed:
				return fmt.Errorf("the deployment of %s failed: %s%s", j.ID, d.StatusDescription, events(parent, client, j.ID))
			}
			waiting = append(waiting, j.ID)
		}
		if len(waiting) == 0 && len(jobs) > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			if err := parent.Err(); err != nil {
				return err
			}
			var why strings.Builder
			for _, id := range waiting {
				why.WriteString(events(parent, client, id))
			}
			return fmt.Errorf("not healthy after %s: %s%s", within, strings.Join(waiting, ", "), why.String())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// events describes the last events of a job's tasks, and why allocations were not placed.
func events(ctx context.Context, client *api.Client, job string) string {
	var b strings.Builder
	query := (&api.QueryOptions{}).WithContext(ctx)
	allocs, _, err := client.Jobs().Allocations(job, false, query)
	if err != nil {
		return "\n  " + err.Error()
	}
	if len(allocs) == 0 {
		fmt.Fprintf(&b, "\n  %s: Nomad has placed no allocation; see `nomad job status %s`", job, job)
	}
	for _, a := range allocs {
		fmt.Fprintf(&b, "\n  %s.%s on %s is %s: %s", job, a.TaskGroup, a.NodeName, a.ClientStatus, a.ClientDescription)
		for task, state := range a.TaskStates {
			for _, e := range state.Events[max(0, len(state.Events)-2):] {
				fmt.Fprintf(&b, "\n    %s: %s", task, e.DisplayMessage)
			}
		}
	}
	return b.String()
}

// Page is a port that a running job publishes to the users outside the fabric.
type Page struct {
	Job string
	URL string
}

// Pages lists the ports that the running jobs publish.
func (l *Lab) Pages(ctx context.Context) ([]Page, error) {
	client, err := l.Nomad(l.Secrets.NomadOperator)
	if err != nil {
		return nil, err
	}
	query := &api.QueryOptions{Params: map[string]string{"resources": "true"}}
	allocs, _, err := client.Allocations().List(query.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("list allocations: %w", err)
	}
	var pages []Page
	for _, a := range allocs {
		if a.ClientStatus != api.AllocClientStatusRunning || a.AllocatedResources == nil {
			continue
		}
		node := l.Topology.Node(a.NodeName)
		if node == nil {
			return nil, errors.New("Nomad lists a node that the lab does not have: " + a.NodeName)
		}
		for _, p := range a.AllocatedResources.Shared.Ports {
			pages = append(pages, Page{Job: a.JobID, URL: fmt.Sprintf("http://%s:%d/", node.Address, p.Value)})
		}
	}
	slices.SortFunc(pages, func(a, b Page) int { return strings.Compare(a.Job, b.Job) })
	return pages, nil
}
