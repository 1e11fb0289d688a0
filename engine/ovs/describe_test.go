// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	of "github.com/sif-project/sif/engine/openflow"
)

// plainNames makes names of the numbers.
type plainNames struct{}

func (plainNames) Class(c uint32) string  { return fmt.Sprintf("class-%d", c) }
func (plainNames) Port(no uint32) string  { return fmt.Sprintf("port-%d", no) }
func (plainNames) Entry(id uint64) string { return fmt.Sprintf("entry-%d", id) }
func (plainNames) Group(g uint16) string  { return fmt.Sprintf("group-%d", g) }
func (plainNames) Path(c uint16) string   { return fmt.Sprintf("path-%d", c) }

const notInWords = "(cannot be described: "

func TestDescribe(t *testing.T) {
	port := Port{No: 3, MAC: MAC{2, 0, 0, 0, 0, 1}, Peer: MAC{2, 0, 0, 0, 0, 2}, Routers: true}
	hole := Endpoint{ID: 6, Hole: true, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	endpoint := Endpoint{ID: 5, Class: 11, OutPort: 3, SourcePorts: []uint32{3}, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("fd00::/64")}}
	entry := Entry{ID: 7, Src: 11, Dst: 12, Protocol: 6, Ports: []PortRange{{First: 8080, Last: 8087}}}
	ping := Entry{ID: 8, Src: 11, Dst: 12, Protocol: 58, Ports: []PortRange{{First: 128, Last: 128}}}
	far := Endpoint{ID: 9, Class: 12, Group: 4, Number: 0x5a, SourcePorts: []uint32{3, 4}, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.9/32")}}
	wish := Entry{ID: 7, Src: 11, Dst: 12, Class: 2, Protocol: 17, Ports: []PortRange{{First: 53, Last: 53}}}
	way, moved := Way{Course{From: 3, To: 4, Bucket: AllBuckets}, 7}, Course{From: 3, To: 4, Class: 2, Bucket: 0x5a}
	var have []string
	for _, flows := range [][]of.Flow{
		port.flows(), Port{No: 4, Outside: true}.flows()[1:], endpoint.flows(nil, 5), hole.flows(nil, 0), entry.stateFlows(), entry.policyFlows(), ping.policyFlows(), passAllFlows(),
		far.flows(nil, 0), bucketFlows()[0x5a:0x5b], bucketFlows()[0x15a:0x15b], wish.stateFlows(), wish.policyFlows()[:1], {way.flow(), Way{moved, 7}.flow(), moved.flow()},
		{Gate{Group: 3, Zone: 1}.flow(2)}, commitFlows(1),
	} {
		for _, f := range flows {
			have = append(have, Describe(f, plainNames{}))
		}
	}
	must.Eq(t, strings.TrimSpace(`
table output, priority 100: packets leaving by port-3: set source MAC 02:00:00:00:00:01, set destination MAC 02:00:00:00:00:02, output to port-3
table source, priority 300: icmp over IPv4 received on port-3 of type 3 with code 4: source is a router on the path, go to table destination
table source, priority 300: icmp over IPv4 received on port-3 of type 11: source is a router on the path, go to table destination
table source, priority 300: icmpv6 over IPv6 received on port-3 of type 2 with code 0: source is a router on the path, go to table destination
table source, priority 300: icmpv6 over IPv6 received on port-3 of type 3: source is a router on the path, go to table destination
table source, priority 300: icmp over IPv4 received on port-4 of type 3: source is a router on the path, go to table destination
table source, priority 300: icmp over IPv4 received on port-4 of type 11: source is a router on the path, go to table destination
table source, priority 300: icmp over IPv4 received on port-4 of type 12: source is a router on the path, go to table destination
table source, priority 300: icmpv6 over IPv6 received on port-4 of type 1: source is a router on the path, go to table destination
table source, priority 300: icmpv6 over IPv6 received on port-4 of type 2: source is a router on the path, go to table destination
table source, priority 300: icmpv6 over IPv6 received on port-4 of type 3: source is a router on the path, go to table destination
table source, priority 300: icmpv6 over IPv6 received on port-4 of type 4: source is a router on the path, go to table destination
table source, priority 132: IPv4 received on port-3 from 10.0.0.1: source is class-11, go to table destination
table destination, priority 132: IPv4 to 10.0.0.1: destination is class-11, output port is port-3, go to table track
table endpoint-limit, priority 132: IPv4 from 10.0.0.1 that open a connection: drop as too fast beyond the rate of meter 5, go to table zone-limit
table source, priority 164: IPv6 received on port-3 from fd00::/64: source is class-11, go to table destination
table destination, priority 164: IPv6 to fd00::/64: destination is class-11, output port is port-3, go to table track
table endpoint-limit, priority 164: IPv6 from fd00::/64 that open a connection: drop as too fast beyond the rate of meter 5, go to table zone-limit
table source, priority 108: IPv4 from 10.0.0.0/8: drop as unknown source
table destination, priority 108: IPv4 to 10.0.0.0/8: drop as unknown destination
table state, priority 500: packets from class-11 to class-12 of connections of entry-7 in original direction: go to table way
table state, priority 500: packets from class-12 to class-11 of connections of entry-7 in reply direction: go to table way
table state, priority 500: packets from a router on the path of connections of entry-7 related to a connection: go to table way
table policy, priority 100: tcp over IPv4 to ports 8080-8087 from class-11 to class-12: admit for entry-7, commit the connection that they open, go to table endpoint-limit
table policy, priority 150: tcp over IPv4 from ports 8080-8087 from class-12 to class-11 in a valid connection state in reply direction: admit for entry-7, commit their connection as it is, go to table commit
table policy, priority 90: tcp over IPv4 from ports 8080-8087 from class-12 to class-11 without SYN that open a connection of no established connection in original direction: go to table moved
table policy, priority 160: later fragments of tcp over IPv4 from class-11 to class-12 in a valid connection state in original direction: commit their connection without an entry, go to table endpoint-limit
table policy, priority 160: later fragments of tcp over IPv4 from class-12 to class-11 in a valid connection state in reply direction: commit their connection without an entry, go to table endpoint-limit
table policy, priority 100: tcp over IPv6 to ports 8080-8087 from class-11 to class-12: admit for entry-7, commit the connection that they open, go to table endpoint-limit
table policy, priority 150: tcp over IPv6 from ports 8080-8087 from class-12 to class-11 in a valid connection state in reply direction: admit for entry-7, commit their connection as it is, go to table commit
table policy, priority 90: tcp over IPv6 from ports 8080-8087 from class-12 to class-11 without SYN that open a connection of no established connection in original direction: go to table moved
table policy, priority 160: later fragments of tcp over IPv6 from class-11 to class-12 in a valid connection state in original direction: commit their connection without an entry, go to table endpoint-limit
table policy, priority 160: later fragments of tcp over IPv6 from class-12 to class-11 in a valid connection state in reply direction: commit their connection without an entry, go to table endpoint-limit
table policy, priority 100: icmpv6 over IPv6 of type 128 from class-11 to class-12: admit for entry-8, commit the connection that they open, go to table endpoint-limit
table policy, priority 150: icmpv6 over IPv6 from class-12 to class-11 of exchanges that type 128 began in a valid connection state in reply direction: admit for entry-8, commit their connection as it is, go to table commit
table policy, priority 160: later fragments of icmpv6 over IPv6 from class-11 to class-12 in a valid connection state in original direction: commit their connection without an entry, go to table endpoint-limit
table policy, priority 160: later fragments of icmpv6 over IPv6 from class-12 to class-11 in a valid connection state in reply direction: commit their connection without an entry, go to table endpoint-limit
table state, priority 2000: every packet: go to table way
table source, priority 3: IPv4: go to table destination
table source, priority 3: IPv6: go to table destination
table source, priority 132: IPv4 received on port-3 from 10.0.0.9: source is class-12, source is group-4, number of source is 90, go to table destination
table source, priority 132: IPv4 received on port-4 from 10.0.0.9: source is class-12, source is group-4, number of source is 90, go to table destination
table destination, priority 132: IPv4 to 10.0.0.9: destination is class-12, destination is group-4, number of destination is 90, go to table bucket-low
table bucket-low, priority 100: packets from a number that ends in 5 to a number that ends in a: bucket ends in f, go to table bucket-high
table bucket-high, priority 100: packets from a number that begins with 5 to a number that begins with a: bucket begins with f, go to table track
table state, priority 500: packets from class-11 to class-12 of connections of entry-7 in original direction: path is path-2, go to table way
table state, priority 500: packets from class-12 to class-11 of connections of entry-7 in reply direction: path is path-2, go to table way
table state, priority 500: packets from a router on the path of connections of entry-7 related to a connection: go to table way
table policy, priority 100: udp over IPv4 to port 53 from class-11 to class-12: admit for entry-7, commit the connection that they open, path is path-2, go to table endpoint-limit
table way, priority 100: packets from group-3 to group-4: output port is port-7, go to table output
table way, priority 200: packets from group-3 to group-4 whose contract's path is path-2 in bucket 90: output port is port-7, go to table output
table moved, priority 200: packets from group-3 to group-4 whose contract's path is path-2 in bucket 90: go to table way
table zone-limit, priority 100: packets from group-3 that open a connection: drop as too fast beyond the rate of meter 2, go to table commit
table commit, priority 100: IPv4 that commit the connection that they open: commit the connection to the entry in zone 1, go to table way
table commit, priority 100: IPv6 that commit the connection that they open: commit the connection to the entry in zone 1, go to table way
table commit, priority 100: IPv4 that commit their connection as it is: commit the connection to the entry in zone 1, go to table way
table commit, priority 100: IPv6 that commit their connection as it is: commit the connection to the entry in zone 1, go to table way
table commit, priority 100: IPv4 that commit their connection without an entry: commit the connection in zone 1, go to table way
table commit, priority 100: IPv6 that commit their connection without an entry: commit the connection in zone 1, go to table way
`), strings.Join(have, "\n"))
}

// Every flow that a pipeline writes can be described.
func TestOwnFlowsHaveWords(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWanted(uint16(rapid.IntRange(0, 9).Draw(t, "zone")))
		var state State
		number := rapid.Uint32Range(1, 1000)
		prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
			a := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "v4")))
			if rapid.Bool().Draw(t, "six") {
				a = netip.AddrFrom16([16]byte(append([]byte{0xfd}, rapid.SliceOfN(rapid.Byte(), 15, 15).Draw(t, "v6")...)))
			}
			return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
		})
		for range rapid.IntRange(0, 3).Draw(t, "things") {
			no := number.Draw(t, "port")
			state.Ports = append(state.Ports, Port{No: no, Routers: rapid.Bool().Draw(t, "routers"), Outside: rapid.Bool().Draw(t, "outside")})
			state.Endpoints = append(state.Endpoints, Endpoint{ID: uint64(number.Draw(t, "endpoint")), Class: number.Draw(t, "class"), Limited: rapid.Bool().Draw(t, "limited"), Group: uint16(number.Draw(t, "group")), Number: uint8(number.Draw(t, "of group")), OutPort: no, SourcePorts: []uint32{no}, Prefixes: []netip.Prefix{prefix.Draw(t, "prefix")}})
			course := Course{From: uint16(number.Draw(t, "from")), To: uint16(number.Draw(t, "to")), Class: uint16(number.Draw(t, "path")), Bucket: Bucket(rapid.IntRange(-1, 255).Draw(t, "bucket"))}
			state.Ways, state.Moved = append(state.Ways, Way{course, no}), append(state.Moved, course)
			e := Entry{ID: uint64(number.Draw(t, "entry")), Class: uint16(number.Draw(t, "wish")), Src: number.Draw(t, "src"), Dst: number.Draw(t, "dst"), Protocol: rapid.SampledFrom([]uint8{1, 6, 17, 58, 132}).Draw(t, "protocol")}
			most := uint16(65535)
			if _, types := typeFields[e.Protocol]; types {
				most = 255
			}
			first := rapid.Uint16Range(0, most).Draw(t, "first")
			e.Ports = []PortRange{{First: first, Last: rapid.Uint16Range(first, most).Draw(t, "last")}}
			state.Entries = append(state.Entries, e)
		}
		state.Gates, state.Rates = []Gate{{Group: uint16(number.Draw(t, "gate")), Zone: 1}}, Rates{Rate{1, 1}, Rate{2, 2}}
		w.offer(100)
		w.apply(change{after: state, next: state})
		flows := w.flows()
		if rapid.Bool().Draw(t, "passes all") {
			put(flows, passAllFlows())
		}
		for _, f := range flows {
			must.StrNotContains(t, Describe(f, plainNames{}), notInWords)
		}
	})
}

