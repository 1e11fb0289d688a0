// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package revision

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

const name = "test"

var (
	proxy = fabric.Ref{Domain: "getaway-app", Name: "http-proxy"}
	svc   = fabric.Ref{Domain: "getaway-app", Name: "getaway-svc"}
	news  = fabric.Ref{Domain: "getaway-app", Name: "news-gw"}
)

// graph returns a graph whose frontend contract opens that port; no contract if it is zero.
func graph(port uint16, services ...fabric.Ref) *fabric.Graph {
	d := &fabric.Domain{Name: "getaway-app"}
	for _, s := range services {
		d.Services = append(d.Services, fabric.Service{Name: s.Name, Selectors: []fabric.Selector{{Kind: fabric.SelectConsul, Service: s.Name}}})
	}
	if port != 0 {
		d.Contracts = []fabric.Contract{{
			Name: "frontend", Originators: []fabric.Ref{proxy}, Responders: []fabric.Ref{svc},
			Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: port, To: port}}}},
		}}
	}
	return &fabric.Graph{Domains: map[string]*fabric.Domain{d.Name: d}}
}

// lab is a Consul with a controller that publishes into it.
type lab struct {
	t        testing.TB
	server   *testhost.Server
	consul   *consulapi.Client
	ca       *identitytest.CA
	sequence uint64
}

func newLab(t testing.TB) *lab {
	server, client := testhost.Consul(t)
	return &lab{t: t, server: server, consul: client, ca: identitytest.NewCA(t)}
}

func (l *lab) publish(g *fabric.Graph) (fabric.Revision, fabric.Signed) {
	l.t.Helper()
	ctx := context.Background()
	rev := fabric.Compile(g)
	l.sequence++
	signed := l.ca.Sign(fabric.KindPointer, fabric.Pointer{Fabric: name, Sequence: l.sequence, Root: rev.Root, Time: time.Now()})
	_, index, err := ReadCurrent(ctx, l.consul)
	if !errors.Is(err, ErrNoRevision) {
		must.NoError(l.t, err)
	}
	must.NoError(l.t, NewWriter(l.consul, Unfenced(l.consul)).Publish(ctx, rev, signed, index))
	return rev, signed
}

func (l *lab) put(key string, value []byte) {
	l.t.Helper()
	_, err := l.consul.KV().Put(&consulapi.KVPair{Key: key, Value: value}, nil)
	must.NoError(l.t, err)
}

func (l *lab) get(key string) *consulapi.KVPair {
	l.t.Helper()
	pair, _, err := l.consul.KV().Get(key, nil)
	must.NoError(l.t, err)
	return pair
}

func (l *lab) pointer(signed fabric.Signed) { l.put(kvkey.Current, fabric.NewObject(signed).Data) }

func (l *lab) follower(dir string) *Follower {
	l.t.Helper()
	f, err := NewFollower(l.consul, dir, name, l.ca.Keys, hclog.NewNullLogger())
	must.NoError(l.t, err)
	return f
}

func run(t testing.TB, f *Follower) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			must.NoError(t, <-done)
		}
	}
	t.Cleanup(stop)
	return stop
}

func eventually(t testing.TB, within time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}

func degradedBy(f *Follower, text string) func() bool {
	return func() bool {
		return slices.ContainsFunc(f.Degraded(), func(s string) bool { return strings.Contains(s, text) })
	}
}

// documentOf returns what the graph compiles to for a service.
func documentOf(g *fabric.Graph, r fabric.Ref) fabric.Document {
	for _, d := range fabric.Documents(g) {
		if d.Service == r {
			return d
		}
	}
	return fabric.Document{Service: r}
}

