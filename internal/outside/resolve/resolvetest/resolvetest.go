// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package resolvetest runs resolvers for tests: real servers on loopback addresses, which answer as
// a test says. It does not know who asks them.
package resolvetest

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
)

// Server is a resolver.
type Server struct {
	Addr     netip.AddrPort
	UDP, TCP atomic.Int64 // number of queries
}

// Start starts a resolver that answers by handle, until the test ends.
func Start(t testing.TB, handle dns.HandlerFunc) *Server {
	t.Helper()
	var conn net.PacketConn
	var listener net.Listener
	s := &Server{}
	for range 20 { // a port that is free for UDP may be in use for TCP
		var err error
		if conn, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		s.Addr = conn.LocalAddr().(*net.UDPAddr).AddrPort()
		if listener, err = net.Listen("tcp", s.Addr.String()); err == nil {
			break
		}
		conn.Close()
	}
	if listener == nil {
		t.Fatal("no port is free for UDP and TCP")
	}
	for _, server := range []*dns.Server{{PacketConn: conn}, {Listener: listener}} {
		server.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
			if IsTCP(w) {
				s.TCP.Add(1)
			} else {
				s.UDP.Add(1)
			}
			handle(w, m)
		})
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() { _ = server.ActivateAndServe() }() // until Shutdown
		<-started
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	return s
}

// IsTCP reports whether a query came over TCP.
func IsTCP(w dns.ResponseWriter) bool {
	_, is := w.RemoteAddr().(*net.TCPAddr)
	return is
}

// World is what the resolvers of a test know: records, which a test may change at any time.
type World struct {
	// Partial leaves it to who asks to follow chains of names.
	Partial bool

	mu      sync.Mutex
	records map[string][]dns.RR // by name
}

// NewWorld returns a world of records in the form of a zone file, such as
// "www.example.com. 60 IN A 192.0.2.1".
func NewWorld(t testing.TB, records ...string) *World {
	w := &World{records: map[string][]dns.RR{}}
	for _, r := range records {
		w.Add(t, r)
	}
	return w
}

// Add adds a record.
func (w *World) Add(t testing.TB, record string) {
	t.Helper()
	rr, err := dns.NewRR(record)
	if err != nil {
		t.Fatalf("%s: %v", record, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	name := strings.ToLower(rr.Header().Name)
	w.records[name] = append(w.records[name], rr)
}

// Set replaces the addresses of a name, of one family, which hold for ttl seconds.
func (w *World) Set(name string, ttl int, addrs ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records[name] = nil
	for _, a := range addrs {
		kind := "A"
		if netip.MustParseAddr(a).Is6() {
			kind = "AAAA"
		}
		rr, err := dns.NewRR(fmt.Sprintf("%s %d IN %s %s", name, ttl, kind, a))
		if err != nil {
			panic(err) // the arguments are the test's
		}
		w.records[name] = append(w.records[name], rr)
	}
}

// ServeDNS answers a query.
func (w *World) ServeDNS(rw dns.ResponseWriter, m *dns.Msg) {
	w.mu.Lock()
	defer w.mu.Unlock()
	resp := new(dns.Msg).SetReply(m)
	q := m.Question[0]
	name := q.Name
	for range 20 {
		list, exists := w.records[strings.ToLower(name)]
		if !exists {
			if name == q.Name || !w.Partial {
				resp.Rcode = dns.RcodeNameError
			}
			break
		}
		next := ""
		for _, rr := range list {
			switch {
			case rr.Header().Rrtype == q.Qtype:
				resp.Answer = append(resp.Answer, rr)
			case rr.Header().Rrtype == dns.TypeCNAME:
				resp.Answer = append(resp.Answer, rr)
				next = rr.(*dns.CNAME).Target
			}
		}
		if next == "" || w.Partial {
			break
		}
		name = next
	}
	size := dns.MaxMsgSize
	if !IsTCP(rw) {
		if size = dns.MinMsgSize; m.IsEdns0() != nil {
			size = int(m.IsEdns0().UDPSize())
		}
	}
	resp.Compress = true
	resp.Truncate(size)
	_ = rw.WriteMsg(resp) // who asks does not wait any more
}
