// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
	"github.com/shoenig/test/must"
)

// upstream is a resolver of the node, a real server on the loopback address.
type upstream struct {
	addr     netip.AddrPort
	udp, tcp atomic.Int64 // number of queries
}

// startUpstream starts a resolver that answers by handle.
func startUpstream(t *testing.T, handle func(w miekg.ResponseWriter, m *miekg.Msg)) *upstream {
	t.Helper()
	var conn net.PacketConn
	var listener net.Listener
	u := &upstream{}
	for range 20 { // a port that is free for UDP may be in use for TCP
		var err error
		conn, err = net.ListenPacket("udp", "127.0.0.1:0")
		must.NoError(t, err)
		u.addr = conn.LocalAddr().(*net.UDPAddr).AddrPort()
		if listener, err = net.Listen("tcp", u.addr.String()); err == nil {
			break
		}
		conn.Close()
	}
	must.NotNil(t, listener)
	for _, s := range []*miekg.Server{{PacketConn: conn}, {Listener: listener}} {
		s.Handler = miekg.HandlerFunc(func(w miekg.ResponseWriter, m *miekg.Msg) {
			if _, isTCP := w.RemoteAddr().(*net.TCPAddr); isTCP {
				u.tcp.Add(1)
			} else {
				u.udp.Add(1)
			}
			handle(w, m)
		})
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go s.ActivateAndServe()
		<-started
		t.Cleanup(func() { s.Shutdown() })
	}
	return u
}

// world answers every A query with an address of a documentation prefix.
func world(w miekg.ResponseWriter, m *miekg.Msg) {
	resp := new(miekg.Msg).SetReply(m)
	resp.Answer = []miekg.RR{&miekg.A{
		Hdr: miekg.RR_Header{Name: m.Question[0].Name, Rrtype: miekg.TypeA, Class: miekg.ClassINET, Ttl: 60},
		A:   net.IPv4(192, 0, 2, 1),
	}}
	w.WriteMsg(resp)
}

func failing(rcode int) func(w miekg.ResponseWriter, m *miekg.Msg) {
	return func(w miekg.ResponseWriter, m *miekg.Msg) { w.WriteMsg(new(miekg.Msg).SetRcode(m, rcode)) }
}

func TestForward(t *testing.T) {
	silent := func(miekg.ResponseWriter, *miekg.Msg) {}
	tcpOnly := func(w miekg.ResponseWriter, m *miekg.Msg) {
		if _, isTCP := w.RemoteAddr().(*net.TCPAddr); isTCP {
			world(w, m)
			return
		}
		resp := new(miekg.Msg).SetReply(m)
		resp.Truncated = true
		w.WriteMsg(resp)
	}
	old := func(w miekg.ResponseWriter, m *miekg.Msg) {
		if m.IsEdns0() != nil {
			w.WriteMsg(new(miekg.Msg).SetRcode(m, miekg.RcodeFormatError))
			return
		}
		world(w, m)
	}
	liar := func(w miekg.ResponseWriter, m *miekg.Msg) {
		m.Question[0].Name = "other.example."
		world(w, m)
	}
	type handler = func(w miekg.ResponseWriter, m *miekg.Msg)
	for _, tc := range []struct {
		what      string
		upstreams []handler
		rcode     int
		want      []string
		outcome   Outcome
	}{
		{"an answer", []handler{world}, miekg.RcodeSuccess, []string{"192.0.2.1"}, Forwarded},
		{"an answer that needs TCP", []handler{tcpOnly}, miekg.RcodeSuccess, []string{"192.0.2.1"}, Forwarded},
		{"a resolver without EDNS", []handler{old}, miekg.RcodeSuccess, []string{"192.0.2.1"}, Forwarded},
		{"the first does not answer", []handler{silent, world}, miekg.RcodeSuccess, []string{"192.0.2.1"}, Forwarded},
		{"the first fails", []handler{failing(miekg.RcodeServerFailure), world}, miekg.RcodeSuccess, []string{"192.0.2.1"}, Forwarded},
		{"the first answers something else", []handler{liar, world}, miekg.RcodeSuccess, []string{"192.0.2.1"}, Forwarded},
		{"no such name is an answer", []handler{failing(miekg.RcodeNameError), world}, miekg.RcodeNameError, []string{}, Forwarded},
		{"all refuse", []handler{failing(miekg.RcodeRefused)}, miekg.RcodeRefused, []string{}, Forwarded},
		{"none answers", []handler{silent}, miekg.RcodeServerFailure, []string{}, Failed},
	} {
		t.Run(tc.what, func(t *testing.T) {
			t.Parallel()
			var addrs []netip.AddrPort
			for _, h := range tc.upstreams {
				addrs = append(addrs, startUpstream(t, h).addr)
			}
			req := question("www.example.com.", miekg.TypeA)
			resp, outcome := testServer(testGraph, addrs...).respond(proxy, req)
			must.Eq(t, tc.rcode, resp.Rcode)
			must.Eq(t, tc.want, addresses(resp))
			must.Eq(t, tc.outcome, outcome)
			must.Eq(t, req.Id, resp.Id)
			must.Eq(t, req.Question, resp.Question)
		})
	}
}