// Any flow is described in words, or printed with the reason why not.
func TestAnyFlowIsDescribed(t *testing.T) {
	fields := []of.Field{of.InPort, of.EthDst, of.EthSrc, of.EthType, of.IPProto, of.IPv4Src, of.IPv4Dst, of.TCPDst, of.ICMPv4Type, of.ICMPv6Code, of.IPv6Src, of.CTState, of.CTMark, of.CTLabel, of.Reg(0), of.Reg(1), of.Reg(2), of.Reg(3), of.Reg(4), of.Reg(5), of.Reg(7), of.Reg(8), of.Reg(9), of.Reg(10), of.LongReg(3), of.TCPFlags}
	rapid.Check(t, func(t *rapid.T) {
		var match []of.FieldMatch
		var actions []of.Action
		for range rapid.IntRange(0, 4).Draw(t, "fields") {
			n := rapid.SampledFrom([]int{0, 1, 2, 4, 6, 8, 16, 17}).Draw(t, "length")
			bytes := rapid.SliceOfN(rapid.Byte(), n, n)
			m := of.FieldMatch{Field: rapid.SampledFrom(fields).Draw(t, "field"), Value: bytes.Draw(t, "value")}
			if rapid.Bool().Draw(t, "masked") {
				m.Mask = bytes.Draw(t, "mask")
			}
			match = append(match, m)
			actions = append(actions, rapid.SampledFrom([]of.Action{
				of.Output{Port: 0xfffffffa}, of.SetField{Field: m.Field, Value: m.Value}, of.Unknown{Wire: []byte{0, 17, 0, 8, 0, 0, 0, 0}},
				of.Move{From: m.Field, To: of.CTLabel, Length: uint8(n)}, of.Meter{ID: 5},
				of.CT{Commit: true, Exec: []of.Action{of.Move{From: m.Field, To: of.CTLabel, Length: uint8(n)}}},
				of.CT{Commit: true, Exec: []of.Action{of.SetField{Field: m.Field, Value: m.Value}}},
			}).Draw(t, "action"))
		}
		f := of.Flow{Key: of.Key{Table: rapid.Byte().Draw(t, "table"), Match: of.NewMatch(match...)}, Instructions: of.Apply(actions...), Cookie: rapid.Uint64().Draw(t, "cookie")}
		text := Describe(f, plainNames{})
		must.StrContains(t, text, "table")
		if strings.Contains(text, notInWords) {
			must.StrContains(t, text, f.String())
		}
		for _, line := range (Diff{Added: []of.Flow{f}, Removed: []of.Flow{f}, Changed: []Change{{Have: of.FlowStats{Flow: f}, Want: pokeFlow()}, {Have: of.FlowStats{Flow: f}, Want: f}}}).Describe(plainNames{}) {
			must.StrContains(t, line, " flow: ")
		}
	})
}
