// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"fmt"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/connlimit"
)

// opening is the first packet of a connection from a port.
func opening(port uint16) step {
	return sent(AllowedContract, ip(me4, friend4, 6, tcp(port, 8080, syn)))
}

// limited sets limits that differ from the default.
func (f *fixture) limited(change func(*connlimit.Limits)) {
	l := connlimit.Default()
	change(&l)
	f.limit(l)
}

func (f *fixture) expect(name string, steps ...step) {
	f.t.Helper()
	for i, s := range steps {
		if s.change != nil {
			s.change(f)
			continue
		}
		if got := f.step(s); got != s.want {
			f.t.Errorf("%s, step %d: %s, want %s", name, i, got, s.want)
		}
	}
}

// refused is a step that fails for another reason.
func refused(why Reason, s step) step {
	s.want = why
	return s
}

func sweep(f *fixture) { must.NoError(f.t, f.SweepConnections()) }

// What has no room is refused, and what is established goes on: of the whole table, of an endpoint,
// and of the connections that open in a second.
func TestFloods(t *testing.T) {
	answer := func(port uint16) step { return wire(AllowedConnection, ip(friend4, me4, 6, tcp(8080, port, syn|ack))) }
	data := func(port uint16) step { return sent(AllowedConnection, ip(me4, friend4, 6, tcp(port, 8080, ack))) }
	reset := wire(AllowedConnection, ip(friend4, me4, 6, tcp(8080, 1000, rst|ack)))
	inbound := wire(AllowedContract, ip(friend4, me4, 6, tcp(5000, 80, syn)))
	neighbour := wire(AllowedContract, ip(me4, neighbour4, 6, tcp(1000, 80, syn)))
	neighbour.at, neighbour.ingress = func(f *fixture) uint32 { return f.neighbour }, func(f *fixture) uint32 { return f.me }

	f := newFixture(t)
	f.limited(func(l *connlimit.Limits) { l.PerEndpoint = 20 })
	f.expect("endpoint", opening(1000), answer(1000))
	for port := range uint16(19) {
		f.expect("endpoint", opening(2000+port))
	}
	f.expect("endpoint", refused(EndpointFull, opening(3000)), refused(EndpointFull, inbound), data(1000), neighbour,
		later(61*time.Second), refused(EndpointFull, opening(3000)), then(sweep), opening(3000), data(1000), inbound)
	// A connection that is no longer allowed leaves its place at once.
	for port := range uint16(17) {
		f.expect("endpoint", opening(4000+port))
	}
	f.expect("endpoint", refused(EndpointFull, opening(5000)), then(func(f *fixture) { f.rules(idFriend, idMe) }),
		refused(StaleConnection, sent(0, ip(me4, friend4, 6, tcp(80, 5000, ack)))), opening(5000))
	// A port that is used again takes no second place.
	f.restore()
	for range 40 {
		f.expect("again", opening(1000), reset, later(11*time.Second))
	}

	f.restore()
	f.limited(func(l *connlimit.Limits) { l.NewPerSecond = 50 })
	fast := 0
	for port := range uint16(400) {
		if f.step(opening(1000+port)) == TooFast {
			fast++
		}
	}
	must.Between(t, 100, fast, 350) // fewer on a slow machine, which takes longer for the flows
	f.expect("fast", answer(1000), data(1000), neighbour)

	f.restore()
	f.limit(connlimit.Default())
	for port := range uint16(4096) { // the size of the fixture's table
		f.expect("table", opening(1000+port))
	}
	f.expect("table", refused(TableFull, opening(100)), answer(1000), data(1000), refused(TableFull, inbound),
		later(61*time.Second), then(sweep), opening(100), data(1000), inbound)
}

