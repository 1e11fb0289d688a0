// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package openflow

import (
	"encoding/binary"
	"testing"

	"github.com/shoenig/test/must"
)

// statsOf encodes a flow as the switch lists it.
func statsOf(f Flow) []byte {
	b := make([]byte, flowStatsLen)
	b[2] = f.Table
	binary.BigEndian.PutUint16(b[12:], f.Priority)
	binary.BigEndian.PutUint64(b[24:], f.Cookie)
	binary.BigEndian.PutUint64(b[32:], 42)
	b = f.Match.append(b)
	b = append(b, f.Instructions.wire...)
	binary.BigEndian.PutUint16(b, uint16(len(b)))
	return b
}

func TestFlowsSurviveTheWire(t *testing.T) {
	for _, tc := range golden {
		if tc.mod.command != commandAdd {
			continue
		}
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseFlowStats(statsOf(tc.mod.flow))
			must.NoError(t, err)
			must.SliceLen(t, 1, got)
			must.Eq(t, tc.mod.flow.String(), got[0].String())
			must.True(t, tc.mod.flow == got[0].Flow)
			must.Eq(t, uint64(42), got[0].Packets)
			must.False(t, got[0].Foreign)
		})
	}
}

func TestCanonicalMatch(t *testing.T) {
	a := NewMatch(Masked16(TCPDst, 80, 0xffff), Is8(IPProto, 6), Is16(EthType, 0x800), Masked16(UDPDst, 9, 0))
	b := NewMatch(Is16(EthType, 0x800), Is8(IPProto, 6), Is16(TCPDst, 80))
	must.True(t, a == b, must.Sprintf("%s / %s", a, b))
}

// A field of the experimenter class keeps its form, so that a flow that matches it can be removed.
func TestFieldOfExperimenter(t *testing.T) {
	wire := []byte{0xff, 0xff, 42<<1 | 1, 8, 'O', 'N', 'F', 0, 0, 2, 0, 2} // tcp_flags=+syn
	fields, err := parseOXMs(wire)
	must.NoError(t, err)
	must.Eq(t, []FieldMatch{{Field: 0xffff<<16 | 42<<9, Experimenter: 0x4f4e4600, Value: []byte{0, 2}, Mask: []byte{0, 2}}}, fields)
	must.Eq(t, string(wire), NewMatch(fields...).oxm)
	_, err = parseOXMs([]byte{0xff, 0xff, 42 << 1, 2, 0, 0})
	must.ErrorContains(t, err, "experimenter has 2 bytes")
}

func TestErrorText(t *testing.T) {
	for _, tc := range []struct {
		err  Error
		want string
	}{
		{Error{Type: 4, Code: 9, Request: "add x"}, "switch refused: bad match: prerequisite missing: add x"},
		{Error{Type: 17, Code: 99}, "switch refused: bundle failed: code 99"},
		{Error{Type: 77, Code: 1}, "switch refused: error type 77: code 1"},
	} {
		must.Eq(t, tc.want, tc.err.Error())
	}
}

// describedMeter encodes a meter as the switch lists it.
func describedMeter(m MeterConfig) []byte {
	b := m.append([]byte{0, 0})
	binary.BigEndian.PutUint16(b, uint16(len(b)))
	return b
}

// Meters of others keep what of them fits, so that they can be removed, and are not taken for ours.
func TestForeignMeters(t *testing.T) {
	ours := MeterConfig{ID: 7, PerSecond: 10, Burst: 20}
	for name, tc := range map[string]struct {
		change func(b []byte) []byte
		want   []MeterConfig
	}{
		"ours":             {func(b []byte) []byte { return b }, []MeterConfig{ours}},
		"without counters": {func(b []byte) []byte { b[3] &^= 8; return b }, []MeterConfig{{ID: 7, PerSecond: 10, Burst: 20, Foreign: true}}},
		"remarks":          {func(b []byte) []byte { b[9] = 2; return b }, []MeterConfig{{ID: 7, PerSecond: 10, Burst: 20, Foreign: true}}},
		"two bands": {func(b []byte) []byte { b[1] += 16; return append(b, b[8:24]...) },
			[]MeterConfig{{ID: 7, PerSecond: 10, Burst: 20, Foreign: true}}},
		"no band":          {func(b []byte) []byte { b[1] = 8; return b[:8] }, []MeterConfig{{ID: 7, Foreign: true}}},
		"the switch's own": {func(b []byte) []byte { b[4] = 0xff; b[5] = 0xff; b[6] = 0xff; return b }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseMeters(tc.change(describedMeter(ours)))
			must.NoError(t, err)
			must.Eq(t, tc.want, got)
		})
	}
	for _, b := range [][]byte{{0, 24, 0}, {0, 4, 0, 0, 0, 0, 0, 1}, {0, 25, 0, 0, 0, 0, 0, 1}} {
		_, err := parseMeters(b)
		must.Error(t, err)
		must.Error(t, parseMeterDrops(b, nil))
	}
}

// FuzzDecode feeds the decoders of everything that a switch sends. What they accept must survive
// encoding.
func FuzzDecode(f *testing.F) {
	for _, tc := range golden {
		f.Add(statsOf(tc.mod.flow))
	}
	for _, tc := range goldenMeters {
		f.Add(describedMeter(tc.mod.meter))
	}
	f.Add([]byte{0, 4, 0, 9})
	f.Add(make([]byte, 40))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseError(b)
		_, _ = parsePorts(b)
		_ = parseMeterDrops(b, map[uint32]uint64{})
		meters, _ := parseMeters(b)
		for _, m := range meters {
			if again, err := parseMeters(describedMeter(m)); !m.Foreign {
				must.NoError(t, err)
				must.Eq(t, []MeterConfig{m}, again)
			}
		}
		flows, err := parseFlowStats(b)
		if err != nil {
			return
		}
		for _, flow := range flows {
			_ = flow.String()
			again, err := parseFlowStats(statsOf(flow.Flow))
			must.NoError(t, err)
			must.True(t, again[0].Flow == flow.Flow)
		}
	})
}
