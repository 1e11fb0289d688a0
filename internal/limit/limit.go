// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package limit bounds what each source or identity may have at a time, and how often it may do
// something, so that one of them cannot take what all need. It does not know what is bounded.
package limit

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxKeys bounds the memory of a Rate. Keys beyond it share one allowance.
const maxKeys = 1 << 14

// Source returns what stands for the source of a connection in limits: its IPv4 address, or the /64
// of its IPv6 address, because whoever has one address of a /64 usually has all of them. It is the
// zero Prefix for other kinds of addresses.
func Source(a net.Addr) netip.Prefix {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{}
	}
	addr := p.Addr().Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	prefix, _ := addr.Prefix(bits) // the length suits the family
	return prefix
}

// Count bounds how many of something each key has at a time, and all keys together. It is safe for
// concurrent use.
type Count[K comparable] struct {
	each, all int

	mu    sync.Mutex
	have  map[K]int
	total int
}

// NewCount returns a Count with these bounds; all is not bounded if it is 0.
func NewCount[K comparable](each, all int) *Count[K] {
	return &Count[K]{each: each, all: all, have: map[K]int{}}
}

// Take takes one for a key, and reports whether it could. Give it back with Release.
func (c *Count[K]) Take(key K) bool { return c.TakeN(key, 1) }

// TakeN is Take of n, all or none. Give them back with ReleaseN.
func (c *Count[K]) TakeN(key K, n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.have[key]+n > c.each || c.all > 0 && c.total+n > c.all {
		return false
	}
	if n > 0 {
		c.have[key] += n
		c.total += n
	}
	return true
}

// Has returns how many a key has.
func (c *Count[K]) Has(key K) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.have[key]
}

// Release gives back what Take took.
func (c *Count[K]) Release(key K) { c.ReleaseN(key, 1) }

// ReleaseN gives back what TakeN took.
func (c *Count[K]) ReleaseN(key K, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.have[key] -= n; c.have[key] == 0 {
		delete(c.have, key)
	}
	c.total -= n
}

// Rate bounds how often each key does something: at most burst times at once, and after that once
// every interval. It is safe for concurrent use.
type Rate[K comparable] struct {
	every time.Duration
	burst int
	now   func() time.Time

	mu     sync.Mutex
	keys   map[K]*rate.Limiter
	others *rate.Limiter // shared by the keys for which there is no room
	swept  time.Time     // when forget ran
}

// NewRate returns a Rate.
func NewRate[K comparable](every time.Duration, burst int) *Rate[K] {
	r := &Rate[K]{every: every, burst: burst, now: time.Now, keys: map[K]*rate.Limiter{}}
	r.others = r.limiter()
	return r
}

func (r *Rate[K]) limiter() *rate.Limiter { return rate.NewLimiter(rate.Every(r.every), r.burst) }

// Allow reports whether a key may do it now, and counts it if so. If not, it returns when to try
// again.
func (r *Rate[K]) Allow(key K) (ok bool, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	l := r.keys[key]
	if l == nil {
		if len(r.keys) >= maxKeys && now.Sub(r.swept) >= r.every {
			r.forget(now)
			r.swept = now
		}
		if len(r.keys) < maxKeys {
			l = r.limiter()
			r.keys[key] = l
		} else {
			l = r.others
		}
	}
	reservation := l.ReserveN(now, 1)
	if wait = reservation.DelayFrom(now); wait == 0 {
		return true, 0
	}
	reservation.CancelAt(now)
	return false, wait
}

// Wait returns how long a key must wait until it may do it again; 0 if it may now. It counts
// nothing.
func (r *Rate[K]) Wait(key K) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.keys[key]
	if l == nil {
		if len(r.keys) < maxKeys {
			return 0
		}
		l = r.others
	}
	if missing := 1 - l.TokensAt(r.now()); missing > 0 {
		return time.Duration(missing * float64(r.every))
	}
	return 0
}

// forget drops the keys that have their whole burst again. The caller holds r.mu.
func (r *Rate[K]) forget(now time.Time) {
	for key, l := range r.keys {
		if l.TokensAt(now) >= float64(r.burst) {
			delete(r.keys, key)
		}
	}
}

// OnClose returns conn with a Close that also calls closed, at its first call.
func OnClose(conn net.Conn, closed func()) net.Conn {
	return &onClose{Conn: conn, closed: sync.OnceFunc(closed)}
}

type onClose struct {
	net.Conn
	closed func()
}

func (c *onClose) Close() error {
	c.closed()
	return c.Conn.Close()
}
