// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	of "github.com/sif-project/sif/engine/openflow"
	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/ovs/ovstest"
)

const (
	classA, classB, classC = 11, 12, 13
	entryAB, entryAB2      = 1, 2
)

// fixture is two hosts, a and b, on two ports of a switch.
type fixture struct {
	t        testing.TB
	instance *ovstest.Instance
	sw       *ovs.Switch
	conn     *of.Conn
	p        *ovs.Pipeline
	a, b     string // namespaces
	state    ovs.State
}

func newFixture(t testing.TB) *fixture {
	ctx := context.Background()
	f := &fixture{t: t, instance: ovstest.Start(t)}
	f.sw = ovs.NewSwitch(f.instance.Config)
	must.NoError(t, f.sw.Create(ctx))
	f.a, f.b = ovstest.Namespace(t, "a"), ovstest.Namespace(t, "b")
	for i, ns := range []string{f.a, f.b} {
		n := i + 1
		outer := fmt.Sprintf("p%d", n)
		mac, peer := ovs.MAC{2, 0, 0, 0, 0, byte(n)}, ovs.MAC{2, 0, 0, 0, 1, byte(n)}
		run := func(args ...string) { ovstest.Run(t, "ip", append([]string{"-n", ns}, args...)...) }
		ovstest.Run(t, "ip", "-n", f.instance.Namespace, "link", "add", outer, "type", "veth",
			"peer", "name", "eth0", "address", peer.String(), "netns", ns)
		ovstest.Run(t, "ip", "-n", f.instance.Namespace, "link", "set", outer, "up")
		run("addr", "add", fmt.Sprintf("10.0.0.%d/32", n), "dev", "eth0")
		run("addr", "add", fmt.Sprintf("fd00::%d/128", n), "dev", "eth0", "nodad")
		run("link", "set", "eth0", "up")
		run("neigh", "add", "169.254.1.1", "lladdr", mac.String(), "dev", "eth0", "nud", "permanent")
		run("neigh", "add", "fe80::1", "lladdr", mac.String(), "dev", "eth0", "nud", "permanent")
		run("route", "add", "default", "via", "169.254.1.1", "dev", "eth0", "onlink")
		run("-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
		no, err := f.sw.AddPort(ctx, outer)
		must.NoError(t, err)
		f.state.Ports = append(f.state.Ports, ovs.Port{No: no, MAC: mac, Peer: peer, Routers: true})
		f.state.Endpoints = append(f.state.Endpoints, ovs.Endpoint{
			ID: uint64(n), Class: uint32(classA + i), OutPort: no, SourcePorts: []uint32{no},
			Prefixes: prefixes(fmt.Sprintf("10.0.0.%d/32", n), fmt.Sprintf("fd00::%d/128", n)),
		})
	}
	f.state.Entries = []ovs.Entry{{ID: entryAB, Src: classA, Dst: classB, Protocol: 6, Ports: []ovs.PortRange{{First: 8080, Last: 8080}}}}
	f.p = ovs.NewPipeline(7, f.sw.Revalidated)
	f.connect()
	return f
}

func (f *fixture) connect() {
	conn, err := f.sw.Dial(context.Background())
	must.NoError(f.t, err)
	f.t.Cleanup(func() { _ = conn.Close() })
	f.conn = conn
	f.p.UseConn(conn)
}

// setEntries sets the state with other entries.
func (f *fixture) setEntries(entries ...ovs.Entry) {
	f.t.Helper()
	f.state.Entries = entries
	must.NoError(f.t, f.p.Set(context.Background(), f.state))
}

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

func listen(t testing.TB, ns, address string) net.Listener {
	t.Helper()
	var l net.Listener
	ovstest.In(t, ns, func() {
		var err error
		l, err = net.Listen("tcp", address)
		must.NoError(t, err)
	})
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// echo answers everything it is sent.
func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}()
	}
}

