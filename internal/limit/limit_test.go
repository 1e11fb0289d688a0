// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package limit

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

func TestSource(t *testing.T) {
	for address, want := range map[string]string{
		"10.1.0.11:4711":              "10.1.0.11/32",
		"[::ffff:10.1.0.11]:4711":     "10.1.0.11/32",
		"[2001:db8:1:2:3:4:5:6]:4711": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:4711":         "fe80::/64",
	} {
		a := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address))
		must.Eq(t, want, Source(a).String())
	}
	must.Eq(t, netip.Prefix{}, Source(&net.UnixAddr{Name: "/x", Net: "unix"}))
}

// A Count holds what a plain model holds, and no key keeps another from its share.
func TestCount(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		each, all := rapid.IntRange(1, 4).Draw(r, "each"), rapid.IntRange(0, 9).Draw(r, "all")
		c := NewCount[int](each, all)
		model := map[int]int{}
		total := 0
		r.Repeat(map[string]func(*rapid.T){
			"take": func(r *rapid.T) {
				key := rapid.IntRange(0, 3).Draw(r, "key")
				n := rapid.IntRange(0, 2).Draw(r, "n")
				want := model[key]+n <= each && (all == 0 || total+n <= all)
				must.Eq(r, want, c.TakeN(key, n))
				if want {
					model[key] += n
					total += n
				}
			},
			"release": func(r *rapid.T) {
				key := rapid.IntRange(0, 3).Draw(r, "key")
				if model[key] == 0 {
					r.Skip("it has none")
				}
				c.Release(key)
				model[key]--
				total--
			},
		})
		held := 0
		for _, n := range model {
			if n > 0 {
				held++
			}
		}
		must.MapLen(r, held, c.have) // nothing is kept of those who have nothing
	})
}

func TestRate(t *testing.T) {
	now := time.Unix(1000, 0)
	r := NewRate[string](time.Second, 3)
	r.now = func() time.Time { return now }
	for range 3 {
		ok, _ := r.Allow("a")
		must.True(t, ok)
	}
	for range 10 { // what is refused does not count
		ok, wait := r.Allow("a")
		must.False(t, ok)
		must.Eq(t, time.Second, wait)
		must.Eq(t, time.Second, r.Wait("a"))
	}
	must.Zero(t, r.Wait("b"))
	ok, _ := r.Allow("b")
	must.True(t, ok)
	now = now.Add(time.Second)
	ok, _ = r.Allow("a")
	must.True(t, ok)
	ok, _ = r.Allow("a")
	must.False(t, ok)
}

// The memory is bounded, and a flood of keys does not take the allowance of those that are known.
func TestRateOfManyKeys(t *testing.T) {
	now := time.Unix(1000, 0)
	r := NewRate[int](time.Second, 2)
	r.now = func() time.Time { return now }
	allowed := 0
	for key := range 2 * maxKeys {
		if ok, _ := r.Allow(key); ok {
			allowed++
		}
	}
	must.Eq(t, maxKeys+2, allowed) // the others share one allowance
	ok, _ := r.Allow(0)
	must.True(t, ok)
	now = now.Add(2 * time.Second) // those at rest are forgotten
	ok, _ = r.Allow(-1)
	must.True(t, ok)
	must.MapLen(t, 1, r.keys)
}
