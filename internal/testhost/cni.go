// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package testhost

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// CNI returns a directory with cnitool and plugins of the CNI project, which are built from
// tools/cni if they are not there. more are packages of this repository to build beside them, by
// the names that their programs get.
func CNI(t testing.TB, more map[string]string) string {
	t.Helper()
	root, ok := repository()
	if !ok {
		t.Fatal("the CNI plugins are built from the repository, and this is none")
	}
	dir := filepath.Join(root, "bin", "cni")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(root, "bin", "cni.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil { // of packages that are tested at once
		t.Fatal(err)
	}
	build := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("go", append([]string{"build"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("go build %v: %v: %s", args, err, out)
		}
	}
	build("-C", filepath.Join(root, "tools", "cni"), "-o", dir+"/", "tool")
	// Their directory is given to programs; what differs from run to run must not lie in it.
	own := t.TempDir()
	programs, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		if err := os.Symlink(p, filepath.Join(own, filepath.Base(p))); err != nil {
			t.Fatal(err)
		}
	}
	for name, pkg := range more {
		build("-C", root, "-o", filepath.Join(own, name), pkg)
	}
	return own
}
