// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/limit"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
)

// logInterval is the time between two log lines about refused connections of one source.
const logInterval = 10 * time.Second

// Server answers other daemons. What it grants to one source or node is bounded, on all listeners
// together, before and after the peer is known.
type Server struct {
	conf     *tls.Config
	identity Identity
	onConn   func(context.Context, *Conn)
	handler  Handler

	handshakes *limit.Count[netip.Prefix]
	rates      *limit.Rate[netip.Prefix]
	logs       *limit.Rate[netip.Prefix]
	loads      loads
	onward     Onward // nil: nothing is passed on
	through    *limit.Count[fabric.NodeID]

	mu      sync.Mutex
	refused map[string]uint64 // by reason
}

// NewServer returns a server. conf must come from identity.ServerTLS and require a certificate.
// onConn, if not nil, is called with each connection before its calls are handled, and a context
// that ends with Serve.
func NewServer(conf *tls.Config, id Identity, onConn func(context.Context, *Conn), h Handler) (*Server, error) {
	if conf.ClientAuth < tls.RequireAnyClientCert {
		return nil, errors.New("serve agents and engines: the TLS configuration does not require client certificates")
	}
	return &Server{
		conf: conf, identity: id, onConn: onConn, handler: h,
		handshakes: limit.NewCount[netip.Prefix](maxHandshakesEach, maxHandshakes),
		rates:      limit.NewRate[netip.Prefix](handshakeInterval, handshakeBurst),
		logs:       limit.NewRate[netip.Prefix](logInterval, 3),
		through:    limit.NewCount[fabric.NodeID](maxThroughEach, maxThrough),
		refused:    map[string]uint64{},
	}, nil
}

// Refused returns how many connections and calls were refused because of a limit, by reason.
func (s *Server) Refused() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.refused)
}

func (s *Server) count(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[reason]++
}

// Serve accepts connections until ctx ends. Then it closes them, waits for their handlers and
// returns nil. Refused peers are logged to the logger of ctx.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel() // before the wait

	log := hclog.FromContext(ctx)
	for {
		raw, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				raw.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept agents and engines on %s: %w", l.Addr(), err)
		case err != nil: // for example, no file descriptor is free: retry
			log.Warn("cannot accept a connection, retrying", logkey.Address, l.Addr().String(), logkey.Error, err)
			retry.Sleep(ctx, 100*time.Millisecond)
			continue
		}
		if tcp, ok := raw.(*net.TCPConn); ok {
			_ = tcp.SetKeepAliveConfig(keepAlive) // fails if the connection is closed
		}
		source := limit.Source(raw.RemoteAddr())
		refuse := func(err error) {
			raw.Close()
			if quiet, _ := s.logs.Allow(source); quiet && ctx.Err() == nil {
				log.Warn("peer refused", logkey.Address, raw.RemoteAddr().String(), logkey.Error, err)
			}
		}
		if err := s.admit(source); err != nil { // never wait: the others would have to wait as well
			refuse(err)
			continue
		}
		conns.Go(func() {
			hctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
			conf, own := noteOwn(s.conf)
			t := tls.Server(raw, conf)
			c, err := handshake(hctx, t, s.identity, own)
			cancel()
			s.handshakes.Release(source)
			if err != nil {
				refuse(err)
				return
			}
			if t.ConnectionState().NegotiatedProtocol == protocolThrough {
				s.passOn(ctx, c)
				return
			}
			load := s.loads.enter(c.peer.NodeID, func() { s.count(reasonCalls) })
			if load == nil {
				s.count(reasonConns)
				refuse(fmt.Errorf("node %s has %d connections, the most that it may have", c.peer.NodeID, maxConns))
				return
			}
			defer s.loads.leave(c.peer.NodeID)
			c.start(ctx, s.handler, s.onConn, load)
			<-c.Done()
			c.handlers.Wait()
		})
	}
}

// admit takes a handshake for a source, or says which limit it has reached.
func (s *Server) admit(source netip.Prefix) error {
	if ok, _ := s.rates.Allow(source); !ok {
		s.count(reasonRate)
		return errors.New("too many connections of this source in a short time")
	}
	if !s.handshakes.Take(source) {
		reason := reasonHandshakes
		if s.handshakes.Has(source) < maxHandshakesEach {
			reason = reasonAllHandshakes
		}
		s.count(reason)
		return errors.New("too many " + reason)
	}
	return nil
}
