// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// tell makes a workload's refusals known to it.
func (n *node) tell(w *workload, identity uint32) {
	n.t.Helper()
	must.NoError(n.t, n.PutEndpoint(Endpoint{Interface: w.index, Identity: identity, IPv4: addr(w.v4), IPv6: addr(w.v6), Reject: true}))
}

// ask sends a datagram and returns the error that its answer is.
func (w *workload) ask(address string) error { return w.query(address, []byte("question")) }

// askMuch sends one of several fragments.
func (w *workload) askMuch(address string) error { return w.query(address, make([]byte, 5000)) }

func (w *workload) query(address string, question []byte) (err error) {
	w.t.Helper()
	w.inside(func() {
		var c net.Conn
		if c, err = net.Dial("udp", address); err != nil {
			return
		}
		defer c.Close()
		if _, err = c.Write(question); err != nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(time.Second))
		_, err = c.Read(make([]byte, 16))
	})
	return err
}

func TestRefusalsAreTold(t *testing.T) {
	for _, checksum := range []string{"on", "off"} {
		t.Run("checksum offload "+checksum, func(t *testing.T) {
			byMechanism(t, func(t *testing.T, by Mechanism) { testRefusalsAreTold(t, by, checksum) })
		})
	}
}

func testRefusalsAreTold(t *testing.T, by Mechanism, checksum string) {
	n := newNode(t, by)
	for _, w := range []*workload{n.client, n.server} {
		w.inside(func() { script(t, "ethtool -K eth0 tx $TX >/dev/null", "TX="+checksum) })
	}
	n.allow()
	must.NoError(t, n.PutPeer(Peer{Address: addr("100.64.0.99"), Gone: true}))
	must.NoError(t, n.PutPeer(Peer{Address: addr("fd5f::99"), Gone: true}))
	must.NoError(t, n.PutExternal(External{netip.MustParsePrefix("198.51.100.0/24"), 9, 0}))

	timeout := func(err error) bool {
		var e net.Error
		return errors.As(err, &e) && e.Timeout()
	}
	is := func(want syscall.Errno) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }
	type attempt struct {
		name      string
		do        func(string) error
		addresses []string
		silent    bool
		want      []func(error) bool // by family
	}
	dial := func(a string) error { _, err := n.client.dial(a); return err }
	attempts := []attempt{
		{"tcp without contract", dial, []string{"100.64.0.11:8081", "[fd5f::11]:8081"}, false, []func(error) bool{is(unix.ECONNREFUSED), is(unix.ECONNREFUSED)}},
		{"tcp to a peer that is gone", dial, []string{"100.64.0.99:8080", "[fd5f::99]:8080"}, false, []func(error) bool{is(unix.ECONNREFUSED), is(unix.ECONNREFUSED)}},
		{"tcp outside", dial, []string{"192.0.2.7:80", "[2001:db8::7]:80"}, false, []func(error) bool{is(unix.ECONNREFUSED), is(unix.ECONNREFUSED)}},
		{"udp without contract", n.client.ask, []string{"100.64.0.11:9000", "[fd5f::11]:9000"}, false, []func(error) bool{is(unix.EHOSTUNREACH), is(unix.EACCES)}},
		{"udp to a peer that is gone", n.client.ask, []string{"100.64.0.99:9000", "[fd5f::99]:9000"}, false, []func(error) bool{is(unix.EHOSTUNREACH), is(unix.EACCES)}},
		{"udp in fragments", n.client.askMuch, []string{"100.64.0.11:9000", "[fd5f::11]:9000"}, false, []func(error) bool{is(unix.EHOSTUNREACH), is(unix.EACCES)}},
		{"udp outside", n.client.ask, []string{"192.0.2.7:53", "[2001:db8::7]:53"}, false, []func(error) bool{is(unix.EHOSTUNREACH), is(unix.EACCES)}},
		{"tcp to nobody known", dial, []string{"100.64.7.7:80", "[fd5f::77]:80"}, true, nil},
		{"tcp without an exit", dial, []string{"198.51.100.7:443"}, true, nil},
		{"udp to nobody known", n.client.ask, []string{"100.64.7.7:80"}, true, nil},
	}
	check := func(told bool) {
		for _, a := range attempts {
			for i, address := range a.addresses {
				err := a.do(address)
				if a.silent || !told {
					if !timeout(err) {
						t.Errorf("%s, %s, told %t: %v, want silence", a.name, address, told, err)
					}
				} else if !a.want[i](err) {
					t.Errorf("%s, %s: %v", a.name, address, err)
				}
			}
		}
	}
	must.NoError(t, n.ReplacePair(Pair{1, 9}, []Rule{rule(6, 443, 443, 1)}))
	if by == TCX && checksum == "on" {
		check(false)
	}
	n.tell(n.client, 1)
	check(true)

	// A connection that policy cuts is reset at both ends: by a packet of either, also if the other
	// end only listens.
	n.tell(n.server, 2)
	for _, address := range []string{"100.64.0.11:7000", "[fd5f::11]:7000"} {
		for _, first := range []string{"client", "server"} {
			must.NoError(t, n.ReplacePair(Pair{1, 2}, []Rule{rule(6, 7000, 7000, 1)}))
			server := n.server.accept(address)
			client, err := n.client.dial(address)
			must.NoError(t, err)
			other := <-server
			must.NoError(t, n.ReplacePair(Pair{1, 2}, nil))
			ends := map[string][]net.Conn{"client": {client, other}, "server": {other, client}}[first]
			_, err = ends[0].Write([]byte("hello"))
			must.NoError(t, err)
			for i, c := range ends {
				must.NoError(t, c.SetDeadline(time.Now().Add(3*time.Second)))
				_, err := io.ReadAll(c)
				if !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("%s, the %s sent, end %d: %v", address, first, i, err)
				}
			}
		}
	}
	counters, err := n.Counters()
	must.NoError(t, err)
	must.Positive(t, counters.Refusals.Resets)
	must.Positive(t, counters.Refusals.Prohibited)
	must.Zero(t, counters.Refusals.Limited)

	// Also while large segments are under way.
	must.NoError(t, n.ReplacePair(Pair{1, 2}, []Rule{rule(6, 8080, 8080, 1)}))
	bulk, err := n.client.dial("100.64.0.11:8080")
	must.NoError(t, err)
	must.NoError(t, transfer(bulk, 8<<20))
	written := make(chan error, 1)
	go func() {
		for {
			if _, err := bulk.Write(make([]byte, 1<<20)); err != nil {
				written <- err
				return
			}
		}
	}()
	go func() { _, _ = io.Copy(io.Discard, bulk) }()
	must.NoError(t, n.ReplacePair(Pair{1, 2}, nil))
	must.NoError(t, bulk.SetDeadline(time.Now().Add(5*time.Second)))
	if err := <-written; !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("a transfer that is cut: %v", err)
	}
}

