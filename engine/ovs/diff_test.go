// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	of "github.com/sif-project/sif/engine/openflow"
)

// drawState draws a small State, so that two of them often share numbers, addresses, classes and
// ports.
func drawState(t *rapid.T, name string) State {
	number := func(most int, what string) uint32 { return uint32(rapid.IntRange(1, most).Draw(t, name+" "+what)) }
	var s State
	for no := range 3 {
		if rapid.IntRange(0, 4).Draw(t, name+" has port") > 0 {
			s.Ports = append(s.Ports, Port{No: uint32(no + 1), Peer: MAC{5: byte(number(2, "peer"))}})
		}
	}
	group := func(what string) uint16 { return uint16(number(3, what)) - 1 }
	free := rapid.Permutation([]byte{1, 2, 3, 4}).Draw(t, name+" addresses")
	for i := range rapid.IntRange(0, 3).Draw(t, name+" endpoints") {
		out := number(3, "port out")
		e := Endpoint{
			ID: uint64(i + 1), Class: number(3, "class"), OutPort: out, SourcePorts: []uint32{out}, Group: group("group"),
			Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, free[i]}), 32)},
		}
		e.Limited = rapid.Bool().Draw(t, name+" limited")
		if e.Group > 0 {
			e.Number = rapid.SampledFrom(testNumbers).Draw(t, name+" number")
		}
		if e.Group > 1 {
			e.OutPort = 0
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	course := rapid.Custom(func(t *rapid.T) Course {
		return Course{From: group("from"), To: uint16(number(2, "to")), Class: group("path"), Bucket: rapid.SampledFrom([]Bucket{AllBuckets, 0, 1, 0x10, 0x11}).Draw(t, "bucket")}
	})
	for _, c := range rapid.SliceOfNDistinct(course, 0, 4, rapid.ID).Draw(t, name+" ways") {
		s.Ways = append(s.Ways, Way{c, number(3, "way")})
	}
	for g := range uint16(3) {
		if rapid.Bool().Draw(t, name+" gate") {
			s.Gates = append(s.Gates, Gate{Group: g, Zone: uint16(number(2, "zone"))})
		}
	}
	rate := rapid.SampledFrom([]Rate{{}, {10, 20}, {10, 30}})
	s.Rates = Rates{rate.Draw(t, name+" rate of an endpoint"), rate.Draw(t, name+" rate of a zone")}
	s.Moved = rapid.SliceOfNDistinct(course, 0, 3, rapid.ID).Draw(t, name+" moved")
	ids := rapid.Permutation([]uint64{1, 2, 3, 4}).Draw(t, name+" entry numbers")
	for i := range rapid.IntRange(0, 3).Draw(t, name+" entries") {
		first := uint16(80 + number(2, "first"))
		s.Entries = append(s.Entries, Entry{
			ID: ids[i], Src: number(3, "src"), Dst: number(3, "dst"), Class: group("entry's path"), Protocol: 6,
			Ports: []PortRange{{First: first, Last: first + uint16(number(2, "more"))}},
		})
	}
	return s
}

// testNumbers are numbers of endpoints whose halves are 0 and 1.
var testNumbers = []uint8{0, 1, 0x10, 0x11}

func flowsOf(t *rapid.T, s State) (*wanted, map[of.Key]of.Flow) {
	w := newWanted(1)
	w.offer(32)
	c, left := w.change(s)
	must.SliceEmpty(t, left)
	w.apply(c)
	return w, w.flows()
}

// The difference between two states is that between all their flows.
func TestDifferenceOfStates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, have := flowsOf(t, drawState(t, "have"))
		for range 3 {
			next := drawState(t, "next")
			next.Rates = w.state.Rates // with others, all is read back
			c, left := w.change(next)
			must.SliceEmpty(t, left)
			before, metersBefore := w.flowsBefore(c), w.metersOf(c)
			meters := w.meters()
			w.apply(c)
			for id := range metersBefore {
				delete(meters, id)
			}
			maps.Copy(meters, w.metersOf(c))
			must.Eq(t, w.meters(), meters)
			for _, s := range compareOwn(before, w.flowsAfter(c)).steps(rapid.Bool().Draw(t, "lagging")) {
				write(have, s)
			}
			_, want := flowsOf(t, next)
			must.True(t, maps.Equal(want, have))
			must.True(t, maps.Equal(want, w.flows()))
		}
	})
}

// write does to a table what a switch does.
func write(flows map[of.Key]of.Flow, s step) {
	for _, key := range s.remove {
		delete(flows, key)
	}
	put(flows, s.add)
}

// While the datapath follows a change, a packet may meet the old tables before connection tracking
// and the new ones after it, or the other way round. It never gets where neither the old nor the
// new state leads it, with the ways and moves of either.
func TestChangeIsNeverWiderThanBothStates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := drawState(t, "from"), drawState(t, "to")
		_, have := flowsOf(t, from)
		_, want := flowsOf(t, to)
		var states []tables
		for _, s := range []State{from, to} {
			for _, leading := range []State{from, to} {
				s.Ways, s.Moved = leading.Ways, leading.Moved
				_, flows := flowsOf(t, s)
				states = append(states, tablesOf(flows))
			}
		}
		var before []of.FlowStats
		for _, f := range have {
			before = append(before, of.FlowStats{Flow: f})
		}
		steps := compare(before, maps.Clone(want)).steps(false)
		versions := []map[of.Key]of.Flow{have}
		check := func() {
			var list []tables
			for _, v := range versions {
				list = append(list, tablesOf(v))
			}
			for _, p := range packets() {
				allowed := []string{""}
				for _, s := range states {
					allowed = append(allowed, fate(s, s, p))
				}
				for _, first := range list {
					for _, second := range list {
						must.SliceContains(t, allowed, fate(first, second, p), must.Sprintf("%v\nfrom %+v\nto %+v", p, from, to))
					}
				}
			}
		}
		for _, s := range steps {
			next := maps.Clone(versions[len(versions)-1])
			write(next, s)
			versions = append(versions, next)
			check()
			if s.wait {
				versions = versions[len(versions)-1:]
			}
		}
		must.True(t, maps.Equal(want, versions[len(versions)-1]))
	})
}

