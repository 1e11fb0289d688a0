// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test"
	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/wellknown"
)

// TestPoolsAreSigned: what somebody else writes into Consul, or an old snapshot of it, neither
// gives a node the pools of another nor changes those of a node.
func TestPoolsAreSigned(t *testing.T) {
	w := newWorld(t)
	t.Run("forged", func(t *testing.T) { testForgedPools(t, w) })
	t.Run("set back", func(t *testing.T) { testSetBack(t, w) })
	t.Run("overlap", func(t *testing.T) { testOverlap(t, w) })
	t.Run("sizes", func(t *testing.T) { testSizes(t, w) })
	t.Run("rival controllers", func(t *testing.T) { testRivalControllers(t, w) })
}

// assignedTo returns the node to which the assignment in Consul gives pair n.
func (w *world) assignedTo(t testing.TB, c *running, n int) string {
	t.Helper()
	p, _, err := c.nodes.verifyPool(n, w.value(t, kvkey.Pool(n).String()))
	must.NoError(t, err)
	return p.Node.String()
}

func testForgedPools(t *testing.T, w *world) {
	c := w.fresh(t, nil)
	c.stop()
	w.put(t, kvkey.Pool(0).String(), []byte("aws1/w2")) // unsigned
	w.put(t, kvkey.Pool(7).String(), []byte(`{"kind":"pool","payload":"e30=","version":1,"signature":"AAAA"}`))
	c = w.start(t, c.dir, nil, false)
	must.SliceEmpty(t, c.nodes.degraded())
	must.Nil(t, w.value(t, kvkey.Pool(7).String()))
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	must.Eq(t, "100.64.0.0/24", w1.register(t, "10.0.0.1").Pool4.String())
	must.Eq(t, "aws1/w1", w.assignedTo(t, c, 0))

	// Garbage that comes later is replaced, a signed assignment to another pair is not believed.
	w.put(t, kvkey.Pool(1).String(), w.value(t, kvkey.Pool(0).String()))
	must.Eq(t, "100.64.1.0/24", w2.register(t, "10.0.0.2").Pool4.String())
	must.Eq(t, "aws1/w2", w.assignedTo(t, c, 1))

	// The record that a node signed away stays, whatever is deleted.
	for n := range 2 {
		_, err := w.consul.KV().Delete(kvkey.Pool(n).String(), nil)
		must.NoError(t, err)
	}
	c.stop()
	c = w.start(t, c.dir, nil, false)
	must.Eq(t, "100.64.2.0/24", w.node(t, c, "p1").register(t, "10.0.0.9").Pool4.String())
}

