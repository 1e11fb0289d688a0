// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"

	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/trust/revocation"
)

// sessions are the open connections of callers that showed a certificate. Those of callers that
// lose their rights are closed, so that nothing more is answered on them.
type sessions struct {
	mu   sync.Mutex
	open map[*tls.Conn]bool
}

// track is http.Server.ConnState.
func (s *sessions) track(conn net.Conn, state http.ConnState) {
	c, ok := conn.(*tls.Conn)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch state {
	case http.StateActive:
		if s.open == nil {
			s.open = map[*tls.Conn]bool{}
		}
		s.open[c] = true
	case http.StateClosed, http.StateHijacked:
		delete(s.open, c)
	}
}

// closeRevoked closes the connections whose certificates are not accepted any more, until ctx ends.
// A node that comes back on a new one is told why, with the remedy.
func (c *Controller) closeRevoked(ctx context.Context) error {
	for {
		changed := c.removal.list.Changed()
		c.sessions.mu.Lock()
		var open []*tls.Conn
		for conn := range c.sessions.open {
			open = append(open, conn)
		}
		c.sessions.mu.Unlock()
		list := c.removal.list.List()
		for _, conn := range open {
			state := conn.ConnectionState()
			peer, leaf, err := c.cfg.Identity.Peer(state)
			if err != nil {
				continue // without a certificate, or one that has ended, which each call is refused for
			}
			if why := revocation.Certificate(list, peer, leaf); why != nil {
				c.log.Info("connection closed", logkey.Address, conn.RemoteAddr().String(), logkey.Error, why)
				_ = conn.Close() // it ends all the same
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}
