// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/shoenig/test/must"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// opener is what a careful reader makes of a packet that belongs to no connection.
type opener struct {
	from, to   netip.Addr
	protocol   byte
	port       uint16 // destination port or ICMP type
	answers    bool
	first      bool // a first fragment
	toEveryone bool // the frame is
}

var errRefused = errors.New("refused")

// readFrame reads a packet by the RFCs, step by step, and refuses everything that is not plain. It
// shares nothing with the programs.
func readFrame(b []byte) (opener, error) {
	if len(b) < 14 {
		return opener{}, errRefused
	}
	o := opener{toEveryone: b[0]&1 == 1}
	kind, packet := binary.BigEndian.Uint16(b[12:]), b[14:]
	var rest []byte
	var err error
	switch {
	case kind == 0x0800 && len(packet) >= 20 && packet[0] == 0x45:
		rest, err = o.readIPv4(packet)
	case kind == 0x86dd && len(packet) >= 40 && packet[0]>>4 == 6:
		rest, err = o.readIPv6(packet)
	default:
		err = errRefused
	}
	if err != nil {
		return o, err
	}
	return o, o.readTransport(rest)
}

func (o *opener) readIPv4(b []byte) ([]byte, error) {
	length := int(binary.BigEndian.Uint16(b[2:]))
	if length < 20 || length > len(b) {
		return nil, errRefused
	}
	o.from, o.to = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	o.protocol = b[9]
	rest := b[20:length]
	if offset := binary.BigEndian.Uint16(b[6:]); offset&0x1fff != 0 {
		return nil, errRefused
	} else if offset&0x2000 != 0 {
		o.first = true
		if len(rest) == 0 || len(rest)%8 != 0 || len(rest) > 65515 {
			return nil, errRefused
		}
	}
	if o.protocol == 58 {
		return nil, errRefused
	}
	return rest, nil
}

func (o *opener) readIPv6(b []byte) ([]byte, error) {
	length := int(binary.BigEndian.Uint16(b[4:]))
	if 40+length > len(b) {
		return nil, errRefused
	}
	o.from, o.to = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	next, rest := b[6], b[40:40+length]
	skipped := 0
	seen := map[byte]bool{}
	for count := 0; ; count++ {
		switch next {
		case 6, 17, 58, 132:
			o.protocol = next
			return rest, nil
		case 0, 60:
			if next == 0 && count > 0 || len(rest) < 8 {
				return nil, errRefused
			}
			size := 8 + 8*int(rest[1])
			if size > len(rest) || !plainOptions(rest[2:size]) {
				return nil, errRefused
			}
			skipped += size
			next, rest = rest[0], rest[size:]
		case 44:
			if len(rest) < 8 || seen[44] {
				return nil, errRefused
			}
			seen[44] = true
			place := binary.BigEndian.Uint16(rest[2:])
			next, rest = rest[0], rest[8:]
			skipped += 8
			if place>>3 != 0 {
				return nil, errRefused
			}
			if place&1 == 1 {
				o.first = true
				if len(rest) == 0 || len(rest)%8 != 0 {
					return nil, errRefused
				}
			}
		default:
			return nil, errRefused
		}
		if count == 4 || skipped > 256 {
			return nil, errRefused
		}
	}
}

func plainOptions(b []byte) bool {
	for range 16 {
		if len(b) == 0 {
			return true
		}
		if b[0] == 0 {
			b = b[1:]
			continue
		}
		if len(b) < 2 || b[0] == 0xc2 || b[0] == 0xc9 || 2+int(b[1]) > len(b) {
			return false
		}
		b = b[2+b[1]:]
	}
	return len(b) == 0
}

func (o *opener) readTransport(b []byte) error {
	least := map[byte]int{1: 8, 6: 20, 17: 8, 58: 8, 132: 12}[o.protocol]
	if least == 0 || len(b) < least {
		return errRefused
	}
	o.port = binary.BigEndian.Uint16(b[2:])
	switch o.protocol {
	case 6:
		header := int(b[12]>>4) * 4
		fin, syn, rst, ack := b[13]&1 != 0, b[13]&2 != 0, b[13]&4 != 0, b[13]&16 != 0
		kinds := 0
		for _, set := range []bool{fin, syn, rst} {
			if set {
				kinds++
			}
		}
		if header < 20 || header > len(b) || kinds > 1 || kinds == 0 && !ack || fin && !ack {
			return errRefused
		}
		o.answers = syn && ack
	case 1:
		o.port = uint16(b[0])
		o.answers = b[0] == 0
		if slices.Contains([]byte{3, 5, 9, 10, 11, 12}, b[0]) {
			return errRefused
		}
	case 58:
		o.port = uint16(b[0])
		o.answers = b[0] == 129
		if b[0] >= 1 && b[0] <= 4 || b[0] >= 130 && b[0] <= 138 || b[0] >= 141 && b[0] <= 155 {
			return errRefused
		}
	}
	return nil
}