func testSetBack(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	key := kvkey.Node{Zone: "aws1", Name: "w1"}.String()
	w1 := w.node(t, c, "w1")
	before := w1.register(t, "10.0.0.1")
	old := w.value(t, key)
	after := w1.register(t, "10.0.0.2")
	var record fabric.NodeRecord
	must.NoError(t, json.Unmarshal(w.value(t, key), &record))

	// From its disk, the controller knows what it signed.
	c.stop()
	w.put(t, key, old)
	c = w.start(t, c.dir, nil, false)
	w1 = w.node(t, c, "w1")
	again := w1.register(t, "10.0.0.3")
	must.True(t, again.Issued.After(after.Issued))
	must.True(t, after.Issued.After(before.Issued))

	// Without its disk, and with nothing in Consul, it learns it from the node.
	c.stop()
	w.reset(t)
	c = w.start(t, t.TempDir(), nil, false)
	must.Eq(t, "100.64.0.0/24", w.node(t, c, "w2").register(t, "10.0.0.2").Pool4.String())
	w1 = w.node(t, c, "w1")
	held := fabric.Node{Fabric: testFabric, Zone: "aws1", Name: "w1", Kind: fabric.KindWorkload, Issued: time.Now().Add(time.Hour).UTC(),
		Pool4: netip.MustParsePrefix("100.64.5.0/24"), Pool6: netip.MustParsePrefix("fd5f:7369:6600:5::/64")}
	sign := func(n fabric.Node) *fabric.Signed {
		payload, err := json.Marshal(n)
		must.NoError(t, err)
		signed, err := c.cfg.Signer.Sign(ctx, fabric.KindNode, payload)
		must.NoError(t, err)
		return &signed
	}
	req := api.NodeRequest{Underlay: netip.MustParseAddr("10.0.0.1"), Record: sign(held)}
	got, err := w1.RegisterNode(ctx, req)
	must.NoError(t, err)
	var n fabric.Node
	must.NoError(t, w1.source.Keys().Verify(got.Node, fabric.KindNode, &n))
	must.Eq(t, held.Pool4, n.Pool4)
	must.True(t, n.Issued.After(held.Issued))

	other := held
	other.Name = "w2"
	_, err = w1.RegisterNode(ctx, api.NodeRequest{Underlay: req.Underlay, Record: sign(other)})
	must.StrContains(t, code(t, api.CodeForbidden, err).Message, "holds the record of node aws1/w2")
	forged := sign(held)
	forged.Signature[0] ^= 1
	_, err = w1.RegisterNode(ctx, api.NodeRequest{Underlay: req.Underlay, Record: forged})
	must.NoError(t, err)
}

// testOverlap: two signed records with one pool. Neither is replaced, and both are named.
func testOverlap(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	first := w1.register(t, "10.0.0.1")
	second := first
	second.Name, second.Underlay = "w2", netip.MustParseAddr("10.0.0.2")
	payload, err := json.Marshal(second)
	must.NoError(t, err)
	signed, err := c.cfg.Signer.Sign(ctx, fabric.KindNode, payload)
	must.NoError(t, err)
	_, err = w2.RegisterNode(ctx, api.NodeRequest{Underlay: second.Underlay, Record: &signed})
	must.StrContains(t, code(t, api.CodeAddress, err).Message, "nodes aws1/w2 and aws1/w1 both have signed records")

	value, err := json.Marshal(fabric.NodeRecord{Node: signed})
	must.NoError(t, err)
	w.put(t, kvkey.Node(w2.id).String(), value)
	c.stop()
	c = w.start(t, c.dir, nil, false)
	must.StrContains(t, c.nodes.degraded()[0], "nodes aws1/w1 and aws1/w2 both have signed records")
	for _, n := range []string{"w1", "w2"} {
		_, err := w.node(t, c, n).RegisterNode(ctx, api.NodeRequest{Underlay: netip.MustParseAddr("10.0.0.7")})
		code(t, api.CodeAddress, err)
	}
	_, err = c.operator.RemoveNode(ctx, w2.id, "")
	must.NoError(t, err)
	must.SliceEmpty(t, c.nodes.degraded())
	must.Eq(t, first.Pool4, w.node(t, c, "w1").register(t, "10.0.0.7").Pool4)
}

