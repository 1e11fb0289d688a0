// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/uuid"
	"github.com/vishvananda/netlink"

	"github.com/sif-project/sif/agent/catalog"
	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/node/netspace"
	"github.com/sif-project/sif/internal/statefile"
)

const (
	// tendAttachedInterval is how often the agent looks whether what is attached is registered and
	// has its namespace.
	tendAttachedInterval = time.Second
	// registrationGrace is how long a registration must be missing before the endpoint ends:
	// whoever starts a service anew may register it anew.
	registrationGrace = 5 * time.Second
	// returnInterval is how often the agent tries to bring an endpoint back that was refused.
	returnInterval = 5 * time.Second
)

// standing is a workload outside Nomad that somebody attached. It outlives its endpoint while the
// registration of its service is missing. A value in the set is never modified.
type standing struct {
	Attachment cnicall.Attachment `json:"attachment"`
	Endpoint   string             `json:"endpoint"` // its ID, the same when it comes back
	Workload   fabric.Attached    `json:"workload"`
	// Registration is the ID of the registration that counts, or empty: all of its service do. It
	// is that of the same name, if there was one when the workload was attached, as for the
	// controller.
	Registration string           `json:"registration,omitempty"`
	Space        cnicall.Space    `json:"space"`
	Inode        uint64           `json:"inode"` // of its namespace
	VM           bool             `json:"vm,omitempty"`
	Process      *cnicall.Process `json:"process,omitempty"` // of the node, that has the endpoint
	Since        time.Time        `json:"since"`
	Network      string           `json:"network,omitempty"` // as of the endpoint
	Runtime      string           `json:"runtime,omitempty"`

	// Boot is the boot of the machine, and Started when the process began that Space names: its
	// owner, or that through which its path leads. Both say whether Space still means the same.
	Boot    string `json:"boot"`
	Started string `json:"started,omitempty"`

	// Waits says why it has no endpoint, for people. It is empty while it has one.
	Waits string `json:"waits,omitempty"`
}

func (s standing) source() catalog.Source {
	return catalog.Source{Service: s.Workload.ConsulService, ID: s.Registration}
}

// process returns the process that must live for the namespace to be found, or 0.
func (s standing) process() int {
	return cmp.Or(s.Space.Owner, netspace.ProcessOf(s.Space.Path))
}

// orphaned reports whether the process has ended with which the attachment ends.
func (s standing) orphaned() bool {
	return s.Space.Owner != 0 && netspace.Started(s.Space.Owner) != s.Started
}

// open opens the namespace where it was, and returns nil if it is not there any more.
func (s standing) open() *os.File {
	if s.Boot != netspace.Boot() || s.process() != 0 && netspace.Started(s.process()) != s.Started {
		return nil
	}
	f, err := netspace.Open(s.Space.Path)
	if err != nil {
		return nil
	}
	if inode, err := netspace.Inode(f); err != nil || inode != s.Inode {
		f.Close()
		return nil
	}
	return f
}

// equals reports whether two ask for the same, but for the namespace.
func (s standing) equals(o standing) bool {
	s.Workload.ConsulNode = o.Workload.ConsulNode // the agent may have another name now
	return reflect.DeepEqual(s.Workload, o.Workload) && s.VM == o.VM && reflect.DeepEqual(s.Process, o.Process)
}

// standings is the set of what is attached, in memory and on disk. It is safe for concurrent use.
type standings struct {
	saved *statefile.Saver

	mu  sync.Mutex
	set map[cnicall.Attachment]standing

	missing map[cnicall.Attachment]time.Time // since when a registration is; only tendAttached uses it
	tried   map[cnicall.Attachment]time.Time // when an endpoint was to come back; only tendAttached uses it
}

func openStandings(path string) (*standings, error) {
	file := statefile.File[[]standing]{Path: path, What: "what is attached from outside Nomad"}
	ss := &standings{set: map[cnicall.Attachment]standing{}, missing: map[cnicall.Attachment]time.Time{}, tried: map[cnicall.Attachment]time.Time{}}
	ss.saved = file.Saver(ss.all)
	list, _, err := file.Read()
	for _, s := range list {
		ss.set[s.Attachment] = s
	}
	return ss, err
}

