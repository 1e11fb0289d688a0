// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// message is the size of a request and of its answer, in bytes.
const message = 1024

// serve listens in an endpoint until stop is called. One port discards what it receives; the other
// answers each message with a message of the same size.
func serve(e endpoint) (stop func(), err error) {
	var listeners []net.Listener
	stop = func() {
		for _, l := range listeners {
			l.Close()
		}
	}
	for port, handle := range map[int]func(net.Conn){throughputPort: swallow, latencyPort: answer} {
		var l net.Listener
		err := ns.WithNetNSPath(e.netns, func(ns.NetNS) (err error) {
			var plain net.ListenConfig
			plain.SetMultipathTCP(false)
			l, err = plain.Listen(context.Background(), "tcp", netip.AddrPortFrom(e.addr, uint16(port)).String())
			return err
		})
		if err != nil {
			stop()
			return nil, fmt.Errorf("listen on %s: %w", e.addr, err)
		}
		listeners = append(listeners, l)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go handle(conn)
			}
		}()
	}
	return stop, nil
}

func swallow(conn net.Conn) {
	defer conn.Close()
	buf := make([]byte, 256<<10)
	for {
		if _, err := conn.Read(buf); err != nil {
			return
		}
	}
}

// answer uses blocking calls on a thread of its own, so that the time does not include Go's poller.
func answer(conn net.Conn) {
	stay(1)
	fd, done, err := blocking(conn)
	if err != nil {
		return
	}
	defer done()
	buf := make([]byte, message)
	for readFull(fd, buf) == nil && writeFull(fd, buf) == nil {
	}
}

// blocking takes a connection's socket out of Go's poller and closes the connection.
func blocking(conn net.Conn) (fd int, done func(), err error) {
	defer conn.Close()
	file, err := conn.(*net.TCPConn).File()
	if err != nil {
		return 0, nil, fmt.Errorf("duplicate the socket: %w", err)
	}
	fd = int(file.Fd())
	if err := unix.SetNonblock(fd, false); err != nil {
		return 0, nil, fmt.Errorf("make the socket blocking: %w", err)
	}
	return fd, func() { file.Close() }, nil
}

func readFull(fd int, buf []byte) error {
	for len(buf) > 0 {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		default:
			buf = buf[n:]
		}
	}
	return nil
}

func writeFull(fd int, buf []byte) error {
	for len(buf) > 0 {
		n, err := unix.Write(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		default:
			buf = buf[n:]
		}
	}
	return nil
}

func dial(from, to endpoint, port uint16) (conn net.Conn, err error) {
	err = ns.WithNetNSPath(from.netns, func(ns.NetNS) (err error) {
		// For a single literal address, the dialer opens its socket on the calling goroutine.
		conn, err = net.DialTimeout("tcp", netip.AddrPortFrom(to.addr, port).String(), 3*time.Second)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect %s to %s: %w", from.addr, to.addr, err)
	}
	return conn, nil
}

// throughput sends on one TCP connection for a while and returns the rate of received data, in
// Mb/s. The first part, in which the TCP window grows, does not count.
func throughput(from, to endpoint, during time.Duration) (float64, error) {
	conn, err := dial(from, to, throughputPort)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	buf := make([]byte, 256<<10)
	warm := time.Now().Add(during / 4)
	end := warm.Add(during)
	if err := conn.SetDeadline(end.Add(5 * time.Second)); err != nil {
		return 0, err
	}
	var sent int
	var began time.Time
	for now := time.Now(); now.Before(end); now = time.Now() {
		n, err := conn.Write(buf)
		if err != nil {
			return 0, fmt.Errorf("send from %s to %s: %w", from.addr, to.addr, err)
		}
		switch {
		case !began.IsZero():
			sent += n
		case time.Now().After(warm):
			began = time.Now()
		}
	}
	return float64(sent) * 8 / 1e6 / time.Since(began).Seconds(), nil
}

// together sends on several TCP connections at once and returns the sum of their rates, in Mb/s.
func together(from, to endpoint, during time.Duration, streams int) (float64, error) {
	var group errgroup.Group
	rates := make([]float64, streams)
	for i := range rates {
		group.Go(func() (err error) {
			rates[i], err = throughput(from, to, during)
			return err
		})
	}
	err := group.Wait()
	sum := 0.0
	for _, r := range rates {
		sum += r
	}
	return sum, err
}

// latency returns the durations of count requests on one connection.
func latency(from, to endpoint, count int) (list []time.Duration, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		stay(0)
		list, err = ask(from, to, count)
	}()
	<-done
	return list, err
}

