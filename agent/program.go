// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/daemon"
)

// Datapath is the node's data path, which lives on when the agent stops.
type Datapath interface {
	Attach(ifName string) error
	Detach(ifName string) error
	Attached() ([]string, error)
	PutEndpoint(bpf.Endpoint) error
	DeleteEndpoint(ifindex uint32) error
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
	ReplacePair(bpf.Pair, []bpf.Rule) error
	Pairs() (map[bpf.Pair][]bpf.Rule, error)
}

// image is the content of the data path's maps.
type image struct {
	endpoints map[uint32]bpf.Endpoint // by interface index
	peers     map[netip.Addr]bpf.Peer
	externals map[kernelExternal]bpf.External
	checks    map[bpf.Check]bool
	pairs     map[bpf.Pair][]bpf.Rule // canonical
}

func newImage() image {
	return image{
		endpoints: map[uint32]bpf.Endpoint{}, peers: map[netip.Addr]bpf.Peer{}, externals: map[kernelExternal]bpf.External{},
		checks: map[bpf.Check]bool{}, pairs: map[bpf.Pair][]bpf.Rule{},
	}
}

// imageOf lays a kernelState out as the maps hold it.
func imageOf(s kernelState) image {
	im := newImage()
	for _, ep := range s.Endpoints {
		index := uint32(ep.Index)
		im.endpoints[index] = bpf.Endpoint{Interface: index, Identity: ep.Identity, IPv4: ep.IPv4, IPv6: ep.IPv6}
		for _, c := range ep.Checks {
			im.checks[bpf.Check{Interface: index, Protocol: uint8(c.Protocol), Port: c.Port}] = true
		}
	}
	for addr, p := range s.Peers {
		im.peers[addr] = bpf.Peer{Address: addr, Identity: p.Identity, Interface: uint32(p.Index)}
	}
	for x, identity := range s.Externals {
		im.externals[x] = bpf.External{Prefix: x.Prefix, Identity: identity, Interface: uint32(x.Index)}
	}
	for pair, rules := range s.Pairs {
		var list []bpf.Rule
		for _, r := range rules {
			contract := r.Contract
			if r.Audit {
				contract |= bpf.AuditContract
			}
			list = append(list, bpf.Rule{Protocol: uint8(r.Protocol), From: r.Ports.From, To: r.Ports.To, Contract: contract})
		}
		im.pairs[bpf.Pair{Source: pair.Src, Destination: pair.Dst}] = bpf.Canonical(list)
	}
	return im
}

// readImage reads what the maps hold.
func readImage(d Datapath) (image, error) {
	im := newImage()
	endpoints, err := d.Endpoints()
	if err != nil {
		return im, err
	}
	for _, ep := range endpoints {
		im.endpoints[ep.Interface] = ep
	}
	peers, err := d.Peers()
	if err != nil {
		return im, err
	}
	for _, p := range peers {
		im.peers[p.Address] = p
	}
	externals, err := d.Externals()
	if err != nil {
		return im, err
	}
	for _, x := range externals {
		im.externals[kernelExternal{int(x.Interface), x.Prefix}] = x
	}
	checks, err := d.Checks()
	if err != nil {
		return im, err
	}
	for _, c := range checks {
		im.checks[c] = true
	}
	im.pairs, err = d.Pairs()
	return im, err
}

// write turns the maps from have into want and says what it changed. What is
// no longer allowed goes first. It carries on after an error, because each
// entry stands alone.
func write(d Datapath, have, want image) (changes []string, err error) {
	var errs []error
	do := func(err error, format string, args ...any) {
		changes = append(changes, fmt.Sprintf(format, args...))
		if err != nil {
			errs = append(errs, fmt.Errorf(format+": %w", append(args, err)...))
		}
	}
	for pair := range have.pairs {
		if _, stays := want.pairs[pair]; !stays {
			do(d.ReplacePair(pair, nil), "remove the rules of identities %d to %d", pair.Source, pair.Destination)
		}
	}
	for addr := range have.peers {
		if _, stays := want.peers[addr]; !stays {
			do(d.DeletePeer(addr), "remove peer %s", addr)
		}
	}
	for key, x := range have.externals {
		if _, stays := want.externals[key]; !stays {
			do(d.DeleteExternal(x), "remove external %s", x.Prefix)
		}
	}
	for index, ep := range have.endpoints {
		if _, stays := want.endpoints[index]; !stays {
			do(d.DeleteEndpoint(index), "remove endpoint %s", ep.IPv4)
		}
	}
	for c := range have.checks {
		_, was := have.endpoints[c.Interface]
		_, stays := want.endpoints[c.Interface]
		// With an endpoint its checks have gone; one without an endpoint would
		// be that of the next interface with this index.
		if !want.checks[c] && (stays || !was) {
			do(d.DeleteCheck(c), "remove the check of port %d at interface %d", c.Port, c.Interface)
		}
	}
	for pair, rules := range want.pairs {
		if !slices.Equal(have.pairs[pair], rules) {
			do(d.ReplacePair(pair, rules), "set the rules of identities %d to %d", pair.Source, pair.Destination)
		}
	}
	for key, x := range want.externals {
		if have.externals[key] != x {
			do(d.PutExternal(x), "set external %s", x.Prefix)
		}
	}
	for addr, p := range want.peers {
		if have.peers[addr] != p {
			do(d.PutPeer(p), "set peer %s", addr)
		}
	}
	for index, ep := range want.endpoints {
		if have.endpoints[index] != ep {
			do(d.PutEndpoint(ep), "set endpoint %s", ep.IPv4)
		}
	}
	for c := range want.checks {
		if !have.checks[c] {
			do(d.PutCheck(c), "set the check of port %d at interface %d", c.Port, c.Interface)
		}
	}
	return changes, errors.Join(errs...)
}

