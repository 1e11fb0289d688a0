// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linksDirectory has a directory for each interface to which programs were attached.
const linksDirectory = "links"

// ErrNotGuarded means that others than our programs decide about the packets of an interface.
var ErrNotGuarded = errors.New("not guarded")

// Mechanism is a way to attach programs to an interface.
type Mechanism string

const (
	// TCX attaches by links, which are pinned. Linux 6.6 has it.
	TCX Mechanism = "tcx"
	// Clsact attaches by filters of the clsact queueing discipline, which stay with the interface.
	Clsact Mechanism = "clsact"
)

// hook is a hook of an interface and our program for it.
type hook struct {
	name    string
	tcx     ebpf.AttachType
	clsact  uint32 // the parent of the filters
	program *ebpf.Program
	id      ebpf.ProgramID // of the program, in the kernel
}

// missing is what Attach says when the program was not there.
func (h hook) missing() string { return "the " + h.name + " program" }

func hooksOf(p *endpointPrograms) ([]hook, error) {
	list := []hook{
		{name: "from_workload", tcx: ebpf.AttachTCXIngress, clsact: netlink.HANDLE_MIN_INGRESS, program: p.SifFromWorkload},
		{name: "to_workload", tcx: ebpf.AttachTCXEgress, clsact: netlink.HANDLE_MIN_EGRESS, program: p.SifToWorkload},
	}
	return list, identify(list)
}

// identify sets the IDs of the programs.
func identify(list []hook) error {
	for i, h := range list {
		info, err := h.program.Info()
		if err != nil {
			return fmt.Errorf("read the %s program: %w", h.name, err)
		}
		list[i].id, _ = info.ID()
	}
	return nil
}

// target is an interface in the network namespace of the calling thread.
type target struct {
	name  string
	index int
	up    bool
}

// targetOf finds an interface by two ioctls, whose cost does not depend on the number of other
// interfaces: package net lists them all, and every endpoint is looked for at each comparison.
func targetOf(name string) (target, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return target{}, fmt.Errorf("find interface %q: %w", name, err)
	}
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return target{}, fmt.Errorf("find interface %s: %w", name, err)
	}
	defer unix.Close(socket)
	if err := unix.IoctlIfreq(socket, unix.SIOCGIFINDEX, request); err != nil {
		return target{}, fmt.Errorf("find interface %s: %w", name, err)
	}
	at := target{name: name, index: int(request.Uint32())}
	if err := unix.IoctlIfreq(socket, unix.SIOCGIFFLAGS, request); err != nil {
		return target{}, fmt.Errorf("read the flags of interface %s: %w", name, err)
	}
	at.up = request.Uint16()&unix.IFF_UP != 0
	return at, nil
}

// mechanism is what Datapath needs of a Mechanism.
type mechanism interface {
	// put attaches the program of a hook, in place of that of a previous process, without a gap. It
	// returns what was missing.
	put(h hook, at target) (missing []string, err error)
	// guarded returns an error unless the program of the hook decides before all others.
	guarded(h hook, at target) error
	// remove takes away what put attached by any process. The index is 0 if the interface is gone.
	remove(h hook, at target) error
	// close releases what the process holds, and leaves what is attached.
	close() error
}

func (d *Datapath) linkDirectory(name string) string {
	return filepath.Join(d.dir, linksDirectory, name)
}

// choose selects the mechanism: TCX where the kernel has it, unless the options name one.
func (d *Datapath) choose(wanted Mechanism) error {
	has := haveTCX(d.programs.SifFromWorkload)
	ways := map[Mechanism]mechanism{Clsact: newClsact(has == nil), TCX: newTCX(d.linkDirectory)}
	if wanted == "" {
		if wanted = TCX; has != nil {
			wanted = Clsact
		}
	}
	if ways[wanted] == nil {
		return fmt.Errorf("attach by %q: there are %q and %q", wanted, TCX, Clsact)
	}
	if wanted == TCX && has != nil {
		return fmt.Errorf("attach by %s: %w", TCX, has)
	}
	var err error
	if d.hooks, err = hooksOf(d.programs); err != nil {
		return err
	}
	d.mechanism = wanted
	for name, m := range ways {
		if name == wanted {
			d.attaching = m
		} else {
			d.leaving = m
		}
	}
	return d.chooseGuests(has == nil)
}

