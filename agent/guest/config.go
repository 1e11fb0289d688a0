// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package guest

import (
	"net"
	"net/netip"
	"time"

	"github.com/sif-project/sif/internal/wellknown"
)

const (
	// lifetime is how long an address holds without an answer of ours: the agent may be away as
	// long, less renewal.
	lifetime = 7 * 24 * time.Hour
	// renewal is when a guest asks again, and so learns of another MTU or address.
	renewal = 10 * time.Minute
	// rebinding is when a guest asks whoever answers.
	rebinding = lifetime * 7 / 8
	// routerLifetime is the longest that a router advertisement can say.
	routerLifetime = 65535 * time.Second
	// advertising is the time between router advertisements that nobody asked for.
	advertising = 10 * time.Minute
)

// Config is what a guest is told.
type Config struct {
	MAC        [6]byte // the guest's
	GatewayMAC [6]byte // of the node's end of the endpoint's pair
	IPv4, IPv6 netip.Addr
	MTU        int    // in bytes
	HostName   string // empty: none
}

func (c Config) mac() net.HardwareAddr        { return c.MAC[:] }
func (c Config) gatewayMAC() net.HardwareAddr { return c.GatewayMAC[:] }

// The node, as its guests know it.
var (
	gateway4   = wellknown.LinkLocal4
	gateway6   = wellknown.LinkLocal6
	nameserver = wellknown.LinkLocal4
)

// Event is what a frame of the guest was about.
type Event int

// The events.
const (
	Nothing    Event = iota // that the node answers
	Asked                   // it looks for an address, a server or a router
	Confirmed4              // it has its IPv4 address from us
	Confirmed6              // likewise, IPv6
	Declined                // it says that another has its address
	Mistaken                // it asked for another address than its own
)

// answer returns the frame that answers one of the guest, or nil, and what that was about. What is
// not the guest's own question is not answered.
func (c Config) answer(frame []byte) ([]byte, Event) {
	p, ok := parseFrame(frame)
	if !ok || p.sourceMAC != c.MAC {
		return nil, Nothing
	}
	switch {
	case p.solicits && (p.source.IsUnspecified() || p.source == c.IPv6 || isLinkLocal(p.source)):
		if p.source.IsUnspecified() {
			return c.advertisement(allNodes, allNodesMAC), Asked
		}
		return c.advertisement(p.source, c.mac()), Asked
	case p.destinationPort == dhcp4Server && p.source.Is4() && (p.source == c.IPv4 || p.source.IsUnspecified()):
		return c.answerDHCP4(p.payload)
	case p.destinationPort == dhcp6Server && p.source.Is6() && isLinkLocal(p.source):
		payload, event := c.answerDHCP6(p.payload)
		if payload == nil {
			return nil, event
		}
		return c.frame(c.mac(), udpPacket(netip.AddrPortFrom(gateway6, dhcp6Server), netip.AddrPortFrom(p.source, dhcp6Client), payload)), event
	}
	return nil, Nothing
}

// isLinkLocal reports whether an address is a link-local IPv6 address of the guest.
func isLinkLocal(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() && a != gateway6 }
