// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/kernel"
)

// What was put back this often within this time is contested: something on the node keeps changing
// it, and it is not as it must be for a part of the time.
const (
	contestedTimes  = 3
	contestedWithin = time.Minute
)

// repairs counts what was put back since the daemon started.
type repairs struct {
	mu     sync.Mutex
	begun  bool                   // what the start finds may never have been there
	counts map[string]uint64      // by kind
	recent map[string][]time.Time // by subject, within contestedWithin
}

// begin says that the start is over.
func (r *repairs) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun = true
}

// add counts changes that were made at a time, and reports whether it did.
func (r *repairs) add(now time.Time, changes []kernel.Change) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.begun {
		return false
	}
	if r.counts == nil {
		r.counts, r.recent = map[string]uint64{}, map[string][]time.Time{}
	}
	subjects := map[string]bool{}
	for _, c := range changes {
		r.counts[c.Kind]++
		subjects[c.Kind+" "+c.Subject] = true // once for each comparison
	}
	for s := range subjects {
		r.recent[s] = append(r.recent[s], now)
	}
	return true
}

// total returns the counts by kind.
func (r *repairs) total() map[string]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := map[string]uint64{}
	maps.Copy(counts, r.counts)
	return counts
}

// contested returns what is changed by others again and again, one sentence each.
func (r *repairs) contested(now time.Time) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []string
	for subject, times := range r.recent {
		times = slices.DeleteFunc(times, func(t time.Time) bool { return now.Sub(t) > contestedWithin })
		if r.recent[subject] = times; len(times) == 0 {
			delete(r.recent, subject)
		}
		if len(times) >= contestedTimes {
			list = append(list, fmt.Sprintf("host: something on this node keeps changing %s: it was put back %d times within a minute; find out what, for example another network manager",
				subject, len(times)))
		}
	}
	slices.Sort(list)
	return list
}

// Repaired records and logs what was found changed and was put back.
func (n *Node) Repaired(changes []kernel.Change) {
	if len(changes) == 0 {
		return
	}
	if n.repairs.add(time.Now(), changes) {
		n.Log.Warn("what this daemon wrote had been changed and was put back", logkey.Repaired, changes)
	} else {
		n.Log.Info("the host was set up as this daemon needs it", logkey.Repaired, changes)
	}
}

// PutBack is Repaired for subjects of one kind of which only the names are known.
func (n *Node) PutBack(kind string, subjects []string) {
	var changes []kernel.Change
	for _, s := range subjects {
		changes = append(changes, kernel.Change{Kind: kind, Subject: s, What: "put back"})
	}
	n.Repaired(changes)
}
