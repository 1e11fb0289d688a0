// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// patience bounds one exchange with a server.
const patience = 10 * time.Second

// configure4 takes a lease and sets the address, routes, MTU, host name and resolvers of it. It
// returns when to renew it.
func configure4(card netlink.Link) (renew time.Duration, err error) {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	client, err := nclient4.New(card.Attrs().Name, nclient4.WithTimeout(time.Second), nclient4.WithRetry(8))
	if err != nil {
		return 0, err
	}
	defer client.Close()
	lease, err := client.Request(ctx, dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionClasslessStaticRoute,
		dhcpv4.OptionDomainNameServer, dhcpv4.OptionHostName, dhcpv4.OptionInterfaceMTU))
	if err != nil {
		return 0, err
	}
	ack := lease.ACK
	if mtu := ack.Options.Get(dhcpv4.OptionInterfaceMTU); len(mtu) == 2 {
		if err := netlink.LinkSetMTU(card, int(binary.BigEndian.Uint16(mtu))); err != nil {
			return 0, fmt.Errorf("set the MTU: %w", err)
		}
	}
	address := &net.IPNet{IP: ack.YourIPAddr, Mask: ack.SubnetMask()}
	if address.Mask == nil {
		return 0, errors.New("the lease has no subnet mask")
	}
	if err := netlink.AddrReplace(card, &netlink.Addr{IPNet: address}); err != nil {
		return 0, fmt.Errorf("set address %s: %w", address, err)
	}
	routes := ack.ClasslessStaticRoute()
	if len(routes) == 0 && len(ack.Router()) > 0 { // only without them counts the router
		routes = append(routes, &dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Router: ack.Router()[0]})
	}
	for _, r := range routes {
		route := &netlink.Route{LinkIndex: card.Attrs().Index, Dst: r.Dest, Gw: r.Router}
		if r.Router.IsUnspecified() {
			route.Gw, route.Scope = nil, netlink.SCOPE_LINK
		}
		if err := netlink.RouteReplace(route); err != nil {
			return 0, fmt.Errorf("set route %s: %w", r, err)
		}
	}
	if name := ack.HostName(); name != "" {
		if err := unix.Sethostname([]byte(name)); err != nil {
			return 0, fmt.Errorf("set host name %q: %w", name, err)
		}
	}
	if err := resolvers(ack.DNS()); err != nil {
		return 0, err
	}
	renew = ack.IPAddressRenewalTime(ack.IPAddressLeaseTime(time.Hour) / 2)
	say("DHCP: address %s, routes %s, servers %s, renewal in %s", address, routes, ack.DNS(), renew)
	return renew, nil
}

// configure6 takes the address that the server has for the machine. Its route comes by router
// advertisements, which are the kernel's.
func configure6(card netlink.Link) (renew time.Duration, err error) {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	client, err := nclient6.New(card.Attrs().Name, nclient6.WithTimeout(time.Second), nclient6.WithRetry(8))
	if err != nil {
		return 0, err // for instance that the link-local address is not ready yet
	}
	defer client.Close()
	offer, err := client.Solicit(ctx)
	if err != nil {
		return 0, err
	}
	reply, err := client.Request(ctx, offer)
	if err != nil {
		return 0, err
	}
	association := reply.Options.OneIANA()
	if association == nil || association.Options.OneAddress() == nil {
		return 0, fmt.Errorf("the server gives no address: %s", reply.Summary())
	}
	given := association.Options.OneAddress()
	address := &net.IPNet{IP: given.IPv6Addr, Mask: net.CIDRMask(128, 128)}
	if err := netlink.AddrReplace(card, &netlink.Addr{IPNet: address}); err != nil {
		return 0, fmt.Errorf("set address %s: %w", address, err)
	}
	renew = association.T1
	if renew == 0 {
		renew = given.ValidLifetime / 2
	}
	say("DHCPv6: address %s, renewal in %s", address, renew)
	return max(renew, time.Second), nil
}

func resolvers(servers []net.IP) error {
	if len(servers) == 0 {
		return nil
	}
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	return os.WriteFile("/etc/resolv.conf", []byte(b.String()), 0o644)
}
