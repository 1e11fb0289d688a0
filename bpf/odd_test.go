// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// extension is an IPv6 extension header of 8 bytes or more, padded with options.
func extension(next byte, options ...byte) []byte {
	h := append([]byte{next, 0}, options...)
	if rest := -len(h) & 7; rest == 1 {
		h = append(h, 0)
	} else if rest > 1 {
		h = append(append(h, 1, byte(rest-2)), make([]byte, rest-2)...)
	}
	h[1] = byte(len(h)/8 - 1)
	return h
}

func TestExtensionHeaders(t *testing.T) {
	f := newFixture(t)
	open := tcp(4000, 8080, syn)
	send := func(want Reason, next byte, parts ...[]byte) step {
		return sent(want, ip(me6, friend6, next, slices.Concat(parts...)))
	}
	pad := []byte{1, 4, 0, 0, 0, 0}
	for name, s := range map[string]step{
		"router alert":                     send(AllowedContract, 0, extension(6, 5, 2, 0, 0), open),
		"tunnel limit":                     send(AllowedContract, 60, extension(6, 4, 1, 4), open),
		"unknown option":                   send(AllowedContract, 60, extension(6, 30, 2, 0, 0), open),
		"padding of single bytes":          send(AllowedContract, 60, extension(6, 0, 0, 0, 0, 0, 0), open),
		"ends in a single byte":            send(AllowedContract, 60, extension(6, 1, 3, 0, 0, 0, 0), open),
		"jumbo":                            send(ExtensionHeader, 0, extension(6, 0xc2, 4, 0, 1, 0, 0), open),
		"jumbo behind padding":             send(ExtensionHeader, 0, extension(6, 1, 2, 0, 0, 0, 0xc2, 4, 0, 1, 0, 0), open),
		"home address":                     send(ExtensionHeader, 60, extension(6, append([]byte{0xc9, 16}, make([]byte, 16)...)...), open),
		"home address in the second":       send(ExtensionHeader, 60, extension(60, pad...), extension(6, append([]byte{0xc9, 16}, make([]byte, 16)...)...), open),
		"four headers":                     send(AllowedContract, 0, extension(60, pad...), extension(60, pad...), extension(60, pad...), extension(6, pad...), open),
		"five headers":                     send(ExtensionHeader, 0, extension(60, pad...), extension(60, pad...), extension(60, pad...), extension(60, pad...), extension(6, pad...), open),
		"hop-by-hop, not first":            send(ExtensionHeader, 60, extension(0, pad...), extension(6, pad...), open),
		"hop-by-hop twice":                 send(ExtensionHeader, 0, extension(0, pad...), extension(6, pad...), open),
		"256 bytes":                        send(AllowedContract, 60, extension(6, append([]byte{30, 252}, make([]byte, 252)...)...), open),
		"264 bytes":                        send(ExtensionHeader, 60, extension(60, append([]byte{30, 252}, make([]byte, 252)...)...), extension(6, pad...), open),
		"16 options":                       send(AllowedContract, 60, extension(6, slices.Repeat([]byte{30, 1, 0}, 15)...), open),
		"17 options":                       send(ExtensionHeader, 60, extension(6, append(make([]byte, 16), 1, 4, 0, 0, 0, 0)...), open),
		"an option longer than its header": send(Malformed, 60, with(extension(6, pad...), 3, 5), open),
		"a header longer than the packet":  send(Malformed, 60, with(extension(6, pad...), 1, 9), open),
		"a header cut short":               send(Malformed, 60, []byte{6, 0, 1}),
		"no transport header":              send(Malformed, 60, extension(6, pad...)),
		"routing":                          send(ExtensionHeader, 43, []byte{6, 0, 0, 0, 0, 0, 0, 0}, open),
		"routing, type 2":                  send(ExtensionHeader, 43, append([]byte{6, 2, 2, 1}, make([]byte, 20)...), open),
		"routing behind options":           send(ExtensionHeader, 60, extension(43, pad...), []byte{6, 0, 0, 0, 0, 0, 0, 0}, open),
		"routing in an atomic fragment":    send(ExtensionHeader, 44, []byte{43, 0, 0, 0, 0, 0, 0, 1}, []byte{6, 0, 0, 0, 0, 0, 0, 0}, open),
		"authentication":                   send(ExtensionHeader, 51, []byte{6, 4}, make([]byte, 22), open),
		"encryption":                       send(ExtensionHeader, 50, make([]byte, 40)),
		"mobility":                         send(ExtensionHeader, 135, []byte{59, 0, 5, 0, 0, 0, 0, 0}),
		"host identity":                    send(ExtensionHeader, 139, make([]byte, 40)),
		"shim6":                            send(ExtensionHeader, 140, make([]byte, 40)),
		"nothing behind options":           send(Protocol, 60, extension(59, pad...)),
		"IPv4 behind options":              send(Protocol, 60, extension(4, pad...), ip(me4, friend4, 6, open)),
		"ICMP for IPv4":                    send(Protocol, 60, extension(1, pad...), icmp(8, 0, 1)),
		"a length beyond the frame":        sent(Malformed, with(ip(me6, friend6, 6, open), 4, 0, 21)),
		"a length within the header":       sent(Malformed, with(ip(me6, friend6, 6, open), 4, 0, 19)),
		"a jumbogram's length":             sent(Malformed, with(ip(me6, friend6, 6, open), 4, 0, 0)),
		"padding behind the packet":        {want: AllowedContract, dir: FromWorkload, frame: append(ethernet(ip(me6, friend6, 6, open)), make([]byte, 18)...)},
		"IPv4: a length beyond the frame":  sent(Malformed, with(ip(me4, friend4, 6, open), 2, 0, 41)),
		"IPv4: a length within the header": sent(Malformed, with(ip(me4, friend4, 6, open), 2, 0, 39)),
		"IPv4: no length":                  sent(Malformed, with(ip(me4, friend4, 6, open), 2, 0, 0)),
		"IPv4: padding behind the packet":  {want: AllowedContract, dir: FromWorkload, frame: append(ethernet(ip(me4, friend4, 6, open)), make([]byte, 6)...)},
		"IPv4: source route":               sent(IPOption, append(with(ip(me4, friend4, 6, open)[:20], 0, 0x47), append([]byte{0x83, 7, 4, 100, 64, 9, 9, 0}, open...)...)),
		"IPv4: router alert":               sent(IPOption, append(with(ip(me4, friend4, 6, open)[:20], 0, 0x46), append([]byte{0x94, 4, 0, 0}, open...)...)),
		"IPv4: authentication":             sent(Protocol, ip(me4, friend4, 51, append(make([]byte, 24), open...))),
	} {
		f.expect(name, s)
		f.forget()
	}
}

