// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package port

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/wellknown"
)

var families = []int{netlink.FAMILY_V4, netlink.FAMILY_V6}

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
	if outerErr != nil || innerErr != nil ||
		outer.Attrs().ParentIndex != in.Attrs().Index || in.Attrs().ParentIndex != outer.Attrs().Index {
		if outer, in, err = s.makeVeth(c); err != nil {
			return false, err
		}
		fresh = true
	}
	// The host must send nothing of its own by the switch's end.
	err = s.home.in(func() error {
		return writeSysctls([]sysctl{{"ipv6/conf/" + c.Outer + "/disable_ipv6", "1"}})
	})
	if err != nil {
		return fresh, err
	}
	_, peer := MACs(c.Outer)
	if !bytes.Equal(in.Attrs().HardwareAddr, peer[:]) {
		if err := s.port.LinkSetHardwareAddr(in, hardware(peer)); err != nil {
			return fresh, fmt.Errorf("set the veth's address: %w", err)
		}
	}
	for _, end := range []struct {
		h    space
		link netlink.Link
	}{{s.home, outer}, {s.port, in}} {
		if end.link.Attrs().MTU != c.MTU {
			if err := end.h.LinkSetMTU(end.link, c.MTU); err != nil {
				return fresh, fmt.Errorf("set the veth's MTU to %d: %w", c.MTU, err)
			}
		}
		if err := end.h.LinkSetUp(end.link); err != nil {
			return fresh, fmt.Errorf("set the veth up: %w", err)
		}
	}
	return fresh, s.port.in(func() error {
		return errors.Join(writeSysctls(ofDevice(inner)), switchOff(inner, udpSegmentation))
	})
}

// makeVeth makes a new pair and deletes what remains of an old one.
func (s *spaces) makeVeth(c Config) (outer, in netlink.Link, err error) {
	// Deleting one end of a pair deletes the other, so look up each just before.
	if old, err := s.home.LinkByName(c.Outer); err == nil {
		if err := s.home.LinkDel(old); err != nil {
			return nil, nil, fmt.Errorf("delete the remaining end of the old veth: %w", err)
		}
	}
	if old, err := s.port.LinkByName(inner); err == nil {
		if err := s.port.LinkDel(old); err != nil {
			return nil, nil, fmt.Errorf("delete the remaining end of the old veth: %w", err)
		}
	}
	if err := s.home.LinkAdd(&netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: c.Outer, MTU: c.MTU},
		PeerName:      inner,
		PeerNamespace: netlink.NsFd(int(s.port.ns.Fd())),
	}); err != nil {
		return nil, nil, fmt.Errorf("make the veth: %w", err)
	}
	if outer, err = s.home.LinkByName(c.Outer); err == nil {
		in, err = s.port.LinkByName(inner)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("find the new veth: %w", err)
	}
	return outer, in, nil
}

// ensureAddresses puts the namespace's own addresses on its loopback.
func (s *spaces) ensureAddresses(c Config) error {
	lo, err := s.port.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := s.port.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	var have []netlink.Addr
	err = s.port.in(func() (err error) {
		have, err = netlinksafe.AddrList(lo, netlink.FAMILY_ALL)
		return err
	})
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range have {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && !addr.Unmap().IsLoopback() && !slices.Contains(c.Addrs, addr.Unmap()) {
			if err := s.port.AddrDel(lo, &a); err != nil {
				return fmt.Errorf("remove address %s: %w", addr, err)
			}
		}
	}
	for _, a := range c.Addrs {
		err := s.port.AddrReplace(lo, &netlink.Addr{IPNet: network(netip.PrefixFrom(a, a.BitLen())), Flags: nodad(a)})
		if err != nil {
			return fmt.Errorf("set address %s: %w", a, err)
		}
	}
	return nil
}

func nodad(a netip.Addr) int {
	if a.Is6() {
		return unix.IFA_F_NODAD
	}
	return 0
}

