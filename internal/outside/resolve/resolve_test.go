// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package resolve

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/outside/resolve/resolvetest"
)

func freely() error { return nil }

// by returns a resolver that asks servers in order.
func by(servers ...*resolvetest.Server) *Resolver {
	var addrs []netip.AddrPort
	for _, s := range servers {
		addrs = append(addrs, s.Addr)
	}
	return NewResolver(NewClient(netip.AddrPort{}, addrs, "/nonexistent"), time.Now)
}

func texts(a Answer) []string {
	list := []string{}
	for _, addr := range a.Addresses() {
		list = append(list, addr.String())
	}
	slices.Sort(list)
	return list
}

// What resolvers do, and what is made of it.
func TestResolvers(t *testing.T) {
	world := resolvetest.NewWorld(t, "www.example.com. 60 IN A 192.0.2.1").ServeDNS
	silent := func(miekg.ResponseWriter, *miekg.Msg) {}
	failing := func(rcode int) miekg.HandlerFunc {
		return func(w miekg.ResponseWriter, m *miekg.Msg) { w.WriteMsg(new(miekg.Msg).SetRcode(m, rcode)) }
	}
	tcpOnly := func(w miekg.ResponseWriter, m *miekg.Msg) {
		if resolvetest.IsTCP(w) {
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
	var lost atomic.Int64
	lossy := func(w miekg.ResponseWriter, m *miekg.Msg) {
		if m.Question[0].Qtype == miekg.TypeA && lost.Add(1) == 1 {
			return
		}
		world(w, m)
	}
	liar := func(w miekg.ResponseWriter, m *miekg.Msg) {
		resp := new(miekg.Msg).SetReply(m)
		resp.Question[0].Name = "other.example."
		w.WriteMsg(resp)
	}
	unasked := func(w miekg.ResponseWriter, m *miekg.Msg) {
		resp := new(miekg.Msg).SetReply(m)
		for _, s := range []string{"other.example.com. 60 IN A 192.0.2.66", "www.example.com. 60 IN AAAA 2001:db8::66", "www.example.com. 60 CH A 192.0.2.66", "www.example.com. 60 IN A 192.0.2.1"} {
			if rr, err := miekg.NewRR(s); err == nil {
				resp.Answer = append(resp.Answer, rr)
			}
		}
		rr, _ := miekg.NewRR("www.example.com. 60 IN A 192.0.2.67")
		resp.Ns, resp.Extra = []miekg.RR{rr}, []miekg.RR{rr}
		w.WriteMsg(resp)
	}
	for _, tc := range []struct {
		what      string
		resolvers []miekg.HandlerFunc
		want      []string
		noName    bool
		err       string
		away      bool
	}{
		{"an answer", []miekg.HandlerFunc{world}, []string{"192.0.2.1"}, false, "", false},
		{"an answer that needs TCP", []miekg.HandlerFunc{tcpOnly}, []string{"192.0.2.1"}, false, "", false},
		{"a resolver without EDNS", []miekg.HandlerFunc{old}, []string{"192.0.2.1"}, false, "", false},
		{"a lost datagram", []miekg.HandlerFunc{lossy}, []string{"192.0.2.1"}, false, "", false},
		{"the first does not answer", []miekg.HandlerFunc{silent, world}, []string{"192.0.2.1"}, false, "", false},
		{"the first fails", []miekg.HandlerFunc{failing(miekg.RcodeServerFailure), world}, []string{"192.0.2.1"}, false, "", false},
		{"the first answers something else", []miekg.HandlerFunc{liar, world}, []string{"192.0.2.1"}, false, "", false},
		{"records that were not asked for", []miekg.HandlerFunc{unasked}, []string{"192.0.2.1"}, false, "", false},
		{"no such name is an answer", []miekg.HandlerFunc{failing(miekg.RcodeNameError), world}, []string{}, true, "", false},
		{"all refuse", []miekg.HandlerFunc{failing(miekg.RcodeRefused)}, nil, false, "REFUSED", false},
		{"none answers", []miekg.HandlerFunc{silent}, nil, false, "no resolver can be reached", true},
		{"there is none", nil, nil, false, "no resolver can be reached", true},
	} {
		t.Run(tc.what, func(t *testing.T) {
			t.Parallel()
			var servers []*resolvetest.Server
			for _, h := range tc.resolvers {
				servers = append(servers, resolvetest.Start(t, h))
			}
			a, err := by(servers...).Resolve(t.Context(), Question{"www.example.com", miekg.TypeA}, freely)
			must.Eq(t, tc.away, errors.Is(err, ErrUnreachable))
			if tc.err != "" {
				must.ErrorContains(t, err, tc.err)
				return
			}
			must.NoError(t, err)
			must.Eq(t, tc.want, texts(a))
			must.Eq(t, tc.noName, a.NoName)
		})
	}
}

// Chains of names, within an answer and beyond it.
func TestChains(t *testing.T) {
	records := []string{
		"www.example.com. 300 IN CNAME edge.cdn.example.", "edge.cdn.example. 20 IN CNAME pop.cdn.example.",
		"pop.cdn.example. 60 IN A 192.0.2.1", "pop.cdn.example. 60 IN A 192.0.2.2", "pop.cdn.example. 60 IN AAAA 2001:db8::1",
		"itself.example. 60 IN CNAME itself.example.",
		"here.example. 60 IN CNAME there.example.", "there.example. 60 IN CNAME here.example.",
		"inside.example. 60 IN CNAME svc.app.sif.",
		"nowhere.example. 60 IN CNAME nothing.example.",
		"only4.example. 60 IN A 192.0.2.4",
		"long.example. 60 IN CNAME c0.example.", "many.example. 60 IN CNAME d0.example.",
		"c7.example. 60 IN A 192.0.2.7", "d30.example. 60 IN A 192.0.2.30",
	}
	for i := range 7 {
		records = append(records, fmt.Sprintf("c%d.example. 60 IN CNAME c%d.example.", i, i+1))
	}
	for i := range 30 {
		records = append(records, fmt.Sprintf("d%d.example. 60 IN CNAME d%d.example.", i, i+1))
	}
	for _, partial := range []bool{false, true} {
		w := resolvetest.NewWorld(t, records...)
		w.Partial = partial
		r := by(resolvetest.Start(t, w.ServeDNS))
		for _, tc := range []struct {
			name  string
			qtype uint16
			want  []string
			chain int
			ttl   time.Duration
			err   error
		}{
			{"www.example.com", miekg.TypeA, []string{"192.0.2.1", "192.0.2.2"}, 2, 20 * time.Second, nil},
			{"www.example.com", miekg.TypeAAAA, []string{"2001:db8::1"}, 2, 20 * time.Second, nil},
			{"www.example.com", miekg.TypeCNAME, []string{}, 0, 300 * time.Second, nil},
			{"only4.example", miekg.TypeA, []string{"192.0.2.4"}, 0, time.Minute, nil},
			{"only4.example", miekg.TypeAAAA, []string{}, 0, defaultNegative, nil},
			{"nowhere.example", miekg.TypeA, []string{}, 1, defaultNegative, nil},
			{"itself.example", miekg.TypeA, nil, 0, 0, errLoop},
			{"here.example", miekg.TypeA, nil, 0, 0, errLoop},
			{"inside.example", miekg.TypeA, nil, 0, 0, errInside},
			{"many.example", miekg.TypeA, nil, 0, 0, errLong},
		} {
			what := must.Sprintf("%s %s, partial %t", tc.name, miekg.TypeToString[tc.qtype], partial)
			now := time.Now()
			a, err := r.Resolve(t.Context(), Question{tc.name, tc.qtype}, freely)
			if tc.err != nil {
				must.ErrorIs(t, err, tc.err, what)
				continue
			}
			must.NoError(t, err, what)
			must.Eq(t, tc.want, texts(a), what)
			must.SliceLen(t, tc.chain, a.Chain, what)
			must.Between(t, tc.ttl-time.Second, a.Expires.Sub(now), tc.ttl+5*time.Second, what)
		}
		a, err := r.Resolve(t.Context(), Question{"long.example", miekg.TypeA}, freely)
		if partial {
			must.ErrorIs(t, err, errLong) // more queries than one question may cost
		} else {
			must.NoError(t, err)
			must.Eq(t, []string{"192.0.2.7"}, texts(a))
		}
	}
}

// Of A and AAAA, the other one is asked for too, and equal questions once.
func TestQuestionsAreAskedOnce(t *testing.T) {
	w := resolvetest.NewWorld(t, "www.example.com. 60 IN A 192.0.2.1", "www.example.com. 60 IN AAAA 2001:db8::1")
	s := resolvetest.Start(t, func(rw miekg.ResponseWriter, m *miekg.Msg) {
		time.Sleep(20 * time.Millisecond)
		w.ServeDNS(rw, m)
	})
	r := by(s)
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			a, err := r.Resolve(t.Context(), Question{"www.example.com", miekg.TypeA}, freely)
			must.NoError(t, err)
			must.Eq(t, []string{"192.0.2.1"}, texts(a))
		})
	}
	all.Wait()
	refuse := errors.New("not now")
	may := func() error { return refuse }
	a, err := r.Resolve(t.Context(), Question{"www.example.com", miekg.TypeAAAA}, may)
	must.NoError(t, err) // it was asked already
	must.Eq(t, []string{"2001:db8::1"}, texts(a))
	must.Eq(t, 2, s.UDP.Load())
	_, err = r.Resolve(t.Context(), Question{"other.example.com", miekg.TypeA}, may)
	must.ErrorIs(t, err, refuse)
	must.Eq(t, 2, s.UDP.Load())
}

