// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (p *planner) blackhole(b Blackhole) {
	if !p.carries(b.Prefix.Addr()) || p.have != nil && slices.Contains(p.have.blackholes, b) {
		return
	}
	name, kind := "blackhole ", unix.RTN_BLACKHOLE
	if b.Throw {
		name, kind = "throw ", unix.RTN_THROW
	}
	p.add(KindRoute, name+routeSubject(b.Prefix, b.Table), "was missing, added", func() error {
		err := netlink.RouteReplace(&netlink.Route{
			Dst: network(b.Prefix), Table: b.Table, Family: familyOf(b.Prefix.Addr()), Protocol: p.protocol,
			Type: kind, Priority: b.Priority,
		})
		if err != nil {
			return fmt.Errorf("add the route %s%s: %w", name, routeSubject(b.Prefix, b.Table), err)
		}
		return nil
	})
}

// spreadKey is what tells routes by several interfaces apart.
type spreadKey struct {
	prefix netip.Prefix
	table  int
}

func (p *planner) spread(s Spread) {
	if !p.carries(s.Prefix.Addr()) {
		return
	}
	var want []int
	for _, name := range s.Interfaces {
		if p.have == nil {
			if index, err := indexOf(name); err == nil {
				want = append(want, index)
			}
		} else if d, there := p.have.devices[p.have.names[name]]; there && d.flags&unix.IFF_UP != 0 {
			want = append(want, d.index)
		}
	}
	slices.Sort(want)
	if len(want) == 0 || p.have != nil && slices.Equal(want, p.have.spread(s)) {
		return // without an interface there can be no route
	}
	p.add(KindRoute, routeSubject(s.Prefix, s.Table), "was missing or altered, set", func() error {
		x := &netlink.Route{Dst: network(s.Prefix), Table: s.Table, Family: familyOf(s.Prefix.Addr()), Protocol: p.protocol}
		if s.Prefix.Addr().Is4() {
			x.Scope = netlink.SCOPE_LINK
		}
		for _, index := range want {
			x.MultiPath = append(x.MultiPath, &netlink.NexthopInfo{LinkIndex: index})
		}
		if err := netlink.RouteReplace(x); err != nil {
			return fmt.Errorf("route %s by several interfaces: %w", routeSubject(s.Prefix, s.Table), err)
		}
		return nil
	})
}

// spread returns the indexes of the interfaces by which there is a route, in order.
func (s *snapshot) spread(want Spread) []int {
	list := slices.Clone(s.spreads[spreadKey{want.Prefix, want.Table}])
	for index, routes := range s.routes {
		if slices.Contains(routes, Route{Prefix: want.Prefix, Table: want.Table}) {
			list = append(list, index)
		}
	}
	slices.Sort(list)
	return list
}

// hops returns the indexes of the interfaces in an attribute RTA_MULTIPATH, which is an array of
// struct rtnexthop, each with attributes of its own. It leaves out those that are down.
func hops(b []byte) (list []int) {
	for len(b) >= unix.SizeofRtNexthop {
		size := int(binary.NativeEndian.Uint16(b))
		if flags, index := b[2], int(int32(binary.NativeEndian.Uint32(b[4:]))); flags&unix.RTNH_F_DEAD == 0 {
			list = append(list, index)
		}
		size = (size + unix.RTNH_ALIGNTO - 1) / unix.RTNH_ALIGNTO * unix.RTNH_ALIGNTO
		if size < unix.SizeofRtNexthop || size > len(b) {
			break
		}
		b = b[size:]
	}
	return list
}
