// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
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

// ZonePeer stands for the nodes of the own zone among the tunnels of a node.
var ZonePeer desired.Hop

// keepalive is how often a tunnel between two processors carries a packet at least, so that a NAT
// between them keeps its entry.
const keepalive = 20 * time.Second

// Home provides a network namespace for each device of a node. Its methods are called repeatedly
// and repair what differs.
type Home interface {
	// Prepare creates the namespace for the device of a tunnel and returns its path.
	Prepare(tunnel desired.Hop, d link.Device) (namespace string, err error)
	// Complete finishes the set-up once the device is in the namespace.
	Complete(tunnel desired.Hop, d link.Device) error
	// Retain takes away what belongs to no device of these names.
	Retain(devices []string) error
}

// Links are the encrypted links of this node: one device towards the nodes of its zone, and one for
// each tunnel to a processor. A workload node has one tunnel to each processor of its zone; two
// processors of different zones have one for each declared link that joins them, or one without a
// name if none is declared in the whole fabric.
type Links struct {
	// Home, if set, provides the namespaces of the devices. Otherwise they are in the node's
	// network namespace.
	Home Home

	kind    fabric.NodeKind
	backend backend
	mtu     int
	named   map[string]netip.Addr // the node's further addresses
	file    statefile.File[linksState]

	mu    sync.Mutex
	key   link.PrivateKey
	slots map[desired.Hop]slot // one for the nodes of the zone, one for each tunnel

	replacement // of the key

	issued time.Time // when the latest statement was issued

	spaces map[desired.Hop]string // the namespaces of the devices that were set up last

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

// slot is what a device keeps over restarts. It is never given to another peer while it is needed.
type slot struct {
	Number int    `json:"number"` // of the device, from which its name derives
	Port   uint16 `json:"port"`   // its UDP port, which moves when another process has it
}

func (s slot) device() string { return wellknown.LinkInterface(s.Number) }

// linksState is the content of links.json.
type linksState struct {
	Key     string               `json:"key"` // base64
	Devices map[desired.Hop]slot `json:"devices"`
	Issued  time.Time            `json:"issued,omitzero"`

	Made      time.Time       `json:"made,omitzero"`   // when the key was made, or first seen by a version that replaces it
	DetourKey string          `json:"detour,omitzero"` // base64
	Detours   map[int]uint16  `json:"detours,omitempty"`
	Phase     fabric.KeyPhase `json:"phase,omitempty"`
	Began     time.Time       `json:"began,omitzero"` // the phase
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
		file:        linksFile(c.DataDir),
		slots:       map[desired.Hop]slot{ZonePeer: {Port: wellknown.FirstLinkPort}},
		replacement: newReplacement(c.Link.KeyLife()),
	}
	if c.Underlay != nil {
		l.named = c.Underlay.Named()
	}
	kept, found, err := l.file.Read()
	switch {
	case err != nil:
		return nil, err
	case !found:
		if l.key, err = link.GenerateKey(); err != nil {
			return nil, fmt.Errorf("generate the key of the node's links: %w", err)
		}
		if err := l.restore(kept); err != nil {
			return nil, err
		}
		return l, l.save()
	}
	if l.key, err = link.ParsePrivateKey(kept.Key); err != nil {
		return nil, fmt.Errorf("read the key of the node's links from %s: %w", l.file.Path, err)
	}
	maps.Copy(l.slots, kept.Devices)
	l.issued = kept.Issued
	return l, l.restore(kept) // it is saved before anything of it is published
}

