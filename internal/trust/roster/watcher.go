// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package roster

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/consulwatch"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
	"github.com/sif-project/sif/internal/statefile"
)

const (
	watchTime      = 5 * time.Minute // of one blocking query
	requestTimeout = 10 * time.Second
	minPause       = 250 * time.Millisecond
	maxPause       = 10 * time.Second
	recheckTime    = 10 * time.Second // between comparisons of the keys in Consul
	stateFile      = "roster.json"
)

// Watcher watches the records in Consul. Its methods are safe for concurrent use.
type Watcher struct {
	consul *consulapi.Client
	file   statefile.File[map[string][]byte] // records by zone/node
	verify verifier
	log    hclog.Logger

	work sync.Mutex // held while nodes are replaced and callbacks run

	mu       sync.Mutex
	nodes    map[fabric.NodeID]entry
	onChange []func([]Member)
	onRead   []func()
	read     bool                     // the records in Consul were read
	records  map[fabric.NodeID][]byte // in Consul when they were last read
	keys     []string                 // of the records, and others under the same prefix
	wrong    []string                 // reasons why records were refused
	trouble  []string                 // problems with Consul or the disk
}

// New returns a Watcher of the named fabric, which starts with the roster that an earlier run left
// in dir. keys returns the fabric's public keys, roots the authorities of the nodes' certificates,
// removed the nodes that were removed; call Review after it has changed.
func New(consul *consulapi.Client, dir, fabricName, trustDomain string, keys func() fabric.KeySet, roots func() *x509.CertPool, removed func() fabric.Revocations, log hclog.Logger) (*Watcher, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the directory of the roster: %w", err)
	}
	w := &Watcher{
		consul: consul,
		file:   statefile.File[map[string][]byte]{Path: filepath.Join(dir, stateFile), What: "the roster"},
		verify: verifier{fabricName, trustDomain, keys, roots, removed},
		log:    log,
		nodes:  map[fabric.NodeID]entry{},
	}
	records, _, err := w.file.Read()
	if err != nil {
		return nil, err
	}
	for name, record := range records {
		id, err := fabric.ParseNodeID(name)
		var e entry
		if err == nil {
			e, err = w.verify.restore(id, record)
		}
		if err != nil {
			w.wrong = append(w.wrong, fmt.Sprintf("the record of node %s on disk is not used: %v", name, err))
			continue
		}
		w.nodes[id] = e
	}
	w.nodes = w.verify.living(w.nodes)
	return w, nil
}

// Run watches until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	records := consulwatch.Watch[consulapi.KVPairs]{
		Query: func(opts *consulapi.QueryOptions) (consulapi.KVPairs, *consulapi.QueryMeta, error) {
			return w.consul.KV().List(kvkey.Nodes, opts)
		},
		Handle: w.take, // a record that is refused may verify with keys that arrive later
		Failed: func(err error) { w.troubled(fmt.Errorf("watch %s: %w", kvkey.Nodes, err)) },
		Wait:   watchTime, MinPause: minPause, MaxPause: maxPause,
	}
	var background sync.WaitGroup
	background.Go(func() { w.recheckLoop(ctx, records.Refresh) })
	defer background.Wait()
	records.Run(ctx)
	return nil
}

// recheckLoop calls refresh when Consul has other keys than the watch knows of: Consul does not
// wake a query for a prefix when a tree above it is deleted and something below it was deleted
// before.
func (w *Watcher) recheckLoop(ctx context.Context, refresh func()) {
	for retry.Sleep(ctx, recheckTime-time.Second+rand.N(2*time.Second)) {
		qctx, cancel := context.WithTimeout(ctx, requestTimeout)
		keys, _, err := w.consul.KV().Keys(kvkey.Nodes, "", (&consulapi.QueryOptions{}).WithContext(qctx))
		cancel()
		if err != nil {
			continue // Consul cannot be reached: the watch reports it
		}
		slices.Sort(keys)
		w.mu.Lock()
		differ := !slices.Equal(keys, w.keys)
		w.mu.Unlock()
		if differ {
			refresh()
		}
	}
}

