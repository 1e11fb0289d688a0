// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/host"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/wellknown"
)

// veth is a workload's pair of interfaces.
type veth struct {
	host      string // name of the end in the node's namespace
	hostIndex int
	hostMAC   net.HardwareAddr
	peerMAC   net.HardwareAddr // of the end in the workload's namespace
	mtu       int              // of both ends
	loopback  bool             // the node leads what the workload sends to a loopback address of its own
	guest     bool             // a virtual machine has the addresses, behind a tap interface in the workload's namespace
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

// macs returns the Ethernet addresses of a pair by the name of its host side. They follow from the
// name, so that they are known after a restart and can be compared; and udev does not replace an
// address that was chosen (MACAddressPolicy of systemd.link(5)).
func macs(host string) (own, peer net.HardwareAddr) {
	sum := sha256.Sum256([]byte("sif endpoint " + host))
	own, peer = slices.Clone(sum[:6]), slices.Clone(sum[6:12])
	for _, m := range []net.HardwareAddr{own, peer} {
		m[0] = m[0]&^1 | 2 // unicast, locally administered
	}
	return own, peer
}

// make makes the pair that v describes, apart from the index, with the end named ifName in the
// workload's namespace. Both ends are down.
func (v veth) make(ifName string, namespace ns.NetNS) (veth, error) {
	host, mtu := v.host, v.mtu
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = host, mtu, v.hostMAC
	pair := &netlink.Veth{
		LinkAttrs: attrs, PeerName: ifName, PeerNamespace: netlink.NsFd(int(namespace.Fd())),
		PeerMTU:          uint32(mtu), // the kernel does not copy it from the pair
		PeerHardwareAddr: v.peerMAC,
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return v, fmt.Errorf("create the interface pair %s: %w", host, err)
	}
	link, err := netlinksafe.LinkByName(host)
	if err != nil {
		return v, fmt.Errorf("find interface %s: %w", host, err)
	}
	v.hostIndex = link.Attrs().Index
	return v, nil
}

// hostSide is what must be of the host side of the pair: it carries the endpoint's addresses. The
// node has its link-local IPv6 address there, and no other one: such an address is of one link.
func (v veth) hostSide(v4, v6 netip.Addr) kernel.Interface {
	localnet := "0" // the kernel takes in nothing with an address of loopback
	if v.loopback {
		localnet = "1" // as far as the node's firewall leads it there
	}
	const noAddress = "1" // of addr_gen_mode
	side := kernel.Interface{
		Name: v.host, Index: v.hostIndex, Passing: true, MTU: v.mtu, MAC: v.hostMAC,
		// The workload must not be able to configure the node by router advertisements or
		// redirects. Hardened hosts disable IPv6 on every new interface.
		IPv4: []kernel.Sysctl{{Name: "accept_redirects", Value: "0"}, {Name: "send_redirects", Value: "0"}, {Name: "forwarding", Value: "1"}, {Name: "route_localnet", Value: localnet}},
		IPv6: []kernel.Sysctl{
			{Name: "disable_ipv6", Value: "0"}, {Name: "accept_ra", Value: "0"}, {Name: "accept_dad", Value: "0"},
			{Name: "accept_redirects", Value: "0"}, {Name: "forwarding", Value: "1"}, {Name: "addr_gen_mode", Value: noAddress},
		},
		Addresses:  []kernel.Address{{Prefix: single(wellknown.LinkLocal6), Scope: unix.RT_SCOPE_LINK}},
		OnlyRoutes: []int{unix.RT_TABLE_MAIN},
	}
	for _, addr := range []netip.Addr{v4, v6} {
		side.Neighbours = append(side.Neighbours, kernel.Neighbour{Addr: addr, MAC: v.peerMAC})
		side.Routes = append(side.Routes, kernel.Route{Prefix: single(addr)})
	}
	return side
}

// workloadSide is what must be in the workload's namespace. All routes lead to the node. Loopback
// is up, which is not Nomad's work.
func (v veth) workloadSide(ifName string, v4, v6 netip.Addr) kernel.State {
	if v.guest {
		return v.guestSide(ifName)
	}
	side := kernel.Interface{
		Name: ifName, Passing: true, MTU: v.mtu, MAC: v.peerMAC,
		// Docker disables IPv6 in the namespaces that it makes.
		IPv6: []kernel.Sysctl{{Name: "disable_ipv6", Value: "0"}, {Name: "accept_ra", Value: "0"}},
		// Addresses are unique in the fabric, so duplicate address detection would only delay.
		Addresses: []kernel.Address{{Prefix: single(v4)}, {Prefix: single(v6)}},
		Routes: []kernel.Route{
			{Prefix: single(wellknown.LinkLocal4), Source: v4},
			// Without it the workload's link-local address would be the source.
			{Prefix: single(wellknown.LinkLocal6), Source: v6},
			{Prefix: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Gateway: wellknown.LinkLocal4, Source: v4},
			{Prefix: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Gateway: wellknown.LinkLocal6, Source: v6},
		},
	}
	for _, gateway := range []netip.Addr{wellknown.LinkLocal4, wellknown.LinkLocal6} {
		side.Neighbours = append(side.Neighbours, kernel.Neighbour{Addr: gateway, MAC: v.hostMAC})
	}
	return kernel.State{Interfaces: []kernel.Interface{{Name: "lo"}, side}}
}

// raiseHost brings the host side up and routes the endpoint's addresses to it. The eBPF programs
// must be attached before.
func (v veth) raiseHost(v4, v6 netip.Addr) error {
	return kernel.Set(kernel.State{Interfaces: []kernel.Interface{v.hostSide(v4, v6)}})
}

// raiseWorkload brings the workload's side up and gives it its addresses and routes.
func (v veth) raiseWorkload(ifName string, namespace ns.NetNS, v4, v6 netip.Addr) error {
	return namespace.Do(func(ns.NetNS) error {
		if err := kernel.Set(v.workloadSide(ifName, v4, v6)); err != nil {
			return fmt.Errorf("in the workload's namespace: %w", err)
		}
		return nil
	})
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

func single(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

// router is what must be of the node: it forwards, and has the address at which workloads reach its
// DNS server, and its health addresses. The IPv4 one has host scope, so that the kernel never
// chooses it as the source of other packets.
func router(self fabric.Node) kernel.State {
	lo := kernel.Interface{Name: "lo", Addresses: []kernel.Address{{Prefix: single(wellknown.LinkLocal4), Scope: unix.RT_SCOPE_LINK}}}
	if self.Pool4.IsValid() && self.Pool6.IsValid() {
		lo.Addresses = append(lo.Addresses,
			kernel.Address{Prefix: single(self.Health4()), Scope: unix.RT_SCOPE_HOST}, kernel.Address{Prefix: single(self.Health6())})
		lo.IPv6 = []kernel.Sysctl{{Name: "disable_ipv6", Value: "0"}} // for the latter
	}
	return kernel.State{
		Sysctls:    host.Forwarding,
		Interfaces: []kernel.Interface{lo},
	}
}

// result returns the CNI result of ADD.
func (v veth) result(ifName, sandbox string, v4, v6 netip.Addr) *current.Result {
	inside := 1
	result := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: v.host, Mac: v.hostMAC.String(), Mtu: v.mtu},
			{Name: ifName, Mac: v.peerMAC.String(), Mtu: v.mtu, Sandbox: sandbox},
		},
		IPs: []*current.IPConfig{
			{Interface: &inside, Address: network(v4), Gateway: wellknown.LinkLocal4.AsSlice()},
			{Interface: &inside, Address: network(v6), Gateway: wellknown.LinkLocal6.AsSlice()},
		},
		Routes: []*types.Route{
			{Dst: net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, GW: wellknown.LinkLocal4.AsSlice()},
			{Dst: net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, GW: wellknown.LinkLocal6.AsSlice()},
		},
		DNS: types.DNS{Nameservers: []string{wellknown.LinkLocal4.String()}},
	}
	if v.guest {
		result.Interfaces = append(result.Interfaces, &current.Interface{Name: wellknown.GuestTap, Mac: v.hostMAC.String(), Sandbox: sandbox})
	}
	return result
}

func network(addr netip.Addr) net.IPNet {
	return net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
}
