// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package rpc

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	maxFrame     = 8 << 20          // bytes of one JSON-RPC object
	writeTimeout = 10 * time.Second // for one frame; a peer that does not read for so long is dead
)

// stream precedes each JSON-RPC object by its length, 4 bytes in network byte order. It implements
// jsonrpc2.ObjectStream; the caller serialises writes.
type stream struct {
	conn net.Conn
	r    *bufio.Reader
}

func newStream(conn net.Conn) *stream {
	return &stream{conn: conn, r: bufio.NewReader(conn)}
}

// WriteObject writes v as one frame. If v is too large, it returns an error before it sends
// anything, and the stream stays usable.
func (s *stream) WriteObject(v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode a message: %w", err)
	}
	if len(body) > maxFrame {
		return fmt.Errorf("the message has %d bytes, a frame has at most %d", len(body), maxFrame)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	frame = append(frame, body...)
	if err := s.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if _, err := s.conn.Write(frame); err != nil {
		s.conn.Close() // part of the frame may have been sent, so the stream is broken
		return fmt.Errorf("write a message: %w", err)
	}
	return nil
}

// ReadObject reads one frame into v.
func (s *stream) ReadObject(v any) error {
	body, err := readFrame(s.r)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

// readFrame reads one frame. It does not allocate more memory than the peer sends data.
func readFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxFrame {
		return nil, fmt.Errorf("the peer sends a message of %d bytes, at most %d are allowed", size, maxFrame)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(size)))
	if err != nil {
		return nil, err
	}
	if len(body) < int(size) {
		return nil, io.ErrUnexpectedEOF
	}
	return body, nil
}

// Close closes the connection.
func (s *stream) Close() error { return s.conn.Close() }
