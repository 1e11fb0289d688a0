// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"encoding/json"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/node/link"
	"github.com/sif-project/sif/internal/statefile"
	"github.com/sif-project/sif/internal/trust/roster"
	"github.com/sif-project/sif/internal/wellknown"
)

// tunnelSite is three zones with two processors and a workload node each.
func tunnelSite(t *testing.T) (members []roster.Member) {
	number := byte(1)
	for _, zone := range []string{"a", "b", "c"} {
		for _, name := range []string{"p1", "p2", "w1"} {
			kind := fabric.KindProcessor
			if name == "w1" {
				kind = fabric.KindWorkload
			}
			key, err := link.GenerateKey()
			must.NoError(t, err)
			public := key.Public()
			members = append(members, roster.Member{
				Node: fabric.Node{
					Kind: kind, Zone: zone, Name: name, Underlay: netip.AddrFrom4([4]byte{192, 0, 2, number}),
					Pool4: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, number, 0}), 24), Pool6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 7: number}), 64),
					Ranges: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd00::/16")},
				},
				Link: fabric.Link{PublicKey: public[:], Ports: map[fabric.NodeID]uint16{{}: 51820}},
			})
			number++
		}
	}
	return members
}

func member(members []roster.Member, zone, name string) *roster.Member {
	return &members[slices.IndexFunc(members, func(m roster.Member) bool { return m.ID() == fabric.NodeID{Zone: zone, Name: name} })]
}

func rule(t *testing.T, name, a, b string) fabric.LinkRule {
	l := fabric.LinkRule{Name: name, Cost: fabric.DefaultLinkCost}
	for i, s := range []string{a, b} {
		end, err := fabric.ParseLinkEnd(s)
		must.NoError(t, err)
		l.Between[i] = end
	}
	return l
}

func newTunnelLinks(t *testing.T, dir string) *Links {
	key, err := link.GenerateKey()
	must.NoError(t, err)
	return &Links{mtu: 1420, key: key, file: linksFile(dir), slots: map[desired.Hop]slot{ZonePeer: {Port: wellknown.FirstLinkPort}}}
}

func hops(list []tunnel) (names []string) {
	for _, t := range list {
		names = append(names, t.Hop.String())
	}
	return names
}

func TestTunnels(t *testing.T) {
	members := tunnelSite(t)
	processor, workload := member(members, "a", "p1").Node, member(members, "a", "w1").Node
	fast, slow, spare := rule(t, "fast", "a", "b/p1"), rule(t, "slow", "*", "*"), rule(t, "spare", "a", "c")
	spare.Disabled = true
	for _, c := range []struct {
		self  fabric.Node
		rules []fabric.LinkRule
		want  []string
	}{
		{workload, nil, []string{"a/p1", "a/p2"}},
		{workload, []fabric.LinkRule{fast}, []string{"a/p1", "a/p2"}}, // within the zone, links need no block
		{processor, nil, []string{"b/p1", "b/p2", "c/p1", "c/p2"}},
		{processor, []fabric.LinkRule{fast}, []string{"b/p1#fast"}},
		{processor, []fabric.LinkRule{slow, fast}, []string{"b/p1#fast", "b/p1#slow", "b/p2#slow", "c/p1#slow", "c/p2#slow"}},
		{processor, []fabric.LinkRule{spare}, nil},
	} {
		must.Eq(t, c.want, hops(tunnels(c.self, members, c.rules)), must.Sprint(c.rules))
	}
}

