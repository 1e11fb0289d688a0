// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cilium/ebpf/link"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// clsact attaches programs as filters of the clsact queueing discipline, for kernels without TCX.
// The kernel asks filters in the order of their priorities, and of one priority the newest first.
// A filter that passes a packet for good ends the questions, so ours must be the first. It has the
// first priority and a name, by which later processes find it. Filters of others behind it see only
// packets that it lets pass, and are left alone.
type clsact struct {
	// hasTCX says that the kernel asks TCX programs before filters.
	hasTCX bool

	mu     sync.Mutex
	placed map[placement]int // the indexes of the interfaces where this process put a filter
}

// placement is where a filter is.
type placement struct{ hook, interfaceName string }

// firstPriority is that of our filters: none can be before it.
const firstPriority = 1

func newClsact(hasTCX bool) *clsact {
	return &clsact{hasTCX: hasTCX, placed: map[placement]int{}}
}

// filterName is the name of our filters of a hook.
func (h hook) filterName() string { return "sif_" + h.name }

// chain is the filters of a hook, in the order in which the kernel asks them.
type chain []netlink.Filter

// read returns the filters of a hook; none if the interface has no clsact.
func (c *clsact) read(h hook, at target) (chain, error) {
	all, err := netlinksafe.FilterList(at.link(), h.clsact)
	if err != nil {
		return nil, fmt.Errorf("list the filters of %s: %w", at.name, err)
	}
	var first chain // of the chain where the kernel begins
	for _, f := range all {
		if number := f.Attrs().Chain; number == nil || *number == 0 {
			first = append(first, f)
		}
	}
	return first, nil
}

func (at target) link() netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: at.index, Name: at.name}}
}

func (at target) clsact() netlink.Qdisc {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: at.index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
}

// own returns the filter if it is one of ours, of this process or another.
func (h hook) own(f netlink.Filter) *netlink.BpfFilter {
	ours, ok := f.(*netlink.BpfFilter)
	if !ok || ours.Name != h.filterName() || ours.Priority != firstPriority {
		return nil
	}
	return ours
}

// decides reports whether the first filter runs the program and does what it says.
func (h hook) decides(list chain) bool {
	if len(list) == 0 {
		return false
	}
	first := h.own(list[0])
	return first != nil && first.Id == int(h.id) && first.DirectAction
}

func (c *clsact) put(h hook, at target) (missing []string, err error) {
	list, err := c.read(h, at)
	if err != nil {
		return nil, err
	}
	if !h.decides(list) {
		if missing, err = c.takeFirst(h, at, list); err != nil {
			return nil, err
		}
		if list, err = c.read(h, at); err != nil {
			return missing, err
		}
		if !h.decides(list) {
			return missing, h.refusal(at, list)
		}
	}
	// What is left of ours behind it was the first until now, or when a process ended in between.
	for _, f := range list[1:] {
		if h.own(f) == nil {
			continue
		}
		if err := deleteFilter(f); err != nil {
			return missing, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.placed[placement{h.name, at.name}] = at.index
	return missing, nil
}

// takeFirst makes our filter the first of a list, and returns what was missing.
func (c *clsact) takeFirst(h hook, at target, list chain) (missing []string, err error) {
	wanted := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: at.index, Parent: h.clsact, Priority: firstPriority, Protocol: unix.ETH_P_ALL},
		Fd:          h.program.FD(), Name: h.filterName(), DirectAction: true,
	}
	if len(list) > 0 && h.own(list[0]) != nil {
		// The kernel exchanges the program of a filter between two packets.
		wanted.Handle = list[0].Attrs().Handle
		if err := netlink.FilterReplace(wanted); err != nil {
			return nil, fmt.Errorf("replace the program: %w", err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.placed[placement{h.name, at.name}] == at.index {
			return []string{h.missing()}, nil
		}
		return nil, nil
	}
	missing = []string{h.missing()}
	if slices.ContainsFunc(list, func(f netlink.Filter) bool { return h.own(f) != nil }) {
		missing = []string{"the first place of " + h.missing()}
	}
	if err := ensureClsact(at); err != nil {
		return nil, err
	}
	// The kernel chooses a new handle, and asks the new filter first.
	if err := netlink.FilterAdd(wanted); err != nil {
		if len(list) > 0 {
			err = fmt.Errorf("%w: %w", err, h.refusal(at, list))
		}
		return nil, fmt.Errorf("add the filter: %w", err)
	}
	return missing, nil
}

func deleteFilter(f netlink.Filter) error {
	if err := netlink.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove filter %#x: %w", f.Attrs().Handle, err)
	}
	return nil
}

// ensureClsact adds the queueing discipline to an interface that has none. It takes no packet on
// its way, and has no settings.
func ensureClsact(at target) error {
	there, err := netlinksafe.QdiscList(at.link())
	if err != nil {
		return fmt.Errorf("list the queueing disciplines of %s: %w", at.name, err)
	}
	for _, q := range there {
		if q.Attrs().Parent != netlink.HANDLE_CLSACT {
			continue
		}
		if q.Type() != "clsact" {
			// In the kernel it is at the same place, and has no filters for what leaves.
			return fmt.Errorf("interface %s has a queueing discipline of kind %q, and needs clsact at its place: tc qdisc del dev %s ingress", at.name, q.Type(), at.name)
		}
		return nil
	}
	err = netlink.QdiscAdd(at.clsact())
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("add clsact: the kernel has neither TCX (Linux 6.6) nor clsact (module sch_ingress): %w", err)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact: %w", err)
	}
	return nil
}

