// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package exit

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/wellknown"
)

// surroundings are the machine's interfaces to the outside, with their addresses.
type surroundings struct {
	interfaces []string // in order
	addresses  map[key][]netip.Addr
	all        []netip.Addr // of all interfaces
	advertised []string     // those whose default route a router's advertisement made
	ways       map[key]bool // by which a default route leads
}

// lookAround lists the interfaces to the outside.
func lookAround(c Config) (s surroundings, err error) {
	s.addresses, s.ways = map[key][]netip.Addr{}, map[key]bool{}
	links, err := netlinksafe.LinkList()
	if err != nil {
		return s, fmt.Errorf("list the machine's interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		if name := l.Attrs().Name; name != "lo" && !strings.HasPrefix(name, wellknown.InterfacePrefix) {
			names[l.Attrs().Index] = name
		}
	}
	outside := map[string]bool{c.Underlay: true}
	for _, name := range c.Interfaces {
		outside[name] = true
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlinksafe.RouteList(nil, family)
		if err != nil {
			return s, fmt.Errorf("list the machine's routes: %w", err)
		}
		for _, r := range routes {
			if !isDefault(r) {
				continue
			}
			ipv6 := family == netlink.FAMILY_V6
			outside[names[r.LinkIndex]] = true
			s.ways[key{names[r.LinkIndex], ipv6}] = s.ways[key{names[r.LinkIndex], ipv6}] || carries(r.Flags)
			for _, hop := range r.MultiPath {
				outside[names[hop.LinkIndex]] = true
				s.ways[key{names[hop.LinkIndex], ipv6}] = s.ways[key{names[hop.LinkIndex], ipv6}] || carries(hop.Flags)
			}
			if r.Protocol == unix.RTPROT_RA {
				s.advertised = append(s.advertised, names[r.LinkIndex])
			}
		}
	}
	list, err := netlinksafe.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return s, fmt.Errorf("list the machine's addresses: %w", err)
	}
	for _, name := range names {
		if outside[name] {
			s.interfaces = append(s.interfaces, name)
		}
	}
	slices.Sort(s.interfaces)
	for _, x := range list {
		a, ok := netip.AddrFromSlice(x.IP)
		a = a.Unmap()
		// Those that come and go by themselves are nothing for others to let in.
		const passing = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED
		temporary := a.Is6() && x.Flags&unix.IFA_F_TEMPORARY != 0 // the same bit says "secondary" of IPv4
		if !ok || !a.IsGlobalUnicast() || x.Flags&passing != 0 || temporary {
			continue
		}
		s.all = append(s.all, a)
		if name := names[x.LinkIndex]; outside[name] {
			k := key{name, a.Is6()}
			s.addresses[k] = append(s.addresses[k], a)
		}
	}
	for k, list := range s.addresses {
		if k.ipv6 { // an address that the world reaches comes before a unique local one
			slices.SortStableFunc(list, func(a, b netip.Addr) int { return cmp.Compare(local(a), local(b)) })
		}
	}
	return s, nil
}

func local(a netip.Addr) int {
	if a.IsPrivate() {
		return 1
	}
	return 0
}

// carries reports whether the kernel uses a route with these flags.
func carries(flags int) bool { return flags&(unix.RTNH_F_DEAD|unix.RTNH_F_LINKDOWN) == 0 }

func isDefault(r netlink.Route) bool {
	if r.Type != unix.RTN_UNICAST {
		return false
	}
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// choose sets the addresses, which stay as long as the interfaces have them, the findings, and
// whether there is a way.
func (x *Exit) choose(s surroundings) {
	x.addresses, x.findings, x.leads = nil, nil, false
	find := func(format string, args ...any) { x.findings = append(x.findings, fmt.Sprintf(format, args...)) }
	for _, name := range s.interfaces {
		for _, ipv6 := range []bool{false, true} {
			k := key{name, ipv6}
			a := x.choice(s, k)
			if !a.IsValid() {
				continue
			}
			first, had := x.first[k]
			if !had {
				x.first[k] = a
			} else if first != a {
				find("connections to the outside by %s have had the address %s and now have %s: let those who list the old one let in the new one, or give %s to %s again and restart sif engine",
					name, first, a, first, name)
			}
			x.addresses = append(x.addresses, Address{name, a})
			x.leads = x.leads || s.ways[k] || slices.Contains(x.config.Interfaces, name)
		}
	}
	if len(x.addresses) == 0 {
		find("no interface leads to the outside: give the machine a default route, or name an interface with an address in block \"exit\" of the engine's configuration (interfaces)")
	}
	for _, configured := range []struct {
		argument string
		addr     netip.Addr
	}{{"address4", x.config.Address4}, {"address6", x.config.Address6}} {
		if configured.addr.IsValid() && !slices.Contains(s.all, configured.addr) {
			find("%s, which is exit.%s of the engine's configuration, is no address of this machine, so that no answer arrives: add it to an interface, or remove the argument", configured.addr, configured.argument)
		}
	}
	for _, name := range x.config.Interfaces {
		if !slices.Contains(s.interfaces, name) {
			find("interface %s, which exit.interfaces of the engine's configuration names, does not exist: make it, or remove it there", name)
		}
	}
	for _, name := range s.advertised {
		if text, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "accept_ra")); err == nil && strings.TrimSpace(string(text)) == "1" {
			find("%s has its IPv6 default route from a router's advertisement, which the kernel of a router no longer takes: run `sysctl -w net.ipv6.conf.%s.accept_ra=2` and put it into /etc/sysctl.d", name, strings.ReplaceAll(name, ".", "/"))
		}
	}
}

// choice returns the address of one interface and family; an invalid one if it has none.
func (x *Exit) choice(s surroundings, k key) netip.Addr {
	have := s.addresses[k]
	configured := x.config.Address4
	if k.ipv6 {
		configured = x.config.Address6
	}
	switch {
	case configured.IsValid() && slices.Contains(s.all, configured):
		return configured
	case slices.Contains(have, x.first[k]):
		return x.first[k]
	case k.iface == x.config.Underlay && slices.Contains(have, x.config.UnderlayAddress):
		return x.config.UnderlayAddress
	case len(have) > 0:
		return have[0]
	}
	return netip.Addr{}
}

// forwarding lets answers in by the interfaces to the outside. The parameters of the machine as a
// whole set them as well, but only once.
func (s surroundings) forwarding() (list []kernel.Sysctl) {
	for _, name := range s.interfaces {
		list = append(list, kernel.Sysctl{Name: "net/ipv4/conf/" + name + "/forwarding", Value: "1"})
	}
	return list
}