// Connections that policy cuts while neither end sends are reset as well, and others stay.
func TestIdleConnectionsAreReset(t *testing.T) { byMechanism(t, testIdleConnectionsAreReset) }

func testIdleConnectionsAreReset(t *testing.T, by Mechanism) {
	n := newNode(t, by)
	n.tell(n.client, 1)
	allow := []Rule{rule(6, 8080, 8080, 1), rule(6, 7000, 7000, 1)}
	must.NoError(t, n.ReplacePair(Pair{1, 2}, allow))
	connect := func() (ends []net.Conn) {
		for _, address := range []string{"100.64.0.11:7000", "[fd5f::11]:7000"} {
			server := n.server.accept(address)
			client, err := n.client.dial(address)
			must.NoError(t, err)
			must.NoError(t, client.SetDeadline(time.Now().Add(20*time.Second)))
			ends = append(ends, client, <-server)
		}
		return ends
	}
	stays, err := n.client.dial("100.64.0.11:8080")
	must.NoError(t, err)
	rouse := func(want int) {
		t.Helper()
		sum, settled := 0, func() bool { return n.roused == atomic.LoadUint64(&n.config.Generation) }
		for deadline := time.Now().Add(10 * time.Second); !settled() && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			roused, err := n.RouseCut()
			must.NoError(t, err)
			sum += roused
		}
		must.Eq(t, want, sum)
	}
	reset := func(ends ...net.Conn) {
		t.Helper()
		for _, c := range ends {
			must.NoError(t, c.SetDeadline(time.Now().Add(3*time.Second)))
			_, err := c.Read(make([]byte, 1))
			must.ErrorIs(t, err, unix.ECONNRESET)
		}
	}
	ends := connect()
	rouse(0)
	must.NoError(t, n.ReplacePair(Pair{1, 2}, allow[:1]))
	rouse(2)
	reset(ends[0], ends[2])
	rouse(0)
	must.NoError(t, echo(stays))
	n.tell(n.server, 2)
	must.NoError(t, n.ReplacePair(Pair{1, 2}, allow))
	ends = connect()
	must.NoError(t, n.ReplacePair(Pair{1, 2}, allow[:1]))
	rouse(4)
	reset(ends...)
	must.NoError(t, echo(stays))

	// The client acknowledges the echo within 200 ms. Later that segment would end the connection
	// by itself, and nothing would be left to rouse.
	time.Sleep(300 * time.Millisecond)
	must.NoError(t, n.PutPeer(Peer{Address: addr(n.server.v4), Gone: true}))
	rouse(1)
	reset(stays)
}