// allowed is the fixture's policy.
func (o opener) allowed(dir Direction) bool {
	me, friend := o.from, o.to
	if dir == ToWorkload {
		me, friend = friend, me
	}
	if me != addr(me4) && me != addr(me6) || o.answers || dir == FromWorkload && o.toEveryone {
		return false
	}
	far, zoned := friend == addr(friend4) || friend == addr(friend6), friend == addr(far4) || friend == addr(far6)
	if dir == ToWorkload {
		return (far || zoned) && o.protocol == 6 && o.port == 80 || far && o.protocol == 58 && o.port == 128
	}
	if zoned {
		return o.protocol == 6 && o.port == 8080 || o.protocol == 17 && o.port >= 9000 && o.port <= 9010 || o.protocol == 1 && o.port == 8 || o.protocol == 58 && o.port == 128
	}
	switch o.protocol {
	case 1:
		return far && o.port == 8
	case 58:
		return far && o.port == 128
	case 132:
		return far && o.port == 7000
	case 17:
		return far && o.port >= 9000 && o.port <= 9010 || o.resolves()
	}
	return far && o.port == 8080 || friend == addr(neighbour4) || netip.MustParsePrefix("198.51.100.0/24").Contains(friend) && o.port == 443 || o.resolves()
}

// mark is that of a packet from the workload that is allowed, by the fixture.
func (o opener) mark() uint32 {
	switch {
	case o.to == addr(far4) || o.to == addr(far6):
		return wayOne
	case netip.MustParsePrefix("198.51.100.0/24").Contains(o.to):
		return exitOne
	}
	return 0
}

func (o opener) resolves() bool {
	return o.port == 53 && (o.to == addr(resolver4) || o.to == addr(resolver6))
}

// A packet that belongs to no connection passes if, and only if, a careful reader finds that it
// opens a flow that the policy allows.
func FuzzPacket(f *testing.F) {
	fixture := newWays(f)
	fixture.links(fixture.wire)
	fixture.endpoint(func(e *Endpoint) { e.Number, e.Exit = meNumber, exitOne })
	out4, out6 := ip(me4, friend4, 6, tcp(4000, 8080, syn)), ip(me6, friend6, 6, tcp(4000, 8080, syn))
	pad := []byte{1, 4, 0, 0, 0, 0}
	for _, packet := range [][]byte{
		out4, out6, out4[:30], with(out4, 0, 0x46), with(out4, 6, 0x20), with(out4, 7, 1), with(out4, 2, 0, 39),
		ip(me4, friend4, 17, udp(1, 9000)), ip(me6, friend6, 17, udp(1, 9011)), ip(me4, friend4, 132, sctp(1, 7000)),
		ip(me4, friend4, 1, icmp(8, 0, 1)), ip(me6, friend6, 58, icmp(128, 0, 1)), ip(me4, friend4, 1, icmp(3, 3, 0, out4...)),
		ip(me6, friend6, 0, slices.Concat(extension(60, 5, 2, 0, 0), extension(6, pad...), tcp(1, 8080, syn))),
		ip(me6, friend6, 60, slices.Concat(extension(44, pad...), fragment(me6, friend6, 17, piece{1, 0, true, long(udp(1, 9000), 24)})[40:])),
		fragment(me6, friend6, 17, piece{1, 0, false, udp(1, 9000)}), fragment(me6, friend6, 17, piece{1, 8, false, udp(1, 9000)}),
		fragment(me4, friend4, 6, piece{1, 0, true, long(tcp(1, 8080, syn), 24)}), fragment(me4, friend4, 6, piece{1, 8, false, tcp(1, 8080, syn)}),
		ip(me4, friend4, 6, with(tcp(4000, 8080, 3), 12, 0x60)), ip(me4, resolver4, 17, udp(1, 53)), ip(me4, "224.0.0.1", 17, udp(1, 9000)),
		ip(me4, far4, 6, tcp(1, 8080, syn)), ip(me6, far6, 17, udp(1, 9000)), ip(me4, bank4, 6, tcp(1, 443, syn)), ip(me4, neighbour4, 6, tcp(1, 1, rst)), v6Mapped(),
	} {
		f.Add(false, ethernet(packet))
	}
	f.Add(true, ethernet(ip(friend4, me4, 6, tcp(1, 80, syn))))
	f.Add(true, ethernet(ip(friend6, me6, 58, icmp(128, 0, 1))))
	f.Add(true, ethernet(ip(far6, me6, 6, tcp(1, 80, syn))))
	f.Fuzz(func(t *testing.T, in bool, frame []byte) {
		runtime.LockOSThread() // without an unlock, so that the thread ends with the goroutine
		must.NoError(t, netns.Set(fixture.namespace))
		fixture.t = t
		dir, ingress := FromWorkload, uint32(0)
		if in {
			dir, ingress = ToWorkload, fixture.wire
		}
		if len(frame) < 14 || len(frame) > 3000 {
			return // the kernel refuses to run a program on it
		}
		fixture.forget()
		o, err := readFrame(frame)
		want := err == nil && o.allowed(dir)
		var after skb
		verdict, err := fixture.program(dir).Run(&ebpf.RunOptions{Data: frame, Context: skb{Ingress: ingress, Ifindex: fixture.me}, ContextOut: &after})
		if errors.Is(err, unix.EINVAL) {
			return
		}
		must.NoError(t, err)
		if got := int32(verdict) == -1; got != want {
			t.Errorf("passes: %t, want %t; read as %+v, frame %x", got, want, o, frame)
		} else if got && !in && after.Mark != o.mark() {
			t.Errorf("mark %#x, want %#x; read as %+v, frame %x", after.Mark, o.mark(), o, frame)
		}
	})
}