// Each time limit is the one of the table, and the program that deletes idle connections knows the
// same ones.
func TestIdle(t *testing.T) {
	query, reply := ip(me4, friend4, 17, udp(1, 9000)), ip(friend4, me4, 17, udp(9000, 1))
	answered := []step{opening(1000), wire(AllowedConnection, ip(friend4, me4, 6, tcp(8080, 1000, syn|ack)))}
	closing := append(answered[:2:2], sent(AllowedConnection, ip(me4, friend4, 6, tcp(1000, 8080, fin|ack))))
	closed := append(closing[:3:3], wire(AllowedConnection, ip(friend4, me4, 6, tcp(8080, 1000, fin|ack))))
	f := newFixture(t)
	for name, test := range map[string]struct {
		limit  func(*connlimit.Idle) *time.Duration
		begin  []step
		packet []byte // of the responder
	}{
		"tcp opening":     {func(i *connlimit.Idle) *time.Duration { return &i.TCPOpening }, answered[:1], ip(friend4, me4, 6, tcp(8080, 1000, syn|ack))},
		"tcp established": {func(i *connlimit.Idle) *time.Duration { return &i.TCPEstablished }, answered, ip(friend4, me4, 6, tcp(8080, 1000, ack))},
		"tcp closing":     {func(i *connlimit.Idle) *time.Duration { return &i.TCPClosing }, closing, ip(friend4, me4, 6, tcp(8080, 1000, ack))},
		"tcp closed":      {func(i *connlimit.Idle) *time.Duration { return &i.TCPClosed }, closed, ip(friend4, me4, 6, tcp(8080, 1000, ack))},
		"udp":             {func(i *connlimit.Idle) *time.Duration { return &i.UDP }, []step{sent(AllowedContract, query)}, reply},
		"sctp":            {func(i *connlimit.Idle) *time.Duration { return &i.SCTP }, []step{sent(AllowedContract, ip(me4, friend4, 132, sctp(4000, 7000)))}, ip(friend4, me4, 132, sctp(7000, 4000))},
		"icmp":            {func(i *connlimit.Idle) *time.Duration { return &i.ICMP }, []step{sent(AllowedContract, ip(me4, friend4, 1, icmp(8, 0, 77)))}, ip(friend4, me4, 1, icmp(0, 0, 77))},
	} {
		const limit = 47 * time.Minute // none of the defaults
		f.limited(func(l *connlimit.Limits) {
			l.Idle = connlimit.Idle{TCPOpening: time.Second, TCPEstablished: time.Second, TCPClosing: time.Second, TCPClosed: time.Second, UDP: time.Second, SCTP: time.Second, ICMP: time.Second}
			*test.limit(&l.Idle) = limit
		})
		connections := func() int {
			sweep(f)
			list, err := f.Connections()
			must.NoError(t, err)
			return len(list)
		}
		f.expect(name, append(test.begin[:len(test.begin):len(test.begin)], later(limit-5*time.Second))...)
		must.Eq(t, 1, connections(), must.Sprint(name))
		f.expect(name, then(func(f *fixture) { f.age(6 * time.Second) }))
		must.NotEq(t, AllowedConnection, f.step(wire(0, test.packet)), must.Sprint(name))
		must.Zero(t, connections(), must.Sprint(name))
		f.restore()
	}
}

// BenchmarkSweep measures how long the deletion of idle connections, and the search for those that
// policy has cut, take when all are live and allowed.
func BenchmarkSweep(b *testing.B) {
	f := newFixture(b)
	for _, n := range []int{10_000, connlimit.MaxConnections} {
		options := fixtureOptions("")
		options.Sizes = nil
		must.NoError(b, f.Datapath.Close())
		f.Datapath = open(b, pinDirectory(b), options)
		must.NoError(b, f.PutEndpoint(endpoint(f.me, idMe, me4, me6)))
		must.NoError(b, f.PutPeer(peer(friend4, idFriend, f.wire)))
		f.policy()
		must.Eq(b, AllowedContract, f.step(opening(1)))
		one, err := dump[endpointConnKey, endpointConn](f.objects.SifConns, "sif_conns")
		must.NoError(b, err)
		keys, values := make([]endpointConnKey, n-1), make([]endpointConn, n-1)
		for i := range keys {
			keys[i], values[i] = one[0].key, one[0].value
			keys[i].Local.Word[0], keys[i].LocalPort = uint32(i>>16)+1, uint16(i)
		}
		_, err = f.objects.SifConns.BatchUpdate(keys, values, nil)
		must.NoError(b, err)
		b.Run(fmt.Sprintf("connections=%d", n), func(b *testing.B) {
			for b.Loop() {
				must.NoError(b, f.SweepConnections())
			}
		})
		b.Run(fmt.Sprintf("cut/connections=%d", n), func(b *testing.B) {
			f.endpoint(func(e *Endpoint) { e.Reject = true })
			for b.Loop() {
				_, err := f.RaiseGeneration()
				must.NoError(b, err)
				f.nextRouse = time.Time{}
				cut, err := f.RouseCut()
				must.NoError(b, err)
				must.Zero(b, cut)
			}
		})
	}
}
