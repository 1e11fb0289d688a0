// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// endFlows ends flows as if by more time had passed since flows and refused packets were seen and
// told of.
func (f *fixture) endFlows(by time.Duration) {
	f.t.Helper()
	for key, value := range f.recorded() {
		value.Told -= uint64(by)
		must.NoError(f.t, f.objects.SifFlows.Put(key, value))
	}
	entries, err := dump[endpointRefusedKey, endpointFlow](f.objects.SifRefused, "sif_refused")
	must.NoError(f.t, err)
	for _, e := range entries {
		e.value.Told -= uint64(by)
		e.value.Seen -= uint64(by)
		must.NoError(f.t, f.objects.SifRefused.Put(e.key, e.value))
	}
	must.NoError(f.t, f.EndFlows())
}

// recorded returns the flows that the programs record, by their numbers.
func (f *fixture) recorded() map[uint32]endpointFlow {
	f.t.Helper()
	entries, err := dump[uint32, endpointFlow](f.objects.SifFlows, "sif_flows")
	must.NoError(f.t, err)
	set := map[uint32]endpointFlow{}
	for _, e := range entries {
		set[e.key] = e.value
	}
	return set
}

// nextEvents returns the next n events without their times, and checks that these are recent.
func nextEvents(t *testing.T, events <-chan Event, n int) (list []Event) {
	t.Helper()
	for range n {
		e := <-events
		if age := time.Since(e.Time).Abs(); age > 5*time.Minute || e.Opened.After(e.Time) {
			t.Errorf("event at %s of a flow of %s: %+v", e.Time, e.Opened, e)
		}
		e.Time, e.Opened = time.Time{}, time.Time{}
		list = append(list, e)
	}
	return list
}

func TestFlowIsRecorded(t *testing.T) {
	f := newFixture(t)
	events, err := f.Events(t.Context())
	must.NoError(t, err)
	f.step(sent(AllowedContract, ip(me6, friend6, 6, tcp(4000, 8080, syn))))
	f.step(wire(AllowedConnection, ip(friend6, me6, 6, tcp(8080, 4000, syn|ack))))
	f.step(sent(AllowedConnection, ip(me6, friend6, 6, tcp(4000, 8080, ack))))
	f.endFlows(30 * time.Second) // too soon for another record
	f.endFlows(31 * time.Second)
	raise(f)
	f.step(sent(AllowedConnection, ip(me6, friend6, 6, tcp(4000, 8080, fin|ack)))) // evaluated again
	f.step(wire(AllowedConnection, ip(friend6, me6, 6, tcp(8080, 4000, fin|ack))))
	f.age(2 * time.Second)
	f.endFlows(0)
	must.MapEmpty(t, f.recorded())
	f.endFlows(0)

	opened := Event{Interface: f.me, Direction: FromWorkload, Reason: AllowedContract, Protocol: 6, Contract: contractOut,
		Source: netip.MustParseAddrPort("[fd5f::2]:4000"), Destination: netip.MustParseAddrPort("[fd5f:1::2]:8080"),
		SourceIdentity: idMe, DestinationIdentity: idFriend, Original: Traffic{1, 60}}
	got := nextEvents(t, events, 3)
	must.Positive(t, got[0].Flow)
	opened.Flow = got[0].Flow
	goesOn, ended := opened, opened
	goesOn.GoesOn, goesOn.Original, goesOn.Reply = true, Traffic{2, 120}, Traffic{1, 60}
	ended.Ended, ended.Original, ended.Reply = true, Traffic{3, 180}, Traffic{2, 120}
	must.Eq(t, []Event{opened, goesOn, ended}, got)
}

// A flow that is idle does not go on, although its answer came after its record.
func TestIdleFlowIsNotRecordedAgain(t *testing.T) {
	f := newFixture(t)
	events, err := f.Events(t.Context())
	must.NoError(t, err)
	f.step(sent(AllowedContract, ip(me4, friend4, 17, udp(4000, 9000))))
	f.step(wire(AllowedConnection, ip(friend4, me4, 17, udp(9000, 4000))))
	f.age(90 * time.Second)
	f.endFlows(90 * time.Second)
	f.age(90 * time.Second)
	f.endFlows(90 * time.Second)
	got := nextEvents(t, events, 2)
	must.True(t, got[0].Begins())
	must.True(t, got[1].Ended)
	must.Eq(t, Traffic{1, 32}, got[1].Reply)
}

