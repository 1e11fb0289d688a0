// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
	"github.com/sif-project/sif/internal/trust/roster"
)

// A node has links to processors with a switch only.
func TestProcessorsWithSwitch(t *testing.T) {
	member := func(zone, name string, kind fabric.NodeKind, noSwitch bool) roster.Member {
		return roster.Member{Node: fabric.Node{Zone: zone, Name: name, Kind: kind, NoSwitch: noSwitch}}
	}
	carrier, both := member("a", "p1", fabric.KindProcessor, true), member("a", "b1", fabric.KindBoth, true)
	near, far := member("a", "p2", fabric.KindProcessor, false), member("b", "p1", fabric.KindProcessor, false)
	members := []roster.Member{carrier, both, near, far, member("b", "p2", fabric.KindProcessor, true), member("a", "w1", fabric.KindWorkload, false)}
	names := func(self roster.Member) (list []string) {
		for _, m := range processors(self.Node, members) {
			list = append(list, m.ID().String())
		}
		return list
	}
	must.Eq(t, []string{"a/p2"}, names(members[5]))
	must.Eq(t, []string{"a/p2"}, names(both))
	must.Eq(t, []string{"b/p1"}, names(near))
}

// Of a node with two daemons, neither puts back the record that the other one has registered since,
// unless it has lost what this one registered.
func TestRecordByTheOtherDaemon(t *testing.T) {
	ca := identitytest.NewCA(t)
	begin := time.Now().Truncate(time.Millisecond)
	record := func(after time.Duration, link string, change ...func(*fabric.Node)) fabric.NodeRecord {
		n := fabric.Node{Zone: "z", Name: "b", Kind: fabric.KindBoth, Underlay: netip.MustParseAddr("192.0.2.1"), Engine: 8441, Issued: begin.Add(after)}
		for _, c := range change {
			c(&n)
		}
		return fabric.NodeRecord{Node: ca.Sign(fabric.KindNode, n), Link: []byte(link), Certificate: [][]byte{[]byte(link)}, Signature: []byte(link)}
	}
	otherPort := func(n *fabric.Node) { n.Engine = 9000 }
	otherNode := func(n *fabric.Node) { n.Name = "c" }
	moved := func(n *fabric.Node) { n.Underlay = netip.MustParseAddr("192.0.2.2") }
	forged := record(time.Second, "l")
	forged.Node.Payload = append([]byte(" "), forged.Node.Payload...)
	registered := record(0, "l")
	for name, tc := range map[string]struct {
		stored        fabric.NodeRecord
		agent, engine bool
	}{
		"later":              {record(time.Second, "l"), true, true},
		"with another port":  {record(time.Second, "l", otherPort), true, false},
		"with another link":  {record(time.Second, "m"), false, true},
		"without a link":     {record(time.Second, ""), false, true},
		"older":              {record(-time.Second, "l"), false, false},
		"of another node":    {record(time.Second, "l", otherNode), false, false},
		"of another machine": {record(time.Second, "l", moved), false, false},
		"forged":             {forged, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			agent := &Node{Identity: ca.Node("z", "b", fabric.KindBoth), Links: &Links{}}
			agent.Self.Kind = fabric.KindBoth
			engine := &Node{Identity: agent.Identity, Self: agent.Self}
			must.Eq(t, tc.agent, agent.byOther(tc.stored, registered))
			must.Eq(t, tc.engine, engine.byOther(tc.stored, registered))
			agent.Self.Kind = fabric.KindWorkload
			must.False(t, agent.byOther(tc.stored, registered))
		})
	}
}
