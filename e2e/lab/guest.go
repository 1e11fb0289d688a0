// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sif-project/sif/e2e/guest"
)

// GuestDir is the directory with the kernel (vmlinuz) and the initial file system (initrd.img) of
// virtual machines. Jobs find it as ${meta.guest}.
func (l *Lab) GuestDir() string { return l.varDir("guest") }

// PrepareGuests puts what virtual machines start with into GuestDir. The first time it fetches a
// kernel from the machine's Debian mirror, so a lab without virtual machines does without it.
func (l *Lab) PrepareGuests(ctx context.Context) error {
	image, err := guest.Build(ctx, l.Bin)
	if err != nil {
		return err
	}
	if err := mkdirs(l.GuestDir()); err != nil {
		return err
	}
	for name, target := range map[string]string{"vmlinuz": image.Kernel, "initrd.img": image.Initrd} {
		link := filepath.Join(l.GuestDir(), name)
		if err := os.Remove(link); err != nil && !os.IsNotExist(err) {
			return err
		}
		if err := os.Symlink(target, link); err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
	}
	l.progress.line("the image of virtual machines is in %s", l.GuestDir())
	return nil
}
