// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadjob

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/fabric"
)

// Instance is an allocation of a job, and the node on which Nomad placed it.
type Instance struct {
	Allocation *nomadapi.Allocation
	Node       *nomadapi.Node
}

// Description is what a job says about the instances of a group.
type Description struct {
	Workload fabric.Workload
	Checks   []fabric.Check // the ports inside the workload to which health checks connect
	Gaps     []Gap
	// HealthChecked says that a service has health checks which Nomad registers in Consul.
	HealthChecked bool
	// Ports are those inside the workload that the job names, sorted, each once: by the labels of
	// the group's network, and by the names of its services. What is no label of DNS is left out,
	// and so is what exceeds maxPorts.
	Ports []fabric.NamedPort
}

// maxPorts bounds the named ports of a group: they are in its admission.
const maxPorts = 32

// Gap is something in a service block that is not known.
type Gap struct {
	Task    string // empty: the group's service
	Service int    // index among the services of the group or task
	Check   int    // index of a check of the service whose port it is; -1: the service itself
	Key     string // the argument
	Text    string // as written
	Filled  string // as far as it is known
	// Variable is what cannot be filled in; empty: the port is neither a number nor a label.
	Variable string
	// Later says that it is known when Nomad has placed an instance.
	Later bool
}

// Refused reports whether no instance may be connected because of it: the node could not reach a
// health check, and the service would stay critical without a word.
func (g Gap) Refused() bool { return g.Check >= 0 }

func (g Gap) String() string {
	what := fmt.Sprintf("%s %q of a service", g.Key, g.Text)
	if g.Check >= 0 {
		what = fmt.Sprintf("port %q of a health check", g.Text)
	}
	if g.Task != "" {
		what += fmt.Sprintf(" of task %q", g.Task)
	}
	switch {
	case g.Variable == "":
		return what + " is neither a number nor a port of the group's network"
	case g.Later:
		return fmt.Sprintf("%s depends on ${%s}, which is known when an instance is placed", what, g.Variable)
	}
	return fmt.Sprintf("%s cannot be resolved: the job does not set ${%s}", what, g.Variable)
}

// Refusal returns why an instance of a group must not be connected, with the remedy, or "".
func Refusal(group *nomadapi.TaskGroup, d Description) string {
	for _, e := range Escapes(group) {
		if e.Leaves {
			return fmt.Sprintf("in group %q, %s. %s", *group.Name, e, e.Remedy)
		}
	}
	for _, f := range Faults(group) {
		if f.Refused {
			return fmt.Sprintf("in group %q, %s. %s", *group.Name, f, f.Remedy)
		}
	}
	for _, g := range d.Gaps {
		if g.Refused() {
			return fmt.Sprintf("in group %q, %s", *group.Name, g)
		}
	}
	return ""
}

// Describe returns what a job says about the instances of a group. in is nil for a job that has no
// instances yet: what depends on the node is then empty, and gaps may be Later. Variables are
// filled in as Nomad's client does when it registers the services. One that it would not know
// either, or that only it knows, stays as it is written.
func Describe(job *nomadapi.Job, group *nomadapi.TaskGroup, in *Instance) Description {
	return describe(job, group, in, in != nil && in.Canary())
}

// DescribeCanary is like Describe, for the canaries of a group that has no instances yet. It
// reports whether they differ from other instances: whether a service block has canary_tags or
// canary_meta.
func DescribeCanary(job *nomadapi.Job, group *nomadapi.TaskGroup) (d Description, differs bool) {
	services := slices.Clone(group.Services)
	for _, t := range group.Tasks {
		services = append(services, t.Services...)
	}
	if !slices.ContainsFunc(services, func(s *nomadapi.Service) bool { return len(s.CanaryTags) > 0 || len(s.CanaryMeta) > 0 }) {
		return Description{}, false
	}
	return describe(job, group, nil, true), true
}

// Canary reports whether the instance is a canary that was not promoted yet.
func (in Instance) Canary() bool {
	return in.Allocation.DeploymentStatus != nil && in.Allocation.DeploymentStatus.Canary
}

