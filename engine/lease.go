// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sif-project/sif/fabric"
)

// lease is a verified connectivity request in force.
type lease struct {
	Request   fabric.Request   `json:"request"`
	Admission fabric.Admission `json:"admission"`
}

// leases is the set of requests in force, by endpoint. It is written to disk
// at every change, so that a restarted engine goes on where it stopped before
// any agent has connected again.
type leases struct {
	path string

	mu  sync.Mutex
	set map[string]lease
}

func openLeases(path string) (*leases, error) {
	l := &leases{path: path, set: map[string]lease{}}
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

// put keeps le unless a younger admission of the endpoint is already kept. It
// reports whether anything changed.
func (l *leases) put(le lease) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old, had := l.set[le.Admission.Endpoint]
	if had && !le.Admission.Issued.After(old.Admission.Issued) {
		return false, nil
	}
	l.set[le.Admission.Endpoint] = le
	return true, l.save()
}

// remove drops every lease for which gone is true and returns them.
func (l *leases) remove(gone func(fabric.Admission) bool) ([]lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var removed []lease
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

// all returns the leases that have not expired at now, ordered by endpoint.
func (l *leases) all(now time.Time) []lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []lease
	for _, endpoint := range slices.Sorted(maps.Keys(l.set)) {
		if le := l.set[endpoint]; now.Before(le.Admission.Expires) {
			list = append(list, le)
		}
	}
	return list
}

func (l *leases) save() error {
	data, err := json.Marshal(l.set)
	if err != nil {
		return fmt.Errorf("encode the leases: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
		return fmt.Errorf("write the leases: %w", err)
	}
	tmp := l.path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("write the leases: %w", err)
	}
	if err := os.Rename(tmp, l.path); err != nil {
		return fmt.Errorf("write the leases: %w", err)
	}
	return nil
}
