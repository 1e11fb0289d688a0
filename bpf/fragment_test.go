// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// piece is a part of a datagram.
type piece struct {
	id      uint32
	begin   int // in bytes
	more    bool
	payload []byte
}

// fragment returns a part of a datagram as an IP packet.
func fragment(from, to string, protocol byte, p piece) []byte {
	place := uint16(p.begin)
	if addr(from).Is4() {
		packet := ip(from, to, protocol, p.payload)
		place /= 8
		if p.more {
			place |= 0x2000
		}
		binary.BigEndian.PutUint16(packet[4:], uint16(p.id))
		binary.BigEndian.PutUint16(packet[6:], place)
		return packet
	}
	if p.more {
		place |= 1
	}
	header := append([]byte{protocol, 0}, be16(place)...)
	return ip(from, to, 44, slices.Concat(binary.BigEndian.AppendUint32(header, p.id), p.payload))
}

// cut returns the fragments of a datagram with size bytes each, which is a multiple of 8.
func cut(from, to string, protocol byte, id uint32, size int, datagram []byte) (parts [][]byte) {
	for at := 0; at < len(datagram); at += size {
		end := min(at+size, len(datagram))
		parts = append(parts, fragment(from, to, protocol, piece{id, at, end < len(datagram), datagram[at:end]}))
	}
	return parts
}

func long(header []byte, size int) []byte {
	return append(slices.Clone(header), bytes.Repeat([]byte{0x55}, size-len(header))...)
}