func TestFollow(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	dir := t.TempDir()
	f := l.follower(dir)
	run(t, f)
	_, err := f.Document(ctx, proxy)
	must.ErrorIs(t, err, ErrNoRevision)
	must.Eq(t, fabric.Pointer{}, f.Pointer())

	changes := make(chan fabric.Pointer, 10)
	f.OnChange(func(p fabric.Pointer, docs map[fabric.Ref]fabric.Document) {
		f.Degraded() // callbacks may call back
		changes <- p
	})
	g := graph(8080, proxy, svc, news)
	l.publish(g)
	must.Eq(t, 1, (<-changes).Sequence)
	doc, err := f.Document(ctx, proxy)
	must.NoError(t, err)
	must.Eq(t, documentOf(g, proxy), doc)
	late := fabric.Ref{Domain: "getaway-app", Name: "late"}
	_, err = f.Document(ctx, late)
	must.ErrorIs(t, err, ErrUnknownService)
	must.Eq(t, fabric.Document{Service: late}, f.Documents()[late])

	// A change comes through, and only of interests.
	start := time.Now()
	g = graph(8081, proxy, svc, news)
	l.publish(g)
	must.Eq(t, 2, (<-changes).Sequence)
	t.Logf("publish to switched: %s", time.Since(start))
	must.Eq(t, documentOf(g, proxy), f.Documents()[proxy])

	// A service that leaves the graph keeps a document that permits nothing.
	l.publish(graph(0, svc, news))
	must.Eq(t, 3, (<-changes).Sequence)
	must.Eq(t, fabric.Document{Service: proxy}, f.Documents()[proxy])
	_, err = f.Document(ctx, proxy)
	must.ErrorIs(t, err, ErrUnknownService)
	// One that the graph has later gets its document then, without being asked for again.
	g = graph(8081, proxy, svc, news, late)
	l.publish(g)
	must.Eq(t, 4, (<-changes).Sequence)
	_, err = f.Document(ctx, proxy)
	must.NoError(t, err)
	must.Eq(t, documentOf(g, late), f.Documents()[late])

	f.Retain(func() map[fabric.Ref]bool { return nil })
	must.MapLen(t, 0, f.Documents())
	must.SliceEmpty(t, f.Degraded())
}

// A document that cannot be read when it is asked for comes later, and whoever enforces it is told:
// the caller may have given up, or Consul may be away.
func TestDocumentsComeLater(t *testing.T) {
	l := newLab(t)
	f := l.follower(t.TempDir())
	g := graph(8080, proxy, svc, news)
	// One that is asked for before the first revision comes with it.
	_, err := f.Document(t.Context(), news)
	must.ErrorIs(t, err, ErrNoRevision)
	told := make(chan map[fabric.Ref]fabric.Document, 10)
	f.OnChange(func(_ fabric.Pointer, docs map[fabric.Ref]fabric.Document) { told <- docs })
	l.publish(g)
	run(t, f)
	must.Eq(t, map[fabric.Ref]fabric.Document{news: documentOf(g, news)}, <-told)

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = f.Document(gone, proxy)
	must.ErrorIs(t, err, context.Canceled)
	must.Eq(t, documentOf(g, proxy), (<-told)[proxy])
	must.SliceEmpty(t, f.Degraded())

	// What nobody wants any more is not read.
	_, err = f.Document(gone, svc)
	must.ErrorIs(t, err, context.Canceled)
	f.Retain(func() map[fabric.Ref]bool { return map[fabric.Ref]bool{proxy: true} })
	f.mu.Lock()
	must.MapEmpty(t, f.lacking)
	f.mu.Unlock()

	// An object that is not there is reported, stops no other revision, and is taken when it comes.
	other := l.follower(t.TempDir())
	run(t, other)
	eventually(t, 15*time.Second, "the revision", func() bool { return other.Pointer().Sequence == 1 })
	key := kvkey.Object(fabric.NewObject(documentOf(g, svc)).Hash).String()
	pair := l.get(key)
	must.NotNil(t, pair)
	_, err = l.consul.KV().Delete(key, nil)
	must.NoError(t, err)
	_, err = other.Document(t.Context(), svc)
	must.Error(t, err)
	eventually(t, 15*time.Second, "it is reported", degradedBy(other, svc.String()))
	l.publish(graph(8080, proxy, svc, news, fabric.Ref{Domain: "getaway-app", Name: "more"}))
	eventually(t, 15*time.Second, "the next revision", func() bool { return other.Pointer().Sequence == 2 })
	l.put(key, pair.Value)
	eventually(t, 15*time.Second, "its document", func() bool { return len(other.Documents()[svc].Responds) > 0 && len(other.Degraded()) == 0 })
}

