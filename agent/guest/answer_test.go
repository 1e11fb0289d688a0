// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package guest

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/mdlayher/ndp"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/agent/wire"
)

var config = Config{
	MAC: [6]byte{2, 0x51, 0xf0, 0, 0, 1}, GatewayMAC: [6]byte{2, 0, 0, 0, 0, 7},
	IPv4: netip.MustParseAddr("100.64.0.5"), IPv6: netip.MustParseAddr("fd5f::5"), MTU: 1376, HostName: "db-0a1b2c3d",
}

var (
	own4, own6 = net.IP(config.IPv4.AsSlice()), net.IP(config.IPv6.AsSlice())
	other4     = net.IP{100, 64, 0, 6}
	node4      = net.IP(gateway4.AsSlice())
	local      = netip.MustParseAddr("fe80::51:f0ff:fe00:1")
	any4       = netip.IPv4Unspecified()
)

// sent is a frame of the guest.
func sent(mac [6]byte, packet []byte) []byte {
	c := config
	c.GatewayMAC = mac
	return c.frame(broadcastMAC, packet)
}

func sent4(source netip.Addr, m *dhcpv4.DHCPv4) []byte {
	return sent(config.MAC, udpPacket(netip.AddrPortFrom(source, dhcp4Client), netip.AddrPortFrom(broadcast4, dhcp4Server), m.ToBytes()))
}

func message4(t testing.TB, kind dhcpv4.MessageType, modifiers ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(config.mac()), dhcpv4.WithMessageType(kind)}, modifiers...)...)
	must.NoError(t, err)
	return m
}

