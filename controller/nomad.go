// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/nomadjob"
	"github.com/sif-project/sif/internal/nomadlife"
)

// ErrNoAllocation means that the scheduler does not know the allocation.
var ErrNoAllocation = errors.New("the scheduler does not know the allocation")

// Placement is what the scheduler attests about an allocation.
type Placement struct {
	Machine  Machine
	Stopped  string // why the allocation must not run, or does not run any more; empty: it must run
	Refused  string // what in its job stands against connecting it, with the remedy; empty: nothing
	Workload fabric.Workload
	Meta     map[string]string // of the group
	Checks   []fabric.Check    // ports inside the workload to which health checks connect

	HealthChecked bool               // the job declares health checks in Consul
	Ports         []fabric.NamedPort // inside the workload, that the job names
	VM            bool               // the group says that it is a virtual machine

	Canary bool // of a deployment that was not promoted yet: what Workload has, changes then

	// RefusedNow is like Refused, for what was not connected before: earlier versions connected it.
	RefusedNow string
}

// ErrNoMachine means that the scheduler does not know the node.
var ErrNoMachine = errors.New("the scheduler does not know the node")

// Machine is a node of the scheduler. Neither its name nor its datacenter says which node of the
// fabric it is.
type Machine struct {
	ID         string
	Name       string
	Datacenter string
	Class      string // by its own word, as its pool
	Pool       string
	Down       bool         // it does not run workloads any more
	Addresses  []netip.Addr // its own, as the scheduler knows them
}

func (m Machine) String() string {
	return fmt.Sprintf("%s (%q in datacenter %q)", m.ID, m.Name, m.Datacenter)
}

// Scheduler places workloads. Any error except ErrNoAllocation and ErrNoMachine means that it could
// not be asked.
type Scheduler interface {
	// Placement returns where an allocation is placed, and what it is. likely is the scheduler's ID
	// of the node where the allocation probably is, or empty. It only saves time.
	Placement(ctx context.Context, allocation, likely string) (Placement, error)
	// Machine returns a node by the scheduler's own ID of it.
	Machine(ctx context.Context, id string) (Machine, error)
	// MachinesAt returns the nodes with an address, which are several after one was set up again.
	MachinesAt(ctx context.Context, address netip.Addr) ([]Machine, error)
	// Lives returns a Follower that calls changed, which does not block, after the life of
	// allocations changed.
	Lives(changed func(ids []string), log hclog.Logger) Follower
}

// Nomad is the Scheduler that asks Nomad's servers.
type Nomad struct {
	client  func() *nomadapi.Client
	watcher atomic.Pointer[nomadlife.Watcher] // nil: nobody follows the lives of allocations
}

// NewNomad returns a Scheduler that calls client for each use, because tokens are renewed.
func NewNomad(client func() *nomadapi.Client) *Nomad {
	return &Nomad{client: client}
}

// Placement implements Scheduler. The job is the version from which the allocation was made, even
// if a newer one is registered. Whoever follows the lives of allocations has the answer too.
func (n *Nomad) Placement(ctx context.Context, allocation, likely string) (Placement, error) {
	q := (&nomadapi.QueryOptions{}).WithContext(ctx)
	likelyNode := make(chan *nomadapi.Node, 1)
	go func() {
		var node *nomadapi.Node
		if likely != "" {
			node, _, _ = n.client().Nodes().Info(likely, q)
		}
		likelyNode <- node
	}()
	watcher := n.watcher.Load()
	if watcher != nil {
		watcher.Expect(allocation)
	}
	alloc, _, err := n.client().Allocations().Info(allocation, q)
	if status(err) == http.StatusNotFound {
		return Placement{}, ErrNoAllocation
	}
	if err != nil {
		return Placement{}, fmt.Errorf("ask Nomad for allocation %s: %w", allocation, err)
	}
	if alloc.ID != allocation {
		return Placement{}, ErrNoAllocation // Nomad completes prefixes of IDs; the ID of an endpoint must be complete
	}
	if watcher != nil {
		watcher.Saw(alloc)
	}
	node := <-likelyNode
	if node == nil || node.ID != alloc.NodeID {
		node, _, err = n.client().Nodes().Info(alloc.NodeID, q)
	}
	if err != nil {
		return Placement{}, fmt.Errorf("ask Nomad for node %s: %w", alloc.NodeID, err)
	}
	group := alloc.GetTaskGroup()
	if alloc.Job == nil || group == nil {
		return Placement{}, fmt.Errorf("nomad's answer about allocation %s does not contain its job", allocation)
	}
	in := nomadjob.Instance{Allocation: alloc, Node: node}
	said := nomadjob.Describe(alloc.Job, group, &in)
	if said.Workload.Job, err = n.root(q, said.Workload); err != nil {
		return Placement{}, err
	}
	p := Placement{
		Machine: machineOf(node),
		Meta:    group.Meta, Refused: nomadjob.Refusal(group, said), Workload: said.Workload,
		Checks: said.Checks, HealthChecked: said.HealthChecked, Ports: said.Ports, VM: nomadjob.IsVM(group), Canary: in.Canary(),
	}
	if why, remedy := nomadjob.ForeignResolver(group); why != "" {
		p.RefusedNow = why + ". " + remedy
	}
	switch {
	case alloc.DesiredStatus != nomadapi.AllocDesiredStatusRun:
		p.Stopped = "Nomad wants it to " + alloc.DesiredStatus
	case alloc.ClientTerminalStatus():
		p.Stopped = "it is " + alloc.ClientStatus
	}
	return p, nil
}

