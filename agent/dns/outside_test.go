// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dns

import (
	"context"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/outside/query"
	"github.com/sif-project/sif/internal/outside/resolve"
)

// world is an Outside that grants two names, one of which is answered only when the test says so.
type world struct {
	release chan struct{}
	asked   atomic.Int64
}

func (w *world) Resolve(_ context.Context, _ netip.Addr, qname string, qtype uint16) query.Reply {
	w.asked.Add(1)
	name, _ := resolve.ParseName(qname)
	switch {
	case name == "slow.example":
		<-w.release
	case name == "any.example":
		return query.Reply{Code: miekg.RcodeRefused, Answer: resolve.Answer{Extended: miekg.ExtendedErrorCodeNotSupported}}
	case name != "www.example.com" && (!strings.HasSuffix(name, ".corp.example") || strings.HasPrefix(name, "other.")):
		return query.Refusal(ref("app/proxy"), qname)
	}
	addr := netip.MustParseAddr("192.0.2.1")
	if qtype == miekg.TypeAAAA {
		addr = netip.MustParseAddr("2001:db8::1")
	}
	return query.Reply{Answer: resolve.Known(name, []netip.Addr{addr}, time.Now().Add(time.Hour))}
}

// Questions under .sif, and of addresses of the fabric, are answered here; the others by Outside.
func TestOnlyWhatIsNotOurs(t *testing.T) {
	s, w := testServer(testGraph), &world{}
	s.outside = w
	for _, name := range []string{"sif.", "svc.app.sif.", "secret.app.SIF.", "a.b.c.d.sIf.", `x\.y.sif.`, "svc.app.sif.example.com.", "3.1.64.100.in-addr.arpa."} {
		for _, qtype := range []uint16{miekg.TypeA, miekg.TypeNS, miekg.TypeSOA, miekg.TypeDS, miekg.TypeANY} {
			s.respond(proxy, question(name, qtype))
		}
	}
	must.Zero(t, w.asked.Load())
	_, outcome := s.respond(proxy, question("other.example.com.", miekg.TypeA))
	must.Eq(t, NotGranted, outcome)
	_, outcome = s.respond(stranger, question("www.example.com.", miekg.TypeA))
	must.Eq(t, Refused, outcome)
	must.Eq(t, 1, w.asked.Load())
}

// An answer about an outside name is to be asked for again soon, has the name as it was asked for,
// and says why if it is no answer.
func TestOutsideAnswers(t *testing.T) {
	s := testServer(testGraph)
	req := question("WWW.example.com.", miekg.TypeAAAA)
	resp, outcome := s.respond(proxy, req)
	must.Eq(t, Resolved, outcome)
	must.Eq(t, []string{"2001:db8::1"}, addresses(resp))
	must.Eq(t, "WWW.example.com.", resp.Answer[0].Header().Name)
	must.Eq(t, uint32(outsideTTL/time.Second), resp.Answer[0].Header().Ttl)
	must.Eq(t, req.Id, resp.Id)

	req = question("other.example.com.", miekg.TypeA)
	resp, _ = s.respond(proxy, req)
	finish(req, resp, true)
	must.Eq(t, miekg.RcodeNameError, resp.Rcode)
	must.Nil(t, resp.IsEdns0())

	req.SetEdns0(4096, true)
	resp, _ = s.respond(proxy, req)
	finish(req, resp, true)
	must.SliceLen(t, 1, resp.Extra)
	must.True(t, resp.IsEdns0().Do())
	must.Eq(t, maxUDP, resp.IsEdns0().UDPSize())
	e := resp.IsEdns0().Option[0].(*miekg.EDNS0_EDE)
	must.Eq(t, miekg.ExtendedErrorCodeProhibited, e.InfoCode)
	must.StrContains(t, e.ExtraText, "no contract of app/proxy names other.example.com.")
}

// A question that is refused for what it asks is not answered as if there were no such name.
func TestOutsideRefusesTypes(t *testing.T) {
	resp, outcome := testServer(testGraph).respond(proxy, question("any.example.", miekg.TypeANY))
	must.Eq(t, miekg.RcodeRefused, resp.Rcode)
	must.Eq(t, NotGranted, outcome)
}

// A workload whose questions hang cannot block those of others.
func TestOutsideShare(t *testing.T) {
	other := netip.MustParseAddr("100.64.1.20")
	s, w := testServer(graph{proxy: {}, other: {}}), &world{release: make(chan struct{})}
	s.outside = w
	done := make(chan struct{})
	for range maxOutside {
		go func() {
			s.respond(proxy, question("slow.example.", miekg.TypeA))
			done <- struct{}{}
		}()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for w.asked.Load() < maxOutside && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	resp, outcome := s.respond(proxy, question("www.example.com.", miekg.TypeA))
	must.Eq(t, Limited, outcome)
	must.Eq(t, miekg.RcodeServerFailure, resp.Rcode)
	_, outcome = s.respond(other, question("www.example.com.", miekg.TypeA))
	must.Eq(t, Resolved, outcome)
	close(w.release)
	for range maxOutside {
		<-done
	}
	_, outcome = s.respond(proxy, question("www.example.com.", miekg.TypeA))
	must.Eq(t, Resolved, outcome)
}
