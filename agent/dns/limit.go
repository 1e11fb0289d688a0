// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dns

import (
	"maps"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/time/rate"
)

// share is a counting semaphore for each asker, so that no workload can use up the node's DNS.
type share struct {
	limit int

	mu   sync.Mutex
	used map[netip.Addr]int
}

func newShare(limit int) *share { return &share{limit: limit, used: map[netip.Addr]int{}} }

// acquire reports whether the asker is below its limit, and counts one more if so.
func (s *share) acquire(asker netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used[asker] >= s.limit {
		return false
	}
	s.used[asker]++
	return true
}

// release undoes one acquire.
func (s *share) release(asker netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used[asker]--; s.used[asker] == 0 {
		delete(s.used, asker)
	}
}

// quota limits how often each asker may do something: rate times a second, and burst times at once.
type quota struct {
	rate  rate.Limit
	burst int

	mu sync.Mutex
	of map[netip.Addr]*rate.Limiter
}

func newQuota(perSecond, burst int) *quota {
	return &quota{rate: rate.Limit(perSecond), burst: burst, of: map[netip.Addr]*rate.Limiter{}}
}

// idleAskers is the number of askers from which on those that ask nothing are forgotten.
const idleAskers = 1024

// take reports whether the asker is below its limit, and counts one more if so.
func (q *quota) take(asker netip.Addr) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	limiter, known := q.of[asker]
	if !known {
		if len(q.of) >= idleAskers {
			maps.DeleteFunc(q.of, func(_ netip.Addr, l *rate.Limiter) bool { return l.Tokens() >= float64(q.burst) })
		}
		limiter = rate.NewLimiter(q.rate, q.burst)
		q.of[asker] = limiter
	}
	return limiter.Allow()
}

// sharedListener closes connections of unknown askers and those above an asker's limit.
type sharedListener struct {
	net.Listener
	share *share
	known func(netip.Addr) bool
}

func (l sharedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		asker := addrOf(c.RemoteAddr())
		if l.known(asker) && l.share.acquire(asker) {
			return &sharedConn{Conn: c, release: sync.OnceFunc(func() { l.share.release(asker) })}, nil
		}
		c.Close()
	}
}

type sharedConn struct {
	net.Conn
	release func()
}

func (c *sharedConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// addrOf returns the IP address of a UDP or TCP address.
func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
