// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"

	"github.com/sif-project/sif/internal/wellknown"
)

// hostInterval is how often the node's own addresses are compared with the fabric's.
const hostInterval = 5 * time.Second

const resolvConf = "/etc/resolv.conf"

// surroundings are the addresses that a node uses outside the fabric.
type surroundings struct {
	resolvers, gateways []netip.Addr
	addresses           map[netip.Addr]string // its own, with their interfaces
}

// lookAround reads the addresses that the node uses. dns are the resolvers that its configuration
// names.
func lookAround(dns []string) (s surroundings, err error) {
	s.addresses = map[netip.Addr]string{}
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
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlinksafe.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_DST) // default routes
		if err != nil {
			return s, fmt.Errorf("list the node's default routes: %w", err)
		}
		for _, r := range routes {
			if a, ok := netip.AddrFromSlice(r.Gw); ok {
				s.gateways = append(s.gateways, a.Unmap())
			}
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
	addresses, err := netlinksafe.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return s, fmt.Errorf("list the node's addresses: %w", err)
	}
	for _, x := range addresses {
		name := names[x.LinkIndex]
		if a, ok := netip.AddrFromSlice(x.IP); ok && name != "lo" && !strings.HasPrefix(name, wellknown.InterfacePrefix) {
			s.addresses[a.Unmap()] = name
		}
	}
	return s, nil
}

// within returns what of a node's surroundings lies in the fabric's ranges, one sentence each. The
// node's firewall drops packets of those addresses that come unencrypted, because somebody could
// pretend with them to be an endpoint.
func (s surroundings) within(ranges []netip.Prefix) []string {
	var list []string
	check := func(a netip.Addr, what, remedy string) {
		for _, r := range ranges {
			if r.Contains(a) {
				list = append(list, fmt.Sprintf("%s %s lies in the fabric's pool %s, and packets from there are dropped: %s, or give the fabric other pools (block \"pools\" of the controller)",
					what, a, r, remedy))
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
	slices.Sort(list)
	return slices.Compact(list)
}

// conflicts looks around.
func (n *Node) conflicts() ([]string, error) {
	var dns []string
	if n.Config.DNS != nil {
		dns = n.Config.DNS.Upstream
	}
	s, err := lookAround(dns)
	return s.within(n.Self.Ranges), err
}

// refuse returns an error if something that a new node uses lies in the fabric's ranges: joining
// would cut the node off from it. Nothing stays of the registration here.
func (n *Node) refuse() error {
	found, err := n.conflicts()
	if err != nil || len(found) == 0 {
		return err
	}
	return errors.Join(fmt.Errorf("node %s does not join: %s", n.Config.NodeID(), strings.Join(found, "; ")), os.Remove(n.record().Path))
}

// keepLooking reports what of the node's surroundings lies in the fabric's ranges.
func (n *Node) keepLooking(ctx context.Context) error {
	tick := time.NewTicker(hostInterval)
	defer tick.Stop()
	for {
		found, err := n.conflicts()
		n.Report("pools", found)
		n.Degrade("surroundings", err)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