// all returns what is attached, by name.
func (ss *standings) all() []standing {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return slices.SortedFunc(maps.Values(ss.set), func(a, b standing) int {
		return cmp.Or(cmp.Compare(a.Workload.Name, b.Workload.Name), cmp.Compare(a.Endpoint, b.Endpoint))
	})
}

func (ss *standings) get(at cnicall.Attachment) (standing, bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s, ok := ss.set[at]
	return s, ok
}

// put stores s, and returns an error if that is not on disk; saved.Again writes it later.
func (ss *standings) put(s standing) error {
	ss.mu.Lock()
	ss.set[s.Attachment] = s
	ss.mu.Unlock()
	return ss.saved.Call()
}

func (ss *standings) remove(at cnicall.Attachment) error {
	ss.mu.Lock()
	_, there := ss.set[at]
	delete(ss.set, at)
	ss.mu.Unlock()
	if !there {
		return nil
	}
	return ss.saved.Call()
}

// admitStanding is the part of ADD that only a workload outside Nomad has. It returns the record of
// the workload, and the result if there is nothing to do because it is attached already.
func (a *Agent) admitStanding(ctx context.Context, at cnicall.Attachment, r cnicall.Request, namespace ns.NetNS, until time.Time) (s standing, done *current.Result, err error) {
	s = standing{Attachment: at, Workload: *r.Attach, Space: r.Space, VM: r.VM, Process: r.Process, Network: r.Network, Runtime: r.Runtime, Since: a.now().UTC().Truncate(time.Second), Boot: netspace.Boot()}
	if s.Workload.Name == "" || s.Workload.ConsulService == "" {
		return s, nil, types.NewError(types.ErrInvalidEnvironmentVariables, "a workload outside Nomad needs a name and a Consul service", "")
	}
	if err := a.checkProcess(s); err != nil {
		return s, nil, err
	}
	if host, err := netspace.IsHost(r.Namespace); err != nil || host {
		return s, nil, types.NewError(types.ErrInvalidNetNS, "that is the node's own network namespace, and an endpoint needs one of its own", "")
	}
	if s.Inode, err = netspace.Inode(r.Namespace); err != nil {
		return s, nil, err
	}
	if at.ByHand() && !netspace.Is(s.Space.Path, s.Inode) {
		return s, nil, types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("the agent does not see the network namespace at %s: does it run in a mount namespace of its own?", s.Space.Path), "")
	}
	if pid := s.process(); pid != 0 {
		if s.Started = netspace.Started(pid); s.Started == "" {
			return s, nil, types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("process %d, which is to keep the namespace, does not run", pid), "")
		}
	}
	for _, o := range a.standings.all() {
		if o.Workload.Name == s.Workload.Name && o.Attachment != at {
			return s, nil, types.NewError(types.ErrInternal, fmt.Sprintf("%q is attached already, by container %s: choose another name", o.Workload.Name, o.Attachment.ContainerID), "")
		}
	}
	known, is := a.standings.get(at)
	if is && !known.equals(s) {
		return s, nil, types.NewError(types.ErrInternal, fmt.Sprintf("%q is attached already, as %s: detach it first, with: sif detach %s", s.Workload.Name, describe(known), s.Workload.Name), "")
	}
	s.Endpoint = uuid.NewString()
	if is {
		s.Endpoint, s.Since = known.Endpoint, known.Since
	}
	if ep, has := a.endpoints.get(at); has {
		s.Endpoint = ep.ID
		if is && a.stands(ep, namespace) {
			if err := a.mend(ep); err != nil {
				return s, nil, err
			}
			return s, a.pairOf(ep).result(at.IfName, r.Namespace.Name(), ep.IPv4, ep.IPv6), nil
		}
	}
	if _, has := a.endpoints.get(at); is && has { // its interface or its namespace was replaced
		s.Workload.ConsulNode, s.Registration = known.Workload.ConsulNode, known.Registration
		return s, nil, nil
	}
	if err := unoccupied(at, namespace); err != nil {
		return s, nil, err
	}
	waiting := &attachment{endpoint: endpoint{ID: s.Endpoint}, until: until}
	if err := a.insist(ctx, waiting, func() error { return a.registeredHere(ctx, &s) }); err != nil {
		return s, nil, err
	}
	return s, nil, nil
}

