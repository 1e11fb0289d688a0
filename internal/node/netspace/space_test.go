// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package netspace

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/testhost"
)

// layout returns directories of a test's own.
func layout(t *testing.T) Layout {
	t.Helper()
	testhost.RequireRoot(t)
	dir := t.TempDir()
	l := Layout{Namespaces: filepath.Join(dir, "netns"), Config: filepath.Join(dir, "etc"), Marks: filepath.Join(dir, "marks")}
	t.Cleanup(func() {
		entries, err := os.ReadDir(l.Namespaces)
		must.NoError(t, err)
		for _, e := range entries {
			_ = unix.Unmount(l.Path(e.Name()), unix.MNT_DETACH)
		}
		must.NoError(t, unix.Unmount(l.Namespaces, unix.MNT_DETACH))
	})
	return l
}

func TestMakeAndRemove(t *testing.T) {
	l := layout(t)
	f, made, err := l.Make("db")
	must.NoError(t, err)
	must.True(t, made)
	must.True(t, l.Made("db"))
	host, err := IsHost(f)
	must.NoError(t, err)
	must.False(t, host)
	inode, err := Inode(f)
	must.NoError(t, err)
	must.NoError(t, f.Close())
	must.True(t, Is(l.Path("db"), inode))
	out, err := exec.Command("nsenter", "--net="+l.Path("db"), "cat", "/proc/net/dev").CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	must.StrContains(t, string(out), "lo:")
	out, err = exec.Command("nsenter", "--net="+l.Path("db"), "ip", "-o", "link", "show", "dev", "lo").CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	must.StrContains(t, string(out), ",UP")

	again, made, err := l.Make("db")
	must.NoError(t, err)
	must.False(t, made)
	same, err := Inode(again)
	must.NoError(t, err)
	must.Eq(t, inode, same)
	must.NoError(t, again.Close())

	// A process in it is found, and keeps it without its name.
	sleeper := exec.Command("nsenter", "--net="+l.Path("db"), "sleep", "60")
	must.NoError(t, sleeper.Start())
	defer func() { _ = sleeper.Process.Kill(); _ = sleeper.Wait() }()
	found := func() bool {
		list, err := Processes(inode)
		must.NoError(t, err)
		return len(list) == 1 && list[0] == Process{sleeper.Process.Pid, "sleep"}
	}
	for deadline := time.Now().Add(10 * time.Second); !found(); time.Sleep(10 * time.Millisecond) {
		must.True(t, time.Now().Before(deadline), must.Sprint("the process is not found"))
	}

	must.NoError(t, l.Remove("db"))
	must.False(t, l.Made("db"))
	for _, path := range []string{l.Path("db"), l.mark("db")} {
		_, err := os.Stat(path)
		must.ErrorIs(t, err, os.ErrNotExist)
	}
	must.NoError(t, l.Remove("db"), must.Sprint("twice"))
}

// What somebody else made is neither used nor removed.
func TestOthersStay(t *testing.T) {
	l := layout(t)
	must.NoError(t, l.share())
	f, err := New()
	must.NoError(t, err)
	defer f.Close()
	must.NoError(t, os.WriteFile(l.Path("theirs"), nil, 0o600))
	must.NoError(t, unix.Mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), l.Path("theirs"), "none", unix.MS_BIND, ""))
	_, _, err = l.Make("theirs")
	must.ErrorIs(t, err, ErrOthers)
	must.False(t, l.Made("theirs"))
	must.NoError(t, l.Remove("theirs"))
	inode, err := Inode(f)
	must.NoError(t, err)
	must.True(t, Is(l.Path("theirs"), inode))

	// Neither is one that replaced ours.
	made, _, err := l.Make("db")
	must.NoError(t, err)
	must.NoError(t, unix.Unmount(l.Path("db"), unix.MNT_DETACH))
	must.NoError(t, unix.Mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), l.Path("db"), "none", unix.MS_BIND, ""))
	must.False(t, l.Made("db"))
	must.NoError(t, l.Remove("db"))
	must.True(t, Is(l.Path("db"), inode))
	must.NoError(t, made.Close())
}

// What an interrupted call leaves does not keep the name.
func TestInterrupted(t *testing.T) {
	l := layout(t)
	f, _, err := l.Make("db")
	must.NoError(t, err)
	must.NoError(t, f.Close())
	must.NoError(t, unix.Unmount(l.Path("db"), unix.MNT_DETACH)) // as before it was mounted
	f, made, err := l.Make("db")
	must.NoError(t, err)
	must.True(t, made)
	must.NoError(t, f.Close())
	must.NoError(t, l.Remove("db"))
}

