// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package roster

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

const name = "test"

type lab struct {
	t      *testing.T
	server *testhost.Server
	consul *consulapi.Client
	ca     *identitytest.CA

	removed atomic.Pointer[fabric.Revocations]
}

// record is a good record of aws1's node number n, or what change makes of it.
func (l *lab) record(n int, change func(*fabric.Node, *fabric.Link, **identity.Source)) fabric.NodeRecord {
	l.t.Helper()
	node := fabric.Node{
		Fabric: name, Zone: "aws1", Name: fmt.Sprintf("w%d", n), Kind: fabric.KindWorkload,
		Underlay: netip.AddrFrom4([4]byte{10, 1, 0, byte(n)}),
		Pool4:    netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(n), 0}), 24),
		Pool6:    netip.MustParsePrefix(fmt.Sprintf("fd5f:0:0:%d::/64", n)), Issued: time.Now(),
	}
	link := fabric.Link{Node: node.ID(), PublicKey: bytes.Repeat([]byte{byte(n)}, 32), Ports: map[fabric.NodeID]uint16{{}: 51820}, Issued: time.Now()}
	id := l.ca.Node("aws1", node.Name, fabric.KindWorkload)
	if change != nil {
		change(&node, &link, &id)
	}
	r := fabric.NodeRecord{Node: l.ca.Sign(fabric.KindNode, node)}
	var err error
	r.Link, err = json.Marshal(link)
	must.NoError(l.t, err)
	r.Signature, r.Certificate, err = id.Sign(fabric.LinkSigningInput(r.Link))
	must.NoError(l.t, err)
	return r
}

func (l *lab) put(n int, v any) {
	l.t.Helper()
	b, err := json.Marshal(v)
	must.NoError(l.t, err)
	_, err = l.consul.KV().Put(&consulapi.KVPair{Key: kvkey.Node{Zone: "aws1", Name: fmt.Sprintf("w%d", n)}.String(), Value: b}, nil)
	must.NoError(l.t, err)
}

func (l *lab) watcher(dir string) *Watcher {
	l.t.Helper()
	w, err := New(l.consul, dir, name, identitytest.TrustDomain, l.ca.Keys, l.ca.Roots, l.removals, hclog.NewNullLogger())
	must.NoError(l.t, err)
	return w
}

func (l *lab) removals() fabric.Revocations {
	if r := l.removed.Load(); r != nil {
		return *r
	}
	return fabric.Revocations{}
}

// remove adds the tombstone of node number n to the list.
func (l *lab) remove(n int, at time.Time) {
	next := l.removals().With(at, fabric.Revocations{Tombstones: []fabric.Tombstone{{
		Node: fabric.NodeID{Zone: "aws1", Name: fmt.Sprintf("w%d", n)}, Key: bytes.Repeat([]byte{byte(n)}, 32), Removed: at,
	}}})
	l.removed.Store(&next)
}

func run(t *testing.T, w *Watcher) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must.NoError(t, <-done)
	})
}

func names(w *Watcher) string {
	var ids []string
	for _, m := range w.Members() {
		ids = append(ids, m.Name)
	}
	return strings.Join(ids, " ")
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 15 s: " + what)
		}
	}
}

func newLab(t *testing.T) *lab {
	server, client := testhost.Consul(t)
	return &lab{t: t, server: server, consul: client, ca: identitytest.NewCA(t)}
}

func TestWatch(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	w := l.watcher(dir)
	changes := make(chan int, 100)
	w.OnChange(func(m []Member) {
		w.Members() // callbacks may call back
		changes <- len(m)
	})
	run(t, w)
	for n := 1; n <= 3; n++ {
		l.put(n, l.record(n, nil))
		must.Eq(t, n, <-changes)
	}
	must.Eq(t, "w1 w2 w3", names(w))
	must.Eq(t, byte(2), w.Members()[1].Link.PublicKey[0])

	// A record that is missing removes nobody, be it one or all.
	_, err := l.consul.KV().Delete(kvkey.Node{Zone: "aws1", Name: "w3"}.String(), nil)
	must.NoError(t, err)
	eventually(t, "reported", func() bool { return len(w.Degraded()) == 1 })
	must.StrContains(t, w.Degraded()[0], "the record of node aws1/w3 is missing in Consul; the node is kept")
	must.Eq(t, "w1 w2 w3", names(w))
	_, err = l.consul.KV().DeleteTree("sif/", nil)
	must.NoError(t, err)
	eventually(t, "reported", func() bool { return len(w.Degraded()) == 3 })
	must.Eq(t, "w1 w2 w3", names(w))

	// Nor when Consul is away, not even over a restart.
	must.NoError(t, l.server.Pause())
	must.Eq(t, "w1 w2 w3", names(l.watcher(dir)))
	must.NoError(t, l.server.Resume())
	for n := 1; n <= 3; n++ {
		l.put(n, l.record(n, nil))
	}
	eventually(t, "recovered", func() bool { return len(w.Degraded()) == 0 && names(w) == "w1 w2 w3" })

	// What is on disk must be the fabric's word too.
	other, err := New(l.consul, dir, name, identitytest.TrustDomain, identitytest.NewCA(t).Keys, l.ca.Roots, l.removals, hclog.NewNullLogger())
	must.NoError(t, err)
	must.SliceEmpty(t, other.Members())
}

