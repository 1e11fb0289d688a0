// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package query

import (
	"net/netip"
	"slices"

	"github.com/sif-project/sif/fabric"
)

// barred reports whether none of the externals may have an address.
func barred(known fabric.Outside, addr netip.Addr, externals []fabric.Peer) bool {
	return !slices.ContainsFunc(externals, func(x fabric.Peer) bool {
		return !slices.ContainsFunc(append(embedded(addr), addr), func(form netip.Addr) bool {
			_, reserved := known.ReservedBy(x, netip.PrefixFrom(form, form.BitLen()))
			return reserved
		})
	})
}

// Prefixes of IPv6 addresses that gateways translate or encapsulate, and where the IPv4 address
// begins in them.
var embeddings = []struct {
	prefix netip.Prefix
	at     int
	mask   byte // each byte of the address is xored with it
}{
	{netip.MustParsePrefix("::/96"), 12, 0},          // IPv4-compatible (RFC 4291)
	{netip.MustParsePrefix("::ffff:0:0/96"), 12, 0},  // IPv4-mapped (RFC 4291)
	{netip.MustParsePrefix("64:ff9b::/96"), 12, 0},   // NAT64 (RFC 6052)
	{netip.MustParsePrefix("64:ff9b:1::/48"), 12, 0}, // NAT64 of a site (RFC 8215), in its usual length
	{netip.MustParsePrefix("2002::/16"), 2, 0},       // 6to4 (RFC 3056)
	{netip.MustParsePrefix("2001::/32"), 4, 0},       // Teredo: the server (RFC 4380)
	{netip.MustParsePrefix("2001::/32"), 12, 0xff},   // Teredo: the client
}

// embedded returns the IPv4 addresses to which a gateway may pass on packets to an IPv6 address.
func embedded(addr netip.Addr) (list []netip.Addr) {
	if !addr.Is6() {
		return nil
	}
	raw := addr.As16()
	add := func(at int, mask byte) {
		list = append(list, netip.AddrFrom4([4]byte{raw[at] ^ mask, raw[at+1] ^ mask, raw[at+2] ^ mask, raw[at+3] ^ mask}))
	}
	for _, e := range embeddings {
		if e.prefix.Contains(addr) {
			add(e.at, e.mask)
		}
	}
	if raw[8]&^3 == 0 && raw[9] == 0 && raw[10] == 0x5e && raw[11] == 0xfe { // ISATAP (RFC 5214)
		add(12, 0)
	}
	return list
}