// An answer is remembered while it holds, an error for a moment, and the oldest gives way.
func TestCache(t *testing.T) {
	var mu sync.Mutex
	now, asked := time.Unix(1000, 0), 0
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	pass := func(d time.Duration) { mu.Lock(); now = now.Add(d); mu.Unlock() }
	fail := errors.New("no")
	c := NewCache(func(_ context.Context, q int) (Answer, error) {
		mu.Lock()
		defer mu.Unlock()
		asked++
		if q < 0 {
			return Answer{}, fail
		}
		return Answer{Expires: now.Add(10 * time.Second)}, nil
	}, clock)
	ask := func(q, total int, want error) {
		t.Helper()
		_, err := c.Ask(t.Context(), q, freely)
		must.ErrorIs(t, err, want)
		must.Eq(t, total, asked)
	}
	ask(1, 1, nil)
	pass(9 * time.Second)
	ask(1, 1, nil)
	pass(time.Second)
	ask(1, 2, nil)
	ask(-1, 3, fail)
	ask(-1, 3, fail)
	pass(failureRest)
	ask(-1, 4, fail)
	for q := range maxCached {
		c.Ask(t.Context(), q+10, freely)
	}
	must.Eq(t, maxCached, c.order.Len())
	must.MapLen(t, maxCached, c.known)
	ask(1, 5+maxCached, nil)
	ask(maxCached+9, 5+maxCached, nil)
}