// Queries under .sif do not leave the node, and the resolver that answered last is queried first.
func TestForwardOnlyWhatIsNotOurs(t *testing.T) {
	sick, well := startUpstream(t, failing(miekg.RcodeServerFailure)), startUpstream(t, world)
	s := testServer(testGraph, sick.addr, well.addr)
	for _, name := range []string{"sif.", "svc.app.sif.", "secret.app.SIF.", "a.b.c.d.sIf.", `x\.y.sif.`} {
		for _, qtype := range []uint16{miekg.TypeA, miekg.TypeNS, miekg.TypeSOA, miekg.TypeDS, miekg.TypeANY} {
			s.respond(proxy, question(name, qtype))
		}
	}
	must.Zero(t, sick.udp.Load()+sick.tcp.Load()+well.udp.Load()+well.tcp.Load())
	for range 3 {
		_, outcome := s.respond(proxy, question("www.example.com.", miekg.TypeA))
		must.Eq(t, Forwarded, outcome)
	}
	must.Eq(t, 1, sick.udp.Load())
	must.Eq(t, 3, well.udp.Load())
}

// The EDNS options and the ID of the workload's query are not forwarded.
func TestForwardHidesTheAsker(t *testing.T) {
	var got atomic.Pointer[miekg.Msg]
	u := startUpstream(t, func(w miekg.ResponseWriter, m *miekg.Msg) {
		got.Store(m.Copy())
		world(w, m)
	})
	req := question("www.example.com.", miekg.TypeA).SetEdns0(4096, true)
	req.IsEdns0().Option = []miekg.EDNS0{&miekg.EDNS0_COOKIE{Code: miekg.EDNS0COOKIE, Cookie: "24a5ac1223344556"}}
	same := 0
	for range 8 {
		resp, _ := testServer(testGraph, u.addr).respond(proxy, req)
		finish(req, resp, true)
		must.SliceLen(t, 1, resp.Extra)
		must.SliceEmpty(t, got.Load().IsEdns0().Option)
		must.True(t, got.Load().IsEdns0().Do())
		must.Eq(t, maxUDP, got.Load().IsEdns0().UDPSize())
		if got.Load().Id == req.Id {
			same++
		}
	}
	must.Less(t, 4, same)
}

func TestUpstreams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	self := netip.MustParseAddrPort("169.254.1.1:53")
	f := newForwarder(self, nil, path)
	_, err := f.upstreams()
	must.ErrorIs(t, err, os.ErrNotExist)

	write := func(text string, when time.Time) {
		must.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		must.NoError(t, os.Chtimes(path, when, when))
	}
	write("search example.com\nnameserver 169.254.1.1\n", time.Unix(1000, 0))
	_, err = f.upstreams()
	must.ErrorIs(t, err, errNoUpstream)

	write("nameserver 169.254.1.1\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nnameserver nonsense\n", time.Unix(2000, 0))
	list, err := f.upstreams()
	must.NoError(t, err)
	must.Eq(t, "[192.0.2.53:53 [2001:db8::53]:53]", fmt.Sprint(list))

	f = newForwarder(self, []netip.AddrPort{netip.MustParseAddrPort("[::ffff:169.254.1.1]:53")}, path)
	_, err = f.upstreams()
	must.ErrorIs(t, err, errNoUpstream)
}

// A workload whose queries hang cannot block those of others.
func TestForwardShare(t *testing.T) {
	release := make(chan struct{})
	u := startUpstream(t, func(w miekg.ResponseWriter, m *miekg.Msg) {
		if m.Question[0].Name == "slow.example." {
			<-release
		}
		world(w, m)
	})
	other := netip.MustParseAddr("100.64.1.20")
	s := testServer(graph{proxy: {}, other: {}}, u.addr)
	done := make(chan struct{})
	for range maxForwards {
		go func() {
			s.respond(proxy, question("slow.example.", miekg.TypeA))
			done <- struct{}{}
		}()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for u.udp.Load() < maxForwards && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	_, outcome := s.respond(proxy, question("www.example.com.", miekg.TypeA))
	must.Eq(t, Failed, outcome)
	_, outcome = s.respond(other, question("www.example.com.", miekg.TypeA))
	must.Eq(t, Forwarded, outcome)
	close(release)
	for range maxForwards {
		<-done
	}
	_, outcome = s.respond(proxy, question("www.example.com.", miekg.TypeA))
	must.Eq(t, Forwarded, outcome)
}
