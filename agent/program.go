// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/daemon"
	"github.com/sif-project/sif/internal/outside/registered"
)

// Datapath is the node's eBPF data path. It keeps working when the agent stops.
type Datapath interface {
	Attach(ifName string) (missing []string, err error)
	Detach(ifName string) error
	Attached() ([]string, error)
	Guarded(ifName string) error
	AttachGuest(hostIf, tap, peer string, g bpf.Guest) (missing []string, err error)
	DetachGuest(hostIf string) error
	Guests() ([]string, error)
	GuestFrames(hostIf string) (map[bpf.Frame]uint64, error)
	Repair() ([]string, error)
	PutEndpoint(bpf.Endpoint) error
	DeleteEndpoint(ifindex uint32) error
	Connections() ([]bpf.Connection, error)
	Endpoints() ([]bpf.Endpoint, error)
	PutPeer(bpf.Peer) error
	DeletePeer(netip.Addr) error
	Peers() ([]bpf.Peer, error)
	PutExternal(bpf.External) error
	DeleteExternal(bpf.External) error
	Externals() ([]bpf.External, error)
	PutCheck(bpf.Check) error
	DeleteCheck(bpf.Check) error
	Checks() ([]bpf.Check, error)
	PutPublished(bpf.Published) error
	DeletePublished(bpf.Published) error
	Published() ([]bpf.Published, error)
	SetExits(marks []uint32) error
	Exits() ([]uint32, error)
	SetWays(map[bpf.Way]uint32) error
	Ways() (map[bpf.Way]uint32, error)
	SetClasses(map[uint32]uint16) error
	Classes() (map[uint32]uint16, error)
	SetLinks(interfaces []uint32) error
	Links() ([]uint32, error)
	ReplacePair(bpf.Pair, []bpf.Rule) error
	Pairs() (map[bpf.Pair][]bpf.Rule, error)
}

// program computes the desired content of the maps and writes the difference to what was written
// last.
func (a *Agent) program() error {
	a.programming.Lock()
	defer a.programming.Unlock()
	enforced := a.node.Enforcing()
	want, lacking, err := a.wanted()
	if err != nil {
		a.target = image{} // not known
		return err
	}
	// Before the maps, so that what they let out is not dropped on its way.
	egress := a.firewall.SetEgress(want.egress, want.withheld)
	if err = a.apply(want); err == nil {
		enforced()
	}
	return errors.Join(egress, err, a.processes.refresh(), lacking)
}

// programFor is program, but succeeds if the kernel has all that concerns the endpoint. An entry
// that it does not have is the trouble of those whom it concerns, and the next Reconcile reports
// it.
func (a *Agent) programFor(adm fabric.Admission) error {
	err := a.reprogram.Call()
	if err == nil || !a.inKernel(adm) {
		return err
	}
	a.node.Degrade("data path", err)
	return nil
}

// inKernel reports whether the kernel has all that it must have of an endpoint.
func (a *Agent) inKernel(adm fabric.Admission) bool {
	a.programming.Lock()
	defer a.programming.Unlock()
	return a.target.peers != nil && !a.lacking.concerns(adm) && a.written.holds(a.target, adm.IPv4, adm.IPv6)
}

// apply writes the difference to what was written last. The caller must hold programming.
func (a *Agent) apply(want image) error {
	a.target = want
	if reflect.DeepEqual(a.written, want) {
		return nil
	}
	if _, err := write(a.data, a.written, want); err != nil {
		// Some of the changes may have been made. The maps tell which, and the next call writes the
		// rest.
		if have, err := readImage(a.data); err == nil {
			a.written = have
			a.written.egress, a.written.withheld = want.egress, want.withheld
		}
		return fmt.Errorf("program the data path: %w", err)
	}
	a.written = want
	return nil
}

// Reconcile compares the maps in the kernel with the desired state, repairs them, and counts what
// it repaired.
func (a *Agent) Reconcile() error {
	a.programming.Lock()
	defer a.programming.Unlock()
	began, enforced := time.Now(), a.node.Enforcing()
	want, lacking, err := a.wanted()
	if err != nil {
		return err
	}
	// Changes that were not written yet are not differences, so they are written first. After a
	// start nothing is known to be written, and the maps must be read before they are changed.
	started := a.written.pairs != nil
	outside := a.firewall.SetEgress(want.egress, want.withheld)
	if started {
		if err := a.apply(want); err != nil {
			a.log.Warn("cannot program the data path, trying again", logkey.Error, err)
		}
	}
	have, err := readImage(a.data)
	if err != nil {
		return fmt.Errorf("read the data path: %w", err)
	}
	changes, err := write(a.data, have, want)
	if err == nil {
		enforced()
		a.written = want
		var d api.Dump
		if d, err = a.describe(want, a.wayNames()); err == nil {
			d.Outside = a.writtenOutside
			a.node.Compared(began, d, len(changes))
		}
	}
	if started {
		a.node.PutBack(kindEntry, changes)
	} else if len(changes) > 0 {
		a.log.Info("the data path was brought to the declared state", logkey.Repaired, changes)
	}
	return errors.Join(err, outside, lacking)
}

// documents returns the documents of the revision in force, without expired contracts.
func (a *Agent) documents() map[fabric.Ref]fabric.Document {
	return fabric.DocumentsAt(a.node.Revision.Documents(), a.now())
}