func TestResolversOfTheMachine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	self := netip.MustParseAddrPort("169.254.1.1:53")
	c := NewClient(self, nil, path)
	_, err := c.resolvers()
	must.ErrorIs(t, err, os.ErrNotExist)
	must.ErrorIs(t, err, ErrUnreachable)

	write := func(text string, when time.Time) {
		must.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		must.NoError(t, os.Chtimes(path, when, when))
	}
	write("search example.com\nnameserver 169.254.1.1\n", time.Unix(1000, 0))
	_, err = c.resolvers()
	must.ErrorIs(t, err, ErrUnreachable)

	write("nameserver 169.254.1.1\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nnameserver nonsense\n", time.Unix(2000, 0))
	list, err := c.resolvers()
	must.NoError(t, err)
	must.Eq(t, "[192.0.2.53:53 [2001:db8::53]:53]", fmt.Sprint(list))

	c = NewClient(self, []netip.AddrPort{netip.MustParseAddrPort("[::ffff:169.254.1.1]:53")}, path)
	_, err = c.resolvers()
	must.ErrorIs(t, err, ErrUnreachable)
}

func TestParseName(t *testing.T) {
	for qname, want := range map[string]string{
		"www.example.com.": "www.example.com", "WWW.Example.COM": "www.example.com", "_mongodb._tcp.x.": "_mongodb._tcp.x", "localhost.": "localhost",
		".": "", "": "", `a\.b.example.com.`: "", `x\000.example.com.`: "", "a..b.": "", "*.example.com.": "", "a b.example.": "", "ünder.example.": "",
		strings.Repeat("a", 64) + ".example.":  "",
		strings.Repeat("a.", 130) + "example.": "",
	} {
		got, ok := ParseName(qname)
		must.Eq(t, want != "", ok, must.Sprint(qname))
		if ok {
			must.Eq(t, want, got)
		}
	}
}

// Whatever a resolver sends, an answer has only records of the type in question and of the name at
// the end of its chain, and the chain is one.
func FuzzRead(f *testing.F) {
	for _, records := range [][]string{
		{"www.example.com. 60 IN A 192.0.2.1"},
		{"www.example.com. 300 IN CNAME edge.cdn.example.", "edge.cdn.example. 20 IN A 192.0.2.1"},
		{"www.example.com. 1 IN CNAME www.example.com."},
		{"www.example.com. 60 IN HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1"},
	} {
		m := new(miekg.Msg).SetQuestion("www.example.com.", miekg.TypeA)
		m.Response = true
		for _, r := range records {
			rr, err := miekg.NewRR(r)
			must.NoError(f, err)
			m.Answer = append(m.Answer, rr)
		}
		raw, err := m.Pack()
		must.NoError(f, err)
		f.Add(raw, miekg.TypeA)
		f.Add(raw, miekg.TypeHTTPS)
	}
	now := time.Unix(1000, 0)
	f.Fuzz(func(t *testing.T, raw []byte, qtype uint16) {
		m := new(miekg.Msg)
		if m.Unpack(raw) != nil {
			return
		}
		a, err := Read(m, Question{"www.example.com", qtype}, now)
		if err != nil {
			return
		}
		name := "www.example.com."
		for _, rr := range a.Chain {
			if !strings.EqualFold(rr.Header().Name, name) {
				t.Fatalf("%s does not continue %s", rr, name)
			}
			name = rr.(*miekg.CNAME).Target
		}
		for _, rr := range a.Records {
			if h := rr.Header(); h.Rrtype != qtype || !strings.EqualFold(h.Name, name) || h.Class != miekg.ClassINET {
				t.Fatalf("%s answers %s", rr, name)
			}
		}
		if len(a.Records) > maxRecords || len(a.Chain) > maxChain || a.Expires.Before(now) || a.Expires.After(now.Add(MaxTTL)) {
			t.Fatalf("beyond limits: %v", a)
		}
	})
}