// Every kind of ICMP error belongs to a flow if it quotes a packet of it, of any protocol, in
// either direction; every other message does not.
func TestICMPErrors(t *testing.T) {
	f := newFixture(t)
	for _, v := range []struct {
		me, friend, node, far string
		protocol, echo        byte
		errors                [][2]byte
	}{
		{me4, friend4, host4, elsewhere4, 1, 8, [][2]byte{{3, 0}, {3, 1}, {3, 2}, {3, 3}, {3, 5}, {3, 9}, {3, 10}, {3, 13}, {3, 15}, {11, 0}, {11, 1}, {12, 0}, {12, 2}}},
		{me6, friend6, host6, "2001:db8:77::1", 58, 128, [][2]byte{{1, 0}, {1, 1}, {1, 3}, {1, 4}, {1, 6}, {3, 0}, {3, 1}, {4, 0}, {4, 1}, {4, 2}}},
	} {
		tooBig := [2]byte{3, 4}
		if v.protocol == 58 {
			tooBig = [2]byte{2, 0}
		}
		big := long(udp(1, 9000), 64)
		for name, quoted := range map[string][]byte{
			"tcp":            ip(v.me, v.friend, 6, tcp(4000, 8080, syn)),
			"udp":            ip(v.me, v.friend, 17, udp(1, 9000)),
			"sctp":           ip(v.me, v.friend, 132, sctp(4000, 7000)),
			"echo":           ip(v.me, v.friend, v.protocol, icmp(v.echo, 0, 77)),
			"first fragment": fragment(v.me, v.friend, 17, piece{1, 0, true, big[:24]}),
		} {
			for _, kind := range append(v.errors, tooBig) {
				about := func(from string, what []byte) []byte {
					return ip(from, v.me, v.protocol, icmp(kind[0], kind[1], 0, what...))
				}
				name := fmt.Sprint(name, " ", kind, " to ", v.me)
				router := refused(UnknownSource, underlay(0, about(v.far, quoted)))
				if kind == tooBig {
					router.want = AllowedError
				}
				f.expect(name, wire(NoConnection, about(v.friend, quoted)), sent(AllowedContract, quoted),
					wire(AllowedError, about(v.friend, quoted)), host(AllowedError, about(v.node, quoted)), router,
					wire(AllowedError, about(v.friend, cutOff(quoted, 8))), wire(Malformed, about(v.friend, cutOff(quoted, 7))),
					then(raise), wire(AllowedError, about(v.friend, quoted)),
					then(func(f *fixture) { f.rules(idMe, idFriend) }), wire(StaleConnection, about(v.friend, quoted)))
				f.restore()
			}
		}
		for _, kind := range append(v.errors, tooBig) {
			in := ip(v.friend, v.me, 6, tcp(5000, 80, syn))
			mine := func(to string, what []byte) []byte {
				return ip(v.me, to, v.protocol, icmp(kind[0], kind[1], 0, what...))
			}
			about := func(from string, what []byte) []byte {
				return ip(from, v.me, v.protocol, icmp(kind[0], kind[1], 0, what...))
			}
			first := fragment(v.me, v.friend, 17, piece{1, 0, true, big[:24]})
			later := fragment(v.me, v.friend, 17, piece{1, 24, false, big[24:]})
			f.expect(fmt.Sprint(kind, " ", v.me), wire(AllowedContract, in), sent(AllowedError, mine(v.friend, in)), sent(NoConnection, mine(v.far, in)),
				sent(NoConnection, mine(v.friend, ip(v.friend, v.me, 6, tcp(5001, 80, syn)))),
				wire(NoFirstFragment, about(v.friend, later)), sent(AllowedContract, first), sent(AllowedConnection, later), wire(AllowedError, about(v.friend, later)),
				sent(NoFirstFragment, mine(v.friend, fragment(v.friend, v.me, 17, piece{1, 24, false, big[24:]}))))
			f.restore()
		}
	}
	all := []Rule{rule(1, 0, 255, contractEcho), rule(58, 0, 255, contractEcho)}
	f.rules(idMe, idFriend, all...)
	f.rules(idFriend, idMe, all...)
	for kind := range 256 {
		want4, want6 := AllowedContract, AllowedContract
		switch kind {
		case 0:
			want4 = NoConnection
		case 3, 11, 12:
			want4 = Malformed
		case 5, 9, 10:
			want4 = Protocol
		}
		switch {
		case kind >= 1 && kind <= 4:
			want6 = Malformed
		case kind == 129:
			want6 = NoConnection
		case kind >= 130 && kind <= 138, kind >= 141 && kind <= 155:
			want6 = Protocol
		}
		f.expect(fmt.Sprint("type ", kind), sent(want4, ip(me4, friend4, 1, icmp(byte(kind), 0, 1))), wire(want4, ip(friend4, me4, 1, icmp(byte(kind), 0, 2))),
			sent(want6, ip(me6, friend6, 58, icmp(byte(kind), 0, 1))), wire(want6, ip(friend6, me6, 58, icmp(byte(kind), 0, 2))))
	}
}

