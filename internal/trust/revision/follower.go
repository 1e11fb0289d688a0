// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package revision

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/consulwatch"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
)

const (
	watchTime       = 5 * time.Minute // of one blocking query
	minPause        = 250 * time.Millisecond
	maxPause        = 5 * time.Second
	recheckInterval = 10 * time.Second // what Consul holds is compared with what is enforced
	fullRecheck     = 60               // so many comparisons read everything once
	requestTimeout  = 10 * time.Second
)

// The causes under which Degraded lists what is wrong.
const (
	causeConsul  = "consul"
	causePointer = "pointer"
	causeSwitch  = "switch"
	causeRecheck = "recheck"
	causeDisk    = "disk"
)

// Follower follows the revision on a node. What it holds has passed every
// check; what does not pass changes nothing and is listed by Degraded. Its
// methods are safe for concurrent use.
type Follower struct {
	consul *consulapi.Client
	dir    string
	fabric string
	keys   func() fabric.KeySet
	log    hclog.Logger

	work   sync.Mutex    // held while a view is being replaced; never while callbacks run
	dirty  chan struct{} // the state is to be saved
	saving sync.Mutex    // held from taking the state until it is on disk

	mu        sync.Mutex
	view      *view // nil before the first revision
	highest   mark
	interests map[fabric.Ref]bool
	onChange  []func(fabric.Pointer, map[fabric.Ref]fabric.Document)
	degraded  map[string][]string // by cause
}

// NewFollower returns a Follower of the named fabric, which holds what dir
// keeps of an earlier run. keys are the fabric's public keys.
func NewFollower(consul *consulapi.Client, dir, fabricName string, keys func() fabric.KeySet, log hclog.Logger) (*Follower, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the revision: %w", err)
	}
	s, _, err := file(dir).Read()
	if err != nil { // to forget the highest sequence would make older revisions acceptable
		return nil, err
	}
	f := &Follower{
		consul:    consul,
		dir:       dir,
		fabric:    fabricName,
		keys:      keys,
		log:       log,
		dirty:     make(chan struct{}, 1),
		interests: map[fabric.Ref]bool{},
		degraded:  map[string][]string{},
	}
	if err := f.restore(s); err != nil {
		f.report(causeSwitch, fmt.Sprintf("the revision kept on disk is not used: %v", err))
	}
	return f, nil
}

// Run follows the pointer until ctx ends.
func (f *Follower) Run(ctx context.Context) error {
	var background sync.WaitGroup
	background.Go(func() { f.recheckLoop(ctx) })
	background.Go(func() { f.saveLoop(ctx) })
	defer background.Wait()
	pointer := consulwatch.Watch[*consulapi.KVPair]{
		Query: func(opts *consulapi.QueryOptions) (*consulapi.KVPair, *consulapi.QueryMeta, error) {
			return f.consul.KV().Get(kvkey.Current, opts)
		},
		Handle: func(pair *consulapi.KVPair) bool {
			f.report(causeConsul)
			return f.consider(ctx, pair)
		},
		Failed: func(err error) { f.report(causeConsul, fmt.Sprintf("watch %s: %v", kvkey.Current, err)) },
		Wait:   watchTime, MinPause: minPause, MaxPause: maxPause,
	}
	pointer.Run(ctx)
	return nil
}

// consider judges the pointer that Consul holds and switches to it. It
// reports whether there is nothing left to do about it.
func (f *Follower) consider(ctx context.Context, pair *consulapi.KVPair) bool {
	signed, pointer, err := f.judge(pair)
	if err != nil {
		if !errors.Is(err, ErrNoRevision) {
			f.report(causePointer, err.Error())
		}
		return false // keys may arrive that make it verify
	}
	f.report(causePointer)

	f.work.Lock()
	f.mu.Lock()
	old := f.view
	interests := slices.Collect(maps.Keys(f.interests))
	advanced := pointer.Sequence > f.highest.Sequence
	if advanced {
		f.highest = mark{pointer.Sequence, pointer.Root}
	}
	f.mu.Unlock()
	if old != nil && old.pointer.Sequence == pointer.Sequence {
		f.work.Unlock()
		f.report(causeSwitch)
		return true
	}
	v, followed := old.follow(signed, pointer, interests)
	if !followed {
		if advanced {
			f.markDirty() // it may take long
		}
		v, err = f.build(ctx, signed, pointer, interests, old)
	}
	if err != nil {
		f.work.Unlock()
		if ctx.Err() == nil {
			f.report(causeSwitch, fmt.Sprintf("revision %d is not taken over: %v", pointer.Sequence, err))
		}
		return false
	}
	f.mu.Lock()
	// Interests that were dropped meanwhile are gone; none were added under work.
	for r := range v.docs {
		if !f.interests[r] {
			delete(v.docs, r)
		}
	}
	f.view = v
	callbacks := slices.Clone(f.onChange)
	docs := maps.Clone(v.docs)
	f.mu.Unlock()
	f.work.Unlock()

	// On disk before it is acted upon; but a full disk does not keep a
	// revision, which may take permissions away, from being enforced.
	f.report(causeDisk, texts(f.save())...)
	f.report(causeSwitch)
	f.log.Info("switched to another revision", logkey.Revision, pointer.Sequence, logkey.Services, len(docs))
	for _, fn := range callbacks {
		fn(pointer, maps.Clone(docs))
	}
	return true
}

