// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/wellknown"
)

// veth is a workload's pair of interfaces.
type veth struct {
	host      string // name of the end in the node's namespace
	hostIndex int
	hostMAC   net.HardwareAddr
	peerMAC   net.HardwareAddr // of the end in the workload's namespace
}

// openNamespace opens the workload's network namespace, which the plugin passes as an open
// descriptor. The result is independent of the descriptor.
func openNamespace(descriptor *os.File) (ns.NetNS, error) {
	namespace, err := ns.GetNS(fmt.Sprintf("/proc/self/fd/%d", descriptor.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open the workload's network namespace: %w", err)
	}
	return namespace, nil
}

// makeVeth makes the pair, with the end named ifName in the workload's namespace. Both ends are
// down.
func makeVeth(host, ifName string, namespace ns.NetNS, mtu int) (veth, error) {
	v := veth{host: host}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = host, mtu
	pair := &netlink.Veth{
		LinkAttrs: attrs, PeerName: ifName, PeerNamespace: netlink.NsFd(int(namespace.Fd())),
		PeerMTU: uint32(mtu), // the kernel does not copy it from the pair
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return v, fmt.Errorf("create the interface pair %s: %w", host, err)
	}
	link, err := netlinksafe.LinkByName(host)
	if err != nil {
		return v, fmt.Errorf("find interface %s: %w", host, err)
	}
	v.hostIndex, v.hostMAC = link.Attrs().Index, link.Attrs().HardwareAddr
	return v, namespace.Do(func(ns.NetNS) error {
		peer, err := netlinksafe.LinkByName(ifName)
		if err != nil {
			return fmt.Errorf("find interface %s of the workload: %w", ifName, err)
		}
		v.peerMAC = peer.Attrs().HardwareAddr
		return nil
	})
}

// raiseHost brings the host side up and routes the endpoint's addresses to it. The eBPF programs
// must be attached before.
func (v veth) raiseHost(v4, v6 netip.Addr) error {
	link, err := netlinksafe.LinkByName(v.host)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", v.host, err)
	}
	// The workload must not be able to configure the node by router advertisements or redirects.
	for _, knob := range []struct{ name, value string }{
		{"net/ipv6/conf/" + v.host + "/accept_ra", "0"},
		{"net/ipv6/conf/" + v.host + "/accept_dad", "0"},
		{"net/ipv4/conf/" + v.host + "/accept_redirects", "0"},
		{"net/ipv6/conf/" + v.host + "/accept_redirects", "0"},
		{"net/ipv4/conf/" + v.host + "/send_redirects", "0"},
		{"net/ipv4/conf/" + v.host + "/forwarding", "1"},
		{"net/ipv6/conf/" + v.host + "/forwarding", "1"},
	} {
		if err := sysctl(knob.name, knob.value); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", v.host, err)
	}
	for _, addr := range []netip.Addr{v4, v6} {
		if err := netlink.NeighSet(neighbour(v.hostIndex, addr, v.peerMAC)); err != nil {
			return fmt.Errorf("set the neighbour %s on %s: %w", addr, v.host, err)
		}
		route := &netlink.Route{LinkIndex: v.hostIndex, Dst: hostPrefix(addr), Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route %s to %s: %w", addr, v.host, err)
		}
	}
	return nil
}

