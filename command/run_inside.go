// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/node/netspace"
)

// enter has the thread of the calling goroutine, and the processes that it starts, enter a network
// namespace, with mounts of their own: the fabric's resolver, and what /sys shows. The thread never
// comes back; it ends with the goroutine. warn tells what could not be done and keeps nobody from
// going on.
func enter(space *os.File, warn func(format string, args ...any)) error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Setns(int(space.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	if err := unix.Mount("", "/", "none", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep mounts to the program: %w", err)
	}
	if err := remountSys(); err != nil {
		warn("/sys shows the interfaces of the machine: %v", err)
	}
	if err := hideCaches(); err != nil {
		warn("the program may ask the machine's resolver: %v", err)
	}
	if err := bindResolver(); err != nil {
		return fmt.Errorf("make the fabric's resolver that of the program: %w", err)
	}
	return nil
}

// bindResolver puts the fabric's resolver on /etc/resolv.conf.
func bindResolver() error {
	f, err := os.CreateTemp("", "sif-resolv.conf-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // the mount keeps it
	defer f.Close()
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if _, err := f.Write(netspace.Resolver()); err != nil {
		return err
	}
	const path = "/etc/resolv.conf"
	if err := unix.Mount(f.Name(), path, "none", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount on %s: %w", path, err)
	}
	return nil
}

// hideCaches hides the sockets by which the C library asks daemons of the machine for names, before
// it looks at /etc/resolv.conf. That may be a link to a file beside one of them.
func hideCaches() error {
	for _, dir := range []string{"/run/systemd/resolve", "/run/nscd"} {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755,size=64k"); err != nil {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
		for _, name := range []string{"stub-resolv.conf", "resolv.conf"} {
			if err := os.WriteFile(filepath.Join(dir, name), netspace.Resolver(), 0o644); err != nil {
				return fmt.Errorf("hide %s: %w", dir, err)
			}
		}
	}
	return nil
}

// remountSys makes /sys anew, which shows the interfaces of the namespace in which it was made, and
// keeps what is mounted in it.
func remountSys() error {
	var st unix.Statfs_t
	if err := unix.Statfs("/sys", &st); err != nil {
		return fmt.Errorf("look at /sys: %w", err)
	}
	inner, err := mountsIn("/sys/")
	if err != nil {
		return err
	}
	var kept []*os.File
	for _, path := range inner {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("keep the mount %s: %w", path, err)
		}
		f := os.NewFile(uintptr(fd), path)
		defer f.Close()
		kept = append(kept, f)
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if st.Flags&unix.ST_RDONLY != 0 {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", flags, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	for _, f := range kept {
		if err := unix.Mount(fmt.Sprintf("/proc/thread-self/fd/%d", f.Fd()), f.Name(), "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("keep the mount %s: %w", f.Name(), err)
		}
	}
	return nil
}

// mountsIn returns the mount points below a directory, outer ones first.
func mountsIn(dir string) ([]string, error) {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list the mounts: %w", err)
	}
	defer f.Close()
	var list []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text()) // proc_pid_mountinfo(5)
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir) && !strings.Contains(fields[4], `\`) {
			list = append(list, fields[4])
		}
	}
	return list, nil
}
