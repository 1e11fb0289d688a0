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

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/daemon"
	"github.com/sif-project/sif/internal/wellknown"
)

// inForce is how long ADD waits for the connectivity to be in force beyond
// this node.
const inForce = 500 * time.Millisecond

// Handle serves a CNI call.
func (a *Agent) Handle(ctx context.Context, r cnicall.Request) (*current.Result, error) {
	at := cnicall.Attachment{ContainerID: r.ContainerID, IfName: r.IfName}
	// Calls for one attachment come one after the other; those for others at
	// the same time.
	unlock := a.locks.Lock(at)
	defer unlock()
	switch r.Command {
	case "ADD":
		began := time.Now()
		parts := stopwatch{last: began}
		result, err := a.add(ctx, at, r, &parts)
		if err != nil {
			a.log.Error("workload not attached", logkey.Endpoint, r.Allocation, logkey.Error, err)
			a.node.Degrade(attaching(at), err)
			return nil, err
		}
		a.node.Degrade(attaching(at), nil)
		a.log.Info("workload attached", logkey.Endpoint, r.Allocation, logkey.Duration, time.Since(began))
		a.log.Debug("parts of attaching", logkey.Endpoint, r.Allocation, logkey.Parts, parts.String())
		return result, nil
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

// attaching and renewing are the subjects under which it is reported that an
// endpoint is not as it should be.
func attaching(at cnicall.Attachment) string { return "attach " + at.ContainerID }
func renewing(ep endpoint) string            { return "renew " + ep.ID }

// tidyTimeout bounds telling the controller that an endpoint is gone: Nomad lets
// every other workload of the node wait for it.
const tidyTimeout = 2 * time.Second

// ready reports why nothing can be attached now, or nil.
func (a *Agent) ready() error {
	if !a.engines.connected() {
		return types.NewError(types.ErrTryAgainLater, "no engine of zone "+a.node.Self.Zone+" can be reached", "is sif engine running on the zone's processor?")
	}
	return nil
}

// add attaches a workload. Nothing of a failed attempt stays.
func (a *Agent) add(ctx context.Context, at cnicall.Attachment, r cnicall.Request, parts *stopwatch) (_ *current.Result, err error) {
	if r.Namespace == nil || r.Allocation == "" || at.ContainerID == "" || at.IfName == "" {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables,
			"this is not an allocation of Nomad: CNI_ARGS names no NOMAD_ALLOC_ID", "only Nomad's word says what a workload is")
	}
	if err := a.ready(); err != nil {
		return nil, err
	}
	ep, known := a.endpoints.get(at)
	if !known {
		ep = endpoint{ID: r.Allocation, Attachment: at, HostIf: hostIfName(at)}
		if ep.IPv4, ep.IPv6, err = a.addresses.take(a.now()); err != nil {
			return nil, err
		}
	}
	ep.Ports = r.Ports
	attached, kept := idle, idle
	defer func() {
		if err != nil {
			_, _ = attached(), kept() // only that they have ended counts
			a.abandon(ctx, ep)
		}
	}()
	// The runtime asks again after a reboot or a lost namespace: what was there
	// is replaced, and keeps its addresses.
	if err := a.dismantle(ep.HostIf); err != nil {
		return nil, err
	}
	namespace, err := openNamespace(r.Namespace)
	if err != nil {
		return nil, err
	}
	defer namespace.Close()
	if err := vacate(at.IfName, namespace); err != nil {
		return nil, err
	}
	pair, err := makeVeth(ep.HostIf, at.IfName, namespace, daemon.WorkloadMTU(daemon.SwitchMTU(a.node.Config.Link.MTU)))
	if err != nil {
		return nil, err
	}
	ep.HostIndex = pair.hostIndex
	parts.lap("veth")
	// With each program the kernel waits for a grace period of RCU, some 10 ms.
	// That time is used; until it is over both ends stay down.
	attached = start(func() error { return a.attachPrograms(ep.HostIf) })
	if err := a.admitAnywhere(ctx, &ep); err != nil {
		return nil, refusal(err)
	}
	parts.lap("admit")
	kept = a.endpoints.put(ep)
	if _, err := a.node.Revision.Document(ctx, ep.Admission.Service); err != nil {
		return nil, fmt.Errorf("read what service %s may reach: %w", ep.Admission.Service, err)
	}
	parts.lap("document")
	waiting, cancel := context.WithTimeout(ctx, inForce)
	defer cancel()
	pending, err := a.engines.connect(waiting, at)
	if err != nil {
		return nil, fmt.Errorf("request the connectivity of %s: %w", ep.Admission.Service, err)
	}
	parts.lap("connect")
	if err := attached(); err != nil {
		return nil, fmt.Errorf("attach the programs to %s: %w", ep.HostIf, err)
	}
	parts.lap("programs")
	if err := kept(); err != nil {
		return nil, err
	}
	parts.lap("keep")
	if err := a.reprogram.Call(); err != nil {
		return nil, err
	}
	parts.lap("maps")
	if err := pair.raiseHost(ep.IPv4, ep.IPv6); err != nil {
		return nil, err
	}
	if err := raiseLoopback(namespace); err != nil {
		return nil, err
	}
	if err := pair.raiseWorkload(at.IfName, namespace, ep.IPv4, ep.IPv6); err != nil {
		return nil, err
	}
	parts.lap("raise")
	if err := a.setPorts(); err != nil {
		return nil, err
	}
	parts.lap("ports")
	if len(pending) > 0 {
		a.log.Warn("attached, but not in force everywhere yet", logkey.Endpoint, ep.ID, logkey.Pending, pending)
	}
	if err := a.endpoints.setPending(at, pending); err != nil {
		return nil, err
	}
	a.refreshCatalog()
	result := pair.result(at.IfName, r.Namespace.Name(), ep.IPv4, ep.IPv6)
	result.DNS = types.DNS{Nameservers: []string{wellknown.LinkLocal4.String()}}
	return result, nil
}

// idle is the outcome of what was not started.
func idle() error { return nil }

// start starts do and returns a function that waits for its outcome.
func start(do func() error) (wait func() error) {
	done := make(chan struct{})
	var err error
	go func() {
		err = do()
		close(done)
	}()
	return func() error {
		<-done
		return err
	}
}

// refusal makes of the controller's refusal an error that says in the
// allocation's events what to do.
func refusal(err error) error {
	var e *api.Error
	if errors.As(err, &e) {
		return types.NewError(types.ErrInternal, "not admitted to the fabric: "+e.Message, "")
	}
	return fmt.Errorf("ask the controller to admit the workload: %w", err)
}

// remove detaches a workload. An unknown one is no error: DEL may come twice,
// or after an ADD that failed.
func (a *Agent) remove(ctx context.Context, at cnicall.Attachment) error {
	a.node.Degrade(attaching(at), nil) // what was refused is gone, too
	ep, known := a.endpoints.get(at)
	if !known {
		return a.dismantle(hostIfName(at))
	}
	a.abandon(ctx, ep)
	a.log.Info("workload detached", logkey.Endpoint, ep.ID, logkey.Service, ep.Admission.Service)
	return nil
}

// abandon removes all that there is of an endpoint, here and elsewhere, even if
// ctx has ended. What fails is repaired later, or ends by itself.
func (a *Agent) abandon(ctx context.Context, ep endpoint) {
	ctx = context.WithoutCancel(ctx)
	if err := a.dismantle(ep.HostIf); err != nil {
		a.log.Error("interface not removed", logkey.Endpoint, ep.ID, logkey.Interface, ep.HostIf, logkey.Error, err)
	}
	admitted := ep.Admission.Endpoint != ""
	if !admitted {
		a.addresses.giveBack(ep.IPv4) // nobody has heard of it
	} else if err := a.addresses.release(ep.IPv4, a.now()); err != nil {
		a.log.Error("the address's rest is not kept", logkey.Endpoint, ep.ID, logkey.Address, ep.IPv4, logkey.Error, err)
	}
	if err := a.endpoints.remove(ep.Attachment); err != nil {
		a.log.Error("endpoint not forgotten", logkey.Endpoint, ep.ID, logkey.Error, err)
	}
	if err := a.reprogram.Call(); err != nil {
		a.log.Error("data path not updated", logkey.Endpoint, ep.ID, logkey.Error, err)
	}
	if err := a.setPorts(); err != nil {
		a.log.Error("port mappings not removed", logkey.Endpoint, ep.ID, logkey.Error, err)
	}
	a.node.Degrade(renewing(ep), nil)
	if !admitted {
		return
	}
	waiting, cancel := context.WithTimeout(ctx, inForce)
	defer cancel()
	a.engines.withdraw(waiting, ep.ID)
	releasing, cancel := context.WithTimeout(ctx, tidyTimeout)
	defer cancel()
	if err := a.node.Controller.Release(releasing, ep.ID); err != nil && !api.IsCode(err, api.CodeNotFound) {
		a.log.Warn("the controller did not hear of the release; the admission ends by itself", logkey.Endpoint, ep.ID, logkey.Error, err)
	}
	a.refreshCatalog()
}

// attachPrograms puts the programs on an endpoint's interface, if they are not
// there.
func (a *Agent) attachPrograms(hostIf string) error {
	defer a.attachments.Lock(hostIf)()
	return a.data.Attach(hostIf)
}

// dismantle removes an endpoint's interface, and then its programs: without them
// everything would pass it.
func (a *Agent) dismantle(hostIf string) error {
	if err := removeVeth(hostIf); err != nil {
		return err
	}
	return a.data.Detach(hostIf)
}

// check repairs an attachment in place. It fails only where that cannot help:
// Nomad answers a failed CHECK with a new namespace, while the tasks stay in
// the old one.
func (a *Agent) check(at cnicall.Attachment, r cnicall.Request) error {
	ep, known := a.endpoints.get(at)
	if !known {
		return types.NewError(types.ErrUnknownContainer, "the sif agent has not attached container "+at.ContainerID, "")
	}
	index, err := linkIndex(ep.HostIf)
	if err != nil {
		return err
	}
	if index == 0 || index != ep.HostIndex {
		return types.NewError(types.ErrInternal, "the interface of container "+at.ContainerID+" is gone", ep.HostIf)
	}
	if err := a.attachPrograms(ep.HostIf); err != nil {
		return fmt.Errorf("attach the programs to %s: %w", ep.HostIf, err)
	}
	return a.Reconcile()
}

// collect detaches every workload that valid does not name.
func (a *Agent) collect(ctx context.Context, valid []cnicall.Attachment) error {
	var errs []error
	for _, ep := range a.endpoints.all() {
		if !slices.Contains(valid, ep.Attachment) {
			unlock := a.locks.Lock(ep.Attachment)
			errs = append(errs, a.remove(ctx, ep.Attachment))
			unlock()
		}
	}
	return errors.Join(errs...)
}

// sweep detaches the workloads whose interface is gone: their namespace went
// without a DEL, as after a reboot.
func (a *Agent) sweep(ctx context.Context) {
	for _, ep := range a.endpoints.all() {
		if err := a.sweepOne(ctx, ep.Attachment); err != nil {
			a.log.Error("workload not detached", logkey.Endpoint, ep.ID, logkey.Error, err)
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
	index, err := linkIndex(ep.HostIf)
	if err != nil || index != 0 && index == ep.HostIndex {
		return err
	}
	a.log.Warn("the workload's namespace is gone", logkey.Endpoint, ep.ID)
	return a.remove(ctx, at)
}