// A flow is over when its connection is idle for too long, cut, forgotten with its endpoint, or
// replaced by another one with the same addresses.
func TestFlowEnds(t *testing.T) {
	open := sent(AllowedContract, ip(me4, friend4, 17, udp(4000, 9000)))
	for name, end := range map[string]func(f *fixture){
		"idle":      func(f *fixture) { f.age(4 * time.Minute) },
		"forgotten": func(f *fixture) { must.NoError(f.t, f.forgetConnections(f.me)) },
		"cut": func(f *fixture) {
			f.rules(idMe, idFriend)
			f.step(sent(StaleConnection, open.packet))
		},
		"replaced": func(f *fixture) {
			f.age(4 * time.Minute)
			f.step(open)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			events, err := f.Events(t.Context())
			must.NoError(t, err)
			f.step(open)
			opened := nextEvents(t, events, 1)[0]
			must.NoError(t, f.EndFlows())
			end(f)
			must.NoError(t, f.EndFlows())
			for e := range events {
				if e.Flow != opened.Flow {
					continue // what refused or opened afterwards
				}
				must.True(t, e.Ended)
				must.Eq(t, Traffic{1, 32}, e.Original)
				break
			}
			must.MapNotContainsKey(t, f.recorded(), opened.Flow)
		})
	}
}

// Packets that are refused alike cause one event, and another one with their number when no more
// come.
func TestRefusedPacketsAreRecordedTogether(t *testing.T) {
	f := newFixture(t)
	events, err := f.Events(t.Context())
	must.NoError(t, err)
	denied := sent(NoContract, ip(me4, friend4, 6, tcp(4000, 8081, syn)))
	for range 3 {
		f.step(denied)
	}
	f.step(wire(UnknownSource, ip(nobody4, me4, 17, udp(1, 2))))
	f.endFlows(20 * time.Second)
	f.endFlows(20 * time.Second)
	f.endFlows(20 * time.Second)
	f.step(denied)

	refused := Event{Interface: f.me, Direction: FromWorkload, Reason: NoContract, Protocol: 6,
		Source: netip.MustParseAddrPort("100.64.0.2:4000"), Destination: netip.MustParseAddrPort("100.64.1.2:8081"),
		SourceIdentity: idMe, DestinationIdentity: idFriend, Original: Traffic{1, 40}}
	ended := refused
	ended.Ended, ended.Original = true, Traffic{3, 120}
	must.Eq(t, []Event{refused, {Interface: f.me, Direction: ToWorkload, Reason: UnknownSource, Protocol: 17,
		Source: netip.MustParseAddrPort("100.64.9.9:1"), Destination: netip.MustParseAddrPort("100.64.0.2:2"), DestinationIdentity: idMe, Original: Traffic{1, 32}},
		ended, refused}, nextEvents(t, events, 4))
}

// Each packet and each flow is either recorded or counted as not recorded, by endpoint.
func TestFloodIsCounted(t *testing.T) {
	f := newFixture(t)
	events, err := f.Events(t.Context())
	must.NoError(t, err)
	flood := func(from uint16) {
		for port := range uint16(50) {
			f.step(sent(NoContract, ip(me4, friend4, 6, tcp(from+port, 8081, syn))))
			f.step(sent(AllowedContract, ip(me4, friend4, 6, tcp(from+port, 8080, syn))))
		}
	}
	flood(1000)
	nextEvents(t, events, 100)
	var meter endpointMeter
	must.NoError(t, f.objects.SifMeters.Lookup(f.me, &meter))
	must.Positive(t, meter.Refused)
	must.Positive(t, meter.Opened)
	ahead := meter.Refused + uint64(time.Hour) // as if by more than an endpoint may cause
	must.NoError(t, f.objects.SifMeters.Put(f.me, endpointMeter{Refused: ahead, Opened: ahead}))
	flood(2000)
	c, err := f.Counters()
	must.NoError(t, err)
	must.Eq(t, []Unrecorded{{Interface: f.me, Refused: 50, Opened: 50}}, c.Unrecorded)
	must.MapLen(t, 50, f.recorded())
	select {
	case e := <-events:
		t.Errorf("recorded although there are too many: %+v", e)
	default:
	}
	must.NoError(t, f.DeleteEndpoint(f.me))
	c, err = f.Counters()
	must.NoError(t, err)
	must.SliceEmpty(t, c.Unrecorded)
	must.ErrorIs(t, f.objects.SifMeters.Lookup(f.me, &meter), ebpf.ErrKeyNotExist)
}

