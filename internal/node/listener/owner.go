// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package listener

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Owner is a process that has a socket.
type Owner struct {
	Name string
	PID  int
	Unit string // of systemd; empty if it is in none
}

// Owners returns the first process of each socket that can be seen, in one pass over all processes.
func Owners(sockets []Socket) map[Socket]Owner {
	wanted := map[string][]Socket{}
	for _, s := range sockets {
		if s.inode != 0 {
			link := fmt.Sprintf("socket:[%d]", s.inode)
			wanted[link] = append(wanted[link], s)
		}
	}
	owners := map[Socket]Owner{}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return owners
	}
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", p.Name())
		files, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			continue // it has ended
		}
		for _, f := range files {
			target, err := os.Readlink(filepath.Join(dir, "fd", f.Name()))
			if err != nil {
				continue
			}
			for _, s := range wanted[target] {
				if _, known := owners[s]; !known {
					owners[s] = owner(dir, pid)
				}
			}
		}
	}
	return owners
}

func owner(dir string, pid int) Owner {
	o := Owner{PID: pid}
	if name, err := os.ReadFile(filepath.Join(dir, "comm")); err == nil { // else it has just ended
		o.Name = strings.TrimSpace(string(name))
	}
	if groups, err := os.ReadFile(filepath.Join(dir, "cgroup")); err == nil {
		o.Unit = unitOf(string(groups))
	}
	return o
}

// unitOf returns the unit in /proc/<pid>/cgroup, whose lines are "0::/system.slice/ssh.service" or
// "1:name=systemd:/system.slice/ssh.service": of nested ones the innermost.
func unitOf(groups string) string {
	for line := range strings.Lines(groups) {
		parts := strings.Split(strings.TrimSpace(line), "/")
		for _, part := range slices.Backward(parts) {
			if strings.HasSuffix(part, ".service") {
				return part
			}
		}
	}
	return ""
}
