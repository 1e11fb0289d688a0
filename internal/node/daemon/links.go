// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/link"
	"github.com/sif-project/sif/internal/statefile"
	"github.com/sif-project/sif/internal/trust/roster"
	"github.com/sif-project/sif/internal/wellknown"
)

// ZonePeer stands for the nodes of the own zone among the peers of links.
var ZonePeer fabric.NodeID

// Home provides a network namespace for each device of a node. Both methods are called repeatedly
// and repair what differs.
type Home interface {
	// Prepare creates the namespace for the device towards a peer and returns its path.
	Prepare(peer fabric.NodeID, d link.Device) (namespace string, err error)
	// Complete finishes the set-up once the device is in the namespace.
	Complete(peer fabric.NodeID, d link.Device) error
}

// Links are the encrypted links of this node: one device towards the nodes of its zone, and one
// towards each of its processors.
type Links struct {
	// Home, if set, provides the namespaces of the devices. Otherwise they are in the node's
	// network namespace.
	Home Home

	kind   fabric.NodeKind
	client *link.Client
	mtu    int
	file   statefile.File[linksState]

	mu  sync.Mutex
	key link.PrivateKey
	// ports has the UDP port of each device by peer: the first of the range for the nodes of the
	// zone, then one for each processor. A port is never given to another peer.
	ports map[fabric.NodeID]uint16
}

// linksState is the content of links.json.
type linksState struct {
	Key   string                   `json:"key"` // base64
	Ports map[fabric.NodeID]uint16 `json:"ports"`
}

func openLinks(c *config.Config, kind fabric.NodeKind) (*Links, error) {
	l := &Links{
		kind: kind, client: link.NewClient(filepath.Dir(c.Link.Socket)), mtu: c.Link.MTU,
		file:  statefile.File[linksState]{Path: filepath.Join(c.DataDir, "links.json"), What: "the key of the node's links"},
		ports: map[fabric.NodeID]uint16{ZonePeer: wellknown.FirstLinkPort},
	}
	kept, found, err := l.file.Read()
	switch {
	case err != nil:
		return nil, err
	case !found:
		if l.key, err = link.GenerateKey(); err != nil {
			return nil, fmt.Errorf("generate the key of the node's links: %w", err)
		}
		return l, l.save()
	}
	if l.key, err = link.ParsePrivateKey(kept.Key); err != nil {
		return nil, fmt.Errorf("read the key of the node's links from %s: %w", l.file.Path, err)
	}
	l.ports = kept.Ports
	return l, nil
}

func (l *Links) save() error { return l.file.Write(linksState{Key: l.key.Base64(), Ports: l.ports}) }

// statement returns what the node publishes about its links.
func (l *Links) statement(node fabric.NodeID) fabric.Link {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := l.key.Public()
	return fabric.Link{Node: node, PublicKey: key[:], Ports: maps.Clone(l.ports), Issued: time.Now().UTC()}
}

// processors returns the processors to which a node has a link: those of its zone for a workload
// node, those of other zones for a processor.
func processors(self fabric.Node, members []roster.Member) []roster.Member {
	var list []roster.Member
	for _, m := range members {
		if m.Kind == fabric.KindProcessor && (m.Zone == self.Zone) == (self.Kind == fabric.KindWorkload) {
			list = append(list, m)
		}
	}
	return list
}

// assignPorts assigns a port to each of the node's processors, and reports whether it assigned new
// ones.
func (l *Links) assignPorts(self fabric.Node, members []roster.Member) (grown bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := uint16(wellknown.FirstLinkPort)
	for _, p := range l.ports {
		next = max(next, p)
	}
	for _, m := range processors(self, members) {
		if _, has := l.ports[m.ID()]; has {
			continue
		}
		if next == wellknown.LastLinkPort {
			err = fmt.Errorf("no port up to %d is left for the link to %s", wellknown.LastLinkPort, m.ID())
			break
		}
		next++
		l.ports[m.ID()] = next
		grown = true
	}
	if grown {
		err = errors.Join(err, l.save())
	}
	return grown, err
}

