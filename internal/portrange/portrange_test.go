// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package portrange

import (
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

func TestBlocksCoverTheRangeOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.Uint16().Draw(t, "from")
		to := rapid.Uint16Min(from).Draw(t, "to")
		next := uint32(from)
		for _, b := range Split(from, to) {
			size := uint32(1) << (16 - b.Length)
			if uint32(b.First) != next || uint32(b.First)%size != 0 {
				t.Fatalf("block %d/%d does not start at %d", b.First, b.Length, next)
			}
			next += size
			if uint32(b.Last())+1 != next || b.First&b.Mask() != b.First {
				t.Fatalf("block %d/%d ends at %d, mask %#x", b.First, b.Length, b.Last(), b.Mask())
			}
		}
		if next != uint32(to)+1 {
			t.Fatalf("the blocks end before %d, want %d", next, uint32(to)+1)
		}
	})
}

func TestFewestBlocks(t *testing.T) {
	for _, tt := range []struct {
		first, last uint16
		want        []Block
	}{
		{0, 65535, []Block{{0, 0}}},
		{8080, 8080, []Block{{8080, 16}}},
		{9000, 9010, []Block{{9000, 13}, {9008, 15}, {9010, 16}}},
		{65535, 65535, []Block{{65535, 16}}},
	} {
		must.Eq(t, tt.want, Split(tt.first, tt.last))
	}
}
