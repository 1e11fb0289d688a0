// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs_test

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/ovs/ovstest"
	"github.com/sif-project/sif/internal/wellknown"
)

// Probes pass among the addresses of their class, both ways, without an entry and untracked.
// Nothing else passes to or from these addresses, and no address counts at another port.
func TestProbes(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	for i := range f.state.Endpoints {
		f.state.Endpoints[i].Class = ovs.ProbeClass
	}
	f.state.Endpoints = append(f.state.Endpoints, ovs.Endpoint{
		ID: 3, Class: classB, OutPort: f.state.Endpoints[1].OutPort, SourcePorts: f.state.Endpoints[1].SourcePorts,
		Prefixes: prefixes("10.0.0.3/32"),
	})
	ovstest.Run(t, "ip", "-n", f.b, "addr", "add", "10.0.0.3/32", "dev", "eth0")
	must.NoError(t, f.p.Set(ctx, f.state))
	got, err := f.p.Dump(ctx)
	must.NoError(t, err)
	must.Eq(t, f.state, got)

	bind := func(ns, addr string, port int) *net.UDPConn {
		var c *net.UDPConn
		ovstest.In(t, ns, func() {
			var err error
			c, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(addr), Port: port})
			must.NoError(t, err)
		})
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	passes := func(from, to *net.UDPConn) bool {
		target := to.LocalAddr().(*net.UDPAddr).AddrPort()
		_, err := from.WriteToUDPAddrPort([]byte("probe"), target)
		must.NoError(t, err)
		must.NoError(t, to.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
		b := make([]byte, 10)
		n, source, err := to.ReadFromUDPAddrPort(b)
		if err != nil {
			return false
		}
		must.Eq(t, "probe", string(b[:n]))
		return netip.AddrPortFrom(source.Addr().Unmap(), source.Port()) == from.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	const port = wellknown.ProbePort
	a4, b4, a6, b6 := bind(f.a, "10.0.0.1", port), bind(f.b, "10.0.0.2", port), bind(f.a, "fd00::1", port), bind(f.b, "fd00::2", port)
	must.True(t, passes(a4, b4))
	must.True(t, passes(b4, a4))
	must.True(t, passes(a6, b6))
	must.True(t, passes(b6, a6))

	other, endpoint := bind(f.a, "10.0.0.1", port+1), bind(f.b, "10.0.0.3", port)
	before, err := f.p.Drops(ctx)
	must.NoError(t, err)
	must.False(t, passes(other, b4)) // from another port
	must.False(t, passes(b4, other)) // to another port
	must.False(t, passes(a4, endpoint))
	must.False(t, passes(endpoint, a4))
	go echo(listen(t, f.b, "10.0.0.2:8442"))
	_, err = dial(t, f.a, "10.0.0.2:8442", 0, 500*time.Millisecond)
	must.Error(t, err) // it is no UDP
	f.dropped(ovs.DropNoContract, before[ovs.DropNoContract]+4)

	ovstest.Run(t, "ip", "-n", f.b, "addr", "add", "10.0.0.9/32", "dev", "eth0")
	must.False(t, passes(bind(f.b, "10.0.0.9", port), a4))
	ovstest.Run(t, "ip", "-n", f.b, "addr", "add", "10.0.0.1/32", "dev", "eth0")
	must.False(t, passes(bind(f.b, "10.0.0.1", port), bind(f.a, "10.0.0.1", port+2)))
	f.dropped(ovs.DropUnknownSource, before[ovs.DropUnknownSource])
}