// accept listens once and delivers the connection.
func (w *workload) accept(address string) <-chan net.Conn {
	w.t.Helper()
	accepted := make(chan net.Conn, 1)
	w.inside(func() {
		l, err := net.Listen("tcp", address)
		if err != nil {
			w.t.Errorf("listen in the workload: %v", err)
			close(accepted)
			return
		}
		go func() {
			defer l.Close()
			defer close(accepted)
			if c, err := l.Accept(); err == nil {
				accepted <- c
			}
		}()
	})
	return accepted
}

// segment is a TCP packet with correct checksums.
func segment(from, to string, source, destination uint16, flags byte, sequence, acknowledged uint32, data ...byte) []byte {
	t := append(be16(source, destination), binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, sequence), acknowledged)...)
	t = slices.Concat(t, []byte{0x50, flags}, be16(0, 0, 0), data)
	return sealed(from, to, 6, t, 16)
}

// sealed is a packet of ours, with correct checksums.
func sealed(from, to string, protocol byte, payload []byte, checksum int) []byte {
	seed := []byte{}
	if protocol != 1 {
		seed = slices.Concat(addr(from).AsSlice(), addr(to).AsSlice(), be16(0, uint16(len(payload)), 0, uint16(protocol)))
	}
	binary.BigEndian.PutUint16(payload[checksum:], internet(slices.Concat(seed, payload)))
	packet := ip(from, to, protocol, payload)
	if packet[0] == 0x45 {
		packet[6] = 0x40
		binary.BigEndian.PutUint16(packet[10:], internet(packet[:20]))
	}
	return packet
}