// judge verifies the pointer in Consul and says whether it may follow what
// was seen before.
func (f *Follower) judge(pair *consulapi.KVPair) (fabric.Signed, fabric.Pointer, error) {
	var none fabric.Pointer
	f.mu.Lock()
	highest := f.highest
	f.mu.Unlock()
	if pair == nil {
		if highest.Sequence == 0 {
			return fabric.Signed{}, none, ErrNoRevision
		}
		return fabric.Signed{}, none, fmt.Errorf("%s is missing from Consul", kvkey.Current)
	}
	signed, err := decodeSigned(pair.Value)
	if err != nil {
		return signed, none, err
	}
	pointer, err := f.verify(signed)
	switch {
	case err != nil:
		return signed, none, fmt.Errorf("%s is refused: %w", kvkey.Current, err)
	case pointer.Sequence < highest.Sequence:
		return signed, none, fmt.Errorf("%s is refused: its sequence %d is lower than %d, which was seen before", kvkey.Current, pointer.Sequence, highest.Sequence)
	case pointer.Sequence == highest.Sequence && pointer.Root != highest.Root:
		return signed, none, fmt.Errorf("%s is refused: sequence %d was seen before with another root", kvkey.Current, pointer.Sequence)
	}
	return signed, pointer, nil
}

// verify checks the signature of a pointer and whose it is.
func (f *Follower) verify(signed fabric.Signed) (fabric.Pointer, error) {
	var p fabric.Pointer
	if err := f.keys().Verify(signed, fabric.KindPointer, &p); err != nil {
		return fabric.Pointer{}, err
	}
	switch {
	case p.Fabric != f.fabric:
		return fabric.Pointer{}, fmt.Errorf("it is of fabric %q, not %q", p.Fabric, f.fabric)
	case p.Sequence == 0:
		return fabric.Pointer{}, errors.New("it has no sequence")
	}
	return p, nil
}

func (f *Follower) build(ctx context.Context, signed fabric.Signed, pointer fabric.Pointer, interests []fabric.Ref, old *view) (*view, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return build(ctx, signed, pointer, interests, old, f.read)
}

func (f *Follower) read(ctx context.Context, hashes []fabric.Hash) (map[fabric.Hash]entry, error) {
	return read(ctx, f.consul, hashes)
}

// Pointer returns the enforced pointer; zero before the first.
func (f *Follower) Pointer() fabric.Pointer {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view == nil {
		return fabric.Pointer{}
	}
	return f.view.pointer
}

// Document returns a service's document at the enforced root, and makes the
// service an interest: its document is kept up to date until Retain ends it. Errors are
// ErrUnknownService, ErrNoRevision, and those of an object that could not be
// read or does not verify.
func (f *Follower) Document(ctx context.Context, service fabric.Ref) (fabric.Document, error) {
	if doc, known, err := f.lookup(service); known {
		return doc, err
	}
	f.work.Lock()
	defer f.work.Unlock()
	if doc, known, err := f.lookup(service); known { // another call was faster
		return doc, err
	}
	f.mu.Lock()
	old := f.view
	interests := append(slices.Collect(maps.Keys(f.interests)), service)
	f.mu.Unlock()
	v, err := f.build(ctx, old.signed, old.pointer, interests, old)
	if err != nil {
		return fabric.Document{}, fmt.Errorf("document of service %s: %w", service, err)
	}
	if !v.has(service) {
		return fabric.Document{}, fmt.Errorf("service %s: %w", service, ErrUnknownService)
	}
	f.mu.Lock()
	f.interests[service] = true
	for r := range v.docs {
		if !f.interests[r] {
			delete(v.docs, r)
		}
	}
	f.view = v
	f.mu.Unlock()
	f.markDirty()
	return v.docs[service], nil
}

// lookup answers Document from what is held.
func (f *Follower) lookup(service fabric.Ref) (doc fabric.Document, known bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view == nil {
		return fabric.Document{}, true, ErrNoRevision
	}
	doc, known = f.view.docs[service]
	if known && !f.view.has(service) {
		return fabric.Document{}, true, fmt.Errorf("service %s: %w", service, ErrUnknownService)
	}
	return doc, known, nil
}

