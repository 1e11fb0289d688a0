// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	netnsDir   = "/var/run/netns"
	internetNS = "internet" // routes between zones and filters
	clientNS   = "client"   // a machine outside the fabric
	underlay   = "eth0"     // a node's only interface at the start
)

// Namespace returns the name of a node's network namespace, as `ip netns` lists it. "internet" and
// "client" are nodes here too.
func (l *Lab) Namespace(node string) string { return "sif-" + l.Name + "-" + node }

// NetNS returns the path of a node's network namespace.
func (l *Lab) NetNS(node string) string { return filepath.Join(netnsDir, l.Namespace(node)) }

// hostLink is the name of the host's end of the veth pair into the users' network.
func hostLink(lab string) string { return "sif-" + lab + "-u" }

func (l *Lab) namespaces() []string {
	names := []string{internetNS, clientNS}
	for _, n := range l.Topology.Nodes() {
		names = append(names, n.Name)
	}
	for _, o := range l.Topology.Internet.Outside {
		names = append(names, o.Name)
	}
	return names
}

// buildNetwork makes the namespaces and connects each one to its zone's bridge in the internet
// namespace.
func (l *Lab) buildNetwork(ctx context.Context) error {
	for _, name := range l.namespaces() {
		if out, err := exec.CommandContext(ctx, "ip", "netns", "add", l.Namespace(name)).CombinedOutput(); err != nil {
			return fmt.Errorf("add namespace %s: %w: %s", l.Namespace(name), err, out)
		}
		if err := l.withLinks(name, func(h netlinksafe.Handle) error { return setUp(h, "lo") }); err != nil {
			return err
		}
	}
	err := l.In(internetNS, func() error {
		// The filter is for routed packets only. Nodes of one zone reach each other directly over
		// their bridge.
		if err := sysctl("net/bridge/bridge-nf-call-iptables", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := sysctl("net/ipv6/conf/all/forwarding", "1"); err != nil {
			return err
		}
		return sysctl("net/ipv4/ip_forward", "1")
	})
	if err != nil {
		return err
	}
	users, err := netip.ParsePrefix(l.Topology.Internet.Users.Subnet)
	if err != nil {
		return err
	}
	u := l.Topology.Internet.Users
	if err := l.addBridge("users", u.Subnet, u.Subnet6); err != nil {
		return err
	}
	if err := l.join(clientNS, "users", place{u.Subnet, u.Client}, place{u.Subnet6, u.Client6}); err != nil {
		return err
	}
	for _, z := range l.Topology.Zones {
		if err := l.addBridge(bridgeOf(z.Name), z.Subnet, z.Subnet6); err != nil {
			return err
		}
		for _, n := range z.Nodes {
			if err := l.join(n.Name, bridgeOf(z.Name), place{z.Subnet, n.Address}, place{z.Subnet6, n.Address6}); err != nil {
				return err
			}
		}
	}
	for _, o := range l.Topology.Internet.Outside {
		if err := l.joinOutside(ctx, o); err != nil {
			return err
		}
	}
	if err := l.loadFilter(ctx); err != nil {
		return err
	}
	if l.HostAccess {
		return l.joinHost(users)
	}
	return nil
}

func bridgeOf(zone string) string { return "zone-" + zone }

// addBridge makes a bridge with the gateway's address in each subnet that is not empty.
func (l *Lab) addBridge(name string, subnets ...string) error {
	return l.withLinks(internetNS, func(h netlinksafe.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, l.Topology.Underlay.MTU
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("add bridge %s: %w", name, err)
		}
		for _, text := range subnets {
			if text == "" {
				continue
			}
			subnet, err := netip.ParsePrefix(text)
			if err != nil {
				return err
			}
			if err := address(h, name, netip.PrefixFrom(gateway(subnet), subnet.Bits())); err != nil {
				return err
			}
		}
		return nil
	})
}

// place is an address in a subnet; it is empty for an IP version that a node does not have.
type place struct{ subnet, address string }

