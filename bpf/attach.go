// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

const linksDirectory = "links"

// hook is a place on an interface, by the name of its pin.
type hook struct {
	pin     string
	attach  ebpf.AttachType
	program *ebpf.Program
}

func (d *Datapath) hooks() []hook {
	return []hook{
		{"from_workload", ebpf.AttachTCXIngress, d.programs.SifFromWorkload},
		{"to_workload", ebpf.AttachTCXEgress, d.programs.SifToWorkload},
	}
}

func (d *Datapath) linkDirectory(name string) string {
	return filepath.Join(d.dir, linksDirectory, name)
}

// Attach puts the programs on an interface, given by its name in the network namespace of
// the calling thread (lock the thread), and pins them there, so that they stay when the
// process ends. From then on nothing passes unless the maps say so: attach before the link
// is up. On an interface that has programs of an earlier process, it replaces each in one
// step without a gap. If it fails, what it did attach stays: deny is the safe side.
func (d *Datapath) Attach(name string) error {
	if d.programs == nil {
		return fmt.Errorf("attach to %s: the data path was opened to look at only", name)
	}
	device, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("attach to %s: %w", name, err)
	}
	if err := os.MkdirAll(d.linkDirectory(name), 0o700); err != nil {
		return fmt.Errorf("attach to %s: make pin directory: %w", name, err)
	}
	for _, h := range d.hooks() {
		if err := h.put(device.Index, filepath.Join(d.linkDirectory(name), h.pin)); err != nil {
			return fmt.Errorf("attach %s program to %s: %w", h.pin, name, err)
		}
	}
	return nil
}

func (h hook) put(ifindex int, pin string) error {
	taken, err := h.takeOver(ifindex, pin)
	if taken || err != nil {
		return err
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: h.program, Attach: h.attach})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	return nil
}

// takeOver puts the program into the pinned link, if that is of this interface. Returns
// false, with the pin removed, if there is none or its interface is gone.
func (h hook) takeOver(ifindex int, pin string) (bool, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open pinned link: %w", err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("read pinned link: %w", err)
	}
	if tcx := info.TCX(); tcx == nil || int(tcx.Ifindex) != ifindex {
		return false, l.Unpin()
	}
	program, err := h.program.Info()
	if err != nil {
		return false, fmt.Errorf("read program: %w", err)
	}
	// An update to the program that is there already fails with EEXIST.
	if id, ok := program.ID(); ok && id == info.Program {
		return true, nil
	}
	if err := l.Update(h.program); err != nil {
		return false, fmt.Errorf("replace program: %w", err)
	}
	return true, nil
}

// Guarded reports why the programs do not decide about the packets of an
// interface, read from the kernel; nil: they do, and nobody else.
func (d *Datapath) Guarded(name string) error {
	if d.programs == nil {
		return fmt.Errorf("look at the programs of %s: the data path was opened to look at only", name)
	}
	device, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("look at the programs of %s: %w", name, err)
	}
	for _, h := range d.hooks() {
		info, err := h.program.Info()
		if err != nil {
			return fmt.Errorf("read the %s program: %w", h.pin, err)
		}
		own, _ := info.ID()
		found, err := link.QueryPrograms(link.QueryOptions{Target: device.Index, Attach: h.attach})
		if err != nil {
			return fmt.Errorf("ask which programs %s has: %w", name, err)
		}
		if len(found.Programs) != 1 || found.Programs[0].ID != own {
			return fmt.Errorf("interface %s has %d programs at its %s hook, which should be ours alone", name, len(found.Programs), h.pin)
		}
	}
	return nil
}

// Detach takes the programs off the interface that had this name when they were attached,
// which may be gone. If it is not, everything passes it from then on: delete it first, or
// set it down. To detach what is not attached is no error.
func (d *Datapath) Detach(name string) error {
	for _, h := range []string{"from_workload", "to_workload", ""} {
		err := os.Remove(filepath.Join(d.linkDirectory(name), h))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("detach from %s: %w", name, err)
		}
	}
	return nil
}

// Attached returns the names of the interfaces to which programs were attached and not
// detached, by this or an earlier process.
func (d *Datapath) Attached() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(d.dir, linksDirectory))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attached interfaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}
