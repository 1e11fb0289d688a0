// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/logkey"
)

const (
	// maxAudited limits the number of distinct audited flows. In a domain in audit mode, every port
	// can be one.
	maxAudited = 1000
	// maxFlows limits the number of distinct flows in a report.
	maxFlows = 1000
	// recent is the maximum age of a flow in a report.
	recent = 10 * time.Minute
)

// flowKey identifies flows that are counted together.
type flowKey struct {
	From, To, Contract fabric.Ref
	Protocol           fabric.Protocol
	Port               uint16
}

func (k flowKey) status(n uint64, last time.Time) api.FlowStatus {
	return api.FlowStatus{From: k.From, To: k.To, Contract: k.Contract, Protocol: k.Protocol, Port: k.Port, Count: n, Last: last}
}

func compareFlows(a, b api.FlowStatus) int {
	return cmp.Or(fabric.CompareRefs(a.From, b.From), fabric.CompareRefs(a.To, b.To), fabric.CompareRefs(a.Contract, b.Contract),
		cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

// keys returns the text of the key that a number stands for.
type keys interface{ Name(uint32) string }

// partyOf returns the party that has a number in the maps.
func partyOf(n keys, number uint32) (desired.Party, bool) {
	key, err := desired.ParseKey(n.Name(number))
	if err != nil {
		return "", false
	}
	k, ok := key.(desired.PartyKey)
	return k.Party, ok
}

// party returns the service, or the first of the externals, that has a number in the maps.
func party(n keys, number uint32) (r fabric.Ref, external, ok bool) {
	p, ok := partyOf(n, number)
	if !ok {
		return r, false, false
	}
	r, err := p.Name()
	return r, p.External(), err == nil
}

// contractOf returns the contract that has a number in the maps.
func contractOf(n keys, number uint32) (fabric.Ref, bool) {
	key, err := desired.ParseKey(n.Name(number &^ bpf.AuditContract))
	if err != nil {
		return fabric.Ref{}, false
	}
	k, ok := key.(desired.ContractKey)
	return k.Contract, ok
}

// audited counts the flows that pass only because of audit mode. It is safe for concurrent use. The
// zero value is empty.
type audited struct {
	mu    sync.Mutex
	flows map[flowKey]api.FlowStatus
}

// add counts a flow and reports whether it is the first of its kind. Beyond maxAudited kinds, flows
// are counted without their port.
func (a *audited) add(k flowKey, at time.Time) (first bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.flows == nil {
		a.flows = map[flowKey]api.FlowStatus{}
	}
	f, known := a.flows[k]
	if !known && len(a.flows) >= maxAudited {
		k.Port = 0
		f, known = a.flows[k]
	}
	a.flows[k] = k.status(f.Count+1, at)
	return !known
}

func (a *audited) all() []api.FlowStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.SortedFunc(maps.Values(a.flows), compareFlows)
}

// auditedFlow returns the flow of an event that would have been dropped without audit mode. Both
// ends report a flow between endpoints; only the originator's report counts.
func auditedFlow(n keys, e bpf.Event) (k flowKey, ok bool) {
	if e.Reason != bpf.AllowedContract || e.Contract&bpf.AuditContract == 0 || !e.Begins() {
		return k, false
	}
	from, external, fromOK := party(n, e.SourceIdentity)
	to, _, toOK := party(n, e.DestinationIdentity)
	contract, contractOK := contractOf(n, e.Contract)
	counts := external || e.Direction == bpf.FromWorkload
	return flowKey{from, to, contract, fabric.Protocol(e.Protocol), e.Destination.Port()}, counts && fromOK && toOK && contractOK
}

// watchEvents records flows, counts and logs those that pass because of audit mode, and logs
// dropped packets at trace level.
func (a *Agent) watchEvents(ctx context.Context) error {
	events, err := a.kernel.Events(ctx)
	if err != nil {
		return err
	}
	words := a.flowWords()
	for e := range events {
		a.flows.Add(words.record(e))
		if k, ok := auditedFlow(a.num, e); ok {
			if a.audited.add(k, e.Time) {
				a.log.Warn("flow passed only because of audit mode", logkey.Service, k.From, logkey.To, k.To,
					logkey.Contract, k.Contract, logkey.Protocol, k.Protocol, logkey.Port, k.Port, logkey.From, e.Source, logkey.Address, e.Destination)
			}
			continue
		}
		if !e.Reason.Allowed() && a.log.IsTrace() {
			a.log.Trace("dropped", logkey.Reason, e.Reason, logkey.Direction, e.Direction, logkey.Protocol, e.Protocol,
				logkey.From, e.Source, logkey.Address, e.Destination)
		}
	}
	return nil
}

// flows summarises the recent connections that endpoints of this node, or externals, opened.
func flows(n keys, connections []bpf.Connection, now time.Time) []api.FlowStatus {
	set := map[flowKey]api.FlowStatus{}
	for _, c := range connections {
		contract, ok := contractOf(n, c.Contract)
		local, _, localOK := party(n, c.LocalIdentity)
		remote, external, remoteOK := party(n, c.RemoteIdentity)
		if !ok || !localOK || !remoteOK || c.Idle > recent || !c.Outbound && !external {
			continue
		}
		k := flowKey{From: local, To: remote, Contract: contract, Protocol: fabric.Protocol(c.Protocol), Port: c.Remote.Port()}
		if !c.Outbound {
			k.From, k.To, k.Port = remote, local, c.Local.Port()
		}
		switch k.Protocol { // their connections are echoes
		case fabric.ICMP:
			k.Port = 8
		case fabric.ICMPv6:
			k.Port = 128
		}
		f, last := set[k], now.Add(-c.Idle)
		if last.Before(f.Last) {
			last = f.Last
		}
		set[k] = k.status(f.Count+1, last.Truncate(time.Second))
	}
	list := slices.Collect(maps.Values(set))
	if len(list) > maxFlows {
		slices.SortFunc(list, func(a, b api.FlowStatus) int { return b.Last.Compare(a.Last) })
		list = list[:maxFlows]
	}
	slices.SortFunc(list, compareFlows)
	return list
}
