// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package expiry

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

func expiring(at ...time.Time) map[fabric.Ref]fabric.Document {
	var d fabric.Document
	for _, t := range at {
		d.Originates = append(d.Originates, fabric.Edge{Expires: t})
	}
	return map[fabric.Ref]fabric.Document{{Domain: "shop", Name: "web"}: d}
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var docs atomic.Value
		docs.Store(expiring(start.Add(1500*time.Millisecond), start.Add(time.Hour), time.Time{}))
		var acted []time.Duration
		ctx, cancel := context.WithCancel(t.Context())
		go Watch(ctx, time.Now, func() map[fabric.Ref]fabric.Document { return docs.Load().(map[fabric.Ref]fabric.Document) },
			func() { acted = append(acted, time.Since(start)) })
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		must.Eq(t, []time.Duration{1500 * time.Millisecond}, acted)

		// A new revision brings the end forward.
		docs.Store(expiring(start.Add(20 * time.Minute)))
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		must.Eq(t, []time.Duration{1500 * time.Millisecond, 20 * time.Minute}, acted)
		cancel()
		synctest.Wait()
	})
}

// A clock that is set forward past an expiry does not hide it.
func TestWatchWhenTheClockIsSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ahead atomic.Int64
		now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		docs := expiring(now().Add(time.Hour))
		acted := 0
		ctx, cancel := context.WithCancel(t.Context())
		go Watch(ctx, now, func() map[fabric.Ref]fabric.Document { return docs }, func() { acted++ })
		time.Sleep(time.Minute)
		ahead.Store(int64(2 * time.Hour))
		time.Sleep(look)
		synctest.Wait()
		must.Eq(t, 1, acted)
		cancel()
		synctest.Wait()
	})
}
