// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package port plugs an encrypted link into the switch: it keeps a network
// namespace that holds the link's device, one end of a veth pair whose other end
// is the switch's port, and routes between the two.
//
// It knows devices, addresses, routes. It must not know who is allowed what, nor
// how the link is encrypted.
//
// In that namespace a packet from the link can only go to the switch, and one
// from the switch only to the link: rules by incoming interface choose a routing
// table each, and each table ends in a black hole. The main table serves the
// namespace's own error messages. So two peers behind one link cannot reach each
// other around the switch, although routes to both are there.
//
// The device of the switch's end has another MAC address than the one that
// packets for the switch carry. The switch reads packets of any address; the
// kernel behind the same device takes them for somebody else's and does not
// route them around the switch.
package port

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Config says what a port is made of.
type Config struct {
	// Namespace is the name of the port's own network namespace.
	Namespace string
	// Home is the name of the switch's network namespace, or empty for that of
	// this process. The link's device is found there, or already in Namespace.
	Home string
	// Outer is the name of the veth's end at the switch: the switch's port.
	Outer string
	// Device is the name of the link's device.
	Device string
	// MTU is that of the veth, in bytes: at least 26 less than the smallest MTU of
	// all links of the switch, and the same at all its ports. With segmentation
	// offload Open vSwitch 3.1 cuts TCP anew when it leaves, to this MTU less a
	// header without options, of which there may be 40 bytes, less the 14 of
	// Ethernet. A segment that then does not fit the link is lost each time it is
	// sent. Other packets that are too big are refused before the switch, where
	// the kernel tells their sender.
	MTU int
	// Prefixes are behind the link.
	Prefixes []netip.Prefix
	// Addrs are the namespace's own, from which it tells senders that packets are
	// too big. IPv6 needs one for that.
	Addrs []netip.Addr
}

const (
	inner = "switch0" // the veth's end in the port's namespace

	tableFromLink   = 101
	tableFromSwitch = 102
	ruleFromLink    = 101
	ruleFromSwitch  = 102
)

// ErrNoDevice says that the link's device is in neither namespace. The rest of
// the port is ready; Ensure again when the device is there.
var ErrNoDevice = errors.New("the link's device is not there")

// MACs are the Ethernet addresses of the port with the given outer device: the
// one that the switch sends from, and the one it sends to.
func MACs(outer string) (own, peer [6]byte) {
	sum := sha256.Sum256([]byte("sif port " + outer))
	copy(own[:], sum[:6])
	copy(peer[:], sum[6:12])
	for _, m := range []*[6]byte{&own, &peer} {
		m[0] = m[0]&^1 | 2 // unicast, locally administered
	}
	own[5], peer[5] = own[5]&^1, peer[5]|1 // never the same
	return own, peer
}

// spaces are the two namespaces of a port.
type spaces struct {
	home, port     *netlink.Handle
	homeNS, portNS netns.NsHandle
}

func (s *spaces) close() {
	s.home.Close()
	s.port.Close()
	_ = s.homeNS.Close()
	_ = s.portNS.Close()
}

// startNamespace leads to the namespace that the process was started in. It is
// opened before any thread can have moved: /proc/self/ns/net is that of the main
// thread, which the runtime may lend to a goroutine that visits another one.
var startNamespace = func() string {
	ns, err := netns.Get()
	if err != nil {
		return "/proc/self/ns/net"
	}
	return fmt.Sprintf("/proc/self/fd/%d", int(ns))
}()

func openHome(c Config) (netns.NsHandle, error) {
	if c.Home == "" {
		return netns.GetFromPath(startNamespace)
	}
	return netns.GetFromName(c.Home)
}

func open(c Config) (*spaces, error) {
	homeNS, err := openHome(c)
	if err != nil {
		return nil, fmt.Errorf("open the switch's namespace: %w", err)
	}
	portNS, err := netns.GetFromName(c.Namespace)
	if err != nil {
		_ = homeNS.Close()
		return nil, fmt.Errorf("open namespace %s: %w", c.Namespace, err)
	}
	s := &spaces{homeNS: homeNS, portNS: portNS}
	if s.home, err = netlink.NewHandleAt(homeNS); err == nil {
		s.port, err = netlink.NewHandleAt(portNS)
	}
	if err != nil {
		if s.home != nil {
			s.home.Close()
		}
		_ = homeNS.Close()
		_ = portNS.Close()
		return nil, fmt.Errorf("talk to the kernel about namespaces: %w", err)
	}
	return s, nil
}

// Ensure makes the port, or repairs what is missing or wrong of it. It can be
// called at any time. fresh says, with or without an error, that Outer is a new
// device: the caller takes the old one out of the switch, if it was in, and adds
// the new one.
func Ensure(c Config) (fresh bool, err error) {
	if fresh, err = ensure(c); err != nil {
		return fresh, fmt.Errorf("port %s: %w", c.Outer, err)
	}
	return fresh, nil
}

