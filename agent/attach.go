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
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/attach"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node"
)

// inForce is how long ADD waits for the connectivity to be in force beyond
// this node.
const inForce = 500 * time.Millisecond

// Handle serves a CNI call.
func (a *Agent) Handle(ctx context.Context, r attach.Request) (*current.Result, error) {
	at := attach.Attachment{ContainerID: r.ContainerID, IfName: r.IfName}
	// Calls for one attachment come one after the other; those for others at
	// the same time.
	unlock := a.locks.lock(at)
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
		a.log.Debug("parts of attaching", append(parts.laps, logkey.Endpoint, r.Allocation)...)
		return result, nil
	case "DEL":
		if err := a.remove(ctx, at); err != nil {
			return nil, err
		}
		a.node.Degrade("attach "+at.ContainerID, nil) // the runtime has given up
		return nil, nil
	case "CHECK":
		return nil, a.check(at, r)
	case "GC":
		return nil, a.collect(ctx, r.Valid)
	case "STATUS":
		return nil, a.ready()
	}
	return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "unknown CNI command "+r.Command, "")
}

// attaching is the subject under which a failed attachment is reported until it
// succeeds or the workload is gone.
func attaching(at attach.Attachment) string { return "attach " + at.ContainerID }

// ready reports why nothing can be attached now, or nil.
func (a *Agent) ready() error {
	if !a.engines.connected() {
		return types.NewError(types.ErrTryAgainLater, "no engine of zone "+a.node.Self.Zone+" can be reached", "is sif engine running on the zone's processor?")
	}
	return nil
}

// add attaches a workload. Nothing of a failed attempt stays.
func (a *Agent) add(ctx context.Context, at attach.Attachment, r attach.Request, parts *stopwatch) (_ *current.Result, err error) {
	if r.Namespace == nil || r.Allocation == "" || at.ContainerID == "" || at.IfName == "" {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables,
			"this is not an allocation of Nomad: CNI_ARGS names no NOMAD_ALLOC_ID", "only Nomad's word says what a workload is")
	}
	if err := a.ready(); err != nil {
		return nil, err
	}
	ep, known := a.endpoints.get(at)
	if known {
		// The runtime asks again after a reboot or a lost namespace: what was
		// there is replaced, and keeps its addresses.
		a.dismantle(ep)
	} else {
		ep = endpoint{ID: r.Allocation, Attachment: at, HostIf: hostIfName(at)}
		if ep.IPv4, ep.IPv6, err = a.takeAddresses(); err != nil {
			return nil, err
		}
	}
	ep.Ports = r.Ports
	attached := func() error { return nil }
	asked := false
	defer func() {
		if err == nil {
			return
		}
		_ = attached() // only that it has ended counts
		a.abandon(ep)
		if asked {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), inForce)
			defer cancel()
			a.engines.withdraw(ctx, ep.ID)
		}
	}()
	if err := removeVeth(ep.HostIf); err != nil {
		return nil, err
	}
	if err := vacate(at.IfName, r.Namespace); err != nil {
		return nil, err
	}
	pair, err := makeVeth(ep.HostIf, at.IfName, r.Namespace, node.WorkloadMTU(node.SwitchMTU(a.node.Config.Link.MTU)))
	if err != nil {
		return nil, err
	}
	ep.HostIndex = pair.hostIndex
	parts.lap("veth")
	// With each program the kernel waits for a grace period of RCU, some 10 ms.
	// That time is used; until it is over both ends stay down.
	attached = start(func() error { return a.data.Attach(ep.HostIf) })
	if err := a.admit(ctx, &ep); err != nil {
		return nil, refusal(err)
	}
	parts.lap("admit")
	if err := a.endpoints.put(ep); err != nil {
		return nil, err
	}
	if _, err := a.node.Revision.Document(ctx, ep.Admission.Service); err != nil {
		return nil, fmt.Errorf("read what service %s may reach: %w", ep.Admission.Service, err)
	}
	parts.lap("keep")
	waiting, cancel := context.WithTimeout(ctx, inForce)
	defer cancel()
	asked = true
	pending, err := a.engines.connect(waiting, ep)
	if err != nil {
		return nil, fmt.Errorf("request the connectivity of %s: %w", ep.Admission.Service, err)
	}
	parts.lap("connect")
	if err := attached(); err != nil {
		return nil, fmt.Errorf("attach the programs to %s: %w", ep.HostIf, err)
	}
	parts.lap("programs")
	if err := a.reprogram(); err != nil {
		return nil, err
	}
	parts.lap("maps")
	if err := pair.raiseHost(ep.IPv4, ep.IPv6); err != nil {
		return nil, err
	}
	if err := raiseLoopback(r.Namespace); err != nil {
		return nil, err
	}
	if err := pair.raiseWorkload(at.IfName, r.Namespace, ep.IPv4, ep.IPv6); err != nil {
		return nil, err
	}
	parts.lap("raise")
	if err := a.setPorts(); err != nil {
		return nil, err
	}
	parts.lap("ports")
	if len(pending) > 0 {
		a.log.Warn("attached, but not in force everywhere yet", logkey.Endpoint, ep.ID, "pending", pending)
	}
	if err := a.endpoints.change(at, func(ep *endpoint) { ep.Pending = pending }); err != nil {
		return nil, err
	}
	a.refreshCatalog()
	result := pair.result(at.IfName, r.Namespace.Name(), ep.IPv4, ep.IPv6)
	result.DNS = types.DNS{Nameservers: []string{gateway4.String()}}
	return result, nil
}

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
func (a *Agent) remove(ctx context.Context, at attach.Attachment) error {
	a.node.Degrade(attaching(at), nil) // what was refused is gone, too
	ep, known := a.endpoints.get(at)
	if !known {
		return removeVeth(hostIfName(at))
	}
	a.abandon(ep)
	a.engines.withdraw(ctx, ep.ID)
	if err := a.node.Controller.Release(ctx, ep.ID); err != nil && !api.IsCode(err, api.CodeNotFound) {
		a.log.Warn("the controller did not hear of the release; the admission ends by itself", logkey.Endpoint, ep.ID, logkey.Error, err)
	}
	a.refreshCatalog()
	a.log.Info("workload detached", logkey.Endpoint, ep.ID, logkey.Service, ep.Admission.Service)
	return nil
}

