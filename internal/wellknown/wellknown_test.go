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
}

// TestDataPathAgrees compares with what the eBPF programs are compiled with.
func TestDataPathAgrees(t *testing.T) {
	header, err := os.ReadFile("../../bpf/headers/policy.h")
	must.NoError(t, err)
	must.StrContains(t, string(header), fmt.Sprintf("#define DNS_PORT %d\n", DNSPort))
}
