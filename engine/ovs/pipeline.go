// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	of "github.com/sif-project/sif/engine/openflow"
)

// Pipeline keeps the flows of one bridge. It holds what is wanted; the switch
// holds what is enforced, and keeps it when this process stops.
//
// A change that the switch refuses is not remembered. After any other error it
// is open whether the change was made: it is remembered as wanted, and Reconcile
// settles it.
type Pipeline struct {
	zone    uint16
	settler settler

	mu        sync.Mutex // held during a change, so that changes keep their order
	conn      *of.Conn
	ports     map[uint32]Port
	endpoints map[uint64]Endpoint
	entries   map[uint64]Entry
	prefixes  map[netip.Prefix]uint64       // whose prefix it is
	policy    map[of.Key]map[uint64]of.Flow // the entries that want a policy flow
	passAll   bool
}

// NewPipeline is an empty pipeline. zone is the connection tracking zone, which
// no other bridge of the same switch may use. wait returns when the switch has
// compared the datapath with its tables once more: Switch.Revalidated. Nothing
// is written before Attach.
func NewPipeline(zone uint16, wait func(context.Context) error) *Pipeline {
	p := &Pipeline{zone: zone, settler: settler{wait: wait}}
	p.forget()
	return p
}

func (p *Pipeline) forget() {
	p.ports = map[uint32]Port{}
	p.endpoints = map[uint64]Endpoint{}
	p.entries = map[uint64]Entry{}
	p.prefixes = map[netip.Prefix]uint64{}
	p.policy = map[of.Key]map[uint64]of.Flow{}
}

// ErrDetached says that the pipeline has no connection to the switch.
var ErrDetached = errors.New("no connection to the switch")

// Diff is what a switch had that was not wanted, and lacked that was.
type Diff struct {
	Added, Removed []of.Flow
	Changed        []Change
}

// Change is a flow that was there, but not as wanted.
type Change struct {
	Have of.FlowStats
	Want of.Flow
}

// Empty says that the switch was as wanted.
func (d Diff) Empty() bool { return len(d.Added)+len(d.Changed)+len(d.Removed) == 0 }

// Attach makes conn the pipeline's connection, the first or after one that
// ended, but changes nothing in the switch. Dump may be called then, to learn
// what an earlier process left; Replace or Reconcile comes next.
func (p *Pipeline) Attach(conn *of.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn = conn
}

// SetPort adds a port or changes it.
func (p *Pipeline) SetPort(ctx context.Context, port Port) error {
	if err := port.check(); err != nil {
		return err
	}
	return p.enforce(ctx, fmt.Sprintf("set port %d", port.No), func() (bool, error) {
		return p.change(ctx, p.ports[port.No].wanted(), port.flows(), func() { p.ports[port.No] = port })
	})
}

// wanted is flows, for a port that exists: a map's zero value has none.
func (p Port) wanted() []of.Flow {
	if p.No == 0 {
		return nil
	}
	return p.flows()
}

// DeletePort removes a port. Endpoints that are reached by it stay, unreachable.
func (p *Pipeline) DeletePort(ctx context.Context, no uint32) error {
	return p.enforce(ctx, fmt.Sprintf("delete port %d", no), func() (bool, error) {
		return p.change(ctx, p.ports[no].wanted(), nil, func() { delete(p.ports, no) })
	})
}

// PutEndpoint adds an endpoint or replaces the one with its ID. It fails if a
// prefix is another's.
func (p *Pipeline) PutEndpoint(ctx context.Context, e Endpoint) error {
	if err := e.check(); err != nil {
		return err
	}
	return p.enforce(ctx, fmt.Sprintf("put endpoint %d", e.ID), func() (bool, error) {
		if err := p.free(e); err != nil {
			return false, err
		}
		return p.change(ctx, p.endpoints[e.ID].flows(), e.flows(), func() { p.keepEndpoint(e) })
	})
}

func (p *Pipeline) free(e Endpoint) error {
	for _, prefix := range e.Prefixes {
		if owner, ok := p.prefixes[prefix]; ok && owner != e.ID {
			return fmt.Errorf("%s belongs to endpoint %d, not to %d", prefix, owner, e.ID)
		}
	}
	return nil
}

func (p *Pipeline) keepEndpoint(e Endpoint) {
	p.dropEndpoint(e.ID)
	p.endpoints[e.ID] = e
	for _, prefix := range e.Prefixes {
		p.prefixes[prefix] = e.ID
	}
}

func (p *Pipeline) dropEndpoint(id uint64) {
	for _, prefix := range p.endpoints[id].Prefixes {
		delete(p.prefixes, prefix)
	}
	delete(p.endpoints, id)
}

// DeleteEndpoint removes an endpoint; its connections stop at once.
func (p *Pipeline) DeleteEndpoint(ctx context.Context, id uint64) error {
	return p.enforce(ctx, fmt.Sprintf("delete endpoint %d", id), func() (bool, error) {
		return p.change(ctx, p.endpoints[id].flows(), nil, func() { p.dropEndpoint(id) })
	})
}

// PutEntry adds an entry or replaces the one with its ID. Where two entries
// admit the same packets, new connections are labelled with the lower number.
func (p *Pipeline) PutEntry(ctx context.Context, e Entry) error {
	if err := e.check(); err != nil {
		return err
	}
	return p.enforce(ctx, fmt.Sprintf("put entry %d", e.ID), func() (bool, error) {
		return p.changeEntry(ctx, e.ID, &e)
	})
}

