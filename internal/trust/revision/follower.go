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
	recheckInterval = 10 * time.Second // between comparisons of Consul with what is enforced
	fullRecheck     = 60               // one of so many comparisons reads all objects
	requestTimeout  = 10 * time.Second
)

// Causes of what Degraded lists.
const (
	causeConsul  = "consul"
	causePointer = "pointer"
	causeSwitch  = "switch"
	causeRecheck = "recheck"
	causeDisk    = "disk"
	causeLacking = "lacking"
)

// Follower follows the revision on a node. It returns only what has passed every check. What fails
// a check changes nothing and is listed by Degraded. Its methods are safe for concurrent use.
type Follower struct {
	consul *consulapi.Client
	dir    string
	fabric string
	keys   func() fabric.KeySet
	log    hclog.Logger

	work   sync.Mutex    // held while a view is replaced; never while callbacks run
	dirty  chan struct{} // signals that the state must be saved
	saving sync.Mutex    // held from the copy of the state until it is on disk
	lacks  chan struct{} // signals that documents are lacking, or that they may be there now
	tells  sync.Mutex    // held while callbacks run

	mu        sync.Mutex
	view      *view // nil before the first revision
	highest   mark
	interests map[fabric.Ref]bool
	lacking   map[fabric.Ref]bool // wanted, but not read yet; no interests, since they stop no switch
	onChange  []func(fabric.Pointer, map[fabric.Ref]fabric.Document)
	degraded  map[string][]string // by cause
}

