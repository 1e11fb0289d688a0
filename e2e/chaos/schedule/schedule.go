// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package schedule decides which faults happen to a fabric, and when. A schedule is a pure function
// of a seed and of what the fabric consists of, and is printed and read as text, so that a run can
// be repeated. It does nothing, and knows no lab.
package schedule

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Kind is a kind of fault.
type Kind string

// Kinds of fault. Each one ends: a daemon runs again, packets pass again.
const (
	Kill    Kind = "kill"    // SIGKILL; it is started again at the end
	Stop    Kind = "stop"    // SIGSTOP; it goes on at the end
	Restart Kind = "restart" // SIGTERM, and it is started again when it has ended
	Cut     Kind = "cut"     // no packet passes between two nodes
	OneWay  Kind = "oneway"  // none passes from the first to the second
	Loss    Kind = "loss"    // a share of the packets between two nodes is lost
	Fill    Kind = "fill"    // the disk with the state of a node's daemons is full
	Slow    Kind = "slow"    // that disk stands still most of the time
	Leader  Kind = "leader"  // whichever server of Consul leads stands still
)

// Fault is something that happens, and ends.
type Fault struct {
	At  time.Duration // since the schedule began
	For time.Duration // how long it lasts; Restart: not used
	Kind
	Node    string // of whom; Leader: empty
	Daemon  string // Kill, Stop, Restart
	Peer    string // Cut, OneWay, Loss: the other node
	Percent int    // Loss
}

// End is when the fault has ended, since the schedule began.
func (f Fault) End() time.Duration { return f.At + f.For }

// Fabric is what faults can happen to.
type Fabric struct {
	Daemons []Daemon
	Pairs   [][2]string // of nodes that speak to one another
	Disks   []string    // nodes whose daemons have a disk of their own
	Leader  bool        // there are several servers of Consul
}

// Daemon is a process of a node.
type Daemon struct{ Node, Name string }

// Check returns an error unless all faults of a schedule can happen to the fabric.
func (f Fabric) Check(list []Fault) error {
	for _, one := range list {
		can := f.Leader
		switch one.Kind {
		case Kill, Stop, Restart:
			can = slices.Contains(f.Daemons, Daemon{one.Node, one.Daemon})
		case Cut, OneWay, Loss:
			can = slices.Contains(f.Pairs, [2]string{one.Node, one.Peer}) || slices.Contains(f.Pairs, [2]string{one.Peer, one.Node})
		case Fill, Slow:
			can = slices.Contains(f.Disks, one.Node)
		}
		if !can {
			return fmt.Errorf("fault %q cannot happen to this fabric: it has no such daemon, disk or pair of nodes that speak to one another, or fewer than three servers of Consul", one)
		}
	}
	return nil
}

// What bounds a schedule.
const (
	first    = 4 * time.Second  // nothing happens before
	shortest = time.Second      // a fault
	longest  = 9 * time.Second  // a fault, shorter than what makes Nomad give a node up
	between  = 6 * time.Second  // from one fault to the next, at most
	unit     = time.Millisecond // of all times, as they are printed
)

// Generate returns faults that all have ended within length. At most two are in force at a time,
// and never two of the same node. Every daemon is named as often as every other one, but for one.
func Generate(seed uint64, length time.Duration, f Fabric) []Fault {
	g := &generator{rand: rand.New(rand.NewPCG(seed, 0x5349462d6368616f)), fabric: f}
	var list []Fault
	for at := first; ; at += g.between(0, between) {
		next := g.fault()
		next.At = at
		if next.Kind != Restart {
			next.For = g.between(shortest, longest)
		}
		if next.At = free(list, next); next.End() > length {
			return list
		}
		at = next.At
		list = append(list, next)
	}
}

// free returns when a fault can begin: at its time, or as soon as the earlier ones leave room.
func free(list []Fault, f Fault) time.Duration {
	var ends []time.Duration // of those that are in force
	at := f.At
	for _, other := range list {
		if other.End()+shortest > at && other.touches(f) {
			at = other.End() + shortest
		}
	}
	for _, other := range list {
		if other.End() > at {
			ends = append(ends, other.End())
		}
	}
	if len(ends) < 2 {
		return at
	}
	slices.Sort(ends)
	return ends[len(ends)-2]
}

// touches reports whether two faults concern the same node. A change of Consul's leader concerns
// all servers, and so every fault of a daemon that may be one.
func (f Fault) touches(o Fault) bool {
	if f.Kind == Leader || o.Kind == Leader {
		return f.Kind == o.Kind || f.Daemon == "consul" || o.Daemon == "consul"
	}
	for _, n := range []string{f.Node, f.Peer} {
		if n != "" && (n == o.Node || n == o.Peer) {
			return true
		}
	}
	return false
}

type generator struct {
	rand    *rand.Rand
	fabric  Fabric
	daemons []Daemon // those that are not named yet in this round
}

// between returns a time from low to high.
func (g *generator) between(low, high time.Duration) time.Duration {
	return (low + time.Duration(g.rand.Int64N(int64(high-low)+1))).Truncate(unit)
}

// fault returns what happens next, without its time.
func (g *generator) fault() Fault {
	f := g.fabric
	for {
		switch n := g.rand.IntN(100); {
		case n < 60 && len(f.Daemons) > 0:
			d := g.daemon()
			return Fault{Kind: []Kind{Kill, Stop, Restart}[g.rand.IntN(3)], Node: d.Node, Daemon: d.Name}
		case n >= 60 && n < 86 && len(f.Pairs) > 0:
			p := f.Pairs[g.rand.IntN(len(f.Pairs))]
			if g.rand.IntN(2) == 0 {
				p[0], p[1] = p[1], p[0]
			}
			next := Fault{Kind: []Kind{Cut, OneWay, Loss}[g.rand.IntN(3)], Node: p[0], Peer: p[1]}
			if next.Kind == Loss {
				next.Percent = 5 + g.rand.IntN(36)
			}
			return next
		case n >= 86 && n < 95 && len(f.Disks) > 0:
			return Fault{Kind: []Kind{Fill, Slow}[g.rand.IntN(2)], Node: f.Disks[g.rand.IntN(len(f.Disks))]}
		case n >= 95 && f.Leader:
			return Fault{Kind: Leader}
		case len(f.Daemons)+len(f.Pairs)+len(f.Disks) == 0 && !f.Leader:
			panic("there is nothing to which faults could happen")
		}
	}
}

// daemon returns each daemon once in each round, in an order of its own.
func (g *generator) daemon() Daemon {
	if len(g.daemons) == 0 {
		g.daemons = slices.Clone(g.fabric.Daemons)
		slices.SortFunc(g.daemons, func(a, b Daemon) int {
			return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Name, b.Name))
		})
		g.rand.Shuffle(len(g.daemons), func(i, j int) { g.daemons[i], g.daemons[j] = g.daemons[j], g.daemons[i] })
	}
	d := g.daemons[0]
	g.daemons = g.daemons[1:]
	return d
}
