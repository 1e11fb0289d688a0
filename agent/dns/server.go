// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	miekg "github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/internal/logkey"
)

// Bounds of each asker.
const (
	maxForwards    = 64 // questions at the node's resolvers
	maxConnections = 32 // TCP
)

// maxUDP is the largest UDP message sent or asked for, in bytes: what no path
// fragments (RFC 9715).
const maxUDP = 1232

// forwardTimeout bounds a question that goes to the node's resolvers.
const forwardTimeout = 5 * time.Second

// Config says where to listen and what to answer.
type Config struct {
	Listen     netip.AddrPort   // UDP and TCP; port 0 takes a free one
	Zone       string           // the node's
	View       View             //
	Upstreams  []netip.AddrPort // resolvers of names outside .sif; none: those of ResolvConf
	ResolvConf string           // path; empty: /etc/resolv.conf
	Observe    func(Outcome)    // called for every question, if set; must not block
	Log        hclog.Logger
}

// Server is the DNS listener of a node.
type Server struct {
	authority authority
	forwarder *forwarder
	forwards  *share
	observe   func(Outcome)
	log       hclog.Logger
	addr      netip.AddrPort
	udp, tcp  *miekg.Server

	mu     sync.Mutex
	failed bool // the last forwarded question; changes are logged
}

// Listen opens the listener in the network namespace of the calling thread.
// It answers from Serve on.
func Listen(c Config) (*Server, error) {
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.Observe == nil {
		c.Observe = func(Outcome) {}
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(c.Listen))
	if err != nil {
		return nil, fmt.Errorf("listen for DNS: %w", err)
	}
	addr := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("listen for DNS: %w", err)
	}
	s := &Server{
		authority: authority{zone: c.Zone, view: c.View},
		forwarder: newForwarder(addr, c.Upstreams, c.ResolvConf),
		forwards:  newShare(maxForwards),
		observe:   c.Observe, log: c.Log, addr: addr,
	}
	shared := sharedListener{Listener: listener, share: newShare(maxConnections), known: c.View.Known}
	s.udp = &miekg.Server{PacketConn: conn, Handler: s, UDPSize: maxUDP}
	s.tcp = &miekg.Server{Listener: shared, Handler: s}
	return s, nil
}

// Addr is where the server listens.
func (s *Server) Addr() netip.AddrPort { return s.addr }

// Serve answers questions until ctx ends. It closes the listener.
func (s *Server) Serve(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, server := range []*miekg.Server{s.udp, s.tcp} {
		started, ended := make(chan struct{}), make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		group.Go(func() error {
			defer close(ended)
			return server.ActivateAndServe()
		})
		group.Go(func() error {
			<-ctx.Done()
			select {
			case <-started: // only then can it be shut down
			case <-ended:
				return nil
			}
			wait, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if err := server.ShutdownContext(wait); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				return err
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("serve DNS on %s: %w", s.addr, err)
	}
	return nil
}

// ServeDNS implements the handler of miekg/dns. It is called concurrently.
func (s *Server) ServeDNS(w miekg.ResponseWriter, req *miekg.Msg) {
	asker := addrOf(w.RemoteAddr())
	resp, outcome := s.respond(asker, req)
	s.observe(outcome)
	_, isUDP := w.RemoteAddr().(*net.UDPAddr)
	finish(req, resp, isUDP)
	if err := w.WriteMsg(resp); err != nil {
		s.log.Debug("answer not sent", logkey.Address, asker, logkey.Error, err)
	}
}

// respond answers one question.
func (s *Server) respond(asker netip.Addr, req *miekg.Msg) (*miekg.Msg, Outcome) {
	opt := req.IsEdns0()
	switch {
	case !s.authority.view.Known(asker):
		return reply(req, miekg.RcodeRefused), Refused
	case req.Opcode != miekg.OpcodeQuery:
		return reply(req, miekg.RcodeNotImplemented), Refused
	case len(req.Question) != 1:
		return reply(req, miekg.RcodeFormatError), Refused
	case opt != nil && opt.Version() != 0:
		return reply(req, miekg.RcodeBadVers), Refused
	}
	q := req.Question[0]
	switch {
	case q.Qclass != miekg.ClassINET, q.Qtype == miekg.TypeAXFR, q.Qtype == miekg.TypeIXFR:
		return reply(req, miekg.RcodeRefused), Refused
	case inApex(q.Name):
		return s.authority.answer(asker, req)
	}
	return s.forward(asker, req)
}

func (s *Server) forward(asker netip.Addr, req *miekg.Msg) (*miekg.Msg, Outcome) {
	if !s.forwards.take(asker) {
		return reply(req, miekg.RcodeServerFailure), Failed
	}
	defer s.forwards.giveBack(asker)
	ctx, cancel := context.WithTimeout(context.Background(), forwardTimeout)
	defer cancel()
	resp, err := s.forwarder.forward(ctx, req)
	s.note(err)
	if err != nil {
		return reply(req, miekg.RcodeServerFailure), Failed
	}
	return resp, Forwarded
}

// note logs when the node's resolvers begin and cease to answer.
func (s *Server) note(err error) {
	s.mu.Lock()
	changed := s.failed != (err != nil)
	s.failed = err != nil
	s.mu.Unlock()
	switch {
	case changed && err != nil:
		s.log.Warn("names outside .sif cannot be resolved", logkey.Error, err)
	case changed:
		s.log.Info("names outside .sif can be resolved again")
	}
}

// finish makes the response fit the way that the question came.
func finish(req, resp *miekg.Msg, isUDP bool) {
	size := miekg.MaxMsgSize
	if isUDP {
		size = miekg.MinMsgSize
	}
	opt := req.IsEdns0()
	switch {
	case opt != nil:
		resp.SetEdns0(maxUDP, opt.Do())
		if isUDP {
			size = min(max(size, int(opt.UDPSize())), maxUDP)
		}
	case resp.Rcode > 0xf: // cannot be said without EDNS
		resp.Rcode = miekg.RcodeServerFailure
	}
	resp.Truncate(size)
}