// testSizes: what a node has stays when the fabric gives larger pools, and a certificate decides on
// the size of one node.
func testSizes(t *testing.T, w *world) {
	c := w.fresh(t, nil)
	must.Eq(t, "100.64.0.0/24", w.node(t, c, "w1").register(t, "10.0.0.1").Pool4.String())
	c.stop()
	w.nodePrefix = fabric.DefaultNodePrefix
	defer func() { w.nodePrefix = fabric.SmallestNodePrefix }()
	c = w.start(t, c.dir, nil, false)
	must.Eq(t, "100.64.0.0/24", w.node(t, c, "w1").register(t, "10.0.0.7").Pool4.String())
	must.Eq(t, "100.64.1.0/24", w.node(t, c, "p1").register(t, "10.0.0.9").Pool4.String(), must.Sprint("it has no workloads"))
	b1 := w.node(t, c, "b1").register(t, "10.0.0.8")
	must.Eq(t, "100.64.4.0/22", b1.Pool4.String())
	must.Eq(t, "fd5f:7369:6600:4::/64", b1.Pool6.String())

	path := wellknown.PKIMount + "/roles/" + wellknown.NodeRole("aws1", "w2")
	units := func(list ...string) {
		role, err := w.vaultRoot.Logical().Read(path)
		must.NoError(t, err)
		role.Data["ou"] = list
		_, err = w.vaultRoot.Logical().Write(path, role.Data)
		must.NoError(t, err)
	}
	units("workload", "pool-20")
	must.Eq(t, "100.64.16.0/20", w.reborn(t, c, "w2").register(t, "10.0.0.2").Pool4.String())
	must.Eq(t, "aws1/w2", w.assignedTo(t, c, 16))
	units("workload")
	must.Eq(t, "100.64.16.0/20", w.reborn(t, c, "w2").register(t, "10.0.0.3").Pool4.String(), must.Sprint("it keeps what it has"))

	// Signed, but of a size or at a place that no pool has.
	for _, pool4 := range []string{"100.64.1.0/22", "100.64.4.0/25", "100.64.0.0/12"} {
		p := fabric.Pool{Fabric: testFabric, Number: 4, Node: b1.ID(), Pool4: netip.MustParsePrefix(pool4), Pool6: b1.Pool6}
		payload, err := json.Marshal(p)
		must.NoError(t, err)
		signed, err := c.cfg.Signer.Sign(t.Context(), fabric.KindPool, payload)
		must.NoError(t, err)
		value, err := json.Marshal(signed)
		must.NoError(t, err)
		_, _, err = c.nodes.verifyPool(4, value)
		must.ErrorContains(t, err, "but pair 4 begins with 100.64.4.0")
	}
}

// testRivalControllers: two controllers that both believe to lead assign no address twice, whatever
// the sizes.
func testRivalControllers(t *testing.T, w *world) {
	c := w.fresh(t, nil)
	id := func(n int) fabric.NodeID { return fabric.NodeID{Zone: "aws1", Name: fmt.Sprintf("n%d", n)} }
	for round, bits := range [][2]int{{22, 24}, {24, 22}, {20, 20}, {21, 23}, {23, 21}, {24, 24}} {
		one, two := newRegistry(c.cfg, c.removal.list.List), newRegistry(c.cfg, c.removal.list.List)
		must.NoError(t, one.load(t.Context()))
		must.NoError(t, two.load(t.Context()))
		pools := make(chan netip.Prefix, 2)
		for i, r := range []*registry{one, two} {
			go func() {
				r.mu.Lock()
				defer r.mu.Unlock()
				v4, _, err := r.poolOf(t.Context(), id(2*round+i), nil, bits[i])
				test.NoError(t, err)
				pools <- v4
			}()
		}
		a, b := <-pools, <-pools
		must.True(t, a.IsValid() && b.IsValid())
		must.False(t, a.Overlaps(b), must.Sprintf("%s and %s", a, b))
	}
	// All that is in Consul now.
	r := newRegistry(c.cfg, c.removal.list.List)
	must.NoError(t, r.load(t.Context()))
	must.MapLen(t, 12, r.pools)
	for n := range r.pools {
		must.False(t, r.contested(n))
	}
}