// NewFollower returns a Follower of the named fabric, which starts with the revision that an
// earlier run left in dir. keys returns the fabric's public keys.
func NewFollower(consul *consulapi.Client, dir, fabricName string, keys func() fabric.KeySet, log hclog.Logger) (*Follower, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the directory of the revision: %w", err)
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
		lacks:     make(chan struct{}, 1),
		interests: map[fabric.Ref]bool{},
		lacking:   map[fabric.Ref]bool{},
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
	background.Go(func() { f.fetchLoop(ctx) })
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

// consider verifies the pointer in Consul and switches to its revision. It returns false if that
// must be tried again.
func (f *Follower) consider(ctx context.Context, pair *consulapi.KVPair) bool {
	signed, pointer, err := f.judge(pair)
	if err != nil {
		if !errors.Is(err, ErrNoRevision) {
			f.report(causePointer, err.Error())
		}
		return false // it may verify with keys that arrive later
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
	again := old != nil && old.pointer.Sequence == pointer.Sequence
	if again && old.signed.Version >= signed.Version {
		f.work.Unlock()
		f.report(causeSwitch)
		return true
	}
	v, followed := old.follow(signed, pointer, interests)
	if !followed {
		if advanced {
			f.markDirty() // build may take long
		}
		v, err = f.build(ctx, signed, pointer, interests, old)
	}
	if err != nil {
		f.work.Unlock()
		if ctx.Err() == nil {
			f.report(causeSwitch, fmt.Sprintf("cannot switch to revision %d: %v", pointer.Sequence, err))
		}
		return false
	}
	f.mu.Lock()
	// Retain may have dropped interests since; none were added, since work is locked.
	for r := range v.docs {
		if !f.interests[r] {
			delete(v.docs, r)
		}
	}
	f.view = v
	services := len(v.docs)
	f.mu.Unlock()
	f.work.Unlock()

	// It is saved before it is enforced. If that fails it is enforced nevertheless, because it may
	// revoke permissions.
	f.report(causeDisk, texts(f.save())...)
	f.report(causeSwitch)
	if again { // it was signed again, with a newer key
		return true
	}
	f.log.Info("switched to another revision", logkey.Revision, pointer.Sequence, logkey.Services, services)
	f.tell()
	f.fetch()
	return true
}

// tell calls the callbacks with what is in force.
func (f *Follower) tell() {
	f.tells.Lock()
	defer f.tells.Unlock()
	f.mu.Lock()
	v, callbacks := f.view, slices.Clone(f.onChange)
	f.mu.Unlock()
	for _, fn := range callbacks {
		fn(v.pointer, maps.Clone(v.docs))
	}
}

// judge verifies the pointer in Consul and that it is not older than what was seen before.
func (f *Follower) judge(pair *consulapi.KVPair) (fabric.Signed, fabric.Pointer, error) {
	var none fabric.Pointer
	f.mu.Lock()
	highest := f.highest
	f.mu.Unlock()
	if pair == nil {
		if highest.Sequence == 0 {
			return fabric.Signed{}, none, ErrNoRevision
		}
		return fabric.Signed{}, none, fmt.Errorf("%s is missing in Consul", kvkey.Current)
	}
	signed, err := decodeSigned(pair.Value)
	if err != nil {
		return signed, none, err
	}
	pointer, err := f.verify(signed, f.keys())
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

// verify checks the signature of a pointer and its fabric.
func (f *Follower) verify(signed fabric.Signed, keys fabric.KeySet) (fabric.Pointer, error) {
	var p fabric.Pointer
	if err := keys.Verify(signed, fabric.KindPointer, &p); err != nil {
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

// Pointer returns the enforced pointer, or zero before the first revision.
func (f *Follower) Pointer() fabric.Pointer {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view == nil {
		return fabric.Pointer{}
	}
	return f.view.pointer
}

// Signed returns the version of the fabric's key that signed the enforced pointer; 0 before the
// first revision.
func (f *Follower) Signed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view == nil {
		return 0
	}
	return f.view.base.Version
}

// Document returns a service's document in the enforced revision. The service becomes an interest:
// its document is kept up to date until Retain drops it. The error is ErrUnknownService,
// ErrNoRevision, or that of an object that cannot be read or does not verify: then Run goes on to
// read it, and calls what OnChange registered once it is there.
func (f *Follower) Document(ctx context.Context, service fabric.Ref) (fabric.Document, error) {
	doc, err := f.document(ctx, service)
	if err == nil || errors.Is(err, ErrUnknownService) {
		return doc, err
	}
	f.mu.Lock()
	switch {
	case f.view != nil:
		f.lacking[service] = true
	case f.interests != nil: // a zero Follower has none, and no revision will come
		f.interests[service] = true // the first revision comes with it
	}
	f.mu.Unlock()
	f.fetch()
	return doc, err
}

func (f *Follower) document(ctx context.Context, service fabric.Ref) (fabric.Document, error) {
	if doc, known, err := f.lookup(service); known {
		return doc, err
	}
	f.work.Lock()
	defer f.work.Unlock()
	if doc, known, err := f.lookup(service); known { // another call has added it
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
	f.mu.Lock()
	f.interests[service] = true // also of a service that the graph will have
	delete(f.lacking, service)
	for r := range v.docs {
		if !f.interests[r] {
			delete(v.docs, r)
		}
	}
	f.view = v
	f.mu.Unlock()
	f.markDirty()
	if !v.has(service) {
		return fabric.Document{}, fmt.Errorf("service %s: %w", service, ErrUnknownService)
	}
	return v.docs[service], nil
}

// fetch wakes fetchLoop.
func (f *Follower) fetch() {
	select {
	case f.lacks <- struct{}{}:
	default:
	}
}

// fetchLoop reads the documents that could not be read when they were asked for.
func (f *Follower) fetchLoop(ctx context.Context) {
	pauses := retry.Backoff(minPause, maxPause)
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.lacks:
		}
		for pauses.Reset(); !f.fetched(ctx); {
			if !retry.Sleep(ctx, pauses.NextBackOff()) {
				return
			}
		}
	}
}

// fetched reads what is lacking, and reports whether it has everything.
func (f *Follower) fetched(ctx context.Context) bool {
	f.mu.Lock()
	lacking := slices.SortedFunc(maps.Keys(f.lacking), fabric.CompareRefs)
	f.mu.Unlock()
	var problems []string
	news, all := false, true
	for _, service := range lacking {
		_, err := f.document(ctx, service)
		switch {
		case ctx.Err() != nil:
			return false
		case err == nil, errors.Is(err, ErrUnknownService):
			news = true
			f.mu.Lock()
			delete(f.lacking, service)
			f.mu.Unlock()
		default:
			all = false
			problems = append(problems, err.Error())
		}
	}
	f.report(causeLacking, problems...)
	if news {
		f.tell()
	}
	return all
}

// lookup looks for the document in the view.
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

// Retain drops all interests that are not wanted. wanted runs under mu, so a caller that stores its
// lease before it calls Document cannot lose the interest.
func (f *Follower) Retain(wanted func() map[fabric.Ref]bool) {
	f.mu.Lock()
	keep, dropped := wanted(), false
	maps.DeleteFunc(f.lacking, func(r fabric.Ref, _ bool) bool { return !keep[r] })
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

// Documents returns the documents of all interests. The document of a service that the graph does
// not have any more is without edges: it permits nothing.
func (f *Follower) Documents() map[fabric.Ref]fabric.Document {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view == nil {
		return map[fabric.Ref]fabric.Document{}
	}
	return maps.Clone(f.view.docs)
}

// Links returns the links that the enforced revision declares, as fabric.CanonicalLinks returns
// them. They change with the revision. The caller must not change them.
func (f *Follower) Links() []fabric.LinkRule {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view == nil {
		return nil
	}
	return f.view.links
}

// OnChange registers fn, which is called after each switch to another revision, and after documents
// came that could not be read before, with the documents of all interests. Calls do not overlap.
// See Documents for services that the graph does not have any more.
func (f *Follower) OnChange(fn func(fabric.Pointer, map[fabric.Ref]fabric.Document)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onChange = append(f.onChange, fn)
}

// Degraded describes what was refused or cannot be reached, and why, for people. None of it affects
// what is enforced.
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

// report replaces the problems with a cause. Without arguments it clears them.
func (f *Follower) report(cause string, what ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, text := range what {
		if !slices.Contains(f.degraded[cause], text) {
			f.log.Warn("degraded, keeping the revision in force", logkey.Error, text)
		}
	}
	if len(what) == 0 {
		delete(f.degraded, cause)
		return
	}
	f.degraded[cause] = what
}

// saveLoop saves the state after changes.
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
		retry.Sleep(ctx, 100*time.Millisecond) // so that many changes cause one write
	}
}

func (f *Follower) markDirty() {
	select {
	case f.dirty <- struct{}{}:
	default:
	}
}

// recheckLoop regularly compares Consul with what is enforced, because objects may be altered after
// they were read. A write through Consul changes the modify index. From time to time all objects
// are read, so that the check does not depend on Consul alone.
func (f *Follower) recheckLoop(ctx context.Context) {
	for n := rand.N(fullRecheck); retry.Sleep(ctx, recheckInterval-time.Second+rand.N(2*time.Second)); n++ {
		problems, err := f.recheck(ctx, n%fullRecheck == 0)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			continue // Consul cannot be reached: the watch reports it
		}
		f.report(causeRecheck, problems...)
	}
}

// recheck returns what is wrong with the revision in Consul. Unless full is set, it reads the
// objects only if a modify index has changed.
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

// refused returns the reason why the pointer in Consul is refused, if it is.
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
	return []string{fmt.Sprintf("save the revision: %v", err)}
}