// While nobody reads the ring, it is full: events of what begins are lost and counted, those of
// what ends come later.
func TestFullRing(t *testing.T) {
	f := newFixture(t)
	options := fixtureOptions("")
	options.Sizes["sif_events"] = uint32(os.Getpagesize())
	must.NoError(t, f.Datapath.Close())
	f.Datapath = open(t, pinDirectory(t), options)
	f.endpoint(nil)
	must.NoError(t, f.PutPeer(peer(friend4, idFriend, f.wire)))
	f.policy()
	f.step(sent(AllowedContract, ip(me4, friend4, 17, udp(4000, 9000))))
	id := uint32(0)
	for id = range f.recorded() {
	}
	for port := range uint16(100) {
		f.step(sent(NoContract, ip(me4, friend4, 6, tcp(1+port, 8081, syn))))
	}
	c, err := f.Counters()
	must.NoError(t, err)
	must.Positive(t, c.LostEvents)
	must.NoError(t, f.forgetConnections(f.me))
	must.NoError(t, f.EndFlows())
	must.MapContainsKey(t, f.recorded(), id)
	events, err := f.Events(t.Context())
	must.NoError(t, err)
	must.Eq(t, id, (<-events).Flow)
	for len(f.recorded()) > 0 {
		<-events // makes room
		must.NoError(t, f.EndFlows())
	}
	for e := range events {
		if e.Flow == id {
			must.True(t, e.Ended)
			break
		}
	}
}

// Connections of programs of an earlier version have no flow.
func TestEarlierConnectionIsNotRecorded(t *testing.T) {
	f := newFixture(t)
	out := ip(me4, friend4, 6, tcp(4000, 8080, syn))
	f.step(sent(AllowedContract, out))
	entries, err := dump[endpointConnKey, endpointConn](f.objects.SifConns, "sif_conns")
	must.NoError(t, err)
	entries[0].value.Flow = 0
	must.NoError(t, f.objects.SifConns.Put(entries[0].key, entries[0].value))
	f.step(sent(AllowedConnection, out))
	for _, flow := range f.recorded() {
		must.Eq(t, 1, flow.Original.Packets)
	}
	raw := make([]byte, 80)
	raw[16+60-4] = unix.IPPROTO_TCP
	e, ok := decode(raw)
	must.True(t, ok)
	must.True(t, e.Begins())
	must.Eq(t, 1, e.Original.Packets)
}

// Flows that pass because of audit mode are recorded, each when it opens, whatever the meter says.
func TestAuditedFlowsAreAllRecorded(t *testing.T) {
	f := newFixture(t)
	f.rules(idMe, idFriend, rule(6, 8080, 8080, contractOut), rule(6, 8000, 9000, AuditContract|contractDatagrams))
	events, err := f.Events(t.Context())
	must.NoError(t, err)
	f.step(sent(AllowedContract, ip(me4, friend4, 6, tcp(4000, 8080, syn)))) // an enforced contract applies first
	must.Eq(t, contractOut, (<-events).Contract)
	var meter endpointMeter
	must.NoError(t, f.objects.SifMeters.Lookup(f.me, &meter))
	meter.Opened += uint64(time.Hour)
	must.NoError(t, f.objects.SifMeters.Put(f.me, meter))
	for port := range uint16(10) {
		f.step(sent(AllowedContract, ip(me4, friend4, 6, tcp(1000+port, 8081, syn))))
		must.Eq(t, AuditContract|contractDatagrams, (<-events).Contract)
	}
	f.step(sent(NoContract, ip(me4, friend4, 6, tcp(4000, 7999, syn))))
	must.Eq(t, NoContract, (<-events).Reason)
}
