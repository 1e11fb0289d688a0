// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// TestTrainsOfDatagramsCrossClouds sends UDP datagrams that the kernel carries as one packet
// (segmentation offload), as QUIC does and as links make of datagrams that arrive together. Each
// datagram arrives, and so does its answer.
func TestTrainsOfDatagramsCrossClouds(t *testing.T) {
	world.withTestPorts(t)
	from, to := world.workload(t, "getaway-app/getaway-svc", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1")
	at := netip.AddrPortFrom(to.v4, newsPort)
	echo(t, to, at)
	const size, count = 200, 30
	conn, err := within(from.netns, func() (net.Conn, error) { return net.Dial("udp", at.String()) })
	must.NoError(t, err)
	defer conn.Close()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	must.NoError(t, err)
	must.NoError(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size)
	}))
	must.NoError(t, err)
	for train := range 10 {
		_, err = conn.Write(make([]byte, size*count))
		must.NoError(t, err)
		must.NoError(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
		for i := range count {
			n, err := conn.Read(make([]byte, 2*size))
			must.NoError(t, err, must.Sprintf("datagram %d of train %d", i+1, train+1))
			must.Eq(t, size, n)
		}
	}
}
