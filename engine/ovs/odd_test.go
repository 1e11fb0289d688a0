// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/ovs/ovstest"
)

// wire sends and receives whole packets of a host's interface.
type wire struct {
	t     testing.TB
	fd    int
	frame []byte // the Ethernet header of what it sends, without the type
}

func newWire(f *fixture, ns string, port ovs.Port) *wire {
	w := &wire{t: f.t, frame: append(slices.Clone(port.MAC[:]), port.Peer[:]...)}
	ovstest.In(f.t, ns, func() {
		var err error
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0x0300) // ETH_P_ALL
		must.NoError(f.t, err)
		i, err := net.InterfaceByName("eth0")
		must.NoError(f.t, err)
		must.NoError(f.t, unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: i.Index}))
	})
	f.t.Cleanup(func() { _ = unix.Close(w.fd) })
	return w
}

func (w *wire) send(packet []byte) {
	w.t.Helper()
	kind := []byte{0x08, 0x00}
	if packet[0]>>4 == 6 {
		kind = []byte{0x86, 0xdd}
	}
	_, err := unix.Write(w.fd, slices.Concat(w.frame, kind, packet))
	must.NoError(w.t, err)
}

// got reports whether a packet arrives.
func (w *wire) got(packet []byte, wait time.Duration) bool {
	w.t.Helper()
	for deadline := time.Now().Add(wait); ; {
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil || n == 0 {
			continue
		}
		b := make([]byte, 1<<16)
		n, from, err := unix.Recvfrom(w.fd, b, 0)
		must.NoError(w.t, err)
		outgoing := from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING
		if !outgoing && n >= 14+len(packet) && bytes.Equal(b[14:14+len(packet)], packet) {
			return true
		}
	}
}

var (
	odd4 = [2]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}
	odd6 = [2]netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")}
)

// fragmentOf is a part of a datagram: bytes from offset on, with more to come or not.
type fragmentOf struct {
	offset int
	more   bool
	id     uint16
}

// packet4 makes an IPv4 packet.
func packet4(src, dst netip.Addr, protocol byte, options, payload []byte, fragment fragmentOf) []byte {
	h := make([]byte, 20, 60)
	h = append(h, options...)
	h[0], h[8], h[9] = 0x40|byte(len(h)/4), 64, protocol
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(payload)))
	binary.BigEndian.PutUint16(h[4:], fragment.id)
	place := uint16(fragment.offset / 8)
	if fragment.more {
		place |= 0x2000
	}
	binary.BigEndian.PutUint16(h[6:], place)
	copy(h[12:], src.AsSlice())
	copy(h[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, payload...)
}

// packet6 makes an IPv6 packet. next is the type of the payload's first header.
func packet6(src, dst netip.Addr, next byte, payload []byte) []byte {
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, next, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	return append(h, payload...)
}

// sealed sets the checksum of a transport header, which is at an offset.
func sealed(src, dst netip.Addr, protocol byte, segment []byte, at int) []byte {
	pseudo := slices.Concat(src.AsSlice(), dst.AsSlice(), []byte{0, 0, byte(len(segment) >> 8), byte(len(segment)), 0, 0, 0, protocol})
	if protocol == 1 {
		pseudo = nil
	}
	segment[at], segment[at+1] = 0, 0
	sum := checksum(slices.Concat(pseudo, segment))
	binary.BigEndian.PutUint16(segment[at:], sum)
	return segment
}

func udpOf(src, dst netip.Addr, from, to uint16, payload int) []byte {
	u := make([]byte, 8+payload)
	binary.BigEndian.PutUint16(u, from)
	binary.BigEndian.PutUint16(u[2:], to)
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	for i := range payload {
		u[8+i] = byte(i)
	}
	return sealed(src, dst, 17, u, 6)
}

const fin, syn, rst, psh, ack = 1, 2, 4, 8, 16

