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

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/kernel"
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

	kind    fabric.NodeKind
	backend backend
	mtu     int
	file    statefile.File[linksState]

	mu    sync.Mutex
	key   link.PrivateKey
	slots map[fabric.NodeID]slot // by peer: one for the nodes of the zone, one for each processor

	issued time.Time // when the latest statement was issued

	spaces map[fabric.NodeID]string // the namespaces of the devices that were set up last, by peer

	routing kernel.State // that was set up last, by the one who keeps the links
}

// backend runs the devices.
type backend interface {
	// Apply makes it run exactly these devices. Its error is a *link.ApplyError if some of them
	// run.
	Apply(context.Context, []link.Device) error
	Status(context.Context) ([]link.DeviceStatus, error)
}

// openBackend returns what runs the devices: the kernel, or `sif link`. The first Apply of either
// ends the devices of the other.
func openBackend(c *config.Config, log hclog.Logger) (backend, error) {
	userspace := link.NewClient(filepath.Dir(c.Link.Socket))
	missing := link.KernelSupport()
	kernel, err := link.NewKernel(link.KernelConfig{
		Owner: c.DataDir, Userspace: userspace, UserspaceData: filepath.Join(c.DataDir, wellknown.LinkDir), Logger: log.Named("links"),
	})
	switch {
	case err != nil:
		return nil, err
	case missing == nil && c.Link.Device != config.DeviceUserspace:
		return kernel, nil
	case c.Link.Device == config.DeviceKernel:
		return nil, fmt.Errorf("link.device is %q: %w: run `modprobe wireguard`, or set it to %q, and run `sif link` on this node",
			config.DeviceKernel, missing, config.DeviceAuto)
	}
	if missing == nil {
		userspace.Replace(kernel)
	} else if c.Link.Device == config.DeviceAuto {
		log.Info("sif link runs the node's links, in user space", logkey.Error, missing)
	}
	return userspace, nil
}

// slot is what a device keeps over restarts. It is never given to another peer.
type slot struct {
	Number int    `json:"number"` // of the device, from which its name derives
	Port   uint16 `json:"port"`   // its UDP port, which moves when another process has it
}

func (s slot) device() string { return wellknown.LinkInterface(s.Number) }

// linksState is the content of links.json.
type linksState struct {
	Key     string                 `json:"key"` // base64
	Devices map[fabric.NodeID]slot `json:"devices"`
	Issued  time.Time              `json:"issued,omitzero"`
}

func linksFile(dataDir string) statefile.File[linksState] {
	return statefile.File[linksState]{Path: filepath.Join(dataDir, "links.json"), What: "the key of the node's links"}
}

func openLinks(c *config.Config, kind fabric.NodeKind, log hclog.Logger) (*Links, error) {
	devices, err := openBackend(c, log)
	if err != nil {
		return nil, err
	}
	l := &Links{
		kind: kind, backend: devices, mtu: c.Link.MTU,
		file:  linksFile(c.DataDir),
		slots: map[fabric.NodeID]slot{ZonePeer: {Port: wellknown.FirstLinkPort}},
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
	maps.Copy(l.slots, kept.Devices)
	l.issued = kept.Issued
	return l, nil
}

func (l *Links) save() error {
	return l.file.Write(linksState{Key: l.key.Base64(), Devices: l.slots, Issued: l.issued})
}

func (l *Links) publicKey() []byte {
	key := l.key.Public()
	return key[:]
}

// statement returns what the node publishes about its links. Each one is issued later than the one
// before, even if the clock was set back, because others refuse an older one.
func (l *Links) statement(node fabric.NodeID) (fabric.Link, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	issued := clock.Now()
	if !issued.After(l.issued) {
		issued = l.issued.Add(time.Millisecond)
	}
	l.issued = issued
	ports := map[fabric.NodeID]uint16{}
	for peer, s := range l.slots {
		ports[peer] = s.Port
	}
	return fabric.Link{Node: node, PublicKey: l.publicKey(), Ports: ports, Issued: issued}, l.save()
}

// Ports returns the UDP ports of the links, in ascending order.
func (l *Links) Ports() []uint16 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ports []uint16
	for _, s := range l.slots {
		ports = append(ports, s.Port)
	}
	slices.Sort(ports)
	return ports
}

// processors returns the processors to which a node has a link: those of its zone for a workload
// node, those of other zones for a processor.
func processors(self fabric.Node, members []roster.Member) []roster.Member {
	var list []roster.Member
	for _, m := range members {
		if m.Boundary() && (m.Zone == self.Zone) == self.Kind.Has(fabric.KindWorkload) {
			list = append(list, m)
		}
	}
	return list
}

// assign gives each of the node's processors a device, and reports whether it gave new ones.
func (l *Links) assign(self fabric.Node, members []roster.Member) (grown bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := 0
	for _, s := range l.slots {
		next = max(next, s.Number+1)
	}
	for _, m := range processors(self, members) {
		if _, has := l.slots[m.ID()]; has {
			continue
		}
		port, free := l.freePort(nil)
		if !free {
			err = fmt.Errorf("no port up to %d is left for the link to %s", wellknown.LastLinkPort, m.ID())
			break
		}
		l.slots[m.ID()] = slot{Number: next, Port: port}
		next++
		grown = true
	}
	if grown {
		err = errors.Join(err, l.save())
	}
	return grown, err
}