func TestDHCP4(t *testing.T) {
	requested := func(ip net.IP) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(ip)) }
	server := func(ip net.IP) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip)) }
	const discover, request, inform, decline, release = dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform, dhcpv4.MessageTypeDecline, dhcpv4.MessageTypeRelease
	const offer, ack, nak, none = dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak, dhcpv4.MessageTypeNone
	unicast, everyone := config.IPv4, broadcast4
	for name, row := range map[string]struct {
		source netip.Addr
		m      *dhcpv4.DHCPv4
		want   dhcpv4.MessageType
		event  Event
		to     netip.Addr
	}{
		"discover":            {any4, message4(t, discover), offer, Asked, unicast},
		"discover, broadcast": {any4, message4(t, discover, dhcpv4.WithBroadcast(true)), offer, Asked, everyone},
		"select":              {any4, message4(t, request, server(node4), requested(own4)), ack, Confirmed4, unicast},
		"select another":      {any4, message4(t, request, server(node4), requested(other4)), nak, Mistaken, everyone},
		"another server":      {any4, message4(t, request, server(other4), requested(own4)), none, Nothing, any4},
		"reboot":              {any4, message4(t, request, requested(own4)), ack, Confirmed4, unicast},
		"reboot elsewhere":    {any4, message4(t, request, requested(other4)), nak, Mistaken, everyone},
		"renew":               {config.IPv4, message4(t, request, dhcpv4.WithClientIP(own4)), ack, Confirmed4, unicast},
		"rebind":              {config.IPv4, message4(t, request, dhcpv4.WithClientIP(own4), dhcpv4.WithBroadcast(true)), ack, Confirmed4, everyone},
		"renew another":       {any4, message4(t, request, dhcpv4.WithClientIP(other4)), nak, Mistaken, everyone},
		"inform":              {config.IPv4, message4(t, inform, dhcpv4.WithClientIP(own4)), ack, Asked, unicast},
		"inform of another":   {config.IPv4, message4(t, inform, dhcpv4.WithClientIP(other4)), none, Mistaken, any4},
		"decline":             {any4, message4(t, decline, server(node4), requested(own4)), none, Declined, any4},
		"release":             {config.IPv4, message4(t, release, server(node4), dhcpv4.WithClientIP(own4)), none, Nothing, any4},
		"another client":      {any4, message4(t, discover, dhcpv4.WithHwAddr(net.HardwareAddr{2, 0, 0, 0, 0, 9})), none, Nothing, any4},
		"a relay":             {any4, message4(t, discover, dhcpv4.WithGatewayIP(other4)), none, Nothing, any4},
		"an answer":           {any4, message4(t, offer, dhcpv4.WithYourIP(own4)), none, Nothing, any4},
		"another's packet":    {netip.MustParseAddr("100.64.0.6"), message4(t, discover), none, Nothing, any4},
	} {
		t.Run(name, func(t *testing.T) {
			answer, event := config.answer(sent4(row.source, row.m))
			must.Eq(t, row.event, event)
			if row.want == none {
				must.Nil(t, answer)
				return
			}
			p, reply := read4(t, answer)
			must.Eq(t, config.GatewayMAC, p.sourceMAC)
			must.Eq(t, gateway4, p.source)
			must.Eq(t, row.to, p.destination)
			must.Eq(t, dhcp4Client, p.destinationPort)
			must.Eq(t, map[bool]net.HardwareAddr{true: broadcastMAC, false: config.mac()}[row.to == broadcast4], net.HardwareAddr(answer[:6]))
			must.Eq(t, row.want, reply.MessageType())
			must.Eq(t, row.m.TransactionID, reply.TransactionID)
			must.True(t, reply.ServerIdentifier().Equal(node4))
			leased := row.m.MessageType() != inform && row.want != nak
			must.Eq(t, map[bool]string{true: own4.String(), false: "0.0.0.0"}[leased], reply.YourIPAddr.String())
			if row.want == nak {
				must.Nil(t, reply.Router())
				return
			}
			must.Eq(t, map[bool]time.Duration{true: lifetime}[leased], reply.IPAddressLeaseTime(0))
			must.Eq(t, net.CIDRMask(32, 32), reply.SubnetMask())
			must.Eq(t, []string{"route to 169.254.1.1/32 via 0.0.0.0", "route to 0.0.0.0/0 via 169.254.1.1"}, routesOf(reply))
			must.Eq(t, "169.254.1.1", reply.Router()[0].String())
			must.Eq(t, "169.254.1.1", reply.DNS()[0].String())
			must.Eq(t, config.HostName, reply.HostName())
			must.Eq(t, 1376, binary.BigEndian.Uint16(reply.Options.Get(dhcpv4.OptionInterfaceMTU)))
			must.False(t, reply.Options.Has(classlessMicrosoft))
		})
	}
	answer, _ := config.answer(sent4(any4, message4(t, discover, dhcpv4.WithRequestedOptions(classlessMicrosoft), dhcpv4.WithOption(dhcpv4.OptClientIdentifier([]byte{255, 1, 2})))))
	_, reply := read4(t, answer)
	must.Eq(t, reply.Options.Get(dhcpv4.OptionClasslessStaticRoute), reply.Options.Get(classlessMicrosoft))
	must.Eq(t, []byte{255, 1, 2}, reply.Options.Get(dhcpv4.OptionClientIdentifier))
	// What the library writes is what RFC 3442 shows.
	must.Eq(t, []byte{32, 169, 254, 1, 1, 0, 0, 0, 0, 0, 169, 254, 1, 1}, reply.Options.Get(dhcpv4.OptionClasslessStaticRoute))
}

func routesOf(m *dhcpv4.DHCPv4) (list []string) {
	for _, r := range m.ClasslessStaticRoute() {
		list = append(list, r.String())
	}
	return list
}

// read4 reads an answer, and checks its checksums.
func read4(t *testing.T, frame []byte) (packet, *dhcpv4.DHCPv4) {
	t.Helper()
	p := readUDP(t, frame)
	m, err := dhcpv4.FromBytes(p.payload)
	must.NoError(t, err)
	return p, m
}

