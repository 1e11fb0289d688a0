// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// Ports of the originator from which it keeps flows open: to the near responder, and to the far one
// fixedStep higher.
const (
	fixedPort = 30000
	fixedStep = 100
)

// probes are packets that the fabric must judge: over flows that exist and new ones, in both
// directions. The observer sees what arrives.
type probes struct {
	// echoed is when the last datagram of an established flow came back, by responder and toggle.
	echoed map[string]*[toggles]atomic.Int64
}

// openProbes starts them. They end with ctx.
func openProbes(ctx context.Context, origin *endpoint, responders ...*endpoint) (*probes, error) {
	p := &probes{echoed: map[string]*[toggles]atomic.Int64{}}
	for i, to := range responders {
		p.echoed[to.service] = &[toggles]atomic.Int64{}
		for bit := range toggles {
			port := uint16(togglePort + bit)
			fixed := uint16(fixedPort + i*fixedStep + bit)
			if err := serve(ctx, to, port, netip.AddrPortFrom(origin.addr, fixed)); err != nil {
				return nil, err
			}
			u, err := openUDP(origin, fixed)
			if err != nil {
				return nil, err
			}
			context.AfterFunc(ctx, func() { u.Close() })
			go sendEvery(ctx, u, netip.AddrPortFrom(to.addr, port), 100*time.Millisecond)
			go note(u, &p.echoed[to.service][bit])
			go connectEvery(ctx, origin, netip.AddrPortFrom(to.addr, port), 700*time.Millisecond)
			go sendAnew(ctx, origin, netip.AddrPortFrom(to.addr, port), 500*time.Millisecond)
		}
		for _, port := range []uint16{steadyPort, guestPort, neverPort} {
			if err := serve(ctx, to, port, netip.AddrPort{}); err != nil {
				return nil, err
			}
		}
		// What no revision allows.
		for _, port := range []uint16{neverPort, guestPort} {
			go sendAnew(ctx, origin, netip.AddrPortFrom(to.addr, port), 300*time.Millisecond)
			go connectEvery(ctx, origin, netip.AddrPortFrom(to.addr, port), time.Second)
		}
		go sendAnew(ctx, to, netip.AddrPortFrom(origin.addr, openedPort), 200*time.Millisecond)
		go connectEvery(ctx, to, netip.AddrPortFrom(origin.addr, openedPort), 700*time.Millisecond)
		for _, other := range responders {
			if other != to {
				go sendAnew(ctx, to, netip.AddrPortFrom(other.addr, steadyPort), 300*time.Millisecond)
			}
		}
	}
	return p, nil
}

// openGuest has a guest send to the responders until ctx ends, also to a port that is not for it.
func openGuest(ctx context.Context, g *endpoint, responders ...*endpoint) error {
	for _, to := range responders {
		u, err := openUDP(g, 0)
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { u.Close() })
		go sendEvery(ctx, u, netip.AddrPortFrom(to.addr, guestPort), 50*time.Millisecond)
		go sendAnew(ctx, g, netip.AddrPortFrom(to.addr, guestPort), 300*time.Millisecond)
		go sendAnew(ctx, g, netip.AddrPortFrom(to.addr, steadyPort), 300*time.Millisecond)
	}
	return nil
}

func sendEvery(ctx context.Context, u *net.UDPConn, to netip.AddrPort, every time.Duration) {
	for n := uint64(0); pause(ctx, every); n++ {
		_, _ = u.WriteToUDPAddrPort(payload(n, time.Now()), to) // what is not sent does not arrive
	}
}

// note keeps when the last datagram came.
func note(u *net.UDPConn, at *atomic.Int64) {
	buf := make([]byte, 2048)
	for {
		n, _, err := u.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if _, _, ok := parsePayload(buf[:n]); ok && err == nil {
			at.Store(time.Now().UnixNano())
		}
	}
}

// sendAnew sends a datagram from another port each time.
func sendAnew(ctx context.Context, from *endpoint, to netip.AddrPort, every time.Duration) {
	for n := uint64(0); pause(ctx, every); n++ {
		u, err := openUDP(from, 0)
		if err != nil {
			continue // the workload has ended
		}
		_, _ = u.WriteToUDPAddrPort(payload(n, time.Now()), to)
		u.Close()
	}
}

// connectEvery tries to connect, and closes the connection.
func connectEvery(ctx context.Context, from *endpoint, to netip.AddrPort, every time.Duration) {
	for pause(ctx, every) {
		if conn, err := dialTCP(from, 0, to, time.Second); err == nil {
			_ = reset(conn)
		}
	}
}

// agree returns an error unless the flows that exist pass as a graph says: a datagram came back
// within the last second, or none did for three.
func (p *probes) agree(c content) error {
	for service, bits := range p.echoed {
		for bit := range bits {
			age := time.Since(time.Unix(0, bits[bit].Load()))
			allowed := c.mask&(1<<bit) != 0
			if allowed && age > time.Second {
				return fmt.Errorf("%s allows port %d of %s, but nothing came back for %s", c, togglePort+bit, service, age.Round(time.Millisecond))
			}
			if !allowed && age < 3*time.Second {
				return fmt.Errorf("%s does not allow port %d of %s, but something came back %s ago", c, togglePort+bit, service, age.Round(time.Millisecond))
			}
		}
	}
	return nil
}
