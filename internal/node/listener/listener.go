// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package listener tells which sockets of a node receive what comes from anywhere to a port, and
// which process has them. It asks the kernel (sock_diag) about the network namespace of the calling
// thread. It does not know what the ports are used for.
package listener

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
)

// Socket is a TCP socket that listens, or a UDP socket that is not connected to a peer.
type Socket struct {
	Protocol fabric.Protocol
	// Address is where the socket receives. An unspecified address is every address of its family.
	Address netip.AddrPort
	// BothFamilies says that an unspecified IPv6 address also stands for every IPv4 address.
	BothFamilies bool

	inode uint32
}

// States of sockets in the kernel (include/net/tcp_states.h).
const (
	stateClose  = 7 // a UDP socket without a peer
	stateListen = 10
)

// All returns the sockets of the namespace.
func All() ([]Socket, error) {
	var all []Socket
	for _, kind := range []struct {
		protocol fabric.Protocol
		state    uint32
	}{{fabric.TCP, stateListen}, {fabric.UDP, stateClose}} {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			request := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
			request.AddData(query{family: family, protocol: uint8(kind.protocol), states: 1 << kind.state})
			messages, err := request.Execute(unix.NETLINK_INET_DIAG, 0)
			if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
				return nil, fmt.Errorf("list the sockets of the node: %w", err)
			}
			for _, m := range messages {
				if s, ok := parse(m, kind.protocol); ok {
					all = append(all, s)
				}
			}
		}
	}
	return all, nil
}

// query is an inet_diag_req_v2 without the identity of one socket (include/uapi/linux/inet_diag.h).
type query struct {
	family, protocol uint8
	states           uint32 // bit mask
}

// querySize is the size of the request: 8 bytes, and 48 of a socket's identity.
const querySize = 56

func (query) Len() int { return querySize }

func (q query) Serialize() []byte {
	b := make([]byte, querySize)
	b[0], b[1] = q.family, q.protocol
	binary.NativeEndian.PutUint32(b[4:], q.states)
	return b
}

// messageSize is the size of an inet_diag_msg; attributes follow, among them one that says whether
// an IPv6 socket receives IPv6 only (INET_DIAG_SKV6ONLY).
const (
	messageSize = 72
	onlyIPv6    = 11
)

func parse(m []byte, protocol fabric.Protocol) (Socket, bool) {
	if len(m) < messageSize {
		return Socket{}, false
	}
	s := Socket{Protocol: protocol, inode: binary.NativeEndian.Uint32(m[68:])}
	port := binary.BigEndian.Uint16(m[4:])
	switch m[0] {
	case unix.AF_INET:
		s.Address = netip.AddrPortFrom(netip.AddrFrom4([4]byte(m[8:])), port)
	case unix.AF_INET6:
		addr := netip.AddrFrom16([16]byte(m[8:]))
		s.BothFamilies = addr.IsUnspecified()
		s.Address = netip.AddrPortFrom(addr.Unmap(), port)
	default:
		return Socket{}, false
	}
	attributes, err := nl.ParseRouteAttr(m[messageSize:])
	if err != nil {
		return Socket{}, false
	}
	for _, a := range attributes {
		if a.Attr.Type == onlyIPv6 && len(a.Value) > 0 && a.Value[0] != 0 {
			s.BothFamilies = false
		}
	}
	return s, true
}

// Receives reports whether the socket receives what comes to a port at an address of the node. The
// unspecified addresses ask for any address of their family.
func (s Socket) Receives(protocol fabric.Protocol, at netip.AddrPort) bool {
	if s.Protocol != protocol || s.Address.Port() != at.Port() {
		return false
	}
	addr := s.Address.Addr()
	switch {
	case addr.Is4() == at.Addr().Is4():
		return addr == at.Addr() || addr.IsUnspecified() || at.Addr().IsUnspecified() && !addr.IsLoopback()
	default:
		return s.BothFamilies && at.Addr().Is4()
	}
}

// Process returns the name and ID of a process that has the socket, such as "dnsmasq (process
// 812)". It is empty for a socket of the kernel, and if no process that has it can be seen.
func (s Socket) Process() string {
	pid, name := s.Owner()
	if pid == 0 {
		return ""
	}
	return fmt.Sprintf("%s (process %d)", name, pid)
}

// Owner returns the ID and the name of a process that has the socket; 0 if none can be seen.
func (s Socket) Owner() (pid int, name string) {
	o := Owners([]Socket{s})[s]
	return o.PID, o.Name
}

// String names the socket and, if it can be seen, its process.
func (s Socket) String() string {
	who := s.Process()
	if who == "" {
		who = "a process that cannot be seen, or the kernel,"
	}
	return fmt.Sprintf("%s listens on %s port %s", who, s.Protocol, s.Address)
}
