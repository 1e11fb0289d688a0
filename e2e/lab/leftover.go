// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"bytes"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Machine lists everything that a lab of a name could leave on this machine: namespaces, links,
// mounts, pins, control groups, nftables rules, files and processes. What other labs have is left
// out.
func Machine(lab string) map[string]bool {
	found := map[string]bool{}
	add := func(kind string, names ...string) {
		for _, n := range names {
			found[kind+" "+n] = true
		}
	}
	for _, pattern := range []string{
		"/run/netns/*", "/run/*", "/run/sif*/*", "/run/docker/*", "/run/containerd/*", "/run/openvswitch/*",
		"/var/lib/*", "/var/lib/sif*/*", "/var/log/openvswitch/*", "/etc/docker/*", "/etc/cni/*", "/opt/*", "/opt/cni/*",
		"/sys/class/net/*", "/sys/fs/bpf/*",
	} {
		names, err := filepath.Glob(pattern)
		if err == nil {
			add("file", names...)
		}
	}
	if sockets, err := filepath.Glob("/run/containerd/s/*"); err == nil {
		// Sockets with a listener belong to another Docker engine: the lab's engines have ended.
		add("file", slices.DeleteFunc(sockets, listenedOn)...)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(mounts)) {
			if fields := strings.Fields(line); len(fields) > 4 && !strings.HasPrefix(fields[4], os.TempDir()) {
				add("mount", fields[4])
			}
		}
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && (strings.Contains(path, "sif-") || strings.Contains(path, "nomad") || strings.Contains(path, "docker")) {
			add("cgroup", path)
		}
		return nil
	})
	if rules, err := exec.Command("nft", "list", "tables").Output(); err == nil {
		for line := range strings.Lines(string(rules)) {
			add("nftables", strings.TrimSpace(line))
		}
	}
	if size, err := os.ReadFile("/proc/sys/net/core/rmem_default"); err == nil {
		add(hostSetting+"rmem_default", strings.TrimSpace(string(size)))
	}
	for _, p := range tagged() {
		add("process", p)
	}
	others := otherLabs(lab)
	maps.DeleteFunc(found, func(thing string, _ bool) bool {
		return slices.ContainsFunc(others, func(mark string) bool { return strings.Contains(thing, mark) })
	})
	return found
}

// listenedOn reports whether a process listens on a unix socket.
func listenedOn(path string) bool {
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// otherLabs returns texts that occur in the names of other labs' objects.
func otherLabs(lab string) []string {
	dirs, err := filepath.Glob(filepath.Join(varRoot, "*"))
	if err != nil {
		return nil
	}
	var marks []string
	for _, dir := range dirs {
		if name := filepath.Base(dir); name != lab {
			marks = append(marks, "sif-lab/"+name, "sif-"+name+"-", labVariable+"="+name)
		}
	}
	return marks
}

// allocation matches the ID of a Nomad allocation, after which its namespace, control groups and
// directories are named.
var allocation = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// tagged lists the processes of labs and of Nomad's allocations with their command lines.
func tagged() []string {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	var list []string
	for _, dir := range dirs {
		environ, err := os.ReadFile(dir + "/environ")
		if err != nil {
			continue
		}
		cgroup, _ := os.ReadFile(dir + "/cgroup") // the process has ended
		ours := bytes.Contains(environ, []byte(labVariable+"=")) || bytes.Contains(environ, []byte("NOMAD_ALLOC_ID=")) ||
			bytes.Contains(cgroup, []byte("/nomad/")) || bytes.Contains(cgroup, []byte("/sif-"))
		if !ours {
			continue
		}
		cmdline, _ := os.ReadFile(dir + "/cmdline") // empty for a zombie
		if len(cmdline) == 0 {
			continue // it has ended, but init has not reaped it yet
		}
		text := string(bytes.ReplaceAll(bytes.TrimRight(cmdline, "\x00"), []byte{0}, []byte{' '}))
		for v := range bytes.SplitSeq(environ, []byte{0}) {
			if bytes.HasPrefix(v, []byte(labVariable+"=")) || bytes.HasPrefix(v, []byte("NOMAD_ALLOC_ID=")) {
				text += " " + string(v)
			}
		}
		for group := range strings.FieldsSeq(string(cgroup)) {
			if strings.Contains(group, "/nomad/") || strings.Contains(group, "/sif-") {
				text += " " + group
				break
			}
		}
		list = append(list, filepath.Base(dir)+" "+text)
	}
	return list
}

// hostSetting is how settings of the machine begin in the list of what it has.
const hostSetting = "net.core."

// Remains returns what appeared or disappeared since Machine listed it before. It waits, because
// the kernel releases some objects a moment later. Objects with an allocation's name count only if
// the allocation is in allocs, because another lab may be up.
func Remains(lab string, before map[string]bool, allocs []string, within time.Duration) []string {
	deadline := time.Now().Add(within)
	for {
		var list []string
		now := Machine(lab)
		shared := len(otherLabs(lab)) > 0 // a lab that goes on keeps the machine's settings
		for thing := range now {
			if shared && strings.HasPrefix(thing, hostSetting) {
				continue
			}
			if id := allocation.FindString(thing); !before[thing] && (id == "" || slices.Contains(allocs, id)) {
				list = append(list, thing)
			}
		}
		for thing := range before {
			if strings.HasPrefix(thing, hostSetting) && !now[thing] && !shared {
				list = append(list, "no longer "+thing)
			}
		}
		if len(list) == 0 || time.Now().After(deadline) {
			slices.Sort(list)
			return list
		}
		time.Sleep(200 * time.Millisecond)
	}
}
