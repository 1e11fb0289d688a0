// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package machines

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/prometheus/procfs"
)

// Down removes everything of a world: processes, network, files. It needs only the world's name,
// because the world's own files may be missing or incomplete. Without such a world it does nothing.
func Down(ctx context.Context, name string) error {
	if !names.MatchString(name) {
		return fmt.Errorf("the name of a world must match %s, %q does not", names, name)
	}
	var errs []error
	// A process may start another one meanwhile.
	for range 5 {
		pids := processes(name)
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				errs = append(errs, fmt.Errorf("kill process %d: %w", pid, err))
			}
		}
		if err := waitGone(pids, 10*time.Second); err != nil {
			errs = append(errs, err)
		}
	}
	w := World{Name: name}
	if _, err := os.Stat(filepath.Join(netnsDir, w.Namespace())); err == nil {
		if _, err := output(exec.CommandContext(ctx, "ip", "netns", "del", w.Namespace())); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, os.RemoveAll(w.path()))
	_ = os.Remove(root) // fails if there are other worlds
	return errors.Join(errs...)
}

// sweep removes the worlds whose owners have ended.
func sweep(ctx context.Context) error {
	names, err := Worlds()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		w, err := Open(name, io.Discard)
		if err != nil {
			continue // half made, or half removed: Down of its name removes it
		}
		if born, err := bornAt(w.Owner); w.Owner != 0 && (err != nil || born != w.OwnerBorn) {
			errs = append(errs, Down(ctx, name))
		}
	}
	return errors.Join(errs...)
}

// Worlds lists the names of the worlds that are there.
func Worlds() ([]string, error) {
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		found = append(found, e.Name())
	}
	return found, nil
}

// processes finds the processes of a world by their environment, except this one and its parents.
func processes(world string) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	ours := ancestors()
	tag := []byte(worldVariable + "=" + world)
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || ours[pid] {
			continue
		}
		environ, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil || !slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(v []byte) bool { return bytes.Equal(v, tag) }) {
			continue
		}
		if _, err := bornAt(pid); err == nil {
			found = append(found, pid)
		}
	}
	return found
}

// ancestors lists this process and its parents, which may run in the world's namespace.
func ancestors() map[int]bool {
	found := map[int]bool{}
	for pid := os.Getpid(); pid > 0 && !found[pid]; {
		found[pid] = true
		proc, err := procfs.NewProc(pid)
		if err != nil {
			break
		}
		stat, err := proc.Stat()
		if err != nil {
			break
		}
		pid = stat.PPID
	}
	return found
}

// bornAt returns the start time of a process, or an error if it has ended. A zombie has ended.
func bornAt(pid int) (uint64, error) {
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	stat, err := proc.Stat()
	if err != nil {
		return 0, err
	}
	if stat.State == "Z" || stat.State == "X" {
		return 0, fmt.Errorf("process %d has ended", pid)
	}
	return stat.Starttime, nil
}

func waitGone(pids []int, within time.Duration) error {
	for deadline := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
		left := slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { _, err := bornAt(pid); return err != nil })
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v did not end in %s", left, within)
		}
	}
}
