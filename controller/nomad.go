// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

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
	Leaves     string // how its tasks leave the group's network, with the remedy; empty: they do not
	Workload   fabric.Workload
	Meta       map[string]string // of the group
	Checks     []fabric.Check    // ports inside the workload to which health checks connect
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
	p := Placement{
		NodeID: node.ID, NodeName: node.Name, Datacenter: node.Datacenter,
		Meta: group.Meta, Leaves: nomadjob.Refusal(group),
		Workload: fabric.Workload{
			Namespace: alloc.Namespace, Job: alloc.JobID, Group: alloc.TaskGroup,
			Datacenter: node.Datacenter, NodeClass: node.NodeClass, NodePool: node.NodePool,
		},
	}
	if alloc.Job.Region != nil {
		p.Workload.Region = *alloc.Job.Region
	}
	switch {
	case alloc.DesiredStatus != nomadapi.AllocDesiredStatusRun:
		p.Stopped = "Nomad wants it to " + alloc.DesiredStatus
	case alloc.ClientTerminalStatus():
		p.Stopped = "it is " + alloc.ClientStatus
	}
	for _, s := range servicesOf(group) {
		p.Workload.Services = append(p.Workload.Services, fabric.WorkloadService{Name: s.Name, Tags: s.Tags, Meta: s.Meta})
		p.Checks = append(p.Checks, checksOf(s, alloc)...)
	}
	slices.SortStableFunc(p.Workload.Services, func(a, b fabric.WorkloadService) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(p.Checks, func(a, b fabric.Check) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	p.Checks = slices.Compact(p.Checks)
	return p, nil
}

// status returns the HTTP status in an error from Nomad, or 0.
func status(err error) int {
	var u nomadapi.UnexpectedResponseError
	if errors.As(err, &u) {
		return u.StatusCode()
	}
	return 0
}

// servicesOf returns the service blocks of a group and of its tasks.
func servicesOf(group *nomadapi.TaskGroup) []*nomadapi.Service {
	services := slices.Clone(group.Services)
	for _, t := range group.Tasks {
		services = append(services, t.Services...)
	}
	return services
}

// checksOf returns the ports inside the workload to which the checks of a service connect. A check
// without a port uses that of its service.
func checksOf(s *nomadapi.Service, alloc *nomadapi.Allocation) []fabric.Check {
	var checks []fabric.Check
	for _, c := range s.Checks {
		switch c.Type {
		case "http", "tcp", "grpc":
			if port := portInside(cmp.Or(c.PortLabel, s.PortLabel), alloc); port != 0 {
				checks = append(checks, fabric.Check{Protocol: fabric.TCP, Port: port})
			}
		}
	}
	return checks
}

// portInside returns the port inside the workload's network namespace for a label: the label itself
// if it is a number, or the port to which the label maps. It returns 0 if there is none.
func portInside(label string, alloc *nomadapi.Allocation) uint16 {
	if n, err := strconv.ParseUint(label, 10, 16); err == nil {
		return uint16(n)
	}
	if alloc.AllocatedResources == nil {
		return 0
	}
	inside := func(value, to int) uint16 {
		if to <= 0 { // unset, or -1: the same as outside
			to = value
		}
		if to < 0 || to > 65535 {
			return 0
		}
		return uint16(to)
	}
	shared := alloc.AllocatedResources.Shared
	for _, p := range shared.Ports {
		if p.Label == label {
			return inside(p.Value, p.To)
		}
	}
	for _, network := range shared.Networks {
		for _, p := range slices.Concat(network.DynamicPorts, network.ReservedPorts) {
			if p.Label == label {
				return inside(p.Value, p.To)
			}
		}
	}
	return 0
}
