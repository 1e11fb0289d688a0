// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package wire opens packet sockets that receive only what a filter accepts, and computes the
// Internet checksum. It knows neither guests nor probes.
package wire

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Open opens a packet socket (packet(7)) on an interface of the network namespace of the calling
// thread, and returns it with the interface's index. Kind is SOCK_RAW, with Ethernet headers, or
// SOCK_DGRAM. The socket receives what filter accepts, once set has set its options. what names in
// errors of the socket what it receives.
func Open(ifName, what string, kind int, filter []bpf.Instruction, set func(fd int) error) (*os.File, int, error) {
	device, err := net.InterfaceByName(ifName)
	if err != nil {
		return nil, 0, fmt.Errorf("find interface %s: %w", ifName, err)
	}
	// With protocol 0 the socket receives nothing until it is bound.
	fd, err := unix.Socket(unix.AF_PACKET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("open a packet socket: %w", err)
	}
	if err := prepare(fd, device.Index, filter, set); err != nil {
		unix.Close(fd)
		return nil, 0, err
	}
	return os.NewFile(uintptr(fd), what+" on "+ifName), device.Index, nil
}

func prepare(fd, index int, filter []bpf.Instruction, set func(fd int) error) error {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return fmt.Errorf("assemble the socket filter: %w", err)
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	program := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		return fmt.Errorf("attach the socket filter: %w", err)
	}
	if err := set(fd); err != nil {
		return err
	}
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network byte order
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all & 0xffff, Ifindex: index}); err != nil {
		return fmt.Errorf("bind the packet socket: %w", err)
	}
	return nil
}

// Sum adds data to a ones' complement sum (RFC 1071), whose complement is the Internet checksum.
func Sum(sum uint32, data []byte) uint32 {
	for len(data) > 1 {
		sum += uint32(binary.BigEndian.Uint16(data))
		data = data[2:]
	}
	if len(data) == 1 {
		sum += uint32(data[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return sum
}
