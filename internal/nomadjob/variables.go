// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadjob

import (
	"cmp"
	"maps"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"

	nomadapi "github.com/hashicorp/nomad/api"
)

// variables are the values that Nomad's client fills into the service blocks of a group or of one
// of its tasks.
type variables struct {
	known map[string]string
	// later are the names of those that only an instance has. A name that ends in "." or "_" stands
	// for all names that begin so.
	later []string
}

// reference is how a job refers to a variable, as Nomad reads it.
var reference = regexp.MustCompile(`\$\{[a-zA-Z0-9_\-.]+\}`)

// fill replaces the variables in a text, and returns the names of those that it does not know.
func (v variables) fill(text string) (filled string, missing []string) {
	filled = reference.ReplaceAllStringFunc(text, func(ref string) string {
		name := ref[2 : len(ref)-1]
		value, ok := v.known[name]
		if !ok {
			missing = append(missing, name)
			return ref
		}
		// A value of meta or env whose own variables are not known is left as it is.
		for _, inner := range reference.FindAllString(value, -1) {
			missing = append(missing, inner[2:len(inner)-1])
		}
		return value
	})
	return filled, missing
}

// isLater reports whether an instance has the variable.
func (v variables) isLater(name string) bool {
	return slices.ContainsFunc(v.later, func(l string) bool {
		return l == name || (strings.HasSuffix(l, ".") || strings.HasSuffix(l, "_")) && strings.HasPrefix(name, l)
	})
}

// add adds a variable whose value may refer to those that are known already.
func (v variables) add(name, value string) {
	filled, _ := v.fill(value)
	v.known[environmentName(name)] = filled
}

// cleaned are the prefixes of variables in whose names Nomad replaces what is not valid in names of
// environment variables.
var cleaned = []string{"NOMAD_ADDR_", "NOMAD_IP_", "NOMAD_PORT_", "NOMAD_HOST_PORT_", "NOMAD_META_"}

func environmentName(name string) string {
	if !slices.ContainsFunc(cleaned, func(p string) bool { return strings.HasPrefix(name, p) }) {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '_', r == '.', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, name)
}

// variablesOf returns the variables of a group, or of one of its tasks. in is nil for a job that
// has no instances yet.
func variablesOf(job *nomadapi.Job, group *nomadapi.TaskGroup, task *nomadapi.Task, in *Instance) variables {
	v := variables{known: map[string]string{}}
	set := func(name string, value *string) {
		if value != nil && *value != "" {
			v.known[name] = *value
		}
	}
	set("NOMAD_GROUP_NAME", group.Name)
	set("NOMAD_REGION", job.Region)
	set("node.region", job.Region)
	set("NOMAD_JOB_PARENT_ID", job.ParentID)
	set("NOMAD_JOB_ID", job.ID)
	set("NOMAD_JOB_NAME", job.Name)
	if job.Name == nil {
		set("NOMAD_JOB_NAME", job.ID)
	}
	set("NOMAD_NAMESPACE", job.Namespace)
	if task != nil {
		set("NOMAD_TASK_NAME", &task.Name)
	}
	if in == nil {
		v.beforePlacement(job, group)
	} else {
		v.ofInstance(in)
	}
	v.ofMeta(job, group, task)
	if task != nil {
		for name, value := range task.Env {
			v.add(name, value)
		}
	}
	return v
}

