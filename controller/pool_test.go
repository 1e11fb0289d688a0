// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
)

// TestPoolsAreSigned: what somebody else writes into Consul, or an old snapshot of it, neither
// gives a node the pools of another nor changes those of a node.
func TestPoolsAreSigned(t *testing.T) {
	w := newWorld(t)
	t.Run("forged", func(t *testing.T) { testForgedPools(t, w) })
	t.Run("set back", func(t *testing.T) { testSetBack(t, w) })
	t.Run("overlap", func(t *testing.T) { testOverlap(t, w) })
}

// assignedTo returns the node to which the assignment in Consul gives pair n.
func (w *world) assignedTo(t testing.TB, c *running, n int) string {
	t.Helper()
	p, err := c.nodes.verifyPool(n, w.value(t, kvkey.Pool(n).String()))
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
