// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"net/netip"
	"time"

	"github.com/sif-project/sif/fabric"
)

// restTime is how long a released address is not given to another endpoint, so that every cache on
// nodes is corrected before.
const restTime = 10 * time.Minute

// grant is what the controller stores about an endpoint: its last admission, and the addresses that
// rest after it.
type grant struct {
	Signed   fabric.Signed            `json:"signed"`
	Released time.Time                `json:"released,omitzero"` // zero: it was not released
	Resting  map[netip.Addr]time.Time `json:"resting,omitempty"` // addresses of earlier admissions, until when they rest
	// Registered is what Consul had of a workload outside Nomad when it was last readable.
	Registered *registration `json:"registered,omitempty"`

	admission fabric.Admission // the payload of Signed
	index     uint64           // the modify index of the grant in Consul
	unread    bool             // what Consul has with that index was not read
}

// live reports whether the admission is in force.
func (g *grant) live(now time.Time) bool {
	return g.Released.IsZero() && now.Before(g.admission.Expires)
}

// has reports whether addr is an address of the admission.
func (g *grant) has(addr netip.Addr) bool {
	return addr == g.admission.IPv4 || addr == g.admission.IPv6
}

// reserves reports whether addr cannot be given to another endpoint, and until when.
func (g *grant) reserves(addr netip.Addr, now time.Time) (until time.Time, reserved bool) {
	if g.has(addr) {
		until = g.admission.Expires
		if !g.Released.IsZero() {
			until = g.Released
		}
		until = until.Add(restTime)
	}
	if t, ok := g.Resting[addr]; ok && t.After(until) {
		until = t
	}
	return until, now.Before(until)
}

// bound limits what a grant from Consul says without a signature: only addresses of the node's pool
// can rest, and none longer than from now on; of a registration, only the one whose hash was signed
// counts. Of a node without a record, nobody can get addresses.
func (g *grant) bound(now time.Time, node fabric.Node) {
	if g.Registered.hash() != g.admission.Registration {
		g.Registered = nil
	}
	if g.Released.After(now) {
		g.Released = now
	}
	for addr, until := range g.Resting {
		switch {
		case !node.Pool4.Contains(addr) && !node.Pool6.Contains(addr):
			delete(g.Resting, addr)
		case until.After(now.Add(restTime)):
			g.Resting[addr] = now.Add(restTime)
		}
	}
}

// over reports whether the grant is neither live nor reserves an address, so that it can be
// deleted.
func (g *grant) over(now time.Time) bool {
	if g.live(now) {
		return false
	}
	for _, addr := range []netip.Addr{g.admission.IPv4, g.admission.IPv6} {
		if _, reserved := g.reserves(addr, now); reserved {
			return false
		}
	}
	for _, until := range g.Resting {
		if now.Before(until) {
			return false
		}
	}
	return true
}
