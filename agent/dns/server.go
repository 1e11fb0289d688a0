// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	miekg "github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/limit"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/outside/query"
)

// Limits of each asker.
const (
	maxOutside     = 64 // questions about outside names whose answer is awaited
	maxConnections = 32 // TCP connections

	// Questions beyond are refused. The node's firewall drops what is far beyond, so that a flood
	// does not fill the socket that all askers share.
	maxQuestions   = 1000 // a second
	burstQuestions = 2000 // at once
)

// maxUDP is the maximum size of UDP messages in bytes, which avoids fragments on all paths (RFC
// 9715).
const maxUDP = 1232

// receiveBuffer is the size of the UDP socket's buffer, in bytes of the kernel's own counting.
const receiveBuffer = 4 << 20

const (
	// outsideTimeout limits the time for which an answer about an outside name is awaited.
	outsideTimeout = 5 * time.Second
	// outsideTTL is how long a workload may remember an outside name at most. It is short so that
	// workloads ask again soon after their exit has changed.
	outsideTTL = 5 * time.Second
)

// notGranted is the answer about an outside name that no contract names; an extended error says so.
// REFUSED would not end a resolver's search: glibc asks the next server, and gives up the whole
// search if the name was one of its search list; musl waits until its time is over.
const notGranted = miekg.RcodeNameError

// Outside answers questions about names outside .sif, by what policy grants an asker.
type Outside interface {
	// Resolve answers a question of asker, which is Known. qname is in presentation form. The code
	// of the reply is REFUSED if the name is not granted.
	Resolve(ctx context.Context, asker netip.Addr, qname string, qtype uint16) query.Reply
}

// Config configures a Server.
type Config struct {
	Listen  netip.AddrPort // UDP and TCP; with port 0 the kernel chooses one
	Zone    string         // the node's zone
	Ranges  []netip.Prefix // the fabric's addresses
	View    View
	Outside Outside
	Now     func() time.Time // by which the answers of Outside expire
	Observe func(Outcome)    // if set, called for every query; must not block
	Log     hclog.Logger
}

// Server is the DNS listener of a node.
type Server struct {
	authority authority
	outside   Outside
	now       func() time.Time
	waiting   *limit.Count[netip.Addr] // for Outside
	questions *limit.Rate[netip.Addr]
	observe   func(Outcome)
	log       hclog.Logger
	addr      netip.AddrPort
	udp, tcp  *miekg.Server
}

// Listen opens the listener in the network namespace of the calling thread. Serve answers queries.
func Listen(c Config) (*Server, error) {
	if c.Observe == nil {
		c.Observe = func(Outcome) {}
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(c.Listen))
	if err != nil {
		return nil, fmt.Errorf("listen for DNS: %w", err)
	}
	if err := enlarge(conn); err != nil {
		conn.Close()
		return nil, fmt.Errorf("listen for DNS: %w", err)
	}
	addr := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("listen for DNS: %w", err)
	}
	s := &Server{
		authority: authority{zone: c.Zone, ranges: slices.Concat(linkLocal, c.Ranges), view: c.View},
		outside:   c.Outside, now: c.Now,
		waiting:   limit.NewCount[netip.Addr](maxOutside, 0),
		questions: limit.NewRate[netip.Addr](time.Second/maxQuestions, burstQuestions),
		observe:   c.Observe, log: c.Log, addr: addr,
	}
	shared := sharedListener{Listener: listener, share: limit.NewCount[netip.Addr](maxConnections, 0), known: c.View.Known}
	s.udp = &miekg.Server{PacketConn: conn, Handler: s, UDPSize: maxUDP}
	s.tcp = &miekg.Server{Listener: shared, Handler: s}
	return s, nil
}

// enlarge lets the socket hold questions of many askers at once. The default holds some 200
// packets.
func enlarge(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var setting error
	err = raw.Control(func(fd uintptr) {
		setting = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	})
	return errors.Join(err, setting)
}

// Addr returns the address at which the server listens.
func (s *Server) Addr() netip.AddrPort { return s.addr }

// Serve answers queries until ctx ends, and then closes the listener.
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
			case <-started: // ShutdownContext requires a started server
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

// ServeDNS implements the Handler of miekg/dns.
func (s *Server) ServeDNS(w miekg.ResponseWriter, req *miekg.Msg) {
	asker := addrOf(w.RemoteAddr())
	resp, outcome := s.respond(asker, req)
	s.observe(outcome)
	_, isUDP := w.RemoteAddr().(*net.UDPAddr)
	finish(req, resp, isUDP)
	if err := w.WriteMsg(resp); err != nil {
		s.log.Debug("cannot send answer", logkey.Address, asker, logkey.Error, err)
	}
}

// respond returns the response to a query.
func (s *Server) respond(asker netip.Addr, req *miekg.Msg) (*miekg.Msg, Outcome) {
	if !s.authority.view.Known(asker) {
		return reply(req, miekg.RcodeRefused), Refused
	}
	if ok, _ := s.questions.Allow(asker); !ok {
		return reply(req, miekg.RcodeRefused), Limited
	}
	opt := req.IsEdns0()
	switch {
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
	case s.authority.owns(q.Name):
		return s.authority.reverse(asker, req)
	case inApexOfSearch(q.Name):
		return reply(req, miekg.RcodeNameError), NoName
	}
	return s.resolve(asker, req)
}

// resolve answers a question about an outside name.
func (s *Server) resolve(asker netip.Addr, req *miekg.Msg) (*miekg.Msg, Outcome) {
	if !s.waiting.Take(asker) {
		return reply(req, miekg.RcodeServerFailure), Limited
	}
	defer s.waiting.Release(asker)
	ctx, cancel := context.WithTimeout(context.Background(), outsideTimeout)
	defer cancel()
	r := s.outside.Resolve(ctx, asker, req.Question[0].Name, req.Question[0].Qtype)
	outcome := Resolved
	switch {
	case r.Code == miekg.RcodeRefused:
		outcome = NotGranted
		if r.Extended == miekg.ExtendedErrorCodeProhibited {
			r.Code = notGranted
		}
	case r.Code == miekg.RcodeServerFailure:
		outcome = Failed
	}
	return r.Message(req, outsideTTL, s.now()), outcome
}

// finish adds EDNS to the response if the query has it, and truncates the response to the size that
// the asker accepts.
func finish(req, resp *miekg.Msg, isUDP bool) {
	size := miekg.MaxMsgSize
	if isUDP {
		size = miekg.MinMsgSize
	}
	opt, own := req.IsEdns0(), resp.IsEdns0()
	resp.Extra = slices.DeleteFunc(resp.Extra, func(rr miekg.RR) bool { return rr.Header().Rrtype == miekg.TypeOPT })
	switch {
	case opt != nil:
		resp.SetEdns0(maxUDP, opt.Do())
		if own != nil {
			resp.IsEdns0().Option = own.Option // an extended error
		}
		if isUDP {
			size = min(max(size, int(opt.UDPSize())), maxUDP)
		}
	case resp.Rcode > 0xf: // needs EDNS
		resp.Rcode = miekg.RcodeServerFailure
	}
	// Addresses of targets are asked for if they are missing: an answer is whole without them.
	beside := func(rr miekg.RR) bool { return rr.Header().Rrtype != miekg.TypeOPT }
	if slices.ContainsFunc(resp.Extra, beside) {
		if resp.Compress = true; resp.Len() > size {
			resp.Extra = slices.DeleteFunc(resp.Extra, beside)
		}
	}
	resp.Truncate(size)
}
