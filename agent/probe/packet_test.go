// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package probe

import (
	"net/netip"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
)

func TestPacketRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		length := rapid.SampledFrom([]int{4, 16}).Draw(t, "address length")
		end := func(name string) netip.AddrPort {
			b := rapid.SliceOfN(rapid.Byte(), length, length).Draw(t, name)
			addr, _ := netip.AddrFromSlice(b)
			return netip.AddrPortFrom(addr, rapid.Uint16().Draw(t, name+" port"))
		}
		p := packet{end("src"), end("dst"), rapid.SampledFrom([]fabric.Protocol{fabric.TCP, fabric.UDP}).Draw(t, "protocol"), rapid.Uint64().Draw(t, "nonce")}
		b := p.marshal()
		got, ok := parse(b)
		if !ok || got != p {
			t.Fatalf("got %v, %t", got, ok)
		}
		for n := range b {
			if _, ok := parse(b[:n]); ok {
				t.Fatalf("a packet truncated to %d of %d bytes is parsed as a probe", n, len(b))
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, p := range []packet{
		{netip.MustParseAddrPort("100.64.1.2:9"), netip.MustParseAddrPort("100.64.2.2:80"), fabric.TCP, 1},
		{netip.MustParseAddrPort("[fd5f::2]:9"), netip.MustParseAddrPort("[fd5f::3]:80"), fabric.UDP, 2},
	} {
		f.Add(p.marshal())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := parse(b); ok && p.check() != nil && !p.src.Addr().Is4In6() && !p.dst.Addr().Is4In6() {
			t.Fatalf("parsed a probe that cannot be sent: %v", p)
		}
	})
}

func TestListens(t *testing.T) {
	const tcp = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0201406 4:0050 00000000:0000 0A
   1: 02014064:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   2: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   3: 0100007F:0051 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   4: 02014064:0052 01014064:1234 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
`
	for at, want := range map[string]bool{
		"100.64.1.2:80": true, "100.64.1.3:80": false, "100.64.1.2:8080": true, "100.64.1.2:81": false, "100.64.1.2:82": false, "[fd5f::2]:8080": false,
	} {
		must.Eq(t, want, listens(tcp, netip.MustParseAddrPort(at), fabric.TCP), must.Sprint(at))
	}
	const udp6 = "   0: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07 0 0\n"
	must.True(t, listens(udp6, netip.MustParseAddrPort("[fd5f::2]:53"), fabric.UDP))
	must.True(t, listens(udp6, netip.MustParseAddrPort("100.64.1.2:53"), fabric.UDP))
	must.False(t, listens(udp6, netip.MustParseAddrPort("100.64.1.2:54"), fabric.UDP))
}
