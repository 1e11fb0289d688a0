// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/testhost"
)

// within calls fn on a thread in the network namespace at path. Sockets that fn opens belong to it.
func within[T any](path string, fn func() (T, error)) (T, error) {
	var value T
	err := ns.WithNetNSPath(path, func(ns.NetNS) (err error) {
		value, err = fn()
		return err
	})
	return value, err
}

// dial opens a plain TCP connection from a namespace.
func dial(path string, to netip.AddrPort, timeout time.Duration) (net.Conn, error) {
	return within(path, func() (net.Conn, error) {
		// For a single literal address, the dialer opens its socket on the calling goroutine.
		d := net.Dialer{Timeout: timeout}
		d.SetMultipathTCP(false)
		return d.Dial("tcp", testhost.Zoned(to.String()))
	})
}

// listen listens for plain TCP in a namespace.
func listen(path string, at netip.AddrPort) (net.Listener, error) {
	return within(path, func() (net.Listener, error) {
		var c net.ListenConfig
		c.SetMultipathTCP(false)
		return c.Listen(context.Background(), "tcp", at.String())
	})
}

// arrives reports whether a TCP connection is accepted. It listens at the port itself if nobody
// does, because a refusal would not tell whether the workload's kernel or the fabric refused.
func arrives(t *testing.T, from, to workload, port uint16, timeout time.Duration) bool {
	t.Helper()
	at := netip.AddrPortFrom(to.v4, port)
	if l, err := listen(to.netns, at); err == nil {
		defer l.Close()
	}
	conn, err := dial(from.netns, at, timeout)
	switch {
	case err == nil:
		conn.Close()
		return true
	case unreached(err):
		return false
	}
	must.NoError(t, err)
	return false
}

