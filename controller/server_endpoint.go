// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"cmp"
	"context"
	"slices"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/setup"
)

// getEndpoints returns the endpoints of the domains that the caller may read.
func (c *Controller) getEndpoints(_ context.Context, r request) (any, error) {
	if !r.operator.any() {
		return nil, r.operator.missing("read endpoints", setup.ReadPolicy, setup.DomainPolicy(setup.ReadPolicy, "<domain>"))
	}
	list := api.EndpointList{Endpoints: []api.Endpoint{}}
	for _, n := range c.nodes.all() {
		for _, s := range c.reports.of(n) {
			for _, e := range s.Endpoints {
				if r.operator.reads(e.Service.Domain) {
					list.Endpoints = append(list.Endpoints, api.Endpoint{EndpointStatus: e, Zone: s.Zone, Node: s.Node, Reported: s.Reported})
				}
			}
			for _, w := range s.Waiting {
				if r.operator.readsAll() {
					list.Waiting = append(list.Waiting, api.NodeWaiting{WaitingAttachment: w, Zone: s.Zone, Node: s.Node})
				}
			}
		}
	}
	slices.SortStableFunc(list.Endpoints, func(a, b api.Endpoint) int {
		return cmp.Or(fabric.CompareRefs(a.Service, b.Service), cmp.Compare(a.Endpoint, b.Endpoint))
	})
	return list, nil
}