// unoccupied refuses a namespace that has an interface of the endpoint's name: ADD would remove it.
// One that an earlier ADD left is removed with its other end, which is the node's.
func unoccupied(at cnicall.Attachment, namespace ns.NetNS) error {
	if index, err := linkIndex(hostIfName(at)); err != nil || index != 0 {
		return err
	}
	return namespace.Do(func(ns.NetNS) error {
		index, err := linkIndex(at.IfName)
		if index != 0 {
			return types.NewError(cnicall.CodeTaken, fmt.Sprintf("the namespace has an interface %s already, and so a network: start the workload without one, such as with docker run --network=none", at.IfName), "")
		}
		return err
	})
}

// settle keeps the record of a workload outside Nomad when ADD ends with err. Nothing stays of one
// that could not be attached, unless it was attached before: it waits.
func (a *Agent) settle(ctx context.Context, s standing, ep endpoint, err error) error {
	if _, was := a.standings.get(s.Attachment); err != nil && was {
		s.Waits = err.Error()
		return errors.Join(err, a.standings.put(s))
	}
	if err != nil {
		return err
	}
	if err := a.standings.put(s); err != nil {
		a.detachAll(ctx, ep)
		return errors.Join(err, a.standings.remove(s.Attachment))
	}
	a.registrar.Refresh() // the record has the health of its registration from now on
	return nil
}

// addedStanding logs how an ADD ended.
func (a *Agent) addedStanding(at cnicall.Attachment, r cnicall.Request, result *current.Result, err error, took time.Duration) (*current.Result, error) {
	if err != nil {
		a.log.Warn("cannot attach workload", logkey.Attached, r.Attach.Name, logkey.Error, err)
		if e := new(types.Error); isAway(err) && !errors.As(err, &e) {
			err = types.NewError(types.ErrTryAgainLater, err.Error(), "")
		}
		return nil, err
	}
	ep, _ := a.endpoints.get(at)
	a.log.Info("workload attached", logkey.Attached, r.Attach.Name, logkey.Endpoint, ep.ID, logkey.Service, ep.Admission.Service, logkey.Duration, took)
	return result, nil
}

// describe says in messages what a workload asked for.
func describe(s standing) string {
	text := fmt.Sprintf("Consul service %q", s.Workload.ConsulService)
	if s.Workload.Service != "" {
		text += ", service " + s.Workload.Service
	}
	if len(s.Workload.Originate) > 0 {
		text += fmt.Sprintf(", originate %v", s.Workload.Originate)
	}
	if len(s.Workload.Respond) > 0 {
		text += fmt.Sprintf(", respond %v", s.Workload.Respond)
	}
	if s.Process != nil {
		text += fmt.Sprintf(", a process of the node with ports %v", s.Process.Ports)
		if s.Process.Cgroup != "" {
			text += " and cgroup " + s.Process.Cgroup
		}
	}
	return text
}

// stands reports whether an endpoint is in force in a namespace, so that ADD has nothing to do.
func (a *Agent) stands(ep endpoint, namespace ns.NetNS) bool {
	there, err := a.present(ep)
	if err != nil || !there || !ep.admitted() {
		return false
	}
	link, err := netlinksafe.LinkByName(ep.HostIf)
	if err != nil {
		return false
	}
	id, err := netlink.GetNetNsIdByFd(int(namespace.Fd()))
	return err == nil && id >= 0 && id == link.Attrs().NetNsID
}

// registeredHere returns an error unless the workload's service is registered with the node's own
// Consul agent. It notes the agent's name, and which registration counts.
func (a *Agent) registeredHere(ctx context.Context, s *standing) error {
	node, err := a.registrar.ConsulNode(ctx)
	if err != nil {
		return away{err}
	}
	s.Workload.ConsulNode = node
	if err := s.Workload.Check(); err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, err.Error(), "")
	}
	every := catalog.Source{Service: s.Workload.ConsulService}
	one := catalog.Source{Service: s.Workload.ConsulService, ID: s.Workload.Name}
	found, err := a.registrar.Registered(ctx, []catalog.Source{every, one})
	if err != nil {
		return away{err}
	}
	if s.Registration = ""; found[one] {
		s.Registration = one.ID
	}
	if !found[every] {
		return away{types.NewError(types.ErrTryAgainLater, s.unregistered(), "")}
	}
	return nil
}

