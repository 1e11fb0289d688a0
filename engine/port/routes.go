// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package port

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/wellknown"
)

// routeProtocol marks our routes (rtm_protocol). `sif link`, whose device is in the same namespace,
// has another mark.
const routeProtocol = 206

func missing(err error) bool {
	return errors.As(err, &netlink.LinkNotFoundError{})
}

// ensureVeth connects the switch's namespace and the port's.
func (s *spaces) ensureVeth(c Config) (fresh bool, err error) {
	outer, outerErr := s.home.LinkByName(c.Outer)
	in, innerErr := s.port.LinkByName(inner)
	for _, err := range []error{outerErr, innerErr} {
		if err != nil && !missing(err) {
			return false, fmt.Errorf("look for the veth: %w", err)
		}
	}
	// One end without the other, or ends of two pairs, cannot be repaired.
	if outerErr == nil && innerErr == nil &&
		outer.Attrs().ParentIndex == in.Attrs().Index && in.Attrs().ParentIndex == outer.Attrs().Index {
		return false, nil
	}
	return true, s.makeVeth(c)
}

// makeVeth makes a new pair and deletes what remains of an old one.
func (s *spaces) makeVeth(c Config) error {
	// Deleting one end of a pair deletes the other, so look up each just before.
	for _, end := range []struct {
		in   space
		name string
	}{{s.home, c.Outer}, {s.port, inner}} {
		if old, err := end.in.LinkByName(end.name); err == nil {
			if err := end.in.LinkDel(old); err != nil {
				return fmt.Errorf("delete the remaining end of the old veth: %w", err)
			}
		}
	}
	if err := s.home.LinkAdd(&netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: c.Outer, MTU: c.MTU},
		PeerName:      inner,
		PeerNamespace: netlink.NsFd(int(s.port.ns.Fd())),
	}); err != nil {
		return fmt.Errorf("make the veth: %w", err)
	}
	return nil
}

// outerState is what must be of the switch's end of the veth. The host must send nothing of its own
// by it.
func outerState(c Config) kernel.State {
	return kernel.State{Interfaces: []kernel.Interface{{
		Name: c.Outer, Master: true, MTU: c.MTU, IPv6: []kernel.Sysctl{{Name: "disable_ipv6", Value: "1"}},
	}}}
}

// innerState routes packets from the link, and those of the namespace itself, to the switch. The
// namespace's own addresses are on its loopback.
func innerState(c Config) kernel.State {
	own, peer := MACs(c.Outer)
	lo := kernel.Interface{Name: "lo", OnlyAddresses: true}
	for _, a := range c.Addrs {
		lo.Addresses = append(lo.Addresses, kernel.Address{Prefix: netip.PrefixFrom(a, a.BitLen())})
	}
	in := kernel.Interface{
		Name: inner, MTU: c.MTU, MAC: hardware(peer), IPv4: settings4, IPv6: settings6, OnlyRoutes: []int{tableFromLink, unix.RT_TABLE_MAIN}, Alone: true,
	}
	s := kernel.State{
		Protocol: routeProtocol,
		Rules: []kernel.Rule{
			{Priority: ruleFromLink, Interface: c.Device, Table: tableFromLink, Alone: true},
			{Priority: ruleFromSwitch, Interface: inner, Table: tableFromSwitch, Alone: true},
		},
	}
	for _, gateway := range []netip.Addr{wellknown.LinkLocal4, wellknown.LinkLocal6} {
		in.Neighbours = append(in.Neighbours, kernel.Neighbour{Addr: gateway, MAC: hardware(own)})
		anywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if gateway.Is6() {
			anywhere = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		for _, table := range []int{tableFromLink, unix.RT_TABLE_MAIN} {
			in.Routes = append(in.Routes, kernel.Route{Prefix: anywhere, Table: table, Gateway: gateway, MTU: c.OutsideMTU})
			for _, r := range c.Ranges {
				if c.OutsideMTU != 0 && r.Addr().Is4() == gateway.Is4() {
					in.Routes = append(in.Routes, kernel.Route{Prefix: r, Table: table, Gateway: gateway})
				}
			}
		}
		for _, table := range []int{tableFromLink, tableFromSwitch} {
			s.Blackholes = append(s.Blackholes, kernel.Blackhole{Prefix: anywhere, Table: table, Priority: 1 << 20})
		}
	}
	s.Interfaces = []kernel.Interface{lo, in}
	return s
}

// deviceState routes the prefixes behind the link to its device, and nothing else.
func deviceState(c Config) kernel.State {
	device := kernel.Interface{Name: c.Device, IPv4: settings4, IPv6: settings6, OnlyRoutes: []int{tableFromSwitch, unix.RT_TABLE_MAIN}, Alone: true}
	for _, p := range c.Prefixes {
		for _, table := range []int{tableFromSwitch, unix.RT_TABLE_MAIN} {
			device.Routes = append(device.Routes, kernel.Route{Prefix: p, Table: table})
		}
	}
	return kernel.State{Protocol: routeProtocol, Interfaces: []kernel.Interface{device}}
}

// fetchDevice moves the link's device into the namespace.
func (s *spaces) fetchDevice(c Config) error {
	_, err := s.port.LinkByName(c.Device)
	if !missing(err) {
		if err != nil {
			return fmt.Errorf("look for %s: %w", c.Device, err)
		}
		return nil
	}
	stray, err := s.home.LinkByName(c.Device)
	if missing(err) {
		return fmt.Errorf("%w: %s", ErrNoDevice, c.Device)
	}
	if err != nil {
		return fmt.Errorf("look for %s: %w", c.Device, err)
	}
	if err := s.home.LinkSetNsFd(stray, int(s.port.ns.Fd())); err != nil {
		return fmt.Errorf("move %s into namespace %s: %w", c.Device, c.Namespace, err)
	}
	return nil
}
