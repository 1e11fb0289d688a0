// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"

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
	began := time.Now()
	unlock := a.locks.Lock(at)
	defer unlock()
	result, err := a.call(ctx, at, r)
	outcome := "done"
	if err != nil {
		outcome = "failed"
	}
	a.calls.WithLabelValues(r.Command, outcome).Observe(time.Since(began).Seconds())
	return result, err
}

func (a *Agent) call(ctx context.Context, at cnicall.Attachment, r cnicall.Request) (*current.Result, error) {
	switch r.Command {
	case "ADD":
		return a.add(ctx, at, r)
	case "DEL":
		return nil, a.remove(ctx, at)
	case "CHECK":
		return nil, a.check(at, r)
	case "GC":
		return nil, a.collect(ctx, r)
	case "STATUS":
		return nil, a.status()
	}
	return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "unknown CNI command "+r.Command, "")
}

// attaching and renewing name what is degraded in the node's status.
func attaching(at cnicall.Attachment) string { return "attach " + at.ContainerID }
func renewing(ep endpoint) string            { return "renew " + ep.ID }

// ready returns an error if the agent cannot attach workloads now.
func (a *Agent) ready() error {
	if !a.engines.connected() && !a.engines.zone.out() {
		return away{types.NewError(types.ErrTryAgainLater, "no engine of zone "+a.node.Self.Zone+" can be reached", "is sif engine running on a processor of the zone?")}
	}
	return nil
}

// status returns an error, of CNI's STATUS, if the agent cannot attach workloads now.
func (a *Agent) status() error {
	if err := a.ready(); err != nil {
		return err
	}
	if used, resting, free := a.addresses.usage(a.now()); free == 0 {
		return types.NewError(types.ErrPluginNotAvailable, fmt.Sprintf("no address of %s is free: %d are in use, and %d rest for %s after their release", a.addresses.pool4, used, resting, rest), larger)
	}
	return nil
}

// add attaches a workload, and logs and reports the outcome.
func (a *Agent) add(ctx context.Context, at cnicall.Attachment, r cnicall.Request) (*current.Result, error) {
	began := time.Now()
	result, err := a.attach(ctx, at, r, began)
	if r.Attach != nil { // its caller decides what becomes of it, and nothing is known of what stalls
		return a.addedStanding(at, r, result, err, time.Since(began))
	}
	a.stalled.record(began, time.Now(), err)
	a.node.Degrade(attaching(at), err)
	if err != nil {
		a.log.Error("cannot attach workload", logkey.Endpoint, r.Allocation, logkey.Error, err)
		return nil, err
	}
	a.log.Info("workload attached", logkey.Endpoint, r.Allocation, logkey.Duration, time.Since(began))
	return result, nil
}

func (a *Agent) attach(ctx context.Context, at cnicall.Attachment, r cnicall.Request, began time.Time) (*current.Result, error) {
	if r.Network != "" && at.ByHand() {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID is "+at.ContainerID+": such names are those of sif attach", "")
	}
	if r.Namespace == nil || r.Allocation == "" && r.Attach == nil || at.ContainerID == "" || at.IfName == "" {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables,
			"not a Nomad allocation: CNI_ARGS has no NOMAD_ALLOC_ID", "the fabric identifies a workload by its Nomad allocation")
	}
	var until, patience time.Time
	if r.Patience > 0 {
		patience = began.Add(r.Patience - answerTime)
	}
	if r.Attach != nil || a.stalled.young(began) {
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
	if err := a.vacant(ep, namespace); err != nil {
		return nil, err
	}
	ep.Ports, ep.VM = r.Ports, r.VM
	if r.Attach != nil {
		ep.Attached = &s.Workload
		if ep.Process, err = newProcess(s.Process, ep.Process); err != nil {
			return nil, err
		}
	}
	if r.Network != "" { // not when it is attached again
		ep.Network, ep.Runtime = r.Network, r.Runtime
	}
	defer a.releases.begin(r.Allocation)()
	adding := &attachment{namespace: namespace, endpoint: ep, until: until, patience: patience, again: r.Again, parts: stopwatch{last: began}}
	err = a.attachAll(ctx, adding)
	if r.Attach != nil {
		err = a.settle(ctx, s, adding.endpoint, err)
	}
	if err != nil {
		return nil, err
	}
	a.log.Debug("time spent attaching", logkey.Endpoint, r.Allocation, logkey.Parts, adding.parts.String())
	ep = adding.endpoint
	return adding.pair.result(at.IfName, r.Namespace.Name(), ep.IPv4, ep.IPv6), nil
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
		return types.NewError(cnicall.CodeChanged, "the interface of container "+at.ContainerID+" no longer exists", ep.HostIf)
	}
	if err := a.agrees(ep, r.Expected); err != nil {
		return err
	}
	if err := a.reconcile.Call(); err != nil {
		return err
	}
	return errors.Join(a.mend(ep), leadsTo(ep, r.Namespace))
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

