// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Command sif-traffic counts packets between workloads of a test: "serve" answers on a TCP and a
// UDP port, "send" sends numbered datagrams and TCP messages to it and prints what was answered. It
// knows sockets only, not the fabric. It is static, so that it runs in any task.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

const usage = `Usage: sif-traffic serve -listen ADDRESS
       sif-traffic send -to ADDRESS [-for DURATION] [-every DURATION]
       sif-traffic bulk -to ADDRESS [-for DURATION]
       sif-traffic connect -to ADDRESS [-within DURATION]

  serve    answers datagrams and TCP messages with themselves, and swallows bulk
           data.
  send     over one UDP flow and one TCP connection, sends a message at each
           interval; prints what was sent and answered in JSON. Ends early on
           SIGINT or SIGTERM.
  bulk     sends as fast as TCP permits, and prints bits per second.
  connect  opens a TCP connection and exits with 0 if a message was answered,
           with 1 if not.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sif-traffic:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		fmt.Print(usage)
		return nil
	}
	flags := flag.NewFlagSet("sif-traffic", flag.ContinueOnError)
	listen := flags.String("listen", ":9000", "")
	to := flags.String("to", "", "")
	duration := flags.Duration("for", 10*time.Second, "")
	every := flags.Duration("every", 50*time.Millisecond, "")
	within := flags.Duration("within", 3*time.Second, "")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	switch args[0] {
	case "serve":
		return serve(ctx, *listen)
	case "send":
		ctx, cancel := context.WithTimeout(ctx, *duration)
		defer cancel()
		r, err := send(ctx, *to, *every)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(r)
	case "bulk":
		return bulk(*to, *duration)
	case "connect":
		return connect(*to, *within)
	}
	return fmt.Errorf("unknown command %q\n%s", args[0], usage)
}

// The first byte of a TCP connection says what it carries.
const (
	carriesMessages = 'm'
	carriesBulk     = 'b'
)

func serve(ctx context.Context, address string) error {
	var c net.ListenConfig
	c.SetMultipathTCP(false) // a contract does not cover subflows
	l, err := c.Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	u, err := c.ListenPacket(ctx, "udp", address)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	context.AfterFunc(ctx, func() { _, _ = l.Close(), u.Close() })
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(b[:n], from) // a lost answer is the sender's to count
		}
	}()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			r := bufio.NewReader(conn)
			kind, err := r.ReadByte()
			if err != nil {
				return
			}
			var out io.Writer = conn
			if kind == carriesBulk {
				out = io.Discard
			}
			_, _ = io.Copy(out, r) // the other end ends it
		}()
	}
}

func dial(to string, within time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: within}
	d.SetMultipathTCP(false)
	return d.Dial("tcp", to)
}

// flow is what happened to one flow.
type flow struct {
	Sent     int
	Answered int
	// Longest is the longest time between two answers, in milliseconds.
	Longest int64

	last time.Time
	mu   sync.Mutex
}

func (f *flow) answer() {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if f.Answered > 0 {
		f.Longest = max(f.Longest, now.Sub(f.last).Milliseconds())
	}
	f.last = now
	f.Answered++
}

// report is what send prints.
type report struct {
	UDP, TCP *flow
	// Broken says why the TCP connection ended early.
	Broken string `json:",omitempty"`
}

func send(ctx context.Context, to string, every time.Duration) (*report, error) {
	t, err := dial(to, 10*time.Second)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	u, err := net.Dial("udp", to)
	if err != nil {
		return nil, err
	}
	defer u.Close()
	if _, err := t.Write([]byte{carriesMessages}); err != nil {
		return nil, err
	}
	r := &report{UDP: &flow{}, TCP: &flow{}}
	var broken sync.Once
	var done sync.WaitGroup
	receive := func(conn net.Conn, f *flow, ended func(error)) {
		defer done.Done()
		b := make([]byte, 8)
		for {
			if _, err := io.ReadFull(conn, b); err != nil {
				if ended != nil {
					ended(err)
				}
				if errors.Is(err, os.ErrDeadlineExceeded) || conn == t {
					return
				}
				time.Sleep(time.Millisecond) // "connection refused" of a datagram
				continue
			}
			f.answer()
		}
	}
	done.Add(2)
	go receive(u, r.UDP, nil)
	go receive(t, r.TCP, func(err error) {
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			broken.Do(func() { r.Broken = err.Error() })
		}
	})
	tick := time.NewTicker(every)
	defer tick.Stop()
	for n := uint64(1); ctx.Err() == nil; n++ {
		message := binary.BigEndian.AppendUint64(nil, n)
		r.UDP.Sent++
		_, _ = u.Write(message) // counted by its answer
		if _, err := t.Write(message); err == nil {
			r.TCP.Sent++
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	// The last answers are on their way.
	end := time.Now().Add(3 * time.Second)
	if err := errors.Join(u.SetReadDeadline(end), t.SetReadDeadline(end)); err != nil {
		return nil, err
	}
	done.Wait()
	return r, nil
}

func bulk(to string, duration time.Duration) error {
	conn, err := dial(to, 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{carriesBulk}); err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(duration)); err != nil {
		return err
	}
	began, sent, block := time.Now(), 0, make([]byte, 128<<10)
	for err == nil {
		var n int
		n, err = conn.Write(block)
		sent += n
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	fmt.Printf("%.0f\n", float64(sent)*8/time.Since(began).Seconds())
	return nil
}

func connect(to string, within time.Duration) error {
	conn, err := dial(to, within)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{carriesMessages, '!'}); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}
