// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks the routes that this package added and may remove (rtm_protocol of
// rtnetlink(7); 205 is not in iproute2's rt_protos).
const routeProtocol = 205

// setSysctls makes the interface pass IPv6 and have no link-local address, and disables the
// reverse-path filter because WireGuard checks source addresses by key. It must run in the
// interface's namespace.
func setSysctls(name string) error {
	for _, s := range []struct{ path, value string }{
		{"ipv6/conf/" + name + "/disable_ipv6", "0"},
		{"ipv6/conf/" + name + "/addr_gen_mode", "1"},
		{"ipv6/conf/" + name + "/accept_ra", "0"},
		{"ipv4/conf/" + name + "/rp_filter", "0"},
	} {
		path := filepath.Join("/proc/sys/net", s.path)
		if err := os.WriteFile(path, []byte(s.value), 0o644); err != nil {
			return fmt.Errorf("set %s to %s: %w", path, s.value, err)
		}
	}
	return nil
}

// setRoutes makes the routes to the interface that have routeProtocol exactly those to the
// prefixes, with the given MTU. One that the kernel refuses does not keep the others from being
// set.
func setRoutes(nl netlinksafe.Handle, link netlink.Link, prefixes []netip.Prefix, mtu int) error {
	var errs []error
	index := link.Attrs().Index
	missing := make(map[netip.Prefix]bool, len(prefixes))
	for _, p := range prefixes {
		missing[p] = true
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := nl.RouteListFiltered(family,
			&netlink.Route{LinkIndex: index, Protocol: routeProtocol},
			netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			errs = append(errs, fmt.Errorf("list the routes of %s: %w", link.Attrs().Name, err))
			continue
		}
		for _, route := range routes {
			prefix := prefixOf(route.Dst)
			if missing[prefix] && route.MTU == mtu {
				delete(missing, prefix)
				continue
			}
			if missing[prefix] {
				continue // replaced below
			}
			if err := nl.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("remove the route %s of %s: %w", prefix, link.Attrs().Name, err))
			}
		}
	}
	for _, prefix := range prefixes {
		if !missing[prefix] {
			continue
		}
		route := &netlink.Route{
			LinkIndex: index,
			Dst:       &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())},
			Protocol:  routeProtocol,
			MTU:       mtu,
		}
		if prefix.Addr().Is4() {
			route.Scope = netlink.SCOPE_LINK
		}
		if err := nl.RouteReplace(route); err != nil {
			errs = append(errs, fmt.Errorf("route %s to %s: %w", prefix, link.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// prefixOf returns the zero prefix for a default route, which no peer can have.
func prefixOf(dst *net.IPNet) netip.Prefix {
	if dst == nil {
		return netip.Prefix{}
	}
	addr, _ := netip.AddrFromSlice(dst.IP)
	bits, _ := dst.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}

// reversePathFiltered reports whether the namespace's setting for all interfaces overrides that of
// the interface: the kernel applies the stricter of the two. It must run in that namespace.
func reversePathFiltered() bool {
	value, err := os.ReadFile("/proc/sys/net/ipv4/conf/all/rp_filter")
	return err == nil && len(value) > 0 && value[0] != '0'
}