func readUDP(t *testing.T, frame []byte) packet {
	t.Helper()
	p, ok := parseFrame(frame)
	must.True(t, ok)
	at := ethernetLength + ipv6Length
	if p.source.Is4() {
		at = ethernetLength + ipv4Length
		must.Eq(t, 0xffff, wire.Sum(0, frame[ethernetLength:at]))
	}
	sum := wire.Sum(wire.Sum(0, p.source.AsSlice()), p.destination.AsSlice())
	must.Eq(t, 0xffff, wire.Sum(sum+protocolUDP+uint32(len(frame)-at), frame[at:]))
	return p
}

func sent6(source netip.Addr, m *dhcpv6.Message) []byte {
	return sent(config.MAC, udpPacket(netip.AddrPortFrom(source, dhcp6Client), netip.AddrPortFrom(netip.MustParseAddr("ff02::1:2"), dhcp6Server), m.ToBytes()))
}

var client = &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: config.mac()}

func message6(kind dhcpv6.MessageType, options ...dhcpv6.Option) *dhcpv6.Message {
	m := &dhcpv6.Message{MessageType: kind, TransactionID: dhcpv6.TransactionID{1, 2, 3}}
	for _, o := range options {
		m.AddOption(o)
	}
	return m
}

func TestDHCP6(t *testing.T) {
	id, node := dhcpv6.OptClientID(client), dhcpv6.OptServerID(config.duid())
	ia := func(number byte, addresses ...net.IP) *dhcpv6.OptIANA {
		o := &dhcpv6.OptIANA{IaId: [4]byte{number}}
		for _, a := range addresses {
			o.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a})
		}
		return o
	}
	strange := dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}})
	rapid := &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit}
	other := net.ParseIP("fd5f::6")
	prefix := &dhcpv6.OptIAPD{IaId: [4]byte{9}}
	const advertise, reply, none = dhcpv6.MessageTypeAdvertise, dhcpv6.MessageTypeReply, dhcpv6.MessageTypeNone
	for name, row := range map[string]struct {
		m     *dhcpv6.Message
		want  dhcpv6.MessageType
		event Event
		// addresses are those of the first association: "address lifetime". status is that of the
		// message, or of the second association.
		addresses []string
		status    iana.StatusCode
	}{
		"solicit":                  {m: message6(dhcpv6.MessageTypeSolicit, id, ia(1)), want: advertise, event: Asked, addresses: []string{"fd5f::5 168h0m0s"}},
		"solicit rapidly":          {m: message6(dhcpv6.MessageTypeSolicit, id, ia(1), rapid), want: reply, event: Confirmed6, addresses: []string{"fd5f::5 168h0m0s"}},
		"solicit two":              {m: message6(dhcpv6.MessageTypeSolicit, id, ia(1), ia(2)), want: advertise, event: Asked, addresses: []string{"fd5f::5 168h0m0s"}, status: iana.StatusNoAddrsAvail},
		"solicit a prefix":         {m: message6(dhcpv6.MessageTypeSolicit, id, prefix), want: advertise, event: Asked, status: iana.StatusNoPrefixAvail},
		"solicit a server":         {m: message6(dhcpv6.MessageTypeSolicit, id, node, ia(1))},
		"solicit of nobody":        {m: message6(dhcpv6.MessageTypeSolicit, ia(1))},
		"request":                  {m: message6(dhcpv6.MessageTypeRequest, id, node, ia(1, own6)), want: reply, event: Confirmed6, addresses: []string{"fd5f::5 168h0m0s"}},
		"request another":          {m: message6(dhcpv6.MessageTypeRequest, id, node, ia(1, other)), want: reply, event: Confirmed6, addresses: []string{"fd5f::5 168h0m0s"}},
		"request of another":       {m: message6(dhcpv6.MessageTypeRequest, id, strange, ia(1, own6))},
		"request of any":           {m: message6(dhcpv6.MessageTypeRequest, id, ia(1, own6))},
		"renew":                    {m: message6(dhcpv6.MessageTypeRenew, id, node, ia(1, own6)), want: reply, event: Confirmed6, addresses: []string{"fd5f::5 168h0m0s"}},
		"renew another":            {m: message6(dhcpv6.MessageTypeRenew, id, node, ia(1, other)), want: reply, event: Confirmed6, addresses: []string{"fd5f::5 168h0m0s", "fd5f::6 0s"}},
		"rebind":                   {m: message6(dhcpv6.MessageTypeRebind, id, ia(1, own6)), want: reply, event: Confirmed6, addresses: []string{"fd5f::5 168h0m0s"}},
		"confirm":                  {m: message6(dhcpv6.MessageTypeConfirm, id, ia(1, own6)), want: reply, event: Confirmed6, status: iana.StatusSuccess},
		"confirm another":          {m: message6(dhcpv6.MessageTypeConfirm, id, ia(1, own6, other)), want: reply, event: Mistaken, status: iana.StatusNotOnLink},
		"confirm nothing":          {m: message6(dhcpv6.MessageTypeConfirm, id, ia(1))},
		"release":                  {m: message6(dhcpv6.MessageTypeRelease, id, node, ia(1, own6)), want: reply, event: Asked, status: iana.StatusSuccess},
		"decline":                  {m: message6(dhcpv6.MessageTypeDecline, id, node, ia(1, own6)), want: reply, event: Declined, status: iana.StatusSuccess},
		"information":              {m: message6(dhcpv6.MessageTypeInformationRequest), want: reply, event: Asked},
		"information of us":        {m: message6(dhcpv6.MessageTypeInformationRequest, id, node), want: reply, event: Asked},
		"information of another":   {m: message6(dhcpv6.MessageTypeInformationRequest, id, strange)},
		"what servers say":         {m: message6(dhcpv6.MessageTypeAdvertise, id, node, ia(1, own6))},
		"what servers reconfigure": {m: message6(dhcpv6.MessageTypeReconfigure, id, node)},
	} {
		t.Run(name, func(t *testing.T) {
			answer, event := config.answer(sent6(local, row.m))
			must.Eq(t, row.event, event)
			if row.want == none {
				must.Nil(t, answer)
				return
			}
			p := readUDP(t, answer)
			must.Eq(t, gateway6, p.source)
			must.Eq(t, local, p.destination)
			must.Eq(t, dhcp6Client, p.destinationPort)
			m, err := dhcpv6.MessageFromBytes(p.payload)
			must.NoError(t, err)
			must.Eq(t, row.want, m.MessageType)
			must.Eq(t, row.m.TransactionID, m.TransactionID)
			must.True(t, m.Options.ServerID().Equal(config.duid()))
			must.Eq(t, row.m.GetOneOption(dhcpv6.OptionClientID) != nil, m.GetOneOption(dhcpv6.OptionClientID) != nil)
			must.Eq(t, row.m.GetOneOption(dhcpv6.OptionRapidCommit) != nil, m.GetOneOption(dhcpv6.OptionRapidCommit) != nil)
			var addresses []string
			var status iana.StatusCode
			for i, ia := range m.Options.IANA() {
				for _, a := range ia.Options.Addresses() {
					addresses = append(addresses, a.IPv6Addr.String()+" "+a.ValidLifetime.String())
				}
				if i > 0 {
					status = ia.Options.Status().StatusCode
				}
			}
			if pd := m.Options.OneIAPD(); pd != nil {
				status = pd.Options.Status().StatusCode
			}
			if s := m.Options.Status(); s != nil {
				status = s.StatusCode
			}
			must.Eq(t, row.addresses, addresses)
			must.Eq(t, row.status, status)
		})
	}
	// Not from another's address.
	answer, _ := config.answer(sent6(netip.MustParseAddr("fe80::1"), message6(dhcpv6.MessageTypeSolicit, id, ia(1))))
	must.Nil(t, answer)
}

