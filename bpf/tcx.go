// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// tcx attaches programs by links that are pinned in a directory for each interface. The process
// keeps them open, so that they stay attached when somebody removes the pins, which the next put
// makes again.
type tcx struct {
	directory func(interfaceName string) string

	mu   sync.Mutex
	held map[string]link.Link // attached, by their pins
}

func newTCX(directory func(string) string) *tcx {
	return &tcx{directory: directory, held: map[string]link.Link{}}
}

func (t *tcx) pin(h hook, at target) string { return filepath.Join(t.directory(at.name), h.name) }

func (t *tcx) put(h hook, at target) (missing []string, err error) {
	pin := t.pin(h, at)
	missing, err = t.pinAgain(h, pin)
	if err != nil {
		return nil, err
	}
	taken, err := t.takeOver(h, at.index, pin)
	if taken || err != nil {
		return missing, err
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: at.index, Program: h.program, Attach: h.tcx})
	if err != nil {
		return nil, err
	}
	if err := l.Pin(pin); err != nil {
		l.Close()
		return nil, fmt.Errorf("pin the link: %w", err)
	}
	t.hold(pin, l)
	return []string{h.missing()}, nil
}

// hold keeps a link open instead of the one that is held for the pin.
func (t *tcx) hold(pin string, l link.Link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.held[pin]; old != nil && old != l {
		old.Close()
	}
	if l == nil {
		delete(t.held, pin)
		return
	}
	t.held[pin] = l
}

// pinAgain pins the link that is held if its pin is gone.
func (t *tcx) pinAgain(h hook, pin string) (missing []string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.held[pin]
	if _, err := os.Stat(pin); l == nil || !errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	// The library believes that the pin is there, and does nothing unless told otherwise.
	if err := errors.Join(l.Unpin(), l.Pin(pin)); err != nil {
		return nil, fmt.Errorf("pin the link again: %w", err)
	}
	return []string{"the pin of " + h.missing()}, nil
}

// takeOver updates the pinned link to the program, holds it, and reports whether it did. If the
// link is of another interface, or of none, it removes the pin and returns false.
func (t *tcx) takeOver(h hook, ifindex int, pin string) (bool, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open the pinned link: %w", err)
	}
	taken, err := h.adopt(l, ifindex)
	if !taken {
		t.hold(pin, nil)
		return false, errors.Join(err, l.Close())
	}
	t.hold(pin, l)
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
	// An update to the same program fails with EEXIST.
	if h.id == info.Program {
		return true, nil
	}
	if err := l.Update(h.program); err != nil {
		return false, fmt.Errorf("replace the program: %w", err)
	}
	return true, nil
}

func (t *tcx) guarded(h hook, at target) error {
	found, err := link.QueryPrograms(link.QueryOptions{Target: at.index, Attach: h.tcx})
	if err != nil {
		return fmt.Errorf("list the programs of %s: %w", at.name, err)
	}
	if len(found.Programs) != 1 || found.Programs[0].ID != h.id {
		return fmt.Errorf("%w: interface %s has %d programs at its %s hook, expected only ours: \"bpftool net show dev %s\" lists them",
			ErrNotGuarded, at.name, len(found.Programs), h.name, at.name)
	}
	return nil
}

// remove detaches the link and removes its pin. The kernel would remove the program after the last
// reference to its link, but later.
func (t *tcx) remove(h hook, at target) error {
	pin := t.pin(h, at)
	t.hold(pin, nil)
	if at.index != 0 {
		l, err := link.LoadPinnedLink(pin, nil)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("open the pinned link: %w", err)
		}
		defer l.Close()
		if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) {
			return fmt.Errorf("detach the link: %w", err)
		}
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin the link: %w", err)
	}
	return nil
}

func (t *tcx) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for pin, l := range t.held {
		errs = append(errs, l.Close())
		delete(t.held, pin)
	}
	return errors.Join(errs...)
}
