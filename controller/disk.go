// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// diskInterval is how often the data directory is tried.
	diskInterval = 2 * time.Second
	// diskTrial is how many bytes it must take: more than an entry of the audit log.
	diskTrial = 64 << 10
)

// disk knows whether the data directory can be written. What must be recorded is refused while it
// cannot.
type disk struct {
	dir string

	mu  sync.Mutex
	err error
}

// try writes and removes a file, and remembers the outcome.
func (d *disk) try() error {
	err := writeTrial(d.dir)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
	return err
}

func writeTrial(dir string) (err error) {
	// One name, so that a process that is killed leaves at most one file.
	f, err := os.OpenFile(filepath.Join(dir, ".trial"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write the data directory: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // somebody else removed it
	defer f.Close()
	_, err = f.Write(make([]byte, diskTrial))
	if err == nil {
		err = f.Sync() // some file systems look for room only then
	}
	if err != nil {
		return fmt.Errorf("write the data directory: %w", err)
	}
	return nil
}

// failed remembers that a write failed.
func (d *disk) failed(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

// trouble returns why the directory could not be written the last time, or nil.
func (d *disk) trouble() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}
