// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package guest

import (
	"net"
	"net/netip"

	"github.com/mdlayher/ndp"
)

// advertisement returns the frame of a router advertisement. It names no prefix, so that the guest
// makes itself no address: its only one comes by DHCPv6.
func (c Config) advertisement(to netip.Addr, mac net.HardwareAddr) []byte {
	body, err := ndp.MarshalMessageChecksum(&ndp.RouterAdvertisement{
		CurrentHopLimit: 64, ManagedConfiguration: true, OtherConfiguration: true, RouterLifetime: routerLifetime,
		Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: c.gatewayMAC()}, ndp.NewMTU(uint32(c.MTU))},
	}, gateway6, to)
	if err != nil {
		return nil // it can be marshalled, whatever the addresses and the MTU
	}
	return c.frame(mac, ipPacket(gateway6, to, protocolICMPv6, 255, body))
}