// Every node follows the links, whatever services it hosts, and keeps them on its disk.
func TestFollowLinks(t *testing.T) {
	l := newLab(t)
	link := func(cost uint16) []fabric.LinkRule {
		return []fabric.LinkRule{{Name: "l", Between: [2]fabric.LinkEnd{{Zone: "aws1"}, {Zone: "gcp1"}}, Cost: cost}}
	}
	g := graph(8080, proxy, svc)
	dir := t.TempDir()
	f := l.follower(dir)
	must.SliceEmpty(t, f.Links())
	stop := run(t, f)
	for cost := range uint16(3) {
		g.Links = link(cost)
		l.publish(g)
		eventually(t, 5*time.Second, "the links are there", func() bool { return reflect.DeepEqual(link(cost), f.Links()) })
	}
	stop()
	must.Eq(t, link(2), l.follower(dir).Links())
	stop = run(t, f)
	defer stop()
	g.Links = nil
	l.publish(g)
	eventually(t, 5*time.Second, "the links are gone", func() bool { return len(f.Links()) == 0 })
}

func TestPublishConflictAndRepair(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	rev, signed := l.publish(graph(8080, proxy, svc))
	must.ErrorIs(t, NewWriter(l.consul, Unfenced(l.consul)).Publish(ctx, rev, signed, 0), ErrConflict)
	must.ErrorIs(t, NewWriter(l.consul, Unfenced(l.consul)).Publish(ctx, rev, signed, 1), ErrConflict)

	// What was altered is written anew.
	h := rev.Objects[0].Hash
	l.put(kvkey.Object(h).String(), []byte("{}"))
	var v any
	must.ErrorContains(t, ReadObject(ctx, l.consul, h, &v), "was altered")
	l.publish(graph(8080, proxy, svc))
	must.NoError(t, ReadObject(ctx, l.consul, h, &v))
	must.ErrorContains(t, ReadObject(ctx, l.consul, fabric.Hash{1}, &v), "is missing")
}

// What fits into one transaction is written at once with the pointer, or not at all; of more, the
// pointer is written last.
func TestPublishAtOnceOrPointerLast(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	rev, signed := l.publish(graph(8080, proxy, svc, news))
	for _, o := range rev.Objects {
		must.Eq(t, l.get(kvkey.Current).ModifyIndex, l.get(kvkey.Object(o.Hash).String()).ModifyIndex)
	}
	next := fabric.Compile(graph(8081, proxy, svc, news))
	must.ErrorIs(t, NewWriter(l.consul, Unfenced(l.consul)).Publish(ctx, next, signed, 1), ErrConflict)
	must.Nil(t, l.get(kvkey.Object(next.Root).String()))

	for _, large := range [][]fabric.Object{blobs(2*txnOps, 10), blobs(2, txnBytes-100), blobs(1, txnBytes+1)} {
		index := l.get(kvkey.Current).ModifyIndex
		signed.Version++ // Consul counts only a write of another value as one
		must.NoError(t, NewWriter(l.consul, Unfenced(l.consul)).Publish(ctx, fabric.Revision{Objects: large}, signed, index))
		first := l.get(kvkey.Object(large[0].Hash).String())
		must.Greater(t, first.ModifyIndex, l.get(kvkey.Current).ModifyIndex)
		for _, o := range large {
			data, err := unpack(l.get(kvkey.Object(o.Hash).String()).Value)
			must.NoError(t, err)
			must.Eq(t, string(o.Data), string(data))
		}
	}
}

