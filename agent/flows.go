// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"net/netip"
	"time"

	"gopkg.in/natefinch/lumberjack.v2"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/flow"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/wellknown"
)

const (
	// flowWordsAge is how old what is known of endpoints and names may be, for a record.
	flowWordsAge = 2 * time.Second
	// maxWords limits for how many interfaces and numbers is kept what they stand for. So the end
	// of a flow has a name also when its endpoint is gone.
	maxWords = 65_536
	// maxObservers limits how many observers of flows are served at once.
	maxObservers = 16
)

// flowWords turns what the programs recorded, which is in numbers, into records with names. It is
// not safe for concurrent use.
type flowWords struct {
	node     fabric.NodeID
	keys     keys
	revision func() uint64
	own      func() map[uint32]flow.End     // endpoints of this node, by interface
	others   func() map[netip.Addr]flow.End // all known endpoints
	names    func() map[outsideName]string  // DNS names outside, of what a service resolved
	now      func() time.Time

	parties    map[uint32]partyName
	contracts  map[uint32]fabric.Ref
	interfaces map[uint32]flow.End
	addresses  map[netip.Addr]flow.End
	resolved   map[outsideName]string
	read       time.Time // when these were read
}

// partyName is what party says of a number, which means the same for ever.
type partyName struct {
	name         fabric.Ref
	external, ok bool
}

// outsideName is an address of which a service learned by a name.
type outsideName struct {
	service fabric.Ref
	address netip.Addr
}

// refresh reads who has which address and name, unless that was done a moment ago.
func (w *flowWords) refresh() {
	if now := w.now(); now.Sub(w.read).Abs() > flowWordsAge {
		w.read = now
		if w.interfaces == nil || len(w.interfaces)+len(w.parties)+len(w.contracts) > maxWords {
			w.interfaces, w.parties, w.contracts = map[uint32]flow.End{}, map[uint32]partyName{}, map[uint32]fabric.Ref{}
		}
		for index, e := range w.own() {
			w.interfaces[index] = e
		}
		w.addresses, w.resolved = w.others(), w.names()
	}
}

// record returns the record of an event.
func (w *flowWords) record(e bpf.Event) *flow.Flow {
	w.refresh()
	f := &flow.Flow{
		Time: e.Time, Event: flow.Opened, Verdict: flow.Allow, Reason: e.Reason.String(), Overridden: e.Overridden,
		Node: w.node, Layer: flow.EBPF, Side: flow.Sender, Number: e.Flow, Opened: e.Opened, Protocol: flow.ProtocolName(e.Protocol),
		Source: w.end(e.SourceIdentity, e.Source), Destination: w.end(e.DestinationIdentity, e.Destination), Revision: w.revision(),
		Sent: flow.Traffic(e.Original), Received: flow.Traffic(e.Reply),
	}
	if !e.Reason.Allowed() {
		f.Event, f.Verdict = flow.Refused, flow.Refuse
	} else if e.Contract&bpf.AuditContract != 0 {
		f.Verdict = flow.Audit
	}
	switch {
	case e.Ended:
		f.Event = flow.Ended
	case e.GoesOn:
		f.Event = flow.GoesOn
	}
	f.Contract = w.contract(e.Contract)

	local, remote := &f.Source, &f.Destination
	if e.Direction == bpf.ToWorkload {
		local, remote, f.Side = remote, local, flow.Receiver
	}
	if own, ok := w.interfaces[e.Interface]; ok {
		// The address of a packet may not be the endpoint's.
		local.Name, local.External, local.Host, local.Endpoint, local.Node = own.Name, false, false, own.Endpoint, own.Node
	}
	switch e.Reason {
	case bpf.AllowedCheck, bpf.NoCheck, bpf.AllowedDNS:
		remote.Host = true
	}
	if remote.Address == wellknown.LinkLocal4 || remote.Address == wellknown.LinkLocal6 {
		remote.Host = true
	}
	if remote.Host {
		remote.Node = w.node
	}
	if remote.External {
		remote.DNSName = w.resolved[outsideName{local.Name, remote.Address}]
	}
	return f
}

