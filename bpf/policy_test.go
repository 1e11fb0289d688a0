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
			return rule(rapid.SampledFrom([]uint8{6, 17}).Draw(t, "protocol"), from,
				rapid.Uint16Range(from, 40).Draw(t, "to"), rapid.Uint32Range(1, 3).Draw(t, "contract"))
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
	if NoWay+1 != reasonCount {
		t.Errorf("the last reason is not NoWay")
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
		{idMe, idFriend}:    {rule(1, 8, 8, contractEcho), rule(6, 8080, 8080, contractOut), rule(17, 9000, 9010, contractDatagrams), rule(58, 128, 128, contractEcho), rule(132, 7000, 7000, contractStreams)},
		{idFriend, idMe}:    {rule(6, 80, 80, contractIn), rule(58, 128, 128, contractEcho)},
		{idUsers, idMe}:     {rule(6, 443, 443, contractUsers)},
		{idMe, idBank}:      {rule(6, 443, 443, contractBank)},
		{idMe, idNeighbour}: {rule(6, 0, 65535, contractNeighbours)},
	}
	if diff := cmp.Diff(want, pairs); diff != "" {
		t.Errorf("pairs: -want +got\n%s", diff)
	}

	endpoints, err := f.Endpoints()
	must.NoError(t, err)
	compare(t, endpoints, []Endpoint{{Interface: f.me, Identity: idMe, IPv4: addr(me4), IPv6: addr(me6), Exit: exitOne}, endpoint(f.neighbour, idNeighbour, neighbour4, "")},
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
	must.True(t, slices.Contains(peers, peer(friend6, idFriend, f.wire)))

	gone := Peer{Address: addr("100.64.7.8"), Gone: true}
	must.NoError(t, f.PutPeer(gone))
	peers, err = f.Peers()
	must.NoError(t, err)
	must.True(t, slices.Contains(peers, gone))
	hole := External{netip.MustParsePrefix("198.51.100.128/25"), 0, 0}
	must.NoError(t, f.PutExternal(hole))
	externals, err = f.Externals()
	must.NoError(t, err)
	must.True(t, slices.Contains(externals, hole))
	told := Endpoint{Interface: f.neighbour, Identity: idNeighbour, IPv4: addr(neighbour4), Exit: 0x51f00103, Reject: true, Number: 0xfe}
	must.NoError(t, f.PutEndpoint(told))
	endpoints, err = f.Endpoints()
	must.NoError(t, err)
	must.True(t, slices.Contains(endpoints, told))
	port := Published{17, netip.MustParseAddrPort("192.0.2.1:5300"), netip.MustParseAddrPort(neighbour4 + ":53")}
	other := Published{6, netip.MustParseAddrPort("[2001:db8::1]:443"), netip.MustParseAddrPort("[fd5f::2]:8443")}
	must.NoError(t, f.PutPublished(port))
	must.NoError(t, f.PutPublished(other))
	published, err := f.Published()
	must.NoError(t, err)
	must.True(t, len(published) == 2 && slices.Contains(published, port) && slices.Contains(published, other))
	must.NoError(t, f.DeletePublished(port))
	published, err = f.Published()
	must.NoError(t, err)
	must.True(t, slices.Equal([]Published{other}, published))
	far := Peer{Address: addr("100.64.7.9"), Identity: 9, Ways: true, Group: 1<<15 - 1, Number: 0xff}
	must.NoError(t, f.PutPeer(far))
	peers, err = f.Peers()
	must.NoError(t, err)
	must.True(t, slices.Contains(peers, far))
	for _, ways := range []map[Way]uint32{{{1, 2, 3}: 4, {0, 0, 0}: 5}, {{1, 2, 3}: 5, {0xffff, 0x7fff, 0xff}: 6}, {}} {
		must.NoError(t, f.SetWays(ways))
		got, err := f.Ways()
		must.NoError(t, err)
		must.Eq(t, ways, got)
	}
	for _, classes := range []map[uint32]uint16{{10: 1, 1<<30 - 1: 0xffff}, {10: 2}, {}} {
		must.NoError(t, f.SetClasses(classes))
		got, err := f.Classes()
		must.NoError(t, err)
		must.Eq(t, classes, got)
	}
	for _, links := range [][]uint32{{3, 5}, {5, 7}, nil} {
		must.NoError(t, f.SetLinks(links))
		got, err := f.Links()
		must.NoError(t, err)
		must.Eq(t, links, got)
	}
	must.NoError(t, f.SetExits([]uint32{5, 3}))
	must.NoError(t, f.SetExits([]uint32{7, 3}))
	exits, err := f.Exits()
	must.NoError(t, err)
	must.Eq(t, []uint32{3, 7}, exits)
	want[Pair{idMe, idUsers}] = []Rule{{6, 1, 9, 20, false}, {6, 10, 10, 20, true}, {6, 11, 99, 21, true}}
	f.rules(idMe, idUsers, Rule{6, 5, 10, 20, true}, Rule{6, 1, 9, 20, false}, Rule{6, 1, 99, 21, true})
	pairs, err = f.Pairs()
	must.NoError(t, err)
	if diff := cmp.Diff(want, pairs); diff != "" {
		t.Errorf("pairs: -want +got\n%s", diff)
	}

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
		{"new peer", false, func() error { return f.PutPeer(peer("100.64.7.7", 7, f.wire)) }},
		{"same peer", false, func() error { return f.PutPeer(peer("100.64.7.7", 7, f.wire)) }},
		{"altered peer", true, func() error { return f.PutPeer(peer("100.64.7.7", 8, f.wire)) }},
		{"deleted peer", true, func() error { return f.DeletePeer(addr("100.64.7.7")) }},
		{"deleted again", false, func() error { return f.DeletePeer(addr("100.64.7.7")) }},
		{"new rule", false, func() error { return f.ReplacePair(Pair{7, 8}, []Rule{rule(6, 1, 9, 1)}) }},
		{"same rule", false, func() error { return f.ReplacePair(Pair{7, 8}, []Rule{rule(6, 1, 9, 1)}) }},
		{"wider rule", true, func() error { return f.ReplacePair(Pair{7, 8}, []Rule{rule(6, 0, 9, 1)}) }}, // other prefixes
		{"one more rule", false, func() error { return f.ReplacePair(Pair{7, 8}, []Rule{rule(6, 0, 9, 1), rule(17, 1, 1, 1)}) }},
		{"one rule fewer", true, func() error { return f.ReplacePair(Pair{7, 8}, []Rule{rule(6, 0, 9, 1)}) }},
		{"another contract", true, func() error { return f.ReplacePair(Pair{7, 8}, []Rule{rule(6, 0, 9, 2)}) }},
		{"new hole", true, func() error { return f.PutExternal(External{netip.MustParsePrefix("203.0.113.0/29"), 0, f.underlay}) }},
		{"new external", true, func() error { return f.PutExternal(External{netip.MustParsePrefix("203.0.113.0/28"), 9, f.underlay}) }},
		{"exits", false, func() error { return f.SetExits([]uint32{1, 2}) }},
		{"one exit fewer", true, func() error { return f.SetExits([]uint32{2}) }},
		{"links", false, func() error { return f.SetLinks([]uint32{1, 2}) }},
		{"one link fewer", true, func() error { return f.SetLinks([]uint32{1}) }},
		{"ways", false, func() error { return f.SetWays(map[Way]uint32{{0, 1, 1}: 5, {0, 1, 2}: 5}) }},
		{"same ways", false, func() error { return f.SetWays(map[Way]uint32{{0, 1, 1}: 5, {0, 1, 2}: 5}) }},
		{"moved ways", true, func() error { return f.SetWays(map[Way]uint32{{0, 1, 1}: 6, {0, 1, 2}: 6}) }},
		{"one way fewer", true, func() error { return f.SetWays(map[Way]uint32{{0, 1, 2}: 6}) }},
		{"one way more", false, func() error { return f.SetWays(map[Way]uint32{{0, 1, 1}: 5, {0, 1, 2}: 6}) }},
		{"class", true, func() error { return f.SetClasses(map[uint32]uint16{1: 1}) }},
		{"same class", false, func() error { return f.SetClasses(map[uint32]uint16{1: 1}) }},
		{"no class", true, func() error { return f.SetClasses(nil) }},
		{"new published port", false, func() error {
			return f.PutPublished(Published{6, netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort(me4 + ":80")})
		}},
		{"altered published port", true, func() error {
			return f.PutPublished(Published{6, netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort(me4 + ":81")})
		}},
		{"deleted published port", true, func() error {
			return f.DeletePublished(Published{Protocol: 6, From: netip.MustParseAddrPort("192.0.2.1:80")})
		}},
		{"peer gone", true, func() error { return f.PutPeer(Peer{Address: addr(friend4), Gone: true}) }},
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
		"no contract":                  f.ReplacePair(Pair{1, 2}, []Rule{rule(6, 1, 2, 0)}),
		"upside down":                  f.ReplacePair(Pair{1, 2}, []Rule{rule(6, 2, 1, 1)}),
		"other protocol":               f.ReplacePair(Pair{1, 2}, []Rule{rule(50, 1, 2, 1)}),
		"nobody as peer":               f.PutPeer(peer("100.64.7.7", 0, 1)),
		"nobody as endpoint":           f.PutEndpoint(endpoint(f.bare, 0, "100.64.7.7", "")),
		"peer of host":                 f.PutPeer(peer("100.64.7.7", 7, 0)),
		"multicast peer":               f.PutPeer(peer("224.0.0.1", 7, 1)),
		"peer of no address":           f.PutPeer(Peer{Identity: 7, Interface: 1}),
		"v4 as v6":                     f.PutEndpoint(Endpoint{Interface: f.bare, Identity: 1, IPv6: addr("100.64.7.7")}),
		"endpoint nowhere":             f.PutEndpoint(endpoint(0, 1, "100.64.7.7", "")),
		"no prefix":                    f.PutExternal(External{}),
		"gone and here":                f.PutPeer(Peer{Address: addr("100.64.7.7"), Identity: 7, Interface: 1, Gone: true}),
		"peer by ways of an interface": f.PutPeer(Peer{Address: addr("100.64.7.7"), Identity: 7, Ways: true, Interface: 1}),
		"nobody by ways":               f.PutPeer(Peer{Address: addr("100.64.7.7"), Ways: true}),
		"group too large":              f.PutPeer(Peer{Address: addr("100.64.7.7"), Identity: 7, Ways: true, Group: 1 << 15}),
		"group without ways":           f.PutPeer(Peer{Address: addr("100.64.7.7"), Identity: 7, Interface: 1, Group: 1}),
		"gone by ways":                 f.PutPeer(Peer{Address: addr("100.64.7.7"), Gone: true, Ways: true}),
		"interface too large":          f.PutPeer(peer("100.64.7.7", 7, 1<<31)),
		"way without a mark":           f.SetWays(map[Way]uint32{{0, 1, 1}: 5, {0, 1, 2}: 0}),
		"link of no interface":         f.SetLinks([]uint32{1, 0}),
		"class of no contract":         f.SetClasses(map[uint32]uint16{0: 1}),
		"class of a contract's bit":    f.SetClasses(map[uint32]uint16{AuditContract | 1: 1}),
		"contract's bit":               f.ReplacePair(Pair{1, 2}, []Rule{rule(6, 1, 2, 1<<30)}),
		"echo published":               f.PutPublished(Published{Protocol: 1, From: netip.MustParseAddrPort("192.0.2.1:8"), To: netip.MustParseAddrPort("100.64.0.2:8")}),
		"port 0 published":             f.PutPublished(Published{Protocol: 6, From: netip.MustParseAddrPort("192.0.2.1:0"), To: netip.MustParseAddrPort("100.64.0.2:80")}),
		"v4 published as v6":           f.PutPublished(Published{Protocol: 6, From: netip.MustParseAddrPort("192.0.2.1:80"), To: netip.MustParseAddrPort("[fd5f::2]:80")}),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	after, err := f.Pairs()
	must.NoError(t, err)
	must.Eq(t, before, after)
	ways, err := f.Ways()
	must.NoError(t, err)
	must.MapEmpty(t, ways)
	links, err := f.Links()
	must.NoError(t, err)
	must.SliceEmpty(t, links)
}