func ensure(c Config) (fresh bool, err error) {
	if err := ensureNamespace(c.Namespace); err != nil {
		return false, err
	}
	s, err := open(c)
	if err != nil {
		return false, err
	}
	defer s.close()
	if err := inNamespace(s.portNS, func() error { return writeSysctls(base) }); err != nil {
		return false, err
	}
	if fresh, err = s.ensureVeth(c); err != nil {
		return fresh, err
	}
	if err := s.ensureAddresses(c); err != nil {
		return fresh, err
	}
	if err := s.ensureSwitchSide(c); err != nil {
		return fresh, err
	}
	return fresh, s.ensureLinkSide(c)
}

// Remove gives the link's device back to the switch's namespace and removes the
// rest. What is already gone is no error. The caller takes Outer out of the
// switch first.
func Remove(c Config) error {
	s, err := open(c)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil // the veth went with its namespace
	case err != nil:
		return fmt.Errorf("remove port %s: %w", c.Outer, err)
	}
	defer s.close()
	if device, err := s.port.LinkByName(c.Device); err == nil {
		if err := s.port.LinkSetNsFd(device, int(s.homeNS)); err != nil {
			return fmt.Errorf("remove port %s: give back %s: %w", c.Outer, c.Device, err)
		}
	}
	if outer, err := s.home.LinkByName(c.Outer); err == nil {
		if err := s.home.LinkDel(outer); err != nil {
			return fmt.Errorf("remove port %s: delete the veth: %w", c.Outer, err)
		}
	}
	if err := netns.DeleteNamed(c.Namespace); err != nil {
		return fmt.Errorf("remove port %s: delete namespace %s: %w", c.Outer, c.Namespace, err)
	}
	return nil
}

func ensureNamespace(name string) error {
	ns, err := netns.GetFromName(name)
	if err == nil {
		return ns.Close()
	}
	if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open namespace %s: %w", name, err)
	}
	return onThread(func() error {
		ns, err := netns.NewNamed(name)
		if err != nil {
			return fmt.Errorf("make namespace %s: %w", name, err)
		}
		return ns.Close()
	})
}

func inNamespace(ns netns.NsHandle, do func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		return do()
	})
}

// onThread runs do on a thread that ends with it, because it changes the
// thread's namespace.
func onThread(do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends
		done <- do()
	}()
	return <-done
}

// sysctl is a file below /proc/sys/net and what to write to it.
type sysctl struct{ path, value string }

// base makes a router of a namespace that checks and says nothing by itself:
// who may send from where is the switch's to judge.
var base = []sysctl{
	{"ipv4/ip_forward", "1"},
	{"ipv4/conf/all/rp_filter", "0"},
	{"ipv4/conf/default/rp_filter", "0"},
	{"ipv4/conf/all/send_redirects", "0"},
	{"ipv4/conf/default/send_redirects", "0"},
	{"ipv4/conf/all/accept_redirects", "0"},
	{"ipv4/conf/default/accept_redirects", "0"},
	{"ipv6/conf/all/disable_ipv6", "0"},
	{"ipv6/conf/default/disable_ipv6", "0"},
	{"ipv6/conf/all/forwarding", "1"},
	{"ipv6/conf/default/forwarding", "1"},
	{"ipv6/conf/all/accept_ra", "0"},
	{"ipv6/conf/default/accept_ra", "0"},
	{"ipv6/conf/all/accept_redirects", "0"},
	{"ipv6/conf/default/accept_redirects", "0"},
	{"ipv6/conf/default/addr_gen_mode", "1"}, // no link-local address, so no noise
}

// ofDevice is what a device that came from elsewhere did not get by default.
func ofDevice(name string) []sysctl {
	return []sysctl{
		{"ipv4/conf/" + name + "/rp_filter", "0"},
		{"ipv4/conf/" + name + "/send_redirects", "0"},
		{"ipv4/conf/" + name + "/accept_redirects", "0"},
		{"ipv6/conf/" + name + "/forwarding", "1"},
		{"ipv6/conf/" + name + "/accept_ra", "0"},
		{"ipv6/conf/" + name + "/accept_redirects", "0"},
		{"ipv6/conf/" + name + "/addr_gen_mode", "1"},
	}
}

func writeSysctls(list []sysctl) error {
	for _, s := range list {
		if err := os.WriteFile("/proc/sys/net/"+s.path, []byte(s.value), 0o644); err != nil {
			return fmt.Errorf("set net/%s: %w", s.path, err)
		}
	}
	return nil
}

func hardware(mac [6]byte) net.HardwareAddr { return mac[:] }
