// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs_test

import (
	"encoding/binary"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/engine/ovs/ovstest"
)

// sendTooBig sends, from router in namespace ns, "fragmentation needed" to 10.0.0.1 about a TCP
// packet from its given port to 10.0.0.2:8080.
func sendTooBig(t testing.TB, ns string, router netip.Addr, port uint16) {
	t.Helper()
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, port)
	binary.BigEndian.PutUint16(tcp[2:], 8080)
	tcp[12] = 5 << 4
	quoted := append(ipv4Header(a, b, syscall.IPPROTO_TCP, 1480), tcp...)
	icmp := append([]byte{3, 4, 0, 0, 0, 0, 1400 >> 8, 1400 & 0xff}, quoted...)
	binary.BigEndian.PutUint16(icmp[2:], checksum(icmp))
	packet := append(ipv4Header(router, a, syscall.IPPROTO_ICMP, len(icmp)), icmp...)
	ovstest.In(t, ns, func() {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_RAW)
		must.NoError(t, err)
		defer syscall.Close(fd)
		must.NoError(t, syscall.Sendto(fd, packet, 0, &syscall.SockaddrInet4{Addr: a.As4()}))
	})
	time.Sleep(100 * time.Millisecond)
}

func ipv4Header(src, dst netip.Addr, proto byte, payload int) []byte {
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, proto
	h[6] = 0x40 // do not fragment
	binary.BigEndian.PutUint16(h[2:], uint16(20+payload))
	copy(h[12:], src.AsSlice())
	copy(h[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return h
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

var icmpLine = regexp.MustCompile(`(?m)^Icmp: (\d+) `)

// icmpIn counts the ICMP messages that reached a namespace's kernel.
func icmpIn(t testing.TB, ns string) uint64 {
	t.Helper()
	out, err := exec.Command("nsenter", "--net=/var/run/netns/"+ns, "cat", "/proc/net/snmp").Output()
	must.NoError(t, err)
	m := icmpLine.FindSubmatch(out)
	must.NotNil(t, m)
	n, err := strconv.ParseUint(string(m[1]), 10, 64)
	must.NoError(t, err)
	return n
}
