// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/statefile"
)

// rest is the time for which a released address is not reused. A node that still knows the last
// holder must not mistake the next one for it.
const rest = 10 * time.Minute

// errPoolExhausted is returned when every address of the pool is in use or resting.
var errPoolExhausted = errors.New("the address pool of the node is exhausted")

// addresses allocates addresses from the node's pools. The IPv4 and IPv6 addresses of an endpoint
// have the same offset in their pools. Resting addresses are stored on disk; the addresses in use
// are known from the endpoints. It is safe for concurrent use.
type addresses struct {
	file         statefile.File[map[netip.Addr]time.Time]
	pool4, pool6 netip.Prefix

	mu      sync.Mutex
	next    uint32
	taken   map[uint32]bool
	resting map[uint32]time.Time // until when
	queue   []*waiter            // who waits for an address, in order of arrival
	failed  error                // why the resting addresses are not on disk
}

// waiter is an ADD that waits for an address. It is woken when that could have become possible
// earlier, or impossible.
type waiter struct{ wake chan struct{} }

// firstOffset skips the network address of the pool and the node's health address.
const firstOffset = 2

func openAddresses(path string, pool4, pool6 netip.Prefix) (*addresses, error) {
	a := &addresses{
		file:  statefile.File[map[netip.Addr]time.Time]{Path: path, What: "the resting addresses"},
		pool4: pool4.Masked(), pool6: pool6.Masked(),
		next: firstOffset, taken: map[uint32]bool{}, resting: map[uint32]time.Time{},
	}
	kept, _, err := a.file.Read()
	if err != nil {
		return nil, err
	}
	for addr, until := range kept {
		if a.pool4.Contains(addr) {
			a.resting[a.offset(addr)] = until
		}
	}
	return a, nil
}

// take returns a free pair of addresses. It cycles through the pool, so that an address rests as
// long as the pool size allows.
func (a *addresses) take(now time.Time) (v4, v6 netip.Addr, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if v4, v6, ok := a.pick(now); ok {
		return v4, v6, nil
	}
	return v4, v6, a.exhausted(0, now)
}

// size is the number of offsets of the pool, without the broadcast address.
func (a *addresses) size() uint32 { return uint32(1)<<(32-a.pool4.Bits()) - 1 }

// pick takes a pair of addresses if one is free. The caller holds a.mu.
func (a *addresses) pick(now time.Time) (v4, v6 netip.Addr, ok bool) {
	size := a.size()
	for range size {
		offset := a.next
		if a.next++; a.next >= size {
			a.next = firstOffset
		}
		if a.taken[offset] || now.Before(a.resting[offset]) || offset >= size {
			continue
		}
		a.taken[offset] = true
		v4, v6 = a.at(offset)
		return v4, v6, true
	}
	return v4, v6, false
}

// wait takes a pair of addresses. If none is free, it waits for the first that has rested, after
// those who came before, until the given time. It does not wait if that comes too late.
func (a *addresses) wait(ctx context.Context, now func() time.Time, until time.Time) (v4, v6 netip.Addr, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) == 0 {
		if v4, v6, ok := a.pick(now()); ok {
			return v4, v6, nil
		}
	}
	me := &waiter{wake: make(chan struct{}, 1)}
	a.queue = append(a.queue, me)
	defer func() {
		a.queue = slices.DeleteFunc(a.queue, func(w *waiter) bool { return w == me })
		a.rouse()
	}()
	for {
		at := now()
		before := slices.Index(a.queue, me)
		if before == 0 {
			if v4, v6, ok := a.pick(at); ok {
				return v4, v6, nil
			}
		}
		free := a.freeTimes(at)
		if before >= len(free) || free[before].Sub(at) > time.Until(until) || ctx.Err() != nil {
			return v4, v6, a.exhausted(before, at)
		}
		timer := time.NewTimer(max(free[before].Sub(at), time.Millisecond))
		a.mu.Unlock()
		select {
		case <-timer.C:
		case <-me.wake:
		case <-ctx.Done():
		}
		timer.Stop()
		a.mu.Lock()
	}
}