// TestPoolsNeverOverlap: whatever the order in which nodes with pools of all sizes come and go, no
// address is of two of them, or of one and of a removed node while its pools rest.
func TestPoolsNeverOverlap(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("100.64.0.0/15"), netip.MustParsePrefix("fd5f:7369:6600::/48")
	count := unitCount(v4, v6)
	sizes := rapid.IntRange(fabric.LargestNodePrefix, fabric.SmallestNodePrefix)
	rapid.Check(t, func(t *rapid.T) {
		var assigned, rests [][2]netip.Prefix
		known := func() *units { // as after a restart
			u := newUnits(v4, v6)
			for _, list := range [][][2]netip.Prefix{assigned, rests} {
				for _, p := range list {
					u.take(p[0], p[1])
				}
			}
			return u
		}
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				bits := sizes.Draw(t, "bits")
				n, ok := known().free(0, bits)
				if !ok {
					for n := 0; n < count; n += unitsOf(bits) {
						p4, p6 := poolPair(v4, v6, n, bits)
						if !slices.ContainsFunc(slices.Concat(assigned, rests), func(q [2]netip.Prefix) bool { return p4.Overlaps(q[0]) || p6.Overlaps(q[1]) }) {
							t.Fatalf("%s is free and not found", p4)
						}
					}
					t.Skip("no pool of that size is free")
				}
				p4, p6 := poolPair(v4, v6, n, bits)
				if p4 != p4.Masked() || !v4.Contains(p4.Addr()) || !v6.Contains(p6.Addr()) {
					t.Fatalf("%s and %s are no pools", p4, p6)
				}
				for _, q := range slices.Concat(assigned, rests) {
					if p4.Overlaps(q[0]) || p6.Overlaps(q[1]) {
						t.Fatalf("%s and %s overlap %v", p4, p6, q)
					}
				}
				assigned = append(assigned, [2]netip.Prefix{p4, p6})
			},
			"remove": func(t *rapid.T) {
				if len(assigned) == 0 {
					t.Skip("none")
				}
				i := rapid.IntRange(0, len(assigned)-1).Draw(t, "which")
				rests = append(rests, assigned[i])
				assigned = slices.Delete(assigned, i, i+1)
			},
			"has rested": func(t *rapid.T) {
				if len(rests) == 0 {
					t.Skip("none")
				}
				rests = rests[1:]
			},
			"other records": func(t *rapid.T) { // of prefixes of before: part of ours, around them, elsewhere
				other := rapid.SampledFrom([]string{"100.64.7.128/25", "100.65.0.0/17", "10.0.0.0/8", "fd5f:7369:6600:11::/80", "fd5f:7369:6600:100::/58", "fd00::/64"}).Draw(t, "prefix")
				p := netip.MustParsePrefix(other)
				pair := [2]netip.Prefix{p, netip.MustParsePrefix("fd00::/64")}
				if p.Addr().Is6() {
					pair = [2]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), p}
				}
				rests = append(rests, pair)
			},
		})
	})
	for _, whole := range []string{"100.64.0.0/14", "100.64.0.0/15", "0.0.0.0/0", "fd00::/8"} {
		u := newUnits(v4, v6)
		u.take(netip.MustParsePrefix(whole))
		must.False(t, slices.Contains(u.taken, false), must.Sprint(whole))
	}
}

// TestNearPools: an assignment checks every other one that could overlap it.
func TestNearPools(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("100.64.0.0/15"), netip.MustParsePrefix("fd5f:7369:6600::/48")
	count := unitCount(v4, v6)
	sizes := rapid.IntRange(fabric.LargestNodePrefix, fabric.SmallestNodePrefix)
	rapid.Check(t, func(t *rapid.T) {
		draw := func(what string) (int, int, netip.Prefix) {
			bits := sizes.Draw(t, what+" bits")
			n := rapid.IntRange(0, count/unitsOf(bits)-1).Draw(t, what) * unitsOf(bits)
			p, _ := poolPair(v4, v6, n, bits)
			return n, bits, p
		}
		n, bits, a := draw("one")
		m, _, b := draw("other")
		list := near(n, bits, count)
		if n != m && a.Overlaps(b) && !slices.Contains(list, m) {
			t.Fatalf("%s overlaps %s, whose number is not in %v", b, a, list)
		}
		// Consul takes 128 operations at once, of which one writes.
		if len(list) > 127 || slices.Contains(list, n) || len(slices.Compact(slices.Sorted(slices.Values(list)))) != len(list) {
			t.Fatalf("%v", list)
		}
	})
}
