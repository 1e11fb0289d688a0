// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package internet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/shoenig/test/must"
)

func serve(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must.NoError(t, <-ended)
	})
}

// log is a buffer that is safe for concurrent use.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func writeRecords(t *testing.T, path string, records Records) {
	t.Helper()
	data, err := json.Marshal(records)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(path, data, 0o600))
}

func TestResolver(t *testing.T) {
	var many []netip.Addr
	for i := range 200 {
		many = append(many, netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}))
	}
	file := filepath.Join(t.TempDir(), "records.json")
	a, b, c := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8::1")
	records := Records{
		"one.example.com":    {Addresses: []netip.Addr{a, c}, TTL: 60, HTTPS: true},
		"turns.example.com":  {Addresses: []netip.Addr{a, b, c}, Answers: 1},
		"*.deep.example.com": {Addresses: []netip.Addr{b}},
		"alias.example.com":  {CNAME: "other.example.com"},
		"other.example.com":  {CNAME: "one.example.com"},
		"loop.example.com":   {CNAME: "loop.example.com"},
		"lost.example.com":   {CNAME: "nowhere.example.com"},
		"many.example.com":   {Addresses: many},
		"away.example.com":   {Silent: true},
	}
	writeRecords(t, file, records)
	var questions log
	r, err := ListenResolver(file, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, &questions)
	must.NoError(t, err)
	serve(t, r.Serve)

	ask := func(network, name string, kind uint16) (*dns.Msg, error) {
		client := dns.Client{Net: network, Timeout: 200 * time.Millisecond}
		m, _, err := client.Exchange(new(dns.Msg).SetQuestion(dns.Fqdn(name), kind), r.Addr().String())
		return m, err
	}
	values := func(m *dns.Msg) (list []string) {
		for _, rr := range m.Answer {
			list = append(list, strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
		return list
	}
	for _, tc := range []struct {
		name string
		kind uint16
		code int
		want []string
	}{
		{"one.example.com", dns.TypeA, dns.RcodeSuccess, []string{"203.0.113.1"}},
		{"ONE.example.com", dns.TypeAAAA, dns.RcodeSuccess, []string{"2001:db8::1"}},
		{"one.example.com", dns.TypeTXT, dns.RcodeSuccess, nil},
		{"one.example.com", dns.TypeHTTPS, dns.RcodeSuccess, []string{`1 . alpn="h2" ipv4hint="203.0.113.1" ipv6hint="2001:db8::1"`}},
		{"turns.example.com", dns.TypeA, dns.RcodeSuccess, []string{"203.0.113.1"}},
		{"turns.example.com", dns.TypeA, dns.RcodeSuccess, []string{"203.0.113.2"}},
		{"turns.example.com", dns.TypeA, dns.RcodeSuccess, []string{"203.0.113.1"}},
		{"x.y.deep.example.com", dns.TypeA, dns.RcodeSuccess, []string{"203.0.113.2"}},
		{"deep.example.com", dns.TypeA, dns.RcodeNameError, nil},
		{"alias.example.com", dns.TypeA, dns.RcodeSuccess, []string{"other.example.com.", "one.example.com.", "203.0.113.1"}},
		{"lost.example.com", dns.TypeA, dns.RcodeNameError, []string{"nowhere.example.com."}},
		{"nowhere.example.com", dns.TypeA, dns.RcodeNameError, nil},
	} {
		m, err := ask("udp", tc.name, tc.kind)
		must.NoError(t, err)
		must.Eq(t, tc.code, m.Rcode, must.Sprint(tc.name))
		must.Eq(t, tc.want, values(m), must.Sprint(tc.name))
	}
	m, err := ask("udp", "loop.example.com", dns.TypeA)
	must.NoError(t, err)
	must.NotEq(t, 0, len(m.Answer))
	m, err = ask("udp", "many.example.com", dns.TypeA)
	must.NoError(t, err)
	must.True(t, m.Truncated)
	m, err = ask("tcp", "many.example.com", dns.TypeA)
	must.NoError(t, err)
	must.Len(t, 200, m.Answer)
	_, err = ask("udp", "away.example.com", dns.TypeA)
	must.Error(t, err)
	must.StrContains(t, questions.String(), "question x.y.deep.example.com. A from 127.0.0.1")

	records["new.example.com"] = Record{Addresses: []netip.Addr{b}}
	writeRecords(t, file, records)
	m, err = ask("udp", "new.example.com", dns.TypeA)
	must.NoError(t, err)
	must.Eq(t, []string{"203.0.113.2"}, values(m))
}

func TestHost(t *testing.T) {
	h, err := ListenHost([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")})
	must.NoError(t, err)
	serve(t, h.Serve)
	at := h.listeners[0].Addr().String()

	conn, err := net.Dial("tcp", at)
	must.NoError(t, err)
	defer conn.Close()
	in := bufio.NewReader(conn)
	line, err := in.ReadString('\n')
	must.NoError(t, err)
	must.Eq(t, conn.LocalAddr().String()+"\n", line)
	_, err = conn.Write([]byte("hello"))
	must.NoError(t, err)
	got := make([]byte, 5)
	_, err = io.ReadFull(in, got)
	must.NoError(t, err)
	must.Eq(t, "hello", string(got))

	udp, err := net.Dial("udp", at)
	must.NoError(t, err)
	defer udp.Close()
	buf := make([]byte, 1<<16)
	for question, want := range map[string]string{Who: udp.LocalAddr().String(), "x": "x", strings.Repeat("y", 60000): strings.Repeat("y", 60000)} {
		_, err = udp.Write([]byte(question))
		must.NoError(t, err)
		must.NoError(t, udp.SetReadDeadline(time.Now().Add(2*time.Second)))
		n, err := udp.Read(buf)
		must.NoError(t, err)
		must.Eq(t, want, string(buf[:n]))
	}
}