// Retain ends the interest in every service but the wanted ones. It asks for
// those at a moment at which no interest is added, so that one who first takes
// up what he needs a service for and then asks for its document keeps it.
func (f *Follower) Retain(wanted func() map[fabric.Ref]bool) {
	f.mu.Lock()
	keep, dropped := wanted(), false
	for r := range f.interests {
		if keep[r] {
			continue
		}
		dropped = true
		delete(f.interests, r)
		if f.view != nil {
			f.view = f.view.without(r)
		}
	}
	f.mu.Unlock()
	if dropped {
		f.markDirty()
	}
}

// Documents returns the documents of all interests. One that the graph no
// longer has comes without edges: it permits nothing.
func (f *Follower) Documents() map[fabric.Ref]fabric.Document {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view == nil {
		return map[fabric.Ref]fabric.Document{}
	}
	return maps.Clone(f.view.docs)
}

// OnChange has fn called, one call at a time, after each switch to another
// revision, once the documents of all interests have been verified. An
// interest that the graph no longer has comes with a document without edges.
func (f *Follower) OnChange(fn func(fabric.Pointer, map[fabric.Ref]fabric.Document)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onChange = append(f.onChange, fn)
}

// Degraded returns what was refused or is out of reach, and why, for people.
// What is enforced is not affected by any of it.
func (f *Follower) Degraded() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	for _, cause := range slices.Sorted(maps.Keys(f.degraded)) {
		for _, text := range f.degraded[cause] {
			if !slices.Contains(list, text) {
				list = append(list, text)
			}
		}
	}
	return list
}

// report replaces what is wrong under a cause; nothing clears it.
func (f *Follower) report(cause string, what ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, text := range what {
		if !slices.Contains(f.degraded[cause], text) {
			f.log.Warn("degraded: the enforced revision stays", logkey.Error, text)
		}
	}
	if len(what) == 0 {
		delete(f.degraded, cause)
		return
	}
	f.degraded[cause] = what
}

// saveLoop saves the state when it has changed.
func (f *Follower) saveLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			select {
			case <-f.dirty:
				f.report(causeDisk, texts(f.save())...)
			default:
			}
			return
		case <-f.dirty:
		}
		f.report(causeDisk, texts(f.save())...)
		retry.Sleep(ctx, 100*time.Millisecond) // many changes, one write
	}
}

func (f *Follower) markDirty() {
	select {
	case f.dirty <- struct{}{}:
	default:
	}
}

// recheckLoop compares what Consul holds with what is enforced, again and
// again: somebody may alter what has been fetched already. Whatever is written
// through Consul gets another modify index; so that not everything rests on
// Consul's own word, all is read every now and then.
func (f *Follower) recheckLoop(ctx context.Context) {
	for n := rand.N(fullRecheck); retry.Sleep(ctx, recheckInterval-time.Second+rand.N(2*time.Second)); n++ {
		problems, err := f.recheck(ctx, n%fullRecheck == 0)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			continue // Consul is out of reach: the watch reports it
		}
		f.report(causeRecheck, problems...)
	}
}

// recheck returns what is wrong with what Consul holds. Unless in full, it reads
// objects only if their modify indexes are not those that they were read at.
func (f *Follower) recheck(ctx context.Context, full bool) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	f.mu.Lock()
	v := f.view
	f.mu.Unlock()
	if v == nil {
		return nil, nil
	}
	if !full {
		pair, same, err := compare(ctx, f.consul, v.indexes)
		if err != nil {
			return nil, err
		}
		if same {
			return f.refused(pair), nil
		}
	}
	pair, _, err := f.consul.KV().Get(kvkey.Current, (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, err
	}
	fresh := newView(v.signed, v.pointer)
	problems, err := fresh.walk(ctx, slices.Collect(maps.Keys(v.docs)), nil, f.read)
	if err != nil {
		return nil, err
	}
	if len(problems) == 0 {
		f.mu.Lock()
		if f.view == v {
			c := *v
			c.indexes = fresh.indexes
			f.view = &c
		}
		f.mu.Unlock()
	}
	return append(f.refused(pair), problems...), nil
}

// refused says why the pointer in Consul is refused, if it is.
func (f *Follower) refused(pair *consulapi.KVPair) []string {
	if _, _, err := f.judge(pair); err != nil {
		return []string{err.Error()}
	}
	return nil
}

func texts(err error) []string {
	if err == nil {
		return nil
	}
	return []string{fmt.Sprintf("keep the revision on disk: %v", err)}
}