// take uses the records in Consul. It reports whether all of them are valid.
func (w *Watcher) take(pairs consulapi.KVPairs) bool {
	records := map[fabric.NodeID][]byte{}
	var keys, strange []string
	for _, p := range pairs {
		keys = append(keys, p.Key)
		id, err := kvkey.ParseNode(p.Key)
		if err != nil {
			strange = append(strange, fmt.Sprintf("the record under %s is refused: %v", p.Key, err))
			continue
		}
		records[fabric.NodeID(id)] = p.Value
	}
	slices.Sort(keys)
	w.work.Lock()
	defer w.work.Unlock()
	w.mu.Lock()
	w.read, w.records, w.keys = true, records, keys
	known := w.nodes
	w.mu.Unlock()
	next, wrong := w.verify.merge(known, records, clock.Now())
	return w.replace(next, append(strange, wrong...))
}

// Review drops the nodes that were removed. It does not need Consul.
func (w *Watcher) Review() {
	w.work.Lock()
	defer w.work.Unlock()
	w.mu.Lock()
	known, wrong, records, read := w.nodes, w.wrong, w.records, w.read
	w.mu.Unlock()
	next := w.verify.living(known)
	if read { // a record that was refused may be good without the removed nodes
		next, wrong = w.verify.merge(known, records, clock.Now())
	}
	w.replace(next, wrong)
}

// replace puts nodes in force, and reports what is wrong. It reports whether all is well. The
// caller holds w.work.
func (w *Watcher) replace(next map[fabric.NodeID]entry, wrong []string) bool {
	w.mu.Lock()
	changed := !maps.EqualFunc(next, w.nodes, func(a, b entry) bool { return bytes.Equal(a.record, b.record) })
	news := slices.DeleteFunc(slices.Clone(wrong), func(s string) bool { return slices.Contains(w.wrong, s) })
	w.nodes, w.wrong = next, wrong
	callbacks, readers := slices.Clone(w.onChange), slices.Clone(w.onRead)
	w.mu.Unlock()
	for _, fn := range readers {
		fn()
	}
	for _, text := range news {
		w.log.Warn("degraded, keeping the nodes known so far", logkey.Error, text)
	}
	var err error
	if changed {
		err = w.save(next)
		members := sorted(next)
		w.log.Info("nodes of the fabric changed", logkey.Count, len(members))
		for _, fn := range callbacks {
			fn(slices.Clone(members))
		}
	}
	w.troubled(err)
	return len(wrong) == 0 && err == nil
}

func (w *Watcher) save(nodes map[fabric.NodeID]entry) error {
	records := map[string][]byte{}
	for id, e := range nodes {
		records[id.String()] = e.record
	}
	return w.file.Write(records)
}

func (w *Watcher) troubled(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.trouble = nil
		return
	}
	if !slices.Contains(w.trouble, err.Error()) {
		w.log.Warn("degraded, keeping the nodes known so far", logkey.Error, err)
	}
	w.trouble = []string{err.Error()}
}

// Members returns the nodes, ordered by zone and name.
func (w *Watcher) Members() []Member {
	w.mu.Lock()
	defer w.mu.Unlock()
	return sorted(w.nodes)
}

// Member returns a node of the fabric.
func (w *Watcher) Member(id fabric.NodeID) (Member, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e, ok := w.nodes[id]
	return e.member, ok
}

func sorted(nodes map[fabric.NodeID]entry) []Member {
	members := make([]Member, 0, len(nodes))
	for _, e := range nodes {
		members = append(members, e.member)
	}
	slices.SortFunc(members, func(a, b Member) int { return fabric.CompareNodeIDs(a.ID(), b.ID()) })
	return members
}

// Signed counts the records by the version of the fabric's key that signed them.
func (w *Watcher) Signed() map[int]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	counts := map[int]int{}
	for _, e := range w.nodes {
		counts[e.version]++
	}
	return counts
}

// OnChange registers fn, which is called with all members after each change. Calls do not overlap,
// and must not call Review.
func (w *Watcher) OnChange(fn func([]Member)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.onChange = append(w.onChange, fn)
}

// OnRead registers fn, which is called each time after the records in Consul were read, or the
// nodes reviewed, changed or not. Calls do not overlap.
func (w *Watcher) OnRead(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.onRead = append(w.onRead, fn)
}

// Published returns the record of a node that Consul had when it was last read, valid or not, and
// nil if there was none. It reports whether Consul was read at all.
func (w *Watcher) Published(id fabric.NodeID) (record []byte, read bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.records[id], w.read
}

// Degraded describes what was refused or cannot be reached, and why, for people.
func (w *Watcher) Degraded() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append(slices.Clone(w.trouble), w.wrong...)
}
