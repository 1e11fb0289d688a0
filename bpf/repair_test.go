// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
)

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
