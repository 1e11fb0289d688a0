// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package health

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/wellknown"
)

// identity tells network namespaces apart that had the same path one after the other.
type identity struct{ device, inode uint64 }

// identify returns the identity of a namespace, which is zero for the process's own.
func identify(space string) (identity, error) {
	if space == "" {
		return identity{}, nil
	}
	info, err := os.Stat(space)
	if err != nil {
		return identity{}, fmt.Errorf("find the namespace of a link: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}, fmt.Errorf("find the namespace of a link: %s is no file", space)
	}
	return identity{uint64(stat.Dev), stat.Ino}, nil
}

// listen opens a socket at a health address in a namespace. Its packets are never fragmented, and
// the kernel lets even those go out that are larger than it believes the path to carry.
func listen(space string, addr netip.Addr) (conn *net.UDPConn, err error) {
	open := func() error {
		config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
			var option error
			err := raw.Control(func(fd uintptr) { option = setOptions(int(fd), addr.Is6()) })
			return errors.Join(err, option)
		}}
		c, err := config.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(addr, wellknown.ProbePort).String())
		if err == nil {
			conn = c.(*net.UDPConn)
		}
		return err
	}
	if space == "" {
		err = open()
	} else {
		err = ns.WithNetNSPath(space, func(ns.NetNS) error { return open() })
	}
	if err != nil {
		return nil, fmt.Errorf("listen for probes: %w", err)
	}
	return conn, nil
}

func setOptions(fd int, six bool) error {
	if six {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1),
		)
	}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1), // the address may come later
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1),
	)
}

// send sends a message with a mark; 0: none.
func (s *socket) send(m message, to netip.AddrPort, mark uint32) error {
	var control []byte
	if mark != 0 {
		control = make([]byte, unix.CmsgSpace(4))
		head := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
		head.Level, head.Type = unix.SOL_SOCKET, unix.SO_MARK
		head.SetLen(unix.CmsgLen(4))
		binary.NativeEndian.PutUint32(control[unix.CmsgLen(0):], mark)
	}
	_, _, err := s.WriteMsgUDPAddrPort(encode(m), control, to)
	return err
}

// device returns the name of the interface by which a packet came, from its control messages, or
// an empty name.
func (s *socket) device(control []byte) string {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return ""
	}
	for _, m := range messages {
		index := uint32(0)
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			index = binary.NativeEndian.Uint32(m.Data) // ipi_ifindex
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			index = binary.NativeEndian.Uint32(m.Data[16:]) // ipi6_ifindex, after the address
		default:
			continue
		}
		return s.nameOf(index)
	}
	return ""
}

// nameOf asks for the name of an interface in the socket's namespace. It does not wait for the lock
// that netlink takes.
func (s *socket) nameOf(index uint32) (name string) {
	raw, err := s.SyscallConn()
	if err != nil {
		return ""
	}
	_ = raw.Control(func(fd uintptr) {
		request, err := unix.NewIfreq("")
		if err != nil {
			return
		}
		request.SetUint32(index)
		if unix.IoctlIfreq(int(fd), unix.SIOCGIFNAME, request) == nil {
			name = request.Name()
		}
	}) // an error leaves the name empty
	return name
}