// cutOff returns the IP header of a packet with n bytes of its transport header, as quoted by
// routers.
func cutOff(packet []byte, n int) []byte {
	header := 20
	if packet[0]>>4 == 6 {
		header = 40
		if packet[6] == 44 {
			header = 48
		}
	}
	return packet[:min(header+n, len(packet))]
}

func TestOddTCP(t *testing.T) {
	f := newFixture(t)
	both := then(func(f *fixture) {
		f.rules(idMe, idFriend, rule(6, 8080, 8080, contractOut))
		f.rules(idFriend, idMe, rule(6, 4000, 4000, contractIn))
	})
	mine := func(want Reason, flags byte) step { return sent(want, ip(me4, friend4, 6, tcp(4000, 8080, flags))) }
	theirs := func(want Reason, flags byte) step { return wire(want, ip(friend4, me4, 6, tcp(8080, 4000, flags))) }
	const psh, urg, ece, cwr = 0x08, 0x20, 0x40, 0x80
	open := []step{mine(AllowedContract, syn), theirs(AllowedConnection, syn|ack), mine(AllowedConnection, ack)}
	after := func(s []step, more ...step) []step { return append(slices.Clone(s), more...) }

	for name, steps := range map[string][]step{
		"both open, both allowed": {both,
			mine(AllowedContract, syn), theirs(AllowedContract, syn), mine(AllowedConnection, syn|ack), theirs(AllowedConnection, syn|ack),
			mine(AllowedConnection, ack), theirs(AllowedConnection, ack), later(time.Hour), mine(AllowedConnection, ack), theirs(AllowedConnection, ack)},
		"both open, both allowed, with repetitions": {both,
			theirs(AllowedContract, syn), mine(AllowedContract, syn), theirs(AllowedContract, syn), theirs(AllowedConnection, syn), mine(AllowedContract, syn),
			theirs(AllowedConnection, syn|ack), mine(AllowedConnection, syn|ack), theirs(AllowedConnection, syn|ack), mine(AllowedConnection, ack)},
		"both open, mine allowed": {mine(AllowedContract, syn), theirs(NoContract, syn), theirs(AllowedConnection, syn|ack), mine(AllowedConnection, ack), theirs(AllowedConnection, ack)},
		"both open, theirs allowed": {
			then(func(f *fixture) { f.rules(idMe, idFriend) }), then(func(f *fixture) { f.rules(idFriend, idMe, rule(6, 4000, 4000, contractIn)) }),
			mine(NoContract, syn), theirs(AllowedContract, syn), mine(AllowedConnection, syn|ack), theirs(AllowedConnection, ack), mine(AllowedConnection, ack), mine(NoContract, syn)},
		"both open, then one direction is not allowed any more": {both,
			mine(AllowedContract, syn), theirs(AllowedContract, syn), mine(AllowedConnection, syn|ack), theirs(AllowedConnection, syn|ack),
			then(func(f *fixture) { f.rules(idFriend, idMe) }), theirs(StaleConnection, ack), theirs(NoContract, syn), mine(AllowedContract, ack)},

		"half-closed by me": after(open, mine(AllowedConnection, fin|ack), theirs(AllowedConnection, ack), later(100*time.Second), theirs(AllowedConnection, ack|psh), mine(AllowedConnection, ack),
			later(100*time.Second), theirs(AllowedConnection, ack|psh)),
		"half-closed by me, a pause too long": after(open, mine(AllowedConnection, fin|ack), theirs(AllowedConnection, ack), later(121*time.Second), theirs(NoContract, ack|psh),
			mine(AllowedContract, ack), theirs(AllowedConnection, ack|psh)),
		"half-closed by them":      after(open, theirs(AllowedConnection, fin|ack), later(119*time.Second), mine(AllowedConnection, ack|psh), later(119*time.Second), theirs(AllowedConnection, ack)),
		"closed by both":           after(open, mine(AllowedConnection, fin|ack), theirs(AllowedConnection, fin|ack), mine(AllowedConnection, ack), theirs(AllowedConnection, fin|ack), later(11*time.Second), theirs(NoContract, fin|ack)),
		"used again in time-wait":  after(open, mine(AllowedConnection, fin|ack), theirs(AllowedConnection, fin|ack), mine(AllowedConnection, syn), theirs(AllowedConnection, syn|ack), later(time.Hour), theirs(AllowedConnection, ack)),
		"used again while closing": after(open, theirs(AllowedConnection, fin|ack), mine(AllowedConnection, syn), theirs(AllowedConnection, ack), later(time.Hour), theirs(AllowedConnection, rst)),
		"used again in time-wait, by the other side": after(open, mine(AllowedConnection, fin|ack), theirs(AllowedConnection, fin|ack), theirs(NoContract, syn), both, theirs(AllowedContract, syn),
			mine(AllowedConnection, syn|ack), theirs(AllowedConnection, ack)),
		"a SYN in the middle":           after(open, mine(AllowedConnection, syn), theirs(AllowedConnection, ack), later(time.Hour), theirs(AllowedConnection, ack)),
		"a reset by me":                 after(open, mine(AllowedConnection, rst), theirs(AllowedConnection, ack), later(11*time.Second), theirs(NoContract, ack), mine(AllowedContract, ack)),
		"a reset that answers the SYN":  {mine(AllowedContract, syn), theirs(AllowedConnection, rst|ack), later(11 * time.Second), theirs(NoContract, rst|ack)},
		"urgent":                        after(open, mine(AllowedConnection, ack|urg), theirs(AllowedConnection, ack|urg|psh)),
		"congestion":                    {mine(AllowedContract, syn|ece|cwr), theirs(AllowedConnection, syn|ack|ece), mine(AllowedConnection, ack|cwr), theirs(AllowedConnection, ack|ece)},
		"flags that no system sends":    after(open, mine(Malformed, 0), mine(Malformed, fin), mine(Malformed, syn|fin), mine(Malformed, syn|rst), mine(Malformed, syn|fin|ack), mine(Malformed, syn|rst|ack), mine(Malformed, rst|fin), mine(Malformed, rst|fin|ack), mine(Malformed, fin|psh|urg), mine(Malformed, 0xff), theirs(Malformed, 0), theirs(Malformed, syn|fin)),
		"a header shorter than TCP's":   {sent(Malformed, ip(me4, friend4, 6, with(tcp(4000, 8080, syn), 12, 0x40)))},
		"a header longer than the rest": {sent(Malformed, ip(me4, friend4, 6, with(tcp(4000, 8080, syn), 12, 0x60)))},
		"with options":                  {sent(AllowedContract, ip(me4, friend4, 6, append(with(tcp(4000, 8080, syn), 12, 0x60), 2, 4, 5, 0xb4)))},
	} {
		f.expect(name, steps...)
		f.restore()
	}

	for range 20 {
		f.expect("repeated to a denied port", sent(NoContract, ip(me4, friend4, 6, tcp(4000, 22, syn))))
	}
	connections, err := f.Connections()
	must.NoError(t, err)
	must.SliceEmpty(t, connections)
}

