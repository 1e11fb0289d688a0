// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

func TestCanonicalMeansTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Rule {
			from := rapid.Uint16Range(0, 40).Draw(t, "from")
			return Rule{rapid.SampledFrom([]uint8{6, 17}).Draw(t, "protocol"), from,
				rapid.Uint16Range(from, 40).Draw(t, "to"), rapid.Uint32Range(1, 3).Draw(t, "contract")}
		}), 0, 6).Draw(t, "rules")
		got := Canonical(rules)
		for _, protocol := range []uint8{6, 17} {
			for port := range uint16(42) {
				want := contractAt(rules, protocol, port)
				if n := contractAt(got, protocol, port); n != want {
					t.Fatalf("protocol %d port %d: contract %d, want %d of %v", protocol, port, n, want, rules)
				}
			}
		}
		if diff := cmp.Diff(got, Canonical(got)); diff != "" {
			t.Fatalf("canonical of canonical differs: %s", diff)
		}
	})
}

func contractAt(rules []Rule, protocol uint8, port uint16) (least uint32) {
	for _, r := range rules {
		if r.Protocol == protocol && r.From <= port && port <= r.To && (least == 0 || r.Contract < least) {
			least = r.Contract
		}
	}
	return least
}

func TestReasonsAreThoseOfTheProgram(t *testing.T) {
	want := map[endpointReason]string{}
	spec, err := loadEndpoint()
	must.NoError(t, err)
	for _, v := range enumOf(t, spec, "reason") {
		want[endpointReason(v.Value)] = v.Name
	}
	for n, name := range want {
		why := Reason(n)
		_, known := reasonNames[why]
		if inside := why != 0 && n != endpointReasonREASON_COUNT; known != inside {
			t.Errorf("%s is known to Go: %t, want %t", name, known, inside)
		} else if known && constantName("REASON_", why.String()) != name {
			t.Errorf("%s is called %s in Go", name, why)
		}
	}
	if TooFast+1 != reasonCount {
		t.Errorf("the last reason is not TooFast")
	}
	if FromWorkload != Direction(endpointDirectionDIRECTION_FROM_WORKLOAD) || ToWorkload != Direction(endpointDirectionDIRECTION_TO_WORKLOAD) {
		t.Errorf("directions are numbered otherwise in C")
	}
}

func TestMapsTellWhatTheyHold(t *testing.T) {
	f := newFixture(t)
	pairs, err := f.Pairs()
	must.NoError(t, err)
	want := map[Pair][]Rule{
		{idMe, idFriend}:    {{1, 8, 8, contractEcho}, {6, 8080, 8080, contractOut}, {17, 9000, 9010, contractDatagrams}, {58, 128, 128, contractEcho}, {132, 7000, 7000, contractStreams}},
		{idFriend, idMe}:    {{6, 80, 80, contractIn}, {58, 128, 128, contractEcho}},
		{idUsers, idMe}:     {{6, 443, 443, contractUsers}},
		{idMe, idBank}:      {{6, 443, 443, contractBank}},
		{idMe, idNeighbour}: {{6, 0, 65535, contractNeighbours}},
	}
	if diff := cmp.Diff(want, pairs); diff != "" {
		t.Errorf("pairs: -want +got\n%s", diff)
	}

	endpoints, err := f.Endpoints()
	must.NoError(t, err)
	compare(t, endpoints, []Endpoint{{f.me, idMe, addr(me4), addr(me6)}, {f.neighbour, idNeighbour, addr(neighbour4), netip.Addr{}}},
		func(a, b Endpoint) bool { return a.Interface < b.Interface })
	checks, err := f.Checks()
	must.NoError(t, err)
	compare(t, checks, []Check{{f.me, 6, 80}}, func(a, b Check) bool { return a.Port < b.Port })
	externals, err := f.Externals()
	must.NoError(t, err)
	must.Len(t, 5, externals)
	must.True(t, slices.Contains(externals, External{netip.MustParsePrefix("2001:db8::/32"), idUsers, f.underlay}))
	must.True(t, slices.Contains(externals, External{netip.MustParsePrefix("198.51.100.0/24"), idBank, 0}))
	must.NoError(t, f.DeleteExternal(External{Prefix: netip.MustParsePrefix("2001:db8::/32"), Interface: f.underlay}))
	externals, err = f.Externals()
	must.NoError(t, err)
	must.Len(t, 4, externals)
	peers, err := f.Peers()
	must.NoError(t, err)
	must.Len(t, 6, peers)
	must.True(t, slices.Contains(peers, Peer{addr(friend6), idFriend, f.wire}))

	f.step(sent(AllowedContract, ip(me4, friend4, 6, tcp(4000, 8080, syn))))
	connections, err := f.Connections()
	must.NoError(t, err)
	must.Len(t, 1, connections)
	c := connections[0]
	wantConn := Connection{Interface: f.me, Local: netip.MustParseAddrPort(me4 + ":4000"), Remote: netip.MustParseAddrPort(friend4 + ":8080"),
		Protocol: 6, Outbound: true, Contract: contractOut, LocalIdentity: idMe, RemoteIdentity: idFriend, Generation: c.Generation, Idle: c.Idle}
	if c != wantConn {
		t.Errorf("connection %+v, want %+v", c, wantConn)
	}

	// Entries that another process wrote are found and repaired.
	must.NoError(t, f.objects.SifRules.Put(endpointRuleKey{Source: idMe, Destination: idStranger, Port: 22, Length: 16, Protocol: 6}, endpointRule{Contract: 99}))
	must.NoError(t, f.objects.SifPairs.Delete(endpointPairKey{Source: idMe, Destination: idBank, Protocol: 6}))
	pairs, err = f.Pairs()
	must.NoError(t, err)
	for _, p := range []Pair{{idMe, idStranger}, {idMe, idBank}} {
		rules, there := pairs[p]
		if !there || len(rules) != 0 {
			t.Errorf("contradicting pair %v: %v", p, rules)
		}
		f.rules(p.Source, p.Destination, want[p]...)
	}
	pairs, err = f.Pairs()
	must.NoError(t, err)
	if diff := cmp.Diff(want, pairs); diff != "" {
		t.Errorf("after repair: -want +got\n%s", diff)
	}
	for p := range want {
		f.rules(p.Source, p.Destination)
	}
	pairs, err = f.Pairs()
	must.NoError(t, err)
	must.MapEmpty(t, pairs)
}

