// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package machines

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// bootTimeout bounds the time from power-on until SSH answers. Under emulation on two busy cores a
// boot takes one to two minutes.
const bootTimeout = 15 * time.Minute

// Spec says what machine to boot.
type Spec struct {
	Name     string // in the world
	Zone     string // "": the first zone
	Host     byte   // the last byte of its address; 0: the next free one
	Image    string // debian12 or debian13
	Hostname string // "": the name
	MemoryMB int    // 0: 1024
	CPUs     int    // 0: 2
	Mask     []string
	// Files are in the machine's file system before it starts any service, at its first boot.
	Files []File
}

// File is a file to copy into a machine. Directories are made as needed.
type File struct {
	From string // a path on this machine; "": Data
	Data string
	To   string // an absolute path in the machine
	Mode int64  // 0: that of From, or 0644
}

// Lean lists the units of the image that a machine does without that only runs a test binary.
func Lean() []string {
	return []string{
		"docker.service", "docker.socket", "containerd.service", "unattended-upgrades.service", "apt-daily.timer",
		"apt-daily-upgrade.timer", "systemd-networkd-wait-online.service", "ovs-record-hostname.service",
		"e2scrub_reap.service", "modprobe@dm_mod.service", "modprobe@fuse.service", "modprobe@loop.service",
		"getty@tty1.service",
	}
}

// Machine is a virtual machine of a world.
type Machine struct {
	Name     string
	Zone     string
	Image    string // the image's directory
	Hostname string
	Address  netip.Addr
	MemoryMB int
	CPUs     int
	Mask     []string
	PID      int
	Born     uint64

	world *World
}

// Boot defines a machine and starts it. AwaitBoot waits until it can be used.
func (w *World) Boot(ctx context.Context, s Spec) (*Machine, error) {
	if !names.MatchString(s.Name) {
		return nil, fmt.Errorf("the name of a machine must match %s, %q does not", names, s.Name)
	}
	image, err := Image(ctx, s.Image, w.out)
	if err != nil {
		return nil, err
	}
	unlock, err := w.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	// Another program may have added machines since this one read the world's file.
	if now, err := Open(w.Name, w.out); err == nil {
		w.Machines = now.Machines
		for _, m := range w.Machines {
			m.world = w
		}
	}
	if _, err := w.Machine(s.Name); err == nil {
		return nil, fmt.Errorf("the world %s already has a machine %s", w.Name, s.Name)
	}
	if s.Zone == "" {
		s.Zone = w.Zones[0].Name
	}
	zone, err := w.zone(s.Zone)
	if err != nil {
		return nil, err
	}
	m := &Machine{Name: s.Name, Zone: s.Zone, Image: image, Hostname: s.Hostname, MemoryMB: s.MemoryMB, CPUs: s.CPUs, Mask: s.Mask, world: w}
	if m.Hostname == "" {
		m.Hostname = m.Name
	}
	if m.MemoryMB == 0 {
		m.MemoryMB = 1024
	}
	if m.CPUs == 0 {
		m.CPUs = 2
	}
	if s.Host == 0 {
		for s.Host = 11; slices.ContainsFunc(w.Machines, func(o *Machine) bool { return o.Address == host(zone.Subnet, s.Host) }); {
			s.Host++
		}
	}
	m.Address = host(zone.Subnet, s.Host)
	if err := m.define(ctx, s.Files); err != nil {
		return nil, err
	}
	w.Machines = append(w.Machines, m)
	if err := w.save(); err != nil {
		return nil, err
	}
	return m, m.Start(ctx)
}

func host(subnet netip.Prefix, last byte) netip.Addr {
	b := subnet.Addr().As4()
	b[3] = last
	return netip.AddrFrom4(b)
}

