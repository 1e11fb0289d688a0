// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dirlock

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestLock(t *testing.T) {
	dir := t.TempDir()
	lock, err := Lock(dir, "lock")
	must.NoError(t, err)
	_, err = Lock(dir, "lock")
	must.ErrorIs(t, err, ErrLocked)
	other, err := Lock(dir, "other")
	must.NoError(t, err)
	must.NoError(t, other.Close())
	must.NoError(t, lock.Close())
	lock, err = Lock(dir, "lock")
	must.NoError(t, err)
	must.NoError(t, lock.Close())
	_, err = Lock(dir+"/missing", "lock")
	must.ErrorContains(t, err, "open the lock")
}

func TestTakeWaitsForOneThatEnds(t *testing.T) {
	dir := t.TempDir()
	lock, err := Lock(dir, "lock")
	must.NoError(t, err)
	time.AfterFunc(100*time.Millisecond, func() { lock.Close() })
	next, err := Take(dir, "lock")
	must.NoError(t, err)
	_, err = Take(dir, "lock")
	must.ErrorIs(t, err, ErrLocked)
	must.NoError(t, next.Close())
	_, err = Take(dir+"/missing", "lock")
	must.ErrorContains(t, err, "open the lock")
}
