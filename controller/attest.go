// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"errors"
	"net/http"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/wellknown"
)

// attested is what somebody else than the node says of a workload, and what the workload requests.
type attested struct {
	workload      fabric.Workload // without its node, which the node's certificate attests
	wanted        stanza
	checks        []fabric.Check
	healthChecked bool
	ports         []fabric.NamedPort
	origin        fabric.Origin

	unknown    error         // what of the workload cannot be known for now; nil: nothing
	registered *registration // of a workload outside Nomad
}

// attester knows workloads of one kind.
type attester interface {
	// attest returns what a workload is that a node wants to have admitted. It refuses one that is
	// not on the node, or must not run.
	attest(ctx context.Context, node fabric.Node, req api.AdmissionRequest) (attested, error)
}

// attesterOf returns who knows the workload of a request.
func (a *admitter) attesterOf(req api.AdmissionRequest) attester {
	if req.Attached != nil {
		return byCatalog{cfg: a.cfg, bound: a.bound, nodes: a.nodes, table: a.table}
	}
	return byNomad{cfg: a.cfg, bound: a.bound, table: a.table}
}

// byNomad knows the allocations of the scheduler.
type byNomad struct {
	cfg   Config
	bound *bindings
	table *table
}

// attest implements attester. From the request it takes only the allocation's ID, and
// compares whether it is a virtual machine.
func (n byNomad) attest(ctx context.Context, node fabric.Node, req api.AdmissionRequest) (attested, error) {
	id := req.Allocation
	place, err := n.cfg.Scheduler.Placement(ctx, id, n.bound.of(node.ID()).ID)
	if errors.Is(err, ErrNoAllocation) {
		return attested{}, api.Errorf(http.StatusForbidden, api.CodeNotPlaced, "Nomad knows no allocation %s", id)
	}
	if err != nil {
		return attested{}, api.Errorf(http.StatusServiceUnavailable, api.CodeNomad, "%v", err)
	}
	if err := n.bound.check(ctx, node, id, place.Machine); err != nil {
		return attested{}, err
	}
	refused := place.Refused
	if refused == "" && n.table.get(kvkey.Admission{Node: node.ID(), Endpoint: id}) == nil {
		refused = place.RefusedNow
	}
	if refused != "" {
		return attested{}, api.Errorf(http.StatusForbidden, api.CodeJob, "job %q cannot be connected: %s", place.Workload.Job, refused)
	}
	if place.Stopped != "" {
		return attested{}, api.Errorf(http.StatusForbidden, api.CodeNotPlaced, "allocation %s must not run: %s", id, place.Stopped)
	}
	if err := agreeOnVM(req, place); err != nil {
		return attested{}, err
	}
	return attested{
		workload: place.Workload, wanted: stanzaOf(place.Meta), checks: place.Checks, healthChecked: place.HealthChecked, ports: place.Ports,
		origin: fabric.Origin{Namespace: place.Workload.Namespace, Job: place.Workload.Job, Group: place.Workload.Group, VM: place.VM, Canary: place.Canary},
	}, nil
}

// agreeOnVM refuses an allocation if its node made the interface of a virtual machine and the job
// says that it is none, or the other way round. The tasks would have no network, or a guest that
// cannot be reached.
func agreeOnVM(req api.AdmissionRequest, place Placement) error {
	const both = "write vm = true in the connectivity block, or set both by hand"
	switch {
	case req.VM && !place.VM:
		return api.Errorf(http.StatusForbidden, api.CodeJob, "job %q cannot be connected: the CNI argument %s of group %q says that it is a virtual machine, and its meta lacks %s: %s",
			place.Workload.Job, wellknown.ArgVM, place.Workload.Group, wellknown.MetaVM, both)
	case !req.VM && place.VM:
		return api.Errorf(http.StatusForbidden, api.CodeJob, "job %q cannot be connected: group %q is a virtual machine, for which its node made no tap interface: %s; or the node's sif-cni or agent is too old for it",
			place.Workload.Job, place.Workload.Group, both)
	}
	return nil
}