// rouse has all who wait look again. The caller holds a.mu.
func (a *addresses) rouse() {
	for _, w := range a.queue {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// freeTimes returns, for each address that nobody holds, when it is free, the earliest first. The
// caller holds a.mu.
func (a *addresses) freeTimes(now time.Time) []time.Time {
	var list []time.Time
	for offset := uint32(firstOffset); offset < a.size(); offset++ {
		if a.taken[offset] {
			continue
		}
		at := a.resting[offset]
		if at.Before(now) {
			at = now
		}
		list = append(list, at)
	}
	slices.SortFunc(list, time.Time.Compare)
	return list
}

// usage returns how many addresses are in use, rest and are free.
func (a *addresses) usage(now time.Time) (used, resting, free int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, at := range a.freeTimes(now) {
		if at.After(now) {
			resting++
		} else {
			free++
		}
	}
	return max(int(a.size())-firstOffset, 0) - resting - free, resting, free
}

// larger says how a node gets a larger pool.
const larger = "run fewer allocations on this node, or give it a larger pool: sif node remove, and sif node create -pool-prefix"

// exhausted is the error of one who cannot have an address, and of whom so many come before. The
// caller holds a.mu.
func (a *addresses) exhausted(before int, now time.Time) error {
	free := a.freeTimes(now)
	total := max(int(a.size())-firstOffset, 0)
	text := fmt.Sprintf("all %d addresses of %s are in use", total, a.pool4)
	if before < len(free) {
		text = fmt.Sprintf("of the %d addresses of %s %d are in use, and the others rest for %s after their release; the next is free at %s",
			total, a.pool4, total-len(free), rest, free[before].UTC().Format(time.RFC3339))
	}
	return fmt.Errorf("%w: %s; %s", errPoolExhausted, text, larger)
}

func (a *addresses) at(offset uint32) (v4, v6 netip.Addr) {
	b4 := a.pool4.Addr().As4()
	add(b4[:], offset)
	b6 := a.pool6.Addr().As16()
	add(b6[:], offset)
	return netip.AddrFrom4(b4), netip.AddrFrom16(b6)
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

// reserve marks the address of an endpoint that existed before a restart as in use.
func (a *addresses) reserve(v4 netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.taken[a.offset(v4)] = true
}

// giveBack frees an address that no other node has learned of.
func (a *addresses) giveBack(v4 netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.taken, a.offset(v4))
	a.rouse()
}

// release frees an address and starts its rest, which holds also if it cannot be written to disk;
// see stored.
func (a *addresses) release(v4 netip.Addr, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	offset := a.offset(v4)
	delete(a.taken, offset)
	a.resting[offset] = now.Add(rest)
	a.rouse()
	a.keep(now)
}

// stored writes the resting addresses to disk if that failed the last time. The controller also
// knows which addresses rest.
func (a *addresses) stored(now time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed != nil {
		a.keep(now)
	}
	return a.failed
}

// longestRest is longer than an admission lives and its addresses then rest.
const longestRest = 25 * time.Hour

// avoid lets addresses rest that rest at the controller, if it says so for longer than this node
// knew.
func (a *addresses) avoid(list []api.RestingAddress, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	changed := false
	for _, r := range list {
		if !r.Address.Is4() || !a.pool4.Contains(r.Address) {
			continue
		}
		until := r.Until
		if latest := now.Add(longestRest); until.After(latest) {
			until = latest
		}
		if offset := a.offset(r.Address); until.After(a.resting[offset]) {
			a.resting[offset] = until
			changed = true
		}
	}
	if changed {
		a.rouse()
		a.keep(now)
	}
}

// keep forgets what has rested, and stores the rest. The caller holds a.mu.
func (a *addresses) keep(now time.Time) {
	kept := map[netip.Addr]time.Time{}
	for offset, until := range a.resting {
		if !now.Before(until) {
			delete(a.resting, offset)
			continue
		}
		addr, _ := a.at(offset)
		kept[addr] = until.UTC()
	}
	a.failed = a.file.Write(kept)
}