func tcpOf(src, dst netip.Addr, from, to uint16, flags byte, seq, acked uint32, payload int) []byte {
	s := make([]byte, 20+payload)
	binary.BigEndian.PutUint16(s, from)
	binary.BigEndian.PutUint16(s[2:], to)
	binary.BigEndian.PutUint32(s[4:], seq)
	binary.BigEndian.PutUint32(s[8:], acked)
	s[12], s[13] = 5<<4, flags
	binary.BigEndian.PutUint16(s[14:], 60000)
	return sealed(src, dst, 6, s, 16)
}

func icmpOf(src, dst netip.Addr, protocol, kind, code byte, rest uint32, payload []byte) []byte {
	m := append(binary.BigEndian.AppendUint32([]byte{kind, code, 0, 0}, rest), payload...)
	return sealed(src, dst, protocol, m, 2)
}

// TestOddPackets sends packets by hand, in both directions, and sees which ones arrive.
func TestOddPackets(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	_, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	f.setEntries(
		ovs.Entry{ID: 1, Src: classA, Dst: classB, Protocol: 6, Ports: []ovs.PortRange{{First: 80, Last: 80}}},
		ovs.Entry{ID: 2, Src: classA, Dst: classB, Protocol: 17, Ports: []ovs.PortRange{{First: 53, Last: 53}}})
	for _, ns := range []string{f.a, f.b} { // their kernels take no part
		ovstest.Run(t, "ip", "-n", ns, "addr", "flush", "dev", "eth0")
	}
	ends := [2]*wire{newWire(f, f.a, f.state.Ports[0]), newWire(f, f.b, f.state.Ports[1])}
	const a, b = 0, 1
	type step struct {
		what   string
		from   int
		packet []byte
		passes bool
	}
	run := func(t *testing.T, steps ...step) {
		t.Helper()
		for _, s := range steps {
			ends[s.from].send(s.packet)
			wait := 5 * time.Second
			if !s.passes {
				wait = 300 * time.Millisecond
			}
			must.Eq(t, s.passes, ends[1-s.from].got(s.packet, wait), must.Sprint(s.what))
		}
	}
	whole := fragmentOf{}
	tcp := func(from int, port uint16, flags byte, seq, acked uint32, payload int) []byte {
		src, dst, sport, dport := odd4[a], odd4[b], port, uint16(80)
		if from == b {
			src, dst, sport, dport = odd4[b], odd4[a], 80, port
		}
		return packet4(src, dst, 6, nil, tcpOf(src, dst, sport, dport, flags, seq, acked, payload), whole)
	}
	udp := func(from int, port, service uint16, payload int) []byte {
		src, dst, sport, dport := odd4[a], odd4[b], port, service
		if from == b {
			src, dst, sport, dport = odd4[b], odd4[a], service, port
		}
		return packet4(src, dst, 17, nil, udpOf(src, dst, sport, dport, payload), whole)
	}
	open := func(port uint16) []step {
		return []step{
			{"SYN", a, tcp(a, port, syn, 100, 0, 0), true},
			{"SYN, ACK", b, tcp(b, port, syn|ack, 900, 101, 0), true},
			{"ACK", a, tcp(a, port, ack, 101, 901, 0), true},
		}
	}

	t.Run("simultaneous open", func(t *testing.T) {
		run(t, step{"a's SYN", a, tcp(a, 4000, syn, 100, 0, 0), true})
		if f.instance.Config.Datapath == "netdev" {
			// Open vSwitch in user space takes b's SYN for that of another connection, which no
			// contract allows, and refuses what b says afterwards.
			run(t, step{"b's SYN", b, tcp(b, 4000, syn, 900, 0, 0), false})
			return
		}
		run(t, step{"b's SYN", b, tcp(b, 4000, syn, 900, 0, 0), true},
			step{"a's SYN, ACK", a, tcp(a, 4000, syn|ack, 100, 901, 0), true},
			step{"b's SYN, ACK", b, tcp(b, 4000, syn|ack, 900, 101, 0), true},
			step{"data", a, tcp(a, 4000, ack|psh, 101, 901, 10), true})
	})
	t.Run("half-closed", func(t *testing.T) {
		run(t, append(open(4001),
			step{"a closes", a, tcp(a, 4001, fin|ack, 101, 901, 0), true},
			step{"ACK", b, tcp(b, 4001, ack, 901, 102, 0), true},
			step{"b goes on", b, tcp(b, 4001, ack|psh, 901, 102, 10), true},
			step{"ACK", a, tcp(a, 4001, ack, 102, 911, 0), true},
			step{"b closes", b, tcp(b, 4001, fin|ack, 911, 102, 0), true},
			step{"ACK", a, tcp(a, 4001, ack, 102, 912, 0), true})...)
	})
	t.Run("ports are used again", func(t *testing.T) {
		run(t, append(open(4002),
			step{"a closes", a, tcp(a, 4002, fin|ack, 101, 901, 0), true},
			step{"b closes", b, tcp(b, 4002, fin|ack, 901, 102, 0), true},
			step{"ACK", a, tcp(a, 4002, ack, 102, 902, 0), true},
			step{"another SYN", a, tcp(a, 4002, syn, 5000, 0, 0), true},
			step{"its answer", b, tcp(b, 4002, syn|ack, 7000, 5001, 0), true})...)
		run(t, append(open(4003),
			step{"a resets", a, tcp(a, 4003, rst|ack, 101, 901, 0), true},
			step{"another SYN", a, tcp(a, 4003, syn, 5000, 0, 0), true},
			step{"its answer", b, tcp(b, 4003, syn|ack, 7000, 5001, 0), true})...)
	})
	t.Run("a responder opens nothing", func(t *testing.T) {
		run(t, step{"SYN from the port", b, tcp(b, 4100, syn, 1, 0, 0), false},
			step{"SYN, ACK from nowhere", b, tcp(b, 4100, syn|ack, 1, 1, 0), false},
			step{"a datagram from the port", b, udp(b, 4100, 53, 10), false})
	})
	t.Run("datagrams", func(t *testing.T) {
		run(t, step{"one way", a, udp(a, 4200, 53, 10), true}, step{"again", a, udp(a, 4200, 53, 11), true},
			step{"a late answer", b, udp(b, 4200, 53, 12), true}, step{"without payload", a, udp(a, 4201, 53, 0), true},
			step{"another port", a, udp(a, 4200, 54, 10), false})
	})

	t.Run("errors about a flow", func(t *testing.T) {
		datagram := udp(a, 4300, 53, 30)
		run(t, step{"the flow", a, datagram, true})
		router := netip.MustParseAddr("192.0.2.7")
		for _, x := range []struct {
			what       string
			src        netip.Addr
			kind, code byte
			passes     bool
		}{
			{"host unreachable, by the end", odd4[b], 3, 1, true}, {"port unreachable", odd4[b], 3, 3, true},
			{"fragmentation needed", odd4[b], 3, 4, true}, {"prohibited", odd4[b], 3, 13, true},
			{"hops used up", odd4[b], 11, 0, true}, {"parameter problem", odd4[b], 12, 0, true},
			{"fragmentation needed, by a router", router, 3, 4, true}, {"hops used up, by a router", router, 11, 0, true},
			{"host unreachable, by a router of the fabric", router, 3, 1, false},
			{"redirect", odd4[b], 5, 1, false}, {"redirect, by a router", router, 5, 1, false},
			{"source quench", odd4[b], 4, 0, false},
		} {
			m := packet4(x.src, odd4[a], 1, nil, icmpOf(x.src, odd4[a], 1, x.kind, x.code, 1300, datagram), whole)
			run(t, step{x.what, b, m, x.passes})
		}
		other := packet4(odd4[b], odd4[a], 1, nil, icmpOf(odd4[b], odd4[a], 1, 3, 3, 0, udp(a, 4301, 53, 30)), whole)
		run(t, step{"about no flow", b, other, false})
	})
	t.Run("errors about a flow of IPv6", func(t *testing.T) {
		datagram := packet6(odd6[a], odd6[b], 17, udpOf(odd6[a], odd6[b], 4300, 53, 30))
		run(t, step{"the flow", a, datagram, true})
		router := netip.MustParseAddr("2001:db8::7")
		for _, x := range []struct {
			what       string
			src        netip.Addr
			kind, code byte
			passes     bool
		}{
			{"no route, by the end", odd6[b], 1, 0, true}, {"port unreachable", odd6[b], 1, 4, true}, {"too big", odd6[b], 2, 0, true},
			{"hops used up", odd6[b], 3, 0, true}, {"too big, by a router", router, 2, 0, true},
			{"hops used up, by a router", router, 3, 0, true}, {"no route, by a router of the fabric", router, 1, 0, false},
			{"redirect", odd6[b], 137, 0, false}, {"router advertisement", odd6[b], 134, 0, false},
		} {
			run(t, step{x.what, b, packet6(x.src, odd6[a], 58, icmpOf(x.src, odd6[a], 58, x.kind, x.code, 1300, datagram)), x.passes})
		}
	})

	t.Run("extension headers", func(t *testing.T) {
		u := udpOf(odd6[a], odd6[b], 4400, 53, 30)
		pad := func(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} } // PadN of four bytes
		run(t, step{"destination options", a, packet6(odd6[a], odd6[b], 60, append(pad(17), u...)), true},
			step{"hop by hop", a, packet6(odd6[a], odd6[b], 0, append(pad(17), u...)), true},
			step{"both", a, packet6(odd6[a], odd6[b], 0, slices.Concat(pad(60), pad(17), u)), true},
			step{"another port behind them", a, packet6(odd6[a], odd6[b], 60, append(pad(17), udpOf(odd6[a], odd6[b], 4400, 54, 30)...)), false},
			step{"no next header", a, packet6(odd6[a], odd6[b], 59, nil), false},
			step{"an unknown protocol", a, packet6(odd6[a], odd6[b], 253, u), false})
	})
	t.Run("fragments", func(t *testing.T) {
		u := udpOf(odd4[a], odd4[b], 4500, 53, 1600)
		part := func(id uint16, from, to int) []byte {
			return packet4(odd4[a], odd4[b], 17, nil, u[from:to], fragmentOf{from, to < len(u), id})
		}
		arrive := func(what string, passes bool, parts ...[]byte) {
			t.Helper()
			for _, p := range parts {
				ends[a].send(p)
			}
			wait := 5 * time.Second
			if !passes {
				wait = 300 * time.Millisecond
			}
			must.Eq(t, passes, ends[b].got(parts[len(parts)-1], wait), must.Sprint(what))
		}
		arrive("in order", true, part(1, 0, 800), part(1, 800, len(u)))
		arrive("out of order", true, part(2, 800, len(u)), part(2, 0, 800))
		arrive("the first one alone", false, part(3, 0, 800))
		arrive("a later one alone", false, part(4, 800, len(u)))
		arrive("overlapping", false, part(5, 0, 800), part(5, 400, len(u)))
		arrive("tiny", false, part(6, 0, 160), part(6, 160, 320), part(6, 320, len(u)))
		wrong := udpOf(odd4[a], odd4[b], 4500, 54, 1600)
		arrive("to another port", false, packet4(odd4[a], odd4[b], 17, nil, wrong[:800], fragmentOf{0, true, 7}),
			packet4(odd4[a], odd4[b], 17, nil, wrong[800:], fragmentOf{800, false, 7}))
	})
	t.Run("to several at once", func(t *testing.T) {
		before, err := f.p.Drops(ctx)
		must.NoError(t, err)
		for _, x := range []string{"224.0.0.251", "255.255.255.255", "10.0.0.255"} {
			dst := netip.MustParseAddr(x)
			run(t, step{x, a, packet4(odd4[a], dst, 17, nil, udpOf(odd4[a], dst, 4600, 53, 10), whole), false})
		}
		dst := netip.MustParseAddr("ff02::fb")
		run(t, step{"ff02::fb", a, packet6(odd6[a], dst, 17, udpOf(odd6[a], dst, 4600, 53, 10)), false})
		f.dropped(ovs.DropUnknownDestination, before[ovs.DropUnknownDestination]+3)
	})
}