// ensureSwitchSide routes packets from the link, and those of the namespace itself, to the switch.
func (s *spaces) ensureSwitchSide(c Config) error {
	own, _ := MACs(c.Outer)
	in, err := s.port.LinkByName(inner)
	if err != nil {
		return fmt.Errorf("find the veth: %w", err)
	}
	for i, gateway := range []netip.Addr{wellknown.LinkLocal4, wellknown.LinkLocal6} {
		err := s.port.NeighSet(&netlink.Neigh{
			LinkIndex: in.Attrs().Index, Family: families[i], State: netlink.NUD_PERMANENT,
			IP: gateway.AsSlice(), HardwareAddr: hardware(own),
		})
		if err != nil {
			return fmt.Errorf("set neighbour %s: %w", gateway, err)
		}
		for _, table := range []int{tableFromLink, unix.RT_TABLE_MAIN} {
			err := s.port.RouteReplace(&netlink.Route{
				LinkIndex: in.Attrs().Index, Family: families[i], Table: table,
				Dst: anywhere(families[i]), Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK),
			})
			if err != nil {
				return fmt.Errorf("route to the switch in table %d: %w", table, err)
			}
		}
		for _, table := range []int{tableFromLink, tableFromSwitch} {
			err := s.port.RouteReplace(&netlink.Route{
				Family: families[i], Table: table, Type: unix.RTN_BLACKHOLE,
				Dst: anywhere(families[i]), Priority: 1 << 20,
			})
			if err != nil {
				return fmt.Errorf("add the blackhole route of table %d: %w", table, err)
			}
		}
		if err := s.ensureRule(families[i], ruleFromLink, c.Device, tableFromLink); err != nil {
			return err
		}
		if err := s.ensureRule(families[i], ruleFromSwitch, inner, tableFromSwitch); err != nil {
			return err
		}
	}
	return nil
}

func (s *spaces) ensureRule(family, priority int, device string, table int) error {
	rules, err := s.port.RuleList(family)
	if err != nil {
		return fmt.Errorf("list routing rules: %w", err)
	}
	there := false
	for _, r := range rules {
		switch {
		case r.Priority != priority:
		case r.IifName == device && r.Table == table && !there:
			there = true
		default:
			if err := s.port.RuleDel(&r); err != nil {
				return fmt.Errorf("remove routing rule %d: %w", priority, err)
			}
		}
	}
	if there {
		return nil
	}
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.IifName, rule.Table = family, priority, device, table
	if err := s.port.RuleAdd(rule); err != nil {
		return fmt.Errorf("add routing rule for %s: %w", device, err)
	}
	return nil
}

// ensureLinkSide moves the link's device into the namespace and routes the prefixes behind it to
// it.
func (s *spaces) ensureLinkSide(c Config) error {
	device, err := s.port.LinkByName(c.Device)
	if missing(err) {
		stray, homeErr := s.home.LinkByName(c.Device)
		if missing(homeErr) {
			return fmt.Errorf("%w: %s", ErrNoDevice, c.Device)
		}
		if homeErr != nil {
			return fmt.Errorf("look for %s: %w", c.Device, homeErr)
		}
		if err := s.home.LinkSetNsFd(stray, int(s.port.ns.Fd())); err != nil {
			return fmt.Errorf("move %s into namespace %s: %w", c.Device, c.Namespace, err)
		}
		device, err = s.port.LinkByName(c.Device)
	}
	if err != nil {
		return fmt.Errorf("look for %s: %w", c.Device, err)
	}
	if err := s.port.in(func() error { return writeSysctls(ofDevice(c.Device)) }); err != nil {
		return err
	}
	if err := s.port.LinkSetUp(device); err != nil {
		return fmt.Errorf("set %s up: %w", c.Device, err)
	}
	for _, table := range []int{tableFromSwitch, unix.RT_TABLE_MAIN} {
		if err := s.ensurePrefixes(c, device, table); err != nil {
			return err
		}
	}
	return nil
}

// ensurePrefixes makes the config's prefixes the only routes to device in table.
func (s *spaces) ensurePrefixes(c Config, device netlink.Link, table int) error {
	for _, family := range families {
		routes, err := s.port.RouteListFiltered(family, &netlink.Route{Table: table, LinkIndex: device.Attrs().Index},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
		if err != nil {
			return fmt.Errorf("list routes of table %d: %w", table, err)
		}
		for _, r := range routes {
			if r.Protocol == unix.RTPROT_KERNEL || r.Dst != nil && slices.Contains(c.Prefixes, prefixOf(r.Dst)) {
				continue
			}
			if err := s.port.RouteDel(&r); err != nil {
				return fmt.Errorf("remove route %v: %w", r.Dst, err)
			}
		}
	}
	for _, p := range c.Prefixes {
		route := &netlink.Route{LinkIndex: device.Attrs().Index, Table: table, Dst: network(p)}
		if p.Addr().Is4() {
			route.Scope = netlink.SCOPE_LINK
		}
		if err := s.port.RouteReplace(route); err != nil {
			return fmt.Errorf("route %s to %s: %w", p, c.Device, err)
		}
	}
	return nil
}

func network(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}

func anywhere(family int) *net.IPNet {
	if family == netlink.FAMILY_V4 {
		return network(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	}
	return network(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
}
