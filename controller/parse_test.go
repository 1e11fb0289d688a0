// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

func FuzzParseSignature(f *testing.F) {
	f.Add("vault:v1:AAAA")
	f.Add("vault:v0:AAAA")
	f.Add("vault:1:AAAA:")
	f.Fuzz(func(t *testing.T, s string) {
		version, sig, err := parseSignature(s)
		if err != nil {
			return
		}
		again, sig2, err := parseSignature(fmt.Sprintf("vault:v%d:%s", version, base64.StdEncoding.EncodeToString(sig)))
		must.NoError(t, err)
		must.Eq(t, version, again)
		must.Eq(t, sig, sig2)
	})
}

func TestPools(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd5f:7369:6600::/48")
	must.Eq(t, 16384, unitCount(v4, v6))
	must.NoError(t, checkPools(v4, v6, 22))
	must.NoError(t, checkPools(netip.MustParsePrefix("10.0.0.0/20"), v6, 20))
	must.Error(t, checkPools(v6, v4, 24))
	must.Error(t, checkPools(netip.Prefix{}, v6, 24))
	must.Error(t, checkPools(netip.MustParsePrefix("10.0.0.0/25"), v6, 24))
	must.Error(t, checkPools(netip.MustParsePrefix("10.0.0.0/23"), v6, 22))
	must.Error(t, checkPools(v4, netip.MustParsePrefix("fd00::/65"), 24))
	must.Error(t, checkPools(v4, v6, 19))
	must.Error(t, checkPools(v4, v6, 25))
	rapid.Check(t, func(t *rapid.T) {
		n, m := rapid.IntRange(0, 16383).Draw(t, "n"), rapid.IntRange(0, 16383).Draw(t, "m")
		a4, a6 := poolPair(v4, v6, n, bits4)
		b4, b6 := poolPair(v4, v6, m, bits4)
		if !v4.Overlaps(a4) || !v6.Overlaps(a6) || a4.Bits() != bits4 || a6.Bits() != bits6 {
			t.Fatalf("pools %s, %s lie outside", a4, a6)
		}
		if n != m && (a4.Overlaps(b4) || a6.Overlaps(b6)) {
			t.Fatalf("pools %d and %d overlap", n, m)
		}
	})
}

func TestNearestSelectors(t *testing.T) {
	d := &fabric.Domain{Name: "big"}
	for i := range 30 {
		d.Services = append(d.Services, fabric.Service{
			Name: fmt.Sprintf("s%d", i), Selectors: []fabric.Selector{{Kind: fabric.SelectNomad, Namespace: "default", Job: fmt.Sprintf("job-%02d", i)}},
		})
	}
	_, err := choose(&fabric.Graph{Domains: domains(d)}, fabric.Workload{Namespace: "default", Job: "job-1", Group: "g"}, stanza{})
	e := code(t, api.CodeNoSelector, err)
	must.Len(t, maxTried, e.Details.Tried)
	must.StrContains(t, e.Message, "the nearest 10 of 30 tried: ")
	must.StrHasPrefix(t, `big/s10: nomad(namespace=default, job=job-10): job is "job-1"`, e.Details.Tried[0])
	_, err = choose(&fabric.Graph{}, fabric.Workload{}, stanza{})
	must.StrContains(t, code(t, api.CodeNoSelector, err).Message, "matches no selector of the graph; there are none")
}
