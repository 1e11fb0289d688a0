// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

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
		)
	}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1), // the address may come later
	)
}
