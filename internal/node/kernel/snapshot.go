// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// snapshot is what a network namespace contains.
type snapshot struct {
	devices    map[int]device         // by index
	names      map[string]int         // indexes by name
	addresses  map[int][]netip.Prefix // by index of the interface
	neighbours map[neighbourKey]net.HardwareAddr
	protocol   int
	routes     map[int][]Route // those of protocol, by interface
	blackholes []Blackhole
	alone      bool                            // routes of others matter
	others     map[route]netlink.RouteProtocol // but the kernel's
	rules      map[int][]netlink.Rule          // by family
}

// device is an interface. Its parameters have the names that they have in net/ipv4/conf and
// net/ipv6/conf; those that a dump does not tell are missing.
type device struct {
	index, mtu, master int
	name               string
	flags              uint32
	mac                net.HardwareAddr
	ipv4, ipv6         map[string]string
}

type neighbourKey struct {
	index int
	addr  netip.Addr
}

type route struct {
	Route
	index int
}

// The positions of parameters in the arrays of IFLA_INET_CONF and IFLA_INET6_CONF (<linux/ip.h>,
// where they begin at 1, and <linux/ipv6.h>), which never change.
var (
	settings4 = map[int]string{
		0: "forwarding", 3: "accept_redirects", 5: "send_redirects", 7: "rp_filter", 23: "src_valid_mark", 25: "route_localnet",
	}
	settings6 = map[int]string{0: "forwarding", 3: "accept_ra", 4: "accept_redirects", 26: "disable_ipv6", 27: "accept_dad"}
)

// The ABI of <linux/if_link.h>.
const (
	inetConf      = 1 // IFLA_INET_CONF
	inet6Conf     = 2 // IFLA_INET6_CONF
	inet6AddrMode = 8 // IFLA_INET6_ADDR_GEN_MODE
)

// read reads what the state is compared with.
func read(s State) (*snapshot, error) {
	have := &snapshot{
		devices: map[int]device{}, names: map[string]int{}, routes: map[int][]Route{},
		protocol: s.protocol(), others: map[route]netlink.RouteProtocol{},
		addresses: map[int][]netip.Prefix{}, neighbours: map[neighbourKey]net.HardwareAddr{}, rules: map[int][]netlink.Rule{},
	}
	var addresses, neighbours bool
	routes := len(s.Blackholes) > 0
	for _, i := range s.Interfaces {
		addresses = addresses || len(i.Addresses) > 0 || i.OnlyAddresses
		neighbours = neighbours || len(i.Neighbours) > 0
		routes = routes || len(i.Routes)+len(i.OnlyRoutes) > 0
		have.alone = have.alone || i.Alone
	}
	families := []int{netlink.FAMILY_V4}
	if HasIPv6() {
		families = append(families, netlink.FAMILY_V6)
	}
	if len(s.Interfaces) > 0 {
		if err := dump(unix.RTM_GETLINK, unix.RTM_NEWLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), have.link); err != nil {
			return nil, fmt.Errorf("list the interfaces: %w", err)
		}
	}
	if addresses {
		if err := dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, nl.NewIfInfomsg(unix.AF_UNSPEC), have.address); err != nil {
			return nil, fmt.Errorf("list the addresses: %w", err)
		}
	}
	for _, family := range families {
		if neighbours {
			if err := dump(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, &netlink.Ndmsg{Family: uint8(family)}, have.neighbour); err != nil {
				return nil, fmt.Errorf("list the neighbours: %w", err)
			}
		}
		if routes {
			if err := dump(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, &nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(family)}}, have.route); err != nil {
				return nil, fmt.Errorf("list the routes: %w", err)
			}
		}
		if len(s.Rules) > 0 || s.OnlyRules {
			rules, err := netlink.RuleList(family)
			if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
				return nil, fmt.Errorf("list the routing rules: %w", err)
			}
			have.rules[family] = rules
		}
	}
	return have, nil
}

// dump requests a dump and passes each message to each. A dump that others changed meanwhile is
// complete enough: the next comparison sees the rest.
func dump(request int, answer uint16, body nl.NetlinkRequestData, each func([]byte) error) error {
	r := nl.NewNetlinkRequest(request, unix.NLM_F_DUMP)
	r.AddData(body)
	var failed error
	err := r.ExecuteIter(unix.NETLINK_ROUTE, answer, func(m []byte) bool {
		failed = each(m)
		return failed == nil
	})
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return err
	}
	return failed
}

func (s *snapshot) link(m []byte) error {
	info := nl.DeserializeIfInfomsg(m)
	attrs, err := nl.ParseRouteAttr(m[info.Len():])
	if err != nil {
		return err
	}
	d := device{index: int(info.Index), flags: info.Flags}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFLA_IFNAME:
			d.name = nl.BytesToString(a.Value)
		case unix.IFLA_MTU:
			d.mtu = int(nl.NativeEndian().Uint32(a.Value))
		case unix.IFLA_MASTER:
			d.master = int(nl.NativeEndian().Uint32(a.Value))
		case unix.IFLA_ADDRESS:
			d.mac = a.Value
		case unix.IFLA_AF_SPEC:
			if err := d.families(a.Value); err != nil {
				return err
			}
		}
	}
	s.devices[d.index], s.names[d.name] = d, d.index
	return nil
}

