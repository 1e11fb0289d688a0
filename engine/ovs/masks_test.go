// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

// A range and its masks name the same ports, each once, in at most 30 masks.
func TestMasksCoverExactly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.Uint16().Draw(t, "first")
		r := PortRange{First: first, Last: rapid.Uint16Min(first).Draw(t, "last")}
		masks := r.masks()
		var back []PortRange
		ports := 0
		for _, m := range masks {
			back = append(back, m.ports())
			ports += int(m.ports().Last) - int(m.ports().First) + 1
		}
		must.Eq(t, []PortRange{r}, join(back))
		must.Eq(t, int(r.Last)-int(r.First)+1, ports)
		must.LessEq(t, 30, len(masks))
	})
}

func TestMasks(t *testing.T) {
	for _, tc := range []struct {
		in   PortRange
		want []maskedPort
	}{
		{PortRange{0, 65535}, []maskedPort{{0, 0}}},
		{PortRange{8080, 8080}, []maskedPort{{8080, 0xffff}}},
		{PortRange{9000, 9010}, []maskedPort{{9000, 0xfff8}, {9008, 0xfffe}, {9010, 0xffff}}},
		{PortRange{65535, 65535}, []maskedPort{{65535, 0xffff}}},
	} {
		must.Eq(t, tc.want, tc.in.masks())
	}
}