func TestWhatTakesAwayRaisesTheGeneration(t *testing.T) {
	f := newFixture(t)
	generation := func() uint64 {
		c, err := f.Counters()
		must.NoError(t, err)
		return c.Generation
	}
	for _, test := range []struct {
		name   string
		raises bool
		do     func() error
	}{
		{"new peer", false, func() error { return f.PutPeer(Peer{addr("100.64.7.7"), 7, f.wire}) }},
		{"same peer", false, func() error { return f.PutPeer(Peer{addr("100.64.7.7"), 7, f.wire}) }},
		{"altered peer", true, func() error { return f.PutPeer(Peer{addr("100.64.7.7"), 8, f.wire}) }},
		{"deleted peer", true, func() error { return f.DeletePeer(addr("100.64.7.7")) }},
		{"deleted again", false, func() error { return f.DeletePeer(addr("100.64.7.7")) }},
		{"new rule", false, func() error { return f.ReplacePair(Pair{7, 8}, []Rule{{6, 1, 9, 1}}) }},
		{"same rule", false, func() error { return f.ReplacePair(Pair{7, 8}, []Rule{{6, 1, 9, 1}}) }},
		{"wider rule", true, func() error { return f.ReplacePair(Pair{7, 8}, []Rule{{6, 0, 9, 1}}) }}, // other prefixes
		{"one more rule", false, func() error { return f.ReplacePair(Pair{7, 8}, []Rule{{6, 0, 9, 1}, {17, 1, 1, 1}}) }},
		{"one rule fewer", true, func() error { return f.ReplacePair(Pair{7, 8}, []Rule{{6, 0, 9, 1}}) }},
		{"another contract", true, func() error { return f.ReplacePair(Pair{7, 8}, []Rule{{6, 0, 9, 2}}) }},
		{"new external", true, func() error { return f.PutExternal(External{netip.MustParsePrefix("203.0.113.0/28"), 9, f.underlay}) }},
		{"check gone", true, func() error { return f.DeleteCheck(Check{f.me, 6, 80}) }},
	} {
		before := generation()
		must.NoError(t, test.do())
		if got := generation() > before; got != test.raises {
			t.Errorf("%s: raises the generation: %t, want %t", test.name, got, test.raises)
		}
	}
}