// families reads the parameters of an interface.
func (d *device) families(spec []byte) error {
	families, err := nl.ParseRouteAttr(spec)
	if err != nil {
		return err
	}
	for _, f := range families {
		attrs, err := nl.ParseRouteAttr(f.Value)
		if err != nil {
			return err
		}
		for _, a := range attrs {
			switch kind := a.Attr.Type &^ unix.NLA_F_NESTED; {
			case f.Attr.Type == unix.AF_INET && kind == inetConf:
				d.ipv4 = parameters(settings4, a.Value)
			case f.Attr.Type == unix.AF_INET6 && kind == inet6Conf:
				d.ipv6 = merge(d.ipv6, parameters(settings6, a.Value))
			case f.Attr.Type == unix.AF_INET6 && kind == inet6AddrMode && len(a.Value) > 0:
				d.ipv6 = merge(d.ipv6, map[string]string{"addr_gen_mode": strconv.Itoa(int(a.Value[0]))})
			}
		}
	}
	return nil
}

func merge(a, b map[string]string) map[string]string {
	if a == nil {
		return b
	}
	for name, value := range b {
		a[name] = value
	}
	return a
}

func parameters(names map[int]string, array []byte) map[string]string {
	values := map[string]string{}
	for i, name := range names {
		if len(array) >= 4*(i+1) {
			values[name] = strconv.Itoa(int(int32(nl.NativeEndian().Uint32(array[4*i:]))))
		}
	}
	return values
}

func (s *snapshot) address(m []byte) error {
	info := nl.DeserializeIfAddrmsg(m)
	attrs, err := nl.ParseRouteAttr(m[info.Len():])
	if err != nil {
		return err
	}
	var addr netip.Addr
	for _, a := range attrs {
		// IFA_LOCAL is the interface's own if there is a peer's address.
		if a.Attr.Type == unix.IFA_LOCAL || a.Attr.Type == unix.IFA_ADDRESS && !addr.IsValid() {
			addr, _ = netip.AddrFromSlice(a.Value)
		}
	}
	index := int(info.Index)
	s.addresses[index] = append(s.addresses[index], netip.PrefixFrom(addr, int(info.Prefixlen)))
	return nil
}

// neighbour keeps a permanent neighbour.
func (s *snapshot) neighbour(m []byte) error {
	const header = 12 // of struct ndmsg
	if len(m) < header || binary.NativeEndian.Uint16(m[8:])&netlink.NUD_PERMANENT == 0 {
		return nil
	}
	attrs, err := nl.ParseRouteAttr(m[header:])
	if err != nil {
		return err
	}
	var addr netip.Addr
	var mac net.HardwareAddr
	for _, a := range attrs {
		switch a.Attr.Type {
		case netlink.NDA_DST:
			addr, _ = netip.AddrFromSlice(a.Value)
		case netlink.NDA_LLADDR:
			mac = a.Value
		}
	}
	s.neighbours[neighbourKey{int(int32(binary.NativeEndian.Uint32(m[4:]))), addr}] = mac
	return nil
}

// route keeps a route with our mark, and those of others if they matter. It skips the rest, of
// which there may be many.
func (s *snapshot) route(m []byte) error {
	info := nl.DeserializeRtMsg(m)
	ours := int(info.Protocol) == s.protocol
	if info.Flags&unix.RTM_F_CLONED != 0 || !ours && (!s.alone || info.Protocol == unix.RTPROT_KERNEL) {
		return nil
	}
	attrs, err := nl.ParseRouteAttr(m[info.Len():])
	if err != nil {
		return err
	}
	r := route{Route: Route{Table: int(info.Table), Local: info.Type == unix.RTN_LOCAL}}
	priority := 0
	dst := netip.IPv4Unspecified()
	if info.Family == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_TABLE:
			r.Table = number(a)
		case unix.RTA_OIF:
			r.index = number(a)
		case unix.RTA_PRIORITY:
			priority = number(a)
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_GATEWAY:
			r.Gateway, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_PREFSRC:
			r.Source, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_METRICS:
			metrics, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return err
			}
			for _, x := range metrics {
				if x.Attr.Type == unix.RTAX_MTU {
					r.MTU = number(x)
				}
			}
		}
	}
	r.Prefix = netip.PrefixFrom(dst, int(info.Dst_len))
	if !ours {
		s.others[r] = netlink.RouteProtocol(info.Protocol)
		return nil
	}
	if info.Type == unix.RTN_BLACKHOLE {
		s.blackholes = append(s.blackholes, Blackhole{r.Prefix, r.Table, priority})
		return nil
	}
	s.routes[r.index] = append(s.routes[r.index], r.Route)
	return nil
}

func number(a syscall.NetlinkRouteAttr) int { return int(nl.NativeEndian().Uint32(a.Value)) }