// beforePlacement adds what is known of a job that has no instances yet, and the names of what is
// not.
func (v *variables) beforePlacement(job *nomadapi.Job, group *nomadapi.TaskGroup) {
	v.later = []string{
		"NOMAD_ALLOC_ID", "NOMAD_SHORT_ALLOC_ID", "NOMAD_ALLOC_NAME", "NOMAD_ALLOC_INDEX", "NOMAD_DC", "NOMAD_REGION", "NOMAD_NAMESPACE",
		"node.unique.id", "node.unique.name", "node.class", "node.datacenter", "node.pool", "node.region", "attr.", "meta.",
	}
	if job.Periodic != nil || job.ParameterizedJob != nil { // its children have names of their own
		for _, name := range []string{"NOMAD_JOB_ID", "NOMAD_JOB_NAME", "NOMAD_JOB_PARENT_ID"} {
			v.later = append(v.later, name)
			delete(v.known, name)
		}
	}
	if p := job.ParameterizedJob; p != nil {
		for _, key := range slices.Concat(p.MetaRequired, p.MetaOptional) {
			v.later = append(v.later, environmentName("NOMAD_META_"+key), environmentName("NOMAD_META_"+strings.ToUpper(key)))
		}
	}
	for _, p := range portsOf(group) {
		for _, kind := range []string{"PORT_", "ALLOC_PORT_", "HOST_PORT_", "IP_", "HOST_IP_", "ADDR_", "HOST_ADDR_"} {
			v.later = append(v.later, environmentName("NOMAD_"+kind+p.Label))
		}
		if inside := cmp.Or(max(p.To, 0), p.Value); inside > 0 {
			v.add("NOMAD_PORT_"+p.Label, strconv.Itoa(inside))
			v.add("NOMAD_ALLOC_PORT_"+p.Label, strconv.Itoa(inside))
		}
	}
}

// ofInstance adds what Nomad's client knows of an allocation and its node.
func (v variables) ofInstance(in *Instance) {
	a, n := in.Allocation, in.Node
	v.known["NOMAD_ALLOC_ID"], v.known["NOMAD_SHORT_ALLOC_ID"], v.known["NOMAD_ALLOC_NAME"] = a.ID, a.ID[:min(8, len(a.ID))], a.Name
	if i := strings.LastIndexByte(a.Name, '['); i >= 0 {
		v.known["NOMAD_ALLOC_INDEX"] = strings.TrimSuffix(a.Name[i+1:], "]")
	}
	v.known["NOMAD_NAMESPACE"], v.known["NOMAD_DC"] = a.Namespace, n.Datacenter
	v.known["node.unique.id"], v.known["node.unique.name"], v.known["node.class"] = n.ID, n.Name, n.NodeClass
	v.known["node.datacenter"], v.known["node.pool"] = n.Datacenter, n.NodePool
	for name, value := range n.Attributes {
		v.known["attr."+name] = value
	}
	for name, value := range n.Meta {
		v.known["meta."+name] = value
	}
	if a.AllocatedResources == nil {
		return
	}
	for _, p := range a.AllocatedResources.Shared.Ports {
		outside := strconv.Itoa(p.Value)
		inside := outside
		if p.To > 0 {
			inside = strconv.Itoa(p.To)
		}
		for name, value := range map[string]string{
			"PORT_": inside, "ALLOC_PORT_": inside, "HOST_PORT_": outside, "IP_": p.HostIP, "HOST_IP_": p.HostIP,
			"ADDR_": net.JoinHostPort(p.HostIP, outside), "HOST_ADDR_": net.JoinHostPort(p.HostIP, outside),
		} {
			v.add("NOMAD_"+name+p.Label, value)
		}
	}
}

// ofMeta adds the meta of a job, a group and a task; what is nearer to the task wins. A dispatched
// job has an empty value for what its dispatch could have set, and did not.
func (v variables) ofMeta(job *nomadapi.Job, group *nomadapi.TaskGroup, task *nomadapi.Task) {
	meta := map[string]string{}
	if job.Dispatched && job.ParameterizedJob != nil {
		for _, key := range job.ParameterizedJob.MetaOptional {
			meta[key] = ""
		}
	}
	maps.Copy(meta, job.Meta)
	maps.Copy(meta, group.Meta)
	if task != nil {
		maps.Copy(meta, task.Meta)
	}
	outer := variables{known: maps.Clone(v.known)} // values of meta do not refer to other meta
	for key, value := range meta {
		filled, _ := outer.fill(value)
		for _, name := range []string{environmentName("NOMAD_META_" + strings.ToUpper(key)), environmentName("NOMAD_META_" + key)} {
			if !slices.Contains(v.later, name) { // else the dispatch sets it
				v.known[name] = filled
			}
		}
	}
}
