// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/node/link"
	"github.com/sif-project/sif/internal/trust/roster"
	"github.com/sif-project/sif/internal/wellknown"
)

// While one of the two ends of a link replaces its key, both have a second device, the detour, with
// a key of its own. What comes by either device counts. Which of the two an end sends by is its own
// decision, its course: by the detour as soon as that has shaken hands and one end wants to leave
// the device, by the device again when nobody wants to leave it any more and it has shaken hands
// with the new keys. An end takes over the other's new key when it sends by the detour, so that
// nothing is lost with the session of the old one.

// pair is a link to one node.
type pair struct {
	hop  desired.Hop
	node fabric.NodeID
}

// ends returns the links of a node, one for each node at the other end.
func ends(self fabric.Node, members []roster.Member, rules []fabric.LinkRule) []tunnel {
	var list []tunnel
	for _, m := range members {
		if m.Zone == self.Zone && m.Kind.Has(fabric.KindWorkload) && m.ID() != self.ID() {
			list = append(list, tunnel{Hop: ZonePeer, to: m})
		}
	}
	return append(list, tunnels(self, members, rules)...)
}

func (t tunnel) pair() pair { return pair{t.Hop, t.to.ID()} }

// course is which way the packets to one node take, while a key is replaced.
type course struct {
	key     link.Key // of the other end, that the device has
	detour  bool     // packets leave by the detour
	since   time.Time
	pending time.Time // since when the other end has another key; zero: it has this one
	// unsure says that the device has not shaken hands since a key at one of its ends was replaced;
	// shaken is when it had before.
	unsure bool
	shaken time.Time
	// replacing says that the device does not have the new key of this node yet.
	replacing bool

	needed     time.Time // when an end was last known to replace its key
	device, by silence   // what came by either
	wants      bool      // the detour, as far as it works
	fresh      bool      // the detour has a session
	alive      bool      // one of the two has
	deviceLive bool      // the device has
}

// silence is for how long a counter has stayed.
type silence struct {
	bytes uint64
	since time.Time
}

func (s *silence) see(bytes uint64, now time.Time) {
	if s.since.IsZero() || bytes != s.bytes {
		s.bytes, s.since = bytes, now
	}
}

const (
	// sessionLife is how long WireGuard uses a session; one is begun anew after 120 s of it.
	sessionLife = 180 * time.Second
	// sessionFresh is the age up to which packets are moved to a session.
	sessionFresh = 150 * time.Second
	// beat is how often an end that sends by the detour sends something at least: so the session
	// lasts, and the other end sees that the detour is still needed.
	beat = 2 * time.Second
)

// follow brings a course up to date with what the two devices report; nil: nothing. It changes the
// course by the rules above. own is the phase of this node, which has lasted for some time.
func (c *course) follow(t tunnel, own fabric.KeyPhase, lasted time.Duration, device, by *link.PeerStatus, settle time.Duration, now time.Time) {
	if device == nil {
		device = &link.PeerStatus{}
	}
	if by == nil {
		by = &link.PeerStatus{}
	}
	c.device.see(device.ReceivedBytes, now)
	c.by.see(by.ReceivedBytes, now)
	within := func(p *link.PeerStatus, age time.Duration) bool {
		return !p.LastHandshake.IsZero() && now.Sub(p.LastHandshake) < age
	}
	c.fresh, c.deviceLive = within(by, sessionFresh), within(device, sessionLife)
	c.alive = c.deviceLive || within(by, sessionLife)
	if c.unsure && !c.replacing && !device.LastHandshake.IsZero() && device.LastHandshake.After(c.shaken) {
		c.unsure = false
	}
	published := link.Key(t.to.Link.Key())
	switch {
	case published == c.key:
		c.pending = time.Time{}
	case c.pending.IsZero():
		c.pending = now
	}
	theirs := t.to.Link.KeyPhase()
	if own != "" || theirs != "" {
		c.needed = now
	}
	c.wants = c.needed.Equal(now) && (own == fabric.LeaveLinks || theirs == fabric.LeaveLinks || c.unsure || !c.pending.IsZero())
	// The other end may be about to give up its detour, which it needed for another reason. It must
	// have read what this node says first.
	read := own != fabric.LeaveLinks || theirs == fabric.LeaveLinks || lasted >= settle
	lost := !within(by, sessionLife) && c.deviceLive && !c.unsure
	switch {
	case !c.detour && c.wants && c.fresh && read, c.detour && (!c.wants || lost):
		c.detour, c.since = !c.detour, now
	}
	if c.pending.IsZero() {
		return
	}
	// The other end sends by the detour before it has another key, if there is a detour at all.
	if left := c.detour && now.Sub(c.since) >= settle/5; left || !c.fresh && now.Sub(c.pending) >= settle {
		c.key, c.pending, c.unsure, c.shaken = published, time.Time{}, true, time.Time{}
		c.device = silence{}
		c.wants = true
	}
}

