// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package probe measures what the network does between two endpoints: it sends single packets from
// the namespace of one and captures them in the namespace of the other. So the workload need not
// listen, and a silent workload can be told from a lost packet. It knows namespaces, interfaces and
// packets. It does not know which packets should pass.
package probe

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
)

// ErrNoNamespace says that neither a process nor a mount refers to the namespace at the other end
// of an interface, although the interface exists.
var ErrNoNamespace = errors.New("cannot find the network namespace of the workload")

// Finder finds the namespace at the other end of a veth pair by the name of this end. It caches the
// paths of namespaces, which does not keep them alive. The zero Finder is ready to use. It is safe
// for concurrent use.
type Finder struct {
	mu    sync.Mutex
	paths map[string]place // by interface
}

// place is the path of a namespace, and its inode, by which another namespace at the same path is
// told from it.
type place struct {
	path  string
	inode uint64
}

// Find opens the namespace at the other end of hostIf, an interface in the network namespace of
// this process. The caller must close it soon, because an open namespace stays alive after its
// workload.
func (f *Finder) Find(hostIf string) (ns.NetNS, error) {
	link, err := netlinksafe.LinkByName(hostIf)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", hostIf, err)
	}
	id := link.Attrs().NetNsID
	if id < 0 {
		return nil, fmt.Errorf("interface %s has its other end in the same namespace", hostIf)
	}
	f.mu.Lock()
	known := f.paths[hostIf]
	f.mu.Unlock()
	if known.path != "" {
		if space := openIf(known.path, id); space != nil {
			return space, nil
		}
	}
	space, path, err := search(id)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		delete(f.paths, hostIf)
		return nil, fmt.Errorf("interface %s: %w", hostIf, err)
	}
	if f.paths == nil {
		f.paths = map[string]place{}
	}
	f.paths[hostIf] = place{path, inodeOf(path)}
	return space, nil
}

// Last opens the namespace that Find found last for an interface, if it still exists where it was.
// The interface need not exist any more. It returns nil if there is none. The caller must close it.
func (f *Finder) Last(hostIf string) *os.File {
	f.mu.Lock()
	known := f.paths[hostIf]
	f.mu.Unlock()
	if known.path == "" {
		return nil
	}
	file, err := os.Open(known.path)
	if err != nil {
		return nil
	}
	var st unix.Stat_t
	if unix.Fstat(int(file.Fd()), &st) != nil || st.Ino != known.inode {
		file.Close()
		return nil
	}
	return file
}

func inodeOf(path string) uint64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}

// search looks for the namespace that has the ID id in this one among mounted namespaces and those
// of all processes.
func search(id int) (ns.NetNS, string, error) {
	seen := map[uint64]bool{}
	for _, list := range []func() []string{mounted, byProcess} {
		for _, path := range list() {
			var st unix.Stat_t
			if unix.Stat(path, &st) != nil || seen[st.Ino] {
				continue
			}
			seen[st.Ino] = true
			if space := openIf(path, id); space != nil {
				return space, path, nil
			}
		}
	}
	return nil, "", ErrNoNamespace
}

// openIf opens the namespace at path if its ID in this one is id, and returns nil otherwise.
func openIf(path string, id int) ns.NetNS {
	space, err := ns.GetNS(path)
	if err != nil {
		return nil
	}
	if got, err := netlink.GetNetNsIdByFd(int(space.Fd())); err != nil || got != id {
		space.Close()
		return nil
	}
	return space
}

// mounted lists the mount points of namespaces. Nomad mounts those of its allocations, Docker those
// of its containers.
func mounted() []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var paths []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		before, after, _ := strings.Cut(lines.Text(), " - ") // proc(5)
		fields := strings.Fields(before)
		if strings.HasPrefix(after, "nsfs ") && len(fields) > 4 && strings.HasPrefix(fields[3], "net:") {
			paths = append(paths, fields[4])
		}
	}
	return paths
}

func byProcess() []string {
	paths, _ := filepath.Glob("/proc/[0-9]*/ns/net") // the pattern is well-formed
	return paths
}

// Listening reports whether a socket in the namespace listens at an address and port, on the
// address itself or on all addresses.
func Listening(namespace ns.NetNS, at netip.AddrPort, protocol fabric.Protocol) (bool, error) {
	found := false
	err := namespace.Do(func(ns.NetNS) error {
		for _, version := range []string{"", "6"} {
			table := "/proc/thread-self/net/" + protocol.String() + version
			content, err := os.ReadFile(table)
			if errors.Is(err, fs.ErrNotExist) {
				continue // a kernel without IPv6
			}
			if err != nil {
				return fmt.Errorf("list the sockets of the workload: %w", err)
			}
			found = found || listens(string(content), at, protocol)
		}
		return nil
	})
	return found, err
}
