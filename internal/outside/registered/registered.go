// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package registered follows the instances of services that are registered in Consul outside the
// fabric.
//
// It knows Consul's catalog and addresses. It must not know who may call whom: whoever may write
// the catalog can add an address, so what the package says counts only within the prefixes that
// signed documents state.
package registered

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/consulwatch"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/statefile"
)

const (
	// blockFor is how long a blocking query waits for a change.
	blockFor = time.Minute
	// emptyFor is how long the catalog must say that a service has no instance at all before that
	// is believed: a catalog that was lost says so of every service.
	emptyFor = time.Minute
	// MaxAddresses is the number of a service's addresses that are followed.
	MaxAddresses = 1000
)

// Service names a service in a datacenter; if that is empty, in the one of the Consul agent.
type Service struct{ Name, Datacenter string }

func (s Service) String() string {
	if s.Datacenter == "" {
		return s.Name
	}
	return s.Name + " in datacenter " + s.Datacenter
}

// instance is an address of a service in the state file.
type instance struct {
	Service    string     `json:"service"`
	Datacenter string     `json:"datacenter,omitempty"`
	Address    netip.Addr `json:"address"`
	Passing    bool       `json:"passing,omitempty"`
}

// known is the last answer of the catalog about a service.
type known struct {
	passing  map[netip.Addr]bool // by address of every instance
	answered bool                // by the catalog, to this watcher or an earlier one
	empty    time.Time           // since when the catalog has said that there is none; zero: it has not
	trouble  error
}

// Watcher follows services. It is safe for concurrent use.
type Watcher struct {
	consul  *consulapi.Client
	log     hclog.Logger
	file    statefile.File[[]instance]
	changed func()
	wake    chan struct{}
	now     func() time.Time

	mu       sync.Mutex
	follow   map[Service]bool // nil before the first Follow
	services map[Service]known
	unstored error
}

// Open returns a Watcher that begins with what an earlier one has stored at path. It calls changed
// after the addresses of a service have changed.
func Open(path string, consul *consulapi.Client, log hclog.Logger, changed func()) (*Watcher, error) {
	w := &Watcher{
		consul: consul, log: log, changed: changed, wake: make(chan struct{}, 1), now: time.Now,
		file:     statefile.File[[]instance]{Path: path, What: "the instances registered outside"},
		services: map[Service]known{},
	}
	stored, _, err := w.file.Read()
	if err != nil && !errors.Is(err, statefile.ErrCorrupt) {
		return nil, err
	}
	for _, i := range stored {
		s := Service{i.Service, i.Datacenter}
		if w.services[s].passing == nil {
			w.services[s] = known{passing: map[netip.Addr]bool{}, answered: true}
		}
		w.services[s].passing[i.Address] = i.Passing
	}
	return w, nil
}