// over reports whether the detour can be given up: nobody has needed it for a while, and nothing
// has come by it. So it outlasts what another node says meanwhile of its own key.
func (c *course) over(settle time.Duration, now time.Time) bool {
	return !c.detour && now.Sub(c.needed) >= settle && now.Sub(c.since) >= settle && now.Sub(c.by.since) >= settle
}

// begin returns the course of a link at first sight. peers are those that its device has now.
func begin(t tunnel, made time.Time, replaced bool, peers []link.PeerStatus, now time.Time) *course {
	c := &course{key: t.to.Link.Key(), since: now}
	for _, p := range peers {
		for _, prefix := range p.AllowedIPs {
			if prefix.Contains(t.to.Health4()) {
				c.key = p.PublicKey
				c.unsure = p.LastHandshake.IsZero()
			}
		}
	}
	if replaced { // by this node, before the daemon was started
		c.unsure, c.shaken = true, made
	}
	return c
}

// keepKeys has the devices keep those keys of other ends that are not replaced yet. The caller must
// hold mu.
func (l *Links) keepKeys(wanted map[desired.Hop]link.Device, members []roster.Member) {
	nodes := map[link.Key]fabric.NodeID{}
	for _, m := range members {
		nodes[m.Link.Key()] = m.ID()
	}
	for hop, d := range wanted {
		for i, p := range d.Peers {
			if c := l.courses[pair{hop, nodes[p.PublicKey]}]; c != nil {
				d.Peers[i].PublicKey = c.key
			}
		}
	}
}

// can reports whether both ends of a link can have a detour.
func (l *Links) can(t tunnel) bool {
	_, has := l.detours[l.slots[t.Hop].Number]
	return has && t.to.Link.Detour != nil && t.to.Link.Key() != link.Key{}
}

// detoursOf returns the detours of devices, and what takes them. The caller must hold mu.
func (l *Links) detoursOf(wanted map[desired.Hop]link.Device, list []tunnel) (map[desired.Hop]link.Device, map[desired.Hop]link.Diversion) {
	detours, diversions := map[desired.Hop]link.Device{}, map[desired.Hop]link.Diversion{}
	for _, t := range list {
		d, has := wanted[t.Hop]
		c := l.courses[t.pair()]
		if !has || c == nil || !l.can(t) {
			continue
		}
		i := slices.IndexFunc(d.Peers, func(p link.Peer) bool { return p.PublicKey == c.key })
		if i < 0 {
			continue
		}
		number := l.slots[t.Hop].Number
		by, x := detours[t.Hop], diversions[t.Hop]
		by.Name, by.Interface = wellknown.DetourInterface(number), link.Interface{MTU: d.MTU}
		by.ListenPort, by.PrivateKey = l.detours[number], l.detourKey
		p := link.Peer{
			PublicKey: t.to.Link.Detour.Key(), AllowedIPs: d.Peers[i].AllowedIPs,
			Endpoint: endpointAt(l.self, t, t.to.Link.Detour.Tunnel(l.self.ID(), t.Link)),
		}
		if c.detour || c.wants && !c.fresh {
			p.PersistentKeepalive = beat
		}
		// Two handshakes that cross can leave the ends with different sessions, so one end begins.
		if !c.fresh && fabric.CompareNodeIDs(l.self.ID(), t.to.ID()) > 0 && time.Since(c.since) < l.settle {
			p.Endpoint, p.PersistentKeepalive = netip.AddrPort{}, 0
		}
		by.Peers = append(by.Peers, p)
		x.Detour = by.Name
		if c.detour {
			x.To = append(x.To, p.AllowedIPs...)
		}
		detours[t.Hop], diversions[t.Hop] = by, x
	}
	return detours, diversions
}

// applied notes that the devices have their keys.
func (l *Links) applied() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.courses {
		if c.replacing {
			c.replacing, c.shaken = false, time.Now()
		}
	}
}

// divert brings about the diversions. The other devices have no filters by now; where this node
// replaces its key some time, they are made ready for some. Where it cannot, nothing follows from
// the courses yet.
func (l *Links) divert(diversions map[desired.Hop]link.Diversion, wanted map[desired.Hop]link.Device, spaces map[desired.Hop]string, ready bool) error {
	var errs, cannot []error
	for hop, namespace := range spaces {
		x, has := diversions[hop]
		if !has && !ready {
			continue // its devices stay as they are until another node replaces its key
		}
		x.Namespace, x.Device, x.Ready = namespace, wanted[hop].Name, ready
		err := link.Divert(x)
		l.diverted[x.Device] = has || err != nil
		if err == nil {
			continue
		}
		cannot = append(cannot, err)
		if has {
			errs = append(errs, err)
		}
		l.mu.Lock()
		for p, c := range l.courses {
			if p.hop == hop {
				c.since = time.Now()
			}
		}
		l.mu.Unlock()
	}
	l.tried, l.cannot = true, errors.Join(cannot...)
	return errors.Join(errs...)
}
