// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/nomadjob"
)

// ErrNoAllocation means that the scheduler does not know the allocation.
var ErrNoAllocation = errors.New("the scheduler does not know the allocation")

// Placement is what the scheduler attests about an allocation.
type Placement struct {
	NodeID     string // the scheduler's own ID of the node
	NodeName   string
	Datacenter string // of the node
	Stopped    string // why the allocation must not run, or does not run any more; empty: it must run
	Refused    string // what in its job stands against connecting it, with the remedy; empty: nothing
	Workload   fabric.Workload
	Meta       map[string]string // of the group
	Checks     []fabric.Check    // ports inside the workload to which health checks connect

	HealthChecked bool // the job declares health checks in Consul
}

// Scheduler places workloads. Any error except ErrNoAllocation means that it could not be asked.
type Scheduler interface {
	// Placement returns where an allocation is placed, and what it is. likely is the scheduler's ID
	// of the node where the allocation probably is, or empty. It only saves time.
	Placement(ctx context.Context, allocation, likely string) (Placement, error)
}

// Nomad is the Scheduler that asks Nomad's servers.
type Nomad struct {
	Client func() *nomadapi.Client
}

// Placement implements Scheduler. The job is the version from which the allocation was made, even
// if a newer one is registered.
func (n Nomad) Placement(ctx context.Context, allocation, likely string) (Placement, error) {
	q := (&nomadapi.QueryOptions{}).WithContext(ctx)
	likelyNode := make(chan *nomadapi.Node, 1)
	go func() {
		var node *nomadapi.Node
		if likely != "" {
			node, _, _ = n.Client().Nodes().Info(likely, q)
		}
		likelyNode <- node
	}()
	alloc, _, err := n.Client().Allocations().Info(allocation, q)
	if status(err) == http.StatusNotFound {
		return Placement{}, ErrNoAllocation
	}
	if err != nil {
		return Placement{}, fmt.Errorf("ask Nomad for allocation %s: %w", allocation, err)
	}
	if alloc.ID != allocation {
		return Placement{}, ErrNoAllocation // Nomad completes prefixes of IDs; the ID of an endpoint must be complete
	}
	node := <-likelyNode
	if node == nil || node.ID != alloc.NodeID {
		node, _, err = n.Client().Nodes().Info(alloc.NodeID, q)
	}
	if err != nil {
		return Placement{}, fmt.Errorf("ask Nomad for node %s: %w", alloc.NodeID, err)
	}
	group := alloc.GetTaskGroup()
	if alloc.Job == nil || group == nil {
		return Placement{}, fmt.Errorf("nomad's answer about allocation %s does not contain its job", allocation)
	}
	said := nomadjob.Describe(alloc.Job, group, &nomadjob.Instance{Allocation: alloc, Node: node})
	if said.Workload.Job, err = n.root(q, said.Workload); err != nil {
		return Placement{}, err
	}
	p := Placement{
		NodeID: node.ID, NodeName: node.Name, Datacenter: node.Datacenter,
		Meta: group.Meta, Refused: nomadjob.Refusal(group, said), Workload: said.Workload,
		Checks: said.Checks, HealthChecked: said.HealthChecked,
	}
	switch {
	case alloc.DesiredStatus != nomadapi.AllocDesiredStatusRun:
		p.Stopped = "Nomad wants it to " + alloc.DesiredStatus
	case alloc.ClientTerminalStatus():
		p.Stopped = "it is " + alloc.ClientStatus
	}
	return p, nil
}

// root returns the name of the job that people registered. The parent of a child may be a child
// itself: each run of a job that is periodic and parameterized takes dispatches.
func (n Nomad) root(q *nomadapi.QueryOptions, w fabric.Workload) (string, error) {
	in := *q
	in.Namespace = w.Namespace
	for strings.Contains(w.Job, nomadapi.JobPeriodicLaunchSuffix) || strings.Contains(w.Job, nomadapi.JobDispatchLaunchSuffix) {
		job, _, err := n.Client().Jobs().Info(w.Job, &in)
		switch {
		case status(err) == http.StatusNotFound:
			return w.Job, nil // purged: its name is all that is left
		case err != nil:
			return "", fmt.Errorf("ask Nomad for job %s: %w", w.Job, err)
		case job.ParentID == nil || *job.ParentID == "":
			return w.Job, nil
		}
		w.Job = *job.ParentID
	}
	return w.Job, nil
}

// status returns the HTTP status in an error from Nomad, or 0.
func status(err error) int {
	var u nomadapi.UnexpectedResponseError
	if errors.As(err, &u) {
		return u.StatusCode()
	}
	return 0
}
