// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dns

import (
	"net"
	"net/netip"
	"sync"
)

// share bounds how many of something each asker may have at a time, so that
// no workload takes the node's DNS away from the others.
type share struct {
	limit int

	mu   sync.Mutex
	held map[netip.Addr]int
}

func newShare(limit int) *share { return &share{limit: limit, held: map[netip.Addr]int{}} }

// take takes one for the asker, and returns false if it has all it may have.
func (s *share) take(asker netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[asker] >= s.limit {
		return false
	}
	s.held[asker]++
	return true
}

// giveBack ends one take.
func (s *share) giveBack(asker netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[asker]--; s.held[asker] == 0 {
		delete(s.held, asker)
	}
}

// sharedListener closes at once the connections of strangers and those beyond
// an asker's share.
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
		if l.known(asker) && l.share.take(asker) {
			return &sharedConn{Conn: c, giveBack: sync.OnceFunc(func() { l.share.giveBack(asker) })}, nil
		}
		c.Close()
	}
}

type sharedConn struct {
	net.Conn
	giveBack func()
}

func (c *sharedConn) Close() error {
	c.giveBack()
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
