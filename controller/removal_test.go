// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/wellknown"
)

func TestRemoval(t *testing.T) {
	w := newWorld(t)
	t.Run("remove", func(t *testing.T) { testRemove(t, w) })
	t.Run("undo", func(t *testing.T) { testUndo(t, w) })
	t.Run("two lists", func(t *testing.T) { testTwoLists(t, w) })
}

// registerLink registers a node with a link whose public key consists of one byte.
func (n *testNode) registerLink(t testing.TB, underlay string, key byte) (fabric.NodeRecord, error) {
	t.Helper()
	link, err := json.Marshal(fabric.Link{Node: n.id, PublicKey: bytes.Repeat([]byte{key}, 32), Ports: map[fabric.NodeID]uint16{{}: 51820}, Issued: time.Now()})
	must.NoError(t, err)
	sig, chain, err := n.source.Sign(fabric.LinkSigningInput(link))
	must.NoError(t, err)
	return n.RegisterNode(t.Context(), api.NodeRequest{Underlay: netip.MustParseAddr(underlay), Link: link, Certificate: chain, Signature: sig})
}

// reborn is the node with a certificate that Vault issues now.
func (w *world) reborn(t testing.TB, c *running, name string) *testNode {
	t.Helper()
	for _, n := range testNodes {
		if n.Name == name {
			delete(w.sources, n.String())
			must.NoError(t, os.RemoveAll(filepath.Join(w.dir, n.String())))
		}
	}
	return w.node(t, c, name)
}

// backdate makes Vault date the certificates of nodes as beginning now.
func (w *world) backdate(t testing.TB) {
	t.Helper()
	for _, n := range testNodes {
		path := wellknown.PKIMount + "/roles/" + wellknown.NodeRole(n.Zone, n.Name)
		role, err := w.vaultRoot.Logical().Read(path)
		must.NoError(t, err)
		role.Data["not_before_duration"] = "1s"
		_, err = w.vaultRoot.Logical().Write(path, role.Data)
		must.NoError(t, err)
	}
}

func (w *world) value(t testing.TB, key string) []byte {
	t.Helper()
	kv, _, err := w.consul.KV().Get(key, nil)
	must.NoError(t, err)
	if kv == nil {
		return nil
	}
	return kv.Value
}

func (w *world) put(t testing.TB, key string, value []byte) {
	t.Helper()
	_, err := w.consul.KV().Put(&consulapi.KVPair{Key: key, Value: value}, nil)
	must.NoError(t, err)
}

func nodesOf(t testing.TB, c *running) string {
	t.Helper()
	status, err := c.operator.Status(t.Context())
	must.NoError(t, err)
	var names []string
	for _, n := range status.Nodes {
		names = append(names, n.Node)
	}
	return strings.Join(names, " ")
}

