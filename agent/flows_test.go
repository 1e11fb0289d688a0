// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/flow"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/flowlog"
	"github.com/sif-project/sif/internal/wellknown"
)

// wordsOf returns the words of a node with shop/web at interface 5, which knows shop/db of another
// node and an address of shop/users that web resolved.
func wordsOf(now *time.Time) *flowWords {
	w1, w2 := fabric.NodeID{Zone: "aws1", Name: "w1"}, fabric.NodeID{Zone: "gcp1", Name: "w2"}
	web := flow.End{Name: refOf("shop/web"), Endpoint: "web-1", Node: w1}
	return &flowWords{
		node: w1, keys: someNames, now: func() time.Time { return *now }, revision: func() uint64 { return 4 },
		own: func() map[uint32]flow.End { return map[uint32]flow.End{5: web} },
		others: func() map[netip.Addr]flow.End {
			return map[netip.Addr]flow.End{
				netip.MustParseAddr("100.64.0.1"): web,
				netip.MustParseAddr("100.64.0.2"): {Name: refOf("shop/db"), Endpoint: "db-1", Node: w2},
			}
		},
		names: func() map[outsideName]string {
			return map[outsideName]string{{refOf("shop/web"), netip.MustParseAddr("203.0.113.7")}: "api.example.com"}
		},
	}
}

func TestFlowRecord(t *testing.T) {
	now := time.Unix(1000, 0)
	at := netip.MustParseAddrPort
	opened := bpf.Event{
		Time: now, Opened: now, Interface: 5, Direction: bpf.FromWorkload, Reason: bpf.AllowedContract, Protocol: 6, Flow: 9,
		Source: at("100.64.0.1:4000"), Destination: at("100.64.0.2:5432"), SourceIdentity: 16, DestinationIdentity: 17, Contract: 18, Original: bpf.Traffic{Packets: 1, Bytes: 60},
	}
	want := flow.Flow{
		Time: now, Opened: now, Event: flow.Opened, Verdict: flow.Allow, Reason: "allowed-contract", Node: fabric.NodeID{Zone: "aws1", Name: "w1"}, Layer: flow.EBPF, Side: flow.Sender,
		Number: 9, Protocol: "tcp", Contract: refOf("shop/sql"), Revision: 4, Sent: flow.Traffic{Packets: 1, Bytes: 60},
		Source:      flow.End{Name: refOf("shop/web"), Endpoint: "web-1", Node: fabric.NodeID{Zone: "aws1", Name: "w1"}, Address: netip.MustParseAddr("100.64.0.1"), Port: 4000},
		Destination: flow.End{Name: refOf("shop/db"), Endpoint: "db-1", Node: fabric.NodeID{Zone: "gcp1", Name: "w2"}, Address: netip.MustParseAddr("100.64.0.2"), Port: 5432},
	}
	words := wordsOf(&now)
	must.Eq(t, want, *words.record(opened))

	for name, change := range map[string]func(*bpf.Event, *flow.Flow){
		"audited": func(e *bpf.Event, f *flow.Flow) { e.Contract |= bpf.AuditContract; f.Verdict = flow.Audit },
		"goes on": func(e *bpf.Event, f *flow.Flow) { e.GoesOn = true; f.Event = flow.GoesOn },
		"ended": func(e *bpf.Event, f *flow.Flow) {
			e.Ended, e.Reply = true, bpf.Traffic{Packets: 2, Bytes: 120}
			f.Event, f.Received = flow.Ended, flow.Traffic{Packets: 2, Bytes: 120}
		},
		"refused": func(e *bpf.Event, f *flow.Flow) {
			e.Reason, e.Contract, e.Overridden = bpf.NoContract, 0, true
			f.Event, f.Verdict, f.Reason, f.Contract, f.Overridden = flow.Refused, flow.Refuse, "no-contract", fabric.Ref{}, true
		},
		"refused, and no more of it": func(e *bpf.Event, f *flow.Flow) {
			e.Reason, e.Contract, e.Ended = bpf.NoContract, 0, true
			f.Event, f.Verdict, f.Reason, f.Contract = flow.Ended, flow.Refuse, "no-contract", fabric.Ref{}
		},
		"spoofed": func(e *bpf.Event, f *flow.Flow) {
			e.Reason, e.Contract, e.Source = bpf.SpoofedSource, 0, at("100.64.0.2:4000")
			f.Event, f.Verdict, f.Reason, f.Contract, f.Source.Address = flow.Refused, flow.Refuse, "spoofed-source", fabric.Ref{}, netip.MustParseAddr("100.64.0.2")
		},
		"to the outside by a name": func(e *bpf.Event, f *flow.Flow) {
			e.Destination, e.DestinationIdentity = at("203.0.113.7:443"), 19
			f.Destination = flow.End{Name: refOf("shop/users"), External: true, DNSName: "api.example.com", Address: netip.MustParseAddr("203.0.113.7"), Port: 443}
		},
		"to the outside": func(e *bpf.Event, f *flow.Flow) {
			e.Destination, e.DestinationIdentity = at("203.0.113.8:443"), 19
			f.Destination = flow.End{Name: refOf("shop/users"), External: true, Address: netip.MustParseAddr("203.0.113.8"), Port: 443}
		},
		"to nobody": func(e *bpf.Event, f *flow.Flow) {
			e.Destination, e.DestinationIdentity, e.Reason, e.Contract = at("198.51.100.1:443"), 0, bpf.Outside, 0
			f.Destination = flow.End{Address: netip.MustParseAddr("198.51.100.1"), Port: 443}
			f.Event, f.Verdict, f.Reason, f.Contract = flow.Refused, flow.Refuse, "outside", fabric.Ref{}
		},
		"a query of DNS": func(e *bpf.Event, f *flow.Flow) {
			e.Destination, e.DestinationIdentity, e.Reason, e.Contract = netip.AddrPortFrom(wellknown.LinkLocal4, 53), 0, bpf.AllowedDNS, 0
			f.Destination, f.Reason, f.Contract = flow.End{Host: true, Node: f.Node, Address: wellknown.LinkLocal4, Port: 53}, "allowed-dns", fabric.Ref{}
		},
		"of an endpoint without a name yet": func(e *bpf.Event, f *flow.Flow) {
			e.Interface = 6 // the addresses tell
		},
	} {
		event, expected := opened, want
		change(&event, &expected)
		must.Eq(t, expected, *words.record(event), must.Sprint(name))
	}

	check := bpf.Event{Time: now, Opened: now, Interface: 5, Direction: bpf.ToWorkload, Reason: bpf.AllowedCheck, Protocol: 6, Source: at("10.0.0.1:4000"), Destination: at("100.64.0.1:80"), DestinationIdentity: 16}
	got := words.record(check)
	must.Eq(t, flow.Receiver, got.Side)
	must.Eq(t, flow.End{Host: true, Node: words.node, Address: netip.MustParseAddr("10.0.0.1"), Port: 4000}, got.Source)
	must.Eq(t, "web-1", got.Destination.Endpoint)
}

