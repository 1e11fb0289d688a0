// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MountBPFFS ensures that dir is on a BPF filesystem: if it is not, MountBPFFS creates the
// directory, mounts a BPF filesystem that only root can read, and returns true. The mount belongs
// to the mount namespace of the calling thread.
func MountBPFFS(dir string) (bool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, fmt.Errorf("create the mount point of the BPF filesystem: %w", err)
	}
	if on, err := OnBPFFS(dir); on || err != nil {
		return false, err
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return false, fmt.Errorf("mount BPF filesystem at %s: %w", dir, err)
	}
	return true, nil
}

// OnBPFFS reports whether dir is on a BPF filesystem.
func OnBPFFS(dir string) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return false, fmt.Errorf("read the filesystem type of %s: %w", dir, err)
	}
	return uint32(fs.Type) == unix.BPF_FS_MAGIC, nil
}
