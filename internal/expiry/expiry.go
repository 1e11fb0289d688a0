// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package expiry calls a daemon when a contract expires, which needs no new revision. It knows when
// a contract expires; the daemon computes what to remove from the data path.
package expiry

import (
	"context"
	"time"

	"github.com/sif-project/sif/fabric"
)

// look is the interval at which documents and clock are checked, because documents change and the
// clock may be set.
const look = time.Second

// Watch calls act whenever an edge of the documents in force expires, until ctx ends. It does not
// repeat an act that fails; the regular comparison of the data path does.
func Watch(ctx context.Context, now func() time.Time, docs func() map[fabric.Ref]fabric.Document, act func()) {
	seen := now() // earlier expiries are already applied
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		wait := look
		present := now()
		next := fabric.NextExpiry(docs(), seen)
		switch {
		case next.IsZero():
			seen = present
		case !present.Before(next):
			seen = present
			act()
			wait = 0
		default:
			seen = present
			wait = min(look, next.Sub(present))
		}
		timer.Reset(wait)
	}
}