// DeleteEntry removes an entry. When it returns, no packet of a connection that
// the entry admitted passes in either direction, unless another entry admits
// that very packet.
func (p *Pipeline) DeleteEntry(ctx context.Context, id uint64) error {
	return p.enforce(ctx, fmt.Sprintf("delete entry %d", id), func() (bool, error) {
		return p.changeEntry(ctx, id, nil)
	})
}

// changeEntry replaces entry id by e, or removes it if e is nil.
func (p *Pipeline) changeEntry(ctx context.Context, id uint64, e *Entry) (bool, error) {
	old, existed := p.entries[id]
	var before, after []of.Flow
	keys := map[of.Key]bool{}
	if existed {
		before = old.stateFlows()
		for _, f := range old.policyFlows(p.zone) {
			keys[f.Key] = true
		}
	}
	if e != nil {
		after = e.stateFlows()
		for _, f := range e.policyFlows(p.zone) {
			keys[f.Key] = true
		}
	}
	before = append(before, p.policyOf(keys)...)
	if existed {
		p.dropEntry(old)
	}
	if e != nil {
		p.keepEntry(*e)
	}
	after = append(after, p.policyOf(keys)...)
	took, err := p.change(ctx, before, after, func() {})
	if refused := (*of.Error)(nil); errors.As(err, &refused) {
		if e != nil {
			p.dropEntry(*e)
		}
		if existed {
			p.keepEntry(old)
		}
	}
	return took, err
}

// policyOf is the wanted policy flows among keys.
func (p *Pipeline) policyOf(keys map[of.Key]bool) []of.Flow {
	var flows []of.Flow
	for key := range keys {
		if wants := p.policy[key]; len(wants) > 0 {
			flows = append(flows, wants[slices.Min(slices.Collect(maps.Keys(wants)))])
		}
	}
	return flows
}

func (p *Pipeline) keepEntry(e Entry) {
	p.entries[e.ID] = e
	for _, f := range e.policyFlows(p.zone) {
		if p.policy[f.Key] == nil {
			p.policy[f.Key] = map[uint64]of.Flow{}
		}
		p.policy[f.Key][e.ID] = f
	}
}

func (p *Pipeline) dropEntry(e Entry) {
	delete(p.entries, e.ID)
	for _, f := range e.policyFlows(p.zone) {
		delete(p.policy[f.Key], e.ID)
		if len(p.policy[f.Key]) == 0 {
			delete(p.policy, f.Key)
		}
	}
}

// SetPassAll switches the policy off, for tests of the other layers: every
// packet to a known destination passes, whoever sent it. It does not survive
// this process: the next one's Replace takes it back.
func (p *Pipeline) SetPassAll(ctx context.Context, on bool) error {
	return p.enforce(ctx, fmt.Sprintf("set pass-all %t", on), func() (bool, error) {
		var before, after []of.Flow
		if p.passAll {
			before = passAllFlows()
		}
		if on {
			after = passAllFlows()
		}
		return p.change(ctx, before, after, func() { p.passAll = on })
	})
}

// PassAll says that the policy is switched off. A status must show it.
func (p *Pipeline) PassAll() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.passAll
}

// enforce runs a change, which tells whether it took something away, and then
// waits until that is so in the datapath too.
func (p *Pipeline) enforce(ctx context.Context, what string, change func() (bool, error)) error {
	p.mu.Lock()
	took, err := change()
	p.mu.Unlock()
	if err == nil && took {
		err = p.Settle(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// change turns flows before into flows after and remembers it by keep, unless
// the switch refuses. It tells whether a flow was changed or removed.
func (p *Pipeline) change(ctx context.Context, before, after []of.Flow, keep func()) (bool, error) {
	have := make(map[of.Key]of.Flow, len(before))
	for _, f := range before {
		have[f.Key] = f
	}
	var mods []of.FlowMod
	took := false
	for _, f := range after {
		old, ok := have[f.Key]
		if !ok || old != f {
			mods = append(mods, of.Add(f))
		}
		took = took || ok && old != f
		delete(have, f.Key)
	}
	for key := range have {
		took = true
		mods = append(mods, of.DeleteStrict(key))
	}
	err := p.write(ctx, mods)
	if refused := (*of.Error)(nil); errors.As(err, &refused) {
		return took, err
	}
	keep()
	return took, err
}

// Settle returns when packets meet the tables as they were when it was called.
// The datapath remembers decisions, and the switch corrects them a few
// milliseconds after its tables changed. What takes something away waits by
// itself; after what only adds, the caller may wait to be sure that the next
// packet passes.
func (p *Pipeline) Settle(ctx context.Context) error {
	p.mu.Lock()
	conn := p.conn
	p.mu.Unlock()
	if conn == nil {
		return ErrDetached
	}
	return p.settler.settle(ctx, conn)
}

func (p *Pipeline) write(ctx context.Context, mods []of.FlowMod) error {
	if p.conn == nil {
		return ErrDetached
	}
	if len(mods) == 0 {
		return nil
	}
	do := p.conn.Bundle
	if len(mods) == 1 {
		do = p.conn.Apply // one change is whole anyway, and needs no bundle
	}
	return do(ctx, mods...)
}
