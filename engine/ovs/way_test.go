// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/ovs/ovstest"
	"github.com/sif-project/sif/internal/wellknown"
)

// Two groups: a is of the first, b of the second, which two ports lead to.
const (
	groupA, groupB   = 1, 2
	numberA, numberB = 0x1f, 0x38
	bucketAB         = numberA ^ numberB
	pathWish         = 7
)

// forked is a fixture in which b is behind two ports. Its kernels take no part.
type forked struct {
	*fixture
	wires map[string]*wire // by host; "b2" is b behind its second port
}

func newForked(t *testing.T) *forked {
	f := &forked{fixture: newFixture(t)}
	ns := ovstest.Namespace(t, "c")
	port := ovs.Port{MAC: ovs.MAC{2, 0, 0, 0, 0, 3}, Peer: ovs.MAC{2, 0, 0, 0, 1, 3}, Routers: true}
	ovstest.Run(t, "ip", "-n", f.instance.Namespace, "link", "add", "p3", "type", "veth", "peer", "name", "eth0", "address", port.Peer.String(), "netns", ns)
	ovstest.Run(t, "ip", "-n", f.instance.Namespace, "link", "set", "p3", "up")
	ovstest.Run(t, "ip", "-n", ns, "link", "set", "eth0", "up")
	var err error
	port.No, err = f.sw.AddPort(t.Context(), "p3")
	must.NoError(t, err)
	f.state.Ports = append(f.state.Ports, port)
	a, b := &f.state.Endpoints[0], &f.state.Endpoints[1]
	a.Group, a.Number = groupA, numberA
	b.Group, b.Number, b.OutPort, b.SourcePorts = groupB, numberB, 0, []uint32{f.state.Ports[1].No, port.No}
	f.state.Entries = []ovs.Entry{
		{ID: 1, Src: classA, Dst: classB, Protocol: 6, Ports: []ovs.PortRange{{First: 80, Last: 80}}},
		{ID: 2, Src: classA, Dst: classB, Class: pathWish, Protocol: 17, Ports: []ovs.PortRange{{First: 53, Last: 53}}},
	}
	for _, host := range []string{f.a, f.b} {
		ovstest.Run(t, "ip", "-n", host, "addr", "flush", "dev", "eth0")
	}
	f.wires = map[string]*wire{
		"a": newWire(f.fixture, f.a, f.state.Ports[0]), "b": newWire(f.fixture, f.b, f.state.Ports[1]), "b2": newWire(f.fixture, ns, port),
	}
	return f
}

// leads returns ways to b by its first or second port.
func (f *forked) leads(from, class uint16, bucket ovs.Bucket, port int) ovs.Way {
	return ovs.Way{Course: ovs.Course{From: from, To: groupB, Class: class, Bucket: bucket}, Port: f.state.Ports[port].No}
}

func (f *forked) set(ways []ovs.Way, moved ...ovs.Course) {
	f.t.Helper()
	f.state.Ways, f.state.Moved = ways, moved
	must.NoError(f.t, f.p.Set(f.t.Context(), f.state))
}

// arrives sends a packet from a host, and returns the host that gets it, or "".
func (f *forked) arrives(from string, packet []byte, want string) string {
	f.t.Helper()
	f.wires[from].send(packet)
	if want != "" {
		if f.wires[want].got(packet, 5*time.Second) {
			return want
		}
	}
	for host, w := range f.wires {
		if host != from && host != want && w.got(packet, 150*time.Millisecond) {
			return host
		}
	}
	return ""
}

// segment is one of TCP, of a's port to b's port 80 or the other way round.
func segment(fromA bool, port, service uint16, flags byte, payload int) []byte {
	return segmentOf(fromA, port, service, flags, 0, payload)
}

// segmentOf is a segment after others of both ends, of so many bytes.
func segmentOf(fromA bool, port, service uint16, flags byte, passed uint32, payload int) []byte {
	src, dst, sport, dport, seq, acked := odd4[0], odd4[1], port, service, uint32(101), uint32(901)
	if !fromA {
		src, dst, sport, dport, seq, acked = dst, src, service, port, acked, seq
	}
	seq, acked = seq+passed, acked+passed
	if flags&syn != 0 {
		seq--
	}
	if flags&ack == 0 {
		acked = 0
	}
	return packet4(src, dst, 6, nil, tcpOf(src, dst, sport, dport, flags, seq, acked, payload), fragmentOf{})
}

