// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// remnants finds and removes what a lab left on the machine. It needs only the lab's name, because
// the lab's own files may be missing or incomplete.
type remnants struct {
	lab string
}

// remove removes everything in an order in which nothing is still in use: processes, mounts,
// namespaces, links, control groups, files. It continues after an error and returns all errors.
func (r remnants) remove(ctx context.Context) error {
	var errs []error
	settings := r.savedSettings()
	allocs := r.allocations()
	r.thaw(allocs)
	// A process may start another one while we kill, so repeat.
	for range 5 {
		pids := r.processes()
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				errs = append(errs, fmt.Errorf("kill process %d: %w", pid, err))
			}
		}
		if err := waitGone(pids, 10*time.Second); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, r.unmount(allocs)...)
	errs = append(errs, r.removeNamespaces(ctx, allocs)...)
	if link, err := netlinksafe.LinkByName(hostLink(r.lab)); err == nil {
		// The kernel removes it with its peer, some time after the peer's namespace.
		if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove link %s: %w", hostLink(r.lab), err))
		}
	}
	errs = append(errs, r.removeCgroups(allocs)...)
	for _, dir := range []string{filepath.Join(runRoot, r.lab), filepath.Join(varRoot, r.lab)} {
		if err := os.RemoveAll(dir); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", dir, err))
		}
	}
	for _, dir := range []string{runRoot, varRoot} {
		removeEmpty(dir)
	}
	removeSharedEmpty()
	if settings.ReceiveBuffer != "" {
		if err := settings.restore(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// restore gives the machine the settings from before a lab, or leaves that to another lab that
// still runs with them.
func (s hostSettings) restore() error {
	others, err := filepath.Glob(filepath.Join(runRoot, "*"))
	if err != nil {
		return err
	}
	if len(others) == 0 {
		return sysctl(receiveBufferKey, s.ReceiveBuffer)
	}
	heir := filepath.Base(others[0])
	if _, err := os.Stat(hostSettingsFile(heir)); err == nil {
		return nil // it raised them at the same time
	}
	if err := writeJSON(hostSettingsFile(heir), s); err != nil {
		return fmt.Errorf("leave the machine's settings to lab %s: %w", heir, err)
	}
	return nil
}

// savedSettings returns the machine's settings from before the lab changed them. It returns an
// empty value if the lab changed none.
func (r remnants) savedSettings() hostSettings {
	var s hostSettings
	if err := readJSON(hostSettingsFile(r.lab), &s); err != nil {
		return hostSettings{}
	}
	return s
}

// allocations lists the IDs of Nomad allocations that have a directory in the lab. Their network
// namespaces are named after the IDs.
func (r remnants) allocations() []string {
	dirs, err := filepath.Glob(filepath.Join(varRoot, r.lab, "*", "nomad", "alloc", "*-*"))
	if err != nil {
		return nil
	}
	for i, d := range dirs {
		dirs[i] = filepath.Base(d)
	}
	return dirs
}

// processes finds the lab's processes by their environment, by the control groups of its tasks and
// containers, and by their network namespace. The last two find tasks and containers, which do not
// inherit the lab's environment.
func (r remnants) processes() []int {
	found := map[int]bool{}
	for _, dir := range r.cgroups(r.allocations()) {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(f); err == nil {
				found[pid] = true
			}
		}
	}
	namespaces := map[inode]bool{}
	for _, path := range r.namespacePaths(r.allocations()) {
		if id, ok := inodeOf(path); ok {
			namespaces[id] = true
		}
	}
	tag := []byte(labVariable + "=" + r.lab)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		environ, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err == nil && slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(v []byte) bool { return bytes.Equal(v, tag) }) {
			found[pid] = true
		}
		if id, ok := inodeOf(filepath.Join("/proc", e.Name(), "ns/net")); ok && namespaces[id] {
			found[pid] = true
		}
	}
	delete(found, os.Getpid())
	delete(found, os.Getppid())
	delete(found, 1)
	var pids []int
	for pid := range found {
		if _, err := bornAt(pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

type inode struct{ dev, ino uint64 }

func inodeOf(path string) (inode, bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return inode{}, false
	}
	return inode{dev: uint64(st.Dev), ino: st.Ino}, true
}

func (r remnants) namespacePaths(allocs []string) []string {
	paths, err := filepath.Glob(filepath.Join(netnsDir, "sif-"+r.lab+"-*"))
	if err != nil {
		return nil
	}
	for _, a := range allocs {
		if path := filepath.Join(netnsDir, a); exists(path) {
			paths = append(paths, path)
		}
	}
	return paths
}

// unmount unmounts everything under the lab's paths, the last mount first.
func (r remnants) unmount(allocs []string) []error {
	mounts, err := r.mounts(allocs)
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	return errs
}

// mounts lists the mounts under the lab's paths, oldest first.
func (r remnants) mounts(allocs []string) ([]string, error) {
	prefixes := []string{filepath.Join(runRoot, r.lab) + "/", filepath.Join(varRoot, r.lab) + "/"}
	for _, a := range allocs {
		prefixes = append(prefixes, filepath.Join("/run/netns", a), filepath.Join(netnsDir, a))
	}
	list, err := mountPoints()
	return slices.DeleteFunc(list, func(m string) bool {
		return !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(m, p) })
	}), err
}

// Freeze and Thaw of a file system: FIFREEZE and FITHAW of linux/fs.h.
const (
	Freeze = 0xc0045877
	Thaw   = 0xc0045878
)

