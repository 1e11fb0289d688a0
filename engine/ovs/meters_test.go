// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs_test

import (
	"context"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/engine/ovs"
)

// flooded is a fixture in which two endpoints behind port a, and one behind another one, may open
// flows of UDP to b.
type flooded struct {
	*fixture
	from, to *wire
}

var flooder, neighbour = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.3")

func newFlooded(t *testing.T, rates ovs.Rates) *flooded {
	f := newFixture(t)
	other := f.state.Endpoints[0]
	other.ID, other.Prefixes = 3, prefixes("10.0.0.3/32", "fd00::3/128")
	f.state.Endpoints = append(f.state.Endpoints, other)
	for i := range f.state.Endpoints {
		e := &f.state.Endpoints[i]
		e.Limited, e.Group = i != 1, groupA
	}
	f.state.Endpoints[1].Group = 0
	f.state.Gates, f.state.Rates = []ovs.Gate{{Group: 0, Zone: 1}, {Group: groupA, Zone: 2}}, rates
	f.setEntries(ovs.Entry{ID: entryAB, Src: classA, Dst: classB, Protocol: 17, Ports: []ovs.PortRange{{First: 9000, Last: 9000}}})
	return &flooded{fixture: f, from: newWire(f, f.a, f.state.Ports[0]), to: newWire(f, f.b, f.state.Ports[1])}
}

// opens sends the first packets of n flows, and returns from which ports some came through.
func (f *flooded) opens(src netip.Addr, first uint16, n int) map[uint16]bool {
	for i := range n {
		f.from.send(packet4(src, odd4[1], 17, nil, udpOf(src, odd4[1], first+uint16(i), 9000, 8), fragmentOf{}))
		if i%50 == 49 {
			time.Sleep(5 * time.Millisecond) // the veth's queue is not the limit
		}
	}
	return f.arrivals(src)
}

// arrivals returns the source ports of datagrams until none comes for a while.
func (f *flooded) arrivals(src netip.Addr) map[uint16]bool {
	ports := map[uint16]bool{}
	b := make([]byte, 1<<16)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(f.to.fd), Events: unix.POLLIN}}, 500)
		if err == unix.EINTR {
			continue
		}
		must.NoError(f.t, err)
		if n == 0 {
			return ports
		}
		n, from, err := unix.Recvfrom(f.to.fd, b, 0)
		must.NoError(f.t, err)
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING || n < 42 || b[12] != 8 || b[13] != 0 || b[23] != 17 {
			continue
		}
		if netip.AddrFrom4([4]byte(b[26:30])) == src {
			ports[binary.BigEndian.Uint16(b[34:])] = true
		}
	}
}

// An endpoint that opens flows too fast is slowed down, and nothing else is: neither its flows that
// exist, nor what others open. A zone is slowed down likewise.
func TestFloods(t *testing.T) {
	ctx := context.Background()
	f := newFlooded(t, ovs.Rates{Endpoint: ovs.Rate{PerSecond: 1, Burst: 20}, Zone: ovs.Rate{PerSecond: 1, Burst: 100}})
	began := time.Now()
	allowed := func(burst, n int) {
		t.Helper()
		// The kernel's datapath allows what comes in a second in addition.
		must.Between(t, burst/2, n, burst+2+int(time.Since(began).Seconds()))
	}
	first := f.opens(flooder, 10000, 300)
	allowed(20, len(first))
	f.dropped(ovs.DropTooFast, 200)

	t.Run("a flow that exists passes", func(t *testing.T) {
		port := uint16(0)
		for port = range first {
			break
		}
		before := len(f.opens(neighbour, 20000, 1))
		must.Eq(t, 1, before)
		for i := range 100 {
			p := packet4(flooder, odd4[1], 17, nil, udpOf(flooder, odd4[1], port, 9000, 8+i), fragmentOf{})
			f.from.send(p)
			must.True(t, f.to.got(p, 10*time.Second))
		}
	})
	t.Run("another endpoint opens flows", func(t *testing.T) {
		must.MapLen(t, 15, f.opens(neighbour, 21000, 15))
	})
	t.Run("the zone has a limit of its own", func(t *testing.T) {
		f.state.Rates = ovs.Rates{Zone: ovs.Rate{PerSecond: 1, Burst: 60}}
		must.NoError(t, f.p.Set(ctx, f.state))
		began = time.Now()
		n := len(f.opens(flooder, 30000, 100)) + len(f.opens(neighbour, 30000, 100))
		allowed(60, n)
	})
	t.Run("without limits", func(t *testing.T) {
		f.state.Rates = ovs.Rates{}
		must.NoError(t, f.p.Set(ctx, f.state))
		must.MapLen(t, 150, f.opens(flooder, 40000, 150))
		must.StrNotContains(t, f.instance.Ofctl("dump-meters"), "meter=")
	})
}

