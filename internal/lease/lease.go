// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package lease keeps connectivity requests in force: the engine those of all
// zones, the agent those of its endpoints' counterparts. It knows which of two
// admissions of an endpoint is younger and writes every change to disk, so that
// a restarted daemon goes on where it stopped before anybody has connected
// again. It does not know what a lease entitles to.
package lease

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/atomicfile"
)

// Lease is a verified connectivity request in force.
type Lease struct {
	Request   fabric.Request   `json:"request"`
	Admission fabric.Admission `json:"admission"`
}

// Set is a set of leases, by endpoint. It is safe for concurrent use.
type Set struct {
	path string

	mu  sync.Mutex
	set map[string]Lease
}

// Open returns the set kept at path, or an empty one.
func Open(path string) (*Set, error) {
	l := &Set{path: path, set: map[string]Lease{}}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return l, nil
	case err != nil:
		return nil, fmt.Errorf("read the leases: %w", err)
	}
	if err := json.Unmarshal(data, &l.set); err != nil {
		return nil, fmt.Errorf("read the leases %s: %w", path, err)
	}
	return l, nil
}

// Put keeps le unless a younger admission of the endpoint is already kept. It
// reports whether anything changed.
func (l *Set) Put(le Lease) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old, had := l.set[le.Admission.Endpoint]
	if had && !le.Admission.Issued.After(old.Admission.Issued) {
		return false, nil
	}
	l.set[le.Admission.Endpoint] = le
	return true, l.save()
}

// Remove drops every lease for which gone is true and returns them.
func (l *Set) Remove(gone func(fabric.Admission) bool) ([]Lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var removed []Lease
	for endpoint, le := range l.set {
		if gone(le.Admission) {
			removed = append(removed, le)
			delete(l.set, endpoint)
		}
	}
	if removed == nil {
		return nil, nil
	}
	return removed, l.save()
}

// All returns the leases that have not expired at now, ordered by endpoint.
func (l *Set) All(now time.Time) []Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []Lease
	for _, endpoint := range slices.Sorted(maps.Keys(l.set)) {
		if le := l.set[endpoint]; now.Before(le.Admission.Expires) {
			list = append(list, le)
		}
	}
	return list
}

func (l *Set) save() error {
	data, err := json.Marshal(l.set)
	if err != nil {
		return fmt.Errorf("encode the leases: %w", err)
	}
	if err := atomicfile.Write(l.path, data, 0o600); err != nil {
		return fmt.Errorf("write the leases: %w", err)
	}
	return nil
}