// testRemove: a removed node leaves status, metrics, Consul and the table of admissions at once. It
// is refused with the remedy, its name and its key are free, its pools rest.
func testRemove(t *testing.T, w *world) {
	w.backdate(t)
	scheduler := &fakeScheduler{placed: map[string]Placement{allocation(1): placed("app", "g")}}
	c, ctx := w.fresh(t, scheduler), t.Context()
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	_, err = w1.registerLink(t, "10.0.0.1", 1)
	must.NoError(t, err)
	w2.register(t, "10.0.0.2")
	w1.report(t, api.NodeStatus{})
	_, err = w1.Admit(ctx, request4(1, 10))
	must.NoError(t, err)

	_, err = w.reader(t, c, setup.ReadPolicy).RemoveNode(ctx, w1.id, "")
	code(t, api.CodeForbidden, err)
	_, err = c.operator.RemoveNode(ctx, fabric.NodeID{Zone: "aws1", Name: "w3"}, "")
	must.StrContains(t, code(t, api.CodeNotFound, err).Message, "did you mean")
	_, err = c.operator.RemoveNode(ctx, w1.id, strings.Repeat("x", fabric.MaxReason+1))
	code(t, api.CodeInvalid, err)
	must.Eq(t, "w1 w2", nodesOf(t, c))

	removal, err := c.operator.RemoveNode(ctx, w1.id, "stolen")
	must.NoError(t, err)
	must.Eq(t, 1, removal.Endpoints)
	must.Eq(t, 1, removal.Sequence)
	must.Eq(t, "stolen", removal.Tombstone.Reason)
	must.Eq(t, restTime, removal.Rests.Sub(removal.Tombstone.Removed))
	must.Eq(t, "w2", nodesOf(t, c))
	must.Eq(t, 0, c.table.count())
	for _, key := range []string{kvkey.Node(w1.id).String(), kvkey.Pool(0).String(), kvkey.Binding(w1.id).String()} {
		must.Nil(t, w.value(t, key), must.Sprint(key))
	}
	list, err := c.operator.Nodes(ctx)
	must.NoError(t, err)
	must.Len(t, 1, list.Nodes)
	must.Eq(t, []fabric.Tombstone{removal.Tombstone}, list.Removed)
	_, err = c.operator.RemoveNode(ctx, w1.id, "")
	must.StrContains(t, code(t, api.CodeNotFound, err).Message, "(stolen)")
	var logged []string
	for _, e := range auditLines(t, filepath.Join(c.dir, auditFile)) {
		if e.Action == "node.remove" {
			logged = append(logged, e.Target+" "+e.Message+" "+e.Code)
		}
	}
	must.SliceContains(t, logged, "aws1/w1 stolen ")
	must.SliceContains(t, logged, "aws1/w1  forbidden")

	// It is refused whatever it calls, on the connection that it has, and told what to do.
	_, err = w1.registerLink(t, "10.0.0.1", 9)
	must.StrContains(t, code(t, api.CodeRemoved, err).Message, "delete their data_dir")
	_, err = w1.Admit(ctx, request4(1, 10))
	code(t, api.CodeRemoved, err)
	_, err = w1.Report(ctx, api.NodeStatus{})
	code(t, api.CodeRemoved, err)
	_, err = w1.Certificate(ctx, api.CertificateRequest{Service: fabric.Ref{Domain: "app", Name: "svc"}})
	code(t, api.CodeRemoved, err)

	// Its key is free for another node; the machine comes back under its name with another key.
	_, err = w2.registerLink(t, "10.0.0.2", 1)
	must.NoError(t, err)
	time.Sleep(3 * time.Second) // a certificate begins one second before it is issued
	w1 = w.reborn(t, c, "w1")
	_, err = w1.registerLink(t, "10.0.0.1", 1)
	must.StrContains(t, code(t, api.CodeRemoved, err).Message, "the public key of its links")
	record, err := w1.registerLink(t, "10.0.0.1", 2)
	must.NoError(t, err)
	var node fabric.Node
	must.NoError(t, w1.source.Keys().Verify(record.Node, fabric.KindNode, &node))
	must.Eq(t, "100.64.2.0/24", node.Pool4.String(), must.Sprint("pool 0 rests"))
	must.Eq(t, "w1 w2", nodesOf(t, c))
	must.NoError(t, c.removal.enforce(ctx))
	must.Eq(t, "w1 w2", nodesOf(t, c))
	must.NotNil(t, w.value(t, kvkey.Node(w1.id).String()))

	// After its rest, the pool is assigned again.
	must.SliceEmpty(t, resting(c.removal.list.List(), removal.Rests))
	must.Len(t, 1, resting(c.removal.list.List(), removal.Rests.Add(-time.Second)))
}