func TestFragments(t *testing.T) {
	f := newFixture(t)
	big := long(udp(1, 9000), 64)
	for _, family := range []struct{ me, friend, stranger, neighbour string }{
		{me4, friend4, stranger4, neighbour4}, {me6, friend6, "fd5f:1::3", "fd5f::3"},
	} {
		me, friend := family.me, family.friend
		v6 := addr(me).Is6()
		part := func(id uint32, begin, end int) []byte {
			return fragment(me, friend, 17, piece{id, begin, end < len(big), big[begin:end]})
		}
		raw := func(protocol byte, p piece) []byte { return fragment(me, friend, protocol, p) }
		echo, icmpNumber := byte(8), byte(1)
		if v6 {
			echo, icmpNumber = 128, 58
		}
		in := cut(friend, me, 6, 5, 32, long(tcp(5000, 80, syn), 96))
		answer := cut(friend, me, 17, 6, 32, long(udp(9000, 1), 64))
		denied := cut(me, friend, 17, 7, 32, long(udp(1, 8999), 64))
		ping := cut(me, friend, icmpNumber, 8, 32, long(icmp(echo, 0, 77), 96))
		tests := []struct {
			name  string
			steps []step
		}{
			{"in order", []step{sent(AllowedContract, part(1, 0, 24)), sent(AllowedConnection, part(1, 24, 48)), sent(AllowedConnection, part(1, 48, 64))}},
			{"the last before the middle", []step{sent(AllowedContract, part(1, 0, 24)), sent(AllowedConnection, part(1, 48, 64)), sent(AllowedConnection, part(1, 24, 48))}},
			{"a later one before the first", []step{
				sent(NoFirstFragment, part(1, 24, 48)), sent(AllowedContract, part(1, 0, 24)), sent(AllowedConnection, part(1, 48, 64)), sent(AllowedConnection, part(1, 24, 48))}},
			{"each twice", []step{
				sent(AllowedContract, part(1, 0, 24)), sent(AllowedConnection, part(1, 0, 24)), sent(AllowedConnection, part(1, 24, 64)), sent(AllowedConnection, part(1, 24, 64))}},
			{"of another datagram", []step{sent(AllowedContract, part(1, 0, 24)), sent(NoFirstFragment, part(2, 24, 64))}},
			{"of another protocol", []step{sent(AllowedContract, part(1, 0, 24)), sent(NoFirstFragment, raw(6, piece{1, 24, false, big[24:]}))}},
			{"of another source", []step{sent(AllowedContract, part(1, 0, 24)), sent(NoFirstFragment, fragment(family.neighbour, friend, 17, piece{1, 24, false, big[24:]}))}},
			{"to another destination", []step{sent(AllowedContract, part(1, 0, 24)), sent(NoFirstFragment, fragment(me, family.stranger, 17, piece{1, 24, false, big[24:]}))}},
			{"at another endpoint", []step{sent(AllowedContract, part(1, 0, 24)),
				{want: NoFirstFragment, dir: FromWorkload, packet: part(1, 24, 64), at: func(f *fixture) uint32 { return f.neighbour }}}},
			{"in the other direction", []step{sent(AllowedContract, part(1, 0, 24)), wire(NoFirstFragment, part(1, 24, 64)), wire(NoFirstFragment, fragment(friend, me, 17, piece{1, 24, false, big[24:]}))}},
			{"of a datagram that was denied", []step{sent(NoContract, denied[0]), sent(NoFirstFragment, denied[1])}},
			{"after a change", []step{
				sent(AllowedContract, part(1, 0, 24)), then(raise), sent(StaleFragment, part(1, 24, 64)), sent(AllowedConnection, part(1, 0, 24)), sent(AllowedConnection, part(1, 24, 64))}},
			{"after the contract went", []step{
				sent(AllowedContract, part(1, 0, 24)), then(func(f *fixture) { f.rules(idMe, idFriend) }), sent(StaleFragment, part(1, 24, 64)), sent(StaleConnection, part(1, 0, 24)),
				sent(StaleFragment, part(1, 24, 64)), sent(NoContract, part(1, 0, 24))}},
			{"after 31 s", []step{sent(AllowedContract, part(1, 0, 24)), later(29 * time.Second), sent(AllowedConnection, part(1, 24, 48)), later(2 * time.Second), sent(NoFirstFragment, part(1, 48, 64))}},

			{"in", []step{wire(AllowedContract, in[0]), wire(AllowedConnection, in[1]), wire(AllowedConnection, in[2])}},
			{"in, by another interface", []step{wire(AllowedContract, in[0]), underlay(NoFirstFragment, in[1]), host(NoFirstFragment, in[1]), wire(AllowedConnection, in[1])}},
			{"in, the first by another interface", []step{underlay(WrongInterface, in[0]), wire(NoFirstFragment, in[1])}},
			{"an answer", []step{sent(AllowedContract, part(1, 0, 24)), wire(AllowedConnection, answer[0]), wire(AllowedConnection, answer[1])}},
			{"echo", []step{sent(AllowedContract, ping[0]), sent(AllowedConnection, ping[1]), sent(AllowedConnection, ping[2])}},

			// The attacks of RFC 1858, RFC 3128 and RFC 5722: what was judged is replaced.
			{"8 bytes of TCP", []step{sent(Fragment, raw(6, piece{1, 0, true, tcp(4000, 8080, syn)[:8]})), sent(NoFirstFragment, raw(6, piece{1, 8, false, tcp(4000, 8080, syn)[8:]}))}},
			{"16 bytes of TCP", []step{sent(Fragment, raw(6, piece{1, 0, true, tcp(4000, 8080, syn)[:16]}))}},
			{"16 bytes of TCP, behind them others in the frame", []step{{want: Fragment, dir: FromWorkload,
				frame: append(ethernet(raw(6, piece{1, 0, true, tcp(4000, 8080, ack)[:16]})), tcp(4000, 8080, ack)[16:]...)}}},
			{"options of TCP in the second", []step{sent(Fragment, raw(6, piece{1, 0, true, with(long(tcp(4000, 8080, syn), 24), 12, 0x70)}))}},
			{"SCTP without checksum", []step{sent(Fragment, raw(132, piece{1, 0, true, sctp(4000, 7000)[:8]}))}},
			{"whole header of UDP", []step{sent(AllowedContract, raw(17, piece{1, 0, true, big[:8]})), sent(AllowedConnection, raw(17, piece{1, 8, false, big[8:]}))}},
			{"overlap with the ports", []step{sent(AllowedContract, raw(6, piece{1, 0, true, long(tcp(4000, 8080, syn), 24)})),
				sent(Fragment, raw(6, piece{1, 8, false, tcp(4000, 22, syn)})), sent(Fragment, raw(6, piece{1, 16, false, big}))}},
			{"overlap with the rest of the first", []step{sent(AllowedContract, part(1, 0, 48)), sent(Fragment, part(1, 40, 64)), sent(AllowedConnection, part(1, 48, 64))}},
			{"a second first one with other ports", []step{sent(AllowedContract, part(1, 0, 24)), sent(NoContract, raw(17, piece{1, 0, true, udp(1, 22)[:8]}))}},
			{"empty", []step{sent(Fragment, raw(17, piece{1, 0, true, nil})), sent(AllowedContract, part(1, 0, 24)), sent(Fragment, raw(17, piece{1, 24, false, nil}))}},
			{"not a multiple of 8", []step{sent(Fragment, raw(17, piece{1, 0, true, big[:25]})), sent(AllowedContract, part(1, 0, 24)), sent(Fragment, raw(17, piece{1, 24, true, big[:9]}))}},
			{"longer than a datagram", []step{sent(AllowedContract, part(1, 0, 24)), sent(Fragment, raw(17, piece{1, 65528, false, big[:16]})), sent(Fragment, raw(17, piece{1, 65512, true, big[:24]}))}},
			{"the end of the longest datagram", []step{sent(AllowedContract, part(1, 0, 24)), sent(AllowedConnection, raw(17, piece{1, 65504, false, big[:11]}))}},
			{"an error", []step{sent(AllowedContract, part(1, 0, 24)), wire(Fragment, fragment(friend, me, icmpNumber, piece{1, 0, true, long(icmp(3, 3, 0, ip(me, friend, 17, big)...), 120)}))}},
		}
		if v6 {
			options := func(next byte, rest []byte) []byte { return append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, rest...) }
			tests = append(tests, []struct {
				name  string
				steps []step
			}{
				{"atomic", []step{sent(AllowedContract, raw(17, piece{1, 0, false, big[:63]})), sent(NoFirstFragment, part(1, 24, 64)), sent(NoContract, raw(17, piece{1, 0, false, udp(1, 22)}))}},
				{"atomic, cut short", []step{sent(Malformed, raw(6, piece{1, 0, false, tcp(4000, 8080, syn)[:16]}))}},
				{"behind options", []step{
					sent(AllowedContract, ip(me, friend, 60, options(44, fragment(me, friend, 17, piece{1, 0, true, big[:24]})[40:]))),
					sent(AllowedConnection, ip(me, friend, 60, options(44, fragment(me, friend, 17, piece{1, 24, false, big[24:]})[40:])))}},
				{"before options", []step{
					sent(AllowedContract, raw(60, piece{1, 0, true, options(17, big[:24])})), sent(AllowedConnection, raw(60, piece{1, 32, false, big[24:]})),
					sent(Fragment, raw(60, piece{1, 8, false, udp(1, 22)}))}},
				{"header chain in the second", []step{sent(Fragment, raw(60, piece{1, 0, true, options(17, nil)})), sent(Fragment, raw(60, piece{1, 0, true, options(6, tcp(4000, 8080, syn)[:16])}))}},
				{"chain beyond the first", []step{sent(Malformed, raw(60, piece{1, 0, true, []byte{17, 1, 1, 4, 0, 0, 0, 0}}))}},
				{"two fragment headers", []step{
					sent(ExtensionHeader, raw(44, piece{1, 0, true, append([]byte{17, 0, 0, 0, 0, 0, 0, 2}, big[:24]...)})),
					sent(ExtensionHeader, raw(44, piece{1, 0, false, append([]byte{17, 0, 0, 24, 0, 0, 0, 2}, big[:24]...)}))}},
			}...)
		}
		for _, test := range tests {
			f.expect(test.name+" from "+me, test.steps...)
			f.restore()
		}
	}
}