// thaw lets file systems go on that a program has frozen and not thawed before it was killed. A
// process that waits for one cannot be killed, nor does its device become free.
func (r remnants) thaw(allocs []string) {
	mounts, err := r.mounts(allocs)
	if err != nil {
		return // unmount reports it
	}
	for _, m := range mounts {
		if fd, err := unix.Open(m, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err == nil {
			_ = unix.IoctlSetInt(fd, Thaw, 0) // most are not frozen
			_ = unix.Close(fd)
		}
	}
}

// mountPoints lists the mounts of this mount namespace, oldest first.
func mountPoints() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var points []string
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 4 {
			points = append(points, unescape.Replace(fields[4]))
		}
	}
	return points, nil
}

func (r remnants) removeNamespaces(ctx context.Context, allocs []string) []error {
	var errs []error
	for _, path := range r.namespacePaths(allocs) {
		name := filepath.Base(path)
		if out, err := exec.CommandContext(ctx, "ip", "netns", "del", name).CombinedOutput(); err != nil {
			// If it was unmounted already, only the file is left.
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove namespace %s: %w: %s", name, err, out))
			}
		}
	}
	return errs
}

// cgroupParent is the parent control group of a node's tasks and containers.
func cgroupParent(lab, node string) string { return "sif-" + lab + "-" + node }

// cgroups lists the lab's control groups in all hierarchies, parents first. With cgroups v1 Nomad
// ignores the configured parent and names its groups after the allocations.
func (r remnants) cgroups(allocs []string) []string {
	patterns := []string{"/sys/fs/cgroup/sif-" + r.lab + "-*", "/sys/fs/cgroup/*/sif-" + r.lab + "-*"}
	for _, a := range allocs {
		patterns = append(patterns, "/sys/fs/cgroup/*/nomad/"+a+".*", "/sys/fs/cgroup/*/nomad/*/"+a+".*")
	}
	var dirs, roots []string
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		if err == nil {
			roots = append(roots, found...)
		}
	}
	for _, root := range roots {
		// A group may disappear during the walk; then it needs no removal.
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
	}
	return dirs
}

func (r remnants) removeCgroups(allocs []string) []error {
	var errs []error
	for _, dir := range slices.Backward(r.cgroups(allocs)) {
		var err error
		// The kernel releases the group of a dead process a moment after its end.
		for range 100 {
			if err = unix.Rmdir(dir); err == nil || errors.Is(err, unix.ENOENT) {
				err = nil
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove control group %s: %w", dir, err))
		}
	}
	return errs
}

// cniResults is where the CNI library of Nomad's client keeps the results of ADD, a file for each
// network, container and interface.
const cniResults = "/var/lib/cni/results"

// removeCNIResults removes the results that a killed Nomad client left: those of the fabric's
// network for allocations without a network namespace.
func removeCNIResults() {
	files, _ := filepath.Glob(filepath.Join(cniResults, "sif-*-eth0")) // the pattern is well-formed
	for _, f := range files {
		alloc := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "sif-"), "-eth0")
		if !exists(filepath.Join(netnsDir, alloc)) {
			_ = os.Remove(f)
		}
	}
}

// removeSharedEmpty removes shared directories that the lab's programs made, if they are empty:
// those of the CNI library, Nomad's own control groups with cgroups v1, the directory of named
// namespaces, and the directories of Docker and containerd outside their roots.
func removeSharedEmpty() {
	if !running("nomad") {
		removeCNIResults()
		removeEmpty(cniResults)
		removeEmpty(filepath.Dir(cniResults))
		// A group is busy until init has reaped its last process. A group that stays busy contains
		// tasks of another Nomad.
		for deadline := time.Now().Add(3 * time.Second); !removeNomadGroups() && time.Now().Before(deadline); {
			time.Sleep(50 * time.Millisecond)
		}
	}
	if names, err := os.ReadDir("/run/netns"); err == nil && len(names) == 0 {
		for unix.Unmount("/run/netns", 0) == nil {
		}
		_ = unix.Rmdir("/run/netns")
	}
	removeShimSockets()
	if !running("dockerd") {
		for _, dir := range []string{
			"/run/docker/plugins", "/run/docker", "/opt/containerd/bin", "/opt/containerd/lib", "/opt/containerd",
		} {
			removeEmpty(dir)
		}
	}
}

// removeNomadGroups removes Nomad's own control groups and reports whether all of them are gone.
func removeNomadGroups() bool {
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/nomad/*") // the pattern is well-formed
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/nomad")
	var busy bool
	for _, dir := range append(groups, roots...) {
		if info, err := os.Stat(dir); err == nil && info.IsDir() && unix.Rmdir(dir) != nil {
			busy = true
		}
	}
	return !busy
}

// running reports whether a program of that name runs on this machine.
func running(name string) bool {
	files, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is well-formed
	return slices.ContainsFunc(files, func(f string) bool {
		comm, err := os.ReadFile(f)
		if err != nil || strings.TrimSpace(string(comm)) != name {
			return false
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			return false
		}
		_, err = bornAt(pid)
		return err == nil
	})
}

// removeShimSockets removes sockets of containerd on which nothing listens any more. They are the
// only files of the lab's Docker engines outside the lab's directories.
func removeShimSockets() {
	const dir = "/run/containerd/s"
	sockets, err := filepath.Glob(dir + "/*")
	if err != nil {
		return
	}
	hash := regexp.MustCompile(`^[0-9a-f]{64}$`)
	for _, s := range sockets {
		if !hash.MatchString(filepath.Base(s)) {
			continue
		}
		conn, err := net.Dial("unix", s)
		if err == nil {
			conn.Close()
			continue
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			_ = os.Remove(s)
		}
	}
	removeEmpty(dir)
	removeEmpty(filepath.Dir(dir))
}

// removeEmpty removes a directory if it is empty. Another lab may still use it.
func removeEmpty(dir string) { _ = unix.Rmdir(dir) }

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
