// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/node/kernel"
)

// IPv6 looks for IPv6, which every endpoint and every link has. Sysctls that switch it off for
// other interfaces do not matter: ours have it on.
func IPv6() Finding {
	f := Finding{"ipv6", "IPv6", Well, "is there", ""}
	if !kernel.HasIPv6() {
		return Finding{f.Check, f.Subject, Wrong, "is not in this kernel, and every endpoint and every link has it", "remove ipv6.disable=1 from the kernel's command line and boot again"}
	}
	if text, err := os.ReadFile("/proc/sys/net/ipv6/conf/default/disable_ipv6"); err == nil && strings.TrimSpace(string(text)) == "1" {
		f.Detail = "is there; it is off on new interfaces, and on for the fabric's own"
	}
	return f
}

// unsynchronised is the state of adjtimex(2) in which nothing keeps the clock right (TIME_ERROR).
const unsynchronised = 5

// ClockKept looks whether something keeps the clock of the machine right.
func ClockKept() Finding {
	f := Finding{"clock", "the machine's clock", Well, "is kept right", ""}
	var state unix.Timex
	code, err := unix.Adjtimex(&state)
	switch {
	case err != nil:
		return failed(f.Check, f.Subject, err)
	case code == unsynchronised || state.Status&unix.STA_UNSYNC != 0:
		f.Result, f.Detail = Warning, "is not kept right by anything, and certificates and admissions expire by it"
		f.Remedy = "timedatectl set-ntp true (with systemd-timesyncd or chrony installed)"
	}
	return f
}

// The room that a node needs for its state, and what it should have for logs and many endpoints.
const (
	leastRoom  = 64 << 20
	enoughRoom = 512 << 20
	fewInodes  = 1000
)

// The least that is left to a running node before it is told.
const nearlyFull = 4 << 20

const checkDisk = "disk"

const makeRoom = "make room there, or set data_dir to a directory of another disk"

// Disk looks at the disk of a directory, which need not exist yet: whether a node can keep its
// state there.
func Disk(dir string) Finding {
	fs, err := disk(dir)
	if err != nil {
		return failed(checkDisk, dir, err)
	}
	room := fs.Bavail * uint64(fs.Bsize)
	f := Finding{checkDisk, dir, Well, fmt.Sprintf("has %d MiB free", room>>20), ""}
	wrong := func(r Result, detail, remedy string) { f.Result, f.Detail, f.Remedy = r, detail, remedy }
	switch {
	case fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC:
		wrong(Wrong, "is in memory (tmpfs), and what a node keeps must survive a reboot", "set data_dir to a directory on a disk")
	case fs.Flags&unix.ST_RDONLY != 0:
		wrong(Wrong, "is on a file system that is mounted read-only", "mount it read-write, or set data_dir to a directory of another one")
	case room < leastRoom:
		wrong(Wrong, fmt.Sprintf("%s, a node needs %d", f.Detail, leastRoom>>20), makeRoom)
	case fs.Files > 0 && fs.Ffree < fewInodes:
		wrong(Wrong, fmt.Sprintf("has inodes for %d files only", fs.Ffree), makeRoom)
	case room < enoughRoom:
		wrong(Warning, fmt.Sprintf("%s, %d are advised", f.Detail, enoughRoom>>20), makeRoom)
	}
	return f
}

// Room looks whether a running node can go on writing to a directory.
func Room(dir string) Finding {
	fs, err := disk(dir)
	if err != nil {
		return failed(checkDisk, dir, err)
	}
	room := fs.Bavail * uint64(fs.Bsize)
	f := Finding{checkDisk, dir, Well, fmt.Sprintf("has %d MiB free", room>>20), ""}
	switch {
	case fs.Flags&unix.ST_RDONLY != 0:
		f.Result, f.Detail, f.Remedy = Wrong, "is on a file system that is mounted read-only", "mount it read-write"
	case room < nearlyFull:
		f.Result, f.Detail, f.Remedy = Wrong, fmt.Sprintf("has %d KiB free", room>>10), "make room there"
	}
	return f
}

// disk describes the file system of a directory, or of the nearest one above that exists.
func disk(dir string) (fs unix.Statfs_t, err error) {
	for {
		err = unix.Statfs(dir, &fs)
		if !errors.Is(err, unix.ENOENT) || dir == filepath.Dir(dir) {
			return fs, err
		}
		dir = filepath.Dir(dir)
	}
}

// Underlay looks for the address of the node on an interface; any if the name is empty.
func Underlay(address netip.Addr, device string) Finding {
	f := Finding{"underlay", fmt.Sprintf("the underlay address %s", address), Well, "", ""}
	const remedy = "give the address to the interface again, or set underlay.address and underlay.interface to what \"ip address\" shows, and restart the daemons"
	interfaces, err := net.Interfaces()
	if err != nil {
		return failed(f.Check, f.Subject, err)
	}
	for _, i := range interfaces {
		addresses, err := i.Addrs()
		if err != nil {
			continue // it is gone
		}
		for _, a := range addresses {
			p, err := netip.ParsePrefix(a.String())
			if err != nil || p.Addr() != address {
				continue
			}
			switch {
			case device != "" && i.Name != device:
				f.Result, f.Detail, f.Remedy = Wrong, fmt.Sprintf("is on the interface %s, not on %s", i.Name, device), remedy
			case i.Flags&net.FlagUp == 0:
				f.Result, f.Detail, f.Remedy = Wrong, fmt.Sprintf("is on the interface %s, which is down", i.Name), "ip link set "+i.Name+" up"
			default:
				f.Detail = fmt.Sprintf("is on the interface %s, MTU %d", i.Name, i.MTU)
			}
			return f
		}
	}
	f.Result, f.Detail, f.Remedy = Wrong, "is not an address of this machine", remedy
	return f
}
