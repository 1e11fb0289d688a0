// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package internet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/sync/errgroup"
)

// HostPort is the port of a host's server. The lab redirects the host's other ports to it.
const HostPort = 9

// Who is the datagram to which a host answers with the address and port that it saw. It echoes all
// other datagrams.
const Who = "who"

// Host is a server that says whom it saw: over TCP with a line for each connection, after which it
// echoes what it receives; over UDP when it is asked.
type Host struct {
	listeners []net.Listener
	sockets   []net.PacketConn
}

// ListenHost opens the sockets of a host. Each address gets sockets of its own, so that answers
// come from the address that was asked.
func ListenHost(at []netip.AddrPort) (*Host, error) {
	h := &Host{}
	var plain net.ListenConfig
	plain.SetMultipathTCP(false)
	for _, a := range at {
		l, err := plain.Listen(context.Background(), "tcp", a.String())
		if err != nil {
			h.close()
			return nil, fmt.Errorf("listen as a host: %w", err)
		}
		h.listeners = append(h.listeners, l)
		s, err := net.ListenPacket("udp", l.Addr().String())
		if err != nil {
			h.close()
			return nil, fmt.Errorf("listen as a host: %w", err)
		}
		h.sockets = append(h.sockets, s)
	}
	return h, nil
}

func (h *Host) close() {
	for _, l := range h.listeners {
		l.Close()
	}
	for _, s := range h.sockets {
		s.Close()
	}
}

// Serve answers until ctx ends.
func (h *Host) Serve(ctx context.Context) error {
	defer context.AfterFunc(ctx, h.close)()
	var g errgroup.Group
	for _, l := range h.listeners {
		g.Go(func() error { return accept(ctx, l) })
	}
	for _, s := range h.sockets {
		g.Go(func() error { return echo(s) })
	}
	err := g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func accept(ctx context.Context, l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			if _, err := fmt.Fprintln(conn, conn.RemoteAddr()); err != nil {
				return
			}
			_, _ = io.Copy(conn, conn) // ends with the connection
		}()
	}
}

func echo(s net.PacketConn) error {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := s.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			continue // an ICMP error about an earlier answer
		}
		answer := buf[:n]
		if strings.TrimSpace(string(answer)) == Who {
			answer = []byte(from.String())
		}
		_, _ = s.WriteTo(answer, from) // the asker may have gone
	}
}
