// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package guest

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// classlessMicrosoft is the number under which old systems ask for classless routes.
var classlessMicrosoft = dhcpv4.GenericOptionCode(249)

// answerDHCP4 answers a message of DHCPv4 (RFC 2131): there is one address for one client.
func (c Config) answerDHCP4(message []byte) ([]byte, Event) {
	m, err := dhcpv4.FromBytes(message)
	if err != nil || m.OpCode != dhcpv4.OpcodeBootRequest || m.HWType != iana.HWTypeEthernet || !slices.Equal(m.ClientHWAddr, c.mac()) ||
		!unspecified(m.GatewayIPAddr) { // a relay's: another client is behind it
		return nil, Nothing
	}
	if server := m.ServerIdentifier(); server != nil && !server.Equal(gateway4.AsSlice()) {
		return nil, Nothing
	}
	own := net.IP(c.IPv4.AsSlice())
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return c.replyDHCP4(m, dhcpv4.MessageTypeOffer), Asked
	case dhcpv4.MessageTypeRequest:
		wanted := m.ClientIPAddr // of one that renews or rebinds
		if requested := m.RequestedIPAddress(); requested != nil {
			wanted = requested
		}
		if !wanted.Equal(own) {
			return c.replyDHCP4(m, dhcpv4.MessageTypeNak), Mistaken
		}
		return c.replyDHCP4(m, dhcpv4.MessageTypeAck), Confirmed4
	case dhcpv4.MessageTypeInform:
		if !m.ClientIPAddr.Equal(own) {
			return nil, Mistaken
		}
		return c.replyDHCP4(m, dhcpv4.MessageTypeAck), Asked
	case dhcpv4.MessageTypeDecline:
		return nil, Declined
	}
	return nil, Nothing // a release among others: the address stays the endpoint's
}

func unspecified(ip net.IP) bool { return len(ip) == 0 || ip.IsUnspecified() }

// replyDHCP4 returns the frame of an answer.
func (c Config) replyDHCP4(m *dhcpv4.DHCPv4, kind dhcpv4.MessageType) []byte {
	reply := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootReply, HWType: m.HWType, TransactionID: m.TransactionID, Flags: m.Flags,
		ClientHWAddr: m.ClientHWAddr, ClientIPAddr: net.IPv4zero, YourIPAddr: net.IPv4zero, ServerIPAddr: net.IPv4zero, GatewayIPAddr: net.IPv4zero,
		Options: dhcpv4.Options{},
	}
	node := net.IP(gateway4.AsSlice())
	reply.UpdateOption(dhcpv4.OptMessageType(kind))
	reply.UpdateOption(dhcpv4.OptServerIdentifier(node))
	if id := m.Options.Get(dhcpv4.OptionClientIdentifier); id != nil {
		reply.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientIdentifier, id)) // RFC 6842
	}
	to, mac := netip.AddrPortFrom(broadcast4, dhcp4Client), broadcastMAC
	if kind == dhcpv4.MessageTypeNak {
		reply.SetBroadcast()
		reply.UpdateOption(dhcpv4.OptMessage("the address is not this endpoint's"))
	} else {
		c.describe(m, reply)
		if m.MessageType() != dhcpv4.MessageTypeInform {
			reply.YourIPAddr = c.IPv4.AsSlice()
			reply.UpdateOption(dhcpv4.OptIPAddressLeaseTime(lifetime))
			reply.UpdateOption(dhcpv4.OptRenewTimeValue(renewal))
			reply.UpdateOption(dhcpv4.OptRebindingTimeValue(rebinding))
		}
		reply.ClientIPAddr = m.ClientIPAddr
		if !m.IsBroadcast() {
			to, mac = netip.AddrPortFrom(c.IPv4, dhcp4Client), c.mac()
		}
	}
	return c.frame(mac, udpPacket(netip.AddrPortFrom(gateway4, dhcp4Server), to, reply.ToBytes()))
}

// describe adds what a guest is told besides its address. The gateway is not in the address's
// prefix, which is the address alone: the classless routes say that it is on the link. Clients
// that do not know those take the router; most then know what to do.
func (c Config) describe(m, reply *dhcpv4.DHCPv4) {
	node := net.IP(gateway4.AsSlice())
	routes := dhcpv4.OptClasslessStaticRoute(
		&dhcpv4.Route{Dest: &net.IPNet{IP: node, Mask: net.CIDRMask(32, 32)}, Router: net.IPv4zero.To4()},
		&dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Router: node},
	)
	reply.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(32, 32)))
	reply.UpdateOption(dhcpv4.OptRouter(node))
	reply.UpdateOption(routes)
	if slices.ContainsFunc(m.ParameterRequestList(), func(o dhcpv4.OptionCode) bool { return o.Code() == classlessMicrosoft.Code() }) {
		reply.UpdateOption(dhcpv4.OptGeneric(classlessMicrosoft, routes.Value.ToBytes()))
	}
	reply.UpdateOption(dhcpv4.OptDNS(nameserver.AsSlice()))
	reply.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, uint16(c.MTU))))
	if c.HostName != "" {
		reply.UpdateOption(dhcpv4.OptHostName(c.HostName))
	}
}
