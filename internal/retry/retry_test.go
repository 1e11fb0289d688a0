// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package retry

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
)

func TestBackoff(t *testing.T) {
	const first, most = 250 * time.Millisecond, 5 * time.Second
	b := Backoff(first, most)
	near := func(want time.Duration) {
		t.Helper()
		got := b.NextBackOff()
		must.Between(t, want/2, got, want*3/2)
	}
	for want := first; want < most; want *= 2 {
		near(want)
	}
	for range 100 { // it never gives up
		near(most)
	}
	b.Reset()
	near(first)
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		must.True(t, Sleep(t.Context(), time.Minute))
		must.Eq(t, time.Minute, time.Since(start))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		must.False(t, Sleep(ctx, time.Hour))
		must.Eq(t, time.Minute+time.Second, time.Since(start))
	})
}
