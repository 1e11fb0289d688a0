// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package expiry has a daemon act at the moment at which a contract expires,
// with nobody there and no new revision. It knows when; what then has to be
// taken out of the data path is for the daemon to compute.
package expiry

import (
	"context"
	"time"

	"github.com/sif-project/sif/fabric"
)

// look is how often the documents and the clock are looked at: documents come
// and go, and the clock may be set.
const look = time.Second

// Watch calls act whenever an edge of the documents in force expires, until ctx
// ends. An act that fails is repeated by whoever compares the data path with
// what it should hold.
func Watch(ctx context.Context, now func() time.Time, docs func() map[fabric.Ref]fabric.Document, act func()) {
	seen := now() // what had expired by then has been acted on
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