// unregistered says that the registration is missing.
func (s standing) unregistered() string {
	what := fmt.Sprintf("Consul service %q", s.Workload.ConsulService)
	if s.Registration != "" {
		what = fmt.Sprintf("%q of Consul service %q", s.Registration, s.Workload.ConsulService)
	}
	return fmt.Sprintf("%s is not registered with the Consul agent of this node, %q: register it there", what, s.Workload.ConsulNode)
}

// tendAttached ends the endpoints whose registration is gone, brings back those whose registration
// is there again, and detaches what has lost its namespace or its owner.
func (a *Agent) tendAttached(ctx context.Context) error {
	list := a.standings.all()
	var sources []catalog.Source
	for _, s := range list {
		if !slices.Contains(sources, s.source()) {
			sources = append(sources, s.source())
		}
	}
	var registered map[catalog.Source]bool
	var errs []error
	if len(sources) > 0 {
		var err error
		if registered, err = a.registrar.Registered(ctx, sources); err != nil {
			errs = append(errs, fmt.Errorf("whether attached workloads are registered is unknown: %w", err)) // ends nothing
		}
	}
	for _, s := range list {
		if a.locks.Busy(s.Attachment) {
			continue // a call concerns it now
		}
		here, known := registered[s.source()]
		errs = append(errs, a.tendOne(ctx, s, here, known && registered != nil))
	}
	a.standings.forget()
	return errors.Join(errs...)
}

// forget drops what tendAttached knew of attachments that are gone.
func (ss *standings) forget() {
	gone := func(at cnicall.Attachment, _ time.Time) bool {
		_, there := ss.get(at)
		return !there
	}
	maps.DeleteFunc(ss.missing, gone)
	maps.DeleteFunc(ss.tried, gone)
}

func (a *Agent) tendOne(ctx context.Context, s standing, here, known bool) error {
	ss := a.standings
	ep, has := a.endpoints.get(s.Attachment)
	there := false
	if has {
		var err error
		if there, err = a.present(ep); err != nil {
			return err
		}
	}
	if s.orphaned() {
		return a.lose(ctx, s, "the process that attached it has ended")
	}
	if !there {
		f := s.open()
		if f == nil && has {
			f = a.namespaces.Last(ep.HostIf)
		}
		if f == nil {
			return a.lose(ctx, s, "its network namespace no longer exists")
		}
		f.Close()
	}
	if known && here {
		delete(ss.missing, s.Attachment)
	}
	switch {
	case has && !there:
		return a.restore(ctx, s)
	case has && known && !here:
		since, is := ss.missing[s.Attachment]
		if !is {
			ss.missing[s.Attachment] = time.Now()
			a.registrar.Refresh() // it is not healthy from now on
			return nil
		}
		if time.Since(since) < registrationGrace {
			return nil
		}
		return a.suspend(ctx, s)
	case !has && known && here:
		if time.Since(ss.tried[s.Attachment]) < returnInterval {
			return nil
		}
		ss.tried[s.Attachment] = time.Now()
		return a.resume(ctx, s)
	}
	return nil
}

// suspend ends the endpoint of a workload whose registration is gone.
func (a *Agent) suspend(ctx context.Context, s standing) error {
	unlock := a.locks.Lock(s.Attachment)
	defer unlock()
	ep, has := a.endpoints.get(s.Attachment)
	s, still := a.standings.get(s.Attachment)
	if !has || !still {
		return nil
	}
	s.Waits = s.unregistered()
	a.log.Warn("the registration of the attached workload is gone, ending its endpoint", logkey.Attached, s.Workload.Name, logkey.Endpoint, ep.ID, logkey.Service, ep.Admission.Service, logkey.Record, s.Workload.ConsulService)
	kept := a.standings.put(s) // first: it is not to be forgotten with its endpoint
	a.detachAll(ctx, ep)
	return kept
}

