// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
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
	attach(t, f.Datapath, "me", "the from_workload program", "the to_workload program")
	must.NoError(t, f.Guarded("me"))
	attach(t, f.Datapath, "me")

	// A second program could decide before ours.
	other, err := link.AttachTCX(link.TCXOptions{Interface: int(f.me), Program: f.programs.SifToWorkload, Attach: ebpf.AttachTCXIngress})
	must.NoError(t, err)
	must.ErrorContains(t, f.Guarded("me"), "2 programs")
	must.NoError(t, other.Close())
	must.NoError(t, f.Guarded("me"))

	// Programs stay while only their pins are gone.
	pin := filepath.Join(f.linkDirectory("me"), "to_workload")
	must.NoError(t, os.RemoveAll(f.dir))
	time.Sleep(50 * time.Millisecond) // the kernel removes programs asynchronously
	must.NoError(t, f.Guarded("me"))
	attach(t, f.Datapath, "me", "the pin of the from_workload program", "the pin of the to_workload program")
	attach(t, f.Datapath, "me")

	taken, err := link.LoadPinnedLink(pin, nil)
	must.NoError(t, err)
	must.NoError(t, taken.Detach())
	must.NoError(t, taken.Close())
	must.ErrorContains(t, f.Guarded("me"), "0 programs at its to_workload hook")
	attach(t, f.Datapath, "me", "the to_workload program")
	must.NoError(t, f.Guarded("me"))
	must.NoError(t, f.Detach("me"))
	for deadline := time.Now().Add(5 * time.Second); f.Guarded("me") == nil && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	must.ErrorContains(t, f.Guarded("me"), "0 programs")
}

// attach attaches the programs to an interface and checks what was missing.
func attach(t *testing.T, d *Datapath, name string, missing ...string) {
	t.Helper()
	got, err := d.Attach(name)
	must.NoError(t, err)
	must.Eq(t, missing, got)
}

// TestRepair alters what Open sets up.
func TestRepair(t *testing.T) {
	enterNamespace(t)
	dir := pinDirectory(t)
	options := Options{Resolver4: netip.MustParseAddr("169.254.1.1"), Fabric: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd5f::/48")}}
	d := open(t, dir, options)
	repaired := func(want ...string) {
		t.Helper()
		got, err := d.Repair()
		must.NoError(t, err)
		must.Eq(t, want, got)
	}
	repaired()
	must.NoError(t, os.RemoveAll(dir))
	var pins []string
	for name := range d.maps() {
		pins = append(pins, "the pin of map "+name)
	}
	slices.Sort(pins)
	repaired(pins...)
	repaired()
	other, err := OpenPinned(dir)
	must.NoError(t, err)
	defer other.Close()
	generation := d.config.Generation
	other.config.Dns4 = toMap(netip.MustParseAddr("192.0.2.1"))
	repaired("the resolver's address")
	must.Greater(t, generation, other.config.Generation)
	address, length, err := prefixToMap(options.Fabric[0])
	must.NoError(t, err)
	must.NoError(t, other.objects.SifFabric.Delete(endpointFabricKey{PrefixLength: length, Address: address}))
	address, length, err = prefixToMap(netip.MustParsePrefix("10.0.0.0/8"))
	must.NoError(t, err)
	must.NoError(t, other.objects.SifFabric.Put(endpointFabricKey{PrefixLength: length, Address: address}, uint32(1)))
	repaired("prefix 10.0.0.0/8 of the fabric, removed", "prefix 100.64.0.0/10 of the fabric, added")
	repaired()
}
