// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package openflow

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// Conn is a connection to one bridge. Its methods may be called at the same time; the messages of
// two calls do not mix.
//
// After an error other than *Error it is unknown whether the change was made: the caller must read
// the switch back.
type Conn struct {
	nc   net.Conn
	done chan struct{}

	writing sync.Mutex // serialises the messages of exchanges
	w       *bufio.Writer

	mu        sync.Mutex
	xid       uint32
	exchanges []*exchange
	err       error // why the connection ended
}

// exchange is a request of one or more messages that waits for its answers.
type exchange struct {
	first, last uint32 // the transaction IDs of its messages
	// answer is called by the reader for every message with one of these IDs. It returns true for
	// the last one.
	answer func(message) (bool, error)
	err    error
	done   chan struct{}
}

// Dial connects to the bridge's management socket and agrees on the version of the protocol. ctx
// bounds that, not the life of the connection.
func Dial(ctx context.Context, socket string) (*Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("connect to the bridge's management socket: %w", err)
	}
	c := &Conn{nc: nc, w: bufio.NewWriterSize(nc, 256<<10), done: make(chan struct{}), xid: 1}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	r := bufio.NewReaderSize(nc, 256<<10)
	err = c.hello(r)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("begin OpenFlow with the switch at %s: %w", socket, err)
	}
	go c.read(r)
	return c, nil
}

func (c *Conn) hello(r io.Reader) error {
	b := beginMessage(nil, typeHello, 0)
	b = append(b, 0, 1, 0, 8)                                // OFPHET_VERSIONBITMAP
	b = binary.BigEndian.AppendUint32(b, uint32(1)<<version) // only this version
	b, err := endMessage(b, 0)
	if err != nil {
		return err
	}
	if _, err := c.nc.Write(b); err != nil {
		return err
	}
	m, theirs, err := readMessage(r)
	switch {
	case err != nil:
		return err
	case m.kind == typeError:
		if e, err := parseError(m.body); err == nil {
			return e
		}
		return errors.New("the switch answered with an error")
	case m.kind != typeHello:
		return fmt.Errorf("expected a hello message, got message type %d", m.kind)
	case theirs < version:
		return fmt.Errorf("the switch supports OpenFlow up to wire version %d, %d is required", theirs, version)
	}
	return nil
}

// readMessage reads one message and returns it with the version in its header.
func readMessage(r io.Reader) (message, uint8, error) {
	var h [headerLen]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return message{}, 0, err
	}
	n := int(binary.BigEndian.Uint16(h[2:]))
	if n < headerLen {
		return message{}, 0, fmt.Errorf("message length %d is shorter than a header", n)
	}
	m := message{kind: h[1], xid: binary.BigEndian.Uint32(h[4:]), body: make([]byte, n-headerLen)}
	if _, err := io.ReadFull(r, m.body); err != nil {
		return message{}, 0, err
	}
	return m, h[0], nil
}

// read passes incoming messages to the exchanges that they answer, until the connection ends.
func (c *Conn) read(r io.Reader) {
	for {
		m, _, err := readMessage(r)
		if err != nil {
			c.end(fmt.Errorf("connection to the switch ended: %w", err))
			return
		}
		if m.kind == typeEchoRequest {
			// Not answered here, because the writer may be waiting for the switch to read, while
			// the switch waits for this goroutine to read.
			go c.echo(m)
			continue
		}
		c.deliver(m)
	}
}

func (c *Conn) echo(m message) {
	b := append(beginMessage(nil, typeEchoReply, m.xid), m.body...)
	b, err := endMessage(b, 0)
	if err != nil {
		return
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if _, err := c.w.Write(b); err == nil {
		_ = c.w.Flush() // if it fails, the reader fails too
	}
}

// deliver ignores messages that belong to no exchange: port status, and answers that came too late.
func (c *Conn) deliver(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.exchanges, func(e *exchange) bool { return m.xid-e.first <= e.last-e.first })
	if i < 0 {
		return
	}
	e := c.exchanges[i]
	done, err := e.answer(m)
	if err != nil && e.err == nil {
		e.err = err
	}
	if done {
		c.exchanges = slices.Delete(c.exchanges, i, i+1)
		close(e.done)
	}
}

// end closes the connection and fails the exchanges that wait. Only the first reason counts.
func (c *Conn) end(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = why
	_ = c.nc.Close()
	for _, e := range c.exchanges {
		e.err = why
		close(e.done)
	}
	c.exchanges = nil
	close(c.done)
}

// Close ends the connection. The switch keeps its flows.
func (c *Conn) Close() error {
	c.end(net.ErrClosed)
	return nil
}

