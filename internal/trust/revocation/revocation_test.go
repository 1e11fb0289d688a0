// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package revocation

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

const name = "test"

var begin = time.Now().UTC()

type lab struct {
	t      *testing.T
	server *testhost.Server
	consul *consulapi.Client
	ca     *identitytest.CA
}

func newLab(t *testing.T) *lab {
	server, client := testhost.Consul(t)
	return &lab{t, server, client, identitytest.NewCA(t)}
}

// list is the list of a sequence, in which the named nodes of aws1 were removed.
func list(sequence uint64, nodes ...string) fabric.Revocations {
	r := fabric.Revocations{Fabric: name, Sequence: sequence, Issued: begin}
	for i, n := range nodes {
		r.Tombstones = append(r.Tombstones, fabric.Tombstone{
			Node: fabric.NodeID{Zone: "aws1", Name: n}, Key: bytes.Repeat([]byte{byte(i + 1)}, 32), Removed: begin,
		})
	}
	return r
}

func (l *lab) put(v any) {
	l.t.Helper()
	b, err := json.Marshal(v)
	must.NoError(l.t, err)
	_, err = l.consul.KV().Put(&consulapi.KVPair{Key: kvkey.Revocations, Value: b}, nil)
	must.NoError(l.t, err)
}

func (l *lab) watcher(dir string) *Watcher {
	l.t.Helper()
	w, err := New(func() *consulapi.Client { return l.consul }, dir, name, l.ca.Keys, hclog.NewNullLogger())
	must.NoError(l.t, err)
	return w
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

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 15 s: " + what)
		}
	}
}

// TestPinned: whatever is done to Consul, and over restarts, the newest list stays in force, and
// what is wrong is said.
func TestPinned(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	w := l.watcher(dir)
	changed := make(chan uint64, 10)
	w.OnChange(func() { changed <- w.List().Sequence }) // callbacks may call back
	run(t, w)
	first, second := l.ca.Sign(fabric.KindRevocations, list(1, "w1")), l.ca.Sign(fabric.KindRevocations, list(2, "w1", "w2"))
	l.put(first)
	must.Eq(t, 1, <-changed)
	l.put(second)
	must.Eq(t, 2, <-changed)
	want := w.List()
	must.SliceEmpty(t, w.Degraded())

	altered := second
	altered.Payload = bytes.Replace(second.Payload, []byte("w2"), []byte("w3"), 1)
	other := identitytest.NewCA(t)
	for _, tc := range []struct {
		want  string
		value any
	}{
		{"it has sequence 1, the one that is known 2", first},
		{"it has sequence 2, the one that is known 2", l.ca.Sign(fabric.KindRevocations, list(2, "w1"))},
		{"it lacks a removal", l.ca.Sign(fabric.KindRevocations, list(3, "w2"))},
		{"does not verify", altered},
		{"does not verify", other.Sign(fabric.KindRevocations, list(9))},
		{"expected a signed revocations", l.ca.Sign(fabric.KindPointer, list(9))},
		{"it is of fabric", l.ca.Sign(fabric.KindRevocations, fabric.Revocations{Fabric: "other", Sequence: 9, Issued: time.Now()})},
		{"it has no sequence", l.ca.Sign(fabric.KindRevocations, list(0))},
		{"decode it", "x"},
	} {
		l.put(tc.value)
		eventually(t, tc.want, func() bool {
			return slices.ContainsFunc(w.Degraded(), func(s string) bool { return strings.Contains(s, tc.want) })
		})
		must.Eq(t, want, w.List())
	}
	_, err := l.consul.KV().Delete(kvkey.Revocations, nil)
	must.NoError(t, err)
	eventually(t, "missing", func() bool {
		return slices.ContainsFunc(w.Degraded(), func(s string) bool { return strings.Contains(s, "is missing") })
	})
	must.Eq(t, want, w.List())

	// Over a restart, without Consul, and from elsewhere than Consul.
	must.NoError(t, l.server.Pause())
	again := l.watcher(dir)
	must.Eq(t, want, again.List())
	must.Eq(t, second, again.Signed())
	must.ErrorIs(t, again.Offer(first), ErrOlder)
	must.NoError(t, again.Offer(second))
	must.NoError(t, again.Offer(l.ca.Sign(fabric.KindRevocations, list(3, "w1", "w2", "w3"))))
	must.Eq(t, 3, again.List().Sequence)
	must.NoError(t, l.server.Resume())
	l.put(second)
	eventually(t, "all is well again", func() bool { return len(w.Degraded()) == 0 })
	must.Eq(t, 0, len(changed))
}

// A list on disk that cannot be read, or that the fabric did not sign, is not forgotten: the daemon
// does not start.
func TestDisk(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	must.NoError(t, l.watcher(dir).Offer(l.ca.Sign(fabric.KindRevocations, list(1, "w1"))))
	_, err := New(func() *consulapi.Client { return l.consul }, dir, name, identitytest.NewCA(t).Keys, hclog.NewNullLogger())
	must.ErrorContains(t, err, "does not verify")
	must.NoError(t, os.WriteFile(filepath.Join(dir, stateFile), []byte("{"), 0o600))
	_, err = New(func() *consulapi.Client { return l.consul }, dir, name, l.ca.Keys, hclog.NewNullLogger())
	must.ErrorContains(t, err, "corrupt")

	// A disk that does not take the list keeps no removal from being in force.
	lost := filepath.Join(t.TempDir(), "lost")
	w := l.watcher(lost)
	must.NoError(t, os.RemoveAll(lost))
	must.NoError(t, os.WriteFile(lost, nil, 0o600))
	must.NoError(t, w.Offer(l.ca.Sign(fabric.KindRevocations, list(1, "w1"))))
	must.Len(t, 1, w.List().Tombstones)
	must.StrContains(t, w.Degraded()[0], "write the list of removed nodes")
}
