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
	free := rapid.Permutation([]byte{1, 2, 3, 4}).Draw(t, name+" addresses")
	for i := range rapid.IntRange(0, 3).Draw(t, name+" endpoints") {
		out := number(3, "port out")
		s.Endpoints = append(s.Endpoints, Endpoint{
			ID: uint64(i + 1), Class: number(3, "class"), OutPort: out, SourcePorts: []uint32{out},
			Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, free[i]}), 32)},
		})
	}
	ids := rapid.Permutation([]uint64{1, 2, 3, 4}).Draw(t, name+" entry numbers")
	for i := range rapid.IntRange(0, 3).Draw(t, name+" entries") {
		first := uint16(80 + number(2, "first"))
		s.Entries = append(s.Entries, Entry{
			ID: ids[i], Src: number(3, "src"), Dst: number(3, "dst"), Protocol: 6,
			Ports: []PortRange{{First: first, Last: first + uint16(number(2, "more"))}},
		})
	}
	return s
}

func flowsOf(t *rapid.T, s State) (*wanted, map[of.Key]of.Flow) {
	w := newWanted(1)
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
			c, left := w.change(next)
			must.SliceEmpty(t, left)
			before := w.flowsBefore(c)
			w.apply(c)
			for _, s := range compare(before, w.flowsAfter(c)).steps(rapid.Bool().Draw(t, "lagging")) {
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
// new state leads it.
func TestChangeIsNeverWiderThanBothStates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := drawState(t, "from"), drawState(t, "to")
		_, have := flowsOf(t, from)
		_, want := flowsOf(t, to)
		var before []of.FlowStats
		for _, f := range have {
			before = append(before, of.FlowStats{Flow: f})
		}
		steps := compare(before, maps.Clone(want)).steps(false)
		versions := []map[of.Key]of.Flow{have}
		check := func() {
			for _, p := range packets() {
				allowed := []string{"", fate(have, have, p), fate(want, want, p)}
				for _, first := range versions {
					for _, second := range versions {
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
		if slices.ContainsFunc(d.Added, func(f of.Flow) bool { return f.Table >= tableState }) {
			must.True(t, steps[len(steps)-1].wait)
		}
		lagging := d.steps(true)
		must.Len(t, 2, lagging)
		must.True(t, lagging[0].wait)
		for _, f := range lagging[0].add {
			must.Eq(t, tablePolicy, f.Table)
		}
	})
}

// packet is a TCP packet that opens a connection.
type packet struct {
	in       uint32
	src, dst byte
	port     uint16
}

func packets() (list []packet) {
	for in := range uint32(3) {
		for src := range byte(4) {
			for dst := range byte(4) {
				for port := range uint16(4) {
					list = append(list, packet{in + 1, src + 1, dst + 1, port + 81})
				}
			}
		}
	}
	return list
}

// fate says to which port and peer a packet gets, or "", when it meets the flows first before
// connection tracking and the flows second after it.
func fate(first, second map[of.Key]of.Flow, p packet) string {
	fields := map[of.Field][]byte{
		of.InPort: binary.BigEndian.AppendUint32(nil, p.in), of.EthType: {8, 0}, of.IPProto: {6},
		of.IPv4Src: {10, 0, 0, p.src}, of.IPv4Dst: {10, 0, 0, p.dst}, of.TCPDst: binary.BigEndian.AppendUint16(nil, p.port),
		of.CTState: make([]byte, 4), of.CTLabel: make([]byte, 16),
	}
	flows := first
	for table := 0; table >= 0; {
		var best *of.Flow
		for _, f := range flows {
			if int(f.Table) == table && matches(f.Match, fields) && (best == nil || f.Priority > best.Priority) {
				best = &f
			}
		}
		if best == nil {
			return ""
		}
		actions, next, err := best.Instructions.Decode()
		if err != nil {
			panic(err)
		}
		table = next
		for _, a := range actions {
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

func matches(m of.Match, fields map[of.Field][]byte) bool {
	for _, f := range m.Fields() {
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