// All fragments of a datagram leave by the exit of the first one.
func TestFragmentsLeaveByOneExit(t *testing.T) {
	f := newFixture(t)
	must.NoError(t, f.SetExits([]uint32{exitOne, exitTwo}))
	segment := long(tcp(1, 443, syn), 64)
	first, later := fragment(me4, bank4, 6, piece{9, 0, true, segment[:24]}), fragment(me4, bank4, 6, piece{9, 24, false, segment[24:]})
	for _, s := range []step{sent(AllowedContract, first), sent(AllowedConnection, later), sent(AllowedConnection, first), sent(AllowedConnection, later)} {
		f.expect("exit", s)
		must.Eq(t, exitOne, f.last.mark)
	}
	// The connection keeps its exit when the endpoint's is another one.
	f.endpoint(func(e *Endpoint) { e.Exit = exitTwo })
	f.expect("exit", sent(StaleFragment, later), sent(AllowedConnection, first), sent(AllowedConnection, later))
	must.Eq(t, exitOne, f.last.mark)
}

// The table of first fragments has an end: what is pushed out is dropped, nothing else.
func TestFragmentFlood(t *testing.T) {
	f := newFixture(t)
	big := long(udp(1, 9000), 64)
	part := func(id uint32, begin, end int) []byte {
		return fragment(me6, friend6, 17, piece{id, begin, end < len(big), big[begin:end]})
	}
	f.expect("first", sent(AllowedContract, part(1, 0, 24)))
	for id := range uint32(40_000) {
		f.outcome(FromWorkload, f.me, 0, ethernet(part(10+id, 0, 24)))
	}
	f.expect("pushed out", sent(NoFirstFragment, part(1, 24, 64)), sent(AllowedConnection, part(1, 0, 24)), sent(AllowedConnection, part(1, 24, 64)))
	list, err := dump[endpointFragmentKey, endpointFragment](f.objects.SifFragments, "sif_fragments")
	must.NoError(t, err)
	must.LessEq(t, int(f.objects.SifFragments.MaxEntries()), len(list))
	connections, err := f.Connections()
	must.NoError(t, err)
	must.Len(t, 1, connections)
}