func TestOddDatagrams(t *testing.T) {
	f := newFixture(t)
	query, reply := ip(me4, friend4, 17, udp(1, 9000)), ip(friend4, me4, 17, udp(9000, 1))
	chunk := func(kind byte) []byte { return append(sctp(4000, 7000)[:12], kind, 0, 0, 4) }
	answer := func(kind byte) []byte { return append(sctp(7000, 4000)[:12], kind, 0, 0, 4) }
	mine := func(want Reason, kind byte) step { return sent(want, ip(me4, friend4, 132, chunk(kind))) }
	theirs := func(want Reason, kind byte) step { return wire(want, ip(friend4, me4, 132, answer(kind))) }
	const data, initiate, initiated, abort, shutdown, cookie, cookied, complete = 0, 1, 2, 6, 7, 10, 11, 14
	var oneWay []step
	for range 5 {
		oneWay = append(oneWay, sent(AllowedConnection, query), later(170*time.Second))
	}
	for name, steps := range map[string][]step{
		"one way":               append([]step{sent(AllowedContract, query), later(170 * time.Second)}, oneWay...),
		"answered late":         {sent(AllowedContract, query), later(179 * time.Second), wire(AllowedConnection, reply)},
		"answered too late":     {sent(AllowedContract, query), later(182 * time.Second), wire(NoContract, reply), sent(AllowedContract, query), wire(AllowedConnection, reply)},
		"empty":                 {sent(AllowedContract, ip(me4, friend4, 17, udp(1, 9000)[:8]))},
		"7 bytes":               {sent(Malformed, ip(me4, friend4, 17, udp(1, 9000)[:7]))},
		"sctp":                  {mine(AllowedContract, initiate), theirs(AllowedConnection, initiated), mine(AllowedConnection, cookie), theirs(AllowedConnection, cookied), mine(AllowedConnection, data), theirs(AllowedConnection, shutdown), mine(AllowedConnection, complete), later(181 * time.Second), theirs(NoContract, data)},
		"sctp, aborted":         {mine(AllowedContract, initiate), theirs(AllowedConnection, abort), mine(AllowedConnection, initiate)},
		"sctp, a responder":     {theirs(NoContract, initiate), theirs(NoContract, initiated), theirs(NoContract, abort)},
		"sctp, 11 bytes":        {sent(Malformed, ip(me4, friend4, 132, chunk(0)[:11]))},
		"sctp, no chunk":        {sent(AllowedContract, ip(me4, friend4, 132, chunk(0)[:12]))},
		"source port 0":         {sent(AllowedContract, ip(me4, friend4, 17, udp(0, 9000))), wire(AllowedConnection, ip(friend4, me4, 17, udp(9000, 0)))},
		"from my address to me": {sent(NoContract, ip(me4, me4, 17, udp(1, 9000))), wire(WrongInterface, ip(me4, me4, 17, udp(1, 9000)))},
	} {
		f.expect(name, steps...)
		f.restore()
	}
}