// define makes what the machine is started with: disks, a port of the bridge, a lease.
func (m *Machine) define(ctx context.Context, files []File) error {
	w := m.world
	if err := os.MkdirAll(m.path(), 0o700); err != nil {
		return err
	}
	if _, err := output(exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", filepath.Join(m.Image, "root.img"), m.path("disk.qcow2"))); err != nil {
		return err
	}
	seed := []File{
		{From: w.path("id.pub"), To: "/root/.ssh/authorized_keys", Mode: 0o600},
		{From: w.path("host"), To: "/etc/ssh/ssh_host_ed25519_key", Mode: 0o600},
		{From: w.path("host.pub"), To: "/etc/ssh/ssh_host_ed25519_key.pub", Mode: 0o644},
		{Data: m.Hostname + "\n", To: "/etc/hostname"},
		{Data: "127.0.0.1 localhost\n127.0.1.1 " + m.Hostname + "\n::1 localhost\n", To: "/etc/hosts"},
	}
	if err := writeSeed(m.path("seed.tar"), append(seed, files...)); err != nil {
		return err
	}
	hardware := hardwareAddress(w.Name, m.Name)
	lease := fmt.Sprintf("%s,%s\n", hardware, m.Address)
	if err := os.WriteFile(w.path("dnsmasq.hosts.d", m.Name), []byte(lease), 0o644); err != nil {
		return err
	}
	zone, err := w.zone(m.Zone)
	if err != nil {
		return err
	}
	for _, c := range []string{"tuntap add " + m.tap() + " mode tap", "link set " + m.tap() + " master " + zone.bridge() + " up"} {
		if err := w.ip(ctx, c); err != nil {
			return err
		}
	}
	return w.SetName(m.Hostname, m.Address)
}

func writeSeed(path string, files []File) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(writeTar(f, files), f.Close())
}

// writeTar writes an archive that is unpacked at /. Directories are not in it: those that exist
// keep their modes.
func writeTar(to io.Writer, files []File) error {
	t := tar.NewWriter(to)
	for _, f := range files {
		header := &tar.Header{Name: strings.TrimPrefix(f.To, "/"), Mode: f.Mode, Size: int64(len(f.Data)), ModTime: time.Now()}
		var content io.Reader = strings.NewReader(f.Data)
		if f.From != "" {
			src, err := os.Open(f.From)
			if err != nil {
				return err
			}
			defer src.Close()
			info, err := src.Stat()
			if err != nil {
				return err
			}
			if !info.Mode().IsRegular() {
				return fmt.Errorf("%s is not a regular file", f.From)
			}
			header.Size, content = info.Size(), src
			if header.Mode == 0 {
				header.Mode = int64(info.Mode().Perm())
			}
		}
		if header.Mode == 0 {
			header.Mode = 0o644
		}
		if err := t.WriteHeader(header); err != nil {
			return err
		}
		if _, err := io.Copy(t, content); err != nil {
			return fmt.Errorf("copy to %s: %w", f.To, err)
		}
	}
	return t.Close()
}

func (m *Machine) path(elements ...string) string {
	return m.world.path(append([]string{"machines", m.Name}, elements...)...)
}

// tap is the name of the machine's port of the bridge.
func (m *Machine) tap() string { return "tap-" + m.Name }

// Console returns the file that receives what the machine prints on its console.
func (m *Machine) Console() string { return m.path("console.log") }

// Start powers the machine on.
func (m *Machine) Start(ctx context.Context) error {
	if m.Running() {
		return nil
	}
	id := sha256.Sum256([]byte(m.world.Name + "/" + m.Name))
	kernel := []string{"root=/dev/vda", "rw", "console=ttyS0", "quiet", "mitigations=off", "net.ifnames=0", fmt.Sprintf("systemd.machine_id=%x", id[:16])}
	for _, unit := range m.Mask {
		kernel = append(kernel, "systemd.mask="+unit)
	}
	pid, err := m.world.Start(filepath.Join("machines", m.Name, "qemu"),
		"qemu-system-x86_64", "-name", m.Name, "-nodefaults", "-display", "none", "-M", "q35", "-cpu", "max",
		// The KVM of a machine that is itself a virtual one may not boot a stock kernel.
		"-accel", "tcg,thread=multi,tb-size=256", "-smp", fmt.Sprint(m.CPUs), "-m", fmt.Sprint(m.MemoryMB),
		"-kernel", filepath.Join(m.Image, "vmlinuz"), "-initrd", filepath.Join(m.Image, "initrd.img"), "-append", strings.Join(kernel, " "),
		"-chardev", "file,id=console,append=on,path="+m.Console(), "-serial", "chardev:console",
		"-drive", "if=none,id=root,format=qcow2,cache=unsafe,discard=unmap,file="+m.path("disk.qcow2"), "-device", "virtio-blk-pci,drive=root",
		"-drive", "if=none,id=seed,format=raw,readonly=on,file="+m.path("seed.tar"), "-device", "virtio-blk-pci,drive=seed",
		"-netdev", "tap,id=net,script=no,downscript=no,ifname="+m.tap(),
		"-device", "virtio-net-pci,netdev=net,mac="+hardwareAddress(m.world.Name, m.Name),
		"-device", "virtio-rng-pci")
	if err != nil {
		return err
	}
	m.PID = pid
	if m.Born, err = bornAt(pid); err != nil {
		log, _ := os.ReadFile(m.path("qemu.log"))
		return fmt.Errorf("the emulator of %s ended: %s", m.Name, log)
	}
	return m.world.save()
}

