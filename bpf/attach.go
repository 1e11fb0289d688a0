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

// hook is a TCX hook of an interface and our program for it.
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

// Attach attaches the programs to an interface, given by its name in the network namespace of the
// calling thread (lock the thread), and pins the links, so that they outlive the process. From then
// on a packet passes only if the maps allow it: attach before the link is up. Programs of a
// previous process are replaced atomically. If Attach fails, programs that it did attach stay,
// because they deny.
func (d *Datapath) Attach(name string) error {
	if d.programs == nil {
		return fmt.Errorf("attach to %s: the data path was opened without programs", name)
	}
	device, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("attach to %s: %w", name, err)
	}
	if err := os.MkdirAll(d.linkDirectory(name), 0o700); err != nil {
		return fmt.Errorf("attach to %s: create the pin directory: %w", name, err)
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
		return fmt.Errorf("pin the link: %w", err)
	}
	return nil
}

// takeOver updates the pinned link to the program and reports whether it did. If the link is of
// another interface, it removes the pin and returns false.
func (h hook) takeOver(ifindex int, pin string) (bool, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open the pinned link: %w", err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("read the pinned link: %w", err)
	}
	if tcx := info.TCX(); tcx == nil || int(tcx.Ifindex) != ifindex {
		return false, l.Unpin()
	}
	program, err := h.program.Info()
	if err != nil {
		return false, fmt.Errorf("read the program: %w", err)
	}
	// An update to the same program fails with EEXIST.
	if id, ok := program.ID(); ok && id == info.Program {
		return true, nil
	}
	if err := l.Update(h.program); err != nil {
		return false, fmt.Errorf("replace the program: %w", err)
	}
	return true, nil
}

// Guarded reads from the kernel whether our programs, and no others, decide about the packets of an
// interface. It returns an error that says why not.
func (d *Datapath) Guarded(name string) error {
	if d.programs == nil {
		return fmt.Errorf("list the programs of %s: the data path was opened without programs", name)
	}
	device, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("list the programs of %s: %w", name, err)
	}
	for _, h := range d.hooks() {
		info, err := h.program.Info()
		if err != nil {
			return fmt.Errorf("read the %s program: %w", h.pin, err)
		}
		own, _ := info.ID()
		found, err := link.QueryPrograms(link.QueryOptions{Target: device.Index, Attach: h.attach})
		if err != nil {
			return fmt.Errorf("list the programs of %s: %w", name, err)
		}
		if len(found.Programs) != 1 || found.Programs[0].ID != own {
			return fmt.Errorf("interface %s has %d programs at its %s hook, expected only ours", name, len(found.Programs), h.pin)
		}
	}
	return nil
}

// Detach removes the programs from the interface that had this name when they were attached and
// that may be gone. If it still exists, all packets pass from then on: delete it or set it down
// first. It is not an error if nothing is attached.
func (d *Datapath) Detach(name string) error {
	for _, h := range []string{"from_workload", "to_workload", ""} {
		err := os.Remove(filepath.Join(d.linkDirectory(name), h))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("detach from %s: %w", name, err)
		}
	}
	return nil
}

// Attached returns the names of the interfaces to which this or an earlier process attached
// programs.
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
