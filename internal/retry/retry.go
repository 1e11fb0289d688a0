// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package retry paces what is tried again after a failure. It does not know what is tried.
package retry

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// Backoff returns the pauses between attempts: they begin at about first and double up to about
// most, each up to a half longer or shorter at random, so that many nodes do not try at the same
// moment. Reset begins anew after a success.
func Backoff(first, most time.Duration) *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(first), backoff.WithMaxInterval(most),
		backoff.WithMultiplier(2), backoff.WithMaxElapsedTime(0),
	)
}

// Sleep waits for d and reports whether ctx is still alive.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
