// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestCosts(t *testing.T) {
	now := time.Now()
	before := usage{at: now, spent: map[string]time.Duration{"a/agent": 5 * time.Second, "b/agent": time.Second, "a/link": time.Second}}
	after := usage{at: now.Add(10 * time.Second), spent: map[string]time.Duration{
		"a/agent": 6 * time.Second, "b/agent": 2 * time.Second, "a/link": time.Second, "p/engine": 4 * time.Second, "p/a": 2 * time.Second,
	}}
	// Daemons of one name count together, also one that has started since; idle ones are left out.
	must.Eq(t, []cost{{"engine", 2 * time.Second}, {"a", time.Second}, {"agent", time.Second}}, after.costs(before, usage{}, 2))
	must.SliceEmpty(t, before.costs(before, usage{}, 2))
	// What they use at rest does not count.
	rest := usage{spent: map[string]time.Duration{"a/agent": 20 * time.Millisecond, "p/engine": 100 * time.Millisecond, "a/link": time.Second}}
	must.Eq(t, []cost{{"engine", 1500 * time.Millisecond}, {"a", time.Second}, {"agent", 900 * time.Millisecond}}, after.costs(before, rest, 2))
}
