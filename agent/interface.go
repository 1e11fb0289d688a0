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
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/wellknown"
)

// veth is the interface of a workload, both ends.
type veth struct {
	host      string // name in the node's namespace
	hostIndex int
	hostMAC   net.HardwareAddr
	peerMAC   net.HardwareAddr
}

// makeVeth makes the pair with one end in the workload's namespace. Both ends
// are down.
func makeVeth(host, ifName string, namespace *os.File, mtu int) (veth, error) {
	v := veth{host: host}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = host, mtu
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: ifName, PeerNamespace: netlink.NsFd(int(namespace.Fd()))}
	if err := netlink.LinkAdd(pair); err != nil {
		return v, fmt.Errorf("make the interface pair %s: %w", host, err)
	}
	link, err := netlink.LinkByName(host)
	if err != nil {
		return v, fmt.Errorf("find interface %s: %w", host, err)
	}
	v.hostIndex, v.hostMAC = link.Attrs().Index, link.Attrs().HardwareAddr
	inside, err := netlink.NewHandleAt(netns.NsHandle(namespace.Fd()))
	if err != nil {
		return v, fmt.Errorf("enter the workload's namespace: %w", err)
	}
	defer inside.Close()
	peer, err := inside.LinkByName(ifName)
	if err != nil {
		return v, fmt.Errorf("find interface %s of the workload: %w", ifName, err)
	}
	v.peerMAC = peer.Attrs().HardwareAddr
	// The kernel takes the MTU of the peer from a default, not from the pair.
	if err := inside.LinkSetMTU(peer, mtu); err != nil {
		return v, fmt.Errorf("set the MTU of %s: %w", ifName, err)
	}
	return v, nil
}

// raiseHost brings the host side up and leads the endpoint's addresses to it.
// The programs must be attached before.
func (v veth) raiseHost(v4, v6 netip.Addr) error {
	link, err := netlink.LinkByName(v.host)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", v.host, err)
	}
	// Nothing in the workload may configure the node.
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

// raiseWorkload gives the workload's side its addresses and its only routes:
// everything goes to the node.
func (v veth) raiseWorkload(ifName string, namespace *os.File, v4, v6 netip.Addr) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(namespace.Fd()))
	if err != nil {
		return fmt.Errorf("enter the workload's namespace: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(ifName)
	if err != nil {
		return fmt.Errorf("find interface %s of the workload: %w", ifName, err)
	}
	// A runtime that knows of no IPv6 switches it off: Docker does.
	err = ns.WithNetNSPath(fmt.Sprintf("/proc/self/fd/%d", namespace.Fd()), func(ns.NetNS) error {
		return errors.Join(
			sysctl("net/ipv6/conf/"+ifName+"/disable_ipv6", "0"),
			sysctl("net/ipv6/conf/"+ifName+"/accept_ra", "0"),
		)
	})
	if err != nil {
		return fmt.Errorf("prepare %s of the workload: %w", ifName, err)
	}
	for _, addr := range []netip.Addr{v4, v6} {
		// Nobody else can have the address: duplicate detection only delays.
		if err := h.AddrReplace(link, &netlink.Addr{IPNet: hostPrefix(addr), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("give %s the address %s: %w", ifName, addr, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s of the workload: %w", ifName, err)
	}
	index := link.Attrs().Index
	for _, gw := range []netip.Addr{wellknown.LinkLocal4, wellknown.LinkLocal6} {
		if err := h.NeighSet(neighbour(index, gw, v.hostMAC)); err != nil {
			return fmt.Errorf("set the neighbour %s of the workload: %w", gw, err)
		}
	}
	routes := []*netlink.Route{
		{LinkIndex: index, Dst: hostPrefix(wellknown.LinkLocal4), Scope: netlink.SCOPE_LINK, Src: v4.AsSlice()},
		{LinkIndex: index, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Gw: wellknown.LinkLocal4.AsSlice(), Src: v4.AsSlice()},
		{LinkIndex: index, Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, Gw: wellknown.LinkLocal6.AsSlice(), Src: v6.AsSlice()},
	}
	for _, r := range routes {
		if err := h.RouteReplace(r); err != nil {
			return fmt.Errorf("add the route to %s in the workload: %w", r.Dst, err)
		}
	}
	return nil
}

// removeVeth removes the pair by the name of its host side, if it exists.
func removeVeth(host string) error {
	link, err := netlink.LinkByName(host)
	var absent netlink.LinkNotFoundError
	if errors.As(err, &absent) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find interface %s: %w", host, err)
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("remove interface %s: %w", host, err)
	}
	return nil
}

// vacate removes what carries the interface's name in the workload's
// namespace: the leftover of an attachment that failed half-way.
func vacate(ifName string, namespace *os.File) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(namespace.Fd()))
	if err != nil {
		return fmt.Errorf("enter the workload's namespace: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(ifName)
	var absent netlink.LinkNotFoundError
	if errors.As(err, &absent) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find interface %s of the workload: %w", ifName, err)
	}
	if err := h.LinkDel(link); err != nil {
		return fmt.Errorf("remove interface %s of the workload: %w", ifName, err)
	}
	return nil
}

// linkIndex returns the index of an interface, 0 if there is none. That it
// cannot be looked up does not mean that it is not there. Unlike netlink the
// call does not wait for the kernel's lock of all interfaces, which whoever
// attaches a program holds for tens of milliseconds.
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

// prepareNode makes the node a router for its endpoints and gives it the
// address that they know it by.
func prepareNode() error {
	for _, knob := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := sysctl(knob, "1"); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up the loopback interface: %w", err)
	}
	if err := netlink.AddrReplace(lo, &netlink.Addr{IPNet: hostPrefix(wellknown.LinkLocal4), Scope: unix.RT_SCOPE_LINK}); err != nil {
		return fmt.Errorf("give the node the address %s: %w", wellknown.LinkLocal4, err)
	}
	return nil
}

// sysctl writes a kernel parameter of the process's network namespace.
func sysctl(name, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
		return fmt.Errorf("set the kernel parameter %s: %w", name, err)
	}
	return nil
}

// result is the answer to ADD.
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
