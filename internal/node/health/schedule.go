// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package health

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
)

// How often probes are sent; doc.go has the arithmetic. The families take turns.
const (
	smallInterval    = 2 * time.Second
	linkFullInterval = 20 * time.Second
	zoneInterval     = 2500 * time.Millisecond
	zoneFullInterval = 30 * time.Second
	// suspicion is the pause before a full-size packet that follows a lost one, in small packets.
	// What it takes is saved afterwards.
	suspicion = 2
	// stay is how long a node probes another zone by the same node of it, unless that one does not
	// answer.
	stay = time.Minute
	// timeout is the time after which a probe is lost.
	timeout = 2 * time.Second
)

// Target is a node to which probes are sent.
type Target struct {
	Node       fabric.NodeID
	Link       string // of the tunnel, if several lead to the node
	IPv4, IPv6 netip.Addr
	// Space is the path of the network namespace of the link by which it is reached; empty for the
	// process's own.
	Space string
	// Interface is the name of the interface by which its packets come; empty: any.
	Interface string
	// Full is the size in bytes of the largest packets that must pass, with IP's header.
	Full int
}

// hop is the tunnel by which the target is reached.
func (t Target) hop() desired.Hop { return desired.Hop{Processor: t.Node, Link: t.Link} }

// families are the versions of IP, in the order in which they take turns.
const (
	ipv4 = iota
	ipv6
	familyCount
)

func (t Target) addr(family int) netip.Addr {
	if family == ipv4 {
		return t.IPv4
	}
	return t.IPv6
}

// way is one way that is measured: the link to a node, or the path to another zone, by one of its
// nodes.
type way struct {
	targets   []Target
	current   int
	since     time.Time // when the current target became it
	smallEach time.Duration
	fullEach  time.Duration

	nextSmall, nextFull time.Time
	smallTurn, fullTurn int // families
	debt                time.Duration
	streak              int // small packets of either family lost since the last answer
	families            [familyCount]family
}

func newWay(targets []Target, smallEach, fullEach time.Duration, now time.Time) *way {
	w := &way{
		targets: targets, smallEach: smallEach, fullEach: fullEach, since: now,
		// Not all at once, and the first ones soon.
		nextSmall: now.Add(rand.N(smallEach)),
		nextFull:  now.Add(smallInterval + rand.N(fullEach)),
	}
	if len(targets) > 1 {
		w.current = rand.IntN(len(targets))
	}
	w.setFull()
	return w
}

func (w *way) target() Target { return w.targets[w.current] }

func (w *way) setFull() {
	for f := range w.families {
		w.families[f].full = w.target().Full
	}
}

// update replaces the targets and intervals, and keeps what was measured.
func (w *way) update(targets []Target, smallEach, fullEach time.Duration) {
	old := w.target().Node
	w.targets, w.current, w.smallEach, w.fullEach = targets, 0, smallEach, fullEach
	for i, t := range targets {
		if t.Node == old {
			w.current = i
		}
	}
	w.setFull()
}

// moveOn makes the next node of a zone the one that is probed.
func (w *way) moveOn(now time.Time) {
	w.current, w.since = (w.current+1)%len(w.targets), now
	w.setFull()
}

// packet is a probe to be sent.
type packet struct {
	family int
	size   int // with IP's header; 0: a small one
}

// due returns the probes that must be sent now.
func (w *way) due(now time.Time) []packet {
	var list []packet
	if now.Sub(w.since) > stay {
		w.moveOn(now)
	}
	if !now.Before(w.nextSmall) {
		list = append(list, packet{family: w.smallTurn})
		w.smallTurn = (w.smallTurn + 1) % familyCount
		w.nextSmall = now.Add(w.smallEach)
	}
	if !now.Before(w.nextFull) {
		f := w.fullTurn
		w.nextFull = now.Add(w.pause() + w.debt)
		w.debt = 0
		if family := &w.families[f]; family.streak == 0 { // else it would tell nothing
			list = append(list, packet{f, family.nextSize()})
		}
		w.fullTurn = (w.fullTurn + 1) % familyCount
	}
	return list
}

// concluded records the outcome of a probe.
func (w *way) concluded(p packet, rtt time.Duration, answered bool, now time.Time) {
	f := &w.families[p.family]
	if p.size > 0 {
		was := f.blocked()
		f.large(p.size, answered)
		switch other := (p.family + 1) % familyCount; {
		case f.suspicious():
			w.hurry(p.family, now)
		case was && !f.blocked() && w.families[other].blocked():
			w.hurry(other, now) // it passes again, so the other one may as well
		}
		return
	}
	f.small(rtt, answered, now)
	if answered {
		w.streak = 0
		return
	}
	if w.streak++; len(w.targets) > 1 {
		w.moveOn(now)
	}
}

// hurry sends the next full-size packet soon, of the given family, and saves it afterwards.
func (w *way) hurry(family int, now time.Time) {
	if soon := now.Add(suspicion * w.smallEach); w.nextFull.After(soon) {
		w.debt = min(w.debt+w.nextFull.Sub(soon), 2*w.fullEach)
		w.nextFull, w.fullTurn = soon, family
	}
}

// pause is the time between full-size packets. While they are lost there are no answers to them,
// which leaves room for more.
func (w *way) pause() time.Duration {
	if w.families[ipv4].blocked() || w.families[ipv6].blocked() {
		return w.fullEach * 2 / 3
	}
	return w.fullEach
}

func (w *way) status(to string) api.WayStatus {
	down := w.streak >= downAfter
	return api.WayStatus{To: to, IPv4: w.families[ipv4].found(down), IPv6: w.families[ipv6].found(down)}
}