// dial connects from a namespace, from the given local port unless it is 0.
func dial(t testing.TB, ns, address string, port int, wait time.Duration) (net.Conn, error) {
	t.Helper()
	var c net.Conn
	var err error
	ovstest.In(t, ns, func() {
		d := net.Dialer{Timeout: wait}
		if port != 0 {
			d.LocalAddr = &net.TCPAddr{Port: port}
		}
		// One address, one attempt: no helper thread leaves the namespace.
		c, err = d.Dial("tcp", address)
	})
	if err == nil {
		t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

func answers(c net.Conn, wait time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

// dropped waits until more than that many packets were dropped for a reason: counters lag.
func (f *fixture) dropped(reason string, more uint64) {
	f.t.Helper()
	var n uint64
	for range 60 {
		drops, err := f.p.Drops(context.Background())
		must.NoError(f.t, err)
		if n = drops[reason]; n > more {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	f.t.Fatalf("%d packets dropped as %q, want more than %d", n, reason, more)
}

func TestPipeline(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	diff, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	must.SliceEmpty(t, diff.Changed)
	must.SliceEmpty(t, diff.Removed)

	t.Run("what is read back is what was written", func(t *testing.T) {
		diff, err := f.p.Reconcile(ctx, f.state)
		must.NoError(t, err)
		must.True(t, diff.Empty(), must.Sprintf("%v", diff))
		got, err := f.p.Dump(ctx)
		must.NoError(t, err)
		must.Eq(t, f.state, got)
	})

	go echo(listen(t, f.b, "10.0.0.2:8080"))
	go echo(listen(t, f.b, "[fd00::2]:8080"))
	go echo(listen(t, f.b, "10.0.0.2:8081"))

	for _, address := range []string{"10.0.0.2:8080", "[fd00::2]:8080"} {
		t.Run("entry passes "+address, func(t *testing.T) {
			c, err := dial(t, f.a, address, 0, 3*time.Second)
			must.NoError(t, err)
			must.NoError(t, answers(c, 3*time.Second))
		})
	}
	t.Run("another port is dropped and counted", func(t *testing.T) {
		before, err := f.p.Drops(ctx)
		must.NoError(t, err)
		_, err = dial(t, f.a, "10.0.0.2:8081", 0, 500*time.Millisecond)
		must.Error(t, err)
		f.dropped(ovs.DropNoContract, before[ovs.DropNoContract])
	})
	t.Run("the responder cannot open", func(t *testing.T) {
		go echo(listen(t, f.a, "10.0.0.1:8080"))
		_, err := dial(t, f.b, "10.0.0.1:8080", 0, 500*time.Millisecond)
		must.Error(t, err)
	})
	t.Run("unknown source and destination are dropped and counted", func(t *testing.T) {
		ovstest.Run(t, "ip", "-n", f.a, "addr", "add", "10.0.0.99/32", "dev", "eth0")
		ovstest.In(t, f.a, func() {
			d := net.Dialer{Timeout: 300 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: net.ParseIP("10.0.0.99")}}
			_, err := d.Dial("tcp", "10.0.0.2:8080")
			must.Error(t, err)
		})
		_, err := dial(t, f.a, "10.0.0.98:8080", 0, 300*time.Millisecond)
		must.Error(t, err)
		f.dropped(ovs.DropUnknownSource, 0)
		f.dropped(ovs.DropUnknownDestination, 0)
	})
	t.Run("an address counts only at its port", func(t *testing.T) {
		// b uses a's address, whose class may open connections to b's class.
		ovstest.Run(t, "ip", "-n", f.b, "addr", "add", "10.0.0.1/32", "dev", "eth0")
		defer ovstest.Run(t, "ip", "-n", f.b, "addr", "del", "10.0.0.1/32", "dev", "eth0")
		before, err := f.p.Drops(ctx)
		must.NoError(t, err)
		ovstest.In(t, f.b, func() {
			d := net.Dialer{Timeout: 300 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: net.ParseIP("10.0.0.1")}}
			_, err := d.Dial("tcp", "10.0.0.77:8080")
			must.Error(t, err)
		})
		f.dropped(ovs.DropUnknownSource, before[ovs.DropUnknownSource])
	})
}

// count counts the bytes that arrive.
func count(c net.Conn, n chan<- int) {
	b := make([]byte, 1<<16)
	for {
		got, err := c.Read(b)
		if got > 0 {
			n <- got
		}
		if err != nil {
			return
		}
	}
}

func arrived(n <-chan int, wait time.Duration) int {
	total := 0
	timeout := time.After(wait)
	for {
		select {
		case got := <-n:
			total += got
		case <-timeout:
			return total
		}
	}
}

func TestDeletedEntryCutsBothDirections(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	entry := f.state.Entries[0]
	_, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	for _, address := range []string{"10.0.0.2:8080", "[fd00::2]:8080"} {
		t.Run(address, func(t *testing.T) {
			l := listen(t, f.b, address)
			client, err := dial(t, f.a, address, 0, 3*time.Second)
			must.NoError(t, err)
			server, err := l.Accept()
			must.NoError(t, err)
			defer server.Close()
			toServer, toClient := make(chan int, 1<<16), make(chan int, 1<<16)
			go count(server, toServer)
			go count(client, toClient)
			stop := make(chan struct{})
			defer close(stop)
			for _, c := range []net.Conn{client, server} {
				go func() {
					for {
						select {
						case <-stop:
							return
						case <-time.After(100 * time.Microsecond):
							if _, err := c.Write(make([]byte, 100)); err != nil {
								return
							}
						}
					}
				}()
			}
			must.Positive(t, arrived(toServer, 300*time.Millisecond))
			must.Positive(t, arrived(toClient, 10*time.Millisecond))

			f.setEntries()
			// Packets that passed before may still be in queues.
			time.Sleep(20 * time.Millisecond)
			arrived(toServer, 0)
			arrived(toClient, 0)
			for len(toServer)+len(toClient) > 0 {
				arrived(toServer, time.Millisecond)
				arrived(toClient, time.Millisecond)
			}
			must.Zero(t, arrived(toServer, 1500*time.Millisecond))
			must.Zero(t, arrived(toClient, 10*time.Millisecond))
			f.dropped(ovs.DropNoContract, 0)
			f.dropped(ovs.DropEntryGone, 0)

			// Another entry that admits the same packets takes over the connection.
			again := entry
			again.ID = entryAB2
			f.setEntries(again)
			must.Positive(t, arrived(toServer, 3*time.Second))
			must.Positive(t, arrived(toClient, time.Second))
			f.setEntries()
			time.Sleep(20 * time.Millisecond)
			for len(toServer)+len(toClient) > 0 {
				arrived(toServer, time.Millisecond)
				arrived(toClient, time.Millisecond)
			}
			must.Zero(t, arrived(toServer, time.Second))
			f.setEntries(entry)
		})
	}
}

func TestOverlappingEntries(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	_, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	wider := ovs.Entry{ID: entryAB2, Src: classA, Dst: classB, Protocol: 6, Ports: []ovs.PortRange{{First: 8080, Last: 8080}, {First: 9000, Last: 9010}}}
	f.setEntries(f.state.Entries[0], wider)
	l := listen(t, f.b, "10.0.0.2:8080")
	go echo(l)
	c, err := dial(t, f.a, "10.0.0.2:8080", 0, 3*time.Second)
	must.NoError(t, err)
	must.NoError(t, answers(c, time.Second))
	// The connection outlives one of the entries that allow it, and not both.
	f.setEntries(wider)
	must.NoError(t, answers(c, 3*time.Second))
	diff, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	must.True(t, diff.Empty(), must.Sprintf("%v", diff))
	f.setEntries()
	must.Error(t, answers(c, time.Second))
}

// An entry with fewer ports takes over the connections of its predecessor on the ports that it has,
// even if the responder sends next, and no others.
func TestNarrowedPorts(t *testing.T) {
	f := newFixture(t)
	wide := ovs.Entry{ID: entryAB, Src: classA, Dst: classB, Protocol: 6, Ports: []ovs.PortRange{{First: 8080, Last: 8080}, {First: 9000, Last: 9010}}}
	f.setEntries(wide)
	connect := func(address string) (client, server net.Conn) {
		l := listen(t, f.b, address)
		client, err := dial(t, f.a, address, 0, 3*time.Second)
		must.NoError(t, err)
		server, err = l.Accept()
		must.NoError(t, err)
		t.Cleanup(func() { _ = server.Close() })
		return client, server
	}
	says := func(from, to net.Conn, wait time.Duration) error {
		must.NoError(t, to.SetReadDeadline(time.Now().Add(wait)))
		_, err := io.WriteString(from, "hello")
		must.NoError(t, err)
		_, err = io.ReadFull(to, make([]byte, 5))
		return err
	}
	for _, host := range []string{"10.0.0.2", "[fd00::2]"} {
		staying, server := connect(host + ":8080")
		cut, other := connect(host + ":9005")
		f.setEntries(ovs.Entry{ID: entryAB2, Src: classA, Dst: classB, Protocol: 6, Ports: []ovs.PortRange{{First: 8080, Last: 8080}}})
		must.NoError(t, says(server, staying, 3*time.Second))
		must.Zero(t, sentAgain(t, server))
		must.NoError(t, says(staying, server, 3*time.Second))
		must.Error(t, says(other, cut, time.Second))
		must.Error(t, says(cut, other, time.Second))
		f.setEntries(wide)
	}
}

// sentAgain returns how many segments a connection has sent again because they were not answered.
func sentAgain(t *testing.T, c net.Conn) (n uint32) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	must.NoError(t, err)
	must.NoError(t, raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		must.NoError(t, err)
		n = info.Total_retrans
	}))
	return n
}

