// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dirlock

import (
	"testing"

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
