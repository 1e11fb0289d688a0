// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package lease stores the connectivity requests in force: the engine those of all zones, the agent
// those of its endpoints' counterparts. It knows which of two admissions of an endpoint is the
// later one, and writes each change to a file, so that a restarted daemon can continue before its
// peers connect again. It does not know what a lease permits.
//
// What ends is on disk before a method returns that ended it, and so before the caller takes it out
// of its data path: a crash never brings back what is gone there. What comes is written beside the
// caller's work, and whoever asked for it is answered when it is on disk (Set.Save). A daemon that
// crashes between may have it in its data path and not on disk. The next one takes it out of the
// data path, which passes less than was asked for, and gets it again: the connection ended without
// an answer, so the peer asks again. An earlier admission that a later one replaced is on disk
// until then, and is valid, too.
package lease

import (
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/outage"
	"github.com/sif-project/sif/internal/statefile"
)

// Lease is a verified connectivity request in force.
type Lease struct {
	Request   fabric.Request   `json:"request"`
	Admission fabric.Admission `json:"admission"`
	// Since is when the endpoint came into force here, of which this may be a later admission. Of a
	// lease that an earlier version stored it is zero.
	Since time.Time `json:"since,omitzero"`
}

// Set is a set of leases, by endpoint. It is safe for concurrent use.
type Set struct {
	saved *statefile.Saver
	began func() time.Time // of the present outage

	mu      sync.Mutex
	set     map[string]*Lease    // the leases are replaced, never changed
	changes uint64               // made to set
	onDisk  uint64               // those of them that are on disk
	heard   map[netip.Addr]heard // the latest admission of each address, also of what is not stored
	swept   time.Time            // when expired ones were forgotten
}

// heard is an admission of which the set knows.
type heard struct {
	endpoint        string
	issued, expires time.Time
}

// sweepInterval is how often the set forgets what it heard and has expired.
const sweepInterval = time.Minute

// Open returns the set stored at path. It is empty if there is no file, or if the file is corrupt:
// a crash of the machine can corrupt it, but it also ends the connections, and the endpoints
// request connectivity again. began returns when the present outage began, zero if there is none,
// and may be nil: what was in force then stays so beyond its end.
func Open(path string, began func() time.Time, log hclog.Logger) (*Set, error) {
	// It is lazy because workloads wait for the write, and after a reboot the leases are useless.
	file := statefile.File[map[string]Lease]{Path: path, What: "the leases", Lazy: true}
	l := &Set{began: began, set: map[string]*Lease{}, heard: map[netip.Addr]heard{}}
	elements := statefile.Elements[Lease]{Encode: encode}
	l.saved = file.EncodedSaver(func() ([]byte, error) { return elements.Document('{', '}', l.where(all)) })
	stored, _, err := file.Read()
	if errors.Is(err, statefile.ErrCorrupt) {
		log.Warn("cannot use the leases on disk, starting without leases", logkey.Error, err)
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	for endpoint, le := range stored {
		l.set[endpoint] = &le
		l.note(le.Admission)
	}
	return l, nil
}

// Hear notes that an admission was issued and reports whether it is the latest of its addresses, of
// all that the set has had or heard of and that have not expired. So it refuses what an address had
// earlier even if what it has now is not stored, or has ended. A restart forgets the latter two.
func (l *Set) Hear(a fabric.Admission, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.swept).Abs() > sweepInterval {
		maps.DeleteFunc(l.heard, func(_ netip.Addr, h heard) bool { return !now.Before(h.expires) })
		l.swept = now
	}
	for _, addr := range []netip.Addr{a.IPv4, a.IPv6} {
		h, known := l.heard[addr]
		if known && now.Before(h.expires) && (h.issued.After(a.Issued) || h.issued.Equal(a.Issued) && h.endpoint != a.Endpoint) {
			return false
		}
	}
	l.note(a)
	return true
}

// note remembers the admission for its addresses unless a later one is known. The caller must hold
// mu, or be alone.
func (l *Set) note(a fabric.Admission) {
	for _, addr := range []netip.Addr{a.IPv4, a.IPv6} {
		if h, known := l.heard[addr]; addr.IsValid() && (!known || a.Issued.After(h.issued)) {
			l.heard[addr] = heard{a.Endpoint, a.Issued, a.Expires}
		}
	}
}

// Accept stores le unless a later admission of the endpoint, or of another one with one of its
// addresses, is stored. It reports whether anything changed. An address belongs to one endpoint:
// earlier leases of other endpoints with le's addresses end, so that a lost withdrawal cannot give
// an endpoint the rights of a previous one. If any ended, the set is written to disk; otherwise it
// is for the caller to call Save.
func (l *Set) Accept(le Lease) bool {
	changed, displaced := l.accept(le)
	if displaced {
		_ = l.save() // Stored tells
	}
	return changed
}

// Save begins to write what changed, unless it is on disk. The returned function waits until it is,
// or cannot be written; see Stored.
func (l *Set) Save() (saved func()) {
	if l.written() {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.save() // Stored tells
	}()
	return func() { <-done }
}

// written reports whether all changes are on disk.
func (l *Set) written() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.onDisk == l.changes
}

// save writes the set to disk.
func (l *Set) save() error {
	l.mu.Lock()
	changes := l.changes
	l.mu.Unlock()
	err := l.saved.Call()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.onDisk = max(l.onDisk, changes)
	}
	return err
}

