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
)

// ErrNoAllocation is returned by a Scheduler that knows no such allocation.
var ErrNoAllocation = errors.New("the scheduler knows no such allocation")

// Placement is what the scheduler attests of an allocation.
type Placement struct {
	NodeID     string // the scheduler's own ID of the node
	NodeName   string
	Datacenter string // of the node
	Stopped    string // why it shall not or does not run any more; empty: it shall run
	Workload   fabric.Workload
	Meta       map[string]string // of the group
	Checks     []fabric.Check    // ports inside the workload that health checks name
}

// Scheduler places workloads. Any error but ErrNoAllocation means that it
// could not be asked.
type Scheduler interface {
	// Placement asks about an allocation. node is the scheduler's ID of the node
	// that it is probably on, or empty: knowing it only saves time.
	Placement(ctx context.Context, allocation, node string) (Placement, error)
}

// Nomad is the Scheduler that asks Nomad's servers.
type Nomad struct {
	Client func() *nomadapi.Client
}

// Placement implements Scheduler. The job is the version that the allocation
// was made of, whatever was registered since.
func (n Nomad) Placement(ctx context.Context, allocation, likely string) (Placement, error) {
	q := (&nomadapi.QueryOptions{}).WithContext(ctx)
	guessed := make(chan *nomadapi.Node, 1)
	go func() {
		var node *nomadapi.Node
		if likely != "" {
			node, _, _ = n.Client().Nodes().Info(likely, q)
		}
		guessed <- node
	}()
	alloc, _, err := n.Client().Allocations().Info(allocation, q)
	if status(err) == http.StatusNotFound {
		return Placement{}, ErrNoAllocation
	}
	if err != nil {
		return Placement{}, fmt.Errorf("ask Nomad for allocation %s: %w", allocation, err)
	}
	if alloc.ID != allocation {
		return Placement{}, ErrNoAllocation // Nomad completes prefixes; an endpoint's name must be exact
	}
	node := <-guessed
	if node == nil || node.ID != alloc.NodeID {
		node, _, err = n.Client().Nodes().Info(alloc.NodeID, q)
	}
	if err != nil {
		return Placement{}, fmt.Errorf("ask Nomad for node %s: %w", alloc.NodeID, err)
	}
	group := alloc.GetTaskGroup()
	if alloc.Job == nil || group == nil {
		return Placement{}, fmt.Errorf("nomad's answer about allocation %s does not hold its job", allocation)
	}
	p := Placement{
		NodeID: node.ID, NodeName: node.Name, Datacenter: node.Datacenter,
		Meta: group.Meta,
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

// status returns the HTTP status of an unexpected answer of Nomad.
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

// checksOf returns the ports inside the workload at which the checks of a
// service look. A check without a port looks at its service's.
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

// portInside returns the port of a label inside the workload's namespace: the
// label itself if it is a number, else what the port maps to; 0 if there is
// no such port.
func portInside(label string, alloc *nomadapi.Allocation) uint16 {
	if n, err := strconv.ParseUint(label, 10, 16); err == nil {
		return uint16(n)
	}
	if alloc.AllocatedResources == nil {
		return 0
	}
	inside := func(value, to int) uint16 {
		if to <= 0 { // unset, or "the same as outside"
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