// agrees returns an error if the runtime knows another interface than there is.
func (a *Agent) agrees(ep endpoint, expected *cnicall.Expected) error {
	if expected == nil {
		return nil
	}
	changed := func(format string, args ...any) error {
		return types.NewError(cnicall.CodeChanged, fmt.Sprintf("container %s: ", ep.Attachment.ContainerID)+fmt.Sprintf(format, args...), "")
	}
	mac := a.pairOf(ep).peerMAC.String()
	if expected.MAC != "" && !strings.EqualFold(expected.MAC, mac) {
		return changed("%s has the hardware address %s, which the fabric decides, but by prevResult it has %s: no other plugin may change it", ep.Attachment.IfName, mac, expected.MAC)
	}
	for _, addr := range expected.Addresses {
		inPool := a.node.Self.Pool4.Contains(addr) || a.node.Self.Pool6.Contains(addr)
		if inPool && addr != ep.IPv4 && addr != ep.IPv6 { // others are of other plugins
			return changed("%s has the addresses %s and %s, but by prevResult %s", ep.Attachment.IfName, ep.IPv4, ep.IPv6, addr)
		}
	}
	return nil
}

// vacant returns an error if the namespace has an interface of the attachment's name that is not
// what an earlier ADD of it left there.
func (a *Agent) vacant(ep endpoint, namespace ns.NetNS) error {
	return namespace.Do(func(ns.NetNS) error {
		link, err := netlinksafe.LinkByName(ep.Attachment.IfName)
		var absent netlink.LinkNotFoundError
		switch {
		case errors.As(err, &absent):
			return nil
		case err != nil:
			return fmt.Errorf("look for interface %s in the workload's namespace: %w", ep.Attachment.IfName, err)
		}
		attrs, own := link.Attrs(), a.pairOf(ep).peerMAC.String()
		switch {
		case ep.HostIndex != 0 && attrs.ParentIndex == ep.HostIndex:
		case attrs.HardwareAddr.String() == own, attrs.HardwareAddr.String() == wellknown.GuestMAC:
		default:
			return types.NewError(cnicall.CodeTaken, fmt.Sprintf("the workload's namespace has an interface %s already, which is not the fabric's", ep.Attachment.IfName), "choose another name for one of the two (CNI_IFNAME)")
		}
		return nil
	})
}

// leadsTo returns an error if the interface of the endpoint is not in the namespace.
func leadsTo(ep endpoint, descriptor *os.File) error {
	if descriptor == nil {
		return nil
	}
	namespace, err := openNamespace(descriptor)
	if err != nil {
		return err
	}
	defer namespace.Close()
	return namespace.Do(func(ns.NetNS) error {
		link, err := netlinksafe.LinkByName(ep.Attachment.IfName)
		if err != nil || link.Attrs().ParentIndex != ep.HostIndex {
			return types.NewError(cnicall.CodeChanged, fmt.Sprintf("container %s: the namespace has no interface %s that leads to %s", ep.Attachment.ContainerID, ep.Attachment.IfName, ep.HostIf), "")
		}
		return nil
	})
}

// collect detaches what the runtime attached to the network and no longer has. Other runtimes on
// the node, and the command line, have attachments of which this one knows nothing, perhaps to a
// network of the same name: they are left alone, and so is what was attached before this was
// recorded.
func (a *Agent) collect(ctx context.Context, r cnicall.Request) error {
	if r.Network == "" || r.Runtime == "" {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "GC does not say for which network and runtime it is, so nothing is detached", "")
	}
	valid := map[cnicall.Attachment]bool{}
	for _, at := range r.Valid {
		valid[at] = true
	}
	stale := map[cnicall.Attachment]bool{}
	note := func(at cnicall.Attachment, network, runtime string) {
		if network == r.Network && runtime == r.Runtime && !valid[at] && !at.ByHand() {
			stale[at] = true
		}
	}
	for _, ep := range a.endpoints.all() {
		note(ep.Attachment, ep.Network, ep.Runtime)
	}
	for _, s := range a.standings.all() { // which may have no endpoint
		note(s.Attachment, s.Network, s.Runtime)
	}
	var errs []error
	for at := range stale {
		unlock := a.locks.Lock(at)
		errs = append(errs, a.remove(ctx, at))
		unlock()
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
		_, err := a.add(ctx, at, cnicall.Request{Allocation: ep.ID, VM: ep.VM, Ports: ep.Ports, Namespace: namespace, Again: true})
		if err == nil {
			a.node.Repaired([]kernel.Change{{Kind: kernel.KindInterface, Subject: ep.HostIf, What: "was removed, made again"}})
		}
		return err
	}
	a.log.Warn("the interface of the workload no longer exists, detaching it", logkey.Endpoint, ep.ID)
	return a.remove(ctx, at)
}
