// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestCosts(t *testing.T) {
	before := usage{spent: map[string]time.Duration{"a/agent": 5 * time.Second, "b/agent": time.Second, "a/link": time.Second}}
	after := usage{spent: map[string]time.Duration{
		"a/agent": 6 * time.Second, "b/agent": 2 * time.Second, "a/link": time.Second, "p/engine": 4 * time.Second, "p/a": 2 * time.Second,
	}}
	// Daemons of one name count together, also one that has started since; idle ones are left out.
	must.Eq(t, []cost{{"engine", 2 * time.Second}, {"a", time.Second}, {"agent", time.Second}}, after.costs(before, 2))
	must.SliceEmpty(t, before.costs(before, 2))
}
