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
	"sync"
	"sync/atomic"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// routeProtocol marks the routes that we made, and may remove (rtm_protocol of
// rtnetlink(7); 205 is not in iproute2's rt_protos).
const routeProtocol = 205

// inNamespace runs f on a thread of the network namespace at path, or of the process's own if path
// is empty. Goroutines that f starts run in the process's own namespace.
func inNamespace(path string, f func() error) error {
	if path == "" {
		return f()
	}
	return ns.WithNetNSPath(path, func(ns.NetNS) error { return f() })
}

// namespaceID tells namespaces apart that had the same path one after another.
type namespaceID struct{ dev, ino uint64 }

func identifyNamespace(path string) (namespaceID, error) {
	if path == "" {
		return namespaceID{}, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return namespaceID{}, fmt.Errorf("look up network namespace %s: %w", path, err)
	}
	return namespaceID{dev: uint64(st.Dev), ino: st.Ino}, nil
}

// tunDevice is a TUN interface that may live in another namespace. It takes
// the place of wireguard-go's own monitored one, whose MTU and state come from
// sockets of whatever namespace the asking thread is in: a device of the same
// name there would be mistaken for it. Up and down are the server's to say.
type tunDevice struct {
	tun.Device
	mtu atomic.Int64

	mu     sync.Mutex
	closed bool
	events chan tun.Event
}

// openTUN makes the interface in the current thread's namespace.
func openTUN(name string, mtu int) (*tunDevice, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("name TUN interface %q: %w", name, err)
	}
	// IFF_TUN_EXCL: never join a TUN that somebody else left here.
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("create TUN interface %s: %w", name, err)
	}
	device, _, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up TUN interface %s: %w", name, err)
	}
	t := &tunDevice{Device: device, events: make(chan tun.Event, 1)}
	t.mtu.Store(int64(mtu))
	return t, nil
}

func (t *tunDevice) MTU() (int, error) { return int(t.mtu.Load()), nil }

func (t *tunDevice) Events() <-chan tun.Event { return t.events }

// setMTU tells wireguard-go the interface's MTU, which bounds its padding.
func (t *tunDevice) setMTU(mtu int) {
	if t.mtu.Swap(int64(mtu)) == int64(mtu) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	select {
	case t.events <- tun.EventMTUUpdate:
	default: // one is waiting to be read, and will read the new value
	}
}

func (t *tunDevice) Close() error {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.events)
	}
	t.mu.Unlock()
	return t.Device.Close()
}

// setSysctls makes the interface pass IPv6, keep no address of its own, and
// leave the check of source addresses to WireGuard, which does it by key. It
// must run in the interface's namespace.
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

// setRoutes makes the routes of ours to the interface be exactly those to the
// given prefixes with the given MTU.
func setRoutes(nl netlinksafe.Handle, link netlink.Link, prefixes []netip.Prefix, mtu int) error {
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
			return fmt.Errorf("list routes of %s: %w", link.Attrs().Name, err)
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
				return fmt.Errorf("remove route %s of %s: %w", prefix, link.Attrs().Name, err)
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
			return fmt.Errorf("route %s to %s: %w", prefix, link.Attrs().Name, err)
		}
	}
	return nil
}

// prefixOf returns the zero prefix for what no peer can have: a default route.
func prefixOf(dst *net.IPNet) netip.Prefix {
	if dst == nil {
		return netip.Prefix{}
	}
	addr, _ := netip.AddrFromSlice(dst.IP)
	bits, _ := dst.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}

// reversePathFiltered says whether the namespace's setting for all interfaces
// overrides ours: the kernel applies the stricter of the two. It must run in
// that namespace.
func reversePathFiltered() bool {
	value, err := os.ReadFile("/proc/sys/net/ipv4/conf/all/rp_filter")
	return err == nil && len(value) > 0 && value[0] != '0'
}