// Meters that others changed are said in words and repaired, with the flows that went with them.
func TestMetersAreRepaired(t *testing.T) {
	ctx := context.Background()
	f := newFlooded(t, ovs.Rates{Endpoint: ovs.Rate{PerSecond: 10, Burst: 20}, Zone: ovs.Rate{PerSecond: 30, Burst: 40}})
	diff, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	must.True(t, diff.Empty(), must.Sprint(diff.Describe(testNames{})))
	for _, tc := range []struct {
		command, meter string
		want           []string
	}{
		{"del-meter", "meter=1", []string{
			"missing flow: table zone-limit, priority 100: packets from no group that open a connection: drop as too fast beyond the rate of meter 1, go to table commit",
			"missing meter 1: 30 packets a second, 40 at once"}},
		{"mod-meter", "meter=2,pktps,burst,stats,band=type=drop,rate=1,burst_size=1", []string{
			"altered meter 2: 1 packets a second, 1 at once; expected: meter 2: 30 packets a second, 40 at once"}},
		{"mod-meter", "meter=2,kbps,band=type=drop,rate=1", []string{
			"altered meter 2: it has other flags or bands, expected meter 2: 30 packets a second, 40 at once"}},
		{"add-meter", "meter=9,pktps,burst,stats,band=type=drop,rate=1,burst_size=1", []string{"foreign meter 9: 1 packets a second, 1 at once"}},
	} {
		t.Run(tc.command+" "+tc.meter, func(t *testing.T) {
			f.instance.Ofctl(tc.command, tc.meter)
			_, diff, err := f.p.Inspect(ctx)
			must.NoError(t, err)
			must.SliceContainsAll(t, tc.want, diff.Describe(testNames{}))
			diff, err = f.p.Reconcile(ctx, f.state)
			must.NoError(t, err)
			must.Eq(t, tc.want, diff.Describe(testNames{}))
			got, diff, err := f.p.Inspect(ctx)
			must.NoError(t, err)
			must.True(t, diff.Empty(), must.Sprint(diff.Describe(testNames{})))
			must.Eq(t, f.state.Gates, got.Gates)
			for i, e := range got.Endpoints {
				must.Eq(t, f.state.Endpoints[i].Limited, e.Limited)
			}
		})
	}
	t.Run("restart of the switch", func(t *testing.T) {
		f.instance.RestartSwitch()
		f.connect()
		must.NoError(t, f.p.Set(ctx, f.state))
		diff, err := f.p.Reconcile(ctx, f.state)
		must.NoError(t, err)
		must.True(t, diff.Empty(), must.Sprint(diff.Describe(testNames{})))
	})
	t.Run("an endpoint goes", func(t *testing.T) {
		f.state.Endpoints = f.state.Endpoints[:2]
		must.NoError(t, f.p.Set(ctx, f.state))
		diff, err := f.p.Reconcile(ctx, f.state)
		must.NoError(t, err)
		must.True(t, diff.Empty(), must.Sprint(diff.Describe(testNames{})))
	})
}

// A meter that the switch refuses is named, and everything else is in force.
func TestRefusedMeter(t *testing.T) {
	ctx := context.Background()
	f := newFlooded(t, ovs.Rates{})
	f.state.Rates.Zone = ovs.Rate{PerSecond: 0, Burst: 1} // no packet ever
	f.state.Endpoints = f.state.Endpoints[:2]
	err := f.p.Set(ctx, f.state)
	must.ErrorContains(t, err, "left out: limit of new connections: meter")
	diff, err := f.p.Reconcile(ctx, f.state)
	must.Error(t, err)
	must.SliceLen(t, 0, diff.Removed)
	must.MapLen(t, 10, f.opens(flooder, 10000, 10))
}
