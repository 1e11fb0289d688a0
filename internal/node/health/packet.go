// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package health

import (
	"crypto/rand"
	"encoding/binary"
)

// A probe is a request, which may be padded to any size, or the answer to one, which is small. Its
// payload:
//
//	0  4  magic
//	4  1  kind
//	5  1  version
//	6  2  answer: size of the request's payload, big-endian
//	8 16  nonce, the same in the answer
//	24 8  zero
const (
	magic   = "SIFp"
	version = 1

	smallPayload = 32

	udpHeader   = 8
	ipv4Header  = 20
	ipv6Header  = 40
	ipv4Headers = ipv4Header + udpHeader
	ipv6Headers = ipv6Header + udpHeader
)

// headersOf returns the size of the headers of a family's packets in bytes.
func headersOf(family int) int {
	if family == ipv6 {
		return ipv6Headers
	}
	return ipv4Headers
}

type kind byte

const (
	request kind = 1
	answer  kind = 2
)

// nonce is what only the sender and the receiver of a request know.
type nonce [16]byte

func newNonce() (n nonce) {
	_, _ = rand.Read(n[:]) // it never fails
	return n
}

// message is a decoded probe.
type message struct {
	kind  kind
	nonce nonce
	size  int // of the request's payload in bytes
}

// encode returns the payload of a message. A request has m.size bytes, and at least those of a
// small packet.
func encode(m message) []byte {
	size := smallPayload
	if m.kind == request {
		size = max(size, m.size)
	}
	b := make([]byte, size)
	copy(b, magic)
	b[4], b[5] = byte(m.kind), version
	if m.kind == answer {
		binary.BigEndian.PutUint16(b[6:], uint16(m.size))
	}
	copy(b[8:], m.nonce[:])
	return b
}

// decode reads a payload. It refuses one that is smaller than its answer, so that nobody makes a
// node send more than it receives.
func decode(b []byte) (m message, ok bool) {
	if len(b) < smallPayload || string(b[:4]) != magic || b[5] != version {
		return m, false
	}
	m.kind, m.nonce = kind(b[4]), nonce(b[8:24])
	switch m.kind {
	case request:
		m.size = len(b)
		return m, binary.BigEndian.Uint16(b[6:]) == 0
	case answer:
		m.size = int(binary.BigEndian.Uint16(b[6:]))
		return m, len(b) == smallPayload && m.size >= smallPayload
	}
	return m, false
}
