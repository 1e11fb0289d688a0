// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package wellknown

import (
	"fmt"
	"os"
	"testing"

	"github.com/shoenig/test/must"
)

func TestNames(t *testing.T) {
	must.Eq(t, "169.254.1.1", LinkLocal4.String())
	must.Eq(t, "fe80::1", LinkLocal6.String())
	must.Eq(t, "sif-l0", LinkInterface(0))
	must.Eq(t, "sif-l79", LinkInterface(79))
	must.Eq(t, "sif-o12", SwitchInterface("sif-l12"))
	must.Eq(t, "sif-aws1-p1-l12", LinkNamespace("sif-aws1-p1", "sif-l12"))
	must.Eq(t, "sif-h7", HostInterface(7))
	must.Eq(t, "169.254.51.7", HostAddress(HostFar4, 7).String())
	must.Eq(t, "fd51:f0c9:7a13:50::ff", HostAddress(HostNear6, MaxHosts-1).String())
}

// TestSlotsAreApart compares the marks and the routing tables of exits and of processes of the
// node.
func TestSlotsAreApart(t *testing.T) {
	marks, tables := map[uint32]bool{ExitMarkNode: true}, map[int]bool{ExitTable(MaxExits): true}
	for slot := range MaxExits {
		marks[ExitMark(slot)], tables[ExitTable(slot)] = true, true
	}
	for slot := range MaxHosts {
		must.False(t, marks[HostMark(slot)])
		must.False(t, tables[HostTable(slot)])
		must.Eq(t, HostMark(0), HostMark(slot)&HostMarks)
	}
}

// TestDataPathAgrees compares with what the eBPF programs are compiled with.
func TestDataPathAgrees(t *testing.T) {
	header, err := os.ReadFile("../../bpf/headers/policy.h")
	must.NoError(t, err)
	must.StrContains(t, string(header), fmt.Sprintf("#define DNS_PORT %d\n", DNSPort))
}
