// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/wellknown"
)

// Handle serves a CNI call.
func (a *Agent) Handle(ctx context.Context, r cnicall.Request) (*current.Result, error) {
	at := cnicall.Attachment{ContainerID: r.ContainerID, IfName: r.IfName}
	// Calls for one attachment run one after another, calls for different attachments run
	// concurrently.
	unlock := a.locks.Lock(at)
	defer unlock()
	switch r.Command {
	case "ADD":
		return a.add(ctx, at, r)
	case "DEL":
		return nil, a.remove(ctx, at)
	case "CHECK":
		return nil, a.check(at, r)
	case "GC":
		return nil, a.collect(ctx, r.Valid)
	case "STATUS":
		return nil, a.ready()
	}
	return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "unknown CNI command "+r.Command, "")
}

// attaching and renewing name what is degraded in the node's status.
func attaching(at cnicall.Attachment) string { return "attach " + at.ContainerID }
func renewing(ep endpoint) string            { return "renew " + ep.ID }

// ready returns an error if the agent cannot attach workloads now.
func (a *Agent) ready() error {
	if !a.engines.connected() {
		return away{types.NewError(types.ErrTryAgainLater, "no engine of zone "+a.node.Self.Zone+" can be reached", "is sif engine running on a processor of the zone?")}
	}
	return nil
}

// add attaches a workload, and logs and reports the outcome.
func (a *Agent) add(ctx context.Context, at cnicall.Attachment, r cnicall.Request) (*current.Result, error) {
	began := time.Now()
	result, err := a.attach(ctx, at, r, began)
	if r.Attach != nil { // its caller decides what becomes of it, and nothing is known of an outage
		return a.addedStanding(at, r, result, err, time.Since(began))
	}
	a.outage.record(began, time.Now(), err)
	a.node.Degrade(attaching(at), err)
	if err != nil {
		a.log.Error("cannot attach workload", logkey.Endpoint, r.Allocation, logkey.Error, err)
		return nil, err
	}
	a.log.Info("workload attached", logkey.Endpoint, r.Allocation, logkey.Duration, time.Since(began))
	return result, nil
}

func (a *Agent) attach(ctx context.Context, at cnicall.Attachment, r cnicall.Request, began time.Time) (*current.Result, error) {
	if r.Namespace == nil || r.Allocation == "" && r.Attach == nil || at.ContainerID == "" || at.IfName == "" {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables,
			"not a Nomad allocation: CNI_ARGS has no NOMAD_ALLOC_ID", "the fabric identifies a workload by its Nomad allocation")
	}
	var until, patience time.Time
	if r.Patience > 0 {
		patience = began.Add(r.Patience - answerTime)
	}
	if r.Attach != nil || a.outage.young(began) {
		until = patience
	}
	if err := a.insist(ctx, &attachment{endpoint: endpoint{ID: r.Allocation}, until: until}, a.ready); err != nil {
		return nil, err
	}
	namespace, err := openNamespace(r.Namespace)
	if err != nil {
		return nil, err
	}
	defer namespace.Close()
	var s standing
	if r.Attach != nil {
		var done *current.Result
		if s, done, err = a.admitStanding(ctx, at, r, namespace, until); done != nil || err != nil {
			return done, err
		}
		r.Allocation = s.Endpoint
	}
	ep, known := a.endpoints.get(at)
	if !known {
		ep = endpoint{ID: r.Allocation, Attachment: at, HostIf: hostIfName(at)}
	}
	ep.Ports, ep.VM = r.Ports, r.VM
	if r.Attach != nil {
		ep.Attached = &s.Workload
		if ep.Process, err = newProcess(s.Process, ep.Process); err != nil {
			return nil, err
		}
	}
	defer a.releases.begin(r.Allocation)()
	adding := &attachment{namespace: namespace, endpoint: ep, until: until, patience: patience, parts: stopwatch{last: began}}
	err = a.attachAll(ctx, adding)
	if r.Attach != nil {
		err = a.settle(ctx, s, adding.endpoint, err)
	}
	if err != nil {
		return nil, err
	}
	a.log.Debug("time spent attaching", logkey.Endpoint, r.Allocation, logkey.Parts, adding.parts.String())
	ep = adding.endpoint
	result := adding.pair.result(at.IfName, r.Namespace.Name(), ep.IPv4, ep.IPv6)
	result.DNS = types.DNS{Nameservers: []string{wellknown.LinkLocal4.String()}}
	return result, nil
}

