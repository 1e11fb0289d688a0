// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package internet contains the servers of a lab's internet: hosts that answer on every port and
// say whom they saw, and a DNS resolver whose records are in a file. Their sockets are real ones,
// of the namespace in which the program runs.
//
// It knows sockets and DNS. It knows neither labs nor the fabric.
package internet

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// Record is what the resolver knows about a name.
type Record struct {
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Answers is the number of addresses of each family in an answer. The next answer begins with
	// the address after the last one. 0: all addresses.
	Answers int    `json:"answers,omitempty"`
	CNAME   string `json:"cname,omitempty"` // the name's other name; then it has no addresses
	TTL     uint32 `json:"ttl,omitempty"`   // seconds
	// HTTPS adds an HTTPS record (RFC 9460) with the addresses as hints.
	HTTPS bool `json:"https,omitempty"`
	// Silent lets questions for the name go unanswered, as a resolver does that is away.
	Silent bool `json:"silent,omitempty"`
}

// Records are the records of names, which are in lower case and have no final dot. The name
// "*.suffix" stands for all names below suffix that have no record of their own.
type Records map[string]Record

// Lookup finds the record of a name.
func (r Records) Lookup(name string) (Record, bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	record, ok := r[name]
	for rest := name; !ok; {
		var below bool
		if _, rest, below = strings.Cut(rest, "."); !below {
			return Record{}, false
		}
		record, ok = r["*."+rest]
	}
	return record, ok
}

// recordsFile reads records again when their file has changed. It is safe for concurrent use.
type recordsFile struct {
	path string

	mu      sync.Mutex
	read    time.Time // modification time of what was read
	size    int64
	records Records
}

func (f *recordsFile) get() (Records, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, fmt.Errorf("look for changed records: %w", err)
	}
	if info.ModTime().Equal(f.read) && info.Size() == f.size {
		return f.records, nil
	}
	data, err := os.ReadFile(f.path)
	if err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	var records Records
	if err := json.Unmarshal(data, &records); err != nil {
		return nil, fmt.Errorf("decode records of %s: %w", f.path, err)
	}
	f.read, f.size, f.records = info.ModTime(), info.Size(), records
	return records, nil
}
