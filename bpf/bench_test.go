// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/shoenig/test/must"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// BenchmarkVerdict measures the cost of a packet with the kernel's program test run, in ns/packet,
// with 100 to 100,000 policy entries. "empty" is the cost of the test run itself; "denied" includes
// that the packet is counted with those refused before. "unrecorded" is the same flow when it is
// not recorded, of which the ratio is reported: what recording costs.
func BenchmarkVerdict(b *testing.B) {
	f := newFixture(b)
	established := ethernet(ip(me4, friend4, 6, tcp(4000, 8080, ack)))
	answer := ethernet(ip(friend4, me4, 6, tcp(8080, 4000, ack)))
	denied := ethernet(ip(me4, friend4, 6, tcp(4000, 8081, syn)))
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MPL-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	must.NoError(b, err)
	defer empty.Close()

	f.measure(b, "empty", empty, skb{Ifindex: f.me}, established)
	for _, entries := range []int{100, 100_000} {
		f.fill(entries)
		f.forget()
		must.Eq(b, AllowedContract, f.step(sent(AllowedContract, ip(me4, friend4, 6, tcp(4000, 8080, syn)))))
		must.Eq(b, AllowedConnection, f.step(wire(AllowedConnection, ip(friend4, me4, 6, tcp(8080, 4000, syn|ack)))))
		suffix := fmt.Sprintf("/entries=%d", entries)
		f.measure(b, "from-workload/established"+suffix, f.program(FromWorkload), skb{Ifindex: f.me}, established)
		f.measure(b, "to-workload/established"+suffix, f.program(ToWorkload), skb{Ifindex: f.me, Ingress: f.wire}, answer)
		f.measure(b, "from-workload/denied"+suffix, f.program(FromWorkload), skb{Ifindex: f.me}, denied)
		f.compare(b, "from-workload/recorded/unrecorded"+suffix, skb{Ifindex: f.me}, established)
	}
}

// fill adds rules of other pairs, and as many peers, up to a number.
func (f *fixture) fill(entries int) {
	pairs, masks := make([]endpointPairKey, entries), make([]uint32, entries)
	keys, rules := make([]endpointRuleKey, entries), make([]endpointRule, entries)
	peers, owners := make([]endpointAddr, entries), make([]endpointPeer, entries)
	for i := range entries {
		id := uint32(1000 + i)
		pairs[i], masks[i] = endpointPairKey{Source: id, Destination: idMe, Protocol: 6}, 1<<16
		keys[i], rules[i] = endpointRuleKey{Source: id, Destination: idMe, Port: 80, Length: 16, Protocol: 6}, endpointRule{Contract: id}
		peers[i] = toMap(netip.AddrFrom4([4]byte{100, byte(65 + i>>16), byte(i >> 8), byte(i)}))
		owners[i] = endpointPeer{Identity: id, Ifindex: f.wire}
	}
	_, err := f.objects.SifPairs.BatchUpdate(pairs, masks, nil)
	must.NoError(f.t, err)
	_, err = f.objects.SifRules.BatchUpdate(keys, rules, nil)
	must.NoError(f.t, err)
	_, err = f.objects.SifPeers.BatchUpdate(peers, owners, nil)
	must.NoError(f.t, err)
}

// measure runs a sub-benchmark in the fixture's network namespace.
func (f *fixture) measure(b *testing.B, name string, program *ebpf.Program, context skb, data []byte) {
	b.Run(name, func(b *testing.B) {
		runtime.LockOSThread() // without an unlock, so that the thread ends with the goroutine
		must.NoError(b, netns.Set(f.namespace))
		ns, err := testRun(program, context, data, b.N)
		must.NoError(b, err)
		b.ReportMetric(float64(ns), "ns/packet")
	})
}

// compare reports what an established flow costs while it is recorded, as a multiple of what it
// costs while it is not. Both are measured in turns, and the fastest turn of each counts.
func (f *fixture) compare(b *testing.B, name string, context skb, data []byte) {
	b.Run(name, func(b *testing.B) {
		runtime.LockOSThread() // without an unlock, so that the thread ends with the goroutine
		must.NoError(b, netns.Set(f.namespace))
		entries, err := dump[endpointConnKey, endpointConn](f.objects.SifConns, "sif_conns")
		must.NoError(b, err)
		must.Len(b, 1, entries)
		must.Positive(b, entries[0].value.Flow)
		const turns = 20
		var recorded, unrecorded uint32 = math.MaxUint32, math.MaxUint32
		for range turns {
			for _, turn := range []struct {
				flow uint32
				best *uint32
			}{{0, &unrecorded}, {entries[0].value.Flow, &recorded}} {
				value := entries[0].value
				value.Flow = turn.flow
				must.NoError(b, f.objects.SifConns.Put(entries[0].key, value))
				ns, err := testRun(f.program(FromWorkload), context, data, max(b.N/turns, 1))
				must.NoError(b, err)
				*turn.best = min(*turn.best, ns)
			}
		}
		b.ReportMetric(float64(recorded), "ns/recorded")
		b.ReportMetric(float64(unrecorded), "ns/unrecorded")
		b.ReportMetric(float64(recorded)/float64(max(unrecorded, 1)), "ratio")
	})
}

// testRun runs a program many times on one packet and returns the mean time in ns that the kernel
// measured. The library's Benchmark cannot set the context, which contains the interfaces.
func testRun(program *ebpf.Program, context skb, data []byte, repeat int) (uint32, error) {
	attr := struct {
		program, verdict              uint32
		sizeIn, sizeOut               uint32
		dataIn, dataOut               unsafe.Pointer
		repeat, duration              uint32
		contextSizeIn, contextSizeOut uint32
		contextIn, contextOut         unsafe.Pointer
		flags, cpu, batch, pad        uint32
	}{
		program: uint32(program.FD()), sizeIn: uint32(len(data)), dataIn: unsafe.Pointer(&data[0]),
		repeat: uint32(repeat), contextSizeIn: uint32(unsafe.Sizeof(context)), contextIn: unsafe.Pointer(&context),
	}
	for {
		_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_TEST_RUN, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, fmt.Errorf("test run: %w", errno)
		}
		return attr.duration, nil
	}
}
