// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package netspace makes network namespaces under names, as ip-netns(8) does, with the resolver of
// the fabric in /etc/netns, and takes them away again: only those that it made. It knows files,
// mounts and processes; it does not know what a namespace is for.
package netspace

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Layout is where names are. A namespace is a mount in Namespaces, what its processes need instead
// of a file of /etc is in Config, and Marks has a file for each namespace that we made. Marks must
// be in a file system that a reboot empties, as Namespaces is.
type Layout struct{ Namespaces, Config, Marks string }

// Default is the layout of ip-netns(8), with the marks in the run_dir of the node's daemons.
func Default(runDir string) Layout {
	return Layout{Namespaces: "/run/netns", Config: "/etc/netns", Marks: filepath.Join(runDir, "netns")}
}

// validName is a name of a namespace: one that is a file name, an instance of a unit without
// escapes, and the beginning of no option.
var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,46}[a-z0-9])?$`)

// CheckName returns an error unless name can be that of a namespace.
func CheckName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("%q is not a name: use 1 to 48 lower-case letters, digits, dots, hyphens and underscores, of which the first and the last are letters or digits", name)
	}
	return nil
}

// ErrOthers says that a namespace exists that we did not make.
var ErrOthers = errors.New("it exists, and sif did not make it")

// Path returns where the namespace with a name is.
func (l Layout) Path(name string) string { return filepath.Join(l.Namespaces, name) }

func (l Layout) mark(name string) string { return filepath.Join(l.Marks, name) }

// Open opens the network namespace at a path.
func Open(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("%s is not a network namespace", path)
	}
	return f, nil
}

// Inode returns the number of an open namespace, by which it is told from others that exist.
func Inode(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("look at %s: %w", f.Name(), err)
	}
	return st.Ino, nil
}

// inodeAt returns the number of the namespace at a path, or 0 if there is none.
func inodeAt(path string) uint64 {
	f, err := Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	inode, err := Inode(f)
	if err != nil {
		return 0
	}
	return inode
}

// Is reports whether the namespace with a number is at a path.
func Is(path string, inode uint64) bool { return inode != 0 && inodeAt(path) == inode }

// IsHost reports whether an open namespace is that of this process, or the machine's own.
func IsHost(f *os.File) (bool, error) {
	inode, err := Inode(f)
	return err == nil && (Is("/proc/self/ns/net", inode) || Is("/proc/1/ns/net", inode)), err
}

// New makes a network namespace without a name, in which loopback is up. It ends when nothing
// refers to it any more: neither the file, nor a process, nor a mount.
func New() (*os.File, error) {
	type made struct {
		f   *os.File
		err error
	}
	result := make(chan made)
	go func() {
		runtime.LockOSThread()
		before, err := Open("/proc/thread-self/ns/net")
		if err != nil {
			result <- made{nil, err}
			return
		}
		defer before.Close()
		f, err := enterNew()
		// A thread that cannot go back ends with this goroutine.
		if back := unix.Setns(int(before.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		result <- made{f, err}
	}()
	m := <-result
	return m.f, m.err
}

// enterNew has the thread enter a new namespace.
func enterNew() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	lo, err := netlinksafe.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return nil, fmt.Errorf("bring loopback up in a new network namespace: %w", err)
	}
	return Open("/proc/thread-self/ns/net")
}

// Make makes a network namespace under a name. One with that name that we made already is opened.
// ErrOthers says that the name is taken.
func (l Layout) Make(name string) (f *os.File, made bool, err error) {
	if err := CheckName(name); err != nil {
		return nil, false, err
	}
	if err := l.share(); err != nil {
		return nil, false, err
	}
	path := l.Path(name)
	if l.Made(name) {
		f, err := Open(path)
		return f, false, err
	}
	if f, err = New(); err != nil {
		return nil, false, err
	}
	if err := l.bind(name, f); err != nil {
		f.Close()
		return nil, false, err
	}
	return f, true, nil
}

// bind gives an open namespace its name. The mark comes first, so that what an interrupted call
// leaves is known as ours.
func (l Layout) bind(name string, f *os.File) (err error) {
	path := l.Path(name)
	inode, err := Inode(f)
	if err != nil {
		return err
	}
	l.clear(name)
	point, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("the namespace %s: %w", path, ErrOthers)
	}
	if err != nil {
		return fmt.Errorf("name the network namespace: %w", err)
	}
	point.Close()
	defer func() {
		if err != nil {
			_ = os.Remove(path)
			_ = os.Remove(l.mark(name))
		}
	}()
	if err := os.MkdirAll(l.Marks, 0o700); err != nil {
		return fmt.Errorf("mark the network namespace: %w", err)
	}
	if err := os.WriteFile(l.mark(name), []byte(strconv.FormatUint(inode, 10)), 0o600); err != nil {
		return fmt.Errorf("mark the network namespace: %w", err)
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), path, "none", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount the network namespace on %s: %w", path, err)
	}
	return nil
}

// clear removes the file that an interrupted call left, on which nothing is mounted.
func (l Layout) clear(name string) {
	if _, err := os.Stat(l.mark(name)); err != nil {
		return
	}
	if info, err := os.Lstat(l.Path(name)); err == nil && info.Mode().IsRegular() && info.Size() == 0 && inodeAt(l.Path(name)) == 0 {
		_ = os.Remove(l.Path(name))
	}
}

// Made reports whether there is a namespace with a name that we made.
func (l Layout) Made(name string) bool {
	text, err := os.ReadFile(l.mark(name))
	if err != nil {
		return false
	}
	inode, err := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 64)
	return err == nil && Is(l.Path(name), inode)
}

// Remove takes away what we made under a name: the namespace, unless it is no longer ours, and the
// resolver. Processes in it keep the namespace, without its name.
func (l Layout) Remove(name string) error {
	errs := []error{l.RemoveResolver(name)}
	if l.Made(name) {
		if err := unix.Unmount(l.Path(name), unix.MNT_DETACH); err != nil {
			return errors.Join(append(errs, fmt.Errorf("unmount the namespace %s: %w", l.Path(name), err))...)
		}
	}
	l.clear(name)
	if err := os.Remove(l.mark(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove the mark of namespace %s: %w", name, err))
	}
	return errors.Join(errs...)
}

// share makes the directory one whose mounts all mount namespaces see, as ip-netns(8) does.
func (l Layout) share() error {
	if err := os.MkdirAll(l.Namespaces, 0o755); err != nil {
		return fmt.Errorf("create the directory of network namespaces: %w", err)
	}
	lock, err := os.Open(l.Namespaces)
	if err != nil {
		return fmt.Errorf("open the directory of network namespaces: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", l.Namespaces, err)
	}
	shared := func() error { return unix.Mount("", l.Namespaces, "none", unix.MS_SHARED|unix.MS_REC, "") }
	if err = shared(); errors.Is(err, unix.EINVAL) { // it is no mount
		if err = unix.Mount(l.Namespaces, l.Namespaces, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = shared()
		}
	}
	if err != nil {
		return fmt.Errorf("share the mounts in %s: %w", l.Namespaces, err)
	}
	return nil
}

// Process is a process in a namespace.
type Process struct {
	PID  int    `json:"pid"`
	Name string `json:"name"`
}

func (p Process) String() string { return fmt.Sprintf("%s (%d)", p.Name, p.PID) }

// Processes returns the processes of this machine in a namespace with a number.
func Processes(inode uint64) ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	var list []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(filepath.Join("/proc", e.Name(), "ns/net"), &st) != nil || st.Ino != inode {
			continue
		}
		name, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "comm")) // empty if it has just ended
		list = append(list, Process{pid, strings.TrimSpace(string(name))})
	}
	return list, nil
}
