// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"fmt"
	"os"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"
)

// inNamespace runs f on a thread of the network namespace at path, or of the process's own if path
// is empty. Goroutines that f starts run in the process's own namespace.
func inNamespace(path string, f func() error) error {
	if path == "" {
		return f()
	}
	return ns.WithNetNSPath(path, func(ns.NetNS) error { return f() })
}

// namespaceID distinguishes namespaces that have the same path one after another.
type namespaceID struct{ dev, ino uint64 }

func identifyNamespace(path string) (namespaceID, error) {
	if path == "" {
		return namespaceID{}, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return namespaceID{}, fmt.Errorf("find the network namespace %s: %w", path, err)
	}
	return namespaceID{dev: uint64(st.Dev), ino: st.Ino}, nil
}

// currentNamespace identifies that of the calling thread.
func currentNamespace() (namespaceID, error) { return identifyNamespace("/proc/thread-self/ns/net") }

// reversePathFiltered reports whether the namespace's setting for all interfaces overrides that of
// the interface: the kernel applies the stricter of the two. It must run in that namespace.
func reversePathFiltered() bool {
	value, err := os.ReadFile("/proc/sys/net/ipv4/conf/all/rp_filter")
	return err == nil && len(value) > 0 && value[0] != '0'
}