// haveTCX asks the kernel to attach to an interface that cannot exist. A kernel with TCX looks for
// the interface.
func haveTCX(p *ebpf.Program) error {
	const nowhere = 1<<31 - 1
	_, err := link.AttachTCX(link.TCXOptions{Interface: nowhere, Program: p, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	return nil
}

// Mechanism returns how Attach attaches programs, and "" if the data path was opened without any.
func (d *Datapath) Mechanism() Mechanism { return d.mechanism }

// Attach attaches the programs to an interface, given by its name in the network namespace of the
// calling thread (lock the thread), so that they outlive the process. From then on a packet passes
// only if the maps allow it: attach before the link is up. Programs of a previous process are
// replaced atomically, also if it used another mechanism. If Attach fails, programs that it did
// attach stay, because they deny.
//
// Attach returns what was missing: of an interface to which nothing was attached before, each
// program.
func (d *Datapath) Attach(name string) (missing []string, err error) {
	if d.programs == nil {
		return nil, fmt.Errorf("attach to %s: the data path was opened without programs", name)
	}
	at, err := targetOf(name)
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", name, err)
	}
	first, err := d.record(name)
	if err != nil {
		return nil, fmt.Errorf("attach to %s: create the pin directory: %w", name, err)
	}
	for _, h := range d.hooks {
		what, err := d.attaching.put(h, at)
		missing = append(missing, what...)
		if err != nil {
			return missing, fmt.Errorf("attach %s program to %s: %w", h.name, name, err)
		}
	}
	if d.attachedBefore(at) {
		return missing, nil
	}
	// To a new interface no other process has attached anything.
	if !first || at.up {
		for _, h := range d.hooks {
			if err := d.leaving.remove(h, at); err != nil {
				return missing, fmt.Errorf("take what another mechanism attached from %s: %w", name, err)
			}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.attached[name] = at.index
	return missing, nil
}

// record makes the directory of an interface, and reports whether there was none.
func (d *Datapath) record(name string) (first bool, err error) {
	dir := d.linkDirectory(name)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return false, err
	}
	err = os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

// attachedBefore reports whether this process has attached to the interface.
func (d *Datapath) attachedBefore(at target) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attached[at.name] == at.index
}

// Guarded reads from the kernel whether our programs decide about the packets of an interface
// before any other program. If not, it returns an error that wraps ErrNotGuarded and says why.
func (d *Datapath) Guarded(name string) error {
	if d.programs == nil {
		return fmt.Errorf("list the programs of %s: the data path was opened without programs", name)
	}
	at, err := targetOf(name)
	if err != nil {
		return fmt.Errorf("list the programs of %s: %w", name, err)
	}
	for _, h := range d.hooks {
		if err := d.attaching.guarded(h, at); err != nil {
			return err
		}
	}
	return nil
}

// Detach removes the programs from the interface that had this name when they were attached and
// that may be gone. If it still exists, all packets pass from then on: delete it or set it down
// first. It is not an error if nothing is attached.
func (d *Datapath) Detach(name string) error {
	if d.programs == nil {
		return fmt.Errorf("detach from %s: the data path was opened without programs", name)
	}
	at, err := targetOf(name)
	if err != nil {
		at = target{name: name}
	}
	for _, h := range d.hooks {
		if err := errors.Join(d.attaching.remove(h, at), d.leaving.remove(h, at)); err != nil {
			return fmt.Errorf("detach from %s: %w", name, err)
		}
	}
	d.mu.Lock()
	delete(d.attached, name)
	d.mu.Unlock()
	if err := os.Remove(d.linkDirectory(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("detach from %s: %w", name, err)
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