// restore makes the interface of an attached workload again that somebody removed, with the same
// addresses.
func (a *Agent) restore(ctx context.Context, s standing) error {
	unlock := a.locks.Lock(s.Attachment)
	defer unlock()
	ep, has := a.endpoints.get(s.Attachment)
	s, still := a.standings.get(s.Attachment)
	if !has || !still {
		return nil
	}
	if there, err := a.present(ep); err != nil || there {
		return err
	}
	namespace := s.open()
	if namespace == nil {
		namespace = a.namespaces.Last(ep.HostIf)
	}
	if namespace == nil {
		return nil // the next round detaches it
	}
	defer namespace.Close()
	if _, err := a.add(ctx, s.Attachment, s.request(namespace)); err != nil {
		return err
	}
	a.node.Repaired([]kernel.Change{{Kind: kernel.KindInterface, Subject: ep.HostIf, What: "was removed, made again"}})
	return nil
}

// resume brings the endpoint of a workload back whose registration is there again.
func (a *Agent) resume(ctx context.Context, s standing) error {
	unlock := a.locks.Lock(s.Attachment)
	defer unlock()
	s, still := a.standings.get(s.Attachment)
	if _, has := a.endpoints.get(s.Attachment); has || !still {
		return nil
	}
	namespace := s.open()
	if namespace == nil {
		return nil // the next round detaches it
	}
	defer namespace.Close()
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	_, err := a.add(ctx, s.Attachment, s.request(namespace))
	if err != nil {
		s.Waits = err.Error() // which the status tells
		return a.standings.put(s)
	}
	return nil
}

// request returns the call that attached the workload, for a namespace.
func (s standing) request(namespace *os.File) cnicall.Request {
	w := s.Workload
	return cnicall.Request{
		Command: "ADD", ContainerID: s.Attachment.ContainerID, IfName: s.Attachment.IfName,
		Attach: &w, Space: s.Space, VM: s.VM, Process: s.Process, Namespace: namespace,
		Network: s.Network, Runtime: s.Runtime,
	}
}

// lose detaches a workload that cannot come back, and takes away what the command line made for it.
func (a *Agent) lose(ctx context.Context, s standing, why string) error {
	unlock := a.locks.Lock(s.Attachment)
	defer unlock()
	if _, still := a.standings.get(s.Attachment); !still {
		return nil
	}
	a.log.Warn("detaching workload: "+why, logkey.Attached, s.Workload.Name, logkey.Endpoint, s.Endpoint, logkey.Namespace, s.Space.Path)
	// The record goes last: an agent that ends in between finds it, and does this again.
	if s.Attachment.ByHand() {
		if err := netspace.Default(a.node.Config.RunDir).Remove(s.Workload.Name); err != nil {
			return err
		}
	}
	return a.remove(ctx, s.Attachment)
}

// listAttached returns what is attached from outside Nomad.
func (a *Agent) listAttached() []cnicall.Attached {
	list := []cnicall.Attached{}
	for _, s := range a.standings.all() {
		x := cnicall.Attached{
			Attached: s.Workload, Attachment: s.Attachment, Registration: s.Registration, Space: s.Space, Inode: s.Inode,
			Endpoint: s.Endpoint, Process: s.Process, Since: s.Since, Waits: s.Waits,
		}
		if ep, has := a.endpoints.get(s.Attachment); has && ep.admitted() {
			x.FabricService, x.IPv4, x.IPv6, x.Waits = ep.Admission.Service, ep.IPv4, ep.IPv6, ""
		} else if x.Waits == "" {
			x.Waits = "it is being attached"
		}
		list = append(list, x)
	}
	return list
}

// waiting returns what is attached and has no endpoint, for the status.
func (a *Agent) waiting() []api.WaitingAttachment {
	var list []api.WaitingAttachment
	for _, x := range a.listAttached() {
		if x.Waits != "" {
			list = append(list, api.WaitingAttachment{Name: x.Name, ConsulService: x.ConsulService, Endpoint: x.Endpoint, Since: x.Since, Why: x.Waits})
		}
	}
	return list
}

// sourceOf returns the registrations whose health an endpoint has.
func (a *Agent) sourceOf(ep endpoint) catalog.Source {
	if ep.Attached == nil {
		return catalog.Source{}
	}
	if s, is := a.standings.get(ep.Attachment); is {
		return s.source()
	}
	return catalog.Source{Service: ep.Attached.ConsulService}
}