// end returns who has an identity and an address.
func (w *flowWords) end(identity uint32, at netip.AddrPort) flow.End {
	e := flow.End{Address: at.Addr(), Port: at.Port()}
	if known, ok := w.addresses[e.Address]; ok {
		e.Name, e.Endpoint, e.Node = known.Name, known.Endpoint, known.Node
	}
	if p := w.party(identity); p.ok && (p.external || e.Endpoint == "") {
		e.Name, e.External = p.name, p.external
	}
	return e
}

func (w *flowWords) party(number uint32) partyName {
	p, known := w.parties[number]
	if !known {
		p.name, p.external, p.ok = party(w.keys, number)
		if p.ok {
			w.parties[number] = p
		}
	}
	return p
}

func (w *flowWords) contract(number uint32) fabric.Ref {
	r, known := w.contracts[number]
	if !known {
		if r, known = contractOf(w.keys, number); known {
			w.contracts[number] = r
		}
	}
	return r
}

// flowWords returns the words of this node.
func (a *Agent) flowWords() *flowWords {
	self := a.node.Self.ID()
	endOf := func(adm fabric.Admission) flow.End {
		return flow.End{Name: adm.Service, Endpoint: adm.Endpoint, Node: fabric.NodeID{Zone: adm.Zone, Name: adm.Node}}
	}
	return &flowWords{
		node: self, keys: a.num, now: time.Now, // as the times of records
		revision: func() uint64 { return a.node.Revision.Pointer().Sequence },
		own: func() map[uint32]flow.End {
			set := map[uint32]flow.End{}
			for _, ep := range a.endpoints.all() {
				if ep.HostIndex != 0 && ep.admitted() {
					set[uint32(ep.HostIndex)] = endOf(ep.Admission)
				}
			}
			return set
		},
		others: func() map[netip.Addr]flow.End {
			set := map[netip.Addr]flow.End{}
			for _, adm := range a.knownWhere(func(fabric.Admission) bool { return true }) {
				set[adm.IPv4], set[adm.IPv6] = endOf(adm), endOf(adm)
			}
			return set
		},
		names: func() map[outsideName]string {
			set := map[outsideName]string{}
			for _, n := range a.resolver.names.Named() {
				for _, address := range n.Addresses {
					set[outsideName{n.Service, address}] = n.Name
				}
			}
			return set
		},
	}
}

// serveFlows sends records to an observer.
func (a *Agent) serveFlows(ctx context.Context, t api.Task) {
	defer a.observing.Add(-1)
	if a.observing.Add(1) > maxObservers {
		a.node.TaskDone(ctx, api.TaskResult{ID: t.ID, Error: "it has as many observers of flows as it may have; end another sif flows"})
		return
	}
	// An error means that the observer is gone.
	_ = a.flows.Serve(ctx, t, func(r api.TaskResult) error { return a.node.Controller.TaskDone(ctx, r) })
}

// flowFile is the file of flows, which is rotated.
func flowFile(c *config.Flows) *lumberjack.Logger {
	return &lumberjack.Logger{Filename: c.File, MaxSize: c.RotateBytes >> 20, MaxBackups: c.RotateMaxFiles}
}

// exportFlows writes records to the file of flows, if there is to be one.
func (a *Agent) exportFlows(ctx context.Context) error {
	c := a.node.Config.Flows
	if c.File == "" {
		return nil
	}
	file := flowFile(c)
	defer func() { _ = file.Close() }() // nothing is buffered
	a.exporter.Run(ctx, a.flows, file, func(err error) { a.node.Degrade("file of flows", err) })
	return nil
}

// recordedStatus returns what is kept and what was not recorded.
func (a *Agent) recordedStatus(c bpf.Counters) *api.RecordedStatus {
	s := &api.RecordedStatus{Lost: c.LostEvents}
	s.Kept, s.Size = a.flows.Len()
	s.Exported, s.NotExported = a.exporter.Counts()
	for _, u := range c.Unrecorded {
		s.UnrecordedRefused += u.Refused
		s.UnrecordedOpened += u.Opened
	}
	return s
}
