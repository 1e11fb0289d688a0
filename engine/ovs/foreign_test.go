// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/engine/ovs"
)

type testNames struct{}

func (testNames) Class(c uint32) string  { return fmt.Sprintf("class-%d", c) }
func (testNames) Port(no uint32) string  { return fmt.Sprintf("port-%d", no) }
func (testNames) Entry(id uint64) string { return fmt.Sprintf("entry-%d", id) }
func (testNames) Group(g uint16) string  { return fmt.Sprintf("group-%d", g) }
func (testNames) Path(c uint16) string   { return fmt.Sprintf("path-%d", c) }

// Changes by hand in a real switch are described in words as far as possible.
func TestChangesByHandAreDescribed(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	_, err := f.p.Reconcile(ctx, f.state)
	must.NoError(t, err)
	for _, tc := range []struct {
		ofctl string
		want  []string // of each line, in order
	}{
		{"add-flow table=0,priority=65535,actions=NORMAL",
			[]string{"foreign flow: table source, priority 65535: every packet: output to the port that MAC learning chooses; its cookie is 0x0"}},
		{"add-flow table=6,priority=200,cookie=7,tcp,reg0=11,tp_dst=22,actions=goto_table:12",
			[]string{"foreign flow: table policy, priority 200: tcp over IPv4 to port 22 from class-11: go to table output; its cookie is 0x7"}},
		{"add-flow table=0,priority=9,arp,actions=output:1,output:2",
			[]string{"foreign flow: table source, priority 9: ARP: output to port-1, output to port-2; its cookie is 0x0"}},
		{"add-flow table=0,priority=9,udp,nw_src=10.0.0.0/255.0.255.0,actions=drop",
			[]string{"(cannot be described: the mask of ipv4_src is not a prefix)"}},
		{"add-flow table=6,priority=7,tcp,tcp_flags=+syn,actions=drop", []string{"(cannot be described: no description for matching tcp_flags=0002/0002)"}},
		{"add-flow table=6,priority=7,actions=learn(table=20,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[]),goto_table:12", []string{"(cannot be described: no description for the action unknown:"}},
		{"add-flow table=5,priority=1000,cookie=0x0200000000000004,ct_state=+trk+inv,actions=goto_table:12",
			[]string{"altered flow: table state, priority 1000: packets in an invalid connection state: go to table output; expected: drop as invalid connection state"}},
		{"add-flow table=4,priority=1,cookie=0x0100000000000000,ip,idle_timeout=900,actions=set_field:0->reg5,set_field:0->reg6,ct(table=5,zone=7)",
			[]string{"altered flow: table track, priority 1: IPv4: number of source is 0, number of destination is 0, track the connection in zone 7, go to table state; it has timeouts or flags"}},
		{"del-flows table=12,reg2=1", []string{"missing flow: table output, priority 100: packets leaving by port-1: set source MAC 02:00:00:00:00:01, set destination MAC 02:00:00:00:01:01, output to port-1"}},
		{"del-flows table=6,cookie=0x0500000000000001/-1", nil}, // Inspect takes it for an entry that admits nothing
		{"del-flows table=5,cookie=0x0500000000000001/-1", []string{
			"missing flow: table state, priority 500: packets from a router on the path of connections of entry-1",
			"missing flow: table state, priority 500: packets from class-11 to class-12 of connections of entry-1 in original direction: go to table way",
			"missing flow: table state, priority 500: packets from class-12 to class-11 of connections of entry-1 in reply direction: go to table way"}},
	} {
		command, flow, _ := strings.Cut(tc.ofctl, " ")
		f.instance.Ofctl(command, flow)
		state, diff, err := f.p.Inspect(ctx)
		must.NoError(t, err)
		must.Len(t, 1, state.Entries)
		must.Eq(t, ovs.Entry{ID: entryAB, Src: classA, Dst: classB}, ovs.Entry{ID: state.Entries[0].ID, Src: state.Entries[0].Src, Dst: state.Entries[0].Dst})
		have := diff.Describe(testNames{})
		must.Len(t, len(tc.want), have, must.Sprint(tc.ofctl, "\n", strings.Join(have, "\n")))
		for i, want := range tc.want {
			must.StrContains(t, have[i], want)
		}
		_, err = f.p.Reconcile(ctx, f.state)
		must.NoError(t, err)
	}
}