func TestChangedClassCutsConnection(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	_, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	go echo(listen(t, f.b, "10.0.0.2:8080"))
	c, err := dial(t, f.a, "10.0.0.2:8080", 0, 3*time.Second)
	must.NoError(t, err)
	must.NoError(t, answers(c, time.Second))
	f.state.Endpoints = slices.Clone(f.state.Endpoints)
	f.state.Endpoints[0].Class = classC
	must.NoError(t, f.p.Set(ctx, f.state))
	must.Error(t, answers(c, time.Second))
}

func TestPassAll(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	_, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	go echo(listen(t, f.b, "10.0.0.2:8081"))
	must.NoError(t, f.p.SetPassAll(ctx, true))
	must.True(t, f.p.PassAll())
	c, err := dial(t, f.a, "10.0.0.2:8081", 0, 3*time.Second)
	must.NoError(t, err)
	must.NoError(t, answers(c, time.Second))
	must.NoError(t, f.p.SetPassAll(ctx, false))
	must.Error(t, answers(c, time.Second))

	// It ends with the process that set it.
	must.NoError(t, f.p.SetPassAll(ctx, true))
	f.p = ovs.NewPipeline(7, f.sw.Revalidated)
	f.connect()
	diff, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	must.SliceLen(t, 3, diff.Removed)
	_, err = dial(t, f.a, "10.0.0.2:8081", 0, 300*time.Millisecond)
	must.Error(t, err)
}