// Done is closed when the connection has ended, for example because the switch restarted and lost
// its flows.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended, or nil while it is open.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// exchange writes count messages, which write makes with IDs from first on, and waits until answer
// has returned true.
func (c *Conn) exchange(ctx context.Context, count int, write func(w *bufio.Writer, first uint32) error, answer func(m message, first uint32) (bool, error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	// 0 is the ID of messages that answer nothing.
	if c.xid > 1<<31 {
		c.xid = 1
	}
	first := c.xid
	c.xid += uint32(count)
	e := &exchange{first: first, last: first + uint32(count) - 1, done: make(chan struct{})}
	e.answer = func(m message) (bool, error) { return answer(m, first) }
	c.exchanges = append(c.exchanges, e)
	c.mu.Unlock()

	if err := c.write(ctx, func(w *bufio.Writer) error { return write(w, first) }); err != nil {
		return err
	}
	select {
	case <-e.done:
		return e.err
	case <-ctx.Done():
		c.mu.Lock()
		c.exchanges = slices.DeleteFunc(c.exchanges, func(other *exchange) bool { return other == e })
		c.mu.Unlock()
		return fmt.Errorf("wait for the switch: %w", ctx.Err())
	}
}

// write sends an exchange's messages. A failure ends the connection, because the switch would read
// the next message as the rest of the one that was cut.
func (c *Conn) write(ctx context.Context, do func(*bufio.Writer) error) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.nc.SetWriteDeadline(time.Unix(1, 0))
		close(expired)
	})
	err := do(c.w)
	if err == nil {
		err = c.w.Flush()
	}
	if !stop() && err == nil {
		// All was written just before ctx ended: remove the deadline, which would fail the next
		// exchange.
		<-expired
		err = c.nc.SetWriteDeadline(time.Time{})
	}
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			err = ctx.Err()
		}
		err = fmt.Errorf("write to the switch: %w", err)
		c.end(err)
	}
	return err
}

// Apply makes changes in order, but not atomically: those before a refused one stay. It returns
// when they are in the switch's tables.
func (c *Conn) Apply(ctx context.Context, mods ...FlowMod) error {
	messages, err := encode(mods)
	if err != nil {
		return err
	}
	return c.exchange(ctx, len(mods)+1, func(w *bufio.Writer, first uint32) error {
		return writeAll(w, messages, first)
	}, func(m message, first uint32) (bool, error) {
		if m.kind == typeBarrierRep {
			return true, nil
		}
		return false, refusalOf(m, mods, first)
	})
}

// writeAll writes messages, with transaction IDs from first on, and a request for a barrier.
func writeAll(w *bufio.Writer, messages [][]byte, first uint32) error {
	for i, m := range messages {
		binary.BigEndian.PutUint32(m[4:], first+uint32(i))
		if _, err := w.Write(m); err != nil {
			return err
		}
	}
	_, err := w.Write(bare(typeBarrierReq, first+uint32(len(messages))))
	return err
}

const (
	bundleOpen, bundleOpened       = 0, 1
	bundleCommit, bundleCommitted  = 4, 5
	bundleDiscard, bundleDiscarded = 6, 7
	bundleAtomic, bundleOrdered    = 1, 2
	bundleFlags                    = bundleAtomic | bundleOrdered
	bundleOverhead                 = headerLen + 8 // of an add message
)

// Bundle makes changes atomically: all of them or, if one is refused, none. No packet meets a part
// of them.
func (c *Conn) Bundle(ctx context.Context, mods ...FlowMod) error {
	if len(mods) == 0 {
		return nil
	}
	messages, err := encode(mods)
	if err != nil {
		return err
	}
	// The switch checks the form of a change when it is added to the bundle, and leaves out a bad
	// one. So the bundle is committed only after all answers have come.
	var id uint32
	fillErr := c.exchange(ctx, len(mods)+2, func(w *bufio.Writer, first uint32) error {
		id = first
		if _, err := w.Write(bundleControl(first, id, bundleOpen)); err != nil {
			return err
		}
		var h []byte
		for i, m := range messages {
			xid := first + 1 + uint32(i)
			h = beginMessage(h[:0], typeBundleAdd, xid)
			binary.BigEndian.PutUint16(h[2:], uint16(bundleOverhead+len(m)))
			h = binary.BigEndian.AppendUint32(h, id)
			h = append(h, 0, 0, 0, bundleFlags)
			binary.BigEndian.PutUint32(m[4:], xid)
			if _, err := w.Write(h); err != nil {
				return err
			}
			if _, err := w.Write(m); err != nil {
				return err
			}
		}
		_, err := w.Write(bare(typeBarrierReq, first+1+uint32(len(mods))))
		return err
	}, func(m message, first uint32) (bool, error) {
		switch m.kind {
		case typeBarrierRep:
			return true, nil
		case typeBundleControl:
			return false, nil
		}
		return false, refusalOf(m, mods, first+1)
	})
	if refused := (*Error)(nil); fillErr != nil && !errors.As(fillErr, &refused) {
		return fillErr // the switch discards a bundle after a timeout
	}
	request, answer := uint16(bundleCommit), uint16(bundleCommitted)
	if fillErr != nil {
		request, answer = bundleDiscard, bundleDiscarded
	}
	err = c.exchange(ctx, 1, func(w *bufio.Writer, xid uint32) error {
		_, err := w.Write(bundleControl(xid, id, request))
		return err
	}, func(m message, _ uint32) (bool, error) {
		if m.kind == typeBundleControl && len(m.body) >= 8 && binary.BigEndian.Uint16(m.body[4:]) == answer {
			return true, nil
		}
		return true, refusal(m)
	})
	if fillErr != nil {
		return fillErr
	}
	return err
}