// freePort returns the lowest port that no link of the node has and that is not among those that
// other processes have. The caller must hold mu.
func (l *Links) freePort(taken map[uint16]bool) (uint16, bool) {
	own := map[uint16]bool{}
	for _, s := range l.slots {
		own[s.Port] = true
	}
	for port := uint16(wellknown.FirstLinkPort); port <= wellknown.LastLinkPort; port++ {
		if !own[port] && !taken[port] {
			return port, true
		}
	}
	return 0, false
}

// apply sets up the devices as the roster requires. A device whose port another process has moves
// to a free one; moved says that there was one. A failure of one device does not affect the others.
func (l *Links) apply(ctx context.Context, self fabric.Node, members []roster.Member) (moved bool, err error) {
	taken := map[uint16]bool{}
	for {
		err := l.applyOnce(ctx, self, members)
		var failed *link.ApplyError
		if !errors.As(err, &failed) || len(failed.PortTaken) == 0 || ctx.Err() != nil {
			return moved, err
		}
		if moving := l.move(failed.PortTaken, taken); moving != nil {
			return moved, errors.Join(err, moving)
		}
		moved = true
	}
}

// move gives devices other ports, and adds those that they had to taken.
func (l *Links) move(devices []string, taken map[uint16]bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for peer, s := range l.slots {
		if !slices.Contains(devices, s.device()) {
			continue
		}
		taken[s.Port] = true
		port, free := l.freePort(taken)
		if !free {
			return fmt.Errorf("move the port of %s: other processes have all UDP ports from %d to %d that no link has",
				s.device(), wellknown.FirstLinkPort, wellknown.LastLinkPort)
		}
		l.slots[peer] = slot{Number: s.Number, Port: port}
	}
	return l.save()
}

func (l *Links) applyOnce(ctx context.Context, self fabric.Node, members []roster.Member) error {
	l.mu.Lock()
	wanted := devices(self, members, l.key, l.slots, l.mtu)
	l.mu.Unlock()
	var errs []error
	list := make([]link.Device, 0, len(wanted))
	spaces := map[fabric.NodeID]string{}
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
		spaces[peer] = d.Namespace
		list = append(list, d)
	}
	l.mu.Lock()
	l.spaces = spaces
	l.mu.Unlock()
	if err := l.backend.Apply(ctx, list); err != nil {
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
func devices(self fabric.Node, members []roster.Member, key link.PrivateKey, slots map[fabric.NodeID]slot, mtu int) map[fabric.NodeID]link.Device {
	leaves := self.Kind.Has(fabric.KindWorkload)
	device := func(peer fabric.NodeID) link.Device {
		return link.Device{
			Name: slots[peer].device(),
			// A processor's device is in a namespace whose routes are its port's.
			Interface:  link.Interface{MTU: mtu, Routes: leaves},
			ListenPort: slots[peer].Port, PrivateKey: key,
		}
	}
	zone := device(ZonePeer)
	for _, m := range members {
		if m.Zone == self.Zone && m.Kind.Has(fabric.KindWorkload) && m.ID() != self.ID() {
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
			behind := m.Kind.Has(fabric.KindWorkload) && topology.Live(p.ID()) &&
				(self.Kind.Has(fabric.KindWorkload) && m.Zone != self.Zone || self.Boundary() && m.Zone == p.Zone)
			if behind {
				beyond = append(beyond, pools(m)...)
			}
			if m.ID() == p.ID() { // its engine and its probes
				beyond = append(beyond, netip.PrefixFrom(m.Health4(), 32), netip.PrefixFrom(m.Health6(), 128))
			}
		}
		if leaves {
			// The processor is an exit, so everything can come from there. Whose packets they are
			// is known by their interface: see the eBPF programs' peers and externals, the
			// firewall's rules for links, and the probes.
			d.Table = slots[p.ID()].table()
			beyond = append(beyond, link.Anywhere...)
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
	s, ok := l.slots[peer]
	return s.device(), ok
}

// namespaces returns the network namespaces of the devices, by peer; empty is the node's own.
func (l *Links) namespaces() map[fabric.NodeID]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.spaces)
}

// status reports the links by peer, and adds to repaired what was put back of their devices.
func (l *Links) status(ctx context.Context, members []roster.Member, repaired map[string]uint64) ([]api.LinkStatus, error) {
	devs, err := l.backend.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the status of the links: %w", err)
	}
	names := map[link.Key]string{}
	for _, m := range members {
		var key link.Key
		copy(key[:], m.Link.PublicKey)
		names[key] = m.ID().String()
	}
	var list []api.LinkStatus
	for _, d := range devs {
		for kind, count := range d.Repaired {
			repaired[kind] += count
		}
		for _, p := range d.Peers {
			list = append(list, api.LinkStatus{Peer: names[p.PublicKey], Device: d.Kind, LastHandshake: p.LastHandshake, Rx: p.ReceivedBytes, Tx: p.SentBytes})
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