func TestRefused(t *testing.T) {
	l := newLab(t)
	w := l.watcher(t.TempDir())
	run(t, w)
	good := l.record(1, nil)
	l.put(1, good)
	l.put(2, l.record(2, nil))
	eventually(t, "known", func() bool { return names(w) == "w1 w2" })
	want := w.Members()

	other := identitytest.NewCA(t)
	later := time.Now().Add(time.Second)
	altered := func(f func(*fabric.NodeRecord)) func() any {
		return func() any {
			r := l.record(1, nil)
			f(&r)
			return r
		}
	}
	changed := func(f func(*fabric.Node, *fabric.Link, **identity.Source)) func() any {
		return func() any {
			return l.record(1, func(n *fabric.Node, k *fabric.Link, id **identity.Source) {
				n.Issued, k.Issued = later, later
				f(n, k, id)
			})
		}
	}
	for _, tc := range []struct {
		name, want string
		record     func() any
	}{
		{"garbage", "decode", func() any { return "x" }},
		{"the controller's part altered", "does not verify", altered(func(r *fabric.NodeRecord) {
			r.Node.Payload = bytes.Replace(r.Node.Payload, []byte("100.64.1.0"), []byte("100.64.2.0"), 1)
		})},
		{"the link altered", "does not verify", altered(func(r *fabric.NodeRecord) {
			r.Link = bytes.Replace(r.Link, []byte("51820"), []byte("51821"), 1)
		})},
		{"signed by another fabric", "does not verify", altered(func(r *fabric.NodeRecord) {
			r.Node = other.Sign(fabric.KindNode, fabric.Node{Fabric: name, Zone: "aws1", Name: "w1"})
		})},
		{"another node's record", "it is about node aws1/w2", func() any { return l.record(2, nil) }},
		{"another fabric's", "of fabric \"other\"", changed(func(n *fabric.Node, _ *fabric.Link, _ **identity.Source) { n.Fabric = "other" })},
		{"older", "older than the one", changed(func(n *fabric.Node, _ *fabric.Link, _ **identity.Source) { n.Issued = time.Unix(1, 0) })},
		{"older link", "link is older", changed(func(_ *fabric.Node, k *fabric.Link, _ **identity.Source) { k.Issued = time.Unix(1, 0) })},
		{"link signed by another node", "signed by /node/aws1/w2", changed(func(_ *fabric.Node, _ *fabric.Link, id **identity.Source) {
			*id = l.ca.Node("aws1", "w2", fabric.KindWorkload)
		})},
		{"link signed as another kind", "kind", changed(func(_ *fabric.Node, _ *fabric.Link, id **identity.Source) {
			*id = l.ca.Node("aws1", "w1", fabric.KindProcessor)
		})},
		{"link signed by another authority", "unknown authority", changed(func(_ *fabric.Node, _ *fabric.Link, id **identity.Source) {
			*id = other.Node("aws1", "w1", fabric.KindWorkload)
		})},
		{"link of another node", "it is about node", changed(func(_ *fabric.Node, k *fabric.Link, _ **identity.Source) {
			k.Node = fabric.NodeID{Zone: "aws1", Name: "w2"}
		})},
		{"zero key", "its public key is zero", changed(func(_ *fabric.Node, k *fabric.Link, _ **identity.Source) { k.PublicKey = make([]byte, 32) })},
		{"zero port", "its UDP port for z9/w9 is 0", changed(func(_ *fabric.Node, k *fabric.Link, _ **identity.Source) {
			k.Ports = map[fabric.NodeID]uint16{{}: 51820, {Zone: "z9", Name: "w9"}: 0}
		})},
		{"no port", "it has no UDP port for the nodes of its zone", changed(func(_ *fabric.Node, k *fabric.Link, _ **identity.Source) { k.Ports = nil })},
		{"short key", "31 bytes", changed(func(_ *fabric.Node, k *fabric.Link, _ **identity.Source) { k.PublicKey = k.PublicKey[1:] })},
		{"somebody else's key", "that of node aws1/w2", changed(func(_ *fabric.Node, k *fabric.Link, _ **identity.Source) { k.PublicKey = bytes.Repeat([]byte{2}, 32) })},
		{"somebody else's IPv4 pool", "overlap those of node aws1/w2", changed(func(n *fabric.Node, _ *fabric.Link, _ **identity.Source) {
			n.Pool4 = netip.MustParsePrefix("100.64.2.128/25")
		})},
		{"somebody else's IPv6 pool", "overlap those of node aws1/w2", changed(func(n *fabric.Node, _ *fabric.Link, _ **identity.Source) {
			n.Pool6 = netip.MustParsePrefix("fd5f::/32")
		})},
		{"no pool", "pools", changed(func(n *fabric.Node, _ *fabric.Link, _ **identity.Source) { n.Pool4 = netip.Prefix{} })},
		{"odd kind", "unknown kind", changed(func(n *fabric.Node, _ *fabric.Link, _ **identity.Source) { n.Kind = "x" })},
	} {
		l.put(1, tc.record())
		eventually(t, tc.name+" is reported", func() bool {
			return slices.ContainsFunc(w.Degraded(), func(s string) bool { return strings.Contains(s, "node aws1/w1") && strings.Contains(s, tc.want) })
		})
		must.Eq(t, want, w.Members(), must.Sprint(tc.name))
	}
	l.put(1, good)
	eventually(t, "over", func() bool { return len(w.Degraded()) == 0 })
	must.Eq(t, want, w.Members())
}

