// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadjob

import (
	"cmp"

	nomadapi "github.com/hashicorp/nomad/api"
)

// Offer is a service block of a group or one of its tasks: under which name others find it.
type Offer struct {
	Name     string // as far as it is known without an instance
	Provider string // "consul" or "nomad"
	Port     uint16 // inside the workload; 0: Nomad chooses it, or the service has none
	Label    string // of the port, as written; empty: the service has none
	Service  *nomadapi.Service
}

// Offers returns the service blocks of a group as a job without instances declares them.
func Offers(job *nomadapi.Job, group *nomadapi.TaskGroup) []Offer {
	d := &describer{job: job, group: group}
	var list []Offer
	add := func(task *nomadapi.Task, owner string, services []*nomadapi.Service) {
		v := variablesOf(job, group, task, nil)
		for _, s := range services {
			o := Offer{Provider: cmp.Or(s.Provider, "consul"), Label: s.PortLabel, Service: s}
			o.Name, _ = v.ofName(job, group, owner).fill(nameOf(s, job, group, owner))
			if label, missing := v.fill(s.PortLabel); len(missing) == 0 {
				o.Port, _ = d.portInside(label)
			}
			list = append(list, o)
		}
	}
	add(nil, "", group.Services)
	for _, t := range group.Tasks {
		add(t, t.Name, t.Services)
	}
	return list
}
