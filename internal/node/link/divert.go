// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Diversion has the packets of a device take another one, its detour, for a while. Nobody else sees
// the detour: packets are routed to the device, and what comes by the detour seems to come by the
// device. The other end does the same, or not.
type Diversion struct {
	Namespace string // of both; as Interface.Namespace
	Device    string
	Detour    string // empty: the device has none
	// Ready has the device ready for a detour that it does not have yet.
	Ready bool
	// To are the destinations of the packets that leave by the detour: allowed addresses of peers
	// that both devices have.
	To []netip.Prefix
}

// The priorities of our filters at a device. Filters of the same priority are for one protocol.
const (
	divertPriority4 = 0x5f14
	divertPriority6 = 0x5f16
	divertPriority  = 0x5f10 // of what comes by the detour
)

// Divert brings the diversion about, from any other of the device. It writes only what differs, and
// a packet that passes meanwhile takes one of the two devices.
//
// A device that has a detour, or is to be ready for one, gets the queueing discipline clsact. While
// the kernel adds that, it drops what the device sends: so whoever must not lose anything later has
// the device ready when it is set up.
func Divert(d Diversion) error {
	if err := inNamespace(d.Namespace, d.divert); err != nil {
		return fmt.Errorf("divert packets of %s: %w", d.Device, err)
	}
	return nil
}

func (d Diversion) divert() error {
	device, err := netlinksafe.LinkByName(d.Device)
	if errors.As(err, &netlink.LinkNotFoundError{}) && d.Detour == "" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the interface: %w", err)
	}
	var out filters
	if d.Detour != "" {
		detour, err := netlinksafe.LinkByName(d.Detour)
		if err != nil {
			return fmt.Errorf("find the interface %s: %w", d.Detour, err)
		}
		in := filters{{priority: divertPriority, protocol: unix.ETH_P_ALL, match: anything, action: netlink.TCA_INGRESS_REDIR, to: device.Attrs().Index}}
		if err := in.settle(detour, netlink.HANDLE_MIN_INGRESS, true); err != nil {
			return err
		}
		for _, p := range d.To {
			out = append(out, towards(p, detour.Attrs().Index))
		}
	}
	return out.settle(device, netlink.HANDLE_MIN_EGRESS, d.Ready || d.Detour != "")
}

// filter is a u32 filter of ours. The kernel's other ones would do as well, but this one is in all
// of them.
type filter struct {
	priority, protocol uint16
	match              []netlink.TcU32Key
	action             netlink.MirredAct
	to                 int // the interface
}

type filters []filter

// anything matches all packets of a protocol.
var anything = []netlink.TcU32Key{{}}

// towards sends packets to a prefix by an interface.
func towards(p netip.Prefix, index int) filter {
	f := filter{priority: divertPriority4, protocol: unix.ETH_P_IP, action: netlink.TCA_EGRESS_REDIR, to: index}
	offset := 16 // of the destination in the header
	if p.Addr().Is6() {
		f.priority, f.protocol, offset = divertPriority6, unix.ETH_P_IPV6, 24
	}
	address := p.Masked().Addr().AsSlice()
	for i, left := 0, p.Bits(); left > 0; i, left = i+4, left-32 {
		f.match = append(f.match, netlink.TcU32Key{
			Mask: uint32(uint64(0xffffffff) << (32 - min(left, 32))), Val: binary.BigEndian.Uint32(address[i:]), Off: int32(offset + i),
		})
	}
	if f.match == nil {
		f.match = anything
	}
	f.match = slices.Clip(f.match) // the library sends as many as there is room for
	return f
}

// is reports whether a filter of the kernel is this one.
func (f filter) is(have *netlink.U32) bool {
	if have.Sel == nil || have.Priority != f.priority || have.Protocol != f.protocol || !slices.Equal(have.Sel.Keys, f.match) || len(have.Actions) != 1 {
		return false
	}
	action, ok := have.Actions[0].(*netlink.MirredAction)
	return ok && action.MirredAction == f.action && action.Ifindex == f.to
}

// settle makes the filters those of ours at an interface, which gets the queueing discipline that
// filters need if it is to be ready for some.
func (fs filters) settle(at netlink.Link, parent uint32, ready bool) error {
	have, err := ownFilters(at, parent)
	if err != nil {
		return err
	}
	if ready {
		err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: at.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add clsact to %s: %w", at.Attrs().Name, err)
		}
	}
	for _, f := range fs {
		i := slices.IndexFunc(have, f.is)
		if i >= 0 {
			have = slices.Delete(have, i, i+1)
			continue
		}
		action := netlink.NewMirredAction(f.to)
		action.MirredAction = f.action
		err := netlink.FilterAdd(&netlink.U32{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: at.Attrs().Index, Parent: parent, Priority: f.priority, Protocol: f.protocol},
			Sel:         &netlink.TcU32Sel{Flags: netlink.TC_U32_TERMINAL, Keys: f.match}, Actions: []netlink.Action{action},
		})
		if errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("add a filter to %s: the kernel has no cls_u32 or no act_mirred, without which keys of links cannot be replaced: %w", at.Attrs().Name, err)
		}
		if err != nil {
			return fmt.Errorf("add a filter to %s: %w", at.Attrs().Name, err)
		}
	}
	for _, f := range have {
		if err := netlink.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove a filter of %s: %w", at.Attrs().Name, err)
		}
	}
	return nil
}

// ownFilters returns our filters at an interface.
func ownFilters(at netlink.Link, parent uint32) (own []*netlink.U32, err error) {
	all, err := netlinksafe.FilterList(at, parent)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // a kernel without filters has none of ours
	}
	if err != nil {
		return nil, fmt.Errorf("list the filters of %s: %w", at.Attrs().Name, err)
	}
	for _, f := range all {
		u, is := f.(*netlink.U32)
		if is && u.Sel != nil && slices.Contains([]uint16{divertPriority, divertPriority4, divertPriority6}, u.Priority) {
			own = append(own, u)
		}
	}
	return own, nil
}