// blobs makes objects that gzip does not shrink to less than size.
func blobs(count, size int) []fabric.Object {
	var list []fabric.Object
	for range count {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		data[0] = '"' // JSON, not gzip
		list = append(list, fabric.Object{Hash: fabric.HashOf(data), Data: data})
	}
	return list
}

// Split keeps every operation, in order, within Consul's limits.
func TestSplit(t *testing.T) {
	value := make([]byte, maxValue)
	rapid.Check(t, func(t *rapid.T) {
		var ops consulapi.TxnOps
		for i, size := range rapid.SliceOf(rapid.IntRange(0, maxValue)).Draw(t, "sizes") {
			for range rapid.IntRange(1, 30).Draw(t, "times") {
				ops = append(ops, &consulapi.TxnOp{KV: &consulapi.KVTxnOp{Key: fmt.Sprint(i), Value: value[:size/(1+i)]}})
			}
		}
		parts := split(ops)
		must.Eq(t, len(ops), len(slices.Concat(parts...)))
		for i, op := range slices.Concat(parts...) {
			must.True(t, op == ops[i])
		}
		for i, p := range parts {
			size := 0
			for _, op := range p {
				size += len(op.KV.Value)
			}
			must.Greater(t, 0, len(p))
			must.LessEq(t, txnOps, len(p))
			must.True(t, size <= txnBytes || len(p) == 1)
			if i > 0 { // no part that the one before had room for
				before := slices.Concat(parts[i-1], p[:1])
				size = 0
				for _, op := range before {
					size += len(op.KV.Value)
				}
				must.True(t, len(before) > txnOps || size > txnBytes)
			}
		}
	})
}

func TestPublishLarge(t *testing.T) {
	l := newLab(t)
	g := &fabric.Graph{Domains: map[string]*fabric.Domain{}}
	for d := range 20 {
		domain := &fabric.Domain{Name: fmt.Sprintf("d%d", d)}
		for s := range 100 {
			domain.Services = append(domain.Services, fabric.Service{Name: fmt.Sprintf("s%d", s)})
		}
		g.Domains[domain.Name] = domain
	}
	start := time.Now()
	rev, _ := l.publish(g)
	t.Logf("%d objects in %s", len(rev.Objects), time.Since(start))
	f := l.follower(t.TempDir())
	run(t, f)
	eventually(t, 10*time.Second, "the revision is followed", func() bool { return f.Pointer().Sequence == 1 })
	for d := range 20 {
		_, err := f.Document(context.Background(), fabric.Ref{Domain: fmt.Sprintf("d%d", d), Name: "s99"})
		must.NoError(t, err)
	}
}