// The end of a flow has a name when its endpoint is gone, and a new endpoint is known after a
// moment.
func TestFlowWordsOfEndpointsThatGo(t *testing.T) {
	now := time.Unix(1000, 0)
	words := wordsOf(&now)
	event := bpf.Event{Interface: 5, Direction: bpf.FromWorkload, Reason: bpf.AllowedContract, Source: netip.MustParseAddrPort("100.64.0.1:4000")}
	must.Eq(t, "web-1", words.record(event).Source.Endpoint)
	words.own = func() map[uint32]flow.End { return map[uint32]flow.End{6: {Endpoint: "web-2"}} }
	words.others = func() map[netip.Addr]flow.End { return nil }
	event.Interface = 6
	must.Eq(t, "web-1", words.record(event).Source.Endpoint, must.Sprint("by its address, as was read before"))
	now = now.Add(time.Minute)
	must.Eq(t, "web-2", words.record(event).Source.Endpoint)
	event.Interface = 5
	must.Eq(t, "web-1", words.record(event).Source.Endpoint)
}

// The file of flows is rotated before it is larger than it may be, between two lines, and only root
// reads it.
func TestFlowFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log", "flows.json")
	file := flowFile(&config.Flows{File: path, RotateBytes: 1 << 20, RotateMaxFiles: 5})
	defer file.Close()
	log, all := flowlog.New(3000), 3000
	for n := range all {
		log.Add(&flow.Flow{Number: uint32(n + 1), Reason: strings.Repeat("x", 300)})
	}
	var exporter flowlog.Exporter
	ctx, cancel := context.WithCancel(t.Context())
	exporter.Run(ctx, log, file, func(err error) {
		must.NoError(t, err)
		if exported, _ := exporter.Counts(); exported == 2500 { // the last batch
			cancel()
		}
	})
	files, err := filepath.Glob(filepath.Join(filepath.Dir(path), "flows*.json"))
	must.NoError(t, err)
	must.Greater(t, 1, len(files))
	seen := map[uint32]bool{}
	for _, name := range files {
		info, err := os.Stat(name)
		must.NoError(t, err)
		must.Eq(t, 0o600, info.Mode().Perm())
		must.LessEq(t, 1<<20, info.Size())
		text, err := os.ReadFile(name)
		must.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			var f flow.Flow
			must.NoError(t, json.Unmarshal([]byte(line), &f))
			seen[f.Number] = true
		}
	}
	must.MapLen(t, all, seen)
}

// BenchmarkFlowRecord measures the processor time that one record costs the agent, apart from
// reading the ring, and which share of a core that is when as many come as are read.
func BenchmarkFlowRecord(b *testing.B) {
	now := time.Unix(1000, 0)
	words, log := wordsOf(&now), flowlog.New(10_000)
	event := bpf.Event{
		Time: now, Opened: now, Interface: 5, Direction: bpf.FromWorkload, Reason: bpf.NoContract, Protocol: 6,
		Source: netip.MustParseAddrPort("100.64.0.1:4000"), Destination: netip.MustParseAddrPort("100.64.0.2:5432"), SourceIdentity: 16, DestinationIdentity: 17,
	}
	used := func() (ns float64) {
		var u unix.Rusage
		must.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
		return float64(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	for b.Loop() {
		log.Add(words.record(event))
	}
	each := (used() - before) / float64(b.N)
	b.ReportMetric(each, "cpu-ns/record")
	b.ReportMetric(each*20_000/float64(time.Second), "cores/20000")
}