func TestRepair(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	_, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	f.instance.Ofctl("add-flow", "table=6,priority=7,actions=learn(table=20,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[]),goto_table:12")
	f.instance.Ofctl("del-flows", "table=1,ip,nw_dst=10.0.0.2")
	f.instance.Ofctl("add-flow", "table=4,priority=1,cookie=0x0100000000000000,ip,idle_timeout=900,actions=set_field:0->reg5,set_field:0->reg6,ct(table=5,zone=7)")
	diff, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	must.SliceLen(t, 1, diff.Removed)
	must.SliceLen(t, 1, diff.Added)
	must.SliceLen(t, 1, diff.Changed)
	diff, err = f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	must.True(t, diff.Empty(), must.Sprintf("%v", diff))

	t.Run("a switch that restarted is filled again", func(t *testing.T) {
		ports, err := f.sw.Ports(ctx)
		must.NoError(t, err)
		f.instance.RestartSwitch()
		<-f.conn.Done()
		again, err := f.sw.Ports(ctx)
		must.NoError(t, err)
		must.Eq(t, ports, again)
		must.NoError(t, f.p.Set(ctx, f.state)) // nothing to write
		f.state.Endpoints = slices.Clone(f.state.Endpoints)
		f.state.Endpoints[0].Class = classC
		must.Error(t, f.p.Set(ctx, f.state))
		f.connect()
		diff, err := f.p.Reconcile(ctx, f.state)
		must.NoError(t, err)
		must.SliceEmpty(t, diff.Changed)
		got, err := f.p.Dump(ctx)
		must.NoError(t, err)
		must.Eq(t, uint32(classC), got.Endpoints[0].Class)
	})
}

