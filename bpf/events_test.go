// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// TestNoFrameGetsAround gives the programs mutations of valid frames. A frame that passes from the
// workload must have its source address, one that passes to it must have arrived at the right
// interface.
func TestNoFrameGetsAround(t *testing.T) {
	f := newFixture(t)
	good := [][]byte{
		ethernet(ip(me4, friend4, 6, tcp(4000, 8080, syn))), ethernet(ip(me6, friend6, 17, udp(4000, 9000))),
		ethernet(ip(me4, friend4, 1, icmp(8, 0, 7))), ethernet(ip(me4, resolver4, 17, udp(4000, 53))),
		ethernet(ip(me6, friend6, 60, append([]byte{6, 0, 1, 4, 0, 0, 0, 0}, tcp(4000, 8080, syn)...))),
		ethernet(ip(me4, friend4, 1, icmp(3, 4, 0, ip(friend4, me4, 6, tcp(8080, 4000, ack))...))),
		ethernet(ip(friend4, me4, 6, tcp(5000, 80, syn))), ethernet(ip(friend6, me6, 58, icmp(128, 0, 7))),
	}
	own4, own6 := addr(me4).As4(), addr(me6).As16()
	rapid.Check(t, func(t *rapid.T) {
		for range 20 {
			data := bytes.Clone(rapid.SampledFrom(good).Draw(t, "frame"))
			for range rapid.IntRange(0, 3).Draw(t, "changes") {
				data[rapid.IntRange(12, len(data)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
			}
			data = data[:rapid.IntRange(min(len(data), 60), len(data)).Draw(t, "length")]
			if f.outcome(FromWorkload, f.me, 0, data).verdict == -1 && !bytes.Equal(data[26:30], own4[:]) && !bytes.Equal(data[22:38], own6[:]) {
				t.Fatalf("passed from the workload with another source: %x", data)
			}
			if f.outcome(ToWorkload, f.me, f.bare, data).verdict == -1 && !(data[23] == 1 || data[20] == 58) {
				t.Fatalf("passed to the workload by an interface where nobody is: %x", data)
			}
		}
	})
}
