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
	"time"
)

// ending is how long Take waits for a process that is ending.
const ending = 2 * time.Second

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

// Take is Lock for a daemon that replaces another one. A daemon that was killed keeps its locks
// until the kernel has ended all its threads, and a program that it was just starting inherits them
// for a moment, so Take waits for up to 2 s.
func Take(dir, name string) (*os.File, error) {
	for deadline := time.Now().Add(ending); ; time.Sleep(20 * time.Millisecond) {
		f, err := Lock(dir, name)
		if !errors.Is(err, ErrLocked) || time.Now().After(deadline) {
			return f, err
		}
	}
}
