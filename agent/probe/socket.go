// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package probe

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"

	"github.com/sif-project/sif/fabric"
)

// States of a socket in /proc/net (include/net/tcp_states.h). The state of a UDP socket without a
// peer is "closed".
const (
	stateListen = "0A"
	stateClosed = "07"
)

// listens reports whether a table of /proc/net has a socket that receives packets to at.
func listens(table string, at netip.AddrPort, protocol fabric.Protocol) bool {
	want := stateListen
	if protocol == fabric.UDP {
		want = stateClosed
	}
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[3] != want {
			continue
		}
		local, ok := parseLocal(fields[1])
		if !ok || local.Port() != at.Port() {
			continue
		}
		address := local.Addr()
		// A socket on all IPv6 addresses also receives IPv4.
		everywhere := address.IsUnspecified() && (address.Is6() || at.Addr().Is4())
		if everywhere || address.Unmap() == at.Addr() {
			return true
		}
	}
	return false
}

// parseLocal parses a local address such as "0100007F:1F90": 32-bit words in the machine's byte
// order and a port.
func parseLocal(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	if !ok || err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	addr, ok := netip.AddrFromSlice(b)
	n, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(addr, uint16(n)), ok && err == nil
}