// stay locks the goroutine to a thread of its own, which ends with it, and to one core. Whether the
// two ends of a connection share a core matters more than what is measured.
func stay(core int) {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(core % runtime.NumCPU())
	_ = unix.SchedSetaffinity(0, &set) // if this is not permitted, the measurement is only less exact
}

func ask(from, to endpoint, count int) ([]time.Duration, error) {
	conn, err := dial(from, to, latencyPort)
	if err != nil {
		return nil, err
	}
	fd, done, err := blocking(conn)
	if err != nil {
		return nil, err
	}
	defer done()
	limit := unix.NsecToTimeval(int64(5 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return nil, err
	}
	const warm = 100
	list := make([]time.Duration, 0, count)
	buf := make([]byte, message)
	for i := range count + warm {
		began := time.Now()
		if err := writeFull(fd, buf); err != nil {
			return nil, fmt.Errorf("send a request to %s: %w", to.addr, err)
		}
		if err := readFull(fd, buf); err != nil {
			return nil, fmt.Errorf("read the answer of %s: %w", to.addr, err)
		}
		if i >= warm {
			list = append(list, time.Since(began))
		}
	}
	return list, nil
}

// connects returns the durations of count connections, each with its first request.
func connects(from, to endpoint, count int) ([]time.Duration, error) {
	list := make([]time.Duration, 0, count)
	buf := make([]byte, message)
	err := ns.WithNetNSPath(from.netns, func(ns.NetNS) error {
		for range count {
			began := time.Now()
			conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(to.addr, latencyPort).String(), 3*time.Second)
			if err != nil {
				return fmt.Errorf("connect %s to %s: %w", from.addr, to.addr, err)
			}
			if err := conn.SetDeadline(began.Add(5 * time.Second)); err != nil {
				return err
			}
			if _, err = conn.Write(buf); err == nil {
				_, err = io.ReadFull(conn, buf)
			}
			list = append(list, time.Since(began))
			conn.Close()
			if err != nil {
				return fmt.Errorf("first request from %s to %s: %w", from.addr, to.addr, err)
			}
		}
		return nil
	})
	return list, err
}

// awake prevents every core from idling until stop is called: on an idle machine, the time of a
// request is mostly the time that virtual cores need to wake up. The spinning processes have the
// lowest priority, so they do not delay others.
func awake() (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var spinners []*exec.Cmd
	stop = func() {
		for _, c := range spinners {
			_ = c.Process.Kill()
			_ = c.Wait() // it was killed
		}
	}
	for core := range runtime.NumCPU() {
		c := exec.Command(self)
		c.Env = append(os.Environ(), spinVariable+"="+strconv.Itoa(core))
		if err := c.Start(); err != nil {
			stop()
			return nil, fmt.Errorf("keep core %d awake: %w", core, err)
		}
		spinners = append(spinners, c)
	}
	time.Sleep(50 * time.Millisecond)
	return stop, nil
}

// spinVariable makes this program spin on a core.
const spinVariable = "SIF_BENCH_SPIN"

func spin(core string) {
	n, err := strconv.Atoi(core)
	if err != nil {
		os.Exit(2)
	}
	stay(n)
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 19); err != nil {
		os.Exit(1)
	}
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0) // without it, only stop ends the process
	parent := os.Getppid()
	for i := uint(1); ; i++ {
		if i%(1<<28) == 0 && os.Getppid() != parent {
			return
		}
	}
}

// quantile returns the value below which the share q of the list lies.
func quantile(list []time.Duration, q float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(list))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	if len(sorted) == 0 {
		return 0
	}
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}
