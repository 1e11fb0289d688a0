// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package query

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	miekg "github.com/miekg/dns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/outside/names"
	"github.com/sif-project/sif/internal/outside/resolve"
	"github.com/sif-project/sif/internal/outside/resolve/resolvetest"
)

var web = fabric.Ref{Domain: "shop", Name: "web"}

// exit is a Handler that asks a real resolver.
type exit struct {
	*Handler
	world   *resolvetest.World
	table   *names.Table
	enacted atomic.Int64
	ahead   time.Duration // of the clock
	away    error         // what was reported last
	mu      sync.Mutex
	broken  error // of Enact
}

func newExit(t testing.TB, records ...string) *exit {
	t.Helper()
	e := &exit{world: resolvetest.NewWorld(t, records...)}
	e.asking(t, resolvetest.Start(t, e.world.ServeDNS).Addr)
	return e
}

func (e *exit) now() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return time.Now().Add(e.ahead)
}

func (e *exit) pass(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ahead += d
}

// asking has the exit ask a resolver, and begin with an empty table.
func (e *exit) asking(t testing.TB, resolvers ...netip.AddrPort) {
	table, err := names.Open(filepath.Join(t.TempDir(), "names.json"), 0, e.now, hclog.NewNullLogger())
	must.NoError(t, err)
	t.Cleanup(func() { _ = table.Stored() })
	by := resolve.NewResolver(resolve.NewClient(netip.AddrPort{}, resolvers, "/nonexistent"), e.now)
	e.table = table
	e.Handler = New(Options{
		Ask: func(ctx context.Context, q Question, may func() error) (resolve.Answer, error) {
			return by.Resolve(ctx, resolve.Question{Name: q.Name, Type: q.Type}, may)
		},
		Table: table, Log: hclog.NewNullLogger(), Report: func(err error) { e.away = err },
		Enact: func() error { e.enacted.Add(1); return e.broken },
		Known: func() fabric.Outside {
			return fabric.Outside{Ranges: prefixes("100.64.0.0/10", "fd5f::/16"), Reserved: prefixes("10.0.0.5/32")}
		},
	})
}

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, t := range texts {
		list = append(list, netip.MustParsePrefix(t))
	}
	return list
}

// granting is the question of a service that externals with these names grant.
func granting(name string, qtype uint16, patterns ...string) Question {
	x := fabric.Peer{Name: fabric.Ref{Domain: "shop", Name: "payments"}, Names: patterns}
	return Question{
		Key: names.Key{Service: web, Name: name}, Type: qtype, Source: "w1", Externals: []fabric.Peer{x},
		Granted: func(name string) bool {
			return slices.ContainsFunc(patterns, func(p string) bool { return fabric.MatchName(p, name) })
		},
	}
}

func texts(r Reply) []string {
	list := []string{}
	for _, rr := range r.Records {
		fields := strings.Fields(rr.String())
		list = append(list, strings.Join(fields[3:], " "))
	}
	slices.Sort(list)
	return list
}