// internet is the checksum of IPv4, TCP and ICMP.
func internet(b []byte) uint16 {
	sum := uint32(0)
	for i := range b {
		if i%2 == 0 {
			sum += uint32(b[i]) << 8
		} else {
			sum += uint32(b[i])
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// turned is a frame back to the workload.
func turned(packet []byte) []byte {
	f := ethernet(packet)
	return slices.Concat(f[6:12], f[:6], f[12:])
}

// What a refused packet becomes, by bytes.
func TestRefusalsByBytes(t *testing.T) {
	const redirect, drop = 7, 2
	f := newOutside(t)
	prohibited4 := func(packet []byte) []byte {
		return turned(sealed(resolver4, me4, 1, append([]byte{3, 13, 0, 0, 0, 0, 0, 0}, packet[:min(len(packet), 256)]...), 2))
	}
	prohibited6 := func(packet []byte) []byte {
		return turned(sealed(host6, me6, 58, append([]byte{1, 1, 0, 0, 0, 0, 0, 0}, packet[:min(len(packet), 256)]...), 2))
	}
	v6Options := ip(me6, friend6, 60, append([]byte{6, 0, 1, 4, 0, 0, 0, 0}, tcp(4000, 8081, syn)...))
	odd, long := append(ip(me4, friend4, 17, udp(1, 2)), 7), append(ip(me4, friend4, 17, udp(1, 2)), make([]byte, 1200)...)
	for _, p := range [][]byte{odd, long} {
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	}
	withoutContract := func(flags byte, data ...byte) []byte {
		return segment(me4, stranger4, 4000, 80, flags, 1000, 2000, data...)
	}
	for name, test := range map[string]struct {
		step    step
		verdict int32
		becomes []byte
	}{
		"syn":                  {sent(NoContract, withoutContract(syn)), redirect, turned(segment(stranger4, me4, 80, 4000, rst|ack, 0, 1001))},
		"syn with data":        {sent(NoContract, withoutContract(syn, 1, 2, 3)), redirect, turned(segment(stranger4, me4, 80, 4000, rst|ack, 0, 1004))},
		"in the middle":        {sent(NoContract, withoutContract(ack, 1, 2, 3)), redirect, turned(segment(stranger4, me4, 80, 4000, rst, 2000, 0))},
		"fin":                  {sent(NoContract, withoutContract(fin|ack)), redirect, turned(segment(stranger4, me4, 80, 4000, rst, 2000, 0))},
		"sequence wraps":       {sent(NoContract, segment(me4, stranger4, 4000, 80, syn, 0xffffffff, 0)), redirect, turned(segment(stranger4, me4, 80, 4000, rst|ack, 0, 0))},
		"reset":                {sent(NoContract, withoutContract(rst)), drop, nil},
		"answer":               {sent(NoConnection, withoutContract(syn|ack)), drop, nil},
		"syn, v6":              {sent(NoContract, segment(me6, friend6, 4000, 8081, syn, 1000, 0)), redirect, turned(segment(friend6, me6, 8081, 4000, rst|ack, 0, 1001))},
		"in the middle, v6":    {sent(NoContract, segment(me6, friend6, 4000, 8081, ack, 1000, 2000, 1)), redirect, turned(segment(friend6, me6, 8081, 4000, rst, 2000, 0))},
		"options, v6":          {sent(NoContract, v6Options), drop, nil},
		"may be an answer":     {sent(NoContract, segment(me4, friend4, 80, 5000, ack, 1000, 2000)), drop, nil},
		"opens, from that":     {sent(NoContract, segment(me4, friend4, 80, 5000, syn, 1000, 0)), redirect, turned(segment(friend4, me4, 5000, 80, rst|ack, 0, 1001))},
		"peer gone":            {sent(PeerGone, segment(me4, gone4, 4000, 80, ack, 1000, 2000)), redirect, turned(segment(gone4, me4, 80, 4000, rst, 2000, 0))},
		"outside":              {sent(Outside, segment(me4, elsewhere4, 4000, 80, syn, 1000, 0)), redirect, turned(segment(elsewhere4, me4, 80, 4000, rst|ack, 0, 1001))},
		"external":             {sent(NoContract, segment(me4, bank4, 4000, 80, syn, 1000, 0)), redirect, turned(segment(bank4, me4, 80, 4000, rst|ack, 0, 1001))},
		"external, the middle": {sent(NoContract, segment(me4, bank4, 4000, 80, ack, 1000, 0)), drop, nil},
		"external, udp":        {sent(NoContract, ip(me4, bank4, 17, udp(1, 2))), redirect, prohibited4(ip(me4, bank4, 17, udp(1, 2)))},
		"outside, the middle":  {sent(Outside, segment(me4, elsewhere4, 4000, 80, ack, 1000, 0)), drop, nil},
		"this node":            {sent(NoContract, segment(me4, resolver4, 4000, 22, syn, 1000, 0)), redirect, turned(segment(resolver4, me4, 22, 4000, rst|ack, 0, 1001))},
		"nobody known":         {sent(UnknownDestination, segment(me4, nobody4, 4000, 80, syn, 1000, 0)), drop, nil},
		"hole":                 {sent(Outside, segment(me4, hole4, 4000, 80, syn, 1000, 0)), redirect, turned(segment(hole4, me4, 80, 4000, rst|ack, 0, 1001))},
		"spoofed":              {sent(SpoofedSource, segment(neighbour4, friend4, 4000, 80, syn, 1000, 0)), drop, nil},
		"udp":                  {sent(NoContract, ip(me4, friend4, 17, udp(1, 2))), redirect, prohibited4(ip(me4, friend4, 17, udp(1, 2)))},
		"udp, odd":             {sent(NoContract, odd), redirect, prohibited4(odd)},
		"udp, long":            {sent(NoContract, long), redirect, prohibited4(long)},
		"udp, first fragment":  {sent(NoContract, with(ip(me4, friend4, 17, append(udp(1, 2), 0, 0, 0, 0)), 6, 0x20)), redirect, prohibited4(with(ip(me4, friend4, 17, append(udp(1, 2), 0, 0, 0, 0)), 6, 0x20))},
		"udp, later fragment":  {sent(NoFirstFragment, with(ip(me4, friend4, 17, udp(1, 2)), 6, 0, 5)), drop, nil},
		"udp, v6":              {sent(NoContract, ip(me6, friend6, 17, udp(1, 2))), redirect, prohibited6(ip(me6, friend6, 17, udp(1, 2)))},
		"udp, options, v6":     {sent(NoContract, ip(me6, friend6, 60, append([]byte{17, 0, 1, 4, 0, 0, 0, 0}, udp(1, 2)...))), redirect, prohibited6(ip(me6, friend6, 60, append([]byte{17, 0, 1, 4, 0, 0, 0, 0}, udp(1, 2)...)))},
		"sctp":                 {sent(NoContract, ip(me4, friend4, 132, sctp(1, 2))), redirect, prohibited4(ip(me4, friend4, 132, sctp(1, 2)))},
		"echo":                 {sent(NoContract, ip(me4, stranger4, 1, icmp(8, 0, 5))), redirect, prohibited4(ip(me4, stranger4, 1, icmp(8, 0, 5)))},
		"echo, v6":             {sent(Outside, ip(me6, "2001:db8:9::1", 58, icmp(128, 0, 5))), redirect, prohibited6(ip(me6, "2001:db8:9::1", 58, icmp(128, 0, 5)))},
		"echo reply":           {sent(NoConnection, ip(me4, stranger4, 1, icmp(0, 0, 5))), drop, nil},
		"icmp error":           {sent(NoConnection, ip(me4, stranger4, 1, icmp(3, 3, 0, ip(stranger4, me4, 17, udp(1, 2))...))), drop, nil},
		"multicast":            {sent(Multicast, ip(me4, "224.0.0.251", 17, udp(5353, 5353))), drop, nil},
		"to the workload":      {wire(NoContract, segment(stranger4, me4, 4000, 80, syn, 1000, 0)), drop, nil},
		"to the workload, udp": {wire(NoContract, ip(stranger4, me4, 17, udp(1, 2))), drop, nil},
	} {
		f.forget() // with what was told
		for _, told := range []bool{true, false} {
			f.endpoint(func(e *Endpoint) { e.Reject = told })
			verdict, becomes := test.verdict, test.becomes
			if !told {
				verdict, becomes = drop, nil
			}
			if got := f.step(test.step); got != test.step.want {
				t.Errorf("%s: %s, want %s", name, got, test.step.want)
			}
			if f.last.verdict != verdict {
				t.Errorf("%s, told %t: verdict %d, want %d", name, told, f.last.verdict, verdict)
			}
			if becomes != nil && !slices.Equal(f.last.frame, becomes) {
				t.Errorf("%s became\n%x, want\n%x", name, f.last.frame, becomes)
			}
			if verdict == redirect && f.last.mark != 0 {
				t.Errorf("%s: mark %#x", name, f.last.mark)
			}
		}
	}
}

// What becomes of the packet by which a connection is found to be cut, by bytes.
func TestCutsByBytes(t *testing.T) {
	const pass, drop = -1, 2
	f := newOutside(t)
	opening := ip(me4, friend4, 6, tcp(4000, 8080, syn))
	revoke := then(func(f *fixture) { f.rules(idMe, idFriend) })
	mine := func(flags byte, data ...byte) []byte {
		return segment(me4, friend4, 4000, 8080, flags, 1000, 2000, data...)
	}
	its := func(flags byte, data ...byte) []byte {
		return segment(friend4, me4, 8080, 4000, flags, 2000, 1000, data...)
	}
	for name, test := range map[string]struct {
		before  []step
		step    step
		verdict int32
		becomes []byte
	}{
		"by the workload":          {[]step{sent(AllowedContract, opening), revoke}, sent(StaleConnection, mine(ack, 1, 2, 3)), pass, ethernet(mine(rst | ack))},
		"by the workload's reset":  {[]step{sent(AllowedContract, opening), revoke}, sent(StaleConnection, mine(rst, 1)), pass, ethernet(segment(me4, friend4, 4000, 8080, rst, 1000, 2000))},
		"by the other end":         {[]step{sent(AllowedContract, opening), revoke}, wire(StaleConnection, its(ack, 1, 2, 3)), pass, ethernet(its(rst | ack))},
		"by the other end's reset": {[]step{sent(AllowedContract, opening), revoke}, wire(StaleConnection, its(rst)), pass, ethernet(its(rst))},
		"from elsewhere":           {[]step{sent(AllowedContract, opening), revoke}, underlay(StaleConnection, its(rst)), drop, nil},
		"a second time":            {[]step{sent(AllowedContract, opening), revoke, wire(StaleConnection, its(ack))}, wire(NoContract, its(ack)), drop, nil},
		"the peer is not known": {[]step{sent(AllowedContract, opening), then(func(f *fixture) { _ = f.DeletePeer(addr(friend4)) })},
			sent(StaleConnection, mine(ack)), drop, nil},
		"the exit is lost": {[]step{marked(exitOne, sent(AllowedContract, ip(me4, bank4, 6, tcp(5000, 443, syn)))), then(func(f *fixture) {
			f.endpoint(func(e *Endpoint) { e.Reject, e.Exit = true, exitTwo })
		})}, marked(exitOne, sent(StaleConnection, segment(me4, bank4, 5000, 443, ack, 1, 2))), pass, ethernet(segment(me4, bank4, 5000, 443, rst|ack, 1, 2))},
		"udp by the other end": {[]step{sent(AllowedContract, ip(me4, friend4, 17, udp(1, 9000))), revoke}, wire(StaleConnection, ip(friend4, me4, 17, udp(9000, 1))), drop, nil},
		"icmp error":           {[]step{sent(AllowedContract, opening), revoke}, wire(StaleConnection, ip(friend4, me4, 1, icmp(3, 3, 0, opening...))), drop, nil},
	} {
		f.endpoint(func(e *Endpoint) { e.Reject = true })
		for _, s := range append(test.before, test.step) {
			if s.change != nil {
				s.change(f)
			} else if got := f.step(s); got != s.want {
				t.Errorf("%s: %s, want %s", name, got, s.want)
			}
		}
		if f.last.verdict != test.verdict {
			t.Errorf("%s: verdict %d, want %d", name, f.last.verdict, test.verdict)
		}
		if test.becomes != nil && !slices.Equal(f.last.frame, test.becomes) {
			t.Errorf("%s became\n%x, want\n%x", name, f.last.frame, test.becomes)
		}
		if s := test.step; s.dir == FromWorkload && s.mark != unmarked && f.last.mark != s.mark {
			t.Errorf("%s: mark %#x, want %#x", name, f.last.mark, s.mark)
		}
		f.restore()
	}
}

// An endpoint is told of so many refusals in a second, and what it is not told is counted.
func TestRefusalsAreLimited(t *testing.T) {
	f := newFixture(t)
	f.endpoint(func(e *Endpoint) { e.Reject = true })
	refuse := sent(NoContract, segment(me4, stranger4, 4000, 80, syn, 1000, 0))
	for i := range 50 {
		f.step(refuse)
		must.NotEq(t, 2, f.last.verdict, must.Sprint(i))
	}
	var u endpointUsage
	must.NoError(t, f.objects.SifUsage.Lookup(f.me, &u))
	must.Positive(t, u.NextRefusal)
	u.NextRefusal += uint64(time.Minute) // as if it had been told of many more
	must.NoError(t, f.objects.SifUsage.Put(f.me, u))
	f.step(refuse)
	must.Eq(t, 2, f.last.verdict)
	counters, err := f.Counters()
	must.NoError(t, err)
	must.Eq(t, Refusals{Resets: 50, Limited: 1}, counters.Refusals)
	// Another endpoint is told all the same.
	e := endpoint(f.neighbour, idNeighbour, neighbour4, "")
	e.Reject = true
	must.NoError(t, f.PutEndpoint(e))
	other := sent(NoContract, segment(neighbour4, stranger4, 4000, 80, syn, 1000, 0))
	other.at = func(f *fixture) uint32 { return f.neighbour }
	f.step(other)
	must.Eq(t, int32(7), f.last.verdict)
	// Packets that pass although they would be dropped are not answered.
	must.NoError(t, f.SetPassAll(true))
	f.step(other)
	must.Eq(t, int32(-1), f.last.verdict)
}
