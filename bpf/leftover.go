// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/leftover"
)

// Leftovers returns what a Datapath has pinned in dir. The interfaces whose programs are pinned
// there must be deleted first: what is pinned no longer guards them.
func Leftovers(dir string) []leftover.Leftover {
	if _, err := os.Stat(dir); err != nil {
		return nil
	}
	return []leftover.Leftover{{Kind: "eBPF pins", Name: dir, Remove: func(context.Context) error {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove the pins of the data path: %w", err)
		}
		return nil
	}}}
}

// Mounted returns the BPF filesystem that MountBPFFS mounted at dir.
func Mounted(dir string) []leftover.Leftover {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || uint32(fs.Type) != unix.BPF_FS_MAGIC {
		return nil
	}
	return []leftover.Leftover{{Kind: "mount", Name: dir, Remove: func(context.Context) error {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		return nil
	}}}
}