func TestRouterSolicitation(t *testing.T) {
	routers := netip.MustParseAddr("ff02::2")
	solicit := func(source netip.Addr, hops byte) []byte {
		body, err := ndp.MarshalMessageChecksum(&ndp.RouterSolicitation{}, source, routers)
		must.NoError(t, err)
		return ipPacket(source, routers, protocolICMPv6, hops, body)
	}
	for name, row := range map[string]struct {
		frame []byte
		to    netip.Addr // zero: no answer
		mac   net.HardwareAddr
	}{
		"link-local": {sent(config.MAC, solicit(local, 255)), local, config.mac()},
		"its own":    {sent(config.MAC, solicit(config.IPv6, 255)), config.IPv6, config.mac()},
		"no address": {sent(config.MAC, solicit(netip.IPv6Unspecified(), 255)), allNodes, allNodesMAC},
		"another":    {sent(config.MAC, solicit(netip.MustParseAddr("fd5f::6"), 255)), netip.Addr{}, nil},
		"from afar":  {sent(config.MAC, solicit(local, 64)), netip.Addr{}, nil},
		"other MAC":  {sent([6]byte{2, 0, 0, 0, 0, 9}, solicit(local, 255)), netip.Addr{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			answer, event := config.answer(row.frame)
			if !row.to.IsValid() {
				must.Nil(t, answer)
				must.Eq(t, Nothing, event)
				return
			}
			must.Eq(t, Asked, event)
			must.Eq(t, row.mac, net.HardwareAddr(answer[:6]))
			must.Eq(t, row.to, netip.AddrFrom16([16]byte(answer[ethernetLength+24:])))
			must.Eq(t, 255, answer[ethernetLength+7])
			body := answer[ethernetLength+ipv6Length:]
			m, err := ndp.ParseMessage(body)
			must.NoError(t, err)
			ra := m.(*ndp.RouterAdvertisement)
			must.True(t, ra.ManagedConfiguration && ra.OtherConfiguration)
			must.Eq(t, routerLifetime, ra.RouterLifetime)
			for _, o := range ra.Options {
				_, isPrefix := o.(*ndp.PrefixInformation)
				must.False(t, isPrefix)
			}
			again, err := ndp.MarshalMessageChecksum(ra, gateway6, row.to)
			must.NoError(t, err)
			must.Eq(t, again, body) // the checksum, too
		})
	}
}