// abandon removes all that the node has of an endpoint.
func (a *Agent) abandon(ep endpoint) {
	a.dismantle(ep)
	if err := a.endpoints.remove(ep.Attachment); err != nil {
		a.log.Error("endpoint not forgotten", logkey.Endpoint, ep.ID, logkey.Error, err)
	}
	a.releaseAddresses(ep)
	if err := a.reprogram(); err != nil {
		a.log.Error("data path not updated", logkey.Endpoint, ep.ID, logkey.Error, err)
	}
	if err := a.setPorts(); err != nil {
		a.log.Error("port mappings not removed", logkey.Endpoint, ep.ID, logkey.Error, err)
	}
}

// dismantle removes an endpoint's interface, and its programs with it.
func (a *Agent) dismantle(ep endpoint) {
	err := errors.Join(removeVeth(ep.HostIf), a.data.Detach(ep.HostIf))
	if err != nil {
		a.log.Error("interface not removed", logkey.Endpoint, ep.ID, logkey.Interface, ep.HostIf, logkey.Error, err)
	}
}

// check repairs an attachment in place. It fails only where that cannot help:
// Nomad answers a failed CHECK with a new namespace, while the tasks stay in
// the old one.
func (a *Agent) check(at attach.Attachment, r attach.Request) error {
	ep, known := a.endpoints.get(at)
	if !known {
		return types.NewError(types.ErrUnknownContainer, "the sif agent has not attached container "+at.ContainerID, "")
	}
	index, ok := linkIndex(ep.HostIf)
	if !ok || index != ep.HostIndex {
		return types.NewError(types.ErrInternal, "the interface of container "+at.ContainerID+" is gone", ep.HostIf)
	}
	if err := a.data.Attach(ep.HostIf); err != nil {
		return fmt.Errorf("attach the programs to %s: %w", ep.HostIf, err)
	}
	return a.Reconcile()
}