// ipAttribute is the attribute in which a Nomad client publishes the address of its interface.
const ipAttribute = "unique.network.ip-address"

func machineOf(node *nomadapi.Node) Machine {
	m := Machine{ID: node.ID, Name: node.Name, Datacenter: node.Datacenter, Class: node.NodeClass, Pool: node.NodePool, Down: node.Status == nomadapi.NodeStatusDown}
	add := func(text string) {
		if a, err := netip.ParseAddr(text); err == nil && !slices.Contains(m.Addresses, a.Unmap()) {
			m.Addresses = append(m.Addresses, a.Unmap())
		}
	}
	if host, _, err := net.SplitHostPort(node.HTTPAddr); err == nil {
		add(host)
	}
	add(node.Attributes[ipAttribute])
	if node.NodeResources != nil {
		for _, n := range node.NodeResources.Networks {
			add(n.IP)
		}
	}
	return m
}

// nomadNodeID is the form of an ID of Nomad.
var nomadNodeID = allocationID

// Machine implements Scheduler.
func (n *Nomad) Machine(ctx context.Context, id string) (Machine, error) {
	if !nomadNodeID.MatchString(id) {
		return Machine{}, ErrNoMachine // Nomad completes prefixes of IDs
	}
	node, _, err := n.client().Nodes().Info(id, (&nomadapi.QueryOptions{}).WithContext(ctx))
	if status(err) == http.StatusNotFound {
		return Machine{}, ErrNoMachine
	}
	if err != nil {
		return Machine{}, fmt.Errorf("ask Nomad for node %s: %w", id, err)
	}
	return machineOf(node), nil
}

// MachinesAt implements Scheduler. The list of Nomad has one address of each node, that of its API,
// so it reads all of a node only if that address is another one.
func (n *Nomad) MachinesAt(ctx context.Context, address netip.Addr) ([]Machine, error) {
	q := (&nomadapi.QueryOptions{}).WithContext(ctx)
	stubs, _, err := n.client().Nodes().List(q)
	if err != nil {
		return nil, fmt.Errorf("ask Nomad for its nodes: %w", err)
	}
	var found []Machine
	for _, s := range stubs {
		if a, err := netip.ParseAddr(s.Address); err == nil && a.Unmap() == address {
			found = append(found, Machine{
				ID: s.ID, Name: s.Name, Datacenter: s.Datacenter, Down: s.Status == nomadapi.NodeStatusDown, Addresses: []netip.Addr{address},
			})
		}
	}
	if len(found) > 0 || len(stubs) > mostAsked {
		return found, nil
	}
	for _, s := range stubs {
		m, err := n.Machine(ctx, s.ID)
		switch {
		case errors.Is(err, ErrNoMachine):
		case err != nil:
			return nil, err
		case slices.Contains(m.Addresses, address):
			found = append(found, m)
		}
	}
	return found, nil
}

// mostAsked bounds how many nodes are read one by one.
const mostAsked = 200

// root returns the name of the job that people registered. The parent of a child may be a child
// itself: each run of a job that is periodic and parameterized takes dispatches.
func (n *Nomad) root(q *nomadapi.QueryOptions, w fabric.Workload) (string, error) {
	in := *q
	in.Namespace = w.Namespace
	for strings.Contains(w.Job, nomadapi.JobPeriodicLaunchSuffix) || strings.Contains(w.Job, nomadapi.JobDispatchLaunchSuffix) {
		job, _, err := n.client().Jobs().Info(w.Job, &in)
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