func TestBadInputChangesNothing(t *testing.T) {
	f := newFixture(t)
	before, err := f.Pairs()
	must.NoError(t, err)
	for name, err := range map[string]error{
		"no contract":        f.ReplacePair(Pair{1, 2}, []Rule{{6, 1, 2, 0}}),
		"upside down":        f.ReplacePair(Pair{1, 2}, []Rule{{6, 2, 1, 1}}),
		"other protocol":     f.ReplacePair(Pair{1, 2}, []Rule{{50, 1, 2, 1}}),
		"nobody as peer":     f.PutPeer(Peer{addr("100.64.7.7"), 0, 1}),
		"nobody as endpoint": f.PutEndpoint(Endpoint{f.bare, 0, addr("100.64.7.7"), netip.Addr{}}),
		"nobody as external": f.PutExternal(External{netip.MustParsePrefix("192.0.2.0/24"), 0, 0}),
		"peer of host":       f.PutPeer(Peer{addr("100.64.7.7"), 7, 0}),
		"multicast peer":     f.PutPeer(Peer{addr("224.0.0.1"), 7, 1}),
		"peer of no address": f.PutPeer(Peer{netip.Addr{}, 7, 1}),
		"v4 as v6":           f.PutEndpoint(Endpoint{f.bare, 1, netip.Addr{}, addr("100.64.7.7")}),
		"endpoint nowhere":   f.PutEndpoint(Endpoint{0, 1, addr("100.64.7.7"), netip.Addr{}}),
		"no prefix":          f.PutExternal(External{}),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	after, err := f.Pairs()
	must.NoError(t, err)
	must.Eq(t, before, after)
}

func TestFullMapsSayWhich(t *testing.T) {
	enterNamespace(t)
	d := open(t, pinDirectory(t), Options{Sizes: map[string]uint32{"sif_rules": 4, "sif_peers": 1, "sif_externals": 1}})
	var full *FullError
	err := d.ReplacePair(Pair{1, 2}, []Rule{{6, 1, 1000, 1}})
	must.True(t, errors.As(err, &full))
	must.Eq(t, FullError{"sif_rules", 4}, *full)
	must.ErrorContains(t, err, "map sif_rules is full: it has 4 entries")
	must.NoError(t, d.PutPeer(Peer{addr(me4), 1, 1}))
	must.True(t, errors.As(d.PutPeer(Peer{addr(friend4), 1, 1}), &full))
	must.Eq(t, "sif_peers", full.Map)
	must.NoError(t, d.PutExternal(External{netip.MustParsePrefix("0.0.0.0/0"), 1, 1}))
	must.True(t, errors.As(d.PutExternal(External{netip.MustParsePrefix("::/0"), 1, 1}), &full))
	must.Eq(t, "sif_externals", full.Map)
	// The entries that were written are removed again.
	must.NoError(t, d.ReplacePair(Pair{1, 2}, []Rule{{6, 80, 80, 1}}))
	pairs, err := d.Pairs()
	must.NoError(t, err)
	must.Eq(t, map[Pair][]Rule{{1, 2}: {{6, 80, 80, 1}}}, pairs)
}

func TestOtherSizesAreIncompatible(t *testing.T) {
	dir := pinDirectory(t)
	d := open(t, dir, Options{})
	must.NoError(t, d.ReplacePair(Pair{1, 2}, []Rule{{6, 80, 80, 1}}))
	other := Options{Sizes: map[string]uint32{"sif_rules": 4}}
	_, err := Open(dir, other)
	must.ErrorIs(t, err, ErrIncompatible)
	must.ErrorIs(t, err, ebpf.ErrMapIncompatible)
	must.NoError(t, DiscardMaps(dir))
	d = open(t, dir, other)
	pairs, err := d.Pairs()
	must.NoError(t, err)
	must.MapEmpty(t, pairs)
}

func compare[T any](t *testing.T, got, want []T, less func(a, b T) bool) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.SortSlices(less), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// What a pair may no longer do ends even if a full map refuses what it may do instead.
func TestFullMapKeepsNothingThatIsTakenAway(t *testing.T) {
	enterNamespace(t)
	d := open(t, pinDirectory(t), Options{Sizes: map[string]uint32{"sif_rules": 2}})
	must.NoError(t, d.ReplacePair(Pair{1, 2}, []Rule{{6, 80, 80, 1}}))
	must.NoError(t, d.ReplacePair(Pair{1, 3}, []Rule{{6, 80, 80, 1}}))
	var full *FullError
	must.True(t, errors.As(d.ReplacePair(Pair{1, 2}, []Rule{{6, 1, 7, 1}}), &full))
	pairs, err := d.Pairs()
	must.NoError(t, err)
	must.SliceEmpty(t, pairs[Pair{1, 2}])
	must.SliceNotEmpty(t, pairs[Pair{1, 3}])
}
