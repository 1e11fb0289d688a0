// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package port connects an encrypted link to the switch. It keeps a network namespace that contains
// the link's device and one end of a veth pair, whose other end is a port of the switch, and routes
// between the two.
//
// It knows devices, addresses and routes. It must not know who may talk to whom, nor how the link
// is encrypted.
//
// In that namespace a packet from the link can only go to the switch, and one from the switch only
// to the link: rules by incoming interface choose one of two routing tables, and each table ends in
// a blackhole route. The main table serves the namespace's own error messages. So two peers behind
// one link cannot reach each other around the switch, although there are routes to both.
//
// The switch's end of the veth has another MAC address than the packets that are sent to it. The
// switch reads packets with any destination address; the kernel behind the same device takes them
// for another host's and does not route them around the switch.
package port

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Config describes a port.
type Config struct {
	// Namespace is the name of the port's own network namespace.
	Namespace string
	// Home is the name of the switch's network namespace; if empty, it is the caller's. The link's
	// device is there, or already in Namespace.
	Home string
	// Outer is the name of the veth's end at the switch: the switch's port.
	Outer string
	// Device is the name of the link's device.
	Device string
	// MTU is the veth's, in bytes: at least 26 less than the smallest MTU of all links of the
	// switch, and the same at all its ports. With segmentation offload Open vSwitch 3.1 segments
	// TCP anew on output, to this MTU less a header without options, of which there may be 40
	// bytes, less the 14 of Ethernet. A segment that then does not fit the link is lost each time
	// it is sent. Other packets that are too big are refused before the switch, where the kernel
	// tells their sender.
	MTU int
	// Prefixes are behind the link.
	Prefixes []netip.Prefix
	// Addrs are the namespace's own, from which it tells senders that a packet is too big. IPv6
	// needs one for that.
	Addrs []netip.Addr
}

const (
	inner = "switch0" // the veth's end in the port's namespace

	tableFromLink   = 101
	tableFromSwitch = 102
	ruleFromLink    = 101
	ruleFromSwitch  = 102
)

// ErrNoDevice says that the link's device is in neither namespace. The rest of the port is ready;
// call Ensure again when the device exists.
var ErrNoDevice = errors.New("the link's device does not exist")

// MACs returns the Ethernet addresses of the port with the given outer device: the source and the
// destination of what the switch sends.
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

// space is a network namespace with a netlink socket in it.
type space struct {
	netlinksafe.Handle
	ns ns.NetNS
}

// in runs do in the namespace.
func (s space) in(do func() error) error { return s.ns.Do(func(ns.NetNS) error { return do() }) }

func (s space) close() {
	s.Handle.Close()
	_ = s.ns.Close()
}

// openSpace opens the named network namespace, or the caller's if the name is empty.
func openSpace(name string) (s space, err error) {
	if name == "" {
		s.ns, err = ns.GetCurrentNS()
	} else {
		s.ns, err = ns.GetNS(namespacePath(name))
	}
	if err != nil {
		return s, fmt.Errorf("open namespace %q: %w", name, err)
	}
	err = s.in(func() (err error) {
		s.Handle, err = netlinksafe.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		_ = s.ns.Close()
		return s, fmt.Errorf("open a netlink socket in namespace %q: %w", name, err)
	}
	return s, nil
}

// namespacePath returns where package netns and `ip netns` keep a named namespace.
func namespacePath(name string) string { return filepath.Join("/run/netns", name) }

// spaces are the two namespaces of a port: the switch's and its own.
type spaces struct{ home, port space }

func (s *spaces) close() {
	s.home.close()
	s.port.close()
}

func open(c Config) (*spaces, error) {
	home, err := openSpace(c.Home)
	if err != nil {
		return nil, err
	}
	port, err := openSpace(c.Namespace)
	if err != nil {
		home.close()
		return nil, err
	}
	return &spaces{home, port}, nil
}

// Ensure makes the port, or repairs what of it is missing or wrong. It can be called at any time.
// fresh says, with or without an error, that Outer is a new device: the caller must remove the old
// one from the switch, if it was a port there, and add the new one.
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
	if err := s.port.in(func() error { return writeSysctls(base) }); err != nil {
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

// Remove gives the link's device back to the switch's namespace and removes the rest. Parts that do
// not exist are no error. The caller removes Outer from the switch first.
func Remove(c Config) error {
	s, err := open(c)
	switch {
	case missingNamespace(err):
		return nil // the veth went with its namespace
	case err != nil:
		return fmt.Errorf("remove port %s: %w", c.Outer, err)
	}
	defer s.close()
	if device, err := s.port.LinkByName(c.Device); err == nil {
		if err := s.port.LinkSetNsFd(device, int(s.home.ns.Fd())); err != nil {
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
	there, err := ns.GetNS(namespacePath(name))
	if err == nil {
		return there.Close()
	}
	if !missingNamespace(err) {
		return fmt.Errorf("open namespace %s: %w", name, err)
	}
	here, err := ns.GetCurrentNS()
	if err != nil {
		return fmt.Errorf("open this thread's namespace: %w", err)
	}
	defer here.Close()
	// NewNamed leaves its thread in the new namespace; Do brings it back.
	return here.Do(func(ns.NetNS) error {
		made, err := netns.NewNamed(name)
		if err != nil {
			return fmt.Errorf("make namespace %s: %w", name, err)
		}
		return made.Close()
	})
}

func missingNamespace(err error) bool {
	var missing ns.NSPathNotExistErr
	return errors.As(err, &missing)
}

// sysctl is a file below /proc/sys/net and what to write to it.
type sysctl struct{ path, value string }

// base makes the namespace a router that filters nothing and sends nothing on its own account: the
// switch decides who may send from where.
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

// ofDevice returns what a device that was made in another namespace did not inherit from base.
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