// program computes what the kernel should hold now and writes what differs
// from what was written last.
func (a *Agent) program() error {
	a.programming.Lock()
	defer a.programming.Unlock()
	want, err := a.wanted()
	if err != nil {
		return err
	}
	return a.follow(want)
}

// follow writes what differs from what was written last. It is for holders of
// programming.
func (a *Agent) follow(want image) error {
	if reflect.DeepEqual(a.written, want) {
		return nil
	}
	if _, err := write(a.data, a.written, want); err != nil {
		// Which part was made, the maps say; the rest is written the next time.
		if have, err := readImage(a.data); err == nil {
			a.written = have
		}
		return fmt.Errorf("program the data path: %w", err)
	}
	a.written = want
	return nil
}

// Reconcile compares what the kernel really holds with what it should hold,
// repairs it, and reports what it found.
func (a *Agent) Reconcile() error {
	a.programming.Lock()
	defer a.programming.Unlock()
	want, err := a.wanted()
	if err != nil {
		return err
	}
	// What is only not written yet is no difference to report. What an earlier
	// process left has to be read first: it is not to be added to.
	if a.written.pairs != nil {
		if err := a.follow(want); err != nil {
			a.log.Warn("trying again to program the data path", logkey.Error, err)
		}
	}
	have, err := readImage(a.data)
	if err != nil {
		return fmt.Errorf("read the data path: %w", err)
	}
	changes, err := write(a.data, have, want)
	if err == nil {
		a.written = want
	}
	// Programs that somebody took off leave an interface open.
	for _, ep := range a.endpoints.all() {
		if index, unknown := linkIndex(ep.HostIf); unknown != nil || index == 0 || index != ep.HostIndex {
			continue
		}
		if attaching := a.attachPrograms(ep.HostIf); attaching != nil {
			err = errors.Join(err, fmt.Errorf("attach the programs to %s: %w", ep.HostIf, attaching))
		}
	}
	if len(changes) > 0 {
		a.log.Warn("the data path differed from the declared state and was repaired", logkey.Repaired, changes)
	}
	return err
}

// documents are those of the revision in force, as they hold now.
func (a *Agent) documents() map[fabric.Ref]fabric.Document {
	return fabric.DocumentsAt(a.node.Revision.Documents(), a.now())
}

func (a *Agent) wanted() (image, error) {
	var counterparts []fabric.Admission
	for _, le := range a.counterparts.All(a.now()) {
		counterparts = append(counterparts, le.Admission)
	}
	// An interface that cannot be looked up must not take away what is enforced.
	underlay, err := linkIndex(a.node.Config.Underlay.Interface)
	if err != nil {
		return image{}, err
	}
	towards, err := a.towards()
	if err != nil {
		return image{}, err
	}
	c := compiler{num: a.num, underlay: underlay, towards: towards}
	state, err := c.compile(a.live(), counterparts, a.documents())
	if err != nil {
		return image{}, fmt.Errorf("compute the data path: %w", err)
	}
	return imageOf(state), nil
}

// live returns the endpoints of this node that have an interface and an
// admission: one that has expired gives no rights here either.
func (a *Agent) live() []endpoint {
	now := a.now()
	return slices.DeleteFunc(a.endpoints.all(), func(ep endpoint) bool {
		return ep.HostIndex == 0 || !now.Before(ep.Admission.Expires)
	})
}

// towards returns a function that names the interface by which the endpoints
// of a node come: the link to the nodes of the own zone, or that to the zone's
// processor. It looks the interfaces up once.
func (a *Agent) towards() (func(zone, node string) (int, bool), error) {
	self := a.node.Self
	index := func(peer fabric.NodeID) (int, error) {
		name, ok := a.node.Links.Interface(peer)
		if !ok {
			return 0, nil
		}
		return linkIndex(name)
	}
	within, err := index(daemon.ZonePeer)
	if err != nil {
		return nil, err
	}
	beyond := 0
	var processors []fabric.NodeID
	for _, n := range a.node.Nodes() {
		if n.Kind == fabric.KindProcessor && n.Zone == self.Zone {
			processors = append(processors, n.ID())
		}
	}
	if len(processors) > 0 {
		if beyond, err = index(slices.MinFunc(processors, fabric.CompareNodeIDs)); err != nil {
			return nil, err
		}
	}
	return func(zone, node string) (int, bool) {
		switch {
		case zone != self.Zone:
			return beyond, beyond != 0
		case node != self.Name:
			return within, within != 0
		}
		return 0, false // its own endpoints are known by their own interfaces
	}, nil
}