func TestResolver(t *testing.T) {
	l := layout(t)
	must.NoError(t, l.share())
	path := l.ResolverPath("db")
	for range 2 {
		ours, err := l.WriteResolver("db")
		must.NoError(t, err)
		must.True(t, ours)
		text, err := os.ReadFile(path)
		must.NoError(t, err)
		must.StrContains(t, string(text), "\nnameserver 169.254.1.1\n")
	}
	must.NoError(t, l.RemoveResolver("db"))
	must.NoError(t, l.RemoveResolver("db"))
	_, err := os.Stat(l.Config)
	must.ErrorIs(t, err, os.ErrNotExist)

	must.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	for what, put := range map[string]func() error{
		"a file": func() error { return os.WriteFile(path, []byte("nameserver 192.0.2.1\n"), 0o600) },
		"a link": func() error { return os.Symlink("/etc/resolv.conf", path) },
	} {
		must.NoError(t, put())
		before, err := os.Lstat(path)
		must.NoError(t, err)
		ours, err := l.WriteResolver("db")
		must.NoError(t, err)
		must.False(t, ours, must.Sprint(what))
		must.NoError(t, l.RemoveResolver("db"))
		after, err := os.Lstat(path)
		must.NoError(t, err)
		must.True(t, os.SameFile(before, after), must.Sprint(what))
		must.NoError(t, os.Remove(path))
	}
}

func TestLeftovers(t *testing.T) {
	l := layout(t)
	f, _, err := l.Make("db")
	must.NoError(t, err)
	must.NoError(t, f.Close())
	for _, name := range []string{"db", "other"} {
		_, err = l.WriteResolver(name)
		must.NoError(t, err)
	}
	var names []string
	for _, x := range l.Leftovers() {
		names = append(names, x.String())
	}
	must.Eq(t, []string{"network namespace " + l.Path("db"), "file " + l.ResolverPath("db"), "file " + l.ResolverPath("other")}, names)
	for _, x := range l.Leftovers() {
		must.NoError(t, x.Remove(t.Context()))
	}
	must.SliceEmpty(t, l.Leftovers())
}

func TestOpenRefuses(t *testing.T) {
	testhost.RequireRoot(t)
	file := filepath.Join(t.TempDir(), "file")
	must.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, path := range []string{file, "/proc/self/ns/mnt", "/dev/null", file + "-missing"} {
		_, err := Open(path)
		must.Error(t, err, must.Sprint(path))
	}
	own, err := Open("/proc/self/ns/net")
	must.NoError(t, err)
	defer own.Close()
	host, err := IsHost(own)
	must.NoError(t, err)
	must.True(t, host)
}

func TestCheckName(t *testing.T) {
	for name, valid := range map[string]bool{
		"db": true, "d": true, "db-1.a_b": true, strings.Repeat("a", 48): true,
		"": false, "-db": false, "db-": false, "DB": false, "a/b": false, "..": false, ".": false, "a b": false, "a@b": false, strings.Repeat("a", 49): false, "db\n": false,
	} {
		must.Eq(t, valid, CheckName(name) == nil, must.Sprintf("%q", name))
	}
	_, _, err := Layout{}.Make("../x")
	must.ErrorContains(t, err, "is not a name")
}

func TestProcesses(t *testing.T) {
	must.Eq(t, 12, ProcessOf("/proc/12/ns/net"))
	must.Eq(t, 12, ProcessOf("/proc/12/fd/3"))
	for _, path := range []string{"/run/netns/db", "/proc/self/ns/net", "/proc/99999999999999999999/ns/net", "/proc/12", "x/proc/12/"} {
		must.Zero(t, ProcessOf(path), must.Sprint(path))
	}
	child := exec.Command("sleep", "60")
	must.NoError(t, child.Start())
	began := Started(child.Process.Pid)
	must.NotEq(t, "", began)
	must.Eq(t, began, Started(child.Process.Pid))
	must.NoError(t, child.Process.Kill())
	var exit *exec.ExitError
	must.True(t, errors.As(child.Wait(), &exit))
	must.Eq(t, "", Started(child.Process.Pid))
	must.NotEq(t, "", Boot())
}
