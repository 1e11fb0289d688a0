// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package internet

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// maxChain is the longest chain of CNAME records that the resolver follows.
const maxChain = 16

// DNSPort is the port of the resolver.
const DNSPort = 53

// Resolver answers DNS questions from records. Names without a record do not exist.
type Resolver struct {
	records recordsFile
	log     io.Writer
	servers []*dns.Server

	mu   sync.Mutex
	turn map[string]int // by a record's first address: that with which the next answer begins
}

// ListenResolver opens the resolver's sockets, UDP and TCP, at the addresses. Its records are in a
// file, which may change at any time. It writes a line for each question to log.
func ListenResolver(records string, at []netip.AddrPort, log io.Writer) (*Resolver, error) {
	r := &Resolver{records: recordsFile{path: records}, log: log, turn: map[string]int{}}
	if _, err := r.records.get(); err != nil {
		return nil, err
	}
	for _, a := range at {
		conn, err := net.ListenPacket("udp", a.String())
		if err != nil {
			r.close()
			return nil, fmt.Errorf("listen for DNS: %w", err)
		}
		r.servers = append(r.servers, &dns.Server{PacketConn: conn, Handler: r})
		listener, err := net.Listen("tcp", conn.LocalAddr().String())
		if err != nil {
			r.close()
			return nil, fmt.Errorf("listen for DNS: %w", err)
		}
		r.servers = append(r.servers, &dns.Server{Listener: listener, Handler: r})
	}
	return r, nil
}

func (r *Resolver) close() {
	for _, s := range r.servers {
		if s.PacketConn != nil {
			s.PacketConn.Close()
		}
		if s.Listener != nil {
			s.Listener.Close()
		}
	}
}

// Addr returns where the resolver listens.
func (r *Resolver) Addr() netip.AddrPort {
	return r.servers[0].PacketConn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// Serve answers questions until ctx ends.
func (r *Resolver) Serve(ctx context.Context) error {
	defer context.AfterFunc(ctx, r.close)()
	var g errgroup.Group
	for _, s := range r.servers {
		g.Go(s.ActivateAndServe)
	}
	err := g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// ServeDNS implements dns.Handler.
func (r *Resolver) ServeDNS(w dns.ResponseWriter, question *dns.Msg) {
	answer := r.answer(question)
	outcome := "silent"
	if answer != nil {
		outcome = dns.RcodeToString[answer.Rcode]
	}
	for _, q := range question.Question {
		fmt.Fprintf(r.log, "%s question %s %s from %s: %s\n", time.Now().Format(time.RFC3339Nano), q.Name, dns.TypeToString[q.Qtype], w.RemoteAddr(), outcome)
	}
	if answer == nil {
		return
	}
	size := dns.MinMsgSize
	if opt := question.IsEdns0(); opt != nil {
		size = int(opt.UDPSize())
		answer.SetEdns0(dns.DefaultMsgSize, false)
	}
	if w.LocalAddr().Network() == "udp" {
		answer.Truncate(size)
	}
	_ = w.WriteMsg(answer) // fails only if the asker has gone
}

// answer returns nil if there is to be no answer.
func (r *Resolver) answer(question *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(question)
	m.RecursionAvailable = true
	records, err := r.records.get()
	if err != nil || len(question.Question) != 1 {
		if err != nil {
			fmt.Fprintln(r.log, err)
		}
		return m.SetRcode(question, dns.RcodeServerFailure)
	}
	q := question.Question[0]
	name := q.Name
	for range maxChain {
		record, ok := records.Lookup(name)
		switch {
		case ok && record.Silent:
			return nil
		case !ok:
			m.Rcode = dns.RcodeNameError
			return m
		case record.CNAME != "":
			target := dns.Fqdn(record.CNAME)
			m.Answer = append(m.Answer, &dns.CNAME{Hdr: header(name, dns.TypeCNAME, record.TTL), Target: target})
			name = target
			if q.Qtype == dns.TypeCNAME {
				return m
			}
			continue
		}
		m.Answer = append(m.Answer, r.data(name, q.Qtype, record)...)
		return m
	}
	return m
}

// data returns the records of a type that a name has.
func (r *Resolver) data(name string, kind uint16, record Record) (list []dns.RR) {
	switch kind {
	case dns.TypeA:
		for _, a := range r.some(record, netip.Addr.Is4) {
			list = append(list, &dns.A{Hdr: header(name, kind, record.TTL), A: a.AsSlice()})
		}
	case dns.TypeAAAA:
		for _, a := range r.some(record, netip.Addr.Is6) {
			list = append(list, &dns.AAAA{Hdr: header(name, kind, record.TTL), AAAA: a.AsSlice()})
		}
	case dns.TypeHTTPS:
		if !record.HTTPS {
			return nil
		}
		hint4, hint6 := &dns.SVCBIPv4Hint{}, &dns.SVCBIPv6Hint{}
		for _, a := range record.Addresses {
			if a.Is4() {
				hint4.Hint = append(hint4.Hint, a.AsSlice())
			} else {
				hint6.Hint = append(hint6.Hint, a.AsSlice())
			}
		}
		svcb := dns.SVCB{Hdr: header(name, kind, record.TTL), Priority: 1, Target: ".", Value: []dns.SVCBKeyValue{&dns.SVCBAlpn{Alpn: []string{"h2"}}}}
		if len(hint4.Hint) > 0 {
			svcb.Value = append(svcb.Value, hint4)
		}
		if len(hint6.Hint) > 0 {
			svcb.Value = append(svcb.Value, hint6)
		}
		list = append(list, &dns.HTTPS{SVCB: svcb})
	}
	return list
}

// some returns the addresses of one family for one answer.
func (r *Resolver) some(record Record, family func(netip.Addr) bool) []netip.Addr {
	all := slices.DeleteFunc(slices.Clone(record.Addresses), func(a netip.Addr) bool { return !family(a) })
	if record.Answers <= 0 || record.Answers >= len(all) {
		return all
	}
	key := all[0].String() // of all names of a machine together
	r.mu.Lock()
	begin := r.turn[key] % len(all)
	r.turn[key] = begin + record.Answers
	r.mu.Unlock()
	return slices.Concat(all[begin:], all[:begin])[:record.Answers]
}

func header(name string, kind uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}
