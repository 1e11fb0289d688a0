// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

const (
	// maxRefusedNames limits the refused names that are remembered of a service, and
	// maxRefusedServices the services of which any are.
	maxRefusedNames    = 16
	maxRefusedServices = 32
	// maxNameText limits the text of a name, in which special characters are escaped.
	maxNameText = 253
	// maxToldNames limits the names in force in a report.
	maxToldNames = 64
)

// refusedNames remembers the outside names that were refused lately, by service. It is safe for
// concurrent use.
type refusedNames struct {
	mu sync.Mutex
	of map[fabric.Ref][]api.RefusedName // the one that was asked for last at the end
}

// note remembers a question that was refused.
func (r *refusedNames) note(service fabric.Ref, name string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of == nil {
		r.of = map[fabric.Ref][]api.RefusedName{}
	}
	if len(name) > maxNameText {
		name = name[:maxNameText] + "..."
	}
	list := r.of[service]
	n := api.RefusedName{Service: service, Name: name, Last: now}
	if i := slices.IndexFunc(list, func(o api.RefusedName) bool { return o.Name == name }); i >= 0 {
		n.Count = list[i].Count
		list = slices.Delete(list, i, i+1)
	} else if len(list) == maxRefusedNames {
		list = slices.Delete(list, 0, 1)
	}
	n.Count++
	if len(list) == 0 && len(r.of) >= maxRefusedServices {
		return
	}
	r.of[service] = append(list, n)
}

// all returns what is remembered, by service, the latest first.
func (r *refusedNames) all() []api.RefusedName {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []api.RefusedName
	for _, list := range r.of {
		all = append(all, list...)
	}
	slices.SortFunc(all, func(a, b api.RefusedName) int {
		return cmp.Or(fabric.CompareRefs(a.Service, b.Service), b.Last.Compare(a.Last), cmp.Compare(a.Name, b.Name))
	})
	return all
}

// retain forgets services that have no endpoint on the node any more.
func (r *refusedNames) retain(keep func(fabric.Ref) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for service := range r.of {
		if !keep(service) {
			delete(r.of, service)
		}
	}
}