// apply sets up the devices as the roster requires. A failure of one device does not affect the
// others.
func (l *Links) apply(ctx context.Context, self fabric.Node, members []roster.Member) error {
	l.mu.Lock()
	wanted := devices(self, members, l.key, l.ports, l.mtu)
	l.mu.Unlock()
	var errs []error
	list := make([]link.Device, 0, len(wanted))
	for peer, d := range wanted {
		if l.Home != nil {
			namespace, err := l.Home.Prepare(peer, d)
			if err != nil {
				errs = append(errs, err)
				delete(wanted, peer)
				continue
			}
			d.Namespace = namespace
		}
		list = append(list, d)
	}
	if err := l.client.Apply(ctx, list); err != nil {
		errs = append(errs, err)
	}
	if l.Home != nil {
		for peer, d := range wanted {
			errs = append(errs, l.Home.Complete(peer, d))
		}
	}
	return errors.Join(errs...)
}

// devices returns the desired state of each device of a node, by peer.
func devices(self fabric.Node, members []roster.Member, key link.PrivateKey, ports map[fabric.NodeID]uint16, mtu int) map[fabric.NodeID]link.Device {
	device := func(peer fabric.NodeID) link.Device {
		return link.Device{
			Name:       wellknown.LinkInterface(ports[peer]),
			Interface:  link.Interface{MTU: mtu, Routes: true},
			ListenPort: ports[peer], PrivateKey: key,
		}
	}
	zone := device(ZonePeer)
	for _, m := range members {
		if m.Zone == self.Zone && m.Kind == fabric.KindWorkload && m.ID() != self.ID() {
			zone.Peers = appendPeer(zone.Peers, self, m, pools(m))
		}
	}
	all := map[fabric.NodeID]link.Device{ZonePeer: zone}
	topology := desired.SingleProcessor(nodesOf(members))
	for _, p := range processors(self, members) {
		d := device(p.ID())
		if d.ListenPort == 0 {
			continue // it has no port yet
		}
		var beyond []netip.Prefix
		for _, m := range members {
			// A workload node reaches all other zones by its own processor, a processor reaches
			// each zone by that zone's.
			behind := m.Kind == fabric.KindWorkload && topology.Live(p.ID()) &&
				(self.Kind == fabric.KindWorkload && m.Zone != self.Zone || self.Kind == fabric.KindProcessor && m.Zone == p.Zone)
			listens := self.Kind == fabric.KindProcessor && m.ID() == p.ID() // its engine and its probes, at its health address
			if behind || listens {
				beyond = append(beyond, pools(m)...)
			}
		}
		d.Peers = appendPeer(nil, self, p, beyond)
		all[p.ID()] = d
	}
	return all
}

func pools(m roster.Member) []netip.Prefix {
	return []netip.Prefix{m.Pool4.Masked(), m.Pool6.Masked()}
}

// appendPeer adds m if it has published a key.
func appendPeer(peers []link.Peer, self fabric.Node, m roster.Member, allowed []netip.Prefix) []link.Peer {
	var key link.Key
	if copy(key[:], m.Link.PublicKey) != len(key) {
		return peers
	}
	return append(peers, link.Peer{
		PublicKey: key, Endpoint: netip.AddrPortFrom(m.Underlay, m.Link.Port(self.ID())), AllowedIPs: allowed,
	})
}

// Interface returns the name of the device towards a peer.
func (l *Links) Interface(peer fabric.NodeID) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	port, ok := l.ports[peer]
	return wellknown.LinkInterface(port), ok
}

// status reports the links by peer.
func (l *Links) status(ctx context.Context, members []roster.Member) ([]api.LinkStatus, error) {
	devs, err := l.client.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the status from sif link: %w", err)
	}
	names := map[link.Key]string{}
	for _, m := range members {
		var key link.Key
		copy(key[:], m.Link.PublicKey)
		names[key] = m.ID().String()
	}
	var list []api.LinkStatus
	for _, d := range devs {
		for _, p := range d.Peers {
			list = append(list, api.LinkStatus{Peer: names[p.PublicKey], LastHandshake: p.LastHandshake, Rx: p.ReceivedBytes, Tx: p.SentBytes})
		}
	}
	slices.SortFunc(list, func(a, b api.LinkStatus) int {
		if a.Peer < b.Peer {
			return -1
		}
		return 1
	})
	return list, nil
}
