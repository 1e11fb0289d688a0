// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// WayState is what probes of one version of IP found of a way.
type WayState string

// The states, from the best to the worst.
const (
	WayUp         WayState = "up"
	WayUnmeasured WayState = "unmeasured" // too few probes so far
	WayMTU        WayState = "mtu"        // small packets pass, full-size ones do not
	WayLoss       WayState = "loss"       // more than a few of the last probes were lost
	WayDown       WayState = "down"       // the last probes were not answered
)

var wayStates = []WayState{WayUp, WayUnmeasured, WayMTU, WayLoss, WayDown}

// WayFound is what probes of one version of IP found of a way.
type WayFound struct {
	State    WayState      `json:"state"`
	Sent     int           `json:"sent"`              // the last small packets, at most 30
	Lost     int           `json:"lost"`              // of those
	RTT      time.Duration `json:"rtt,omitempty"`     // median of those that were answered, in nanoseconds
	Full     int           `json:"full"`              // size in bytes of the largest packets that must pass, with IP's header
	Passed   int           `json:"passed,omitempty"`  // size of the largest that passed since the way changed: the path MTU
	Answered time.Time     `json:"answered,omitzero"` // when the last answer came
	Error    string        `json:"error,omitempty"`   // why the last packet could not be sent
}

// WayStatus is what a node's own probes found of the link to another node, or of the path to
// another zone.
type WayStatus struct {
	To   string   `json:"to"` // "zone/node" of a link, "zone" of a path
	IPv4 WayFound `json:"ipv4"`
	IPv6 WayFound `json:"ipv6"`
}

// Link reports whether the way is a link to a node, not a path to a zone.
func (w WayStatus) Link() bool { return strings.Contains(w.To, "/") }

// ZonePair is what the nodes of one zone found of their paths to another.
type ZonePair struct {
	From, To   string
	Nodes      int // that measure it
	IPv4, IPv6 WayFound
}

// ZonePairs puts together what all nodes found of paths between zones: sums of packets, the median
// of round-trip times, the smallest path MTU, the worst state.
func (s Status) ZonePairs() []ZonePair {
	type key struct{ from, to string }
	found := map[key][]WayStatus{}
	for _, n := range s.Nodes {
		for _, w := range n.Ways {
			if !w.Link() {
				k := key{n.Zone, w.To}
				found[k] = append(found[k], w)
			}
		}
	}
	var pairs []ZonePair
	for k, ways := range found {
		p := ZonePair{From: k.from, To: k.to, Nodes: len(ways)}
		var v4, v6 []WayFound
		for _, w := range ways {
			v4, v6 = append(v4, w.IPv4), append(v6, w.IPv6)
		}
		p.IPv4, p.IPv6 = together(v4), together(v6)
		pairs = append(pairs, p)
	}
	slices.SortFunc(pairs, func(a, b ZonePair) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	return pairs
}

func together(list []WayFound) WayFound {
	all := WayFound{State: WayUp}
	var times []time.Duration
	for _, f := range list {
		if slices.Index(wayStates, f.State) > slices.Index(wayStates, all.State) {
			all.State = f.State
		}
		all.Sent, all.Lost = all.Sent+f.Sent, all.Lost+f.Lost
		all.Full = max(all.Full, f.Full)
		if f.Passed > 0 && (all.Passed == 0 || f.Passed < all.Passed) {
			all.Passed = f.Passed
		}
		if f.RTT > 0 {
			times = append(times, f.RTT)
		}
		if f.Answered.After(all.Answered) {
			all.Answered = f.Answered
		}
		all.Error = cmp.Or(all.Error, f.Error)
	}
	if len(times) > 0 {
		slices.Sort(times)
		all.RTT = times[len(times)/2]
	}
	return all
}
