// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package guest

import (
	"net"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// duid names the node as a DHCPv6 server. It is the same after a restart.
func (c Config) duid() dhcpv6.DUID {
	return &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: c.gatewayMAC()}
}

// answerDHCP6 answers a message of DHCPv6 (RFC 8415): the first association has the one address.
// There is no IPv6 address of the node's resolver, which answers about both kinds at its IPv4 one.
func (c Config) answerDHCP6(message []byte) ([]byte, Event) {
	m, err := dhcpv6.MessageFromBytes(message)
	if err != nil {
		return nil, Nothing
	}
	client, server := m.Options.ClientID(), m.Options.ServerID()
	needsServer := false
	switch m.MessageType {
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		needsServer = true
	case dhcpv6.MessageTypeInformationRequest:
		needsServer = server != nil
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind:
		if server != nil {
			return nil, Nothing
		}
	default:
		return nil, Nothing
	}
	if client == nil && m.MessageType != dhcpv6.MessageTypeInformationRequest || needsServer && (server == nil || !server.Equal(c.duid())) {
		return nil, Nothing
	}
	reply := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: m.TransactionID}
	if client != nil {
		reply.AddOption(dhcpv6.OptClientID(client))
	}
	reply.AddOption(dhcpv6.OptServerID(c.duid()))
	event := Asked
	switch m.MessageType {
	case dhcpv6.MessageTypeSolicit:
		if m.GetOneOption(dhcpv6.OptionRapidCommit) != nil {
			reply.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
			event = c.associate(m, reply)
		} else {
			reply.MessageType = dhcpv6.MessageTypeAdvertise
			c.associate(m, reply)
		}
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		event = c.associate(m, reply)
	case dhcpv6.MessageTypeConfirm:
		own, asked := c.holds(m)
		if !asked {
			return nil, Nothing
		}
		status := &dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess}
		if event = Confirmed6; !own {
			status, event = &dhcpv6.OptStatusCode{StatusCode: iana.StatusNotOnLink}, Mistaken
		}
		reply.AddOption(status)
	case dhcpv6.MessageTypeDecline:
		event = Declined
		reply.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess})
	case dhcpv6.MessageTypeRelease:
		reply.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess})
	}
	return reply.ToBytes(), event
}

// holds reports whether all addresses in a message are the guest's own, and whether there are any.
func (c Config) holds(m *dhcpv6.Message) (own, any bool) {
	own = true
	for _, ia := range m.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			any = true
			own = own && a.IPv6Addr.Equal(c.IPv6.AsSlice())
		}
	}
	return own, any
}

// associate answers each association of a message. Addresses that are not the guest's end at once.
func (c Config) associate(m, reply *dhcpv6.Message) Event {
	event := Asked
	for i, ia := range m.Options.IANA() {
		answer := &dhcpv6.OptIANA{IaId: ia.IaId}
		if i > 0 {
			answer.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail})
			reply.AddOption(answer)
			continue
		}
		event = Confirmed6
		answer.T1, answer.T2 = renewal, rebinding
		own := net.IP(c.IPv6.AsSlice())
		answer.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: own, PreferredLifetime: lifetime, ValidLifetime: lifetime})
		for _, a := range ia.Options.Addresses() {
			renews := m.MessageType == dhcpv6.MessageTypeRenew || m.MessageType == dhcpv6.MessageTypeRebind
			if renews && !a.IPv6Addr.Equal(own) {
				answer.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.IPv6Addr})
			}
		}
		reply.AddOption(answer)
	}
	for _, ia := range m.Options.IATA() {
		answer := &dhcpv6.OptIATA{IaId: ia.IaId}
		answer.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail})
		reply.AddOption(answer)
	}
	for _, ia := range m.Options.IAPD() {
		answer := &dhcpv6.OptIAPD{IaId: ia.IaId}
		answer.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoPrefixAvail})
		reply.AddOption(answer)
	}
	return event
}
