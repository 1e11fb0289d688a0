// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// tick is the interval between two datagrams of a steady flow, and two pieces of a stream.
const tick = 20 * time.Millisecond

// flow is an established flow that is always allowed: numbered datagrams that are echoed, and a TCP
// connection whose payload is echoed.
type flow struct {
	from, to *endpoint

	mu       sync.Mutex
	sent     []pulse
	returned int       // bytes of the connection
	last     time.Time // when they came
	broken   error
	brokenAt time.Time
}

type pulse struct {
	at     time.Time
	echoed bool
}

// serve answers at a port of an endpoint until ctx ends: it echoes datagrams, and what comes by
// connections. If push is set, it also sends datagrams to that address, asked or not.
func serve(ctx context.Context, e *endpoint, port uint16, push netip.AddrPort) error {
	u, err := openUDP(e, port)
	if err != nil {
		return fmt.Errorf("serve at %s: %w", e, err)
	}
	l, err := listenTCP(e, port)
	if err != nil {
		return errors.Join(fmt.Errorf("serve at %s: %w", e, err), u.Close())
	}
	context.AfterFunc(ctx, func() { _, _ = u.Close(), l.Close() })
	go func() {
		buf := make([]byte, 2048)
		for ctx.Err() == nil {
			n, from, err := u.ReadFromUDPAddrPort(buf)
			if err == nil {
				// The echo keeps its number, and says when it was sent itself.
				if number, _, ok := parsePayload(buf[:n]); ok {
					_, _ = u.WriteToUDPAddrPort(payload(number, time.Now()), from) // what is not sent does not arrive
				}
			}
		}
	}()
	if push.IsValid() {
		go func() {
			for pause(ctx, 100*time.Millisecond) {
				_, _ = u.WriteToUDPAddrPort(payload(^uint64(0), time.Now()), push)
			}
		}()
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(ctx, func() { _ = reset(conn) })
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = reset(conn)
			}()
		}
	}()
	return nil
}

// reset closes a connection so that no state of it is left.
func reset(conn net.Conn) error {
	if t, ok := conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	return conn.Close()
}

// pause waits, and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// openFlow starts a flow that goes on until ctx ends.
func openFlow(ctx context.Context, from, to *endpoint) (*flow, error) {
	f := &flow{from: from, to: to}
	at := netip.AddrPortFrom(to.addr, steadyPort)
	u, err := openUDP(from, 0)
	if err != nil {
		return nil, fmt.Errorf("open a flow from %s: %w", from, err)
	}
	context.AfterFunc(ctx, func() { u.Close() })
	var conn net.Conn
	if err := await(ctx, 20*time.Second, func(context.Context) (err error) {
		conn, err = dialTCP(from, 0, at, 2*time.Second)
		return err
	}); err != nil {
		return nil, errors.Join(fmt.Errorf("connect %s with %s: %w", from, to, err), u.Close())
	}
	context.AfterFunc(ctx, func() { _ = reset(conn) })
	go f.pulses(ctx, u, at)
	go f.echoes(u)
	go f.stream(ctx, conn)
	go f.back(ctx, conn)
	return f, nil
}

func (f *flow) pulses(ctx context.Context, u *net.UDPConn, at netip.AddrPort) {
	ticks := time.NewTicker(tick)
	defer ticks.Stop()
	for number := uint64(0); ctx.Err() == nil; number++ {
		now := time.Now()
		f.mu.Lock()
		f.sent = append(f.sent, pulse{at: now})
		f.mu.Unlock()
		_, _ = u.WriteToUDPAddrPort(payload(number, now), at) // what could not be sent has no echo
		<-ticks.C
	}
}

func (f *flow) echoes(u *net.UDPConn) {
	buf := make([]byte, 2048)
	for {
		n, _, err := u.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		number, _, ok := parsePayload(buf[:n])
		f.mu.Lock()
		if err == nil && ok && number < uint64(len(f.sent)) {
			f.sent[number].echoed = true
		}
		f.mu.Unlock()
	}
}

func (f *flow) stream(ctx context.Context, conn net.Conn) {
	for number := uint64(0); pause(ctx, tick); number++ {
		if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, number)); err != nil && ctx.Err() == nil {
			f.breaks(err)
			return
		}
	}
}

func (f *flow) back(ctx context.Context, conn net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		f.mu.Lock()
		f.returned += n
		f.last = time.Now()
		f.mu.Unlock()
		if err != nil {
			if ctx.Err() == nil {
				f.breaks(err)
			}
			return
		}
	}
}

func (f *flow) breaks(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken == nil {
		f.broken, f.brokenAt = err, time.Now()
	}
}

// passes returns an error unless all datagrams of the last second that could be back are, and
// payload came back by the connection.
func (f *flow) passes() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if f.broken != nil {
		return fmt.Errorf("the connection broke: %w", f.broken)
	}
	n, lost := 0, 0
	for i := len(f.sent) - 1; i >= 0 && now.Sub(f.sent[i].at) < 2*time.Second; i-- {
		if now.Sub(f.sent[i].at) < time.Second {
			continue
		}
		if n++; !f.sent[i].echoed {
			lost++
		}
	}
	if n == 0 || lost > 0 {
		return fmt.Errorf("from %s to %s %d of %d datagrams have no echo", f.from, f.to, lost, n)
	}
	if now.Sub(f.last) > time.Second {
		return fmt.Errorf("from %s to %s nothing has come back by the connection since %s", f.from, f.to, f.last.Format(clockFormat))
	}
	return nil
}

// gap is a time for which nothing passed.
type gap struct {
	from, to time.Time // the datagrams that were sent after the first and before the second are lost
	lost     int
}

// gaps returns the times without an echo, of datagrams that were sent long enough ago.
func (f *flow) gaps() (list []gap, sent int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var g gap
	var last time.Time
	for _, p := range f.sent {
		if time.Since(p.at) < time.Second {
			break
		}
		sent++
		if !p.echoed {
			g.lost++
			continue
		}
		if g.lost > 0 {
			g.from, g.to = last, p.at
			list = append(list, g)
			g = gap{}
		}
		last = p.at
	}
	if g.lost > 0 {
		g.from, g.to = last, time.Now()
		list = append(list, g)
	}
	return list, sent
}