// A node can see whether Consul has its record, even if nothing changes for the members.
func TestPublished(t *testing.T) {
	l := newLab(t)
	w := l.watcher(t.TempDir())
	reads := make(chan struct{}, 1000)
	w.OnRead(func() { reads <- struct{}{} })
	id := fabric.NodeID{Zone: "aws1", Name: "w1"}
	_, read := w.Published(id)
	must.False(t, read)
	run(t, w)
	<-reads
	record, read := w.Published(id)
	must.True(t, read)
	must.Nil(t, record)

	good := l.record(1, nil)
	want, err := json.Marshal(good)
	must.NoError(t, err)
	l.put(1, good)
	<-reads
	record, _ = w.Published(id)
	must.Eq(t, want, record)

	l.put(1, "x")
	<-reads
	record, _ = w.Published(id)
	must.Eq(t, `"x"`, string(record))

	_, err = l.consul.KV().Delete(kvkey.Node(id).String(), nil)
	must.NoError(t, err)
	<-reads
	eventually(t, "seen", func() bool {
		record, _ := w.Published(id)
		return record == nil
	})
	must.Eq(t, "w1", names(w))
}

// TestExpiredCertificate: a record stays good when the certificate in it has expired, but is not
// believed at first sight.
func TestExpiredCertificate(t *testing.T) {
	l := newLab(t)
	end := time.Now().Add(3 * time.Second)
	cert := l.ca.Issue(fabric.NodeID{Zone: "aws1", Name: "w1"}.SPIFFE(), "workload", func(c *x509.Certificate) { c.NotAfter = end })
	r := l.record(1, func(_ *fabric.Node, _ *fabric.Link, id **identity.Source) {
		*id = identity.Fixed(identitytest.TrustDomain, cert, l.ca.Roots(), l.ca.Keys())
	})
	l.put(1, r)
	dir := t.TempDir()
	w := l.watcher(dir)
	run(t, w)
	eventually(t, "known", func() bool { return names(w) == "w1" })
	time.Sleep(time.Until(end) + time.Second)
	l.put(2, l.record(2, nil))
	eventually(t, "the other is known", func() bool { return names(w) == "w1 w2" })
	must.SliceEmpty(t, w.Degraded())
	eventually(t, "both are kept on disk", func() bool { return names(l.watcher(dir)) == "w1 w2" })

	fresh := l.watcher(t.TempDir())
	run(t, fresh)
	eventually(t, "only the other is known", func() bool { return names(fresh) == "w2" && len(fresh.Degraded()) == 1 })
	must.StrContains(t, fresh.Degraded()[0], "expired")

	// The record of a node that is away is signed again: that is taken without its certificate, and
	// what is on disk counts also when the version before was retired.
	l.ca.Rotate()
	r.Node = l.ca.SignAgain(r.Node)
	l.put(1, r)
	l.put(2, l.record(2, nil))
	eventually(t, "both records of the second version", func() bool { return w.Signed()[2] == 2 })
	must.SliceEmpty(t, w.Degraded())
	l.ca.Rotate()
	l.ca.Retire()
	must.Eq(t, "w1 w2", names(l.watcher(dir)))
	fresh = l.watcher(t.TempDir())
	run(t, fresh)
	eventually(t, "both are refused", func() bool { return names(fresh) == "" && len(fresh.Degraded()) == 2 })
	must.StrContains(t, fresh.Degraded()[0], "the lowest accepted is 3")
}

