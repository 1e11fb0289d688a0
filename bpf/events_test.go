// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"bytes"
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

func TestFlowEvents(t *testing.T) {
	f := newFixture(t)
	opts := fixtureOptions("")
	opts.FlowEvents = true
	f.Datapath = open(t, f.dir, opts)
	ctx, cancel := context.WithCancel(t.Context())
	events, err := f.Events(ctx)
	must.NoError(t, err)
	f.step(sent(AllowedContract, ip(me6, friend6, 6, tcp(4000, 8080, syn))))
	f.step(sent(AllowedConnection, ip(me6, friend6, 6, tcp(4000, 8080, ack))))
	f.step(wire(UnknownSource, ip(nobody4, me4, 17, udp(1, 2))))
	got := []Event{<-events, <-events}
	for i, want := range []Event{
		{Interface: f.me, Direction: FromWorkload, Reason: AllowedContract, Protocol: 6, Contract: contractOut,
			Source: netip.MustParseAddrPort("[fd5f::2]:4000"), Destination: netip.MustParseAddrPort("[fd5f:1::2]:8080"),
			SourceIdentity: idMe, DestinationIdentity: idFriend},
		{Interface: f.me, Direction: ToWorkload, Reason: UnknownSource, Protocol: 17,
			Source: netip.MustParseAddrPort("100.64.9.9:1"), Destination: netip.MustParseAddrPort("100.64.0.2:2"), DestinationIdentity: idMe},
	} {
		want.Time = got[i].Time
		if got[i] != want || time.Since(want.Time).Abs() > time.Minute {
			t.Errorf("event %d: %+v, want %+v", i, got[i], want)
		}
	}
	cancel()
	_, more := <-events
	must.False(t, more)
}

// Without Options.FlowEvents, the only allowed flows that are reported are those that pass because
// of audit mode, each when it opens.
func TestAuditedFlowsAreReported(t *testing.T) {
	f := newFixture(t)
	f.rules(idMe, idFriend, rule(6, 8080, 8080, contractOut), rule(6, 8000, 9000, AuditContract|contractDatagrams))
	events, err := f.Events(t.Context())
	must.NoError(t, err)
	f.step(sent(AllowedContract, ip(me4, friend4, 6, tcp(4000, 8080, syn)))) // an enforced contract applies first
	f.step(sent(AllowedContract, ip(me4, friend4, 6, tcp(4000, 8081, syn))))
	f.step(wire(AllowedConnection, ip(friend4, me4, 6, tcp(8081, 4000, syn|ack))))
	f.step(sent(AllowedConnection, ip(me4, friend4, 6, tcp(4000, 8081, ack))))
	f.step(sent(NoContract, ip(me4, friend4, 6, tcp(4000, 7999, syn))))
	first, second := <-events, <-events
	must.Eq(t, AllowedContract, first.Reason)
	must.Eq(t, AuditContract|contractDatagrams, first.Contract)
	must.Eq(t, 8081, first.Destination.Port())
	must.Eq(t, NoContract, second.Reason)
}

func TestLostEventsAreCounted(t *testing.T) {
	f := newFixture(t)
	denied := ethernet(ip(me4, friend4, 6, tcp(4000, 8081, syn)))
	const packets = 20_000
	_, err := testRun(f.program(FromWorkload), skb{Ifindex: f.me}, denied, packets)
	must.NoError(t, err)
	c, err := f.Counters()
	must.NoError(t, err)
	must.Eq(t, packets, c.Verdict(FromWorkload, NoContract))
	must.Between(t, 1000, c.LostEvents, packets)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := f.Events(ctx)
	must.NoError(t, err)
	for range packets - c.LostEvents {
		<-events
	}
}

// TestNoFrameGetsAround gives the programs mutations of valid frames. A frame that passes from the
// workload must have its source address, one that passes to it must have arrived at the right
// interface.
func TestNoFrameGetsAround(t *testing.T) {
	f := newFixture(t)
	good := [][]byte{
		ethernet(ip(me4, friend4, 6, tcp(4000, 8080, syn))), ethernet(ip(me6, friend6, 17, udp(4000, 9000))),
		ethernet(ip(me4, friend4, 1, icmp(8, 0, 7))), ethernet(ip(me4, resolver4, 17, udp(4000, 53))),
		ethernet(ip(me6, friend6, 60, append([]byte{6, 0, 1, 4, 0, 0, 0, 0}, tcp(4000, 8080, syn)...))),
		ethernet(ip(me4, friend4, 1, icmp(3, 4, 0, ip(friend4, me4, 6, tcp(8080, 4000, ack))...))),
		ethernet(ip(friend4, me4, 6, tcp(5000, 80, syn))), ethernet(ip(friend6, me6, 58, icmp(128, 0, 7))),
	}
	own4, own6 := addr(me4).As4(), addr(me6).As16()
	rapid.Check(t, func(t *rapid.T) {
		for range 20 {
			data := bytes.Clone(rapid.SampledFrom(good).Draw(t, "frame"))
			for range rapid.IntRange(0, 3).Draw(t, "changes") {
				data[rapid.IntRange(12, len(data)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
			}
			data = data[:rapid.IntRange(min(len(data), 60), len(data)).Draw(t, "length")]
			if f.outcome(FromWorkload, f.me, 0, data).verdict == -1 && !bytes.Equal(data[26:30], own4[:]) && !bytes.Equal(data[22:38], own6[:]) {
				t.Fatalf("passed from the workload with another source: %x", data)
			}
			if f.outcome(ToWorkload, f.me, f.bare, data).verdict == -1 && !(data[23] == 1 || data[20] == 58) {
				t.Fatalf("passed to the workload by an interface where nobody is: %x", data)
			}
		}
	})
}
