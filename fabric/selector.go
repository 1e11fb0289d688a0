// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"slices"
	"strings"
)

// SelectorKind says where the properties that a selector matches come from.
type SelectorKind string

// The kinds of selectors.
const (
	SelectNomad  SelectorKind = "nomad"  // properties of a Nomad allocation
	SelectConsul SelectorKind = "consul" // service blocks of a Nomad job version, or the registration of a workload outside Nomad
	SelectNode   SelectorKind = "node"   // properties of the node that the workload runs on
)

// DefaultNamespace is the Nomad namespace of a selector that names none. A selector never matches
// all namespaces: users with the right to run jobs in some other namespace are free to choose the
// names of jobs and services there.
const DefaultNamespace = "default"

// Selector matches workloads by attested properties. All properties that are set must match.
// Namespace is never empty in a nomad or consul selector of a decoded graph.
type Selector struct {
	Kind      SelectorKind `json:"kind"`
	Namespace string       `json:"namespace,omitempty"` // nomad, consul: Nomad's namespace
	Region    string       `json:"region,omitempty"`    // nomad

	Job        string `json:"job,omitempty"`        // nomad
	Group      string `json:"group,omitempty"`      // nomad
	Datacenter string `json:"datacenter,omitempty"` // nomad, consul
	NodeClass  string `json:"nodeClass,omitempty"`  // nomad, node
	NodePool   string `json:"nodePool,omitempty"`   // nomad, node

	Service string            `json:"service,omitempty"` // consul
	Tags    []string          `json:"tags,omitempty"`    // consul: all of them
	Meta    map[string]string `json:"meta,omitempty"`    // consul: all of them

	Zone string `json:"zone,omitempty"` // node: of the fabric
	Node string `json:"node,omitempty"` // node: of the fabric

	Pos Position `json:"pos,omitzero"`
}

func (s Selector) String() string {
	var parts []string
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, name+"="+value)
		}
	}
	add("namespace", s.Namespace)
	add("region", s.Region)
	add("job", s.Job)
	add("group", s.Group)
	add("datacenter", s.Datacenter)
	add("node_class", s.NodeClass)
	add("node_pool", s.NodePool)
	add("service", s.Service)
	add("tags", strings.Join(s.Tags, "+"))
	for _, k := range sortedKeys(s.Meta) {
		add("meta."+k, s.Meta[k])
	}
	add("zone", s.Zone)
	add("node", s.Node)
	return fmt.Sprintf("%s(%s)", s.Kind, strings.Join(parts, ", "))
}

// Workload is what the scheduler attests about a workload. Selectors match these properties, and
// nothing that the workload says about itself.
type Workload struct {
	Region, Namespace, Job, Group string
	Datacenter                    string
	NodeClass, NodePool           string
	Zone, Node                    string            // of the fabric
	Services                      []WorkloadService // service blocks of the group and its tasks; of an attached one its registration
	StaticPorts                   []uint16          // of its node, which it publishes; those that Nomad chose excluded
	Attached                      bool              // outside Nomad; it has neither namespace nor job
}

// WorkloadService is a service block of a job, or a service that is registered in Consul.
type WorkloadService struct {
	Name string            `json:"name"`
	Tags []string          `json:"tags,omitempty"`
	Meta map[string]string `json:"meta,omitempty"`
}

// Matches reports whether w has all properties that s names.
func (s Selector) Matches(w Workload) bool {
	agree := func(want, have string) bool { return want == "" || want == have }
	switch s.Kind {
	case SelectNomad:
		return s.Job != "" && s.namespace() == w.Namespace && s.Job == w.Job &&
			agree(s.Region, w.Region) && agree(s.Group, w.Group) && agree(s.Datacenter, w.Datacenter) &&
			agree(s.NodeClass, w.NodeClass) && agree(s.NodePool, w.NodePool)
	case SelectConsul:
		inside := s.namespace() == w.Namespace || w.Attached && s.namespace() == DefaultNamespace
		return s.Service != "" && inside && agree(s.Datacenter, w.Datacenter) &&
			slices.ContainsFunc(w.Services, s.matchesService)
	case SelectNode:
		return (s.Zone != "" || s.Node != "" || s.NodeClass != "" || s.NodePool != "") &&
			agree(s.Zone, w.Zone) && agree(s.Node, w.Node) && agree(s.NodeClass, w.NodeClass) && agree(s.NodePool, w.NodePool)
	}
	return false
}

func (s Selector) namespace() string {
	if s.Namespace == "" {
		return DefaultNamespace
	}
	return s.Namespace
}

func (s Selector) matchesService(have WorkloadService) bool {
	if have.Name != s.Service {
		return false
	}
	for _, tag := range s.Tags {
		if !slices.Contains(have.Tags, tag) {
			return false
		}
	}
	for k, v := range s.Meta {
		if have.Meta[k] != v {
			return false
		}
	}
	return true
}

// Select returns the services of which w is an instance, and those that would select it if their
// domains were granted it by bindings, both in order.
func (g *Graph) Select(w Workload) (services []Ref, barred []Barred) {
	bar := newIndex(g).bar(w)
	for _, d := range g.Domains {
		for _, s := range d.Services {
			if !slices.ContainsFunc(s.Selectors, func(sel Selector) bool { return sel.Matches(w) }) {
				continue
			}
			r := Ref{d.Name, s.Name}
			if why := bar(d.Name); why != "" {
				barred = append(barred, Barred{r, why})
			} else {
				services = append(services, r)
			}
		}
	}
	slices.SortFunc(services, CompareRefs)
	slices.SortFunc(barred, func(a, b Barred) int { return CompareRefs(a.Service, b.Service) })
	return services, barred
}
