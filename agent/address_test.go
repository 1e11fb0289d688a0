// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
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
