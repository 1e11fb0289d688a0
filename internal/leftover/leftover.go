// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package leftover describes what a daemon made on a machine, so that it can be listed and taken
// away when the machine leaves the fabric, whether the daemon runs or not. Who makes something says
// where it is. The package knows files and interfaces; it does not know what they are for.
package leftover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Leftover is something that is on the machine.
type Leftover struct {
	Kind string `json:"kind"`
	Name string `json:"name"`

	// Remove takes it away. It is no error if it has gone meanwhile.
	Remove func(context.Context) error `json:"-"`
}

func (l Leftover) String() string { return l.Kind + " " + l.Name }

// Kinds of leftovers that several daemons make.
const (
	KindInterface = "interface"
	KindFile      = "file"
	KindDirectory = "directory"
)

// Interfaces returns the interfaces of the network namespace of the calling thread whose names
// match.
func Interfaces(match func(name string) bool) ([]Leftover, error) {
	links, err := netlinksafe.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	var list []Leftover
	for _, l := range links {
		name := l.Attrs().Name
		if !match(name) {
			continue
		}
		list = append(list, Leftover{KindInterface, name, func(context.Context) error {
			err := netlink.LinkDel(l)
			if missing := (netlink.LinkNotFoundError{}); err != nil {
				if _, gone := netlink.LinkByName(name); errors.As(gone, &missing) {
					return nil // with its peer
				}
				return fmt.Errorf("delete interface %s: %w", name, err)
			}
			return nil
		}})
	}
	return list, nil
}

// Files returns those of the files that exist.
func Files(paths ...string) []Leftover {
	var list []Leftover
	for _, path := range paths {
		if info, err := os.Lstat(path); err != nil || info.IsDir() {
			continue
		}
		list = append(list, Leftover{KindFile, path, func(context.Context) error {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove the file: %w", err)
			}
			return nil
		}})
	}
	return list
}

// Directory returns a directory with all that is in it. With keep it stays, empty.
func Directory(path string, keep bool) []Leftover {
	entries, err := os.ReadDir(path)
	if err != nil || keep && len(entries) == 0 {
		return nil
	}
	name := path
	if keep {
		name = "content of " + path
	}
	return []Leftover{{KindDirectory, name, func(context.Context) error {
		if !keep {
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("remove the directory: %w", err)
			}
			return nil
		}
		var errs []error
		for _, e := range entries {
			errs = append(errs, os.RemoveAll(path+"/"+e.Name()))
		}
		return errors.Join(errs...)
	}}}
}

// EmptyDirectory returns a directory that is removed if nothing is in it any more.
func EmptyDirectory(path string) []Leftover {
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return nil
	}
	return []Leftover{{KindDirectory, path, func(context.Context) error {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("remove the directory: %w", err)
		}
		return nil
	}}}
}
