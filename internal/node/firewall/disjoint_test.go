// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
)

// Disjoint entries allow just what the given ones do, and no packet is allowed twice. They are what
// the kernel's sets give back.
func TestDisjoint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Egress {
			endpoint, bits := netip.MustParseAddr("100.64.0.1"), 32
			prefix := netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "last")})
			e := Egress{Protocol: rapid.SampledFrom([]fabric.Protocol{fabric.TCP, fabric.UDP, fabric.ICMP}).Draw(t, "protocol")}
			if rapid.Bool().Draw(t, "second") {
				endpoint = netip.MustParseAddr("100.64.0.2")
			}
			from := rapid.Uint16Range(0, 20).Draw(t, "from")
			e.Endpoint = endpoint
			e.Prefix = netip.PrefixFrom(prefix, rapid.IntRange(24, bits).Draw(t, "bits")).Masked()
			e.Ports = fabric.PortRange{From: from, To: from + rapid.Uint16Range(0, 8).Draw(t, "more")}
			if e.Protocol.HasPorts() && rapid.Bool().Draw(t, "end") {
				e.Ports = fabric.PortRange{From: 65535 - from, To: 65535}
			}
			return e
		}), 0, 12).Draw(t, "entries")
		result := disjoint(list)
		must.True(t, slices.IsSortedFunc(result, compareEgress))
		for _, e := range result {
			must.NoError(t, e.Check())
			again := 0
			for _, s := range egressSets(nil) {
				for _, element := range s.elements([]Egress{e}) {
					entry, err := s.entry(element)
					must.NoError(t, err)
					must.Eq(t, e, entry)
					again++
				}
			}
			must.Eq(t, 1, again)
		}
		allows := func(list []Egress, t tuple) (n int) {
			for _, e := range list {
				if (egressIndex{egressKey{e.Endpoint, e.Protocol}: {e}}).has(t) {
					n++
				}
			}
			return n
		}
		for range 100 {
			packet := tuple{
				source:      rapid.SampledFrom([]netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("100.64.0.2")}).Draw(t, "source"),
				destination: netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "address")}),
				protocol:    rapid.SampledFrom([]fabric.Protocol{fabric.TCP, fabric.UDP, fabric.ICMP}).Draw(t, "of"),
				to:          rapid.OneOf(rapid.Uint16Range(0, 30), rapid.Uint16Range(65500, 65535)).Draw(t, "to"),
			}
			want := min(allows(list, packet), 1)
			must.Eq(t, want, allows(result, packet))
			must.Eq(t, want == 1, indexEgress(result).has(packet))
		}
	})
}

func TestDifference(t *testing.T) {
	entry := func(port uint16) Egress {
		return Egress{Endpoint: netip.MustParseAddr("100.64.0.1"), Prefix: netip.MustParsePrefix("10.0.0.0/8"), Protocol: fabric.TCP, Ports: fabric.PortRange{From: port, To: port}}
	}
	a, b := []Egress{entry(1), entry(2), entry(4)}, []Egress{entry(2), entry(3)}
	must.Eq(t, []Egress{entry(1), entry(4)}, difference(a, b))
	must.Eq(t, []Egress{entry(3)}, difference(b, a))
	must.SliceEmpty(t, difference(nil, a))
	must.Eq(t, a, difference(a, nil))
}
