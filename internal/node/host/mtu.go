// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// What WireGuard adds to a packet inside a link: its header and tag, UDP, and IP.
const (
	wireGuardOverhead4 = 32 + 8 + 20
	wireGuardOverhead6 = 32 + 8 + 40
)

// Needed returns the size, in bytes, of the packets on the underlay towards an address that links
// with an MTU have.
func Needed(linkMTU int, to netip.Addr) int {
	if to.Is4() {
		return linkMTU + wireGuardOverhead4
	}
	return linkMTU + wireGuardOverhead6
}

const (
	echoWait  = 300 * time.Millisecond // for an answer
	echoTries = 2                      // of each size
	smallEcho = 576                    // bytes, which every path carries
	finest    = 8                      // bytes, to which the size is searched
)

// ErrNoEcho says that a host does not answer echo requests, so nothing can be measured.
var ErrNoEcho = errors.New("it does not answer ICMP echo requests")

// PathMTU measures the largest packet, in bytes, up to most, that a host answers and that nobody on
// the way may fragment. Routers that only drop larger packets are found as well.
func PathMTU(ctx context.Context, to netip.Addr, most int) (int, error) {
	e, err := newEcho(to)
	if err != nil {
		return 0, err
	}
	defer unix.Close(e.socket)
	if e.passes(ctx, most) {
		return most, nil
	}
	if !e.passes(ctx, smallEcho) {
		return 0, errors.Join(ErrNoEcho, ctx.Err())
	}
	carried, lost := smallEcho, most
	for lost-carried > finest && ctx.Err() == nil {
		middle := (carried + lost) / 2
		if e.passes(ctx, middle) {
			carried = middle
		} else {
			lost = middle
		}
	}
	return carried, ctx.Err()
}

// echo sends ICMP echo requests that nobody may fragment.
type echo struct {
	to       netip.Addr
	socket   int
	header   int // bytes of IP
	id       uint16
	sequence uint16
}

func newEcho(to netip.Addr) (*echo, error) {
	e := &echo{to: to, id: uint16(rand.Uint32()), header: ipv4.HeaderLen}
	family, protocol, level, option := unix.AF_INET, unix.IPPROTO_ICMP, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	if to.Is6() {
		e.header = ipv6.HeaderLen
		family, protocol, level, option = unix.AF_INET6, unix.IPPROTO_ICMPV6, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	}
	var err error
	if e.socket, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol); err != nil {
		return nil, fmt.Errorf("open a socket for echo requests: %w", err)
	}
	// Probes have DF set, and do not heed what the kernel believes of the path.
	err = errors.Join(unix.SetsockoptInt(e.socket, level, option, unix.IP_PMTUDISC_PROBE), unix.Connect(e.socket, address(to)))
	if err != nil {
		unix.Close(e.socket)
		return nil, fmt.Errorf("reach %s: %w", to, err)
	}
	return e, nil
}

func address(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// passes reports whether a packet of a size comes back.
func (e *echo) passes(ctx context.Context, size int) bool {
	for range echoTries {
		if ctx.Err() != nil {
			return false
		}
		e.sequence++
		if err := e.send(size); errors.Is(err, unix.EMSGSIZE) {
			return false // the node's own interface is smaller
		}
		if e.answered(time.Now().Add(echoWait)) {
			return true
		}
	}
	return false
}

func (e *echo) send(size int) error {
	const icmpHeader = 8
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(e.id), Seq: int(e.sequence), Data: make([]byte, size-e.header-icmpHeader)}}
	if e.to.Is6() {
		m.Type = ipv6.ICMPTypeEchoRequest // the kernel computes its checksum
	}
	packet, err := m.Marshal(nil)
	if err != nil {
		return err
	}
	return unix.Send(e.socket, packet, 0)
}

// answered waits for the answer to the latest request.
func (e *echo) answered(until time.Time) bool {
	buffer := make([]byte, 1<<16)
	for {
		wait := unix.NsecToTimeval(max(time.Until(until), time.Microsecond).Nanoseconds())
		if err := unix.SetsockoptTimeval(e.socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
			return false
		}
		n, err := unix.Read(e.socket, buffer)
		if err == nil && e.isAnswer(buffer[:n]) {
			return true
		}
		// Other errors are told of single packets, such as "too big".
		if errors.Is(err, unix.EAGAIN) || time.Now().After(until) {
			return false
		}
	}
}

func (e *echo) isAnswer(packet []byte) bool {
	kind := byte(ipv6.ICMPTypeEchoReply)
	if e.to.Is4() { // the IP header comes with it
		if len(packet) < ipv4.HeaderLen || len(packet) < int(packet[0]&0xf)*4 {
			return false
		}
		packet, kind = packet[int(packet[0]&0xf)*4:], byte(ipv4.ICMPTypeEchoReply)
	}
	return len(packet) >= 8 && packet[0] == kind && binary.BigEndian.Uint16(packet[4:]) == e.id && binary.BigEndian.Uint16(packet[6:]) == e.sequence
}

// Path measures whether the underlay carries the packets of links with an MTU towards a machine.
// isNode says that a link goes there.
func Path(ctx context.Context, name string, to netip.Addr, linkMTU int, isNode bool) Finding {
	f := Finding{"mtu", fmt.Sprintf("the path to %s (%s)", name, to), Well, "", ""}
	needed := Needed(linkMTU, to)
	carried, err := PathMTU(ctx, to, needed)
	switch {
	case errors.Is(err, ErrNoEcho):
		f.Result, f.Detail = Skipped, "was not measured: "+err.Error()
		if isNode {
			f.Result, f.Remedy = Warning, "permit ICMP echo between the nodes, or look at its address and its firewall"
		}
	case err != nil:
		return failed(f.Check, f.Subject, err)
	case carried >= needed:
		f.Detail = fmt.Sprintf("carries packets of %d bytes", needed)
	default:
		f.Result, f.Detail = Wrong, fmt.Sprintf("carries packets of %d bytes, and links with link.mtu = %d need %d", carried, linkMTU, needed)
		f.Remedy = fmt.Sprintf("raise the MTU of the network, or set link { mtu = %d } on all nodes", linkMTU-(needed-carried))
		if !isNode { // TCP has segments of its own size
			f.Result = Warning
		}
	}
	return f
}