// TestRemoved: a tombstone takes a member out, with Consul or without, over restarts, and whatever
// is put back into Consul. The machine comes back under its name with another key, but not with a
// certificate from before.
func TestRemoved(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	w := l.watcher(dir)
	run(t, w)
	old := l.record(1, nil)
	l.put(1, old)
	l.put(2, l.record(2, nil))
	eventually(t, "known", func() bool { return names(w) == "w1 w2" })

	must.NoError(t, l.server.Pause())
	at := time.Now()
	l.remove(1, at)
	w.Review()
	must.Eq(t, "w2", names(w))
	must.NoError(t, l.server.Resume())
	must.Eq(t, "w2", names(l.watcher(dir)))
	l.put(1, old)
	l.put(3, l.record(3, nil))
	eventually(t, "the others are followed", func() bool { return names(w) == "w2 w3" })
	must.StrContains(t, w.Degraded()[0], "the record of node aws1/w1 is refused: node aws1/w1 was removed at")

	later := func(change func(*fabric.Link, **identity.Source)) fabric.NodeRecord {
		return l.record(1, func(n *fabric.Node, k *fabric.Link, id **identity.Source) {
			n.Issued = time.Now().Add(time.Second)
			k.PublicKey = bytes.Repeat([]byte{9}, 32)
			change(k, id)
		})
	}
	for want, record := range map[string]fabric.NodeRecord{
		"was removed at":                later(func(k *fabric.Link, _ **identity.Source) { k.PublicKey = bytes.Repeat([]byte{1}, 32) }),
		"it is from before the removal": later(func(*fabric.Link, **identity.Source) {}),
	} {
		l.put(1, record)
		eventually(t, want, func() bool {
			return slices.ContainsFunc(w.Degraded(), func(s string) bool { return strings.Contains(s, want) })
		})
		must.Eq(t, "w2 w3", names(w))
	}
	l.put(1, later(func(_ *fabric.Link, id **identity.Source) {
		cert := l.ca.Issue(fabric.NodeID{Zone: "aws1", Name: "w1"}.SPIFFE(), "workload", func(c *x509.Certificate) { c.NotBefore = at.Truncate(time.Second).Add(time.Second) })
		*id = identity.Fixed(identitytest.TrustDomain, cert, l.ca.Roots(), l.ca.Keys())
	}))
	eventually(t, "it is back", func() bool { return names(w) == "w1 w2 w3" && len(w.Degraded()) == 0 })
}

// TestMissingForLong: a record that is missing ends when nobody could believe it any more, so that
// a node that was away for longer than tombstones are kept does not keep nodes that were removed.
func TestMissingForLong(t *testing.T) {
	l := newLab(t)
	v := verifier{name, identitytest.TrustDomain, l.ca.Keys, l.ca.Roots, l.removals}
	text, err := json.Marshal(l.record(1, nil))
	must.NoError(t, err)
	id := fabric.NodeID{Zone: "aws1", Name: "w1"}
	e, err := v.judge(id, text, nil)
	must.NoError(t, err)
	known := map[fabric.NodeID]entry{id: e}
	next, _ := v.merge(known, nil, e.ends.Add(fabric.MaxDegraded))
	must.MapLen(t, 1, next)
	next, _ = v.merge(known, nil, e.ends.Add(fabric.MaxDegraded+time.Second))
	must.MapEmpty(t, next)
	next, _ = v.merge(known, map[fabric.NodeID][]byte{id: text}, e.ends.Add(fabric.MaxDegraded+time.Second))
	must.MapLen(t, 1, next)
}