// TestAlteredPointer has pointers refused that must not be believed, one after the other, and a
// good one accepted afterwards.
func TestAlteredPointer(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	old := graph(8080, proxy, svc)
	oldRev, oldSigned := l.publish(old)
	g := graph(8081, proxy, svc)
	_, signed := l.publish(g)
	f := l.follower(t.TempDir())
	run(t, f)
	eventually(t, 5*time.Second, "followed", func() bool { return f.Pointer().Sequence == 2 })
	_, err := f.Document(ctx, proxy)
	must.NoError(t, err)
	want := f.Documents()

	point := func(change func(*fabric.Pointer)) fabric.Signed {
		p := fabric.Pointer{Fabric: name, Sequence: 3, Root: oldRev.Root, Time: time.Now()}
		change(&p)
		return l.ca.Sign(fabric.KindPointer, p)
	}
	other := identitytest.NewCA(t)
	for _, tc := range []struct {
		name, want string
		do         func()
	}{
		{"an older signed one", "sequence 1 is lower than 2", func() { l.pointer(oldSigned) }},
		{"another root under its sequence", "seen before with another root", func() { l.pointer(point(func(p *fabric.Pointer) { p.Sequence = 2 })) }},
		{"another root without a signature", "does not verify", func() {
			s := signed
			s.Payload = point(func(*fabric.Pointer) {}).Payload
			l.pointer(s)
		}},
		{"signed by somebody else", "does not verify", func() {
			l.pointer(other.Sign(fabric.KindPointer, fabric.Pointer{Fabric: name, Sequence: 9, Root: oldRev.Root}))
		}},
		{"unknown key version", "version 7", func() {
			s := signed
			s.Version = 7
			l.pointer(s)
		}},
		{"another kind", "expected", func() {
			l.pointer(l.ca.Sign(fabric.KindNode, fabric.Pointer{Fabric: name, Sequence: 9, Root: oldRev.Root}))
		}},
		{"of another fabric", "of fabric \"other\"", func() { l.pointer(point(func(p *fabric.Pointer) { p.Fabric = "other" })) }},
		{"garbage", "decode", func() { l.put(kvkey.Current, []byte("garbage")) }},
		{"deleted", "is missing in Consul", func() {
			_, err := l.consul.KV().Delete(kvkey.Current, nil)
			must.NoError(t, err)
		}},
	} {
		tc.do()
		eventually(t, 5*time.Second, tc.name+" is reported", degradedBy(f, tc.want))
		must.Eq(t, 2, f.Pointer().Sequence)
		must.Eq(t, want, f.Documents())
		l.pointer(signed)
		eventually(t, 15*time.Second, tc.name+" is over", func() bool { return len(f.Degraded()) == 0 })
	}
	l.publish(old) // rolling back is a new pointer to an old root
	eventually(t, 5*time.Second, "followed", func() bool { return f.Pointer().Sequence == 3 })
	must.Eq(t, documentOf(old, proxy), f.Documents()[proxy])
}

// TestAlteredObjects alters, before and after they were fetched, the objects of a revision.
func TestAlteredObjects(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	first := graph(8080, proxy, svc)
	rev, _ := l.publish(first)
	f := l.follower(t.TempDir())
	run(t, f)
	eventually(t, 5*time.Second, "followed", func() bool { return f.Pointer().Sequence == 1 })
	_, err := f.Document(ctx, proxy)
	must.NoError(t, err)

	// After: noticed in time, and nothing changes.
	docs, shards := objectsOf(t, rev)
	for _, h := range []fabric.Hash{docs[proxy], shards[proxy], rev.Root} {
		good := l.get(kvkey.Object(h).String()).Value
		l.put(kvkey.Object(h).String(), fabric.NewObject(fabric.Document{Service: proxy}).Data)
		eventually(t, 15*time.Second, "reported", degradedBy(f, h.String()))
		must.True(t, degradedBy(f, "was altered")())
		must.Eq(t, documentOf(first, proxy), f.Documents()[proxy])
		l.put(kvkey.Object(h).String(), good)
	}
	eventually(t, 15*time.Second, "over", func() bool { return len(f.Degraded()) == 0 })

	// Before: the switch waits until the object is back.
	second := graph(8081, proxy, svc)
	next := fabric.Compile(second)
	docs, _ = objectsOf(t, next)
	must.NoError(t, NewWriter(l.consul, Unfenced(l.consul)).Write(ctx, next.Objects))
	key := kvkey.Object(docs[proxy]).String()
	good := l.get(key).Value
	l.put(key, fabric.NewObject(documentOf(graph(1, proxy, svc), proxy)).Data)
	l.sequence++
	l.pointer(l.ca.Sign(fabric.KindPointer, fabric.Pointer{Fabric: name, Sequence: l.sequence, Root: next.Root}))
	eventually(t, 5*time.Second, "refused", degradedBy(f, "cannot switch to revision 2: document "+docs[proxy].String()+" of getaway-app/http-proxy in Consul was altered"))
	must.Eq(t, 1, f.Pointer().Sequence)
	must.Eq(t, documentOf(first, proxy), f.Documents()[proxy])
	l.put(key, good)
	eventually(t, 15*time.Second, "taken over", func() bool { return f.Pointer().Sequence == 2 && len(f.Degraded()) == 0 })
	must.Eq(t, documentOf(second, proxy), f.Documents()[proxy])
}