// Follow sets the services to follow: those that documents name. It does not block.
func (w *Watcher) Follow(docs map[fabric.Ref]fabric.Document) {
	follow := map[Service]bool{}
	for _, doc := range docs {
		for _, s := range ServicesOf(doc) {
			follow[s] = true
		}
	}
	w.mu.Lock()
	if w.follow != nil && maps.Equal(w.follow, follow) {
		w.mu.Unlock()
		return
	}
	w.follow = follow
	forgot := false
	for s := range w.services {
		if !follow[s] {
			delete(w.services, s)
			forgot = true
		}
	}
	if forgot {
		w.store()
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// ServicesOf returns the services that a document lets its service call.
func ServicesOf(doc fabric.Document) (list []Service) {
	for _, e := range doc.Originates {
		for _, p := range e.Peers {
			if p.Consul != nil {
				list = append(list, Service{p.Consul.Service, p.Consul.Datacenter})
			}
		}
	}
	return list
}

// Answered reports whether the catalog has said which instances a service has.
func (w *Watcher) Answered(s Service) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.services[s].answered
}

// Run follows the services until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancelAll := context.WithCancel(ctx)
	defer cancelAll()
	cancels := map[Service]context.CancelFunc{}
	for {
		w.mu.Lock()
		follow := w.follow // replaced as a whole, never modified
		w.mu.Unlock()
		for s, cancel := range cancels {
			if !follow[s] {
				cancel()
				delete(cancels, s)
			}
		}
		for s := range follow {
			if cancels[s] == nil {
				each, cancel := context.WithCancel(ctx)
				cancels[s] = cancel
				running.Go(func() { w.watch(each, s) })
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		}
	}
}

// watch follows one service until ctx ends.
func (w *Watcher) watch(ctx context.Context, s Service) {
	watch := consulwatch.Watch[[]*consulapi.ServiceEntry]{
		Query: func(opts *consulapi.QueryOptions) ([]*consulapi.ServiceEntry, *consulapi.QueryMeta, error) {
			opts.Datacenter, opts.AllowStale = s.Datacenter, true
			return w.consul.Health().Service(s.Name, "", false, opts)
		},
		Handle: func(entries []*consulapi.ServiceEntry) bool {
			if ctx.Err() != nil {
				return true
			}
			return w.take(s, entries)
		},
		Failed: func(err error) { w.fail(s, fmt.Errorf("follow Consul service %s: %w", s, err)) },
		Wait:   blockFor, MinPause: time.Second, MaxPause: 15 * time.Second,
	}
	watch.Run(ctx)
}

// fail records that the catalog does not answer. What it said last stays.
func (w *Watcher) fail(s Service, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.follow[s] {
		k := w.services[s]
		k.trouble = err
		w.services[s] = k
	}
}

// take takes an answer of the catalog. It returns false if it must be asked again although nothing
// may change.
func (w *Watcher) take(s Service, entries []*consulapi.ServiceEntry) bool {
	passing, trouble := addressesOf(s, entries)
	w.mu.Lock()
	if !w.follow[s] {
		w.mu.Unlock()
		return true
	}
	old := w.services[s]
	if len(passing) == 0 && len(old.passing) > 0 {
		if old.empty.IsZero() {
			old.empty = w.now()
		}
		if w.now().Sub(old.empty) < emptyFor {
			old.trouble = trouble
			w.services[s] = old
			w.mu.Unlock()
			return false
		}
	}
	same := sameKeys(old.passing, passing)
	w.services[s] = known{passing: passing, answered: true, trouble: trouble}
	w.store()
	w.mu.Unlock()
	if !same {
		w.log.Info("the instances of a Consul service outside have changed", logkey.Service, s, logkey.Count, len(passing))
		w.changed()
	}
	return true
}

// addressesOf returns the addresses of instances, and whether each passes its checks.
func addressesOf(s Service, entries []*consulapi.ServiceEntry) (passing map[netip.Addr]bool, trouble error) {
	passing = map[netip.Addr]bool{}
	var names []string
	for _, e := range entries {
		text := e.Service.Address
		if text == "" {
			text = e.Node.Address
		}
		a, err := netip.ParseAddr(text)
		if err != nil {
			names = append(names, fmt.Sprintf("%q", text))
			continue
		}
		a = a.Unmap().WithZone("")
		passing[a] = passing[a] || e.Checks.AggregatedStatus() == consulapi.HealthPassing
		if len(passing) >= MaxAddresses {
			return passing, fmt.Errorf("service %s of Consul has more than %d addresses; the others are not reached", s, MaxAddresses)
		}
	}
	if len(names) > 0 {
		slices.Sort(names)
		trouble = fmt.Errorf("instances of Consul service %s are registered with names, not addresses, and are not reached: %s; use an external with names", s, strings.Join(slices.Compact(names), ", "))
	}
	return passing, trouble
}

func sameKeys(a, b map[netip.Addr]bool) bool {
	if len(a) != len(b) {
		return false
	}
	for k := range a {
		if _, both := b[k]; !both {
			return false
		}
	}
	return true
}

// store writes what is known to disk. The caller must hold mu.
func (w *Watcher) store() {
	list := []instance{}
	for s, k := range w.services {
		for a, passing := range k.passing {
			list = append(list, instance{s.Name, s.Datacenter, a, passing})
		}
	}
	slices.SortFunc(list, func(a, b instance) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	w.unstored = w.file.Write(list)
}

// Registered returns the addresses of the services that are followed, in order.
func (w *Watcher) Registered() []fabric.Registered {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []fabric.Registered
	for s, k := range w.services {
		if len(k.passing) == 0 {
			continue
		}
		r := fabric.Registered{Service: s.Name, Datacenter: s.Datacenter}
		for a := range k.passing {
			r.Addresses = append(r.Addresses, a)
		}
		slices.SortFunc(r.Addresses, netip.Addr.Compare)
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b fabric.Registered) int {
		return strings.Compare(a.Service+" "+a.Datacenter, b.Service+" "+b.Datacenter)
	})
	return list
}

// Passing returns the addresses of a service's instances whose checks pass, in order.
func (w *Watcher) Passing(s Service) []netip.Addr {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []netip.Addr
	for a, passing := range w.services[s].passing {
		if passing {
			list = append(list, a)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

// Trouble returns what keeps instances from being known.
func (w *Watcher) Trouble() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	errs := []error{w.unstored}
	for s, k := range w.services {
		errs = append(errs, k.trouble)
		if !k.empty.IsZero() {
			errs = append(errs, fmt.Errorf("service %s has no instance any more, says Consul; its last addresses are kept for a minute", s))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return errors.Join(errs...)
}