func TestFullMapsSayWhich(t *testing.T) {
	enterNamespace(t)
	d := open(t, pinDirectory(t), Options{Sizes: map[string]uint32{"sif_rules": 4, "sif_peers": 1, "sif_externals": 1, "sif_ways": 2}})
	var full *FullError
	err := d.ReplacePair(Pair{1, 2}, []Rule{rule(6, 1, 1000, 1)})
	must.True(t, errors.As(err, &full))
	must.Eq(t, FullError{"sif_rules", 4}, *full)
	must.ErrorContains(t, err, "map sif_rules is full: it has 4 entries")
	must.NoError(t, d.PutPeer(peer(me4, 1, 1)))
	must.True(t, errors.As(d.PutPeer(peer(friend4, 1, 1)), &full))
	must.Eq(t, "sif_peers", full.Map)
	must.NoError(t, d.PutExternal(External{netip.MustParsePrefix("0.0.0.0/0"), 1, 1}))
	must.True(t, errors.As(d.PutExternal(External{netip.MustParsePrefix("::/0"), 1, 1}), &full))
	must.Eq(t, "sif_externals", full.Map)
	// What is there moves also if there is no room for more.
	must.NoError(t, d.SetWays(map[Way]uint32{{0, 1, 1}: 5, {0, 1, 2}: 5}))
	must.True(t, errors.As(d.SetWays(map[Way]uint32{{0, 1, 1}: 6, {0, 1, 2}: 6, {0, 1, 3}: 6}), &full))
	must.Eq(t, FullError{"sif_ways", 2}, *full)
	ways, err := d.Ways()
	must.NoError(t, err)
	must.Eq(t, map[Way]uint32{{0, 1, 1}: 6, {0, 1, 2}: 6}, ways)
	// The entries that were written are removed again.
	must.NoError(t, d.ReplacePair(Pair{1, 2}, []Rule{rule(6, 80, 80, 1)}))
	pairs, err := d.Pairs()
	must.NoError(t, err)
	must.Eq(t, map[Pair][]Rule{{1, 2}: {rule(6, 80, 80, 1)}}, pairs)
}

func TestOtherSizesAreIncompatible(t *testing.T) {
	dir := pinDirectory(t)
	d := open(t, dir, Options{})
	must.NoError(t, d.ReplacePair(Pair{1, 2}, []Rule{rule(6, 80, 80, 1)}))
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
	must.NoError(t, d.ReplacePair(Pair{1, 2}, []Rule{rule(6, 80, 80, 1)}))
	must.NoError(t, d.ReplacePair(Pair{1, 3}, []Rule{rule(6, 80, 80, 1)}))
	var full *FullError
	must.True(t, errors.As(d.ReplacePair(Pair{1, 2}, []Rule{rule(6, 1, 7, 1)}), &full))
	pairs, err := d.Pairs()
	must.NoError(t, err)
	must.SliceEmpty(t, pairs[Pair{1, 2}])
	must.SliceNotEmpty(t, pairs[Pair{1, 3}])
}