// objectsOf returns the hashes of the documents and shards of a revision by service.
func objectsOf(t testing.TB, rev fabric.Revision) (docs, shards map[fabric.Ref]fabric.Hash) {
	t.Helper()
	objects := map[fabric.Hash][]byte{}
	for _, o := range rev.Objects {
		objects[o.Hash] = o.Data
	}
	var root fabric.Root
	must.NoError(t, fabric.DecodeObject(objects[rev.Root], rev.Root, &root))
	docs, shards = map[fabric.Ref]fabric.Hash{}, map[fabric.Ref]fabric.Hash{}
	for _, h := range root.Shards {
		if h.IsZero() {
			continue
		}
		var s fabric.Shard
		must.NoError(t, fabric.DecodeObject(objects[h], h, &s))
		for service, doc := range s {
			r, err := fabric.ParseRef(service)
			must.NoError(t, err)
			docs[r], shards[r] = doc, h
		}
	}
	return docs, shards
}

func TestRestartWithoutConsul(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	g := graph(8080, proxy, svc)
	_, older := l.publish(graph(1, proxy, svc))
	l.publish(g)
	dir := t.TempDir()
	f := l.follower(dir)
	stop := run(t, f)
	eventually(t, 5*time.Second, "followed", func() bool { return f.Pointer().Sequence == 2 })
	_, err := f.Document(ctx, proxy)
	must.NoError(t, err)
	stop()

	must.NoError(t, l.server.Pause())
	f = l.follower(dir)
	must.Eq(t, 2, f.Pointer().Sequence)
	must.Eq(t, documentOf(g, proxy), f.Documents()[proxy])
	doc, err := f.Document(ctx, proxy)
	must.NoError(t, err)
	must.Eq(t, documentOf(g, proxy), doc)
	must.NoError(t, l.server.Resume())

	// What is older than what the disk remembers stays refused.
	l.pointer(older)
	run(t, f)
	eventually(t, 5*time.Second, "refused", degradedBy(f, "sequence 1 is lower than 2"))
	must.Eq(t, documentOf(g, proxy), f.Documents()[proxy])

	// A disk that was tampered with is not believed either.
	other, err := NewFollower(l.consul, dir, name, identitytest.NewCA(t).Keys, hclog.NewNullLogger())
	must.NoError(t, err)
	must.Eq(t, fabric.Pointer{}, other.Pointer())
	must.True(t, degradedBy(other, "kept on disk is not used")())
	broken := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(broken, stateFile), []byte("{"), 0o600))
	_, err = NewFollower(l.consul, broken, name, l.ca.Keys, hclog.NewNullLogger())
	must.ErrorContains(t, err, stateFile)
}