// Running reports whether the machine is powered on.
func (m *Machine) Running() bool {
	born, err := bornAt(m.PID)
	return m.PID > 0 && err == nil && born == m.Born
}

// AwaitBoot waits until the machine has started all of its services.
func (m *Machine) AwaitBoot(ctx context.Context) error {
	began := time.Now()
	err := m.world.await(ctx, bootTimeout, m.Name, func() error {
		if !m.Running() {
			log, _ := os.ReadFile(m.path("qemu.log"))
			return permanent{fmt.Errorf("the emulator of %s ended: %s", m.Name, log)}
		}
		if err := m.world.dial(ctx, netip.AddrPortFrom(m.Address, 22)); err != nil {
			return err
		}
		_, err := m.Output(ctx, "true")
		return err
	})
	if err != nil {
		return fmt.Errorf("%w; the end of its console:\n%s", err, m.tail())
	}
	if err := m.emptySeed(); err != nil {
		return err
	}
	// A machine with failed units is "degraded": that is for the caller to judge.
	state, err := m.Output(ctx, "systemctl", "is-system-running", "--wait")
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("wait for the services of %s: %w", m.Name, err)
	}
	m.world.progress("%s (%s, %s) is up after %d s, %s", m.Name, m.Hostname, m.Address, int(time.Since(began).Seconds()), state)
	return nil
}

// emptySeed makes the disk of files an empty archive: at the next boot the machine has its own.
func (m *Machine) emptySeed() error {
	info, err := os.Stat(m.path("seed.tar"))
	if err != nil {
		return err
	}
	return errors.Join(os.Truncate(m.path("seed.tar"), 0), os.Truncate(m.path("seed.tar"), info.Size()))
}

// tail returns the last lines of the machine's console.
func (m *Machine) tail() string {
	data, err := os.ReadFile(m.Console())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(data), "\r\n"), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-15):], "\n  ")
}

// PowerOff ends the machine as its power button does: services are stopped, file systems unmounted.
func (m *Machine) PowerOff(ctx context.Context) error {
	if !m.Running() {
		return nil
	}
	_, err := m.Output(ctx, "systemctl", "--no-block", "poweroff")
	if err == nil {
		err = waitGone([]int{m.PID}, 3*time.Minute)
	}
	m.hangUp(ctx)
	return err
}

// Kill ends the machine as a power cut does.
func (m *Machine) Kill(ctx context.Context) error {
	m.hangUp(ctx)
	if !m.Running() {
		return nil
	}
	if err := syscall.Kill(m.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill the emulator of %s: %w", m.Name, err)
	}
	return waitGone([]int{m.PID}, 10*time.Second)
}

// Reboot makes the machine restart and returns when it is up again.
func (m *Machine) Reboot(ctx context.Context) error {
	before, err := m.Output(ctx, "cat", "/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	if _, err := m.Output(ctx, "systemctl", "--no-block", "reboot"); err != nil {
		return err
	}
	err = m.world.await(ctx, 3*time.Minute, m.Name+" after its reboot", func() error {
		m.hangUp(ctx)
		if err := m.world.dial(ctx, netip.AddrPortFrom(m.Address, 22)); err != nil {
			return err
		}
		now, err := m.Output(ctx, "cat", "/proc/sys/kernel/random/boot_id")
		if err == nil && now == before {
			err = errors.New("it has not gone down yet")
		}
		return err
	})
	if err != nil {
		return err
	}
	return m.AwaitBoot(ctx)
}