// wanted computes what the maps must contain. lacking says what of it is left out because it has no
// number; the rest is written nevertheless, removals above all. The caller must hold programming.
func (a *Agent) wanted() (want image, lacking, err error) {
	live := a.live()
	l := layout{num: a.num, own: map[string]uint32{}}
	var endpoints []fabric.Admission
	for _, ep := range live {
		l.own[ep.ID] = uint32(ep.HostIndex)
		endpoints = append(endpoints, ep.Admission)
	}
	for _, le := range a.counterparts.All(a.now()) {
		switch {
		case le.Admission.Host() == a.node.Self.ID(): // its own endpoints it knows itself
		case a.node.Verifier().Void(le.Request, le.Admission) != nil: // it may have been verified before it was revoked, and stored after
		default:
			endpoints = append(endpoints, le.Admission)
		}
	}
	// A failed lookup must not remove what is enforced.
	underlay, err := linkIndex(a.node.Config.Underlay.Interface)
	if err != nil {
		return image{}, nil, err
	}
	l.underlay = uint32(underlay)
	if l.links, err = a.links(); err != nil {
		return image{}, nil, err
	}
	l.zone, l.marks = a.node.Self.Zone, a.processorMarks()
	l.exits = a.chooseExits(live)
	l.reject, l.gone = a.certain(live), a.ended.addresses(a.now())
	if l.published, err = a.ports.published(); err != nil {
		return image{}, nil, err
	}
	docs := a.documents()
	a.writtenOutside = a.outside(docs)
	w := desired.ForWorkload(a.node.Self.ID(), a.node.Topology(), endpoints, docs, a.writtenOutside)
	if l.ways, err = a.numberWays(w); err != nil {
		return image{}, nil, err
	}
	want, err = l.image(w)
	want.egress, want.withheld = egressOf(w)
	a.processes.reach(live, w, a.node.Self.Ranges)
	a.lacking = nil
	if errors.As(err, &a.lacking) {
		lacking, err = fmt.Errorf("compute the data path: %w", err), nil
	}
	return want, lacking, err
}

// numberWays returns the numbers of groups and classes. The first time they are those of an earlier
// agent, so that a restart moves nothing. The caller must hold programming.
func (a *Agent) numberWays(w desired.Workload) (*wayNumbers, error) {
	if a.wayNumbers != nil {
		return a.wayNumbers, nil
	}
	peers, err := a.data.Peers()
	if err != nil {
		return nil, err
	}
	classes, err := a.data.Classes()
	if err != nil {
		return nil, err
	}
	a.wayNumbers = &wayNumbers{}
	a.wayNumbers.resume(w, a.num, peers, classes)
	return a.wayNumbers, nil
}

// processorMarks returns the marks of packets to the processors of the zone.
func (a *Agent) processorMarks() map[fabric.NodeID]uint32 {
	marks := map[fabric.NodeID]uint32{}
	for _, e := range a.node.Exits() {
		marks[e.Processor] = e.Mark
	}
	return marks
}

// wayNames returns what the numbers of ways stand for. The caller must hold programming.
func (a *Agent) wayNames() wayNames { return a.wayNumbers.names(a.processorMarks()) }

// outside returns what the node knows of the outside besides the documents.
func (a *Agent) outside(docs map[fabric.Ref]fabric.Document) fabric.Outside {
	a.registered.Follow(docs)
	known := a.reservations()
	known.Named, known.Registered = a.resolver.names.Named(), a.registered.Registered()
	return known
}

// certain returns the endpoints whose refusals are certain, so that they are told of them: what
// they may reach is in force here, and nothing is missing of what the engines know.
func (a *Agent) certain(live []endpoint) map[string]bool {
	if len(a.engines.uncompared()) > 0 || a.lacking != nil || len(a.node.Revision.Degraded()) > 0 {
		return nil
	}
	certain := map[string]bool{}
	documents := a.node.Revision.Documents()
	for _, ep := range live {
		doc, known := documents[ep.Admission.Service]
		unknown := slices.ContainsFunc(registered.ServicesOf(doc), func(s registered.Service) bool { return !a.registered.Answered(s) })
		certain[ep.ID] = known && !doc.Silent && !unknown && len(a.engines.pendingOf(ep.Attachment)) == 0
	}
	return certain
}

// live returns the endpoints of this node that have an interface and a valid admission, and are not
// revoked.
func (a *Agent) live() []endpoint {
	now := a.now()
	return slices.DeleteFunc(a.endpoints.all(), func(ep endpoint) bool {
		return ep.HostIndex == 0 || !a.holds(ep, now) || a.revoked(ep) != nil
	})
}

// holds reports whether the admission of an endpoint of this node has not expired at now, or is
// honoured beyond that because of an outage.
func (a *Agent) holds(ep endpoint, now time.Time) bool {
	return a.node.Holds(ep.Admission.Expires, now)
}

// honoured returns the number of endpoints, of this node and of others, that are in force beyond
// the end of their admissions.
func (a *Agent) honoured() int {
	now := a.now()
	n := a.counterparts.Honoured(now)
	for _, ep := range a.live() {
		if !now.Before(ep.Admission.Expires) {
			n++
		}
	}
	return n
}

// links returns the interfaces of the links that exist: the link to the nodes of the zone, and the
// links to the processors of the zone.
func (a *Agent) links() (map[desired.Way]uint32, error) {
	peers := []fabric.NodeID{daemon.ZonePeer.Processor}
	for _, n := range a.node.Nodes() {
		if n.Boundary() && n.Zone == a.node.Self.Zone {
			peers = append(peers, n.ID())
		}
	}
	links := map[desired.Way]uint32{}
	for _, peer := range peers {
		name, ok := a.node.Links.Interface(desired.Hop{Processor: peer})
		if !ok {
			continue
		}
		index, err := linkIndex(name)
		if err != nil {
			return nil, err
		}
		if index != 0 {
			links[desired.Through(peer)] = uint32(index)
		}
	}
	return links, nil
}
