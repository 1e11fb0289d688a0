// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package revocation follows the fabric's signed list of what was removed or revoked in Consul KV,
// takes it from wherever else it comes, and pins the newest one that it has seen. It does not know
// who heeds the list.
package revocation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/consulwatch"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/statefile"
)

const (
	watchTime = 5 * time.Minute // of one blocking query
	minPause  = 250 * time.Millisecond
	maxPause  = 10 * time.Second
	stateFile = "revocations.json"
)

// Errors of Offer for a valid list that is not taken.
var (
	ErrOlder = errors.New("a newer list was seen before")                                       // or another one of the same sequence
	ErrLacks = errors.New("it lacks a removal or a revocation of the one that was seen before") // whoever signed it did not know that one
)

// Causes of what Degraded lists.
const (
	causeConsul = "consul"
	causeList   = "list"
	causeDisk   = "disk"
)

// Watcher holds the newest list. Its methods are safe for concurrent use.
type Watcher struct {
	consul func() *consulapi.Client
	file   statefile.File[fabric.Signed]
	fabric string
	keys   func() fabric.KeySet
	log    hclog.Logger

	work sync.Mutex // held while the list is replaced and callbacks run

	mu       sync.Mutex
	signed   fabric.Signed
	list     fabric.Revocations
	id       fabric.ListID
	changed  chan struct{} // closed and replaced with each change
	onChange []func()
	problems map[string]string // by cause
}

// New returns a Watcher of the named fabric, which starts with the list that an earlier run left in
// dir. keys returns the fabric's public keys.
func New(consul func() *consulapi.Client, dir, fabricName string, keys func() fabric.KeySet, log hclog.Logger) (*Watcher, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the directory of the removals: %w", err)
	}
	w := &Watcher{
		consul: consul,
		file:   statefile.File[fabric.Signed]{Path: filepath.Join(dir, stateFile), What: "the list of removed nodes"},
		fabric: fabricName, keys: keys, log: log,
		problems: map[string]string{}, changed: make(chan struct{}),
	}
	signed, found, err := w.file.Read()
	if err != nil || !found {
		return w, err // to forget the list would bring removed nodes back
	}
	list, err := w.verify(keys().Kept(), signed)
	if err != nil {
		return nil, fmt.Errorf("the list of removed nodes in %s is refused: %w; replace it with the value of %s in Consul, or move it away", w.file.Path, err, kvkey.Revocations)
	}
	w.hold(signed, list)
	return w, nil
}

// Verify returns the list in a signed statement if the fabric signed it and it is valid.
func (w *Watcher) Verify(signed fabric.Signed) (fabric.Revocations, error) {
	return w.verify(w.keys(), signed)
}

func (w *Watcher) verify(keys fabric.KeySet, signed fabric.Signed) (fabric.Revocations, error) {
	var list fabric.Revocations
	if err := keys.Verify(signed, fabric.KindRevocations, &list); err != nil {
		return fabric.Revocations{}, err
	}
	return list, list.Check(w.fabric)
}

// Run follows the list in Consul until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	list := consulwatch.Watch[*consulapi.KVPair]{
		Query: func(opts *consulapi.QueryOptions) (*consulapi.KVPair, *consulapi.QueryMeta, error) {
			return w.consul().KV().Get(kvkey.Revocations, opts)
		},
		Handle: func(pair *consulapi.KVPair) bool {
			w.report(causeConsul, nil)
			return w.consider(pair)
		},
		Failed: func(err error) { w.report(causeConsul, fmt.Errorf("watch %s: %w", kvkey.Revocations, err)) },
		Wait:   watchTime, MinPause: minPause, MaxPause: maxPause,
	}
	list.Run(ctx)
	return nil
}

// consider takes the value in Consul. It returns false if it is not the newest list.
func (w *Watcher) consider(pair *consulapi.KVPair) bool {
	err := w.take(pair)
	if err != nil {
		err = fmt.Errorf("%s in Consul %w; the newest list of removed nodes that was seen stays in force", kvkey.Revocations, err)
	}
	w.report(causeList, err)
	return err == nil
}

