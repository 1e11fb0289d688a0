// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hostport

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Group is a cgroup of the unified hierarchy (cgroup v2) by its path from the root, as in the last
// field of /proc/PID/cgroup: "/system.slice/postgresql.service".
type Group string

// ErrNoHierarchy says that the machine has no cgroup v2.
var ErrNoHierarchy = errors.New("no cgroup v2 hierarchy is mounted, by which the packets of a process are told from those of others: " +
	"mount one (mount -t cgroup2 none /sys/fs/cgroup/unified), or leave out -cgroup and -unit; ports work without")

// hierarchy returns where cgroup v2 is mounted.
func hierarchy() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("look where cgroups are mounted: %w", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		mount, source, found := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(mount)
		// Only a mount of the root shows paths as the kernel means them.
		if found && strings.HasPrefix(source, "cgroup2 ") && len(fields) > 4 && fields[3] == "/" {
			return strings.ReplaceAll(fields[4], `\040`, " "), nil
		}
	}
	return "", ErrNoHierarchy
}

// ParseGroup returns the cgroup at a path, below the mounted hierarchy or below its root. It need
// not exist yet.
func ParseGroup(path string) (Group, error) {
	root, err := hierarchy()
	if err != nil {
		return "", err
	}
	clean := filepath.Clean("/" + path)
	if inside, below := strings.CutPrefix(clean+"/", root+"/"); below {
		clean = filepath.Clean("/" + inside)
	}
	if clean == "/" || strings.ContainsAny(clean, "\n\x00") {
		return "", fmt.Errorf("cgroup %q: a cgroup below the root is needed, which has every process of the machine", path)
	}
	return Group(clean), nil
}

// FindUnit returns the cgroup of a systemd unit: the one that it has, or the one that systemd will
// give it when it starts.
func FindUnit(name string) (Group, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") || !strings.Contains(name, ".") {
		return "", fmt.Errorf("unit %q: the name of a service, scope or slice is needed, such as postgresql.service", name)
	}
	root, err := hierarchy()
	if err != nil {
		return "", err
	}
	group, err := findUnit(root, name)
	if !errors.Is(err, errNotRunning) {
		return group, err
	}
	slice, asked := sliceOf(name)
	if asked != nil {
		return "", errors.Join(err, asked)
	}
	return Group(slicePath(slice) + "/" + name), nil
}

// errNotRunning says that a unit has no cgroup.
var errNotRunning = errors.New("it does not run; start it first, or give the path with -cgroup, which need not exist yet")

// sliceOf asks systemd in which slice a unit is, or will be.
func sliceOf(name string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=LoadState,Slice", "--", name).Output()
	if err != nil {
		return "", fmt.Errorf("ask systemd for the slice of unit %s: %w", name, err)
	}
	values := map[string]string{}
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[key] = value
	}
	if values["LoadState"] != "loaded" || values["Slice"] == "" {
		return "", fmt.Errorf("systemd does not know unit %s (%s)", name, cmp.Or(values["LoadState"], "no answer"))
	}
	return values["Slice"], nil
}

// slicePath returns the cgroup of a slice, whose name says which slices it is in: those of
// "a-b.slice" are "a.slice" and the root (systemd.slice(5)).
func slicePath(slice string) string {
	name := strings.TrimSuffix(slice, ".slice")
	if name == "-" {
		return ""
	}
	path := ""
	for i := range name {
		if name[i] == '-' {
			path += "/" + name[:i] + ".slice"
		}
	}
	return path + "/" + slice
}

func findUnit(root, name string) (Group, error) {
	var found []Group
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it has ended meanwhile
		}
		if err != nil || !entry.IsDir() || path == root {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return nil
		}
		// What is delegated to a user, the user names.
		if owner, ok := info.Sys().(*syscall.Stat_t); !ok || owner.Uid != 0 {
			return filepath.SkipDir
		}
		if entry.Name() == name {
			found = append(found, Group(strings.TrimPrefix(path, root)))
			return filepath.SkipDir
		}
		return nil
	})
	switch {
	case err != nil:
		return "", fmt.Errorf("look for the cgroup of unit %s: %w", name, err)
	case len(found) == 0:
		return "", fmt.Errorf("unit %s has no cgroup below %s: %w", name, root, errNotRunning)
	case len(found) > 1:
		return "", fmt.Errorf("unit %s has more than one cgroup, %s and %s: choose with -cgroup", name, found[0], found[1])
	}
	return found[0], nil
}

// level is how many cgroups the path has below the root.
func (g Group) level() uint32 { return uint32(strings.Count(string(g), "/")) }

// number returns what the kernel knows the cgroup by, which is another one when it is made anew; 0
// if it does not exist.
func (g Group) number() (uint64, error) {
	root, err := hierarchy()
	if err != nil {
		return 0, err
	}
	info, err := os.Stat(filepath.Join(root, string(g)))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look at cgroup %s: %w", g, err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() {
		return 0, fmt.Errorf("cgroup %s is not a directory of the hierarchy", g)
	}
	return stat.Ino, nil
}