func TestAnswers(t *testing.T) {
	e := newExit(t,
		"api.example.com. 300 IN A 192.0.2.1", "api.example.com. 300 IN A 192.0.2.2", "api.example.com. 300 IN AAAA 2001:db8::1",
		"www.example.com. 300 IN CNAME edge.cdn.example.", "edge.cdn.example. 60 IN A 192.0.2.3",
		"api.example.com. 60 IN HTTPS 1 . alpn=h3,h2 port=8443 ipv4hint=192.0.2.66 ipv6hint=2001:db8::66 ech=AEX+DQBB",
		"api.example.com. 60 IN HTTPS 2 svc.example.com. alpn=h2", "api.example.com. 60 IN HTTPS 3 evil.example.net. alpn=h2",
		"api.example.com. 60 IN HTTPS 4 . mandatory=ipv4hint ipv4hint=192.0.2.66", "api.example.com. 60 IN HTTPS 5 . mandatory=alpn alpn=h2 key667=hello",
		"www.example.com. 60 IN SVCB 0 api.example.com.",
		"edge.cdn.example. 60 IN SVCB 1 . alpn=h2",
		"_db._tcp.example.com. 60 IN SRV 1 2 5432 api.example.com.", "_db._tcp.example.com. 60 IN SRV 1 2 5432 other.example.net.",
		"api.example.com. 60 IN MX 10 mx.example.com.", "api.example.com. 60 IN MX 20 mx.example.net.",
		`api.example.com. 60 IN TXT "v=spf1 -all"`, "api.example.com. 60 IN NS ns.example.com.", "api.example.com. 60 IN SOA ns.example.com. h.example.com. 1 2 3 4 5",
	)
	for _, tc := range []struct {
		name  string
		qtype uint16
		code  int
		want  []string
		chain int
	}{
		{"api.example.com", miekg.TypeA, miekg.RcodeSuccess, []string{"A 192.0.2.1", "A 192.0.2.2"}, 0},
		{"api.example.com", miekg.TypeAAAA, miekg.RcodeSuccess, []string{"AAAA 2001:db8::1"}, 0},
		{"www.example.com", miekg.TypeA, miekg.RcodeSuccess, []string{"A 192.0.2.3"}, 1},
		{"www.example.com", miekg.TypeAAAA, miekg.RcodeSuccess, []string{}, 1},
		{"www.example.com", miekg.TypeCNAME, miekg.RcodeSuccess, []string{"CNAME edge.cdn.example."}, 0},
		{"api.example.com", miekg.TypeHTTPS, miekg.RcodeSuccess, []string{`HTTPS 1 . alpn="h3,h2" port="8443"`, `HTTPS 2 svc.example.com. alpn="h2"`, `HTTPS 5 . mandatory="alpn" alpn="h2"`}, 0},
		{"www.example.com", miekg.TypeSVCB, miekg.RcodeSuccess, []string{"SVCB 0 api.example.com."}, 0},
		{"_db._tcp.example.com", miekg.TypeSRV, miekg.RcodeSuccess, []string{"SRV 1 2 5432 api.example.com."}, 0},
		{"api.example.com", miekg.TypeMX, miekg.RcodeSuccess, []string{"MX 10 mx.example.com."}, 0},
		{"api.example.com", miekg.TypeTXT, miekg.RcodeSuccess, []string{`TXT "v=spf1 -all"`}, 0},
		{"api.example.com", miekg.TypeNS, miekg.RcodeSuccess, []string{}, 0},
		{"api.example.com", miekg.TypeSOA, miekg.RcodeSuccess, []string{}, 0},
		{"api.example.com", miekg.TypePTR, miekg.RcodeSuccess, []string{}, 0},
		{"api.example.com", miekg.TypeANY, miekg.RcodeRefused, []string{}, 0},
		{"none.example.com", miekg.TypeA, miekg.RcodeNameError, []string{}, 0},
	} {
		what := must.Sprintf("%s %s", tc.name, miekg.TypeToString[tc.qtype])
		q := granting(tc.name, tc.qtype, "*.example.com")
		r := e.Answer(t.Context(), q)
		must.Eq(t, tc.code, r.Code, what)
		must.Eq(t, tc.want, texts(r), what)
		must.SliceLen(t, tc.chain, r.Chain, what)
		// As one daemon tells another, and as a workload sees it.
		raw, err := r.Pack(resolve.Question{Name: tc.name, Type: tc.qtype}, e.now())
		must.NoError(t, err, what)
		a, err := Unpack(raw, resolve.Question{Name: tc.name, Type: tc.qtype}, e.now())
		if tc.code == miekg.RcodeRefused {
			must.ErrorIs(t, err, errNotAnswered)
			continue
		}
		must.NoError(t, err, what)
		must.Eq(t, tc.want, texts(Reply{Answer: a}), what)
		must.Eq(t, tc.code == miekg.RcodeNameError, a.NoName, what)
		m := r.Message(new(miekg.Msg).SetQuestion(strings.ToUpper(tc.name)+".", tc.qtype), 5*time.Second, e.now())
		must.SliceLen(t, tc.chain+len(tc.want), m.Answer, what)
		must.SliceEmpty(t, m.Ns, what)
		must.SliceEmpty(t, m.Extra, what)
		for i, rr := range m.Answer {
			must.LessEq(t, 5, rr.Header().Ttl)
			must.True(t, i > 0 && tc.chain > 0 || rr.Header().Name == strings.ToUpper(tc.name)+".", what)
		}
	}
	// Only addresses are in force, and only of names that were asked for.
	must.Eq(t, []fabric.Named{
		{Service: web, Name: "api.example.com", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1")}},
		{Service: web, Name: "www.example.com", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.3")}},
	}, e.table.Named())
	must.Eq(t, 3, e.enacted.Load()) // for each answer that brought some
}

// Answers that lead to addresses that no outside name may have, whatever their form.
func TestRebinding(t *testing.T) {
	for _, tc := range []struct {
		addr, listed string
		kept         bool
	}{
		{"192.0.2.1", "", true}, {"10.1.2.3", "", true}, {"2001:db8::1", "", true},
		{"100.64.1.2", "", false}, {"100.64.1.2", "100.64.1.2/32", false}, {"fd5f:1::2", "", false},
		{"10.0.0.5", "", false}, {"10.0.0.5", "10.0.0.0/24", false}, {"10.0.0.5", "10.0.0.5/32", true},
		{"127.0.0.1", "", false}, {"127.0.0.1", "0.0.0.0/0", false}, {"0.0.0.0", "", false}, {"0.1.2.3", "", false},
		{"169.254.169.254", "", false}, {"169.254.169.254", "169.254.169.254/32", true}, {"169.254.169.253", "169.254.169.254/32", false},
		{"224.0.0.251", "", false}, {"255.255.255.255", "", false}, {"240.0.0.1", "", false},
		{"::1", "", false}, {"::", "", false}, {"fe80::1", "", false}, {"ff02::1", "", false}, {"fd00:ec2::254", "", false},
		{"::ffff:127.0.0.1", "", false}, {"::ffff:192.0.2.1", "", false}, {"::127.0.0.1", "", false},
		{"64:ff9b::127.0.0.1", "64:ff9b::/96", false}, {"64:ff9b::10.0.0.5", "64:ff9b::/96", false}, {"64:ff9b::192.0.2.1", "64:ff9b::/96", true}, {"64:ff9b::192.0.2.1", "", false},
		{"64:ff9b::100.64.1.2", "64:ff9b::/96", false},
		{"2002:7f00:1::1", "", false}, {"2002:7f00:1::1", "2002::/16", false}, {"2002:c000:201::1", "2002::/16", true},
		{"2001:0:c000:201::5601:101", "", false}, // Teredo: the client is 169.254.254.254
		{"2001:0:7f00:1::3fff:fdfe", "", false},  // Teredo: the server is 127.0.0.1
		{"2001:0:c000:201::3fff:fdfe", "", true}, // Teredo: 192.0.2.1 at 192.0.2.1
		{"2001:db8::5efe:127.0.0.1", "", false}, {"2001:db8::200:5efe:10.0.0.5", "", false}, {"2001:db8::5efe:192.0.2.1", "", true},
	} {
		e, what := newExit(t), must.Sprintf("%s, listed %s", tc.addr, tc.listed)
		qtype := miekg.TypeA
		if netip.MustParseAddr(tc.addr).Is6() {
			qtype = miekg.TypeAAAA
		}
		e.world.Set("api.example.com.", 300, tc.addr)
		q := granting("api.example.com", qtype, "api.example.com")
		if tc.listed != "" {
			q.Externals[0].Listed = prefixes(tc.listed)
		}
		r := e.Answer(t.Context(), q)
		must.Eq(t, miekg.RcodeSuccess, r.Code, what)
		filtered, _ := e.Counts()
		if tc.kept {
			must.Eq(t, []netip.Addr{netip.MustParseAddr(tc.addr)}, r.Addresses(), what)
			must.Eq(t, r.Addresses(), e.table.Known(q.Key), what)
			must.Zero(t, filtered, what)
			continue
		}
		must.SliceEmpty(t, r.Records, what)
		must.SliceEmpty(t, e.table.Keys(), what)
		must.Eq(t, miekg.ExtendedErrorCodeFiltered, r.Extended, what)
		must.One(t, filtered, what)
	}
	// The rest of an answer is told.
	e := newExit(t)
	e.world.Set("api.example.com.", 300, "192.0.2.1", "127.0.0.1", "100.64.0.9", "192.0.2.2")
	r := e.Answer(t.Context(), granting("api.example.com", miekg.TypeA, "*.example.com"))
	must.Eq(t, []string{"A 192.0.2.1", "A 192.0.2.2"}, texts(r))
	must.Eq(t, miekg.ExtendedErrorCodeFiltered, r.Extended)
	// A chain hides nothing.
	e = newExit(t, "api.example.com. 60 IN CNAME in.example.net.", "in.example.net. 60 IN A 169.254.169.254")
	must.SliceEmpty(t, e.Answer(t.Context(), granting("api.example.com", miekg.TypeA, "*.example.com")).Records)
}

// A name with ten addresses, of which each answer has other three, has all ten in force.
func TestRotatingAnswers(t *testing.T) {
	e := newExit(t)
	q := granting("cdn.example.com", miekg.TypeA, "cdn.example.com")
	for turn := range 10 {
		var some []string
		for i := range 3 {
			some = append(some, fmt.Sprintf("192.0.2.%d", (turn+i)%10+1))
		}
		e.world.Set("cdn.example.com.", 5, some...)
		must.SliceLen(t, 3, e.Answer(t.Context(), q).Records)
		e.pass(5 * time.Second)
	}
	must.SliceLen(t, 10, e.table.Known(q.Key))
	must.SliceEmpty(t, e.table.Full())
	e.pass(time.Minute)
	must.SliceEmpty(t, e.table.Known(q.Key))
}

// When resolvers are away, names that are known go on within a second, and others fail.
func TestResolversAreAway(t *testing.T) {
	for _, how := range []string{"closed", "silent"} {
		t.Run(how, func(t *testing.T) {
			e := newExit(t, "api.example.com. 5 IN A 192.0.2.1", "old.example.com. 5 IN A 192.0.2.2")
			var silent atomic.Bool
			s := resolvetest.Start(t, func(w miekg.ResponseWriter, m *miekg.Msg) {
				if !silent.Load() {
					e.world.ServeDNS(w, m)
				} else if how == "closed" {
					w.WriteMsg(new(miekg.Msg).SetRcode(m, miekg.RcodeServerFailure))
				}
			})
			e.asking(t, s.Addr)
			q := granting("api.example.com", miekg.TypeA, "*.example.com")
			must.Eq(t, []string{"A 192.0.2.1"}, texts(e.Answer(t.Context(), q)))
			must.NoError(t, e.away)
			silent.Store(true)
			e.pass(10 * time.Second)
			began := time.Now()
			r := e.Answer(t.Context(), q)
			must.Eq(t, []string{"A 192.0.2.1"}, texts(r))
			must.Eq(t, miekg.ExtendedErrorCodeStaleAnswer, r.Extended)
			must.Less(t, 3*time.Second, time.Since(began)) // a second, on a busy machine
			must.Eq(t, miekg.RcodeServerFailure, e.Answer(t.Context(), granting("six.example.com", miekg.TypeAAAA, "*.example.com")).Code)
			must.Eq(t, miekg.RcodeServerFailure, e.Answer(t.Context(), granting("new.example.com", miekg.TypeA, "*.example.com")).Code)
			must.Eq(t, how == "silent", errors.Is(e.away, resolve.ErrUnreachable))
			e.pass(time.Minute) // a stale answer keeps nothing in force
			must.SliceEmpty(t, e.table.Known(q.Key))
			silent.Store(false)
			e.pass(time.Second)
			must.Eq(t, miekg.RcodeSuccess, e.Answer(t.Context(), granting("other.example.com", miekg.TypeA, "*.example.com")).Code&^miekg.RcodeNameError)
			must.NoError(t, e.away)
		})
	}
}

// What cannot be brought in force fails no answer, and is tried again with the next.
func TestNotInForce(t *testing.T) {
	e := newExit(t, "api.example.com. 300 IN A 192.0.2.1")
	e.broken = errors.New("the switch is away")
	q := granting("api.example.com", miekg.TypeA, "*.example.com")
	must.Eq(t, []string{"A 192.0.2.1"}, texts(e.Answer(t.Context(), q)))
	e.broken = nil
	e.Answer(t.Context(), q)
	e.Answer(t.Context(), q)
	must.Eq(t, 2, e.enacted.Load())
}

// A flood of one source is limited, and does not touch another.
func TestFlood(t *testing.T) {
	e := newExit(t)
	limited := 0
	for n := range 2 * freshBurst {
		q := granting(fmt.Sprintf("n%d.example.com", n), miekg.TypeTXT, "*.example.com")
		if e.Answer(t.Context(), q).Code == miekg.RcodeServerFailure {
			limited++
		}
	}
	must.Positive(t, limited)
	_, counted := e.Counts()
	must.Eq(t, limited, int(counted))
	q := granting("n1.example.org", miekg.TypeTXT, "*.example.org")
	q.Source = "w2"
	must.Eq(t, miekg.RcodeNameError, e.Answer(t.Context(), q).Code)
}

// Whatever another daemon sends, what is told of it has only records of the question's type, no
// address that is reserved, and can be packed.
func FuzzUnpack(f *testing.F) {
	for _, record := range []string{"api.example.com. 60 IN A 192.0.2.1", "api.example.com. 60 IN A 127.0.0.1", "api.example.com. 60 IN HTTPS 1 . alpn=h2 ipv4hint=1.2.3.4", "api.example.com. 60 IN SRV 1 2 3 x.example.com."} {
		rr, err := miekg.NewRR(record)
		must.NoError(f, err)
		m := new(miekg.Msg).SetQuestion("api.example.com.", rr.Header().Rrtype)
		m.Response, m.Answer = true, []miekg.RR{rr}
		raw, err := m.Pack()
		must.NoError(f, err)
		f.Add(raw, rr.Header().Rrtype)
	}
	e := newExit(f)
	f.Fuzz(func(t *testing.T, raw []byte, qtype uint16) {
		rq := resolve.Question{Name: "api.example.com", Type: qtype}
		a, err := Unpack(raw, rq, e.now())
		if err != nil || !slices.Contains(resolve.Types, qtype) {
			return
		}
		q := granting("api.example.com", qtype, "*.example.com")
		r := e.admit(q, a)
		if _, err := r.Pack(rq, e.now()); err != nil {
			t.Fatalf("%v cannot be packed: %v", r, err)
		}
		for _, rr := range r.Records {
			if rr.Header().Rrtype != qtype {
				t.Fatalf("%s answers a question of type %d", rr, qtype)
			}
			if addr, ok := resolve.AddressOf(rr); ok && barred(e.known(), addr, q.Externals) {
				t.Fatalf("%s is told", addr)
			}
			if strings.Contains(rr.String(), "hint=") || strings.Contains(rr.String(), " ech=") {
				t.Fatalf("%s leads around policy", rr)
			}
		}
	})
}
