// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"
)

// within calls fn on a thread in the network namespace at path. Sockets that fn opens belong to it.
func within[T any](path string, fn func() (T, error)) (value T, err error) {
	err = ns.WithNetNSPath(path, func(ns.NetNS) (err error) {
		value, err = fn()
		return err
	})
	return value, err
}

// magic is how the payload of each datagram begins. The number of the datagram and the time at
// which it was sent, in nanoseconds, follow.
const magic = "SIFchaos"

const payloadSize = len(magic) + 16

func payload(number uint64, sent time.Time) []byte {
	b := binary.BigEndian.AppendUint64([]byte(magic), number)
	return binary.BigEndian.AppendUint64(b, uint64(sent.UnixNano()))
}

// parsePayload reverses payload. It returns false for anything else.
func parsePayload(b []byte) (number uint64, sent time.Time, ok bool) {
	if len(b) < payloadSize || string(b[:len(magic)]) != magic {
		return 0, time.Time{}, false
	}
	b = b[len(magic):]
	return binary.BigEndian.Uint64(b), time.Unix(0, int64(binary.BigEndian.Uint64(b[8:]))), true
}

// arrival is a packet that reached an endpoint.
type arrival struct {
	at       time.Time // by the kernel's clock
	to       *endpoint
	from     netip.Addr
	protocol uint8
	src, dst uint16
	sent     time.Time // of datagrams; zero: not known
}

// Numbers of protocols.
const (
	protocolTCP = 6
	protocolUDP = 17
)

func protocolName(p uint8) string {
	return map[uint8]string{protocolTCP: "tcp", protocolUDP: "udp"}[p]
}

// capture hands every TCP segment and datagram that arrives at an endpoint to seen, before any
// socket gets it, until ctx ends.
func capture(ctx context.Context, e *endpoint, seen func(arrival)) error {
	fd, err := within(e.netns, func() (int, error) {
		return unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_IP)))
	})
	if err != nil {
		return fmt.Errorf("capture at %s: %w", e, err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}),
	)
	if err != nil {
		return errors.Join(fmt.Errorf("capture at %s: %w", e, err), unix.Close(fd))
	}
	go func() {
		defer unix.Close(fd)
		buf, oob := make([]byte, 2048), make([]byte, 256)
		for ctx.Err() == nil {
			n, oobn, _, from, err := unix.Recvmsg(fd, buf, oob, 0)
			if err != nil {
				continue // nothing came, or the interface is gone
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			if a, ok := parsePacket(buf[:n]); ok && a.from != e.addr {
				a.to, a.at = e, timestamp(oob[:oobn])
				seen(a)
			}
		}
	}()
	return nil
}

// parsePacket reads an IPv4 packet. A segment that resets a connection is none of the other end's:
// the fabric tells workloads so that their flows are refused.
func parsePacket(b []byte) (a arrival, ok bool) {
	const header = 20
	if len(b) < header {
		return a, false
	}
	size := int(b[0]&0xf) * 4
	a.from, a.protocol = netip.AddrFrom4([4]byte(b[12:16])), b[9]
	if size < header || len(b) < size+8 {
		return a, false
	}
	b = b[size:]
	a.src, a.dst = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	switch a.protocol {
	case protocolUDP:
		_, a.sent, _ = parsePayload(b[8:])
		return a, true
	case protocolTCP:
		const flags, reset = 13, 4
		return a, len(b) > flags && b[flags]&reset == 0
	}
	return a, false
}

// timestamp returns when the kernel received a packet.
func timestamp(oob []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err == nil {
		for _, m := range messages {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
				return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
	return time.Now()
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// openUDP opens a socket at a port of an endpoint, or at one that the kernel chooses for 0.
func openUDP(e *endpoint, port uint16) (*net.UDPConn, error) {
	return within(e.netns, func() (*net.UDPConn, error) {
		return net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(e.addr, port)))
	})
}

// listenTCP listens at a port of an endpoint.
func listenTCP(e *endpoint, port uint16) (net.Listener, error) {
	return within(e.netns, func() (net.Listener, error) {
		var c net.ListenConfig
		c.SetMultipathTCP(false)
		return c.Listen(context.Background(), "tcp4", netip.AddrPortFrom(e.addr, port).String())
	})
}

// dialTCP opens a connection from an endpoint, from a port if that is not 0.
func dialTCP(from *endpoint, port uint16, to netip.AddrPort, timeout time.Duration) (net.Conn, error) {
	return within(from.netns, func() (net.Conn, error) {
		d := net.Dialer{Timeout: timeout, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from.addr, port))}
		d.Control = func(_, _ string, raw syscall.RawConn) (err error) {
			if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }); e != nil {
				return e
			}
			return err
		}
		d.SetMultipathTCP(false)
		return d.Dial("tcp4", to.String())
	})
}
