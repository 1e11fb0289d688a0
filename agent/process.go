// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/sif-project/sif/agent/probe"
	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/hostport"
	"github.com/sif-project/sif/internal/wellknown"
)

// process is a process of the node's own network namespace that has an endpoint.
type process struct {
	Slot  int             `json:"slot"` // of the node; -1: none yet
	Ports []hostport.Port `json:"ports,omitempty"`
	Group hostport.Group  `json:"group,omitempty"`
}

// newProcess returns what a call asks for, with the slot that it had before; nil if it asks for
// none.
func newProcess(asked *cnicall.Process, before *process) (*process, error) {
	if asked == nil {
		return nil, nil
	}
	p := &process{Slot: -1}
	if before != nil {
		p.Slot = before.Slot
	}
	for _, text := range asked.Ports {
		port, err := hostport.ParsePort(text)
		if err != nil {
			return nil, types.NewError(types.ErrInvalidEnvironmentVariables, err.Error(), "")
		}
		p.Ports = append(p.Ports, port)
	}
	if asked.Cgroup != "" {
		group, err := hostport.ParseGroup(asked.Cgroup)
		if err != nil {
			return nil, types.NewError(types.ErrInvalidEnvironmentVariables, err.Error(), "")
		}
		p.Group = group
	}
	return p, nil
}

// checkProcess returns an error if a process of the node cannot have what it asks for.
func (a *Agent) checkProcess(s standing) error {
	p, err := newProcess(s.Process, &process{})
	if err != nil || p == nil {
		return err
	}
	sample := endpoint{Process: p, IPv4: netip.IPv4Unspecified(), IPv6: netip.IPv6Unspecified(), Attachment: s.Attachment}
	err = a.processWay(sample).Check()
	if err == nil && s.VM {
		err = errors.New("a virtual machine has a network namespace of its own; only a process of the node needs the endpoint of another one")
	}
	if err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, err.Error(), "")
	}
	return nil
}

// processWay returns the way between the node and the endpoint of a process.
func (a *Agent) processWay(ep endpoint) hostport.Attachment {
	reached := a.processes.addresses(ep.Process.Slot)
	return hostport.Attachment{
		Slot: ep.Process.Slot, Interface: ep.Attachment.IfName, IPv4: ep.IPv4, IPv6: ep.IPv6, MTU: a.workloadMTU(),
		Ports: ep.Process.Ports, Group: ep.Process.Group, Reached: reached.Reached, Spared: reached.Spared,
	}
}

// processes are those of the node that have endpoints. The zero value is ready to use.
type processes struct {
	host hostport.Host

	keeping sync.Mutex // serialises keepProcesses
	none    bool       // nothing is left to take away; guarded by keeping

	mu      sync.Mutex
	taken   map[int]cnicall.Attachment // slots
	reached map[int]hostport.Addresses // by slot
}

// slotHook gives an endpoint of a process of the node its slot.
type slotHook struct{ *Agent }

func (slotHook) name() string { return "slot" }

func (h slotHook) attach(_ context.Context, at *attachment) error {
	p := at.endpoint.Process
	if p == nil {
		return nil
	}
	slot, ok := h.processes.take(at.endpoint, h.endpoints.all())
	if !ok {
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("%d processes of this node have endpoints, and no more can", wellknown.MaxHosts), "")
	}
	with := *p // the endpoint's value may be in the set
	with.Slot = slot
	at.endpoint.Process = &with
	return nil
}

func (h slotHook) detach(_ context.Context, d *detachment) error {
	h.processes.release(d.endpoint.Attachment)
	return nil
}

// take returns the endpoint's slot, or a free one.
func (p *processes) take(ep endpoint, all []endpoint) (slot int, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken == nil {
		p.taken = map[int]cnicall.Attachment{}
	}
	for _, other := range all {
		if other.Process != nil {
			p.taken[other.Process.Slot] = other.Attachment
		}
	}
	if had := ep.Process.Slot; had >= 0 && (p.taken[had] == cnicall.Attachment{} || p.taken[had] == ep.Attachment) {
		p.taken[had] = ep.Attachment
		return had, true
	}
	for slot := range wellknown.MaxHosts {
		if _, is := p.taken[slot]; !is {
			p.taken[slot] = ep.Attachment
			return slot, true
		}
	}
	return 0, false
}

func (p *processes) release(at cnicall.Attachment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for slot, by := range p.taken {
		if by == at {
			delete(p.taken, slot)
		}
	}
}

func (p *processes) addresses(slot int) hostport.Addresses {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reached[slot]
}

// processHook makes the way between the node and the endpoint. The endpoint's own interface is up
// by then, with its programs.
type processHook struct{ *Agent }

func (processHook) name() string { return "process of the node" }

func (h processHook) attach(_ context.Context, at *attachment) error {
	if at.endpoint.Process == nil {
		return nil
	}
	err := h.keepProcesses(at)
	if err == nil {
		return nil
	}
	// The kernel does not say which part of a table it does not know.
	return errors.Join(err, hostport.Try(at.endpoint.Process.Group != ""))
}