func udpPacket(src, dst netip.Addr, from, to uint16) []byte {
	if src.Is6() {
		return packet6(src, dst, 17, udpOf(src, dst, from, to, 20))
	}
	return packet4(src, dst, 17, nil, udpOf(src, dst, from, to, 20), fragmentOf{})
}

// Packets that the policy lets pass leave by the way of their groups, class and bucket.
func TestWays(t *testing.T) {
	f := newForked(t)
	ctx := t.Context()
	const all, own = ovs.AllBuckets, ovs.Bucket(bucketAB)
	port := uint16(5000)
	for _, tc := range []struct {
		name     string
		ways     []ovs.Way
		tcp, udp string // where they arrive; the second one's contract has a wish
	}{
		{"no ways", nil, "", ""},
		{"to all buckets", []ovs.Way{f.leads(groupA, 0, all, 1)}, "b", ""},
		{"of the class as well", []ovs.Way{f.leads(groupA, 0, all, 1), f.leads(groupA, pathWish, all, 2)}, "b", "b2"},
		{"of this bucket, which counts before all", []ovs.Way{f.leads(groupA, 0, all, 1), f.leads(groupA, 0, own, 2), f.leads(groupA, pathWish, own, 1)}, "b2", "b"},
		{"of another bucket", []ovs.Way{f.leads(groupA, 0, all, 2), f.leads(groupA, 0, own^1, 1), f.leads(groupA, 0, own^0x10, 1)}, "b2", ""},
		{"from another group", []ovs.Way{f.leads(3, 0, all, 1), f.leads(0, 0, all, 1)}, "", ""},
		{"of another class", []ovs.Way{f.leads(groupA, 1, all, 1)}, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before, err := f.p.Drops(ctx)
			must.NoError(t, err)
			f.set(tc.ways)
			port++
			must.Eq(t, tc.tcp, f.arrives("a", segment(true, port, 80, syn, 0), tc.tcp))
			must.Eq(t, tc.udp, f.arrives("a", udpPacket(odd4[0], odd4[1], port, 53), tc.udp))
			must.Eq(t, tc.udp, f.arrives("a", udpPacket(odd6[0], odd6[1], port, 53), tc.udp))
			if tc.tcp == "" || tc.udp == "" {
				f.dropped(ovs.DropNoWay, before[ovs.DropNoWay])
			}
			got, err := f.p.Dump(ctx)
			must.NoError(t, err)
			must.Eq(t, len(tc.ways), len(got.Ways))
			for _, way := range tc.ways {
				must.SliceContains(t, got.Ways, way)
			}
			must.Eq(t, f.state.Endpoints, got.Endpoints)
			must.Eq(t, f.state.Entries, got.Entries)
		})
	}
	t.Run("a running connection follows its way", func(t *testing.T) {
		f.set([]ovs.Way{f.leads(groupA, 0, all, 1)})
		must.Eq(t, "b", f.arrives("a", segment(true, 5100, 80, syn, 0), "b"))
		must.Eq(t, "a", f.arrives("b", segment(false, 5100, 80, syn|ack, 0), "a"))
		f.set([]ovs.Way{f.leads(groupA, 0, all, 1), f.leads(groupA, 0, own, 2)})
		must.Eq(t, "b2", f.arrives("a", segment(true, 5100, 80, ack, 10), "b2"))
		// Answers may come by either port.
		must.Eq(t, "a", f.arrives("b2", segment(false, 5100, 80, ack, 11), "a"))
		must.Eq(t, "a", f.arrives("b", segment(false, 5100, 80, ack, 12), "a"))
	})
	t.Run("what routers report follows the way of no group", func(t *testing.T) {
		f.set([]ovs.Way{f.leads(groupA, 0, all, 1), f.leads(groupA, pathWish, all, 1), f.leads(0, 0, all, 2)})
		must.Eq(t, "b", f.arrives("a", udpPacket(odd4[0], odd4[1], 5200, 53), "b"))
		answer := udpPacket(odd4[1], odd4[0], 53, 5200)
		must.Eq(t, "a", f.arrives("b", answer, "a"))
		router := netip.MustParseAddr("192.0.2.7")
		must.Eq(t, "b2", f.arrives("a", packet4(router, odd4[1], 1, nil, icmpOf(router, odd4[1], 1, 3, 4, 1300, answer), fragmentOf{}), "b2"))
	})
	t.Run("probes follow the ways of class 0", func(t *testing.T) {
		probes := f.state
		probes.Endpoints = slices.Clone(f.state.Endpoints)
		for i := range probes.Endpoints {
			probes.Endpoints[i].Class = ovs.ProbeClass
		}
		probes.Ways = []ovs.Way{f.leads(groupA, 0, own, 2)}
		must.NoError(t, f.p.Set(ctx, probes))
		must.Eq(t, "b2", f.arrives("a", udpPacket(odd4[0], odd4[1], wellknown.ProbePort, wellknown.ProbePort), "b2"))
		must.Eq(t, "a", f.arrives("b", udpPacket(odd4[1], odd4[0], wellknown.ProbePort, wellknown.ProbePort), "a"))
	})
}

