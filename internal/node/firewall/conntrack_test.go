// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/wellknown"
)

// aConnection is what the kernel (6.18) says of a TCP connection that leaves by the node: from
// 100.64.1.2 port 40000 to 192.0.2.9 port 80, with the source 192.0.2.1.
const aConnection = `
02000000
34000180 14000180 08000100 64400102 08000200 c0000209
1c000280 05000100 06000000 06000200 9c400000 06000300 00500000
34000280 14000180 08000100 c0000209 08000200 c0000201
1c000280 05000100 06000000 06000200 00500000 06000300 9c400000
08000300 0000019e
08000800 51f00001
08000c00 0a0b0c0d
`

func message(t interface{ Fatal(...any) }) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(aConnection), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseTracked(t *testing.T) {
	c, ok := parseTracked(message(t), ctSNAT, wellknown.ExitMarkNode)
	must.True(t, ok)
	must.True(t, c.original == tuple{netip.MustParseAddr("100.64.1.2"), netip.MustParseAddr("192.0.2.9"), 6, 40000, 80}, must.Sprint(c.original))
	must.True(t, c.reply == tuple{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("192.0.2.1"), 6, 80, 40000}, must.Sprint(c.reply))
	_, ok = parseTracked(message(t), ctSNAT, wellknown.ExitMarkNode+1)
	must.False(t, ok)
	_, ok = parseTracked(message(t), ctDNAT, 0)
	must.False(t, ok)
}

// What the kernel says is read without a panic, whatever it is.
func FuzzParseTracked(f *testing.F) {
	f.Add(message(f))
	f.Add([]byte{2, 0, 0, 0, 8, 0, 1, 0x80, 4, 0, 1, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) { parseTracked(b, ctSNAT, 0) })
}
