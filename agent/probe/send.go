// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
)

// Way is how probes leave a namespace. The zero Way is by the namespace's routes.
type Way struct {
	// Interface, if it is not empty, is where frames are put: from Source to Gateway.
	Interface       string
	Source, Gateway net.HardwareAddr
}

// Send sends one packet with the nonce from the namespace: UDP or a TCP SYN. It does not know
// whether the packet arrives. If the source port is zero, it chooses a random ephemeral port, so
// that each probe is a new flow.
//
// It is not an error that a route or a filter of the sender rejects the packet.
func (w Way) Send(namespace ns.NetNS, src, dst netip.AddrPort, protocol fabric.Protocol, nonce uint64) error {
	if src.Port() == 0 {
		src = netip.AddrPortFrom(src.Addr(), uint16(32768+rand.IntN(28000)))
	}
	p := packet{src: src, dst: dst, protocol: protocol, nonce: nonce}
	if err := p.check(); err != nil {
		return err
	}
	err := namespace.Do(func(ns.NetNS) error {
		if w.Interface != "" {
			return w.sendFrame(p)
		}
		return sendRaw(p)
	})
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("send a probe from %s to %s: %w", src, dst, err)
	}
	return nil
}

// sendRaw sends on a socket of IPPROTO_RAW, to which packets are written with their IP header
// (raw(7)).
func sendRaw(p packet) error {
	family, to := unix.AF_INET, unix.Sockaddr(nil)
	if p.dst.Addr().Is6() {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: p.dst.Addr().As16()}
	} else {
		to = &unix.SockaddrInet4{Addr: p.dst.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("open a raw socket: %w", err)
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, p.marshal(), 0, to)
}

// sendFrame sends on a packet socket (packet(7)).
func (w Way) sendFrame(p packet) error {
	device, err := net.InterfaceByName(w.Interface)
	if err != nil {
		return fmt.Errorf("find interface %s of the workload: %w", w.Interface, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	// The kernel waits for all processors when it closes such a socket. Probes are sent in turn.
	defer func() { go unix.Close(fd) }()
	kind := uint16(unix.ETH_P_IP)
	if p.dst.Addr().Is6() {
		kind = unix.ETH_P_IPV6
	}
	frame := slices.Concat(w.Gateway, w.Source, binary.BigEndian.AppendUint16(nil, kind), p.marshal())
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Protocol: kind<<8 | kind>>8, Ifindex: device.Index})
}

// Resolve asks a resolver, from the namespace, for an address of a name, of an IP version. ctx
// limits the time.
func Resolve(ctx context.Context, namespace ns.NetNS, resolver netip.AddrPort, name string, is6 bool) (netip.Addr, error) {
	var conn net.Conn
	err := namespace.Do(func(ns.NetNS) (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "udp", resolver.String())
		return err
	})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("ask for %s: %w", name, err)
	}
	defer conn.Close()
	kind := dns.TypeA
	if is6 {
		kind = dns.TypeAAAA
	}
	question := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	answer, _, err := new(dns.Client).ExchangeWithConnContext(ctx, question, &dns.Conn{Conn: conn})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("ask for %s: %w", name, err)
	}
	for _, rr := range answer.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			if a, ok := netip.AddrFromSlice(rr.A.To4()); ok {
				return a, nil
			}
		case *dns.AAAA:
			if a, ok := netip.AddrFromSlice(rr.AAAA); ok {
				return a, nil
			}
		}
	}
	return netip.Addr{}, fmt.Errorf("ask for %s: %s, without an address", name, dns.RcodeToString[answer.Rcode])
}

// Request opens a flow from the namespace and makes a request. With TCP it connects, sends "GET
// /health" in HTTP/1.0 and waits for the first byte; with UDP it sends a packet and waits for an
// answer. An error means that there was no flow. answered reports whether the responder answered: a
// TCP service that does not speak HTTP may accept the connection and stay silent. ctx limits the
// time.
func Request(ctx context.Context, namespace ns.NetNS, dst netip.AddrPort, protocol fabric.Protocol, nonce uint64) (answered bool, err error) {
	var conn net.Conn
	err = namespace.Do(func(ns.NetNS) error {
		conn, err = new(net.Dialer).DialContext(ctx, protocol.String(), dst.String())
		return err
	})
	if err != nil {
		return false, fmt.Errorf("connect to %s: %w", dst, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	question := []byte("GET /health HTTP/1.0\r\n\r\n")
	if protocol == fabric.UDP {
		question = binary.BigEndian.AppendUint64([]byte(magic), nonce)
	}
	if _, err := conn.Write(question); err != nil {
		return false, fmt.Errorf("send a request to %s: %w", dst, err)
	}
	_, err = conn.Read(make([]byte, 1500))
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return true, nil
	case protocol == fabric.TCP && ctx.Err() != nil:
		return false, nil // connected, but no answer
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return false, fmt.Errorf("wait for the answer of %s: %w", dst, err)
}