// join gives a node its underlay interface: a veth whose other end is a port of the bridge, named
// after the node.
func (l *Lab) join(node, bridge string, places ...place) error {
	namespace, err := ns.GetNS(l.NetNS(node))
	if err != nil {
		return fmt.Errorf("open namespace of %s: %w", node, err)
	}
	defer namespace.Close()
	if err := l.addPort(node, bridge, underlay, netlink.NsFd(int(namespace.Fd()))); err != nil {
		return err
	}
	return l.withLinks(node, func(h netlinksafe.Handle) error {
		for _, p := range places {
			if p.address == "" {
				continue
			}
			subnet, err := netip.ParsePrefix(p.subnet)
			if err != nil {
				return err
			}
			if err := addressText(h, underlay, p.address, subnet); err != nil {
				return err
			}
			everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if subnet.Addr().Is6() {
				everywhere = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			if err := route(h, underlay, everywhere, gateway(subnet)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *Lab) addPort(name, bridge, peer string, peerNS any) error {
	return l.withLinks(internetNS, func(h netlinksafe.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, l.Topology.Underlay.MTU
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerNamespace: peerNS, PeerMTU: uint32(attrs.MTU)}
		if err := h.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth %s: %w", name, err)
		}
		master, err := h.LinkByName(bridge)
		if err != nil {
			return fmt.Errorf("find bridge %s: %w", bridge, err)
		}
		if err := h.LinkSetMaster(veth, master); err != nil {
			return fmt.Errorf("put %s into %s: %w", name, bridge, err)
		}
		return setUp(h, name)
	})
}

// joinHost gives the machine itself an address in the users' network, so that its browser can act
// as a user.
func (l *Lab) joinHost(users netip.Prefix) error {
	subnets := []netip.Prefix{users}
	for _, z := range l.Topology.Zones {
		subnets = append(subnets, netip.MustParsePrefix(z.Subnet))
	}
	h, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	if err := routesFree(h, subnets); err != nil {
		return err
	}
	host, err := ns.GetCurrentNS()
	if err != nil {
		return fmt.Errorf("open this process's namespace: %w", err)
	}
	defer host.Close()
	link := hostLink(l.Name)
	if err := l.addPort("host", "users", link, netlink.NsFd(int(host.Fd()))); err != nil {
		return err
	}
	if err := addressText(h, link, l.Topology.Internet.Users.Host, users); err != nil {
		return err
	}
	for _, s := range subnets[1:] {
		if err := route(h, link, s, gateway(users)); err != nil {
			return err
		}
	}
	return nil
}

// routesFree returns an error if the lab's networks would hide networks that the machine already
// reaches.
func routesFree(h netlinksafe.Handle, subnets []netip.Prefix) error {
	routes, err := h.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list the machine's routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		dst, err := netip.ParsePrefix(r.Dst.String())
		if err != nil || dst.Bits() == 0 {
			continue
		}
		for _, s := range subnets {
			if dst.Overlaps(s) {
				return fmt.Errorf("this machine already has a route to %s, which overlaps the lab's %s: use another topology, or bring the lab up without host access (-host=false)", dst, s)
			}
		}
	}
	return nil
}

func setUp(h netlinksafe.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

func addressText(h netlinksafe.Handle, name, addr string, subnet netip.Prefix) error {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return err
	}
	return address(h, name, netip.PrefixFrom(a, subnet.Bits()))
}

// address adds an address to a link and sets it up.
func address(h netlinksafe.Handle, name string, p netip.Prefix) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	ip := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
	// No other node can have the address, so it need not be looked for.
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: ip, Flags: unix.IFA_F_NODAD}); err != nil {
		return fmt.Errorf("add address %s to %s: %w", p, name, err)
	}
	return setUp(h, name)
}

func route(h netlinksafe.Handle, name string, dst netip.Prefix, via netip.Addr) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	r := &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), dst.Addr().BitLen())},
		Gw:        via.AsSlice(), // none for a destination on the link
	}
	if !via.IsValid() {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := h.RouteAdd(r); err != nil {
		return fmt.Errorf("add route to %s via %s: %w", dst, via, err)
	}
	return nil
}

// withLinks calls fn with a netlink handle in the node's namespace.
func (l *Lab) withLinks(node string, fn func(netlinksafe.Handle) error) error {
	return l.In(node, func() error {
		h, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink in %s: %w", node, err)
		}
		defer h.Close()
		if err := fn(h); err != nil {
			return fmt.Errorf("in %s: %w", node, err)
		}
		return nil
	})
}

func sysctl(key, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	return nil
}

// In calls fn on a thread in the node's network namespace. Sockets that fn opens belong to that
// namespace; goroutines that it starts do not.
func (l *Lab) In(node string, fn func() error) error {
	namespace, err := ns.GetNS(l.NetNS(node))
	if err != nil {
		return fmt.Errorf("open namespace of %s: %w", node, err)
	}
	defer namespace.Close()
	return namespace.Do(func(ns.NetNS) error { return fn() })
}

// Dial returns a dial function whose connections originate from the node. Addresses must be
// IP:port.
func (l *Lab) Dial(node string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		inner := l.In(node, func() error {
			// For a single literal address, the dialer opens its socket on the calling goroutine.
			if _, perr := netip.ParseAddrPort(address); perr != nil {
				return fmt.Errorf("dial from %s: %w", node, perr)
			}
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, inner
	}
}