// collect detaches every workload that valid does not name.
func (a *Agent) collect(ctx context.Context, valid []attach.Attachment) error {
	var errs []error
	for _, ep := range a.endpoints.all() {
		if !slices.Contains(valid, ep.Attachment) {
			errs = append(errs, a.remove(ctx, ep.Attachment))
		}
	}
	return errors.Join(errs...)
}

// sweep detaches the workloads whose interface is gone: their namespace went
// without a DEL, as after a reboot.
func (a *Agent) sweep(ctx context.Context) {
	for _, ep := range a.endpoints.all() {
		unlock := a.locks.lock(ep.Attachment)
		ep, still := a.endpoints.get(ep.Attachment)
		index, ok := linkIndex(ep.HostIf)
		if still && (!ok || index != ep.HostIndex) {
			a.log.Warn("the workload's namespace is gone", logkey.Endpoint, ep.ID)
			if err := a.remove(ctx, ep.Attachment); err != nil {
				a.log.Error("workload not detached", logkey.Endpoint, ep.ID, logkey.Error, err)
			}
		}
		unlock()
	}
}

// admit asks the controller to admit the workload at its addresses, gets its
// service a certificate if this node has none, and signs its connectivity
// request.
func (a *Agent) admit(ctx context.Context, ep *endpoint) error {
	req := api.AdmissionRequest{Allocation: ep.ID, IPv4: ep.IPv4, IPv6: ep.IPv6}
	a.keys.Lock()
	defer a.keys.Unlock()
	reply, err := a.node.Controller.Admit(ctx, req)
	if err != nil {
		return err
	}
	if err := a.node.Identity.Keys().Verify(reply.Admission, fabric.KindAdmission, &ep.Admission); err != nil {
		return err
	}
	service := ep.Admission.Service
	if a.services.NeedsRenewal(service) {
		csr, err := a.services.Key(service)
		if err != nil {
			return err
		}
		chain, err := a.node.Controller.Certificate(ctx, api.CertificateRequest{Service: service, CSR: csr})
		if err != nil {
			return fmt.Errorf("get a certificate for service %s: %w", service, err)
		}
		if err := a.services.Put(service, chain); err != nil {
			return err
		}
	}
	sig, chain, err := a.services.Sign(service, fabric.RequestSigningInput(reply.Admission.Payload))
	if err != nil {
		return err
	}
	ep.Request = fabric.Request{Admission: reply.Admission, Certificate: chain, Signature: sig}
	return nil
}

// renew admits anew the endpoints whose admission, or whose service's
// certificate, is past two thirds of its life.
func (a *Agent) renew(ctx context.Context) {
	for _, ep := range a.endpoints.all() {
		due := ep.Admission.Issued.Add(ep.Admission.Expires.Sub(ep.Admission.Issued) * 2 / 3)
		if time.Now().Before(due) && !a.services.NeedsRenewal(ep.Admission.Service) {
			continue
		}
		if err := a.renewOne(ctx, ep); err != nil {
			a.node.Degrade("renew "+ep.ID, err)
			continue
		}
		a.node.Degrade("renew "+ep.ID, nil)
	}
}

// settle asks again for what was not in force everywhere when the endpoint was
// attached.
func (a *Agent) settle(ctx context.Context) {
	for _, ep := range a.endpoints.all() {
		if len(ep.Pending) == 0 || !a.engines.connected() {
			continue
		}
		asking, cancel := context.WithTimeout(ctx, inForce)
		pending, err := a.engines.connect(asking, ep)
		cancel()
		if err != nil {
			pending = []string{err.Error()}
		}
		if err := a.endpoints.change(ep.Attachment, func(e *endpoint) { e.Pending = pending }); err != nil {
			a.log.Error("endpoint not kept", logkey.Endpoint, ep.ID, logkey.Error, err)
		}
	}
}

func (a *Agent) renewOne(ctx context.Context, ep endpoint) error {
	unlock := a.locks.lock(ep.Attachment)
	defer unlock()
	if err := a.admit(ctx, &ep); err != nil {
		return err
	}
	err := a.endpoints.change(ep.Attachment, func(e *endpoint) { e.Admission, e.Request = ep.Admission, ep.Request })
	if err != nil {
		return err
	}
	_, err = a.engines.connect(ctx, ep)
	return err
}
