// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package host

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/wellknown"
)

const checkPools = "pools"

const resolvConf = "/etc/resolv.conf"

// Surroundings are the addresses that a node uses outside the fabric.
type Surroundings struct {
	resolvers, gateways []netip.Addr
	addresses           map[netip.Addr]string   // its own, with their interfaces
	routes              map[netip.Prefix]string // to others, with their interfaces
}

// LookAround reads the addresses that the node uses. dns are the resolvers that its configuration
// names.
func LookAround(dns []string) (s Surroundings, err error) {
	s.addresses, s.routes = map[netip.Addr]string{}, map[netip.Prefix]string{}
	text, err := os.ReadFile(resolvConf)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return s, fmt.Errorf("read the node's resolvers: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				s.resolvers = append(s.resolvers, a)
			}
		}
	}
	for _, d := range dns {
		if a, err := netip.ParseAddrPort(d); err == nil {
			s.resolvers = append(s.resolvers, a.Addr())
		}
	}
	links, err := netlinksafe.LinkList()
	if err != nil {
		return s, fmt.Errorf("list the node's interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlinksafe.RouteList(nil, family)
		if err != nil {
			return s, fmt.Errorf("list the node's routes: %w", err)
		}
		for _, r := range routes {
			s.route(r, names)
		}
	}
	addresses, err := netlinksafe.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return s, fmt.Errorf("list the node's addresses: %w", err)
	}
	for _, x := range addresses {
		name := names[x.LinkIndex]
		if a, ok := netip.AddrFromSlice(x.IP); ok && name != "lo" && !ours(name) {
			s.addresses[a.Unmap()] = name
		}
	}
	return s, nil
}

func ours(name string) bool { return strings.HasPrefix(name, wellknown.InterfacePrefix) }

// route adds a route, unless it is the fabric's. The kernel has a route by lo for each IPv6 address
// there, such as the node's health address.
func (s *Surroundings) route(r netlink.Route, names map[int]string) {
	name := names[r.LinkIndex]
	if r.Protocol == kernel.RouteProtocol || name == "lo" || ours(name) || r.Type != unix.RTN_UNICAST {
		return
	}
	to := netip.Prefix{}
	if r.Dst != nil {
		length, _ := r.Dst.Mask.Size()
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
			to = netip.PrefixFrom(a.Unmap(), length)
		}
	}
	if to.Bits() > 0 {
		s.routes[to] = name
	} else if a, ok := netip.AddrFromSlice(r.Gw); ok {
		s.gateways = append(s.gateways, a.Unmap())
	}
}

// Within returns what of a node's surroundings lies in the fabric's ranges. The node's firewall
// drops packets of those addresses that come unencrypted, because somebody could pretend with them
// to be an endpoint.
func (s Surroundings) Within(ranges []netip.Prefix) []Finding {
	var list []Finding
	add := func(subject, relation string, r netip.Prefix, remedy string) {
		list = append(list, Finding{
			checkPools, subject, Wrong, fmt.Sprintf("%s the fabric's pool %s, and packets from there are dropped", relation, r),
			remedy + ", or give the fabric other pools (block \"pools\" of the controller)",
		})
	}
	check := func(a netip.Addr, what, remedy string) {
		for _, r := range ranges {
			if r.Contains(a) {
				add(fmt.Sprintf("%s %s", what, a), "lies in", r, remedy)
			}
		}
	}
	for _, a := range s.resolvers {
		check(a, "the node's resolver", "use another resolver")
	}
	for _, a := range s.gateways {
		check(a, "the node's gateway", "use another gateway")
	}
	for a, name := range s.addresses {
		check(a, "the node's own address (on "+name+")", "use another address there")
	}
	for to, name := range s.routes {
		// A route to the network of an own address that is in the pool says nothing new.
		known := false
		for a := range s.addresses {
			known = known || to.Contains(a)
		}
		for _, r := range ranges {
			if to.Overlaps(r) && !known {
				add(fmt.Sprintf("the node's route to %s (by %s)", to, name), "overlaps", r, "remove the route if nothing is there")
			}
		}
	}
	slices.SortFunc(list, func(a, b Finding) int { return cmp.Compare(a.Subject, b.Subject) })
	return slices.Compact(list)
}
