// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/shoenig/test/must"
)

func TestGuarded(t *testing.T) {
	f := newFixture(t)
	must.Error(t, f.Guarded("me"))
	must.Error(t, f.Guarded("nothing"))
	must.NoError(t, f.Attach("me"))
	must.NoError(t, f.Guarded("me"))

	// A second program could decide before ours.
	other, err := link.AttachTCX(link.TCXOptions{Interface: int(f.me), Program: f.programs.SifToWorkload, Attach: ebpf.AttachTCXIngress})
	must.NoError(t, err)
	must.ErrorContains(t, f.Guarded("me"), "2 programs")
	must.NoError(t, other.Close())
	must.NoError(t, f.Guarded("me"))

	must.NoError(t, os.Remove(filepath.Join(f.linkDirectory("me"), "to_workload")))
	// The kernel removes the program asynchronously.
	for deadline := time.Now().Add(5 * time.Second); f.Guarded("me") == nil && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	must.ErrorContains(t, f.Guarded("me"), "0 programs at its to_workload hook")
}