// After a move of their way, answers of TCP pass at a switch that has not seen the connection, and
// nothing else of a responder.
func TestPickUp(t *testing.T) {
	f := newForked(t)
	ways := []ovs.Way{f.leads(groupA, 0, ovs.AllBuckets, 1), f.leads(groupA, pathWish, ovs.AllBuckets, 1)}
	answers := func(class uint16, bucket ovs.Bucket) ovs.Course {
		return ovs.Course{From: groupB, To: groupA, Class: class, Bucket: bucket}
	}
	moved := answers(0, bucketAB)
	port := uint16(6000)
	for _, tc := range []struct {
		name   string
		moved  []ovs.Course
		packet func(port uint16) []byte
		passes bool
	}{
		{"an answer", []ovs.Course{moved}, func(p uint16) []byte { return segment(false, p, 80, ack|psh, 10) }, true},
		{"an answer, all buckets moved", []ovs.Course{answers(0, ovs.AllBuckets)}, func(p uint16) []byte { return segment(false, p, 80, ack|psh, 10) }, true},
		{"an acknowledgement", []ovs.Course{moved}, func(p uint16) []byte { return segment(false, p, 80, ack, 0) }, true},
		{"a SYN", []ovs.Course{moved}, func(p uint16) []byte { return segment(false, p, 80, syn, 0) }, false},
		{"a SYN that acknowledges", []ovs.Course{moved}, func(p uint16) []byte { return segment(false, p, 80, syn|ack, 0) }, false},
		{"from another port", []ovs.Course{moved}, func(p uint16) []byte { return segment(false, p, 81, ack, 10) }, false},
		{"to the port", []ovs.Course{moved}, func(p uint16) []byte { return segment(false, 80, p, ack, 10) }, false},
		{"a datagram", []ovs.Course{moved, answers(pathWish, bucketAB)}, func(p uint16) []byte { return udpPacket(odd4[1], odd4[0], 53, p) }, false},
		{"a datagram of IPv6", []ovs.Course{moved, answers(pathWish, bucketAB)}, func(p uint16) []byte { return udpPacket(odd6[1], odd6[0], 53, p) }, false},
		{"an echo reply", []ovs.Course{moved}, func(p uint16) []byte {
			return packet4(odd4[1], odd4[0], 1, nil, icmpOf(odd4[1], odd4[0], 1, 0, 0, uint32(p), nil), fragmentOf{})
		}, false},
		{"an error", []ovs.Course{moved}, func(p uint16) []byte {
			return packet4(odd4[1], odd4[0], 1, nil, icmpOf(odd4[1], odd4[0], 1, 3, 3, 0, segment(true, p, 80, ack, 20)), fragmentOf{})
		}, false},
		{"in a bucket that did not move", []ovs.Course{answers(0, bucketAB^1), answers(0, bucketAB^0x80)}, func(p uint16) []byte { return segment(false, p, 80, ack, 10) }, false},
		{"of a class that did not move", []ovs.Course{answers(pathWish, bucketAB)}, func(p uint16) []byte { return segment(false, p, 80, ack, 10) }, false},
		{"what moved goes the other way", []ovs.Course{{From: groupA, To: groupB, Bucket: ovs.AllBuckets}}, func(p uint16) []byte { return segment(false, p, 80, ack, 10) }, false},
		{"too late", nil, func(p uint16) []byte { return segment(false, p, 80, ack|psh, 10) }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			port++
			f.set(ways, tc.moved...)
			want := ""
			if tc.passes {
				want = "a"
			}
			packet := tc.packet(port)
			must.Eq(t, want, f.arrives("b", packet, want))
			// It has opened nothing.
			f.set(ways)
			must.Eq(t, "", f.arrives("b", packet, ""))
			got, err := f.p.Dump(t.Context())
			must.NoError(t, err)
			must.SliceEmpty(t, got.Moved)
		})
	}
	t.Run("the originator goes on", func(t *testing.T) {
		f.set(ways)
		answer := segment(false, 6100, 80, ack|psh, 10)
		must.Eq(t, "", f.arrives("b", answer, ""))
		must.Eq(t, "b", f.arrives("a", segment(true, 6100, 80, ack|psh, 10), "b"))
		must.Eq(t, "a", f.arrives("b", answer, "a"))
		must.Eq(t, "b", f.arrives("a", udpPacket(odd4[0], odd4[1], 6100, 53), "b"))
		must.Eq(t, "a", f.arrives("b", udpPacket(odd4[1], odd4[0], 53, 6100), "a"))
	})
	t.Run("an answer begins no connection of its own", func(t *testing.T) {
		f.set(ways, moved)
		must.Eq(t, "a", f.arrives("b", segment(false, 6101, 80, ack|psh, 10), "a"))
		must.Eq(t, "b", f.arrives("a", segment(true, 6101, 80, ack, 0), "b"))
		f.set(ways)
		must.Eq(t, "a", f.arrives("b", segment(false, 6101, 80, ack|psh, 11), "a"))
		must.Eq(t, "b", f.arrives("a", segment(true, 6101, 80, ack|psh, 12), "b"))
	})
}