// testUndo: nothing that is put back into Consul brings a node back, nor the loss of a disk.
func testUndo(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	w2 := w.node(t, c, "w2")
	p1 := w.node(t, c, "p1")
	_, err := w2.registerLink(t, "10.0.0.2", 3)
	must.NoError(t, err)
	_, err = p1.registerLink(t, "10.0.0.9", 4)
	must.NoError(t, err)
	id := w2.id
	keys := []string{kvkey.Node(id).String(), kvkey.Pool(0).String()}
	snapshot := map[string][]byte{}
	for _, key := range keys {
		snapshot[key] = w.value(t, key)
		must.NotNil(t, snapshot[key])
	}
	_, err = c.operator.RemoveNode(ctx, id, "")
	must.NoError(t, err)
	signed := c.removal.list.Signed()
	restore := func() {
		for _, key := range keys {
			w.put(t, key, snapshot[key])
		}
		_, err := w.consul.KV().Delete(kvkey.Revocations, nil)
		must.NoError(t, err)
	}
	gone := func(c *running) {
		t.Helper()
		eventually(t, func() error {
			if w.value(t, kvkey.Revocations) == nil {
				return errors.New("the list is not back")
			}
			if w.value(t, kvkey.Node(id).String()) != nil {
				return errors.New("the record is still there")
			}
			return nil
		})
		must.Eq(t, "p1", nodesOf(t, c))
		_, err := w.node(t, c, "w2").RegisterNode(ctx, api.NodeRequest{Underlay: netip.MustParseAddr("10.0.0.2")})
		code(t, api.CodeRemoved, err)
	}
	restore()
	gone(c) // while it leads

	c.stop()
	restore()
	c = w.start(t, c.dir, nil, false)
	gone(c) // from its disk

	// A controller that lost its disk, too, learns of the removal from any node that reports.
	c.stop()
	restore()
	c = w.start(t, t.TempDir(), nil, false)
	p1 = w.node(t, c, "p1")
	reply := p1.report(t, api.NodeStatus{Revocations: 1})
	must.Eq(t, 0, reply.Revocations)
	must.NoError(t, p1.Revocations(ctx, signed))
	gone(c)

	// A node that has an older list receives the newer one with its report.
	reply = p1.report(t, api.NodeStatus{})
	must.Eq(t, 1, reply.Revocations)
	must.Eq(t, signed, *reply.Newer)

	forged := signed
	forged.Payload = bytes.Replace(signed.Payload, []byte("w2"), []byte("p1"), 1)
	code(t, api.CodeInvalid, p1.Revocations(ctx, forged))
}

// testTwoLists: a controller that did not know of a removal signed another one. Neither is lost.
func testTwoLists(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	p1 := w.node(t, c, "p1")
	p1.register(t, "10.0.0.9")
	at := time.Now().UTC().Add(-time.Hour).Truncate(time.Millisecond)
	other := fabric.Revocations{Fabric: testFabric}.With(at, fabric.Revocations{Tombstones: []fabric.Tombstone{{Node: fabric.NodeID{Zone: "aws1", Name: "x1"}, Removed: at}}})
	payload, err := json.Marshal(other)
	must.NoError(t, err)
	signed, err := c.cfg.Signer.Sign(ctx, fabric.KindRevocations, payload)
	must.NoError(t, err)

	w1 := w.node(t, c, "w1")
	w1.register(t, "10.0.0.1")
	_, err = c.operator.RemoveNode(ctx, w1.id, "")
	must.NoError(t, err)
	must.NoError(t, p1.Revocations(ctx, signed))
	list := c.removal.list.List()
	must.Eq(t, 2, list.Sequence)
	must.Len(t, 2, list.Tombstones)
	must.True(t, list.Covers(other, time.Now()))

	// A newer list in Consul that lacks both is replaced.
	newer := fabric.Revocations{Fabric: testFabric, Sequence: 7, Issued: time.Now().UTC()}
	payload, err = json.Marshal(newer)
	must.NoError(t, err)
	signed, err = c.cfg.Signer.Sign(ctx, fabric.KindRevocations, payload)
	must.NoError(t, err)
	value, err := json.Marshal(signed)
	must.NoError(t, err)
	w.put(t, kvkey.Revocations, value)
	eventually(t, func() error {
		if got := c.removal.list.List(); got.Sequence != 8 || len(got.Tombstones) != 2 {
			return errors.New("the lists are not merged")
		}
		return nil
	})
}