// Devices differ by what their tunnels are declared to be, and by what the far ends have published.
func TestDevicesOfTunnels(t *testing.T) {
	members := tunnelSite(t)
	self := member(members, "a", "p1").Node
	far := member(members, "b", "p1")
	l := newTunnelLinks(t, t.TempDir())
	narrow, plain := rule(t, "narrow", "a/p1", "b/p1"), rule(t, "plain", "a/p1", "b/p1")
	narrow.MTU, narrow.Endpoints = 1400, "private"
	rules := []fabric.LinkRule{narrow, plain}
	_, err := l.assign(self, members, rules)
	must.NoError(t, err)
	hop := func(name string) desired.Hop { return desired.Hop{Processor: far.ID(), Link: name} }
	of := func(name string) link.Device {
		d, there := devices(self, members, rules, l.key, l.slots, l.mtu)[hop(name)]
		must.True(t, there)
		must.Len(t, 1, d.Peers)
		return d
	}
	must.Eq(t, 1400, of("narrow").MTU)
	must.Eq(t, 1420, of("plain").MTU)
	must.NotEq(t, of("plain").ListenPort, of("narrow").ListenPort)
	must.Eq(t, keepalive, of("plain").Peers[0].PersistentKeepalive)

	// The far end has published nothing of it: it must start.
	must.False(t, of("plain").Peers[0].Endpoint.IsValid())
	far.Link.Tunnels = map[string]uint16{"a/p1#plain": 51822, "a/p1#narrow": 51823}
	must.Eq(t, "192.0.2.4:51822", of("plain").Peers[0].Endpoint.String())
	must.False(t, of("narrow").Peers[0].Endpoint.IsValid())
	far.Link.Addresses = map[string]netip.Addr{"private": netip.MustParseAddr("2001:db8::4")}
	must.Eq(t, "[2001:db8::4]:51823", of("narrow").Peers[0].Endpoint.String())
	far.Link.Addresses["private"] = netip.MustParseAddr("100.64.7.7") // inside the fabric
	must.False(t, of("narrow").Peers[0].Endpoint.IsValid())

	// Where links are declared, other zones may be behind the far end; the own one never is.
	behind := func(name string, m *roster.Member) bool {
		return slices.Contains(of(name).Peers[0].AllowedIPs, m.Pool4.Masked())
	}
	must.True(t, behind("plain", member(members, "b", "w1")))
	must.True(t, behind("plain", member(members, "c", "w1")))
	must.False(t, behind("plain", member(members, "a", "w1")))
	rules = nil
	_, err = l.assign(self, members, rules)
	must.NoError(t, err)
	must.True(t, behind("", member(members, "b", "w1")))
	must.False(t, behind("", member(members, "c", "w1")))
}

// A processor that loses a tunnel and gets another one keeps device and port. What ends gives its
// port back. The statement names all ports, and the file of an older version is read.
func TestTunnelsKeepTheirDevices(t *testing.T) {
	members := tunnelSite(t)
	self := member(members, "a", "p1").Node
	dir := t.TempDir()
	l := newTunnelLinks(t, dir)
	assign := func(rules ...fabric.LinkRule) map[string]slot {
		t.Helper()
		_, err := l.assign(self, members, rules)
		must.NoError(t, err)
		changed, err := l.assign(self, members, rules)
		must.NoError(t, err)
		must.False(t, changed)
		slots := map[string]slot{}
		for hop, s := range l.slots {
			slots[hop.String()] = s
		}
		return slots
	}
	implicit := assign()
	must.MapLen(t, 5, implicit)
	declared := assign(rule(t, "fast", "a", "b"), rule(t, "slow", "*", "*"))
	must.MapLen(t, 7, declared)
	for _, p := range []string{"b/p1", "b/p2"} {
		must.Eq(t, implicit[p], declared[p+"#fast"])
	}
	for _, p := range []string{"c/p1", "c/p2"} {
		must.Eq(t, implicit[p], declared[p+"#slow"])
	}
	said, err := l.statement(self.ID())
	must.NoError(t, err)
	must.NoError(t, said.Check(self.ID()))
	must.Eq(t, map[fabric.NodeID]uint16{{}: wellknown.FirstLinkPort}, said.Ports)
	must.MapLen(t, 6, said.Tunnels)
	must.Eq(t, declared["b/p1#slow"].Port, said.Tunnel(fabric.NodeID{Zone: "b", Name: "p1"}, "slow"))
	must.Eq(t, 0, said.Tunnel(fabric.NodeID{Zone: "b", Name: "p1"}, "gone"))
	kept, _, err := l.file.Read()
	must.NoError(t, err)
	must.Eq(t, l.slots, kept.Devices)

	fewer := assign(rule(t, "slow", "a", "b"))
	must.Eq(t, map[string]slot{"": implicit[""], "b/p1#slow": declared["b/p1#slow"], "b/p2#slow": declared["b/p2#slow"]}, fewer)
	must.MapLen(t, 5, assign())

	old := statefile.File[json.RawMessage]{Path: filepath.Join(dir, "links.json"), What: "an old file"}
	must.NoError(t, old.Write(json.RawMessage(`{"key":"x","devices":{"":{"number":0,"port":51820},"b/p1":{"number":1,"port":51821}}}`)))
	kept, _, err = l.file.Read()
	must.NoError(t, err)
	must.Eq(t, map[desired.Hop]slot{ZonePeer: {0, 51820}, {Processor: fabric.NodeID{Zone: "b", Name: "p1"}}: {1, 51821}}, kept.Devices)
}
