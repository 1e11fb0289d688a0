// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package testhost

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"
)

// Disk is a file system of its own, small enough to be filled.
type Disk struct {
	Dir string
	t   testing.TB
}

// NewDisk mounts a tmpfs of some megabytes until the test ends. It needs root.
func NewDisk(t testing.TB, megabytes int) *Disk {
	t.Helper()
	RequireRoot(t)
	d := &Disk{Dir: t.TempDir(), t: t}
	must.NoError(t, syscall.Mount("tmpfs", d.Dir, "tmpfs", 0, fmt.Sprintf("size=%dm", megabytes)))
	t.Cleanup(func() {
		// Lazily: what a test still runs may hold files.
		if err := syscall.Unmount(d.Dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", d.Dir, err)
		}
	})
	return d
}

func (d *Disk) filling() string { return filepath.Join(d.Dir, "filling") }

// Fill leaves no room on the disk.
func (d *Disk) Fill() {
	d.t.Helper()
	f, err := os.Create(d.filling())
	must.NoError(d.t, err)
	defer f.Close()
	for size := 64 << 10; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
	must.ErrorIs(d.t, err, syscall.ENOSPC)
}

// Free makes room again.
func (d *Disk) Free() {
	d.t.Helper()
	must.NoError(d.t, os.Remove(d.filling()))
}