// TestOnlyPublishedIsEnforced is the law of this package: whatever is done to Consul, the enforced
// documents are those of a graph that was published, as a whole, and the sequence never falls, not
// even over restarts.
func TestOnlyPublishedIsEnforced(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	services := []fabric.Ref{proxy, svc, news}
	rapid.Check(t, func(t *rapid.T) {
		_, err := l.consul.KV().DeleteTree("sif/", nil)
		must.NoError(t, err)
		l.sequence = 0
		dir, err := os.MkdirTemp("", "revision")
		must.NoError(t, err)
		defer os.RemoveAll(dir)
		f := l.follower(dir)
		published := map[uint64]*fabric.Graph{}
		var pointers []fabric.Signed
		var objects []fabric.Object
		var compiled *fabric.Compiled
		var last uint64
		t.Repeat(map[string]func(*rapid.T){
			"publish": func(t *rapid.T) {
				g := graph(uint16(rapid.IntRange(1, 65535).Draw(t, "port")), services...)
				if rapid.IntRange(0, 4).Draw(t, "drop") == 0 {
					g = graph(0, svc, news)
				}
				if rapid.Bool().Draw(t, "nothing that acts") {
					// Another service in the domain, which touches none of the others.
					d := g.Domains["getaway-app"]
					if compiled != nil {
						d.Contracts = compiled.Graph.Domains[d.Name].Contracts
					}
					d.Services = append(d.Services, fabric.Service{Name: fmt.Sprint("more", l.sequence)})
				}
				rev := fabric.Compile(g)
				l.sequence++
				pointer := fabric.Pointer{Fabric: name, Sequence: l.sequence, Root: rev.Root}
				if compiled != nil {
					pointer.Previous = compiled.Root
				}
				var touched []fabric.Ref
				compiled, _, touched = compiled.Next(g)
				pointer.SetTouched(touched)
				signed := l.ca.Sign(fabric.KindPointer, pointer)
				must.NoError(t, NewWriter(l.consul, Unfenced(l.consul)).Write(ctx, rev.Objects))
				l.pointer(signed)
				published[l.sequence] = g
				pointers = append(pointers, signed)
				objects = append(objects, rev.Objects...)
			},
			"alter an object": func(t *rapid.T) {
				if len(objects) == 0 {
					t.Skip("no objects")
				}
				o := rapid.SampledFrom(objects).Draw(t, "object")
				with := rapid.SampledFrom(objects).Draw(t, "with") // a well-formed other one
				if rapid.Bool().Draw(t, "restore") {
					with = o
				}
				l.put(kvkey.Object(o.Hash).String(), with.Data)
			},
			"delete an object": func(t *rapid.T) {
				if len(objects) == 0 {
					t.Skip("no objects")
				}
				_, err := l.consul.KV().Delete(kvkey.Object(rapid.SampledFrom(objects).Draw(t, "object").Hash).String(), nil)
				must.NoError(t, err)
			},
			"replay a pointer": func(t *rapid.T) {
				if len(pointers) == 0 {
					t.Skip("no pointers")
				}
				s := rapid.SampledFrom(pointers).Draw(t, "pointer")
				if rapid.Bool().Draw(t, "forge") {
					s.Payload = slices.Clone(s.Payload)
					s.Payload[rand.IntN(len(s.Payload))] ^= 1
				}
				l.pointer(s)
			},
			"interest": func(t *rapid.T) { f.Document(ctx, rapid.SampledFrom(services).Draw(t, "service")) },
			"retain": func(t *rapid.T) {
				kept := map[fabric.Ref]bool{rapid.SampledFrom(services).Draw(t, "service"): true}
				f.Retain(func() map[fabric.Ref]bool { return kept })
				for r := range f.Documents() {
					must.True(t, kept[r])
				}
			},
			"restart": func(t *rapid.T) {
				must.NoError(t, f.save()) // as Run does when it ends
				f = l.follower(dir)
			},
			"": func(t *rapid.T) {
				f.consider(ctx, l.get(kvkey.Current))
				p := f.Pointer()
				if p.Sequence < last {
					t.Fatalf("the sequence fell from %d to %d", last, p.Sequence)
				}
				last = p.Sequence
				for r, doc := range f.Documents() {
					if want := documentOf(published[p.Sequence], r); !cmp.Equal(want, doc) {
						t.Fatalf("enforced at %d: %s", p.Sequence, cmp.Diff(want, doc))
					}
				}
				if _, err := f.recheck(ctx, rapid.Bool().Draw(t, "full")); err != nil {
					t.Fatal(err)
				}
			},
		})
	})
}