// Displace ends what ends because an admission was issued, without storing that one: earlier leases
// of its endpoint, and of others with its addresses. It reports whether there were any.
func (l *Set) Displace(a fabric.Admission) bool {
	return len(l.Remove(func(le Lease) bool {
		b := le.Admission
		return b.Issued.Before(a.Issued) && (b.Endpoint == a.Endpoint || b.IPv4 == a.IPv4 || b.IPv6 == a.IPv6)
	})) > 0
}

// Stored writes the set to disk if that was not done or failed. A set that is not on disk is in
// force all the same: after a restart the daemon gets it again from its peers.
func (l *Set) Stored() error {
	if l.written() {
		return nil
	}
	return l.save()
}

func (l *Set) accept(le Lease) (changed, displaced bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := le.Admission
	old, had := l.set[a.Endpoint]
	if had && !a.Issued.After(old.Admission.Issued) {
		return false, false
	}
	if had && old.Admission.Host() == a.Host() && l.holds(old, le.Since) {
		le.Since = old.Since
	}
	var gone []string
	for endpoint, other := range l.set {
		b := other.Admission
		if endpoint == a.Endpoint || b.IPv4 != a.IPv4 && b.IPv6 != a.IPv6 {
			continue
		}
		if !a.Issued.After(b.Issued) {
			return false, false
		}
		gone = append(gone, endpoint)
	}
	for _, endpoint := range gone {
		delete(l.set, endpoint)
	}
	l.set[a.Endpoint] = &le
	l.changes++
	l.note(a)
	return true, len(gone) > 0
}

// InForce returns the admission of a request if exactly this request is stored and is in force at
// now.
func (l *Set) InForce(r fabric.Request, now time.Time) (fabric.Admission, bool) {
	var claimed fabric.Admission
	if json.Unmarshal(r.Admission.Payload, &claimed) != nil {
		return fabric.Admission{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	le, ok := l.set[claimed.Endpoint]
	if !ok || !l.holds(le, now) || !reflect.DeepEqual(le.Request, r) {
		return fabric.Admission{}, false
	}
	return le.Admission, true
}

// Get returns the lease of an endpoint, expired or not.
func (l *Set) Get(endpoint string) (Lease, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if le, ok := l.set[endpoint]; ok {
		return *le, true
	}
	return Lease{}, false
}

// Lacking returns, in order, those endpoints of a list that have no lease, or one with an admission
// that was issued before the time in the list.
func (l *Set) Lacking(list map[string]time.Time) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lacking []string
	for endpoint, issued := range list {
		if le, ok := l.set[endpoint]; !ok || le.Admission.Issued.Before(issued) {
			lacking = append(lacking, endpoint)
		}
	}
	slices.Sort(lacking)
	return lacking
}

// Remove removes the leases for which gone is true, and returns them.
func (l *Set) Remove(gone func(Lease) bool) []Lease {
	l.mu.Lock()
	var removed []Lease
	for endpoint, le := range l.set {
		if gone(*le) {
			removed = append(removed, *le)
			delete(l.set, endpoint)
			l.changes++
		}
	}
	l.mu.Unlock()
	if removed != nil {
		_ = l.save() // Stored tells
	}
	return removed
}

// Signed counts the leases that have not expired at now by the version of the fabric's key that
// signed their admissions.
func (l *Set) Signed(now time.Time) map[int]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := map[int]int{}
	for _, le := range l.set {
		if now.Before(le.Admission.Expires) {
			counts[le.Request.Admission.Version]++
		}
	}
	return counts
}

// All returns the leases that are in force at now, ordered by endpoint.
func (l *Set) All(now time.Time) []Lease { return l.Where(now, all) }

func all(fabric.Admission) bool { return true }

// Where returns the leases of All for which match is true.
func (l *Set) Where(now time.Time, match func(fabric.Admission) bool) []Lease {
	matching := l.where(match)
	list := make([]Lease, 0, len(matching))
	for _, le := range matching {
		if l.holds(le, now) {
			list = append(list, *le)
		}
	}
	return list
}

// Holds reports whether a lease is in force at now: its admission has not expired, or it is
// honoured beyond that because the endpoint was in force when the present outage began.
func (l *Set) Holds(le Lease, now time.Time) bool { return l.holds(&le, now) }

func (l *Set) holds(le *Lease, now time.Time) bool {
	if now.Before(le.Admission.Expires) {
		return true
	}
	if l.began == nil {
		return false
	}
	began := l.began()
	return outage.Holds(le.Admission.Expires, now, began) && !le.Since.After(began)
}

// Honoured returns the number of leases that are in force beyond the end of their admission.
func (l *Set) Honoured(now time.Time) (n int) {
	for _, le := range l.All(now) {
		if !now.Before(le.Admission.Expires) {
			n++
		}
	}
	return n
}

// where returns the leases for which match is true, ordered by endpoint. A lease is large, so they
// are ordered by pointers.
func (l *Set) where(match func(fabric.Admission) bool) []*Lease {
	l.mu.Lock()
	list := make([]*Lease, 0, len(l.set))
	for _, le := range l.set {
		if match(le.Admission) {
			list = append(list, le)
		}
	}
	l.mu.Unlock()
	slices.SortFunc(list, func(a, b *Lease) int { return strings.Compare(a.Admission.Endpoint, b.Admission.Endpoint) })
	return list
}

// encode returns a lease as a field of the file's object, in which its name is the endpoint.
func encode(le *Lease) ([]byte, error) {
	name, err := json.Marshal(le.Admission.Endpoint)
	if err != nil {
		return nil, err
	}
	value, err := json.Marshal(le)
	if err != nil {
		return nil, err
	}
	return slices.Concat(name, []byte{':'}, value), nil
}