func describe(job *nomadapi.Job, group *nomadapi.TaskGroup, in *Instance, canary bool) Description {
	w := fabric.Workload{Namespace: nomadapi.DefaultNamespace, Job: parent(job), Group: *group.Name, StaticPorts: StaticPorts(group)}
	for field, value := range map[*string]*string{&w.Namespace: job.Namespace, &w.Region: job.Region, &w.NodePool: job.NodePool} {
		if value != nil && *value != "" {
			*field = *value
		}
	}
	if in != nil {
		w.Namespace = in.Allocation.Namespace
		w.Datacenter, w.NodeClass, w.NodePool = in.Node.Datacenter, in.Node.NodeClass, in.Node.NodePool
	} else if dcs := job.Datacenters; len(dcs) == 1 && !strings.Contains(dcs[0], "*") {
		w.Datacenter = dcs[0]
	}
	d := &describer{job: job, group: group, in: in, canary: canary, Description: Description{Workload: w}}
	d.services(nil, group.Services)
	for _, t := range group.Tasks {
		d.services(t, t.Services)
	}
	slices.SortStableFunc(d.Workload.Services, func(a, b fabric.WorkloadService) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Checks, func(a, b fabric.Check) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	d.Checks = slices.Compact(d.Checks)
	d.name()
	return d.Description
}

// parent returns the name that selectors match: that of the job, or of the periodic or
// parameterized job of which it is a child. Only Nomad sets a job's parent.
func parent(job *nomadapi.Job) string {
	if job.ParentID != nil && *job.ParentID != "" {
		return *job.ParentID
	}
	return *job.ID
}

type describer struct {
	job    *nomadapi.Job
	group  *nomadapi.TaskGroup
	in     *Instance
	canary bool
	Description
}

func (d *describer) services(task *nomadapi.Task, services []*nomadapi.Service) {
	v := variablesOf(d.job, d.group, task, d.in)
	owner := ""
	if task != nil {
		owner = task.Name
	}
	for i, s := range services {
		fill := func(v variables, check int, key, text string) (string, bool) {
			filled, missing := v.fill(text)
			for _, name := range missing {
				d.Gaps = append(d.Gaps, Gap{owner, i, check, key, text, filled, name, v.isLater(name)})
			}
			return filled, len(missing) == 0
		}
		var w fabric.WorkloadService
		w.Name, _ = fill(v.ofName(d.job, d.group, owner), -1, "name", nameOf(s, d.job, d.group, owner))
		// What a canary has of its own replaces what others have.
		tags, tagsKey, meta, metaKey := s.Tags, "tags", s.Meta, "meta"
		if d.canary && len(s.CanaryTags) > 0 {
			tags, tagsKey = s.CanaryTags, "canary_tags"
		}
		if d.canary && len(s.CanaryMeta) > 0 {
			meta, metaKey = s.CanaryMeta, "canary_meta"
		}
		for _, tag := range tags {
			filled, _ := fill(v, -1, tagsKey, tag)
			w.Tags = append(w.Tags, filled)
		}
		for key, value := range meta {
			if w.Meta == nil {
				w.Meta = map[string]string{}
			}
			filled, _ := v.fill(key)
			w.Meta[filled], _ = fill(v, -1, metaKey, value)
		}
		d.Workload.Services = append(d.Workload.Services, w)
		if label, missing := v.fill(s.PortLabel); len(missing) == 0 && label != "" {
			d.offer(w.Name, label)
		}
		d.HealthChecked = d.HealthChecked || len(s.Checks) > 0 && s.Provider != "nomad"
		for n, c := range s.Checks {
			switch c.Type {
			case "http", "tcp", "grpc":
			default:
				continue // it connects to no port
			}
			text := cmp.Or(c.PortLabel, s.PortLabel) // a check without a port uses its service's
			if text == "" {
				continue
			}
			label, known := fill(v, n, "port", text)
			if !known {
				continue
			}
			port, exists := d.portInside(label)
			switch {
			case !exists:
				d.Gaps = append(d.Gaps, Gap{owner, i, n, "port", text, label, "", false})
			case port != 0:
				d.Checks = append(d.Checks, fabric.Check{Protocol: fabric.TCP, Port: port})
			}
		}
	}
}

// nameOf returns the name of a service as written, or the one that Nomad gives it.
func nameOf(s *nomadapi.Service, job *nomadapi.Job, group *nomadapi.TaskGroup, task string) string {
	if s.Name != "" {
		return s.Name
	}
	name := jobName(job) + "-" + *group.Name
	if task != "" {
		name += "-" + task
	}
	return name
}

func jobName(job *nomadapi.Job) string {
	if job.Name != nil && *job.Name != "" {
		return *job.Name
	}
	return *job.ID
}

// ofName returns the variables in the name of a service. It has some that Nomad's servers fill in
// when the job is registered.
func (v variables) ofName(job *nomadapi.Job, group *nomadapi.TaskGroup, task string) variables {
	name := jobName(job)
	task = cmp.Or(task, "group")
	known := map[string]string{"JOB": name, "TASKGROUP": *group.Name, "TASK": task, "BASE": name + "-" + *group.Name + "-" + task}
	for k, value := range v.known {
		known[k] = value
	}
	return variables{known: known, later: v.later}
}

// portInside returns the port inside the workload's network namespace for a label: the label itself
// if it is a number, or the port to which the label maps. The port is 0 if it is not known yet.
func (d *describer) portInside(label string) (port uint16, exists bool) {
	if n, err := strconv.ParseUint(label, 10, 16); err == nil {
		return uint16(n), n != 0
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
	if d.in == nil || d.in.Allocation.AllocatedResources == nil {
		for _, p := range portsOf(d.group) {
			if p.Label == label {
				return inside(p.Value, p.To), true
			}
		}
		return 0, false
	}
	resources := d.in.Allocation.AllocatedResources
	for _, p := range resources.Shared.Ports {
		if p.Label == label {
			return inside(p.Value, p.To), true
		}
	}
	networks := slices.Clone(resources.Shared.Networks)
	for _, t := range resources.Tasks {
		networks = append(networks, t.Networks...)
	}
	for _, p := range portsIn(networks) {
		if p.Label == label {
			return inside(p.Value, p.To), true
		}
	}
	return 0, false
}

// portsOf returns the ports that a group and its tasks declare.
func portsOf(group *nomadapi.TaskGroup) []nomadapi.Port {
	networks := slices.Clone(group.Networks)
	for _, t := range group.Tasks {
		if t.Resources != nil {
			networks = append(networks, t.Resources.Networks...)
		}
	}
	return portsIn(networks)
}

func portsIn(networks []*nomadapi.NetworkResource) []nomadapi.Port {
	var ports []nomadapi.Port
	for _, n := range networks {
		ports = append(ports, slices.Concat(n.DynamicPorts, n.ReservedPorts)...)
	}
	return ports
}