// A connection that went on elsewhere comes back with other sequence numbers.
func TestConnectionComesBack(t *testing.T) {
	f := newForked(t)
	f.set([]ovs.Way{f.leads(groupA, 0, ovs.AllBuckets, 1)})
	open := func(port uint16) {
		t.Helper()
		must.Eq(t, "b", f.arrives("a", segment(true, port, 80, syn, 0), "b"))
		must.Eq(t, "a", f.arrives("b", segment(false, port, 80, syn|ack, 0), "a"))
		must.Eq(t, "b", f.arrives("a", segment(true, port, 80, ack, 0), "b"))
		must.Eq(t, "a", f.arrives("b", segment(false, port, 80, ack|psh, 10), "a"))
	}
	must.NoError(t, f.sw.IgnoreWindows(t.Context()))
	open(7000)
	const passed = 1 << 30
	must.Eq(t, "a", f.arrives("b", segmentOf(false, 7000, 80, ack|psh, passed, 20), "a"))
	must.Eq(t, "b", f.arrives("a", segmentOf(true, 7000, 80, ack|psh, passed, 20), "b"))
	open(7001)
	must.Eq(t, "b", f.arrives("a", segmentOf(true, 7001, 80, ack|psh, passed, 20), "b"))
	must.Eq(t, "a", f.arrives("b", segmentOf(false, 7001, 80, ack|psh, passed, 20), "a"))

	// A switch that was started again is told so again.
	changes, err := f.sw.Repair(t.Context(), nil)
	must.NoError(t, err)
	must.SliceEmpty(t, changes)
	if f.instance.Config.Datapath == "netdev" {
		f.instance.RestartSwitch()
		changes, err = f.sw.Repair(t.Context(), nil)
		must.NoError(t, err)
		must.SliceContains(t, changes, "whether windows of TCP are ignored")
	}
}

