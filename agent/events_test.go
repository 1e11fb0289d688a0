// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
)

type fixedNames map[uint32]string

func (f fixedNames) Name(n uint32) string { return f[n] }

var someNames = fixedNames{
	16: "identity shop/web >shop/sql", 17: "identity shop/db <shop/sql", 18: "contract shop/sql", 19: "external shop/users shop/world",
}

func TestAuditedFlow(t *testing.T) {
	event := bpf.Event{Reason: bpf.AllowedContract, Direction: bpf.FromWorkload, Protocol: 6, Contract: 18 | bpf.AuditContract,
		SourceIdentity: 16, DestinationIdentity: 17, Destination: netip.MustParseAddrPort("100.64.0.2:5432")}
	k, ok := auditedFlow(someNames, event)
	must.True(t, ok)
	must.Eq(t, flowKey{refOf("shop/web"), refOf("shop/db"), refOf("shop/sql"), fabric.TCP, 5432}, k)

	for name, change := range map[string]func(*bpf.Event){
		"not in audit mode":        func(e *bpf.Event) { e.Contract = 18 },
		"dropped":                  func(e *bpf.Event) { e.Reason = bpf.NoContract },
		"the other end reports it": func(e *bpf.Event) { e.Direction = bpf.ToWorkload },
		"it goes on":               func(e *bpf.Event) { e.GoesOn = true },
		"it has ended":             func(e *bpf.Event) { e.Ended = true },
		"of nobody":                func(e *bpf.Event) { e.SourceIdentity = 0 },
	} {
		other := event
		change(&other)
		_, ok := auditedFlow(someNames, other)
		must.False(t, ok, must.Sprint(name))
	}
	event.Direction, event.SourceIdentity = bpf.ToWorkload, 19
	k, ok = auditedFlow(someNames, event)
	must.True(t, ok)
	must.Eq(t, refOf("shop/users"), k.From)
}

func TestAuditedCountsAll(t *testing.T) {
	var a audited
	now := time.Unix(1000, 0)
	for port := range 3 * maxAudited {
		k := flowKey{From: refOf("shop/web"), Protocol: fabric.TCP, Port: uint16(port + 1)}
		a.add(k, now)
		must.False(t, a.add(k, now))
	}
	must.LessEq(t, maxAudited+1, len(a.all()))
	total := uint64(0)
	for _, f := range a.all() {
		total += f.Count
	}
	must.Eq(t, 6*maxAudited, total)
}

func TestFlows(t *testing.T) {
	now := time.Unix(2000, 0)
	at := netip.MustParseAddrPort
	out := bpf.Connection{Local: at("100.64.0.1:4000"), Remote: at("100.64.0.2:5432"), Protocol: 6, Outbound: true, Contract: 18, LocalIdentity: 16, RemoteIdentity: 17, Idle: time.Minute}
	again := out
	again.Idle = time.Second
	old := out
	old.Idle = time.Hour
	in := bpf.Connection{Local: at("100.64.0.1:443"), Remote: at("203.0.113.7:4000"), Protocol: 6, Contract: 18, LocalIdentity: 16, RemoteIdentity: 19}
	answered := bpf.Connection{Local: at("100.64.0.1:5432"), Remote: at("100.64.0.2:4000"), Protocol: 6, Contract: 18, LocalIdentity: 17, RemoteIdentity: 16}
	host := bpf.Connection{Local: at("100.64.0.1:80"), Remote: at("192.0.2.1:4000"), Protocol: 6, Host: true, LocalIdentity: 16}
	must.Eq(t, []api.FlowStatus{
		{From: refOf("shop/users"), To: refOf("shop/web"), Contract: refOf("shop/sql"), Protocol: fabric.TCP, Port: 443, Count: 1, Last: now},
		{From: refOf("shop/web"), To: refOf("shop/db"), Contract: refOf("shop/sql"), Protocol: fabric.TCP, Port: 5432, Count: 2, Last: now.Add(-time.Second)},
	}, flows(someNames, []bpf.Connection{out, again, old, in, answered, host}, now))
}

func refOf(s string) fabric.Ref {
	r, err := fabric.ParseRef(s)
	if err != nil {
		panic(err)
	}
	return r
}