func TestRefusedInput(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	_, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	thief := f.state.Endpoints[0]
	thief.ID = 99
	with := func(change func(*ovs.State)) ovs.State {
		s := ovs.State{Ports: slices.Clone(f.state.Ports), Endpoints: slices.Clone(f.state.Endpoints), Entries: slices.Clone(f.state.Entries)}
		change(&s)
		return s
	}
	withEntry := func(e ovs.Entry) ovs.State {
		return with(func(s *ovs.State) { s.Entries = append(s.Entries, e) })
	}
	numbered, hole := f.state.Endpoints[0], ovs.Endpoint{ID: 99, Hole: true, Group: 1}
	numbered.ID, numbered.Prefixes, numbered.Number = 99, nil, 3
	course := ovs.Course{From: 1, To: 2, Bucket: 5}
	withWay := func(c ovs.Course, port uint32) ovs.State {
		return with(func(s *ovs.State) { s.Ways = append(s.Ways, ovs.Way{Course: c, Port: port}) })
	}
	withMoved := func(list ...ovs.Course) ovs.State {
		return with(func(s *ovs.State) { s.Moved = list })
	}
	for _, tc := range []struct {
		state ovs.State
		want  string
	}{
		{with(func(s *ovs.State) { s.Endpoints = append(s.Endpoints, thief) }), "belongs to endpoint 1"},
		{with(func(s *ovs.State) { s.Endpoints = append(s.Endpoints, s.Endpoints[0]) }), "endpoint 1 is in the state twice"},
		{withEntry(ovs.Entry{ID: 9, Src: 1, Dst: 2, Protocol: 2}), "protocol 2"},
		{withEntry(ovs.Entry{ID: 9, Src: ovs.ProbeClass, Dst: 2, Protocol: 17}), "reserved"},
		{withEntry(ovs.Entry{ID: 9, Src: 1, Dst: 2, Protocol: 1, Ports: []ovs.PortRange{{First: 8, Last: 256}}}), "not a message type"},
		{withEntry(ovs.Entry{ID: 9, Src: 1, Dst: 2, Protocol: 6, Ports: []ovs.PortRange{{First: 2, Last: 1}}}), "backwards"},
		{with(func(s *ovs.State) { s.Ports = append(s.Ports, ovs.Port{}) }), "port 0"},
		{with(func(s *ovs.State) { s.Endpoints = append(s.Endpoints, numbered) }), "endpoint 99: an endpoint without a group has number 3"},
		{with(func(s *ovs.State) { s.Endpoints = append(s.Endpoints, hole) }), "endpoint 99: a hole has a class, a port, a group or a limit"},
		{withWay(course, 0), "way of group 1 to group 2, class 0, bucket 5: port 0 is not that of a device"},
		{withWay(ovs.Course{From: 1, Bucket: ovs.AllBuckets}, 1), "way of group 1 to group 0, class 0: group 0 is no group"},
		{withMoved(ovs.Course{To: 2, Bucket: 256}), "move of group 0 to group 2, class 0, bucket 256: there are buckets 0 to 255"},
	} {
		// The offender is left out and named, and what else changes is applied.
		var left *ovs.LeftOutError
		tc.state.Endpoints = slices.Delete(slices.Clone(tc.state.Endpoints), 1, 2)
		err := f.p.Set(ctx, tc.state)
		must.ErrorContains(t, err, tc.want)
		must.True(t, errors.As(err, &left))
		must.Len(t, 1, left.Parts)
		have, err := f.p.Dump(ctx)
		must.NoError(t, err)
		must.Len(t, len(f.state.Endpoints)-1, have.Endpoints)
		must.Len(t, len(f.state.Entries), have.Entries)

		tc.state.Endpoints = append(tc.state.Endpoints, f.state.Endpoints[1])
		_, err = f.p.Reconcile(ctx, tc.state)
		must.ErrorContains(t, err, tc.want)
		have, err = f.p.Dump(ctx)
		must.NoError(t, err)
		must.Eq(t, "", cmp.Diff(f.state, have, cmpopts.EquateComparable(netip.Prefix{})))
	}
	have, err := f.p.Dump(ctx)
	must.NoError(t, err)
	must.Eq(t, "", cmp.Diff(f.state, have, cmpopts.EquateComparable(netip.Prefix{})))

	// An address may go from one endpoint to another in one change.
	must.NoError(t, f.p.Set(ctx, with(func(s *ovs.State) { s.Endpoints[0] = thief })))
	must.NoError(t, f.p.Set(ctx, f.state))

	// The switch itself refuses, and as a whole.
	flow := of.Flow{Key: of.Key{Table: 9, Match: of.NewMatch(of.Is16(of.TCPDst, 1))}}
	err = f.conn.Bundle(ctx, of.Add(of.Flow{Key: of.Key{Table: 8}}), of.Add(flow))
	var refused *of.Error
	must.True(t, errors.As(err, &refused))
	must.True(t, strings.Contains(err.Error(), "prerequisite"), must.Sprint(err))
	diff, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	must.True(t, diff.Empty(), must.Sprintf("%v", diff))
}

// TestTooBig lets a router beyond b's port report that a packet was too big.
func TestTooBig(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	_, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	l := listen(t, f.b, "10.0.0.2:8080")
	go echo(l)
	c, err := dial(t, f.a, "10.0.0.2:8080", 40000, 3*time.Second)
	must.NoError(t, err)
	must.NoError(t, answers(c, time.Second))

	// Whether a's TCP believes it is not tested, only that it arrives.
	sendTooBig(t, f.b, netip.MustParseAddr("192.0.2.1"), 40000)
	must.Eq(t, uint64(1), icmpIn(t, f.a))

	// A report about a connection that does not exist is dropped.
	before, err := f.p.Drops(ctx)
	must.NoError(t, err)
	sendTooBig(t, f.b, netip.MustParseAddr("192.0.2.1"), 40001)
	f.dropped(ovs.DropInvalid, before[ovs.DropInvalid])
	must.Eq(t, uint64(1), icmpIn(t, f.a))

	// Without the entry, so is a report about its connection.
	f.setEntries()
	sendTooBig(t, f.b, netip.MustParseAddr("192.0.2.1"), 40000)
	f.dropped(ovs.DropEntryGone, 0)
	must.Eq(t, uint64(1), icmpIn(t, f.a))
}