// What goes to several receivers is counted and not reported: systems send it all the time.
func TestGroups(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := f.Events(ctx)
	must.NoError(t, err)
	frameTo := func(first byte, packet []byte) step {
		return step{want: Multicast, dir: FromWorkload, frame: with(ethernet(packet), 0, first, 0xff, 0xff, 0xff, 0xff, 0xff)}
	}
	out := ip(me4, friend4, 6, tcp(4000, 8080, syn))
	steps := []step{
		sent(Multicast, ip(me4, "224.0.0.22", 2, make([]byte, 16))), sent(Multicast, ip(me4, "239.255.255.250", 17, udp(1900, 1900))),
		sent(Multicast, ip(me4, "255.255.255.255", 17, udp(68, 67))), sent(Multicast, ip("0.0.0.0", "255.255.255.255", 17, udp(68, 67))), sent(Multicast, ip(me4, "240.0.0.1", 17, udp(1, 1))),
		sent(Multicast, ip(me6, "ff02::fb", 17, udp(5353, 5353))), sent(Multicast, ip("fe80::2", "ff02::2", 58, icmp(133, 0, 0))),
		sent(Multicast, ip("::", "ff02::1:ff00:2", 58, icmp(135, 0, 0, make([]byte, 16)...))), sent(Multicast, ip("fe80::2", "ff02::16", 0, slices.Concat(extension(58, 5, 2, 0, 0), icmp(143, 0, 0)))),
		wire(Multicast, ip(friend4, "224.0.0.1", 17, udp(1, 1))), wire(Multicast, ip(friend6, "ff05::1", 17, udp(1, 1))),
		sent(Multicast, fragment(me4, "224.0.0.1", 17, piece{1, 8, false, udp(1, 1)})),
		frameTo(0xff, out), frameTo(0x01, out),
		{want: NotIP, dir: FromWorkload, frame: frame(0x0806, make([]byte, 28))},
		sent(NoFirstFragment, fragment(me4, friend4, 17, piece{1, 8, false, udp(1, 1)})),
	}
	for range 10 {
		f.expect("group", steps...)
	}
	// The broadcast address of a network is no endpoint's.
	f.expect("end", sent(UnknownDestination, ip(me4, "100.64.0.255", 17, udp(1, 1))), wire(UnknownDestination, ip(friend4, "100.64.0.255", 17, udp(1, 1))))
	for range 2 {
		if e := <-events; e.Reason != UnknownDestination {
			t.Errorf("reported: %+v", e)
		}
	}
}
