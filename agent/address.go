// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// rest is how long a released address is not given out again, so that nothing
// that still remembers its last holder can mistake the next one for it.
const rest = 10 * time.Minute

// errPoolExhausted says that every address of the pool is taken or resting.
var errPoolExhausted = errors.New("no address of the node's pool is free")

// addresses hands out the addresses of the node's pools. An endpoint's IPv4
// and IPv6 addresses have the same offset in their pools. It is not safe for
// concurrent use.
type addresses struct {
	pool4, pool6 netip.Prefix
	next         uint32
	taken        map[uint32]bool
	resting      map[uint32]time.Time // until when
}

// firstOffset leaves the pool's network address and the node's own.
const firstOffset = 2

func newAddresses(pool4, pool6 netip.Prefix) *addresses {
	return &addresses{pool4: pool4.Masked(), pool6: pool6.Masked(), next: firstOffset, taken: map[uint32]bool{}, resting: map[uint32]time.Time{}}
}

// take returns a free pair of addresses. It goes round the pool, so that an
// address rests as long as the pool allows.
func (a *addresses) take(now time.Time) (v4, v6 netip.Addr, err error) {
	size := uint32(1)<<(32-a.pool4.Bits()) - 1 // without the broadcast address
	for range size {
		offset := a.next
		if a.next++; a.next >= size {
			a.next = firstOffset
		}
		if a.taken[offset] || now.Before(a.resting[offset]) || offset >= size {
			continue
		}
		delete(a.resting, offset)
		a.taken[offset] = true
		return a.at(offset)
	}
	return v4, v6, fmt.Errorf("%w: %s has %d addresses in use and %d resting for %s after their release",
		errPoolExhausted, a.pool4, len(a.taken), len(a.resting), rest)
}

func (a *addresses) at(offset uint32) (v4, v6 netip.Addr, err error) {
	b4 := a.pool4.Addr().As4()
	add(b4[:], offset)
	b6 := a.pool6.Addr().As16()
	add(b6[:], offset)
	return netip.AddrFrom4(b4), netip.AddrFrom16(b6), nil
}

// add adds n to a big-endian number.
func add(b []byte, n uint32) {
	for i := len(b) - 1; n > 0 && i >= 0; i-- {
		n += uint32(b[i])
		b[i] = byte(n)
		n >>= 8
	}
}

func (a *addresses) offset(v4 netip.Addr) uint32 {
	base, addr := a.pool4.Addr().As4(), v4.As4()
	var offset uint32
	for i := range addr {
		offset = offset<<8 + uint32(addr[i]) - uint32(base[i])
	}
	return offset
}

// hold marks an address as taken: it belongs to an endpoint from before a
// restart.
func (a *addresses) hold(v4 netip.Addr) { a.taken[a.offset(v4)] = true }

// release gives an address back and lets it rest.
func (a *addresses) release(v4 netip.Addr, now time.Time) {
	offset := a.offset(v4)
	delete(a.taken, offset)
	a.resting[offset] = now.Add(rest)
}
