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
	"path/filepath"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/node/kernel"
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
	// switch, and the same at all its ports. In user space and with segmentation offload, Open
	// vSwitch 3.1 segments TCP anew on output, to this MTU less a header without options, of which
	// there may be 40 bytes, less the 14 of Ethernet. A segment that then does not fit the link is
	// lost each time it is sent. The kernel's datapath keeps segments. Other packets that are too
	// big are refused before the switch, where the kernel tells their sender.
	MTU int
	// Prefixes are behind the link.
	Prefixes []netip.Prefix
	// Ranges are those of the fabric, and OutsideMTU, unless it is 0, is the MTU towards all other
	// addresses, if it is smaller than MTU: senders are told of it before the switch, which tells
	// nothing.
	Ranges     []netip.Prefix
	OutsideMTU int
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

// Ensure makes the port, or repairs what of it is missing or wrong, and returns what it did. It can
// be called at any time. fresh says, with or without an error, that Outer is a new device: the
// caller must remove the old one from the switch, if it was a port there, and add the new one.
func Ensure(c Config) (changes []kernel.Change, fresh bool, err error) {
	if changes, fresh, err = ensure(c); err != nil {
		return changes, fresh, fmt.Errorf("port %s: %w", c.Outer, err)
	}
	return changes, fresh, nil
}

func ensure(c Config) (changes []kernel.Change, fresh bool, err error) {
	if err := ensureNamespace(c.Namespace); err != nil {
		return nil, false, err
	}
	s, err := open(c)
	if err != nil {
		return nil, false, err
	}
	defer s.close()
	repair := func(in space, state kernel.State) error {
		return in.in(func() error {
			made, err := kernel.Repair(state)
			for i := range made {
				made[i].Subject += " in the namespace of " + c.Device
			}
			changes = append(changes, made...)
			return err
		})
	}
	// What interfaces inherit comes before the interfaces.
	if err := repair(s.port, kernel.State{Sysctls: base}); err != nil {
		return changes, false, err
	}
	if fresh, err = s.ensureVeth(c); err != nil {
		return changes, fresh, err
	}
	if fresh {
		changes = append(changes, kernel.Change{Kind: kernel.KindInterface, Subject: c.Outer, What: "was missing or unpaired, made"})
	}
	if err := repair(s.home, outerState(c)); err != nil {
		return changes, fresh, err
	}
	if err := repair(s.port, innerState(c)); err != nil {
		return changes, fresh, err
	}
	if err := s.port.in(func() error { return SplitDatagrams(inner) }); err != nil {
		return changes, fresh, err
	}
	if err := s.fetchDevice(c); err != nil {
		return changes, fresh, err
	}
	return changes, fresh, repair(s.port, deviceState(c))
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

// base makes the namespace a router that filters nothing and sends nothing on its own account: the
// switch decides who may send from where.
var base = []kernel.Sysctl{
	{Name: "net/ipv4/ip_forward", Value: "1"},
	{Name: "net/ipv4/conf/all/rp_filter", Value: "0"},
	{Name: "net/ipv4/conf/default/rp_filter", Value: "0"},
	{Name: "net/ipv4/conf/all/send_redirects", Value: "0"},
	{Name: "net/ipv4/conf/default/send_redirects", Value: "0"},
	{Name: "net/ipv4/conf/all/accept_redirects", Value: "0"},
	{Name: "net/ipv4/conf/default/accept_redirects", Value: "0"},
	{Name: "net/ipv6/conf/all/disable_ipv6", Value: "0"},
	{Name: "net/ipv6/conf/default/disable_ipv6", Value: "0"},
	{Name: "net/ipv6/conf/all/forwarding", Value: "1"},
	{Name: "net/ipv6/conf/default/forwarding", Value: "1"},
	{Name: "net/ipv6/conf/all/accept_ra", Value: "0"},
	{Name: "net/ipv6/conf/default/accept_ra", Value: "0"},
	{Name: "net/ipv6/conf/all/accept_redirects", Value: "0"},
	{Name: "net/ipv6/conf/default/accept_redirects", Value: "0"},
	{Name: "net/ipv6/conf/default/addr_gen_mode", Value: "1"}, // no link-local address, so no noise
}

// What a device that was made in another namespace did not inherit from base.
var (
	settings4 = []kernel.Sysctl{
		{Name: "forwarding", Value: "1"}, {Name: "rp_filter", Value: "0"}, {Name: "send_redirects", Value: "0"}, {Name: "accept_redirects", Value: "0"},
	}
	settings6 = []kernel.Sysctl{
		{Name: "disable_ipv6", Value: "0"}, {Name: "forwarding", Value: "1"}, {Name: "accept_ra", Value: "0"}, {Name: "accept_redirects", Value: "0"},
		{Name: "addr_gen_mode", Value: "1"},
	}
)

func hardware(mac [6]byte) net.HardwareAddr { return mac[:] }
