// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package workloadapi

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/wellknown"
)

// socket is the socket in a directory that workloads have mounted. The directory stays the same one
// over restarts, and with it what they see; the socket in it is replaced.
type socket struct {
	dir      string
	listener *net.UnixListener
	inode    uint64
}

// ensure returns a new listener if the socket is not there, or is not ours; nil if it is.
func (s *socket) ensure() (net.Listener, error) {
	path := filepath.Join(s.dir, wellknown.WorkloadAPISocket)
	if s.listener != nil && inodeOf(path) == s.inode {
		return nil, s.permit(path)
	}
	s.close()
	if err := s.check(); err != nil {
		return nil, err
	}
	// It appears by a rename, so that no caller ever finds none, or one that it may not use.
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove what is left of a socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // by then there may be another one at the path
	inode := inodeOf(fresh)
	if err = s.permit(fresh); err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("put the socket %s in place: %w", path, err)
	}
	s.listener, s.inode = l, inode
	return l, nil
}

// permit lets everybody connect. Who gets something is decided by where a process is, and
// applications have users of their own.
func (s *socket) permit(path string) error {
	info, err := os.Lstat(path)
	if err == nil && info.Mode().Perm() != 0o777 {
		err = os.Chmod(path, 0o777)
	}
	if err != nil {
		return fmt.Errorf("permit connections: %w", err)
	}
	return nil
}

// check makes the directory, and refuses one in which others than the agent's user can put another
// socket.
func (s *socket) check() error {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return fmt.Errorf("create the directory of the socket: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(s.dir, &st); err != nil {
		return fmt.Errorf("look at the directory of the socket %s: %w", s.dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is not a directory: remove it, or name another one in block \"workload_api\"", s.dir)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, who could put another socket there: chown it to %d", s.dir, st.Uid, os.Geteuid())
	}
	if err := os.Chmod(s.dir, 0o755); err != nil { // whatever the umask is
		return fmt.Errorf("set the permissions of the directory of the socket: %w", err)
	}
	return nil
}

func (s *socket) close() {
	if s.listener != nil {
		s.listener.Close() // what is connected goes on
		s.listener = nil
	}
}

// inodeOf returns the inode at a path, or 0 if there is none.
func inodeOf(path string) uint64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	return st.Ino
}