// refusal says why our filter is not the first.
func (h hook) refusal(at target, list chain) error {
	if len(list) == 0 {
		return errors.New("somebody removed it at once")
	}
	f := list[0].Attrs()
	return fmt.Errorf("the first filter of the %s hook of %s, of priority %d, is a %s filter of others: give it a higher number, \"tc filter show dev %s %s\" lists it",
		h.name, at.name, f.Priority, list[0].Type(), at.name, h.side())
}

// side is what the command tc calls the hook.
func (h hook) side() string {
	if h.clsact == netlink.HANDLE_MIN_INGRESS {
		return "ingress"
	}
	return "egress"
}

func (c *clsact) guarded(h hook, at target) error {
	list, err := c.read(h, at)
	if err != nil {
		return err
	}
	if !h.decides(list) {
		return fmt.Errorf("%w: interface %s has %d filters at its %s hook, expected ours as the first: \"tc filter show dev %s %s\" lists them",
			ErrNotGuarded, at.name, len(list), h.name, at.name, h.side())
	}
	if !c.hasTCX {
		return nil
	}
	found, err := link.QueryPrograms(link.QueryOptions{Target: at.index, Attach: h.tcx})
	if err != nil {
		return fmt.Errorf("list the programs of %s: %w", at.name, err)
	}
	if n := len(found.Programs); n > 0 {
		return fmt.Errorf("%w: interface %s has %d programs before ours at its %s hook: \"bpftool net show dev %s\" lists them", ErrNotGuarded, at.name, n, h.name, at.name)
	}
	return nil
}

// remove removes our filters, and the queueing discipline when it has none left.
func (c *clsact) remove(h hook, at target) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.placed, placement{h.name, at.name})
	if at.index == 0 {
		return nil
	}
	list, err := c.read(h, at)
	if err != nil {
		return err
	}
	var removed bool
	for _, f := range list {
		if h.own(f) == nil {
			continue
		}
		if err := deleteFilter(f); err != nil {
			return err
		}
		removed = true
	}
	if !removed {
		return nil
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		left, err := netlinksafe.FilterList(at.link(), parent)
		if err != nil || len(left) > 0 {
			return err
		}
	}
	err = netlink.QdiscDel(at.clsact())
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove clsact: %w", err)
	}
	return nil
}

func (c *clsact) close() error { return nil }