// unreached reports whether an error says that no packet came back from the destination: nothing
// came, or the fabric refused.
func unreached(err error) bool {
	return isTimeout(err) || slices.ContainsFunc([]error{
		syscall.ETIMEDOUT, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EACCES,
	}, func(e error) bool { return errors.Is(err, e) })
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// reaches waits until TCP connections pass from one workload to a port of another. If want is
// false, it waits until three attempts in a row did not.
func reaches(t *testing.T, from, to workload, port uint16, want bool, within time.Duration) {
	t.Helper()
	silent := 0
	eventually(t, within, func() error {
		if got := arrives(t, from, to, port, 500*time.Millisecond); got == want {
			if silent++; want || silent == 3 {
				return nil
			}
			return errors.New("not silent for long enough")
		}
		silent = 0
		return fmt.Errorf("from %s to %s port %d: passes is %t, expected %t", from, to, port, !want, want)
	})
}

// stream is an established TCP connection between two workloads. The far end echoes all payload.
type stream struct {
	from, to workload
	conn     net.Conn
	served   atomic.Uint64 // bytes that the far end received
	returned atomic.Uint64 // bytes that came back
	failure  atomic.Pointer[error]
	stop     func()
}

// tick is the interval between two pieces of payload, of pieceSize bytes each unless a test says
// otherwise.
const (
	tick      = 20 * time.Millisecond
	pieceSize = 64
)

// openStream opens a stream and waits until payload comes back.
func openStream(t *testing.T, from, to workload, port uint16, marker string) *stream {
	t.Helper()
	return openPacedStream(t, from, to, port, marker, pieceSize)
}

// openPacedStream is openStream with pieces of a size.
func openPacedStream(t *testing.T, from, to workload, port uint16, marker string, size int) *stream {
	t.Helper()
	at := netip.AddrPortFrom(to.v4, port)
	l, err := listen(to.netns, at)
	must.NoError(t, err)
	s := &stream{from: from, to: to}
	t.Cleanup(func() { l.Close() })
	var running sync.WaitGroup
	// A connection may be accepted of which the dialer knows nothing any more: a segment that was
	// lost at first is repeated just when its time is over. So all of them are served.
	accepted := make(chan []net.Conn, 1)
	running.Go(func() {
		var all []net.Conn
		for {
			far, err := l.Accept()
			if err != nil {
				accepted <- all
				return
			}
			all = append(all, far)
			running.Go(func() {
				_, _ = io.Copy(far, io.TeeReader(far, counter{&s.served})) // ends with the connection
			})
		}
	})
	eventually(t, 10*time.Second, func() error {
		s.conn, err = dial(from.netns, at, time.Second)
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	running.Go(func() {
		_, _ = io.Copy(counter{&s.returned}, s.conn)
	})
	running.Go(func() {
		piece := bytes.Repeat([]byte(marker+" "), size/(len(marker)+1)+1)[:size]
		for {
			if _, err := s.conn.Write(piece); err != nil && ctx.Err() == nil {
				s.failure.Store(&err)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(tick):
			}
		}
	})
	s.stop = sync.OnceFunc(func() {
		cancel()
		l.Close()
		for _, end := range append(<-accepted, s.conn) {
			if c, ok := end.(*net.TCPConn); ok {
				_ = c.SetLinger(0) // a reset leaves no connection state in the kernel
				c.Close()
			}
		}
		running.Wait()
	})
	t.Cleanup(s.stop)
	s.mustFlow(t, 10*time.Second)
	l.Close() // for the next stream to this port
	return s
}

// counter counts the bytes written to it.
type counter struct{ n *atomic.Uint64 }

func (c counter) Write(b []byte) (int, error) {
	c.n.Add(uint64(len(b)))
	return len(b), nil
}

// mustFlow waits until new payload has come back.
func (s *stream) mustFlow(t *testing.T, within time.Duration) {
	t.Helper()
	before := s.returned.Load()
	eventually(t, within, func() error {
		if err := s.failure.Load(); err != nil {
			must.NoError(t, *err)
		}
		if s.returned.Load() < before+5*pieceSize {
			return fmt.Errorf("no payload is echoed from %s to %s", s.to, s.from)
		}
		return nil
	})
}

// mustBeCut waits until no payload has passed in either direction for quiet, while other continues.
func (s *stream) mustBeCut(t *testing.T, other *stream, quiet, within time.Duration) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		served, returned, others := s.served.Load(), s.returned.Load(), other.returned.Load()
		time.Sleep(quiet)
		switch {
		case s.served.Load() == served && s.returned.Load() == returned:
			must.Greater(t, others, other.returned.Load(), must.Sprintf("the other contract's connection from %s to %s stopped too", other.from, other.to))
			return
		case time.Now().After(deadline):
			t.Fatalf("payload still passes from %s to %s after %s: %d and %d bytes within %s", s.from, s.to, within,
				s.served.Load()-served, s.returned.Load()-returned, quiet)
		}
	}
}

// datagrams is a UDP flow that sends a numbered packet at each tick and expects its echo.
type datagrams struct {
	mu   sync.Mutex
	open map[uint64]time.Time // sent without an echo yet
	sent int
	stop func()
}

// openDatagrams starts a UDP flow.
func openDatagrams(t *testing.T, from, to workload, port uint16) *datagrams {
	t.Helper()
	at := netip.AddrPortFrom(to.v4, port)
	echo(t, to, at)
	conn, err := within(from.netns, func() (net.Conn, error) { return net.Dial("udp", at.String()) })
	must.NoError(t, err)
	d := &datagrams{open: map[uint64]time.Time{}}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, 64)
		for {
			n, err := conn.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && n == 8 {
				d.mu.Lock()
				delete(d.open, binary.BigEndian.Uint64(buf))
				d.mu.Unlock()
			}
		}
	})
	running.Go(func() {
		for i := uint64(0); ; i++ {
			d.mu.Lock()
			d.open[i] = time.Now()
			d.sent++
			d.mu.Unlock()
			_, _ = conn.Write(binary.BigEndian.AppendUint64(nil, i)) // a packet that could not be sent has no echo
			select {
			case <-ctx.Done():
				return
			case <-time.After(tick):
			}
		}
	})
	d.stop = sync.OnceFunc(func() {
		cancel()
		conn.Close()
		running.Wait()
	})
	t.Cleanup(d.stop)
	eventually(t, 5*time.Second, func() error {
		sent, lost := d.count(time.Second)
		if sent-lost < 10 {
			return fmt.Errorf("of %d packets from %s to %s, only %d were echoed", sent, from, to, sent-lost)
		}
		return nil
	})
	return d
}

// count returns how many packets were sent, and for how many of them the echo has been missing for
// longer than after.
func (d *datagrams) count(after time.Duration) (sent, lost int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, at := range d.open {
		if time.Since(at) > after {
			lost++
		}
	}
	return d.sent, lost
}

// gap returns when the first and the last of the packets were sent whose echo has been missing for
// longer than after.
func (d *datagrams) gap(after time.Duration) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var first, last time.Time
	for _, at := range d.open {
		if time.Since(at) < after {
			continue
		}
		if first.IsZero() || at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
	}
	return first.Format(time.StampMilli) + " to " + last.Format(time.StampMilli)
}

// echo echoes UDP packets in a workload's namespace until the test ends.
func echo(t *testing.T, w workload, at netip.AddrPort) {
	t.Helper()
	socket, err := within(w.netns, func() (net.PacketConn, error) { return net.ListenPacket("udp", at.String()) })
	must.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := socket.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = socket.WriteTo(buf[:n], from)
			}
		}
	}()
	t.Cleanup(func() {
		socket.Close()
		<-done
	})
}