// What is taken away is out of the datapath when the last step is over, and what the policy adds is
// in.
func TestStepsWait(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := drawState(t, "from"), drawState(t, "to")
		_, have := flowsOf(t, from)
		_, want := flowsOf(t, to)
		var before []of.FlowStats
		for _, f := range have {
			before = append(before, of.FlowStats{Flow: f})
		}
		d := compare(before, want)
		steps := d.steps(false)
		if len(d.Removed)+len(d.Changed) > 0 {
			must.True(t, steps[0].wait)
		}
		if slices.ContainsFunc(d.Added, func(f of.Flow) bool { return f.Table >= tableState && !leads(f) && !throttles(f) }) {
			must.True(t, steps[len(steps)-1].wait)
		}
		if slices.ContainsFunc(d.Added, leads) {
			must.True(t, steps[0].wait)
		}
		lagging := d.steps(true)
		must.Len(t, 2, lagging)
		must.True(t, lagging[0].wait)
		for _, f := range lagging[0].add {
			must.True(t, f.Table == tablePolicy || leads(f) || throttles(f))
		}
	})
}

// packet is a TCP packet that opens a connection, or one that answers on a connection that the
// switch has not seen.
type packet struct {
	in       uint32
	src, dst byte
	port     uint16
	answers  bool
}

func packets() (list []packet) {
	for in := range uint32(3) {
		for src := range byte(4) {
			for dst := range byte(4) {
				for port := range uint16(4) {
					list = append(list, packet{in + 1, src + 1, dst + 1, port + 81, false}, packet{in + 1, src + 1, dst + 1, port + 81, true})
				}
			}
		}
	}
	return list
}

// tables are flows by table, those of the highest priority first.
type tables map[uint8][]rule

// rule is a flow whose wire forms are decoded.
type rule struct {
	of.Flow
	match   []of.FieldMatch
	actions []of.Action
	next    int
}

// decoded are the rules that tablesOf has made: most flows are the same in all states.
var decoded = map[of.Flow]rule{}

func tablesOf(flows map[of.Key]of.Flow) tables {
	list := tables{}
	for _, f := range flows {
		r, known := decoded[f]
		if !known {
			var err error
			r.Flow, r.match = f, f.Match.Fields()
			if r.actions, r.next, err = f.Instructions.Decode(); err != nil {
				panic(err)
			}
			decoded[f] = r
		}
		if (f.Table == tableLow || f.Table == tableHigh) && slices.ContainsFunc(r.match, func(m of.FieldMatch) bool { return !slices.Contains(testNumbers, m.Value[3]) }) {
			continue // no endpoint has such a number
		}
		list[f.Table] = append(list[f.Table], r)
	}
	for _, rules := range list {
		slices.SortFunc(rules, func(a, b rule) int { return int(b.Priority) - int(a.Priority) })
	}
	return list
}

// fate says to which port and peer a packet gets, or "", when it meets the flows first before
// connection tracking and the flows second after it.
func fate(first, second tables, p packet) string {
	fields := map[of.Field][]byte{
		of.InPort: binary.BigEndian.AppendUint32(nil, p.in), of.EthType: {8, 0}, of.IPProto: {6},
		of.IPv4Src: {10, 0, 0, p.src}, of.IPv4Dst: {10, 0, 0, p.dst}, of.TCPDst: binary.BigEndian.AppendUint16(nil, p.port),
		of.CTState: make([]byte, 4), of.CTLabel: make([]byte, 16), of.TCPSrc: {200, 0}, of.TCPFlags: {0, of.TCPSyn},
	}
	if p.answers {
		fields[of.TCPSrc], fields[of.TCPDst], fields[of.TCPFlags] = fields[of.TCPDst], fields[of.TCPSrc], []byte{0, 0x10}
	}
	for n := range 11 {
		fields[of.Reg(n)] = make([]byte, 4)
	}
	flows := first
	for table := 0; table >= 0; {
		rules := flows[uint8(table)]
		i := slices.IndexFunc(rules, func(r rule) bool { return matches(r.match, fields) })
		if i < 0 {
			return ""
		}
		table = rules[i].next
		for _, a := range rules[i].actions {
			switch a := a.(type) {
			case of.SetField:
				fields[a.Field] = a.Value
			case of.CT:
				if a.Table != nil {
					fields[of.CTState] = []byte{0, 0, 0, of.CTTracked | of.CTNew}
					flows, table = second, int(*a.Table)
				}
			case of.Output:
				return fmt.Sprintf("port %d, peer %x", a.Port, fields[of.EthDst])
			}
		}
	}
	return ""
}

func matches(match []of.FieldMatch, fields map[of.Field][]byte) bool {
	for _, f := range match {
		have := fields[f.Field]
		if len(have) != len(f.Value) {
			return false
		}
		for i, v := range f.Value {
			mask := byte(0xff)
			if f.Mask != nil {
				mask = f.Mask[i]
			}
			if have[i]&mask != v {
				return false
			}
		}
	}
	return true
}
