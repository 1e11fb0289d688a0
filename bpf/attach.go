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
//
// The process keeps the links open, so that they stay attached when somebody removes the pins,
// which the next Attach makes again. Attach returns what was missing: of an interface to which
// nothing was attached before, each program.
func (d *Datapath) Attach(name string) (missing []string, err error) {
	if d.programs == nil {
		return nil, fmt.Errorf("attach to %s: the data path was opened without programs", name)
	}
	device, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", name, err)
	}
	if err := os.MkdirAll(d.linkDirectory(name), 0o700); err != nil {
		return nil, fmt.Errorf("attach to %s: create the pin directory: %w", name, err)
	}
	for _, h := range d.hooks() {
		what, err := d.put(h, device.Index, filepath.Join(d.linkDirectory(name), h.pin))
		if err != nil {
			return missing, fmt.Errorf("attach %s program to %s: %w", h.pin, name, err)
		}
		if what != "" {
			missing = append(missing, what)
		}
	}
	return missing, nil
}

// put attaches the program of a hook, and returns what was missing.
func (d *Datapath) put(h hook, ifindex int, pin string) (missing string, err error) {
	missing, err = d.pinAgain(h, pin)
	if err != nil {
		return "", err
	}
	taken, err := d.takeOver(h, ifindex, pin)
	if taken || err != nil {
		return missing, err
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: h.program, Attach: h.attach})
	if err != nil {
		return "", err
	}
	if err := l.Pin(pin); err != nil {
		l.Close()
		return "", fmt.Errorf("pin the link: %w", err)
	}
	d.hold(pin, l)
	return "the " + h.pin + " program", nil
}

// hold keeps a link open instead of the one that is held for the pin.
func (d *Datapath) hold(pin string, l link.Link) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if old := d.held[pin]; old != nil && old != l {
		old.Close()
	}
	if l == nil {
		delete(d.held, pin)
		return
	}
	d.held[pin] = l
}

// pinAgain pins the link that is held if its pin is gone.
func (d *Datapath) pinAgain(h hook, pin string) (missing string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.held[pin]
	if _, err := os.Stat(pin); l == nil || !errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	// The library believes that the pin is there, and does nothing unless told otherwise.
	if err := errors.Join(l.Unpin(), l.Pin(pin)); err != nil {
		return "", fmt.Errorf("pin the link again: %w", err)
	}
	return "the pin of the " + h.pin + " program", nil
}

// takeOver updates the pinned link to the program, holds it, and reports whether it did. If the
// link is of another interface, or of none, it removes the pin and returns false.
func (d *Datapath) takeOver(h hook, ifindex int, pin string) (bool, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open the pinned link: %w", err)
	}
	taken, err := h.adopt(l, ifindex)
	if !taken {
		d.hold(pin, nil)
		return false, errors.Join(err, l.Close())
	}
	d.hold(pin, l)
	return true, nil
}

// adopt updates a link to the program, and reports whether it is attached to the interface. If it
// is of another one, adopt removes its pin.
func (h hook) adopt(l link.Link, ifindex int) (bool, error) {
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
			return fmt.Errorf("interface %s has %d programs at its %s hook, expected only ours: \"bpftool net show dev %s\" lists them", name, len(found.Programs), h.pin, name)
		}
	}
	return nil
}

// Detach removes the programs from the interface that had this name when they were attached and
// that may be gone. If it still exists, all packets pass from then on: delete it or set it down
// first. It is not an error if nothing is attached.
func (d *Datapath) Detach(name string) error {
	for _, h := range []string{"from_workload", "to_workload", ""} {
		pin := filepath.Join(d.linkDirectory(name), h)
		d.hold(pin, nil)
		err := os.Remove(pin)
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
