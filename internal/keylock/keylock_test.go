// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package keylock

import (
	"sync"
	"testing"

	"github.com/shoenig/test/must"
)

func TestOneHolderOfAKey(t *testing.T) {
	const keys, workers, rounds = 3, 8, 500
	var l Locks[int]
	var counts [keys]int // each guarded by its key; the race detector watches
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for i := range rounds {
				k := i % keys
				unlock := l.Lock(k)
				counts[k]++
				unlock()
			}
		})
	}
	group.Wait()
	total := 0
	for _, n := range counts {
		total += n
	}
	must.Eq(t, workers*rounds, total)
	must.MapEmpty(t, l.held) // an unused key costs nothing
}

func TestOtherKeysAreFree(t *testing.T) {
	var l Locks[string]
	unlock := l.Lock("a")
	l.Lock("b")() // would wait for ever if it were not
	taken := make(chan struct{})
	go func() {
		defer close(taken)
		l.Lock("a")()
	}()
	select {
	case <-taken:
		t.Fatal("two hold the same key")
	default:
	}
	unlock()
	<-taken
	must.MapEmpty(t, l.held)
}