// detach takes the way away. The endpoint is no longer known.
func (h processHook) detach(_ context.Context, d *detachment) error {
	if d.endpoint.Process == nil {
		return nil
	}
	return h.keepProcesses(nil)
}

// keepProcesses makes or repairs the ways between the node and the endpoints of its processes, and
// takes away those of others. What differed is told as repaired, apart from what concerns the
// attachment in progress.
func (a *Agent) keepProcesses(at *attachment) error {
	p := &a.processes
	p.keeping.Lock()
	defer p.keeping.Unlock()
	var list []hostport.Placed
	for _, ep := range a.endpoints.all() {
		if ep.Process == nil || ep.HostIndex == 0 {
			continue
		}
		placed := hostport.Placed{Attachment: a.processWay(ep)}
		if at != nil && at.endpoint.Attachment == ep.Attachment {
			placed.Namespace = at.namespace
		} else if namespace, err := a.namespaces.Find(ep.HostIf); err == nil {
			defer namespace.Close()
			placed.Namespace = namespace
		} else if !errors.Is(err, probe.ErrNoNamespace) {
			if there, _ := a.present(ep); there {
				return err
			}
		}
		list = append(list, placed)
	}
	if len(list) == 0 && p.none {
		return nil
	}
	changes, err := p.host.Ensure(list)
	p.none = len(list) == 0 && err == nil
	if at == nil {
		a.node.Repaired(changes)
	}
	return err
}

// refresh has the node's namespace follow cgroups, sockets, and what may be reached.
func (p *processes) refresh() error {
	p.mu.Lock()
	reached := p.reached
	p.mu.Unlock()
	return p.host.Refresh(reached)
}

// reach computes what processes of the node reach by their endpoints: the fabric, and what of the
// outside their contracts lead to. That they may is decided elsewhere.
func (p *processes) reach(live []endpoint, w desired.Workload, ranges []netip.Prefix) {
	reached := map[int]hostport.Addresses{}
	for _, ep := range live {
		if ep.Process != nil {
			reached[ep.Process.Slot] = reachOf(w, ep.ID, ranges)
		}
	}
	p.mu.Lock()
	p.reached = reached // a new map: refresh reads the old one without the lock
	p.mu.Unlock()
}

func reachOf(w desired.Workload, id string, ranges []netip.Prefix) hostport.Addresses {
	callees := map[desired.Party]bool{}
	for _, e := range w.Endpoints {
		if e.Endpoint != id {
			continue
		}
		for _, r := range w.Rules {
			if r.From == e.Party {
				callees[r.To] = true
			}
		}
	}
	a := hostport.Addresses{Reached: slices.Clone(ranges)}
	var others []netip.Prefix
	for prefix, x := range w.Externals {
		first := prefix.Addr()
		switch {
		case first.IsLoopback() || first.IsMulticast() || first.IsLinkLocalUnicast():
		case x.Party != "" && callees[x.Party]:
			a.Reached = append(a.Reached, prefix)
		default:
			others = append(others, prefix)
		}
	}
	// The longest prefix decides.
	for _, o := range others {
		if !slices.ContainsFunc(a.Reached, func(r netip.Prefix) bool { return r.Bits() < o.Bits() && r.Contains(o.Addr()) }) {
			continue
		}
		a.Spared = append(a.Spared, carve(o, a.Reached)...)
	}
	slices.SortFunc(a.Reached, comparePrefixes)
	slices.SortFunc(a.Spared, comparePrefixes)
	return a
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// carve returns what is left of a prefix without those within it.
func carve(p netip.Prefix, holes []netip.Prefix) []netip.Prefix {
	holes = slices.DeleteFunc(slices.Clone(holes), func(h netip.Prefix) bool { return h.Bits() < p.Bits() || !p.Contains(h.Addr()) })
	switch {
	case len(holes) == 0:
		return []netip.Prefix{p}
	case slices.ContainsFunc(holes, func(h netip.Prefix) bool { return h.Bits() == p.Bits() }):
		return nil
	}
	lower := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	second, _ := netip.AddrFromSlice(b)
	return append(carve(lower, holes), carve(netip.PrefixFrom(second, p.Bits()+1), holes)...)
}

// status returns what the status says of the process of an endpoint; nil if it has none.
func (p *processes) status(ep endpoint) *api.Process {
	if ep.Process == nil {
		return nil
	}
	s := &api.Process{Cgroup: string(ep.Process.Group)}
	for _, port := range ep.Process.Ports {
		s.Ports = append(s.Ports, port.String())
	}
	for _, found := range p.host.Status() {
		if found.Slot == ep.Process.Slot {
			s.NoCgroup = found.NoGroup
			for _, port := range found.Silent {
				s.Silent = append(s.Silent, port.String())
			}
		}
	}
	return s
}