// remove detaches a workload. An unknown workload is not an error: DEL can be called twice, or
// after a failed ADD.
func (a *Agent) remove(ctx context.Context, at cnicall.Attachment) error {
	a.node.Degrade(attaching(at), nil) // what was refused is gone, too
	kept := a.standings.remove(at)
	ep, known := a.endpoints.get(at)
	if !known {
		return errors.Join(a.dismantle(hostIfName(at)), kept)
	}
	a.detachAll(ctx, ep)
	a.log.Info("workload detached", logkey.Endpoint, ep.ID, logkey.Service, ep.Admission.Service)
	return nil // what is not on disk is written later
}

// check repairs an attachment in place. It fails only if repair is impossible: when CHECK fails,
// Nomad creates a new namespace but leaves the tasks in the old one.
func (a *Agent) check(at cnicall.Attachment, r cnicall.Request) error {
	ep, known := a.endpoints.get(at)
	if !known {
		return types.NewError(types.ErrUnknownContainer, "container "+at.ContainerID+" is not attached to the fabric", "")
	}
	there, err := a.present(ep)
	if err != nil {
		return err
	}
	if !there {
		return types.NewError(types.ErrInternal, "the interface of container "+at.ContainerID+" no longer exists", ep.HostIf)
	}
	if err := a.Reconcile(); err != nil {
		return err
	}
	return a.mend(ep)
}

// mend repairs the interfaces of an endpoint, which exist. The regular repair leaves alone what a
// call concerns.
func (a *Agent) mend(ep endpoint) error {
	if _, err := a.attachPrograms(ep.HostIf); err != nil {
		return fmt.Errorf("attach the programs to %s: %w", ep.HostIf, err)
	}
	changes, err := kernel.Repair(kernel.State{Interfaces: []kernel.Interface{a.pairOf(ep).hostSide(ep.IPv4, ep.IPv6)}})
	a.node.Repaired(changes)
	return errors.Join(err, a.repairWorkload(ep))
}

// collect detaches every workload that is not in valid. What the command line attached is no
// runtime's to collect.
func (a *Agent) collect(ctx context.Context, valid []cnicall.Attachment) error {
	var list []cnicall.Attachment
	for _, ep := range a.endpoints.all() {
		list = append(list, ep.Attachment)
	}
	for _, s := range a.standings.all() {
		if s.Waits != "" {
			list = append(list, s.Attachment)
		}
	}
	var errs []error
	for _, at := range list {
		if !slices.Contains(valid, at) && !at.ByHand() {
			unlock := a.locks.Lock(at)
			errs = append(errs, a.remove(ctx, at))
			unlock()
		}
	}
	return errors.Join(errs...)
}

// sweep looks for workloads whose interface no longer exists. If their namespace was removed
// without DEL, for example by a reboot, it detaches them. If only the interface was removed, it
// attaches them again, with the same addresses.
func (a *Agent) sweep(ctx context.Context) {
	for _, ep := range a.endpoints.all() {
		if err := a.sweepOne(ctx, ep.Attachment); err != nil {
			a.log.Error("cannot detach workload", logkey.Endpoint, ep.ID, logkey.Error, err)
		}
	}
}

func (a *Agent) sweepOne(ctx context.Context, at cnicall.Attachment) error {
	unlock := a.locks.Lock(at)
	defer unlock()
	ep, still := a.endpoints.get(at)
	if !still {
		return nil
	}
	if _, is := a.standings.get(at); is {
		return nil // tendAttached does more for it
	}
	if ep.Attached != nil {
		a.log.Warn("detaching a workload from outside Nomad whose attachment was interrupted", logkey.Endpoint, ep.ID, logkey.Attached, ep.Attached.Name)
		return a.remove(ctx, at)
	}
	there, err := a.present(ep)
	if err != nil || there {
		return err
	}
	if namespace := a.namespaces.Last(ep.HostIf); namespace != nil {
		defer namespace.Close()
		_, err := a.add(ctx, at, cnicall.Request{Allocation: ep.ID, VM: ep.VM, Ports: ep.Ports, Namespace: namespace})
		if err == nil {
			a.node.Repaired([]kernel.Change{{Kind: kernel.KindInterface, Subject: ep.HostIf, What: "was removed, made again"}})
		}
		return err
	}
	a.log.Warn("the interface of the workload no longer exists, detaching it", logkey.Endpoint, ep.ID)
	return a.remove(ctx, at)
}
