// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

// Whatever is taken, released and restarted: an address never has two holders, rests after its
// release, and is never the network's, the node's or the broadcast address.
func TestAddresses(t *testing.T) {
	dir, runs := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		path := filepath.Join(dir, fmt.Sprint(runs))
		bits := rapid.IntRange(27, 29).Draw(t, "bits")
		pool4, pool6 := netip.MustParsePrefix(fmt.Sprintf("100.64.7.32/%d", bits)), netip.MustParsePrefix("fd5f:0:7::/64")
		usable := 1<<(32-bits) - 3
		open := func() *addresses {
			a, err := openAddresses(path, pool4, pool6)
			must.NoError(t, err)
			return a
		}
		a, now := open(), time.Unix(1000, 0)
		holders, released := map[netip.Addr]bool{}, map[netip.Addr]time.Time{}
		resting := func() (n int) {
			for _, at := range released {
				if now.Sub(at) < rest {
					n++
				}
			}
			return n
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch step := rapid.SampledFrom([]string{"take", "take", "release", "give back", "wait", "restart"}).Draw(t, "step"); step {
			case "take":
				v4, v6, err := a.take(now)
				if len(holders)+resting() == usable {
					must.ErrorIs(t, err, errPoolExhausted)
					continue
				}
				must.NoError(t, err)
				must.False(t, holders[v4])
				if at, was := released[v4]; was {
					must.GreaterEq(t, rest, now.Sub(at))
				}
				must.True(t, pool4.Contains(v4) && pool6.Contains(v6))
				must.NotEq(t, pool4.Addr(), v4)
				must.NotEq(t, pool4.Addr().Next(), v4)
				must.True(t, pool4.Contains(v4.Next())) // not the broadcast address
				holders[v4] = true
			case "release", "give back":
				for v4 := range holders {
					delete(holders, v4)
					if step == "give back" {
						a.giveBack(v4)
						break
					}
					a.release(v4, now)
					released[v4] = now
					break
				}
			case "wait":
				now = now.Add(time.Duration(rapid.IntRange(1, 400).Draw(t, "seconds")) * time.Second)
			case "restart":
				a = open()
				for v4 := range holders {
					a.reserve(v4)
				}
			}
		}
	})
}

// Whoever finds no address waits for the first that has rested, in order of arrival, and does not
// wait for what comes too late.
func TestWaitingForAddresses(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a, err := openAddresses(filepath.Join(dir, "addresses.json"), netip.MustParsePrefix("100.64.7.32/29"), netip.MustParsePrefix("fd5f:0:7::/64"))
		must.NoError(t, err)
		var held []netip.Addr
		for range 5 {
			v4, _, err := a.take(time.Now())
			must.NoError(t, err)
			held = append(held, v4)
		}
		began := time.Now()
		a.release(held[3], began)
		time.Sleep(time.Minute)
		a.release(held[1], time.Now())

		type got struct {
			v4    netip.Addr
			err   error
			after time.Duration
		}
		wait := func(ctx context.Context, patience time.Duration) chan got {
			c := make(chan got, 1)
			go func() {
				v4, _, err := a.wait(ctx, time.Now, time.Now().Add(patience))
				c <- got{v4, err, time.Since(began)}
			}()
			synctest.Wait() // it has begun to wait, or has ended
			return c
		}
		gone, cancel := context.WithCancel(t.Context())
		first, second := wait(t.Context(), time.Hour), wait(gone, time.Hour)

		// Two come before it, and the third address is in use.
		hasty := <-wait(t.Context(), time.Hour)
		must.ErrorIs(t, hasty.err, errPoolExhausted)
		must.ErrorContains(t, hasty.err, "all 5 addresses of 100.64.7.32/29 are in use")
		must.Eq(t, time.Minute, hasty.after)

		cancel()
		left := <-second
		must.ErrorIs(t, left.err, errPoolExhausted)
		must.Eq(t, time.Minute, left.after)
		third := wait(t.Context(), time.Hour)
		must.Eq(t, got{held[3], nil, rest}, <-first)
		must.Eq(t, got{held[1], nil, rest + time.Minute}, <-third)

		// What is given back has no rest, and the first who waits gets it.
		a.release(held[0], time.Now())
		one := wait(t.Context(), time.Hour)
		short := <-wait(t.Context(), time.Minute)
		must.ErrorIs(t, short.err, errPoolExhausted)
		a.giveBack(held[2])
		must.Eq(t, held[2], (<-one).v4)
		short = <-wait(t.Context(), time.Minute)
		must.ErrorContains(t, short.err, "4 are in use, and the others rest for 10m0s after their release; the next is free at "+time.Now().Add(rest).UTC().Format(time.RFC3339))
		must.ErrorContains(t, short.err, "-pool-prefix")
		used, resting, free := a.usage(time.Now())
		must.Eq(t, [3]int{4, 1, 0}, [3]int{used, resting, free})
		time.Sleep(rest)
		used, resting, free = a.usage(time.Now())
		must.Eq(t, [3]int{4, 0, 1}, [3]int{used, resting, free})
		must.SliceEmpty(t, a.queue)
	})
}

// A node that starts and ends 40 jobs a minute never waits with the default pool.
func TestShortJobs(t *testing.T) {
	dir := t.TempDir()
	a, err := openAddresses(filepath.Join(dir, "addresses.json"), netip.MustParsePrefix("100.64.4.0/22"), netip.MustParsePrefix("fd5f:0:4::/64"))
	must.NoError(t, err)
	now := time.Unix(1000, 0)
	for range 700 {
		v4, _, err := a.wait(t.Context(), func() time.Time { return now }, time.Time{})
		must.NoError(t, err)
		now = now.Add(1500 * time.Millisecond)
		a.release(v4, now)
	}
	_, resting, _ := a.usage(now)
	must.Eq(t, 400, resting)
}
