// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package dirlock keeps two processes from using one directory. It does not know what is in it.
package dirlock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// ErrLocked is returned if another process has the lock.
var ErrLocked = errors.New("another process has the lock")

// Lock locks dir by the file of that name in it, which it creates if need be. Closing the file that
// it returns unlocks dir; the kernel does so when the process ends.
func Lock(dir, name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}
