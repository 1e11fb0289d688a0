// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package names

import (
	"cmp"
	"container/list"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/statefile"
)

// How long an answer is in force, and how long an address after it was seen to be in use.
const (
	MinLife  = time.Minute
	MaxLife  = time.Hour
	HoldLife = time.Minute
)

// Limits of a table. docs/operations.md lists them.
const (
	MaxAddresses = 64   // of a name
	MaxNames     = 1000 // of a service at an asker
	MaxAsker     = 8000 // names of an asker

	MaxServiceAddresses = 4096  // of all names of a service at an asker, and
	MaxAskerAddresses   = 16384 // of all of an asker: whoever answers must not fill data paths
)

// loudFor is how long Full reports that a limit was reached.
const loudFor = 10 * time.Minute

// Life returns how long an answer is in force whose records hold for ttl.
func Life(ttl time.Duration) time.Duration { return min(max(ttl, MinLife), MaxLife) }

// Key is a name that endpoints of a service have asked for. Name is in lower case and without a
// final dot.
type Key struct {
	Asker   string // on whose word: an engine has the nodes of its zone; an agent has itself, ""
	Service fabric.Ref
	Name    string
}

func compareKeys(a, b Key) int {
	return cmp.Or(fabric.CompareRefs(a.Service, b.Service), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Asker, b.Asker))
}

// life is how long an address stays.
type life struct {
	until time.Time // by the answers
	held  time.Time // by connections
	told  time.Time // when it was in an answer last
}

func (l life) end() time.Time {
	if l.held.After(l.until) {
		return l.held
	}
	return l.until
}

// Table is the table of names in force. It is safe for concurrent use.
type Table struct {
	now    func() time.Time
	margin time.Duration
	saved  *statefile.Saver

	writing sync.Mutex    // held while the table is written
	pause   time.Duration // before the next write; guarded by writing

	mu      sync.Mutex
	entries map[Key]*entry
	orders  map[Key]*list.List  // of *entry of an asker, and of a service at an asker: the last answered in front
	sizes   map[Key]int         // addresses in each order
	version uint64              // of which addresses there are
	enacted uint64              // the version that is in force
	dirty   bool                // something was changed since the last write
	due     bool                // a write is due
	full    map[limit]time.Time // when a limit was reached last
}

// entry is a name with its addresses.
type entry struct {
	key      Key
	addrs    map[netip.Addr]life
	elements [2]*list.Element // in the orders of groups
}

// groups are the keys of the orders that a name is in.
func (k Key) groups() [2]Key { return [2]Key{{Asker: k.Asker, Service: k.Service}, {Asker: k.Asker}} }

// limit is a limit that was reached.
type limit struct {
	what string
	key  Key // as far as it concerns the limit
}

// stored is an entry as it is on disk.
type stored struct {
	Asker     string          `json:"asker,omitempty"`
	Service   fabric.Ref      `json:"service"`
	Name      string          `json:"name"`
	Addresses []storedAddress `json:"addresses"`
}

// told is when the name was answered last.
func (s stored) told() (last int64) {
	for _, a := range s.Addresses {
		last = max(last, a.Told)
	}
	return last
}

// storedAddress is an address as it is on disk. Times are in milliseconds since 1970.
type storedAddress struct {
	Address netip.Addr `json:"address"`
	Until   int64      `json:"until"`
	Held    int64      `json:"held,omitempty"`
	Told    int64      `json:"told,omitempty"`
}

func toMillis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMilli(n).UTC()
}

// Open returns the table that is kept at path. It is empty if there is no file, or if the file is
// corrupt: then those who ask are answered anew. Every address stays for margin longer than its
// answer: at an exit, so that who asked can say that it is in use.
func Open(path string, margin time.Duration, now func() time.Time, log hclog.Logger) (*Table, error) {
	// It is lazy because a workload waits for the write, and after a crash of the machine no
	// connection is left.
	file := statefile.File[[]stored]{Path: path, What: "the outside names in force", Lazy: true}
	t := &Table{now: now, margin: margin, entries: map[Key]*entry{}, orders: map[Key]*list.List{}, sizes: map[Key]int{}, full: map[limit]time.Time{}, version: 1}
	t.saved = file.Saver(t.snapshot)
	list, _, err := file.Read()
	if errors.Is(err, statefile.ErrCorrupt) {
		log.Warn("cannot use the outside names on disk, starting without", logkey.Error, err)
		return t, nil
	}
	if err != nil {
		return nil, err
	}
	t.load(list)
	return t, nil
}

