// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall_test

import (
	"net"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/firewall"
)

const vrrp = fabric.Protocol(112)

// What hosts need on the underlay beside ports passes if it is listed, to multicast groups and
// link-local addresses as well; what is not is counted by protocol.
func TestManagementByProtocol(t *testing.T) {
	s := newSite(t)
	s.ipv6()
	open := config
	open.Management = append([]firewall.Port{{Protocol: vrrp}, {Protocol: fabric.UDP, Number: 546}, {Protocol: fabric.UDP, Number: 5353}}, config.Management...)
	closed, opened := firewall.New(config), firewall.New(open)
	index := func(n ns.NetNS, device string) (i *net.Interface) {
		must.NoError(t, n.Do(func(ns.NetNS) (err error) {
			i, err = net.InterfaceByName(device)
			return err
		}))
		return i
	}
	// raw sends a packet of a protocol to a group, and reports whether a socket of the node got it.
	raw := func(protocol fabric.Protocol, group string) func() bool {
		return func() bool {
			var receiver net.PacketConn
			must.NoError(t, s.node.Do(func(ns.NetNS) (err error) {
				receiver, err = net.ListenPacket("ip4:"+protocolNumber(protocol), "0.0.0.0")
				must.NoError(t, err)
				member := &unix.IPMreqn{Multiaddr: [4]byte(net.ParseIP(group).To4()), Ifindex: int32(index(s.node, "under0").Index)}
				connection, err := receiver.(*net.IPConn).SyscallConn()
				must.NoError(t, err)
				must.NoError(t, connection.Control(func(fd uintptr) {
					err = unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, member)
				}))
				return err
			}))
			defer receiver.Close()
			s.run(s.outside, "ip", "route", "replace", group+"/32", "dev", "eth0")
			must.NoError(t, s.outside.Do(func(ns.NetNS) error {
				sender, err := net.ListenPacket("ip4:"+protocolNumber(protocol), outsideAddress)
				must.NoError(t, err)
				defer sender.Close()
				_, err = sender.WriteTo([]byte("advertisement"), &net.IPAddr{IP: net.ParseIP(group)})
				return err
			}))
			return got(receiver)
		}
	}
	datagram := func(to string, port int, zone bool, group string) func() bool {
		return func() bool {
			var receiver net.PacketConn
			must.NoError(t, s.node.Do(func(ns.NetNS) (err error) {
				if group != "" {
					receiver, err = net.ListenMulticastUDP("udp", index(s.node, "under0"), &net.UDPAddr{IP: net.ParseIP(group), Port: port})
				} else {
					receiver, err = net.ListenPacket("udp6", (&net.UDPAddr{Port: port}).String())
				}
				return err
			}))
			defer receiver.Close()
			must.NoError(t, s.outside.Do(func(ns.NetNS) error {
				at := &net.UDPAddr{IP: net.ParseIP(to), Port: port}
				local := &net.UDPAddr{Port: 547}
				if zone {
					at.Zone = "eth0"
				}
				sender, err := net.DialUDP("udp", local, at)
				must.NoError(t, err)
				defer sender.Close()
				_, err = sender.Write([]byte("reply"))
				return err
			}))
			return got(receiver)
		}
	}
	var linkLocal string
	must.NoError(t, s.node.Do(func(ns.NetNS) error {
		addresses, err := index(s.node, "under0").Addrs()
		for _, a := range addresses {
			if ip := a.(*net.IPNet).IP; ip.To4() == nil && ip.IsLinkLocalUnicast() {
				linkLocal = ip.String()
			}
		}
		return err
	}))
	for name, c := range map[string]struct {
		reaches  func() bool
		protocol fabric.Protocol
		port     uint16
	}{
		"VRRP":               {raw(vrrp, "224.0.0.18"), vrrp, 0},
		"a reply of DHCPv6":  {datagram(linkLocal, 546, true, ""), fabric.UDP, 546},
		"multicast, IPv6":    {datagram("ff02::fb", 5353, true, "ff02::fb"), fabric.UDP, 5353},
		"multicast, IPv4":    {datagram("224.0.0.251", 5353, false, "224.0.0.251"), fabric.UDP, 5353},
		"a protocol unheard": {raw(89, "224.0.0.5"), 89, 0},
	} {
		s.run(s.outside, "ip", "route", "replace", "224.0.0.0/4", "dev", "eth0")
		listed := name != "a protocol unheard"
		for _, f := range []*firewall.Firewall{closed, opened} {
			s.fw = f
			f.SetMode(firewall.Enforce, time.Time{})
			s.do(s.fw.Remove)
			s.apply()
			must.Eq(t, listed && f == opened, c.reaches(), must.Sprint(name))
			hits := s.hits(c.protocol, c.port)
			must.Eq(t, !(listed && f == opened), hits > 0, must.Sprint(name))
		}
		// In mode report it passes, and is counted.
		s.fw = closed
		closed.SetMode(firewall.Report, time.Time{})
		s.apply()
		must.True(t, c.reaches(), must.Sprint(name))
		must.Positive(t, s.hits(c.protocol, c.port))
	}
	must.SliceContains(t, opened.Open(), firewall.Port{Protocol: vrrp})
	must.Eq(t, "", s.run(s.node, "sh", "-c", "nft list ruleset 2>&1 >/dev/null"))
}

func protocolNumber(p fabric.Protocol) string {
	return map[fabric.Protocol]string{vrrp: "112", 89: "89"}[p]
}

func got(c net.PacketConn) bool {
	c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	_, _, err := c.ReadFrom(make([]byte, 100))
	return err == nil
}