// modification is a FlowMod or a MeterMod.
type modification interface {
	fmt.Stringer
	append(b []byte, xid uint32) ([]byte, error)
	size() int // about that of its message
}

func encode[M modification](mods []M) ([][]byte, error) {
	total := 0
	for _, m := range mods {
		total += m.size()
	}
	messages, all := make([][]byte, len(mods)), make([]byte, 0, total)
	for i, m := range mods {
		start := len(all)
		var err error
		if all, err = m.append(all, 0); err != nil {
			return nil, fmt.Errorf("encode a change: %w", err)
		}
		if len(all)-start > 0xffff-bundleOverhead {
			return nil, fmt.Errorf("encode a change: %d bytes exceed the size of a message of a bundle", len(all)-start)
		}
		messages[i] = all[start:len(all):len(all)]
	}
	return messages, nil
}

func bundleControl(xid, id uint32, kind uint16) []byte {
	b := beginMessage(nil, typeBundleControl, xid)
	binary.BigEndian.PutUint16(b[2:], headerLen+8)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint16(b, kind)
	return binary.BigEndian.AppendUint16(b, bundleFlags)
}

// bare returns a message without a body.
func bare(kind uint8, xid uint32) []byte {
	b := beginMessage(nil, kind, xid)
	binary.BigEndian.PutUint16(b[2:], headerLen)
	return b
}

// refusal turns an error message into an *Error.
func refusal(m message) error {
	if m.kind != typeError {
		return fmt.Errorf("unexpected message type %d in answer to a change", m.kind)
	}
	e, err := parseError(m.body)
	if err != nil {
		return err
	}
	return e
}

// refusalOf is refusal, and the *Error names the refused one of several changes. first is the ID of
// mods[0].
func refusalOf[M modification](m message, mods []M, first uint32) error {
	err := refusal(m)
	var e *Error
	if i := m.xid - first; i < uint32(len(mods)) && errors.As(err, &e) {
		e.Request = mods[i].String()
	}
	return err
}

const (
	multipartFlow     = 1
	multipartPortDesc = 13
	multipartMore     = 1
)

// Flows returns the switch's flows that f selects. Their counters lag by up to a second.
func (c *Conn) Flows(ctx context.Context, f Filter) ([]FlowStats, error) {
	var flows []FlowStats
	err := c.multipart(ctx, multipartFlow, f.append(nil), func(b []byte) error {
		more, err := parseFlowStats(b)
		flows = append(flows, more...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dump flows: %w", err)
	}
	return flows, nil
}

// Ports returns the bridge's ports.
func (c *Conn) Ports(ctx context.Context) ([]Port, error) {
	var ports []Port
	err := c.multipart(ctx, multipartPortDesc, nil, func(b []byte) error {
		more, err := parsePorts(b)
		ports = append(ports, more...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list ports: %w", err)
	}
	return ports, nil
}

func (c *Conn) multipart(ctx context.Context, kind uint16, body []byte, part func([]byte) error) error {
	return c.exchange(ctx, 1, func(w *bufio.Writer, xid uint32) error {
		b := beginMessage(nil, typeMultipartReq, xid)
		b = binary.BigEndian.AppendUint16(b, kind)
		b = append(b, 0, 0, 0, 0, 0, 0)
		b = append(b, body...)
		b, err := endMessage(b, 0)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	}, func(m message, _ uint32) (bool, error) {
		if m.kind == typeError {
			e, err := parseError(m.body)
			if err != nil {
				return true, err
			}
			return true, e
		}
		if m.kind != typeMultipartRep || len(m.body) < 8 || binary.BigEndian.Uint16(m.body) != kind {
			return true, fmt.Errorf("unexpected message type %d in answer to a multipart request", m.kind)
		}
		return binary.BigEndian.Uint16(m.body[2:])&multipartMore == 0, part(m.body[8:])
	})
}