// load takes over what an earlier process stored, within the limits: whatever the file says,
// nothing stays longer than it could have from now on.
func (t *Table) load(list []stored) {
	now := t.now()
	latest := now.Add(MaxLife + t.margin)
	slices.SortStableFunc(list, func(a, b stored) int { return cmp.Compare(a.told(), b.told()) })
	for _, s := range list {
		key := Key{s.Asker, s.Service, s.Name}
		if s.Name == "" || s.Service.IsZero() {
			continue
		}
		for _, a := range s.Addresses {
			l := life{until: earlier(fromMillis(a.Until), latest), held: earlier(fromMillis(a.Held), latest), told: earlier(fromMillis(a.Told), now)}
			if a.Address.IsValid() && now.Before(l.end()) && t.room(key, a.Address) {
				t.set(key, a.Address, l)
			}
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if a.After(b) {
		return b
	}
	return a
}

// addresses returns the addresses of a name. It may not be changed if there is no such name.
func (t *Table) addresses(key Key) map[netip.Addr]life {
	if e := t.entries[key]; e != nil {
		return e.addrs
	}
	return nil
}

// set sets an address of a name, which counts as answered now.
func (t *Table) set(key Key, addr netip.Addr, l life) {
	e := t.entries[key]
	if e == nil {
		e = &entry{key: key, addrs: map[netip.Addr]life{}}
		t.entries[key] = e
		for i, group := range key.groups() {
			if t.orders[group] == nil {
				t.orders[group] = list.New()
			}
			e.elements[i] = t.orders[group].PushFront(e)
		}
	}
	if _, had := e.addrs[addr]; !had {
		t.counted(e, 1)
	}
	e.addrs[addr] = l
	for i, group := range key.groups() {
		t.orders[group].MoveToFront(e.elements[i])
	}
}

// counted counts addresses that a name got or lost.
func (t *Table) counted(e *entry, n int) {
	for _, group := range e.key.groups() {
		if t.sizes[group] += n; t.sizes[group] == 0 {
			delete(t.sizes, group)
		}
	}
}

// drop removes a name.
func (t *Table) drop(e *entry) {
	t.counted(e, -len(e.addrs))
	delete(t.entries, e.key)
	for i, group := range e.key.groups() {
		order := t.orders[group]
		if order.Remove(e.elements[i]); order.Len() == 0 {
			delete(t.orders, group)
		}
	}
}

func (t *Table) count(group Key) int {
	if order := t.orders[group]; order != nil {
		return order.Len()
	}
	return 0
}

// snapshot returns what must be on disk.
func (t *Table) snapshot() []stored {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dirty = false
	all := make([]stored, 0, len(t.entries))
	for key, e := range t.entries {
		s := stored{Asker: key.Asker, Service: key.Service, Name: key.Name}
		for addr, l := range e.addrs {
			s.Addresses = append(s.Addresses, storedAddress{addr, toMillis(l.until), toMillis(l.held), toMillis(l.told)})
		}
		all = append(all, s)
	}
	return all
}

// Put has the addresses of an answer stay for life, and returns those that are in the table then:
// all, unless a limit is reached and everything else of the asker is in use. What was answered
// longest ago gives way first. They are on disk soon.
func (t *Table) Put(key Key, addrs []netip.Addr, life time.Duration) []netip.Addr {
	in, fresh := t.put(key, addrs, life)
	if fresh {
		t.writeSoon()
	}
	return in
}

// Pauses before a write. Writing takes a twentieth of the time at most, however large the table is
// and however often it changes.
const (
	minPause = 10 * time.Millisecond
	share    = 20
)

// writeSoon writes the table within moments. Nobody waits for it: workloads wait for who calls.
func (t *Table) writeSoon() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.due {
		return
	}
	t.due = true
	time.AfterFunc(minPause, func() {
		t.writing.Lock()
		defer t.writing.Unlock()
		time.Sleep(t.pause)
		t.mu.Lock()
		t.due = false
		dirty := t.dirty
		t.mu.Unlock()
		if !dirty {
			return
		}
		began := time.Now()
		_ = t.saved.Call() // Stored tells
		t.pause = min(time.Since(began)*share, time.Second)
	})
}

func (t *Table) put(key Key, addrs []netip.Addr, lasts time.Duration) (in []netip.Addr, fresh bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	until := now.Add(lasts + t.margin)
	if len(addrs) > MaxAddresses {
		t.full[limit{"addresses", key}] = now
		addrs = addrs[:MaxAddresses]
	}
	for _, addr := range addrs {
		l, had := t.addresses(key)[addr]
		if !had {
			if !t.room(key, addr) {
				continue
			}
		}
		if !had || !now.Before(l.end()) { // one that has ended may be in force no more
			fresh = true
			t.version++
		}
		if until.After(l.until) {
			l.until = until
		}
		l.told, t.dirty = now, true
		t.set(key, addr, l)
		in = append(in, addr)
	}
	return in, fresh
}

// room makes room for a new address of a name, and returns false if it cannot. The caller holds
// t.mu.
func (t *Table) room(key Key, addr netip.Addr) bool {
	now := t.now()
	service, asker := key.groups()[0], key.groups()[1]
	have := t.addresses(key)
	if len(have) >= MaxAddresses {
		t.full[limit{"addresses", key}] = now
		oldest, found := netip.Addr{}, false
		for other, l := range have {
			// Not what the same answer has told.
			if !now.Before(l.held) && l.told.Before(now) && (!found || l.told.Before(have[oldest].told)) {
				oldest, found = other, true
			}
		}
		if found {
			delete(have, oldest)
			t.counted(t.entries[key], -1)
			t.version++
		}
		return found
	}
	switch {
	case have == nil && t.count(service) >= MaxNames:
		t.full[limit{"names of a service", service}] = now
		return t.giveWay(service, key, now)
	case have == nil && t.count(asker) >= MaxAsker:
		t.full[limit{"names", asker}] = now
		return t.giveWay(asker, key, now)
	case t.sizes[service] >= MaxServiceAddresses:
		t.full[limit{"addresses of a service", service}] = now
		return t.giveWay(service, key, now)
	case t.sizes[asker] >= MaxAskerAddresses:
		t.full[limit{"addresses of all", asker}] = now
		return t.giveWay(asker, key, now)
	}
	return true
}

// giveWay removes the name of a group that was answered longest ago among those that are not in
// use, for another one, and returns false if there is none.
func (t *Table) giveWay(group, other Key, now time.Time) bool {
	for at := t.orders[group].Back(); at != nil; at = at.Prev() {
		e := at.Value.(*entry)
		used := e.key == other
		for _, l := range e.addrs {
			used = used || now.Before(l.held)
		}
		if !used {
			t.drop(e)
			t.version++
			return true
		}
	}
	return false
}

// Now returns the time by which the table judges.
func (t *Table) Now() time.Time { return t.now() }

// Known returns the addresses of a name that are in force, in order.
func (t *Table) Known(key Key) []netip.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	var list []netip.Addr
	for addr, l := range t.addresses(key) {
		if now.Before(l.end()) {
			list = append(list, addr)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

// Hold has addresses of the table stay for life from now on, because connections to them live. It
// adds none.
func (t *Table) Hold(key Key, addrs []netip.Addr, life time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	held := now.Add(min(life, MaxLife))
	for _, addr := range addrs {
		l, has := t.addresses(key)[addr]
		if has && now.Before(l.end()) && held.After(l.held) {
			l.held, t.dirty = held, true
			t.addresses(key)[addr] = l
		}
	}
}

// Expire removes what has ended. It reports whether anything has.
func (t *Table) Expire() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, any := t.now(), false
	for _, e := range t.entries {
		n := len(e.addrs)
		maps.DeleteFunc(e.addrs, func(_ netip.Addr, l life) bool { return !now.Before(l.end()) })
		t.counted(e, len(e.addrs)-n)
		any = any || len(e.addrs) < n
		if len(e.addrs) == 0 {
			t.drop(e)
		}
	}
	if any {
		t.version++
		t.dirty = true
	}
	maps.DeleteFunc(t.full, func(_ limit, at time.Time) bool { return now.Sub(at) >= loudFor })
	return any
}

// Ending reports whether anything ends within d.
func (t *Table) Ending(d time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	by := t.now().Add(d)
	for _, e := range t.entries {
		for _, l := range e.addrs {
			if !by.Before(l.end()) {
				return true
			}
		}
	}
	return false
}

// Keys returns the names in the table, in order.
func (t *Table) Keys() []Key {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.SortedFunc(maps.Keys(t.entries), compareKeys)
}

// Named returns what is in force, in order, for all askers together.
func (t *Table) Named() []fabric.Named {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	var list []fabric.Named
	for _, key := range slices.SortedFunc(maps.Keys(t.entries), compareKeys) {
		var addrs []netip.Addr
		for addr, l := range t.addresses(key) {
			if now.Before(l.end()) {
				addrs = append(addrs, addr)
			}
		}
		if len(addrs) == 0 {
			continue
		}
		n := len(list)
		if n == 0 || list[n-1].Service != key.Service || list[n-1].Name != key.Name {
			list = append(list, fabric.Named{Service: key.Service, Name: key.Name})
			n++
		}
		last := &list[n-1]
		last.Addresses = append(last.Addresses, addrs...)
		slices.SortFunc(last.Addresses, netip.Addr.Compare)
		last.Addresses = slices.Compact(last.Addresses)
	}
	return list
}

// Enact calls enact, which brings what Named returns in force, unless that is in force already.
func (t *Table) Enact(enact func() error) error {
	t.mu.Lock()
	version, done := t.version, t.enacted >= t.version
	t.mu.Unlock()
	if done {
		return nil
	}
	if err := enact(); err != nil {
		return err
	}
	t.mu.Lock()
	t.enacted = max(t.enacted, version)
	t.mu.Unlock()
	return nil
}

// Full describes the limits that were reached lately, for people.
func (t *Table) Full() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	var list []string
	for l, at := range t.full {
		if now.Sub(at) >= loudFor {
			continue
		}
		who := ""
		if l.key.Asker != "" {
			who = " on node " + l.key.Asker
		}
		switch l.what {
		case "addresses":
			list = append(list, fmt.Sprintf("the outside name %s of %s%s has more than %d addresses: those that were answered longest ago are no longer reached", l.key.Name, l.key.Service, who, MaxAddresses))
		case "names of a service":
			list = append(list, fmt.Sprintf("service %s has asked for more than %d outside names%s: those that were asked for longest ago are no longer reached", l.key.Service, MaxNames, who))
		case "addresses of a service":
			list = append(list, fmt.Sprintf("the outside names of service %s%s have more than %d addresses: those that were asked for longest ago are no longer reached", l.key.Service, who, MaxServiceAddresses))
		case "addresses of all":
			list = append(list, fmt.Sprintf("the outside names of the services%s have more than %d addresses: those that were asked for longest ago are no longer reached", who, MaxAskerAddresses))
		default:
			list = append(list, fmt.Sprintf("the services%s have asked for more than %d outside names: those that were asked for longest ago are no longer reached", who, MaxAsker))
		}
	}
	slices.Sort(list)
	return list
}

// Stored writes to disk what was not written yet.
func (t *Table) Stored() error {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	dirty := t.dirty
	t.mu.Unlock()
	if dirty {
		return t.saved.Call()
	}
	return t.saved.Again()
}