// FuzzAnswer: whatever the guest sends, an answer goes from the node to it, and gives it no
// other addresses than its own.
func FuzzAnswer(f *testing.F) {
	f.Add(sent4(any4, message4(f, dhcpv4.MessageTypeDiscover)))
	f.Add(sent4(any4, message4(f, dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(own4)))))
	f.Add(sent6(local, message6(dhcpv6.MessageTypeSolicit, dhcpv6.OptClientID(client), &dhcpv6.OptIANA{})))
	f.Add(sent6(local, message6(dhcpv6.MessageTypeRenew, dhcpv6.OptClientID(client), dhcpv6.OptServerID(config.duid()), &dhcpv6.OptIANA{})))
	body, err := ndp.MarshalMessageChecksum(&ndp.RouterSolicitation{}, local, allNodes)
	must.NoError(f, err)
	f.Add(sent(config.MAC, ipPacket(local, allNodes, protocolICMPv6, 255, body)))
	f.Fuzz(func(t *testing.T, frame []byte) {
		answer, event := config.answer(slices.Clone(frame))
		if answer == nil {
			return
		}
		must.NotEq(t, Nothing, event)
		must.Eq(t, config.GatewayMAC, [6]byte(answer[6:12]))
		must.Eq(t, config.MAC, [6]byte(frame[6:12]))
		p, isUDP := parseFrame(answer)
		if !isUDP { // an advertisement
			return
		}
		if p.source.Is4() {
			_, m := read4(t, answer)
			must.True(t, m.YourIPAddr.Equal(own4) || m.YourIPAddr.IsUnspecified())
			return
		}
		m, err := dhcpv6.MessageFromBytes(readUDP(t, answer).payload)
		must.NoError(t, err)
		for _, ia := range m.Options.IANA() {
			for _, a := range ia.Options.Addresses() {
				must.True(t, a.IPv6Addr.Equal(own6) || a.ValidLifetime == 0)
			}
		}
	})
}
