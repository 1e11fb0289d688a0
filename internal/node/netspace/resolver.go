// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package netspace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/sif-project/sif/internal/atomicfile"
	"github.com/sif-project/sif/internal/wellknown"
)

// tag is the first line of each file that we write.
const tag = "# Written by sif, which also removes it. Without this line the file stays as it is.\n"

// Resolver is the content of a resolv.conf that asks the fabric's resolver, and nobody else.
func Resolver() []byte {
	return fmt.Appendf([]byte(tag), "nameserver %s\n", wellknown.LinkLocal4)
}

// ResolverPath returns where ip-netns(8) and units look for the resolv.conf of a namespace.
func (l Layout) ResolverPath(name string) string {
	return filepath.Join(l.Config, name, "resolv.conf")
}

// WriteResolver writes the resolv.conf of a namespace. It leaves alone, and reports as false, a
// file that is somebody else's.
func (l Layout) WriteResolver(name string) (ours bool, err error) {
	if err := CheckName(name); err != nil {
		return false, err
	}
	path := l.ResolverPath(name)
	switch ours, err = isOurs(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return false, fmt.Errorf("look at %s: %w", path, err)
	case !ours:
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, fmt.Errorf("create the directory of %s: %w", path, err)
	}
	return true, atomicfile.WriteLazily(path, Resolver(), 0o644)
}

// RemoveResolver removes the resolv.conf of a namespace if it is ours, and the directory if nothing
// is left in it.
func (l Layout) RemoveResolver(name string) error {
	if CheckName(name) != nil {
		return nil // WriteResolver writes none for it
	}
	path := l.ResolverPath(name)
	ours, err := isOurs(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at %s: %w", path, err)
	case !ours:
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the resolver of namespace %s: %w", name, err)
	}
	_ = os.Remove(filepath.Dir(path)) // fails if somebody has files there
	_ = os.Remove(l.Config)
	return nil
}

// isOurs reports whether a file has our tag.
func isOurs(path string) (bool, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() {
		return false, nil
	}
	text, err := os.ReadFile(path)
	return strings.HasPrefix(string(text), tag), err
}
