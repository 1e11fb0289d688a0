// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sif-project/sif/fabric"
)

// ended remembers the addresses of endpoints that have ended by their owners' word, so that who
// calls them is told at once. An address rests that long before another endpoint can have it. It is
// safe for concurrent use.
type ended struct {
	mu    sync.Mutex
	until map[netip.Addr]time.Time
}

func (e *ended) note(adm fabric.Admission, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.until == nil {
		e.until = map[netip.Addr]time.Time{}
	}
	for _, a := range []netip.Addr{adm.IPv4, adm.IPv6} {
		if a.IsValid() {
			e.until[a] = now.Add(rest)
		}
	}
}

// addresses returns the addresses that still rest.
func (e *ended) addresses(now time.Time) []netip.Addr {
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.until, func(_ netip.Addr, until time.Time) bool { return !now.Before(until) })
	return slices.Collect(maps.Keys(e.until))
}