// A connection of two kernels outlives a switch that forgets it, although only the responder sends,
// and goes on to do so when the moment has passed.
func TestConnectionIsPickedUp(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	a, b := &f.state.Endpoints[0], &f.state.Endpoints[1]
	a.Group, a.Number, b.Group, b.Number = groupA, numberA, groupB, numberB
	for _, host := range []string{"10.0.0.2:8080", "[fd00::2]:8080"} {
		must.NoError(t, f.p.Set(ctx, f.state))
		l := listen(t, f.b, host)
		client, err := dial(t, f.a, host, 0, 5*time.Second)
		must.NoError(t, err)
		server, err := l.Accept()
		must.NoError(t, err)
		t.Cleanup(func() { _ = server.Close() })
		exchange := func(from, to net.Conn, n int) {
			t.Helper()
			failed := make(chan error, 1)
			go func() { _, err := from.Write(make([]byte, n)); failed <- err }()
			must.NoError(t, to.SetReadDeadline(time.Now().Add(30*time.Second)))
			_, err := io.ReadFull(to, make([]byte, n))
			must.NoError(t, err)
			must.NoError(t, <-failed)
		}
		exchange(client, server, 1<<20)
		exchange(server, client, 1<<20)

		moved := f.state
		moved.Moved = []ovs.Course{{From: groupB, To: groupA, Bucket: bucketAB}}
		must.NoError(t, f.p.Set(ctx, moved))
		out := ovstest.Run(t, "ovs-appctl", "-t", f.instance.Config.Control, "dpctl/flush-conntrack")
		must.Eq(t, "", out)
		exchange(server, client, 4<<20)
		exchange(client, server, 4<<20)
		must.NoError(t, f.p.Set(ctx, f.state))
		exchange(server, client, 1<<20)
		exchange(client, server, 1<<20)
	}
}

// Ways and moves that others changed are said in words and repaired.
func TestWaysAreRepaired(t *testing.T) {
	f := newForked(t)
	ctx := t.Context()
	f.set([]ovs.Way{f.leads(groupA, 0, ovs.AllBuckets, 1), f.leads(groupA, pathWish, 0x27, 2)}, ovs.Course{From: groupB, To: groupA, Class: pathWish, Bucket: 0x27})
	first, second := f.state.Ports[1].No, f.state.Ports[2].No
	for _, tc := range []struct {
		command, flow string
		want          []string
	}{
		{"del-flows", "table=11,reg3=1,reg4=2,reg9=7", []string{
			fmt.Sprintf("missing flow: table way, priority 200: packets from group-1 to group-2 whose contract's path is path-7 in bucket 39: output port is port-%d, go to table output", second)}},
		{"del-flows", "table=7,reg3=2", []string{
			"missing flow: table moved, priority 200: packets from group-2 to group-1 whose contract's path is path-7 in bucket 39: go to table way"}},
		{"add-flow", fmt.Sprintf("table=11,priority=100,cookie=0x08000100020000ff,reg3=1,reg4=2,reg9=0,actions=set_field:%d->reg2,goto_table:12", second), []string{
			fmt.Sprintf("altered flow: table way, priority 100: packets from group-1 to group-2: output port is port-%d, go to table output; expected: output port is port-%d, go to table output", second, first)}},
		{"add-flow", "table=7,priority=300,cookie=0x0900020001000000,reg3=2,actions=goto_table:11", []string{
			"foreign flow: table moved, priority 300: packets from group-2: go to table way; its cookie is 0x900020001000000"}},
		{"add-flow", "table=3,priority=300,actions=set_field:0->reg8,goto_table:4", []string{
			"foreign flow: table bucket-high, priority 300: every packet: bucket begins with 0, go to table track; its cookie is 0x0"}},
	} {
		f.instance.Ofctl(tc.command, tc.flow)
		diff, err := f.p.Reconcile(ctx, f.state)
		must.NoError(t, err)
		must.Eq(t, tc.want, diff.Describe(testNames{}))
		got, diff, err := f.p.Inspect(ctx)
		must.NoError(t, err)
		must.True(t, diff.Empty(), must.Sprintf("%v", diff))
		must.Eq(t, f.state.Ways, got.Ways)
		must.Eq(t, f.state.Moved, got.Moved)
	}
}