// raiseWorkload brings the workload's side up and gives it its addresses and routes. All routes
// lead to the node. It also brings up "lo", which Nomad does not do.
func (v veth) raiseWorkload(ifName string, namespace ns.NetNS, v4, v6 netip.Addr) error {
	return namespace.Do(func(ns.NetNS) error {
		if _, err := raiseLoopback(); err != nil {
			return fmt.Errorf("in the workload's namespace: %w", err)
		}
		link, err := netlinksafe.LinkByName(ifName)
		if err != nil {
			return fmt.Errorf("find interface %s of the workload: %w", ifName, err)
		}
		// Docker disables IPv6 in the namespaces that it makes.
		if err := errors.Join(
			sysctl("net/ipv6/conf/"+ifName+"/disable_ipv6", "0"),
			sysctl("net/ipv6/conf/"+ifName+"/accept_ra", "0"),
		); err != nil {
			return fmt.Errorf("configure interface %s of the workload: %w", ifName, err)
		}
		for _, addr := range []netip.Addr{v4, v6} {
			// Addresses are unique in the fabric, so duplicate address detection would only delay.
			if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: hostPrefix(addr), Flags: unix.IFA_F_NODAD}); err != nil {
				return fmt.Errorf("add the address %s to interface %s of the workload: %w", addr, ifName, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring up %s of the workload: %w", ifName, err)
		}
		index := link.Attrs().Index
		for _, gateway := range []netip.Addr{wellknown.LinkLocal4, wellknown.LinkLocal6} {
			if err := netlink.NeighSet(neighbour(index, gateway, v.hostMAC)); err != nil {
				return fmt.Errorf("set the neighbour %s of the workload: %w", gateway, err)
			}
		}
		routes := []*netlink.Route{
			{LinkIndex: index, Dst: hostPrefix(wellknown.LinkLocal4), Scope: netlink.SCOPE_LINK, Src: v4.AsSlice()},
			{LinkIndex: index, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Gw: wellknown.LinkLocal4.AsSlice(), Src: v4.AsSlice()},
			{LinkIndex: index, Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, Gw: wellknown.LinkLocal6.AsSlice(), Src: v6.AsSlice()},
		}
		for _, r := range routes {
			if err := netlink.RouteReplace(r); err != nil {
				return fmt.Errorf("add the route to %s in the workload: %w", r.Dst, err)
			}
		}
		return nil
	})
}

// raiseLoopback brings up "lo" in the current namespace.
func raiseLoopback() (netlink.Link, error) {
	lo, err := netlinksafe.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find the loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("bring up the loopback interface: %w", err)
	}
	return lo, nil
}

// removeVeth removes the pair by the name of its host side, if it exists.
func removeVeth(host string) error { return removeLink(host, "interface "+host) }

// vacate removes an interface that an attachment left in the workload's namespace when it failed
// halfway.
func vacate(ifName string, namespace ns.NetNS) error {
	return namespace.Do(func(ns.NetNS) error { return removeLink(ifName, "interface "+ifName+" of the workload") })
}

// removeLink removes an interface of the current namespace, if it exists. Errors call it what.
func removeLink(name, what string) error {
	link, err := netlinksafe.LinkByName(name)
	var absent netlink.LinkNotFoundError
	if errors.As(err, &absent) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", what, err)
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("remove %s: %w", what, err)
	}
	return nil
}

// linkIndex returns the index of an interface, or 0 if it does not exist. An error means that this
// is unknown. It uses an ioctl because netlink requests wait for the kernel's rtnl lock, which
// attaching a TCX program holds for some 10 ms.
func linkIndex(name string) (int, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("find interface %q: %w", name, err)
	}
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("find interface %s: %w", name, err)
	}
	defer unix.Close(socket)
	err = unix.IoctlIfreq(socket, unix.SIOCGIFINDEX, request)
	if errors.Is(err, unix.ENODEV) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("find interface %s: %w", name, err)
	}
	return int(request.Uint32()), nil
}

func neighbour(index int, addr netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	family := netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	return &netlink.Neigh{LinkIndex: index, Family: family, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac}
}

func hostPrefix(addr netip.Addr) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
}

// prepareNode makes the node a router and gives it the address at which workloads reach its DNS
// server.
func prepareNode() error {
	for _, knob := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := sysctl(knob, "1"); err != nil {
			return err
		}
	}
	lo, err := raiseLoopback()
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(lo, &netlink.Addr{IPNet: hostPrefix(wellknown.LinkLocal4), Scope: unix.RT_SCOPE_LINK}); err != nil {
		return fmt.Errorf("add the address %s to the loopback interface: %w", wellknown.LinkLocal4, err)
	}
	return nil
}

// sysctl writes a kernel parameter of the current thread's network namespace.
func sysctl(name, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
		return fmt.Errorf("set the kernel parameter %s: %w", name, err)
	}
	return nil
}

// result returns the CNI result of ADD.
func (v veth) result(ifName, sandbox string, v4, v6 netip.Addr) *current.Result {
	inside := 1
	return &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: v.host, Mac: v.hostMAC.String()},
			{Name: ifName, Mac: v.peerMAC.String(), Sandbox: sandbox},
		},
		IPs: []*current.IPConfig{
			{Interface: &inside, Address: *hostPrefix(v4), Gateway: wellknown.LinkLocal4.AsSlice()},
			{Interface: &inside, Address: *hostPrefix(v6), Gateway: wellknown.LinkLocal6.AsSlice()},
		},
	}
}
