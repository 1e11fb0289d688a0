// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MountBPFFS makes sure that dir lies on a BPF filesystem: unless it does, it makes the
// directory and mounts one there, readable by root only. Returns whether it mounted.
// The mount belongs to the calling thread's mount namespace and lives as long as that.
func MountBPFFS(dir string) (bool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, fmt.Errorf("make directory for the BPF filesystem: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return false, fmt.Errorf("look at the filesystem of %s: %w", dir, err)
	}
	if uint32(fs.Type) == unix.BPF_FS_MAGIC {
		return false, nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return false, fmt.Errorf("mount BPF filesystem at %s: %w", dir, err)
	}
	return true, nil
}
