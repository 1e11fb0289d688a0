// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package coalesce

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/shoenig/test/must"
)

// Every caller's change is seen by the run whose outcome it gets, and runs do not overlap.
func TestCallSeesWhatItsCallerDid(t *testing.T) {
	var said, seen atomic.Int64
	var inside atomic.Bool
	f := New(func() error {
		if !inside.CompareAndSwap(false, true) {
			t.Error("two runs at once")
		}
		seen.Store(said.Load())
		inside.Store(false)
		return nil
	})
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for range 1000 {
				mine := said.Add(1)
				must.NoError(t, f.Call())
				if seen.Load() < mine {
					t.Error("the run had begun before the call")
				}
			}
		})
	}
	callers.Wait()
}

// Callers during a run share the next run, and its error.
func TestWaitingCallersShareARun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs, proceed := 0, make(chan struct{})
		failed := errors.New("failed")
		f := New(func() error {
			if runs++; runs > 1 {
				return failed
			}
			<-proceed
			return nil
		})
		var callers sync.WaitGroup
		callers.Go(func() { must.NoError(t, f.Call()) })
		synctest.Wait()
		for range 50 {
			callers.Go(func() { must.ErrorIs(t, f.Call(), failed) })
		}
		synctest.Wait()
		close(proceed)
		callers.Wait()
		must.Eq(t, 2, runs)
	})
}