func (l *Links) save() error {
	return l.file.Write(linksState{
		Key: l.key.Base64(), Devices: l.slots, Issued: l.issued,
		Made: l.made, DetourKey: l.detourKey.Base64(), Detours: l.detours, Phase: l.phase, Began: l.began,
	})
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
	said := fabric.Link{Node: node, PublicKey: l.publicKey(), Ports: map[fabric.NodeID]uint16{}, Addresses: l.named, Issued: issued}
	for tunnel, s := range l.slots {
		if tunnel.Link == "" {
			said.Ports[tunnel.Processor] = s.Port
			continue
		}
		if said.Tunnels == nil {
			said.Tunnels = map[string]uint16{}
		}
		said.Tunnels[tunnel.String()] = s.Port
	}
	said.Detour = l.detour()
	return said, l.save()
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

// firstProcessor returns the first processor, by name, to which a node has a link, if it has any.
func firstProcessor(self fabric.Node, members []roster.Member) (first fabric.NodeID) {
	for _, m := range processors(self, members) {
		if id := m.ID(); first.IsZero() || fabric.CompareNodeIDs(id, first) < 0 {
			first = id
		}
	}
	return first
}

// tunnel is a link of a node to a processor.
type tunnel struct {
	desired.Hop
	to   roster.Member
	rule fabric.LinkRule // by which it is declared
}

// tunnels returns the tunnels that a node must have, ordered by name for each processor. rules are
// the declared links.
func tunnels(self fabric.Node, members []roster.Member, rules []fabric.LinkRule) []tunnel {
	workload := self.Kind.Has(fabric.KindWorkload)
	if workload { // declared links are those between zones
		rules = nil
	}
	declared := fabric.CanonicalLinks(fabric.LinksOf(rules))
	var list []tunnel
	for _, m := range processors(self, members) {
		for _, rule := range declared {
			if workload || rule.Covers(self.ID(), m.ID()) {
				list = append(list, tunnel{Hop: desired.Hop{Processor: m.ID(), Link: rule.Name}, to: m, rule: rule})
			}
		}
	}
	return list
}

// assign gives each tunnel of the node a device, takes those of named tunnels that ended, and
// reports whether the ports differ then.
//
// If a processor loses a tunnel and gets another one, that has the device of the old one: the two
// ends go on with the session that they have.
func (l *Links) assign(self fabric.Node, members []roster.Member, rules []fabric.LinkRule) (changed bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := 0
	for _, s := range l.slots {
		next = max(next, s.Number+1)
	}
	wanted := tunnels(self, members, rules)
	idle := l.idle(processors(self, members), wanted)
	for _, t := range wanted {
		if _, has := l.slots[t.Hop]; has {
			continue
		}
		if old := idle[t.Processor]; len(old) > 0 {
			l.slots[t.Hop], idle[t.Processor] = l.slots[old[0]], old[1:]
			delete(l.slots, old[0])
			changed = true
			continue
		}
		port, free := l.freePort(nil)
		if !free {
			err = fmt.Errorf("no port up to %d is left for the link to %s", wellknown.LastLinkPort, t.Hop)
			break
		}
		l.slots[t.Hop] = slot{Number: next, Port: port}
		next++
		changed = true
	}
	for _, old := range idle {
		for _, hop := range old {
			if hop.Link != "" {
				delete(l.slots, hop)
				changed = true
			}
		}
	}
	if l.assignDetours() {
		changed = true
	}
	if changed {
		err = errors.Join(err, l.save())
	}
	return changed, err
}

// idle returns the tunnels that have a device and are not wanted, by the processors at their ends,
// in order. The caller must hold mu.
func (l *Links) idle(processors []roster.Member, wanted []tunnel) map[fabric.NodeID][]desired.Hop {
	there, needed := map[fabric.NodeID]bool{}, map[desired.Hop]bool{}
	for _, m := range processors {
		there[m.ID()] = true
	}
	for _, t := range wanted {
		needed[t.Hop] = true
	}
	idle := map[fabric.NodeID][]desired.Hop{}
	for hop := range l.slots {
		if there[hop.Processor] && !needed[hop] {
			idle[hop.Processor] = append(idle[hop.Processor], hop)
		}
	}
	for _, hops := range idle {
		slices.SortFunc(hops, compareHops)
	}
	return idle
}

func compareHops(a, b desired.Hop) int { return strings.Compare(a.String(), b.String()) }

// ownPorts returns the ports of the node's links and their detours. The caller must hold mu.
func (l *Links) ownPorts() map[uint16]bool {
	own := map[uint16]bool{}
	for _, s := range l.slots {
		own[s.Port] = true
	}
	for _, port := range l.detours {
		own[port] = true
	}
	return own
}

// freePort returns the lowest port that no link of the node and no detour has and that is not among
// those that other processes have. If there is none, a detour loses its port: a link cannot be
// without. The caller must hold mu.
func (l *Links) freePort(taken map[uint16]bool) (uint16, bool) {
	own := l.ownPorts()
	for port := uint16(wellknown.FirstLinkPort); port <= wellknown.LastLinkPort; port++ {
		if !own[port] && !taken[port] {
			return port, true
		}
	}
	for number, port := range l.detours {
		if !taken[port] {
			delete(l.detours, number)
			return port, true
		}
	}
	return 0, false
}

// apply sets up the devices as the roster requires. A device whose port another process has moves
// to a free one; moved says that there was one. A failure of one device does not affect the others.
func (l *Links) apply(ctx context.Context, self fabric.Node, members []roster.Member, rules []fabric.LinkRule) (moved bool, err error) {
	taken := map[uint16]bool{}
	for {
		err := l.applyOnce(ctx, self, members, rules)
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
	for hop, s := range l.slots {
		if slices.Contains(devices, wellknown.DetourInterface(s.Number)) {
			taken[l.detours[s.Number]] = true
			l.moveDetour(s.Number, taken)
		}
		if !slices.Contains(devices, s.device()) {
			continue
		}
		taken[s.Port] = true
		port, free := l.freePort(taken)
		if !free {
			return fmt.Errorf("move the port of %s: other processes have all UDP ports from %d to %d that no link has",
				s.device(), wellknown.FirstLinkPort, wellknown.LastLinkPort)
		}
		l.slots[hop] = slot{Number: s.Number, Port: port}
	}
	return l.save()
}

func (l *Links) applyOnce(ctx context.Context, self fabric.Node, members []roster.Member, rules []fabric.LinkRule) error {
	l.mu.Lock()
	wanted := devices(self, members, rules, l.key, l.slots, l.mtu)
	l.keepKeys(wanted, members)
	detours, diversions := l.detoursOf(wanted, ends(self, members, rules))
	ready := l.period > 0
	l.mu.Unlock()
	var errs []error
	var names []string
	list := make([]link.Device, 0, len(wanted)+len(detours))
	spaces := map[desired.Hop]string{}
	for hop, d := range wanted {
		names = append(names, d.Name)
		if l.Home != nil {
			namespace, err := l.Home.Prepare(hop, d)
			if err != nil {
				errs = append(errs, err)
				delete(wanted, hop)
				continue
			}
			d.Namespace = namespace
		}
		spaces[hop] = d.Namespace
		list = append(list, d)
		by, has := detours[hop]
		if has {
			by.Namespace = d.Namespace
			list = append(list, by)
		} else if l.diverted[d.Name] {
			// The filters must not outlive the detour.
			err := link.Divert(link.Diversion{Namespace: d.Namespace, Device: d.Name})
			l.diverted[d.Name] = err != nil
			errs = append(errs, err)
		}
	}
	l.mu.Lock()
	l.spaces = spaces
	l.mu.Unlock()
	if err := l.backend.Apply(ctx, list); err != nil {
		errs = append(errs, err)
	} else {
		l.applied()
	}
	errs = append(errs, l.divert(diversions, wanted, spaces, ready))
	if l.Home != nil {
		for hop, d := range wanted {
			errs = append(errs, l.Home.Complete(hop, d))
		}
		errs = append(errs, l.Home.Retain(names))
	}
	return errors.Join(errs...)
}

// devices returns the desired state of each device of a node.
func devices(self fabric.Node, members []roster.Member, rules []fabric.LinkRule, key link.PrivateKey, slots map[desired.Hop]slot, mtu int) map[desired.Hop]link.Device {
	leaves := self.Kind.Has(fabric.KindWorkload)
	device := func(hop desired.Hop) link.Device {
		return link.Device{
			Name: slots[hop].device(),
			// A processor's device is in a namespace whose routes are its port's.
			Interface:  link.Interface{MTU: mtu, Routes: leaves},
			ListenPort: slots[hop].Port, PrivateKey: key,
		}
	}
	zone := device(ZonePeer)
	for _, m := range members {
		if m.Zone == self.Zone && m.Kind.Has(fabric.KindWorkload) && m.ID() != self.ID() {
			zone.Peers = appendPeer(zone.Peers, m, endpoint(self, tunnel{to: m}), pools(m))
		}
	}
	all := map[desired.Hop]link.Device{ZonePeer: zone}
	// What carries no mark of a way, such as the host's own errors about packets, goes to other
	// zones by one of the processors.
	unmarked := firstProcessor(self, members)
	for _, t := range tunnels(self, members, rules) {
		d := device(t.Hop)
		if d.ListenPort == 0 {
			continue // it has no port yet
		}
		if t.rule.MTU > 0 {
			d.MTU = t.rule.MTU
		}
		var beyond []netip.Prefix
		for _, m := range members {
			switch {
			case m.ID() == t.Processor: // its engine and its probes
				beyond = append(beyond, netip.PrefixFrom(m.Health4(), 32), netip.PrefixFrom(m.Health6(), 128))
			case !m.Kind.Has(fabric.KindWorkload):
			case leaves && m.Zone != self.Zone && t.Processor == unmarked, self.Boundary() && transits(self.Zone, m.Zone, t, rules):
				beyond = append(beyond, pools(m)...)
			}
		}
		if leaves {
			// The processor is an exit, so everything can come from there. Whose packets they are
			// is known by their interface: see the eBPF programs' peers and externals, the
			// firewall's rules for links, and the probes.
			d.Table = slots[t.Hop].table()
			beyond = append(beyond, link.Anywhere...)
		}
		d.Peers = appendPeer(nil, t.to, endpoint(self, t), beyond)
		if !leaves {
			for i := range d.Peers {
				d.Peers[i].PersistentKeepalive = keepalive
			}
		}
		all[t.Hop] = d
	}
	return all
}

// transits reports whether a tunnel of a processor can carry packets of the nodes of a zone. Where
// links are declared, a zone may be reached through the processors of others: the switch then
// decides by which tunnels its packets may come.
func transits(own, zone string, t tunnel, rules []fabric.LinkRule) bool {
	return zone == t.Processor.Zone || zone != own && len(rules) > 0
}

// endpoint returns where the processor or node at the far end of a tunnel is reached. It is unset
// if that is not known, or not possible, as behind a NAT: then the far end must start.
func endpoint(self fabric.Node, t tunnel) netip.AddrPort {
	return endpointAt(self, t, t.to.Link.Tunnel(self.ID(), t.Link))
}

func endpointAt(self fabric.Node, t tunnel, port uint16) netip.AddrPort {
	at := t.to.Underlay
	if t.rule.Endpoints != "" {
		at = t.to.Link.Addresses[t.rule.Endpoints]
	}
	inside := slices.ContainsFunc(self.Ranges, func(p netip.Prefix) bool { return p.Contains(at) })
	if port == 0 || !at.IsValid() || inside {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(at, port)
}

func pools(m roster.Member) []netip.Prefix {
	return []netip.Prefix{m.Pool4.Masked(), m.Pool6.Masked()}
}

// appendPeer adds m if it has published a key.
func appendPeer(peers []link.Peer, m roster.Member, at netip.AddrPort, allowed []netip.Prefix) []link.Peer {
	key := link.Key(m.Link.Key())
	if key.IsZero() {
		return peers
	}
	return append(peers, link.Peer{PublicKey: key, Endpoint: at, AllowedIPs: allowed})
}

// Interface returns the name of the device of a tunnel.
func (l *Links) Interface(tunnel desired.Hop) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.slots[tunnel]
	return s.device(), ok
}

// Tunnels returns the tunnels to a processor that were set up last, in order.
func (l *Links) Tunnels(processor fabric.NodeID) []desired.Hop {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []desired.Hop
	for hop := range l.spaces {
		if hop.Processor == processor {
			list = append(list, hop)
		}
	}
	slices.SortFunc(list, compareHops)
	return list
}

// namespaces returns the network namespaces of the devices; empty is the node's own.
func (l *Links) namespaces() map[desired.Hop]string {
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
		names[m.Link.Key()] = m.ID().String()
	}
	l.mu.Lock()
	links := map[string]string{} // by device
	detours := map[string]bool{}
	for hop, s := range l.slots {
		links[s.device()] = hop.Link
		detours[wellknown.DetourInterface(s.Number)] = true
	}
	for p, c := range l.courses {
		names[c.key] = p.node.String()
	}
	l.mu.Unlock()
	var list []api.LinkStatus
	for _, d := range devs {
		for kind, count := range d.Repaired {
			repaired[kind] += count
		}
		if detours[d.Name] {
			continue
		}
		for _, p := range d.Peers {
			at := ""
			if p.Endpoint.IsValid() {
				at = p.Endpoint.String()
			}
			list = append(list, api.LinkStatus{
				Peer: names[p.PublicKey], Link: links[d.Name], Device: d.Kind, Endpoint: at,
				LastHandshake: p.LastHandshake, Rx: p.ReceivedBytes, Tx: p.SentBytes,
			})
		}
	}
	slices.SortFunc(list, func(a, b api.LinkStatus) int {
		return cmp.Or(strings.Compare(a.Peer, b.Peer), strings.Compare(a.Link, b.Link))
	})
	return list, nil
}
