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

// What is in the sets allows just what the given entries do, apart from what is withheld, and no
// packet is allowed twice. It is what the kernel's sets give back.
func TestLetOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefixes := rapid.Custom(func(t *rapid.T) netip.Prefix {
			last := netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "last")})
			return netip.PrefixFrom(last, rapid.IntRange(24, 32).Draw(t, "bits")).Masked()
		})
		list := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Egress {
			endpoint := netip.MustParseAddr("100.64.0.1")
			e := Egress{Protocol: rapid.SampledFrom([]fabric.Protocol{fabric.TCP, fabric.UDP, fabric.ICMP}).Draw(t, "protocol")}
			if rapid.Bool().Draw(t, "second") {
				endpoint = netip.MustParseAddr("100.64.0.2")
			}
			from := rapid.Uint16Range(0, 20).Draw(t, "from")
			e.Endpoint = endpoint
			e.Prefix = prefixes.Draw(t, "prefix")
			e.Ports = fabric.PortRange{From: from, To: from + rapid.Uint16Range(0, 8).Draw(t, "more")}
			if e.Protocol.HasPorts() && rapid.Bool().Draw(t, "end") {
				e.Ports = fabric.PortRange{From: 65535 - from, To: 65535}
			}
			return e
		}), 0, 12).Draw(t, "entries")
		withheld := rapid.SliceOfN(prefixes, 0, 6).Draw(t, "withheld")
		result := newLetOut(list, withheld)
		var back []netip.Prefix
		for _, s := range withheldSets(nil) {
			prefixes, err := s.prefixes(s.elements(result.withheld))
			must.NoError(t, err)
			back = append(back, prefixes...)
		}
		must.Eq(t, result.withheld, back)
		must.True(t, slices.IsSortedFunc(result.wide, compareEgress) && slices.IsSortedFunc(result.listed, compareEgress))
		for _, e := range slices.Concat(result.wide, result.listed) {
			must.NoError(t, e.Check())
			again := 0
			for _, s := range egressSets(nil) {
				if s.listed {
					continue // of the same form
				}
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
				if e.Endpoint == t.source && e.Protocol == t.protocol && e.Prefix.Contains(t.destination) && e.Ports.Contains(t.to) {
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
			innermost, set := netip.Prefix{}, result.wide
			for _, p := range withheld {
				if p.Contains(packet.destination) && p.Bits() > innermost.Bits() {
					innermost, set = p, result.listed
				}
			}
			want := min(1, allows(slices.DeleteFunc(slices.Clone(list), func(e Egress) bool {
				return innermost.IsValid() && !fabric.Covers(innermost, e.Prefix)
			}), packet))
			must.Eq(t, want, allows(set, packet))
			must.Eq(t, want == 1, result.index().has(packet))
		}
	})
}

// The sets of both families give back what is withheld, to the last address and side by side.
func TestWithheldElements(t *testing.T) {
	var want []netip.Prefix
	for _, p := range []string{"0.0.0.0/8", "10.0.0.4/32", "10.0.0.5/32", "10.0.0.6/31", "240.0.0.0/4", "::/96", "fe80::/10", "ff00::/8"} {
		want = append(want, netip.MustParsePrefix(p))
	}
	var have []netip.Prefix
	for _, s := range withheldSets(nil) {
		elements := s.elements(want)
		slices.Reverse(elements) // the kernel's order
		prefixes, err := s.prefixes(elements)
		must.NoError(t, err)
		have = append(have, prefixes...)
		if !s.ipv6 {
			for i := 1; i < len(elements); i++ { // without the first one here there is just a prefix less
				_, err := s.prefixes(slices.Delete(slices.Clone(elements), i, i+1))
				must.Error(t, err, must.Sprint(i))
			}
		}
	}
	must.Eq(t, want, have)
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