func (w *Watcher) take(pair *consulapi.KVPair) error {
	if pair == nil {
		if w.List().Sequence == 0 {
			return nil
		}
		return errors.New("is missing")
	}
	var signed fabric.Signed
	if err := json.Unmarshal(pair.Value, &signed); err != nil {
		return fmt.Errorf("is refused: decode it: %w", err)
	}
	if err := w.Offer(signed); err != nil {
		return fmt.Errorf("is refused: %w", err)
	}
	return nil
}

// Offer takes a signed list, wherever it comes from, if it is newer than the one that is pinned and
// has all of its tombstones and revocations that were not over. It does nothing for the same list.
// A list that cannot be written to the disk is in force all the same, because it takes rights away.
func (w *Watcher) Offer(signed fabric.Signed) error {
	list, err := w.Verify(signed)
	if err != nil {
		return err
	}
	w.work.Lock()
	defer w.work.Unlock()
	w.mu.Lock()
	known, sameText := w.list.Sequence, bytes.Equal(w.signed.Payload, signed.Payload)
	same := sameText && w.signed.Version >= signed.Version
	switch {
	case same:
		w.mu.Unlock()
		return nil
	case list.Sequence < known, list.Sequence == known && !sameText:
		w.mu.Unlock()
		return fmt.Errorf("it has sequence %d, the one that is known %d: %w", list.Sequence, known, ErrOlder)
	case !list.Covers(w.list, list.Issued):
		w.mu.Unlock()
		return fmt.Errorf("it has sequence %d, the one that is known %d: %w", list.Sequence, known, ErrLacks)
	}
	w.hold(signed, list)
	callbacks := slices.Clone(w.onChange)
	if !sameText { // otherwise it was signed again, with a newer key
		close(w.changed)
		w.changed = make(chan struct{})
	}
	w.mu.Unlock()
	if sameText {
		w.report(causeDisk, w.file.Write(signed))
		return nil
	}
	w.log.Info("list of removals and revocations changed", logkey.Revision, list.Sequence, logkey.Count, len(list.Tombstones)+len(list.Revoked))
	for _, fn := range callbacks { // before the disk, which can be slow
		fn()
	}
	w.report(causeDisk, w.file.Write(signed))
	return nil
}

// hold makes a list the newest one. The caller must hold mu.
func (w *Watcher) hold(signed fabric.Signed, list fabric.Revocations) {
	w.signed, w.list = signed, list
	w.id = fabric.ListID{Sequence: list.Sequence, Digest: fabric.HashOf(signed.Payload)}
}

// List returns the newest list. Its sequence is 0 before the first removal.
func (w *Watcher) List() fabric.Revocations {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.list
}

// Signed returns the newest list as it was signed.
func (w *Watcher) Signed() fabric.Signed {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.signed
}

// ID says which list is the newest one.
func (w *Watcher) ID() fabric.ListID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.id
}

// Changed returns a channel that is closed when the list changes. Ask for it before List.
func (w *Watcher) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

// OnChange registers fn, which is called after each change of the list. Calls do not overlap, and
// must neither offer a list nor block.
func (w *Watcher) OnChange(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.onChange = append(w.onChange, fn)
}

// Degraded describes what was refused or cannot be reached, and why, for people.
func (w *Watcher) Degraded() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []string
	for _, cause := range []string{causeConsul, causeList, causeDisk} {
		if why := w.problems[cause]; why != "" {
			list = append(list, why)
		}
	}
	return list
}

// report replaces the problem with a cause; nil clears it.
func (w *Watcher) report(cause string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		delete(w.problems, cause)
		return
	}
	if w.problems[cause] != err.Error() {
		w.log.Warn("degraded, keeping the newest list of removed nodes", logkey.Error, err)
	}
	w.problems[cause] = err.Error()
}
